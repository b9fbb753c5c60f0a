//! Payload formats end to end: what is in the records, what comes back, and
//! what is said of replies that do not fit.

use std::time::{Duration, Instant};

use antiphon::app::StartError;
use antiphon::message::WorkerStatus;
use antiphon::route::Settings;
use antiphon::worker::samples::payments;
use bytes::Bytes;
use prost::Message as _;
use tonic::Code;

use crate::harness::{PAY, TestGateway, TestGatewayBuilder, setting, trailer};
use crate::records::{await_records, text};

fn payment() -> payments::PayRequest {
    payments::PayRequest { order_id: "o-1".to_owned(), amount_minor: 1 << 60, currency: "EUR".to_owned() }
}

fn json(change: impl FnOnce(&mut Settings)) -> TestGatewayBuilder {
    let mut settings = Settings { format: setting("json".to_owned()), ..Settings::default() };
    change(&mut settings);
    TestGateway::build().method("payments.v1.PaymentService/Pay", settings)
}

/// A worker that answers with this, whatever it was asked.
fn answering(builder: TestGatewayBuilder, reply: &'static [u8]) -> TestGatewayBuilder {
    builder.worker(move |_, _| async move { Some(Ok(Bytes::from_static(reply))) })
}

#[tokio::test]
async fn json_goes_there_and_back() {
    let reply = br#"{"orderId":"o-1","payment_id":"p-1","state":"PAYMENT_STATE_APPROVED"}"#;
    let gateway = answering(json(|_| {}), reply).start().await;
    let answer = gateway.call::<_, payments::PayReply>(PAY, payment()).await.unwrap().into_inner();
    assert_eq!((answer.order_id.as_str(), answer.payment_id.as_str(), answer.state), ("o-1", "p-1", 1));
    let sent = await_records(&gateway.cluster, &gateway.topic("payment_request"), 1).await;
    let request = &sent[0].1;
    assert_eq!(
        request.value.as_deref(),
        Some(&br#"{"orderId":"o-1","amountMinor":"1152921504606846976","currency":"EUR"}"#[..])
    );
    assert_eq!(text(request, "content-type").as_deref(), Some("application/json"));
    assert_eq!(request.key.as_deref(), Some(&b"o-1"[..]), "the key comes from the protobuf message");
    gateway.stop().await;
}

#[tokio::test]
async fn json_is_written_as_the_options_say() {
    let builder = json(|settings| {
        settings.json_names = setting("proto".to_owned());
        settings.json_defaults = setting(true);
    });
    let gateway = answering(builder, b"{}").start().await;
    let request = payments::PayRequest { order_id: "o-1".to_owned(), ..Default::default() };
    let answer = gateway.call::<_, payments::PayReply>(PAY, request).await.unwrap().into_inner();
    assert_eq!(answer, payments::PayReply::default());
    let sent = await_records(&gateway.cluster, &gateway.topic("payment_request"), 1).await;
    assert_eq!(
        sent[0].1.value.as_deref(),
        Some(&br#"{"order_id":"o-1","amount_minor":"0","currency":""}"#[..])
    );
    gateway.stop().await;
}

#[tokio::test]
async fn json_that_does_not_fit_is_internal_and_named() {
    let cases: [(&'static [u8], &str); 7] = [
        (b"<html>", r#"its value is no payments.v1.PayReply in JSON, at ".": expected value"#),
        (b"", "its value has 0 bytes, which is no JSON"),
        (br#"{"orderId":"o-1","price":1}"#, "unrecognized field name 'price'"),
        (br#"{"orderId":7}"#, r#"at "orderId": invalid type: integer `7`, expected a string"#),
        (br#"{"state":"PAYMENT_STATE_LOST"}"#, r#"at "state": unrecognized enum value"#),
        (br#"{"orderId":"o-1""#, "EOF while parsing an object"),
        (b"\x0a\x03o-1", "in JSON"),
    ];
    for (reply, message) in cases {
        let builder = answering(json(|_| {}), reply).on_the_embedded_broker();
        let gateway = builder.start().await;
        let status = gateway.call::<_, payments::PayReply>(PAY, payment()).await.unwrap_err();
        assert_eq!(status.code(), Code::Internal, "{reply:?}: {status:?}");
        assert!(status.message().contains(message), "{reply:?}: {status:?}");
        assert_eq!(trailer(status.metadata(), "antiphon-outcome").as_deref(), Some("sent"));
        gateway.settled().await;
        gateway.stop().await;
    }
}

#[tokio::test]
async fn a_request_without_a_form_in_json_is_refused_and_not_sent() {
    let gateway = json(|_| {}).start().await;
    // currency is not UTF-8; the walk for the key does not mind.
    let status = gateway.raw(PAY, Bytes::from_static(b"\x1a\x01\xff")).await.unwrap_err();
    assert_eq!(status.code(), Code::InvalidArgument, "{status:?}");
    assert!(status.message().contains("it is no payments.v1.PayRequest"), "{status:?}");
    assert_eq!(trailer(status.metadata(), "antiphon-outcome").as_deref(), Some("not-sent"));
    gateway.settled().await;
    gateway.stop().await;
}

/// Errors and null values are what they are in every format.
#[tokio::test]
async fn errors_need_no_json() {
    let gateway = json(|_| {})
        .worker(|_, _| async {
            Some(Err(WorkerStatus { code: 9, message: "no funds".to_owned(), details: Bytes::new() }))
        })
        .start()
        .await;
    let status = gateway.call::<_, payments::PayReply>(PAY, payment()).await.unwrap_err();
    assert_eq!((status.code(), status.message()), (Code::FailedPrecondition, "no funds"));
    gateway.stop().await;
}

#[tokio::test]
async fn a_converted_reply_may_be_as_large_as_any_other() {
    let long: &'static str = Box::leak(format!(r#"{{"orderId":"{}"}}"#, "x".repeat(2_000)).into_boxed_str());
    for (max, fits) in [(2_010, true), (1_990, false)] {
        let builder = answering(json(|_| {}), long.as_bytes()).on_the_embedded_broker();
        let gateway = builder.config(|config| config.grpc.message_bytes_max = max).start().await;
        let answer = gateway.call::<_, payments::PayReply>(PAY, payment()).await;
        match answer {
            Ok(answer) => assert!(fits && answer.get_ref().encoded_len() < max),
            Err(status) => {
                assert!(!fits && status.message().contains("its value has 2003 bytes"), "{status:?}");
            }
        }
        gateway.stop().await;
    }
}

const FRAMED: &str = r#"
    syntax = "proto3";
    package framed.v1;
    import "antiphon/v1/options.proto";
    message Text { string text = 1; }
    service FramedService {
        option (antiphon.v1.kafka_defaults) = { format: CONFLUENT_PROTOBUF };
        rpc Do(Text) returns (Text);
    }
"#;

#[tokio::test]
async fn a_registry_that_is_not_there_ends_the_start() {
    let began = Instant::now();
    let refused = TestGateway::build()
        .proto(FRAMED)
        .on_the_embedded_broker()
        .config(|config| {
            config.reply.start_timeout = Duration::from_secs(2);
            config.schema_registry = Some(antiphon::registry::config::Config {
                url: "http://127.0.0.1:1/apis".to_owned(),
                credentials: None,
                register: true,
                timeout: Duration::from_secs(1),
                ca_file: None,
            });
        })
        .try_start()
        .await;
    let error = refused.map(|_| ()).unwrap_err();
    assert!(matches!(error, StartError::Registry(_)), "{error:?}");
    let text = error.to_string();
    assert!(
        text.starts_with("schema registry at http://127.0.0.1:1/apis, subject \"framed.v1.FramedService-"),
        "{text}"
    );
    assert!(text.contains("Connection refused"), "{text}");
    assert!(began.elapsed() < Duration::from_secs(10));
}
