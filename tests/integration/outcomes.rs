//! What is said of a request whose way into the log is disturbed, and that
//! none is in the log more often than its method allows.

use std::time::{Duration, Instant};

use antiphon::dev_broker::{Api, Fault, Rule, code};
use antiphon::exchange::Phase;
use antiphon::message::GRPC_METHOD;
use antiphon::transport::Received;
use antiphon::worker::samples::{Samples, delivery, echo, payments};
use bytes::Bytes;
use prost::Message;
use tonic::metadata::MetadataMap;
use tonic::{Code, Response, Status};

use crate::harness::{ECHO, PATIENCE, PAY, TestGateway, TestGatewayBuilder, trailer};
use crate::records::{all, call_with, header_names, text};

const SET_RADIUS: &str = "/delivery.v1.DeliveryRadiusService/SetRadius";

type Answered = Result<Response<Bytes>, Status>;

fn embedded() -> TestGatewayBuilder {
    TestGateway::build().on_the_embedded_broker()
}

fn payment() -> payments::PayRequest {
    payments::PayRequest { order_id: "o-1".to_owned(), amount_minor: 5, currency: "EUR".to_owned() }
}

async fn pay(gateway: &TestGateway, timeout: &str) -> Answered {
    call_with(gateway, PAY, payment(), &[("grpc-timeout", timeout)]).await
}

async fn set_radius(gateway: &TestGateway, timeout: &str) -> Answered {
    let request = delivery::SetRadiusRequest { shop_id: 7, radius_m: 1_000, trigger: 1 };
    call_with(gateway, SET_RADIUS, request, &[("grpc-timeout", timeout)]).await
}

/// Injects a fault for the next requests that name a topic of the test's.
fn inject(gateway: &TestGateway, topic: &str, fault: Fault, times: u32) {
    let rule = Rule::new(Api::Produce, fault).topic(gateway.topic(topic)).times(times);
    gateway.broker().faults().inject(rule);
}

async fn log_of(gateway: &TestGateway, topic: &str) -> Vec<Received> {
    let records = all(&gateway.cluster, &gateway.topic(topic)).await;
    records.into_iter().map(|(_, record)| record).collect()
}

fn outcome(metadata: &MetadataMap) -> Option<String> {
    trailer(metadata, "antiphon-outcome")
}

#[track_caller]
fn assert_failed(answered: Answered, code: Code, expected: &str) -> Status {
    let status = answered.unwrap_err();
    assert_eq!(status.code(), code, "{status:?}");
    assert_eq!(outcome(status.metadata()).as_deref(), Some(expected), "{status:?}");
    status
}

#[tokio::test]
async fn a_lost_acknowledgement_does_not_send_a_payment_twice() {
    let gateway = embedded().handler(Samples::default()).start().await;
    inject(&gateway, "payment_request", Fault::CutAfter, 1);
    let answered = pay(&gateway, "5S").await.unwrap();
    assert_eq!(outcome(answered.metadata()).as_deref(), Some("sent"), "the reply says as much");
    assert_eq!(log_of(&gateway, "payment_request").await.len(), 1);
    gateway.stop().await;
}

#[tokio::test]
async fn a_lost_acknowledgement_and_no_reply_is_an_unknown_outcome() {
    let gateway = embedded().start().await;
    inject(&gateway, "payment_request", Fault::CutAfter, 1);
    let status = assert_failed(pay(&gateway, "600m").await, Code::DeadlineExceeded, "unknown");
    assert_eq!(trailer(status.metadata(), "antiphon-record"), None, "nobody knows where it is");
    tokio::time::sleep(Duration::from_millis(300)).await;
    assert_eq!(log_of(&gateway, "payment_request").await.len(), 1, "not again after the call's end either");
    gateway.stop().await;
}

