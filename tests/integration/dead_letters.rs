//! What is left of calls: dead letters, late replies beside them, cancel
//! records.

use std::time::Duration;

use antiphon::metrics::DeadLetterLabels;
use antiphon::route::Settings;
use antiphon::transport::{HeaderName, Received, Record};
use antiphon::worker::samples::{echo, payments};
use bytes::Bytes;
use tonic::Code;

use crate::harness::{ECHO, PAY, TestGateway, TestGatewayBuilder, setting, trailer, unary};
use crate::records::{all, await_records, call_with, header_names, text};

/// Payments go to the dead letters for every reason there is.
fn with_dead_letters() -> TestGatewayBuilder {
    let reasons = ["timeout", "undecodable-reply", "rejected"].map(str::to_owned).to_vec();
    let settings = Settings { dead_letter_on: setting(reasons), ..Settings::default() };
    TestGateway::build()
        .method("payments.v1.PaymentService/Pay", settings.clone())
        .method("echo.v1.EchoService/Echo", settings)
}

fn payment() -> payments::PayRequest {
    payments::PayRequest { order_id: "o-1".to_owned(), amount_minor: 5, currency: "EUR".to_owned() }
}

fn counted(gateway: &TestGateway, class: &'static str) -> u64 {
    gateway.gateway().instance().metrics.dead_letters.get_or_create(&DeadLetterLabels { class }).get()
}

/// The headers of the request, as they were sent.
const REQUEST_HEADERS: [&str; 6] = [
    "content-type",
    "grpc-deadline",
    "grpc-method",
    "kafka_correlationId",
    "kafka_replyPartition",
    "kafka_replyTopic",
];

const LETTER_HEADERS: [&str; 7] = [
    "antiphon-outcome",
    "failure.class",
    "failure.reason",
    "failure.timestamp",
    "original.offset",
    "original.partition",
    "original.topic",
];

#[track_caller]
fn assert_headers(record: &Received, expected: &[&[&str]]) {
    let mut expected = expected.concat();
    expected.sort_unstable();
    assert_eq!(header_names(record), expected);
}

#[tokio::test]
async fn a_timeout_leaves_the_request_and_the_late_reply_comes_beside_it() {
    let gateway = with_dead_letters()
        .worker(|_, message| async move {
            tokio::time::sleep(Duration::from_millis(900)).await;
            Some(Ok(message))
        })
        .start()
        .await;
    let headers = [("grpc-timeout", "400m"), ("idempotency-key", "k-1"), ("traceparent", "00-1-2-01")];
    // Without its key the call ends with its caller; with it, it waits on.
    let status = call_with(&gateway, PAY, payment(), &headers[..1]).await.unwrap_err();
    assert_eq!(status.code(), Code::DeadlineExceeded);
    let id = trailer(status.metadata(), "antiphon-correlation-id").unwrap();
    let place = trailer(status.metadata(), "antiphon-record").unwrap();

    let dlq = gateway.topic("payment_request") + ".DLQ";
    let letters = await_records(&gateway.cluster, &dlq, 2).await;
    let (request_partition, request) =
        all(&gateway.cluster, &gateway.topic("payment_request")).await.into_iter().next().unwrap();
    let (partition, letter) = &letters[0];
    assert_eq!(*partition, request_partition, "the request's own partition");
    assert_headers(letter, &[&REQUEST_HEADERS, &LETTER_HEADERS]);
    assert_eq!((&letter.key, &letter.value), (&request.key, &request.value));
    for name in REQUEST_HEADERS {
        assert_eq!(letter.header(name), request.header(name), "{name}");
    }
    let said = |name| text(letter, name).unwrap();
    assert_eq!(
        format!("{}/{}/{}", said("original.topic"), said("original.partition"), said("original.offset")),
        place
    );
    assert_eq!(said("failure.class"), "timeout");
    assert_eq!(said("failure.reason"), "no reply within the deadline");
    assert_eq!(said("antiphon-outcome"), "sent");
    assert_eq!(said("kafka_correlationId"), id);
    let at: i64 = said("failure.timestamp").parse().unwrap();
    assert!((letter.timestamp_ms - at).abs() < 10_000, "{at}");

    let (beside, reply) = &letters[1];
    assert_eq!((beside, &reply.key, &reply.value), (partition, &request.key, &request.value));
    assert_headers(reply, &[&["content-type", "kafka_correlationId"], &LETTER_HEADERS[1..]]);
    assert_eq!(text(reply, "failure.class").as_deref(), Some("late-reply"));
    assert_eq!(text(reply, "kafka_correlationId").as_deref(), Some(id.as_str()));
    let reply_topic = gateway.gateway().instance().reply_topic().to_string();
    assert_eq!(text(reply, "original.topic"), Some(reply_topic));
    assert_eq!((counted(&gateway, "timeout"), counted(&gateway, "late-reply")), (1, 1));

    // With a key: the letter has it, and the late reply stands beside it too.
    let status = call_with(&gateway, PAY, payment(), &headers).await.unwrap_err();
    assert_eq!(status.code(), Code::DeadlineExceeded);
    let letters = await_records(&gateway.cluster, &dlq, 4).await;
    assert_headers(&letters[2].1, &[&REQUEST_HEADERS, &LETTER_HEADERS, &["idempotency-key", "traceparent"]]);
    assert_eq!(text(&letters[2].1, "idempotency-key").as_deref(), Some("k-1"));
    assert_eq!(text(&letters[3].1, "failure.class").as_deref(), Some("late-reply"));
    assert_eq!(text(&letters[2].1, "kafka_correlationId"), text(&letters[3].1, "kafka_correlationId"));
    let rendered = gateway.gateway().instance().metrics.render();
    assert!(rendered.contains("antiphon_dead_letters_total{class=\"timeout\"} 2"), "{rendered}");
    gateway.stop().await;
}

