//! What is wrong with a call is said in its status, at once, and nothing is
//! sent.

use std::time::{Duration, Instant};

use antiphon::message::GRPC_METHOD;
use antiphon::route::Settings;
use antiphon::transport::{HeaderName, Record};
use antiphon::worker::samples::{Samples, echo};
use bytes::Bytes;
use prost::Message as _;
use tonic::Code;

use crate::harness::{ECHO, PAY, TestGateway, setting, trailer};
use crate::raw::{begin, framed, post};

#[tokio::test]
async fn what_the_caller_got_wrong() {
    let gateway = TestGateway::build()
        .config(|config| config.grpc.message_bytes_max = 1_000)
        .proto("syntax = \"proto3\"; package up.v1; message A {} service UpService { rpc Up(stream A) returns (A); rpc Down(A) returns (A); }")
        .topic("up.v1.UpService", 1)
        .handler(Samples::default())
        .start()
        .await;
    let address = gateway.gateway().grpc_address();
    let pay = framed(b"\x0a\x03o-1\x10\x01");
    let truncated = framed(b"\x0a\x7fo-1");
    let no_prefix = Bytes::from_static(b"\x00\x00");
    let large = framed(&[0x1a; 2_000]);
    let keyless = framed(b"\x10\x01");
    type Case<'a> = (&'a str, &'a str, &'a [(&'a str, &'a str)], &'a Bytes, Code, &'a str);
    let cases: [Case<'_>; 13] = [
        (
            "unknown service",
            "/no.Such/Method",
            &[],
            &pay,
            Code::Unimplemented,
            "/no.Such/Method: no such service here",
        ),
        (
            "unknown method",
            "/payments.v1.PaymentService/Charge",
            &[],
            &pay,
            Code::Unimplemented,
            "/payments.v1.PaymentService/Charge: the service has no such method",
        ),
        (
            "client streaming method",
            "/up.v1.UpService/Up",
            &[],
            &pay,
            Code::Unimplemented,
            "client streaming methods are not served: a request is one record",
        ),
        ("truncated message", PAY, &[], &truncated, Code::InvalidArgument, "request message: "),
        ("truncated, no key", ECHO, &[], &truncated, Code::InvalidArgument, "request message: "),
        ("no message", PAY, &[], &Bytes::new(), Code::Internal, "a unary call needs one message"),
        ("half a prefix", PAY, &[], &no_prefix, Code::Internal, ""),
        (
            "too large",
            PAY,
            &[],
            &large,
            Code::ResourceExhausted,
            "the message has 2000 bytes; at most 1000 are allowed",
        ),
        (
            "deadline of zero",
            PAY,
            &[("grpc-timeout", "0n")],
            &pay,
            Code::DeadlineExceeded,
            "the deadline had passed",
        ),
        (
            "too many digits",
            PAY,
            &[("grpc-timeout", "99999999999S")],
            &pay,
            Code::InvalidArgument,
            "grpc-timeout has more than 8 digits",
        ),
        (
            "no unit",
            PAY,
            &[("grpc-timeout", "10")],
            &pay,
            Code::InvalidArgument,
            "grpc-timeout ends in no known unit; expected one of H M S m u n",
        ),
        (
            "unknown encoding",
            PAY,
            &[("grpc-encoding", "snappy")],
            &pay,
            Code::Unimplemented,
            "grpc-encoding \"snappy\" is not supported",
        ),
        ("no key is no mistake", PAY, &[], &keyless, Code::Ok, ""),
    ];
    for (name, path, headers, body, code, message) in cases {
        let answer = post(address, path, headers, body.clone()).await;
        let status = answer.status();
        assert_eq!(status.code(), code, "{name}: {status:?}");
        assert!(status.message().starts_with(message), "{name}: {status:?}");
    }
    let page = post(address, PAY, &[("content-type", "application/json")], Bytes::from_static(b"{}")).await;
    assert_eq!(page.http.as_u16(), 415);
    gateway.settled().await;
    gateway.stop().await;
}

#[tokio::test]
async fn a_message_that_is_still_being_read_has_its_place_and_its_bytes() {
    let gateway = TestGateway::build()
        .config(|config| config.limits.bytes_held_max = 1_000)
        .handler(Samples::default())
        .start()
        .await;
    let address = gateway.gateway().grpc_address();
    let large = framed(&[0x1a; 2_000]);
    let budget = || {
        let instance = gateway.gateway().instance();
        (instance.budget.calls(), instance.budget.bytes())
    };

    let unfinished = begin(address, PAY, large.slice(..905)).await;
    gateway.until("it is counted", || budget() == (1, 900)).await;
    let refused = post(address, PAY, &[], framed(&[0x1a; 200])).await.status();
    assert_eq!(refused.code(), Code::ResourceExhausted, "{refused:?}");
    assert!(refused.message().contains("limits.bytes_held_max"), "{refused:?}");
    drop(unfinished);
    gateway.until("its caller has gone", || budget() == (0, 0)).await;

    // What says that it will be too much is refused while it comes.
    let refused = post(address, PAY, &[], large).await.status();
    assert_eq!(refused.code(), Code::ResourceExhausted, "{refused:?}");
    assert_eq!(budget(), (0, 0));
    gateway.settled().await;
    gateway.stop().await;
}