#[tokio::test]
async fn an_idempotent_method_is_sent_again_under_the_same_id() {
    let gateway = embedded()
        .worker(|_, message| async move {
            tokio::time::sleep(Duration::from_millis(400)).await;
            Some(Ok(message))
        })
        .start()
        .await;
    inject(&gateway, "delivery_radius_request", Fault::CutAfter, 1);
    set_radius(&gateway, "5S").await.unwrap();
    gateway.until("both are answered", || gateway.replies_of("duplicate") == 1).await;
    let log = log_of(&gateway, "delivery_radius_request").await;
    let ids: Vec<_> = log.iter().map(|record| text(record, "kafka_correlationId").unwrap()).collect();
    assert_eq!(ids.len(), 2);
    assert_eq!(ids[0], ids[1]);
    gateway.stop().await;
}

/// Cut while the request was under way: it is not in the log, but nobody here
/// can know.
#[tokio::test]
async fn a_connection_cut_under_way_is_unknown_and_only_repeated_where_that_does_no_harm() {
    let gateway = embedded().handler(Samples::default()).start().await;
    inject(&gateway, "payment_request", Fault::CutBefore, 1);
    assert_failed(pay(&gateway, "500m").await, Code::DeadlineExceeded, "unknown");
    assert_eq!(log_of(&gateway, "payment_request").await.len(), 0);

    inject(&gateway, "delivery_radius_request", Fault::CutBefore, 2);
    let answered = set_radius(&gateway, "5S").await.unwrap();
    assert_eq!(outcome(answered.metadata()).as_deref(), Some("sent"));
    assert_eq!(log_of(&gateway, "delivery_radius_request").await.len(), 1);
    gateway.stop().await;
}

/// A connection that was known to be dead has certainly carried nothing.
#[tokio::test]
async fn a_connection_that_died_while_idle_costs_nothing() {
    let gateway = embedded().handler(Samples::default()).start().await;
    pay(&gateway, "5S").await.unwrap();
    gateway.broker().faults().cut_connections();
    let instance = gateway.gateway().instance();
    gateway.until("the reader has noticed", || instance.metrics.reader_errors.get() > 0).await;
    // Longer than it takes until readiness follows.
    tokio::time::sleep(Duration::from_millis(300)).await;
    gateway.until("replies can be read again", || instance.phase() == Phase::Ready).await;
    for _ in 0..3 {
        pay(&gateway, "5S").await.unwrap();
    }
    assert_eq!(log_of(&gateway, "payment_request").await.len(), 4);
    gateway.stop().await;
}

#[tokio::test]
async fn a_refusal_that_passes_is_tried_again() {
    let cases = [code::LEADER_NOT_AVAILABLE, code::NOT_ENOUGH_REPLICAS, code::UNKNOWN_TOPIC_OR_PARTITION];
    let gateway = embedded().handler(Samples::default()).start().await;
    for (n, refusal) in cases.into_iter().enumerate() {
        inject(&gateway, "payment_request", Fault::Error(refusal), 2);
        let answered = pay(&gateway, "10S").await;
        assert_eq!(outcome(answered.unwrap().metadata()).as_deref(), Some("sent"), "{refusal}");
        assert_eq!(log_of(&gateway, "payment_request").await.len(), n + 1, "{refusal}");
    }
    gateway.stop().await;
}

/// A leader that is deposed while it waits for its followers answers the same
/// as one that never was: nobody can tell whether the request is in the log.
#[tokio::test]
async fn an_answer_of_a_deposed_leader_is_unknown() {
    let gateway = embedded().handler(Samples::default()).start().await;
    inject(&gateway, "payment_request", Fault::Error(code::NOT_LEADER_OR_FOLLOWER), 1);
    assert_failed(pay(&gateway, "1500m").await, Code::DeadlineExceeded, "unknown");
    pay(&gateway, "10S").await.unwrap();
    assert_eq!(log_of(&gateway, "payment_request").await.len(), 1);
    gateway.stop().await;
}