#[tokio::test]
async fn a_reply_that_makes_no_sense_leaves_the_request() {
    let gateway = with_dead_letters().start().await;
    let call = call_with(&gateway, ECHO, echo::EchoRequest::default(), &[]);
    let reply = async {
        let requests = await_records(&gateway.cluster, &gateway.topic("echo.v1.EchoService"), 1).await;
        let headers = vec![
            (
                HeaderName::Borrowed("kafka_correlationId"),
                requests[0].1.header("kafka_correlationId").unwrap().clone(),
            ),
            (HeaderName::Borrowed("grpc-status"), Bytes::from_static(b"fine")),
        ];
        gateway.write_reply(Record { key: None, value: Some(Bytes::new()), headers }).await;
    };
    let (answered, ()) = tokio::join!(call, reply);
    assert_eq!(answered.unwrap_err().code(), Code::Internal);
    let dlq = gateway.topic("echo.v1.EchoService") + ".DLQ";
    let letters = await_records(&gateway.cluster, &dlq, 1).await;
    let letter = &letters[0].1;
    assert_headers(letter, &[&REQUEST_HEADERS, &LETTER_HEADERS]);
    assert_eq!(text(letter, "failure.class").as_deref(), Some("undecodable-reply"));
    let reason = text(letter, "failure.reason").unwrap();
    assert!(reason.contains("its grpc-status header \"fine\" is no status code"), "{reason}");
    assert_eq!(text(letter, "antiphon-outcome").as_deref(), Some("sent"));
    assert_eq!(counted(&gateway, "undecodable-reply"), 1);
    gateway.stop().await;
}

/// The letter of a request that Kafka finds too large would be too large
/// itself: it goes without its value, and says so.
#[tokio::test]
async fn a_request_too_large_for_the_broker_leaves_a_letter_without_its_value() {
    let gateway = with_dead_letters().start().await;
    let request = echo::EchoRequest { payload: Bytes::from(vec![7; 2 << 20]) };
    let status = call_with(&gateway, ECHO, request, &[]).await.unwrap_err();
    assert_eq!(status.code(), Code::ResourceExhausted);
    assert_eq!(trailer(status.metadata(), "antiphon-outcome").as_deref(), Some("not-sent"));

    let dlq = gateway.topic("echo.v1.EchoService") + ".DLQ";
    let letters = await_records(&gateway.cluster, &dlq, 1).await;
    let letter = &letters[0].1;
    let without_offset = LETTER_HEADERS.iter().copied().filter(|name| *name != "original.offset");
    let without_offset: Vec<&str> = without_offset.collect();
    assert_headers(letter, &[&REQUEST_HEADERS, &without_offset, &["antiphon-value-left-out"]]);
    assert_eq!(letter.value, None);
    assert_eq!(text(letter, "antiphon-value-left-out").as_deref(), Some("2097157"));
    assert_eq!(text(letter, "failure.class").as_deref(), Some("rejected"));
    assert_eq!(text(letter, "antiphon-outcome").as_deref(), Some("not-sent"));
    assert_eq!(counted(&gateway, "rejected"), 1);
    assert_eq!(gateway.gateway().instance().metrics.aftermath_lost.get(), 0);
    gateway.stop().await;
}