#[tokio::test]
async fn no_such_topic_is_unavailable_and_heals() {
    let gateway = TestGateway::build().topic("payment_request", 0).start().await;
    let began = Instant::now();
    let status = gateway.raw(PAY, Bytes::new()).await.unwrap_err();
    assert_eq!(status.code(), Code::Unavailable);
    let topic = gateway.topic("payment_request");
    assert_eq!(status.message(), format!("request topic {topic} does not exist on the cluster"));
    assert_eq!(trailer(status.metadata(), "antiphon-outcome").as_deref(), Some("not-sent"));
    assert!(began.elapsed() < Duration::from_secs(5));
    gateway.stop().await;
}

#[tokio::test]
async fn a_partition_that_does_not_exist_is_named() {
    let settings = Settings { partition: setting(99), ..Settings::default() };
    let gateway = TestGateway::build().method("echo.v1.EchoService/Echo", settings).start().await;
    let status = gateway.raw(ECHO, Bytes::new()).await.unwrap_err();
    assert_eq!(status.code(), Code::InvalidArgument);
    assert!(status.message().contains("partition 99 of"), "{status:?}");
    gateway.stop().await;
}

/// What the worker got wrong: replies that can't be handed on.
#[tokio::test]
async fn replies_that_make_no_sense_are_internal() {
    type Headers = &'static [(&'static str, &'static str)];
    let cases: [(&str, Option<&'static [u8]>, Headers, &str); 5] = [
        (
            "word for a status",
            Some(b""),
            &[("grpc-status", "fine")],
            "its grpc-status header \"fine\" is no status code",
        ),
        (
            "status out of range",
            Some(b""),
            &[("grpc-status", "17")],
            "its grpc-status header \"17\" is no status code",
        ),
        (
            "bad details",
            Some(b""),
            &[("grpc-status", "3"), ("grpc-status-details-bin", "?")],
            "is not base64",
        ),
        ("tombstone", None, &[], "it has no value (a tombstone) and no grpc-status"),
        ("error page", Some(b"<html>502</html>"), &[], "is no echo.v1.EchoReply: "),
    ];
    let gateway = TestGateway::build().start().await;
    for (name, value, headers, message) in cases {
        let call = gateway.raw(ECHO, Bytes::new());
        let reply = answer_by_hand(&gateway, value, headers);
        let (answer, ()) = tokio::join!(call, reply);
        let status = answer.unwrap_err();
        assert_eq!(status.code(), Code::Internal, "{name}: {status:?}");
        assert!(status.message().contains(message), "{name}: {status:?}");
        assert_eq!(trailer(status.metadata(), "antiphon-outcome").as_deref(), Some("sent"), "{name}");
    }
    gateway.stop().await;
}

/// Finds the newest request on the echo topic and replies to it.
async fn answer_by_hand(
    gateway: &TestGateway,
    value: Option<&'static [u8]>,
    headers: &[(&'static str, &'static str)],
) {
    let id = next_correlation_id(gateway, "echo.v1.EchoService").await;
    let mut all = vec![(HeaderName::Borrowed("kafka_correlationId"), id)];
    all.extend(headers.iter().map(|(n, v)| (HeaderName::Borrowed(*n), Bytes::from_static(v.as_bytes()))));
    gateway.write_reply(Record { key: None, value: value.map(Bytes::from_static), headers: all }).await;
}

/// The correlation id of the newest request of `topic`, waiting for one whose
/// call is still open.
pub async fn next_correlation_id(gateway: &TestGateway, topic: &str) -> Bytes {
    use antiphon::transport::Cluster as _;
    let topic = gateway.topic(topic);
    for _ in 0..500 {
        for partition in 0..3 {
            let mut reader = gateway.cluster.reader(&topic, partition).await.unwrap();
            let start = reader.start_offset().await.unwrap();
            let fetched = reader.fetch(start, Duration::from_millis(10)).await.unwrap();
            for record in fetched.records.iter().rev() {
                assert_eq!(record.header(GRPC_METHOD).unwrap(), ECHO.as_bytes());
                let id = record.header("kafka_correlationId").unwrap();
                let parsed = antiphon::correlation::CorrelationId::parse(id).unwrap();
                if gateway.gateway().instance().shards()[0].pending.is_waiting(parsed) {
                    return id.clone();
                }
            }
        }
    }
    panic!("no request arrived on {topic}");
}

#[tokio::test]
async fn a_timeout_tells_where_the_request_is() {
    let gateway = TestGateway::build().start().await;
    let mut request = tonic::Request::new(echo::EchoRequest { payload: Bytes::from_static(b"x") });
    request.metadata_mut().insert("x-other", "1".parse().unwrap());
    let body = framed(&request.get_ref().encode_to_vec());
    let address = gateway.gateway().grpc_address();
    let began = Instant::now();
    let answer = post(address, ECHO, &[("grpc-timeout", "300m")], body).await;
    assert_eq!(answer.code(), Code::DeadlineExceeded);
    assert!(began.elapsed() >= Duration::from_millis(300) && began.elapsed() < Duration::from_millis(900));
    assert_eq!(answer.headers["antiphon-outcome"], "sent");
    let record = answer.headers["antiphon-record"].to_str().unwrap();
    assert!(record.starts_with(&format!("{}/", gateway.topic("echo.v1.EchoService"))), "{record}");
    gateway.settled().await;
    gateway.stop().await;
}