/// A lane that was quiet asks first, so that a leader that moved meanwhile
/// costs no call its certainty.
#[tokio::test]
async fn a_lane_that_was_quiet_finds_the_new_leader_before_it_sends() {
    let gateway = embedded().handler(Samples::default()).start().await;
    pay(&gateway, "10S").await.unwrap();
    tokio::time::sleep(Duration::from_millis(1_100)).await;
    gateway.broker().faults().move_leader(&gateway.topic("payment_request"), Duration::from_millis(300));
    let answered = pay(&gateway, "10S").await;
    assert_eq!(outcome(answered.unwrap().metadata()).as_deref(), Some("sent"));
    assert_eq!(log_of(&gateway, "payment_request").await.len(), 2);
    gateway.stop().await;
}

#[tokio::test]
async fn too_few_replicas_until_the_deadline_is_not_sent() {
    let gateway = embedded().start().await;
    inject(&gateway, "payment_request", Fault::Error(code::NOT_ENOUGH_REPLICAS), 1_000);
    let began = Instant::now();
    let status = assert_failed(pay(&gateway, "500m").await, Code::Unavailable, "not-sent");
    assert!(began.elapsed() < Duration::from_secs(1), "{:?}", began.elapsed());
    assert!(trailer(status.metadata(), "grpc-retry-pushback-ms").is_some());
    gateway.broker().faults().clear();
    tokio::time::sleep(Duration::from_millis(1_200)).await;
    assert_eq!(log_of(&gateway, "payment_request").await.len(), 0, "the call's end is the request's end");
    gateway.stop().await;
}

/// In the log of the leader, so perhaps in the log for good.
#[tokio::test]
async fn too_few_replicas_after_the_append_is_unknown() {
    let gateway = embedded().start().await;
    inject(&gateway, "payment_request", Fault::Error(code::NOT_ENOUGH_REPLICAS_AFTER_APPEND), 1);
    assert_failed(pay(&gateway, "300m").await, Code::DeadlineExceeded, "unknown");
    gateway.stop().await;
}

#[tokio::test]
async fn a_refusal_for_good_is_said_at_once() {
    let gateway = embedded().start().await;
    for (refusal, expected) in [
        (code::TOPIC_AUTHORIZATION_FAILED, Code::FailedPrecondition),
        (code::MESSAGE_TOO_LARGE, Code::ResourceExhausted),
        (code::INVALID_RECORD, Code::FailedPrecondition),
    ] {
        inject(&gateway, "payment_request", Fault::Error(refusal), 1);
        let began = Instant::now();
        assert_failed(pay(&gateway, "10S").await, expected, "not-sent");
        assert!(began.elapsed() < Duration::from_secs(2), "{refusal}: {:?}", began.elapsed());
    }
    assert_eq!(log_of(&gateway, "payment_request").await.len(), 0);
    gateway.stop().await;
}

#[tokio::test]
async fn a_throttled_request_is_in_the_log_once() {
    let gateway = embedded().handler(Samples::default()).start().await;
    inject(&gateway, "payment_request", Fault::Throttle(Duration::from_millis(300)), 1);
    let answered = pay(&gateway, "5S").await.unwrap();
    assert_eq!(outcome(answered.metadata()).as_deref(), Some("sent"));
    pay(&gateway, "5S").await.unwrap();
    assert_eq!(log_of(&gateway, "payment_request").await.len(), 2);
    gateway.stop().await;
}

#[tokio::test]
async fn a_broker_that_falls_silent_does_not_hold_calls_beyond_their_deadline() {
    let gateway =
        embedded().config(|config| config.kafka.produce_timeout = Duration::from_millis(300)).start().await;
    inject(&gateway, "payment_request", Fault::Silence, 1);
    let began = Instant::now();
    assert_failed(pay(&gateway, "700m").await, Code::DeadlineExceeded, "unknown");
    let took = began.elapsed();
    assert!(took >= Duration::from_millis(690) && took < Duration::from_millis(1_200), "{took:?}");
    assert_eq!(log_of(&gateway, "payment_request").await.len(), 0);
    // The lane goes on with the next.
    assert_failed(pay(&gateway, "400m").await, Code::DeadlineExceeded, "sent");
    gateway.stop().await;
}