#[tokio::test]
async fn a_method_without_dead_letters_leaves_none() {
    let gateway = TestGateway::build().start().await;
    let call = call_with(&gateway, ECHO, echo::EchoRequest::default(), &[("grpc-timeout", "100m")]);
    assert_eq!(call.await.unwrap_err().code(), Code::DeadlineExceeded);
    let topics = gateway.cluster_topics().await;
    assert!(topics.iter().all(|topic| *topic != gateway.topic("echo.v1.EchoService") + ".DLQ"), "{topics:?}");
    assert_eq!(counted(&gateway, "timeout"), 0);
    gateway.stop().await;
}

/// A gateway that stops writes what its calls have left first.
#[tokio::test]
async fn a_drain_waits_for_dead_letters() {
    let mut gateway = with_dead_letters().start().await;
    let call = call_with(&gateway, PAY, payment(), &[("grpc-timeout", "200m")]);
    assert_eq!(call.await.unwrap_err().code(), Code::DeadlineExceeded);
    gateway.take_gateway().stop().await.unwrap();
    assert_eq!(all(&gateway.cluster, &(gateway.topic("payment_request") + ".DLQ")).await.len(), 1);
}

#[tokio::test]
async fn a_caller_that_goes_away_is_told_to_the_worker() {
    let settings = Settings { cancel_record: setting(true), ..Settings::default() };
    let gateway = TestGateway::build().method("payments.v1.PaymentService/Pay", settings).start().await;
    let message = Bytes::from(prost::Message::encode_to_vec(&payment()));
    let call = tokio::spawn(unary(gateway.channel.clone(), PAY, tonic::Request::new(message)));
    let topic = gateway.topic("payment_request");
    let requests = await_records(&gateway.cluster, &topic, 1).await;
    call.abort();
    let records = await_records(&gateway.cluster, &topic, 2).await;
    let (request, cancel) = (&records[0], &records[1]);
    assert_eq!(request, &requests[0]);
    assert_eq!(cancel.0, request.0, "in the same partition");
    assert_eq!(cancel.1.offset, request.1.offset + 1, "behind the request");
    assert_eq!((&cancel.1.key, &cancel.1.value), (&request.1.key, &None));
    assert_headers(&cancel.1, &[&["antiphon-cancel", "grpc-method", "kafka_correlationId"]]);
    for name in ["grpc-method", "kafka_correlationId"] {
        assert_eq!(cancel.1.header(name), request.1.header(name), "{name}");
    }
    gateway.settled().await;

    // An answered call leaves none.
    let answered = call_with(&gateway, PAY, payment(), &[("grpc-timeout", "100m")]).await;
    assert_eq!(answered.unwrap_err().code(), Code::DeadlineExceeded);
    assert_eq!(all(&gateway.cluster, &topic).await.len(), 3, "a deadline is in the request itself");
    gateway.stop().await;
}

/// Calls that are cut by the end of a drain leave their cancel records if they
/// can, and the process its good order in any case.
#[tokio::test]
async fn calls_cut_by_a_drain_do_not_disturb_the_end() {
    let settings = Settings { cancel_record: setting(true), ..Settings::default() };
    let mut gateway = TestGateway::build()
        .config(|config| config.drain.timeout = Duration::from_millis(200))
        .method("payments.v1.PaymentService/Pay", settings)
        .start()
        .await;
    let running = gateway.take_gateway();
    let message = Bytes::from(prost::Message::encode_to_vec(&payment()));
    let mut request = tonic::Request::new(message.clone());
    request.metadata_mut().insert("idempotency-key", "k".parse().unwrap());
    let keyed = tokio::spawn(unary(gateway.channel.clone(), PAY, request));
    let call = tokio::spawn(unary(gateway.channel.clone(), PAY, tonic::Request::new(message)));
    await_records(&gateway.cluster, &gateway.topic("payment_request"), 2).await;
    let instance = std::sync::Arc::clone(running.instance());
    running.stop().await.unwrap_err();
    assert!(call.await.unwrap().is_err());
    assert!(keyed.await.unwrap().is_err());
    assert_eq!(instance.pending_calls(), 0);
}
