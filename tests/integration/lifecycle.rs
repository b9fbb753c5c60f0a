//! Start, readiness, drain and stop.

use std::sync::Arc;
use std::time::{Duration, Instant};

use antiphon::app::StartError;
use antiphon::exchange::Phase;
use antiphon::metrics::CallLabels;
use antiphon::worker::samples::{Samples, echo};
use bytes::Bytes;
use tokio::net::TcpListener;
use tonic::Code;
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_check_response::ServingStatus;
use tonic_health::pb::health_client::HealthClient;
use tonic_reflection::pb::v1::ServerReflectionRequest;
use tonic_reflection::pb::v1::server_reflection_client::ServerReflectionClient;
use tonic_reflection::pb::v1::server_reflection_request::MessageRequest;
use tonic_reflection::pb::v1::server_reflection_response::MessageResponse;

use crate::harness::{ECHO, PATIENCE, PAY, TestGateway, unary};
use crate::raw::{framed, post};

async fn health(gateway: &TestGateway, service: &str) -> ServingStatus {
    let mut client = HealthClient::new(gateway.channel.clone());
    let request = HealthCheckRequest { service: service.to_owned() };
    client.check(request).await.unwrap().get_ref().status()
}

#[tokio::test]
async fn a_started_gateway_is_serving_and_reflects() {
    let gateway = TestGateway::build().start().await;
    assert_eq!(health(&gateway, "").await, ServingStatus::Serving);
    assert_eq!(health(&gateway, "payments.v1.PaymentService").await, ServingStatus::Serving);

    let mut client = ServerReflectionClient::new(gateway.channel.clone());
    let ask = ServerReflectionRequest {
        host: String::new(),
        message_request: Some(MessageRequest::ListServices(String::new())),
    };
    let mut answers = client.server_reflection_info(tokio_stream::once(ask)).await.unwrap().into_inner();
    let answer = answers.message().await.unwrap().unwrap().message_response.unwrap();
    let MessageResponse::ListServicesResponse(list) = answer else { panic!("{answer:?}") };
    let names: Vec<_> = list.service.into_iter().map(|service| service.name).collect();
    for expected in ["payments.v1.PaymentService", "echo.v1.EchoService", "grpc.health.v1.Health"] {
        assert!(names.iter().any(|name| name == expected), "{names:?}");
    }
    gateway.stop().await;
}

/// A tool that knows no proto has to ask what the details of an error are.
#[tokio::test]
async fn reflection_knows_the_details_of_errors() {
    let gateway = TestGateway::build().start().await;
    let mut client = ServerReflectionClient::new(gateway.channel.clone());
    for symbol in ["google.rpc.ErrorInfo", "google.rpc.LocalizedMessage", "google.rpc.Status"] {
        let ask = ServerReflectionRequest {
            host: String::new(),
            message_request: Some(MessageRequest::FileContainingSymbol(symbol.to_owned())),
        };
        let mut answers = client.server_reflection_info(tokio_stream::once(ask)).await.unwrap().into_inner();
        let answer = answers.message().await.unwrap().unwrap().message_response.unwrap();
        assert!(matches!(answer, MessageResponse::FileDescriptorResponse(_)), "{symbol}: {answer:?}");
    }
    gateway.stop().await;
}

#[tokio::test]
async fn a_drain_lets_calls_finish_and_refuses_new_ones() {
    let mut gateway = TestGateway::build()
        .worker(|_, message| async move {
            tokio::time::sleep(Duration::from_millis(500)).await;
            Some(Ok(message))
        })
        .start()
        .await;
    let running = gateway.take_gateway();
    let instance = Arc::clone(running.instance());
    let mut phase = instance.watch_phase();

    let channel = gateway.channel.clone();
    let in_flight = tokio::spawn(unary(channel, ECHO, tonic::Request::new(Bytes::new())));
    crate::harness::until("the call is in flight", || instance.pending_calls() == 1).await;

    let late_channel = gateway.channel.clone();
    let new_call = async {
        phase.wait_for(|now| *now == Phase::Draining).await.unwrap();
        unary(late_channel, ECHO, tonic::Request::new(Bytes::new())).await
    };
    let (stopped, refused) = tokio::join!(running.stop(), new_call);
    stopped.unwrap();
    assert_eq!(refused.unwrap_err().code(), Code::Unavailable);
    assert!(in_flight.await.unwrap().is_ok(), "the call in flight must finish");
    assert_eq!(instance.pending_calls(), 0);
}

#[tokio::test]
async fn calls_that_do_not_end_are_cut_after_the_drain_timeout() {
    let mut gateway =
        TestGateway::build().config(|config| config.drain.timeout = Duration::from_millis(300)).start().await;
    let running = gateway.take_gateway();
    let instance = Arc::clone(running.instance());
    let call = tokio::spawn(unary(gateway.channel.clone(), ECHO, tonic::Request::new(Bytes::new())));
    crate::harness::until("the call is in flight", || instance.pending_calls() == 1).await;
    let began = Instant::now();
    assert!(running.stop().await.is_err());
    assert!(began.elapsed() < Duration::from_secs(5), "{:?}", began.elapsed());
    assert!(call.await.unwrap().is_err());
}