#[tokio::test]
async fn a_broker_that_is_gone_is_unavailable_within_the_deadline() {
    let mut gateway = embedded().start().await;
    gateway.take_broker().stop().await;
    for _ in 0..2 {
        let began = Instant::now();
        assert_failed(pay(&gateway, "500m").await, Code::Unavailable, "not-sent");
        assert!(began.elapsed() < Duration::from_secs(1), "{:?}", began.elapsed());
    }
    let running = gateway.take_gateway();
    tokio::time::timeout(PATIENCE, running.stop()).await.expect("stops in time").unwrap();
}

#[tokio::test]
async fn a_full_lane_refuses_at_once() {
    let gateway = embedded()
        .config(|config| config.limits.lane_queue_max = 1)
        .handler(Samples::default())
        .start()
        .await;
    inject(&gateway, "payment_request", Fault::Delay(Duration::from_millis(700)), 1);
    let third = async {
        let instance = gateway.gateway().instance();
        gateway.until("two are in the lane", || instance.pending_calls() == 2).await;
        pay(&gateway, "5S").await
    };
    let second = async {
        // The first has left the queue when it is being sent.
        tokio::time::sleep(Duration::from_millis(200)).await;
        pay(&gateway, "5S").await
    };
    let (first, second, third) = tokio::join!(pay(&gateway, "5S"), second, third);
    first.unwrap();
    second.unwrap();
    let status = assert_failed(third, Code::ResourceExhausted, "not-sent");
    assert!(status.message().starts_with("limits.lane_queue_max"), "{status:?}");
    assert_overloaded(&status);
    assert_eq!(log_of(&gateway, "payment_request").await.len(), 2);
    gateway.stop().await;
}

#[tokio::test]
async fn calls_and_bytes_in_flight_are_bounded() {
    type Change = fn(&mut antiphon::app::Config);
    let cases: [(&str, Change); 2] = [
        ("limits.in_flight_max", |config| config.limits.in_flight_max = 1),
        ("limits.bytes_held_max", |config| config.limits.bytes_held_max = 15),
    ];
    for (name, change) in cases {
        let gateway = embedded().config(change).start().await;
        // A message counts as held until it is sent.
        inject(&gateway, "payment_request", Fault::Delay(Duration::from_secs(1)), 1);
        let second = async {
            let instance = gateway.gateway().instance();
            gateway.until("the first is in flight", || instance.pending_calls() == 1).await;
            let status = assert_failed(pay(&gateway, "5S").await, Code::ResourceExhausted, "not-sent");
            assert!(status.message().starts_with(name), "{status:?}");
            assert_overloaded(&status);
        };
        let (first, ()) = tokio::join!(pay(&gateway, "2S"), second);
        assert_failed(first, Code::DeadlineExceeded, "sent");
        assert_failed(pay(&gateway, "1S").await, Code::DeadlineExceeded, "sent");
        let instance = gateway.gateway().instance();
        assert_eq!((instance.budget.calls(), instance.budget.bytes()), (0, 0), "{name}");
        gateway.stop().await;
    }
}

#[track_caller]
fn assert_overloaded(status: &Status) {
    let pushback = trailer(status.metadata(), "grpc-retry-pushback-ms").unwrap();
    assert!(pushback.parse::<u32>().unwrap() > 0);
    assert!(!status.details().is_empty(), "RetryInfo");
}

const NOTES: &str = r#"
syntax = "proto3";
package test.v1;
import "antiphon/v1/options.proto";
import "google/protobuf/empty.proto";