#[tokio::test]
async fn a_caller_that_goes_away_frees_its_place() {
    let gateway = TestGateway::build().start().await;
    let call = tokio::spawn(unary(gateway.channel.clone(), ECHO, tonic::Request::new(Bytes::new())));
    gateway.until("the call is in flight", || gateway.gateway().instance().pending_calls() == 1).await;
    call.abort();
    gateway.settled().await;
    gateway.stop().await;
}

#[tokio::test]
async fn a_broker_that_is_none_is_named_within_the_start_timeout() {
    let black_hole = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let garbage = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let garbage_address = garbage.local_addr().unwrap();
    let talker = tokio::spawn(async move {
        while let Ok((mut stream, _)) = garbage.accept().await {
            let _ =
                tokio::io::AsyncWriteExt::write_all(&mut stream, b"HTTP/1.1 400 Bad Request\r\n\r\n").await;
        }
    });
    let refusing = {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        listener.local_addr().unwrap()
    };
    let cases = [
        ("refuses", refusing, "Connection refused"),
        ("is a black hole", black_hole.local_addr().unwrap(), "no answer"),
        ("is not Kafka", garbage_address, "is this a Kafka broker"),
    ];
    for (name, address, expected) in cases {
        let config = antiphon::app::Config {
            kafka: antiphon::kafka::config::Config {
                bootstrap_servers: vec![address.to_string()],
                ..Default::default()
            },
            grpc: antiphon::ingress::config::Config {
                listen: ([127, 0, 0, 1], 0).into(),
                ..Default::default()
            },
            admin: antiphon::admin::config::Config {
                listen: ([127, 0, 0, 1], 0).into(),
                ..Default::default()
            },
            reply: antiphon::exchange::config::ReplyConfig {
                start_timeout: Duration::from_millis(800),
                ..Default::default()
            },
            ..Default::default()
        };
        let sources = antiphon::route::Sources {
            protos: vec![concat!(env!("CARGO_MANIFEST_DIR"), "/proto/echo/v1/echo.proto").into()],
            ..Default::default()
        };
        let routes = antiphon::route::compile(&sources).unwrap();
        let began = Instant::now();
        let started =
            tokio::time::timeout(PATIENCE, antiphon::app::Gateway::start(config, routes)).await.unwrap();
        let error = started.unwrap_err();
        assert!(matches!(error, StartError::Kafka { .. }), "{name}: {error}");
        let text = error.to_string();
        assert!(text.contains(&address.to_string()) && text.contains(expected), "{name}: {text}");
        assert!(began.elapsed() < Duration::from_secs(3), "{name}: {:?}", began.elapsed());
    }
    talker.abort();
}

#[tokio::test]
async fn compression_works_in_both_directions() {
    for compression in ["none", "gzip", "snappy", "lz4", "zstd"] {
        let gateway = TestGateway::build()
            .config(|config| config.kafka.compression = compression.parse().unwrap())
            .handler(Samples::default())
            .start()
            .await;
        let payload = Bytes::from(vec![b'a'; 100_000]);
        for encoding in [tonic::codec::CompressionEncoding::Gzip, tonic::codec::CompressionEncoding::Zstd] {
            let mut client = tonic::client::Grpc::new(gateway.channel.clone())
                .send_compressed(encoding)
                .accept_compressed(encoding);
            client.ready().await.unwrap();
            let request = tonic::Request::new(echo::EchoRequest { payload: payload.clone() });
            let path = http::uri::PathAndQuery::from_static(ECHO);
            let codec = tonic_prost::ProstCodec::<echo::EchoRequest, echo::EchoReply>::default();
            let reply = client.unary(request, path, codec).await.unwrap();
            assert_eq!(reply.get_ref().payload, payload, "{compression} {encoding:?}");
        }
        gateway.stop().await;
    }
}

#[tokio::test]
async fn a_caller_that_goes_away_is_counted_by_its_reason() {
    let gateway = TestGateway::build().topic("payment_request", 2).start().await;
    let address = gateway.gateway().grpc_address();
    let counted = |code| {
        let calls = &gateway.gateway().instance().metrics.calls;
        calls.count(&CallLabels { method: PAY.into(), code })
    };
    let call = |timeout: &'static str| async move {
        let headers = [("grpc-timeout", timeout)];
        post(address, PAY, &headers, framed(b"\x0a\x03o-1\x10\x01")).await
    };
    // Its own deadline, a moment before ours (or, on a busy machine, after it).
    let _ = tokio::time::timeout(Duration::from_millis(480), call("500m")).await;
    gateway.until("it is counted", || counted("DEADLINE_EXCEEDED") == 1).await;
    // A change of mind.
    assert!(tokio::time::timeout(Duration::from_millis(100), call("30S")).await.is_err());
    gateway.until("it is counted", || counted("CANCELLED") == 1).await;
    assert_eq!(counted("DEADLINE_EXCEEDED"), 1);
    gateway.stop().await;
}