service NoteService {
  option (antiphon.v1.kafka_defaults) = { request_topic: "note" key: "id" mode: ONE_WAY };
  rpc Tell(Note) returns (google.protobuf.Empty);
  rpc File(Note) returns (antiphon.v1.Ack);
}

message Note {
  string id = 1;
}
"#;

#[derive(Clone, PartialEq, prost::Message)]
struct Note {
    #[prost(string, tag = "1")]
    id: String,
}

#[derive(Clone, PartialEq, prost::Message)]
struct Ack {
    #[prost(string, tag = "1")]
    topic: String,
    #[prost(int32, tag = "2")]
    partition: i32,
    #[prost(int64, tag = "3")]
    offset: i64,
}

const TELL: &str = "/test.v1.NoteService/Tell";
const FILE: &str = "/test.v1.NoteService/File";

#[tokio::test]
async fn a_one_way_call_ends_with_the_acknowledgement() {
    let gateway = TestGateway::build().proto(NOTES).topic("note", 3).start().await;
    let note = || Note { id: "n-1".to_owned() };
    let told = call_with(&gateway, TELL, note(), &[]).await.unwrap();
    assert!(told.get_ref().is_empty());
    let filed = call_with(&gateway, FILE, note(), &[]).await.unwrap();
    let ack = Ack::decode(filed.get_ref().clone()).unwrap();
    let topic = gateway.topic("note");
    assert_eq!((ack.topic.as_str(), ack.offset), (topic.as_str(), 1));

    let records = all(&gateway.cluster, &topic).await;
    assert_eq!(records.len(), 2);
    for ((partition, record), (offset, method)) in records.iter().zip([(0, TELL), (1, FILE)]) {
        assert_eq!((*partition, record.offset), (ack.partition, offset));
        assert_eq!(text(record, GRPC_METHOD).as_deref(), Some(method));
        let expected = ["content-type", "grpc-deadline", "grpc-method", "kafka_correlationId"];
        assert_eq!(header_names(record), expected, "nobody waits for a reply");
    }
    gateway.stop().await;
}

#[tokio::test]
async fn a_one_way_call_without_an_acknowledgement_is_unknown() {
    let gateway = embedded().proto(NOTES).topic("note", 3).start().await;
    inject(&gateway, "note", Fault::CutAfter, 1);
    let note = Note { id: "n-1".to_owned() };
    let answered = call_with(&gateway, TELL, note, &[("grpc-timeout", "400m")]).await;
    assert_failed(answered, Code::DeadlineExceeded, "unknown");
    assert_eq!(log_of(&gateway, "note").await.len(), 1);
    gateway.stop().await;
}

/// Requests of one batch have one outcome each: what one of them suffers does
/// not spread.
#[tokio::test]
async fn one_record_that_is_too_large_does_not_take_its_batch_with_it() {
    let gateway = embedded()
        .broker(|broker| broker.batch_bytes_max = 64 * 1024)
        .topic("echo.v1.EchoService", 1)
        .handler(Samples::default())
        .start()
        .await;
    inject(&gateway, "echo.v1.EchoService", Fault::Delay(Duration::from_millis(300)), 1);
    let calls = (0..20).map(|n| {
        let size = if n == 7 { 100_000 } else { 100 };
        let request = echo::EchoRequest { payload: Bytes::from(vec![b'x'; size]) };
        let call = call_with(&gateway, ECHO, request, &[]);
        async move { (n, call.await) }
    });
    for (n, answered) in futures_util::future::join_all(calls).await {
        match n {
            7 => drop(assert_failed(answered, Code::ResourceExhausted, "not-sent")),
            _ => assert_eq!(outcome(answered.unwrap().metadata()).as_deref(), Some("sent")),
        }
    }
    assert_eq!(log_of(&gateway, "echo.v1.EchoService").await.len(), 19);
    gateway.stop().await;
}
