//! `antiphon why`, the program itself, on calls that a gateway has made.

use std::process::Stdio;
use std::time::Duration;

use antiphon::route::Settings;
use antiphon::worker::samples::payments;
use bytes::{BufMut as _, Bytes, BytesMut};
use kafka_protocol::messages::offset_commit_request::{
    OffsetCommitRequestPartition, OffsetCommitRequestTopic,
};
use kafka_protocol::messages::{
    FindCoordinatorRequest, FindCoordinatorResponse, GroupId, OffsetCommitRequest, OffsetCommitResponse,
    RequestHeader, ResponseHeader, TopicName,
};
use kafka_protocol::protocol::{Decodable, Encodable, StrBytes};
use serde_json::Value;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::process::Command;
use tonic::Code;

use crate::harness::{PATIENCE, PAY, TestGateway, TestGatewayBuilder, setting, trailer};
use crate::records::{await_records, call_with};

/// What the program said, and its exit code.
struct Said {
    code: i32,
    out: String,
    err: String,
}

impl Said {
    /// The one call that was found.
    fn story(&self) -> Value {
        let lines: Vec<&str> = self.out.lines().collect();
        assert_eq!(lines.len(), 1, "{}{}", self.out, self.err);
        serde_json::from_str(lines[0]).unwrap()
    }

    fn sentence(&self) -> String {
        self.story()["sentence"].as_str().unwrap().to_owned()
    }
}

async fn why(gateway: &TestGateway, arguments: &[&str]) -> Said {
    why_at(gateway.bootstrap(), arguments).await
}

async fn why_at(bootstrap: &str, arguments: &[&str]) -> Said {
    let run = Command::new(env!("CARGO_BIN_EXE_antiphon"))
        .arg("why")
        .args(arguments)
        .args(["--bootstrap-servers", bootstrap])
        // A variable for these tests is none of the program's.
        .env_clear()
        .stdin(Stdio::null())
        .kill_on_drop(true)
        .output();
    let output = tokio::time::timeout(PATIENCE, run).await.unwrap().unwrap();
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
    Said { code: output.status.code().unwrap(), out: text(output.stdout), err: text(output.stderr) }
}

fn with_dead_letters() -> TestGatewayBuilder {
    let reasons = ["timeout", "undecodable-reply", "rejected"].map(str::to_owned).to_vec();
    let settings = Settings { dead_letter_on: setting(reasons), ..Settings::default() };
    TestGateway::build().method("payments.v1.PaymentService/Pay", settings)
}

fn payment(order_id: &str) -> payments::PayRequest {
    payments::PayRequest { order_id: order_id.to_owned(), amount_minor: 5, currency: "EUR".to_owned() }
}

/// A payment that times out: its correlation id and where its request is.
async fn time_out(
    gateway: &TestGateway,
    order_id: &str,
    headers: &[(&'static str, &str)],
) -> (String, String) {
    let headers = [headers, &[("grpc-timeout", "400m")]].concat();
    let status = call_with(gateway, PAY, payment(order_id), &headers).await.unwrap_err();
    assert_eq!(status.code(), Code::DeadlineExceeded);
    let trailer = |name| trailer(status.metadata(), name).unwrap();
    (trailer("antiphon-correlation-id"), trailer("antiphon-record"))
}

fn paid(message: Bytes) -> Option<Result<Bytes, antiphon::message::WorkerStatus>> {
    let request: payments::PayRequest = prost::Message::decode(message).unwrap();
    let reply = payments::PayReply { order_id: request.order_id, ..Default::default() };
    Some(Ok(Bytes::from(prost::Message::encode_to_vec(&reply))))
}

#[tokio::test]
async fn a_late_answer_is_told_by_every_name_of_its_call() {
    const TRACE: &str = "4bf92f3577b34da6a3ce929d0e0e4736";
    let gateway = with_dead_letters()
        .config(|config| config.grpc.metadata_forward = vec!["x-api-key".to_owned(), "x-tenant".to_owned()])
        .worker(|_, message| async move {
            tokio::time::sleep(Duration::from_millis(900)).await;
            paid(message)
        })
        .start()
        .await;
    let parent = format!("00-{TRACE}-00f067aa0ba902b7-01");
    let headers = [
        ("idempotency-key", "pay o-1 once"),
        ("traceparent", parent.as_str()),
        ("x-api-key", "hunter2"),
        ("x-tenant", "acme"),
    ];
    let (id, record) = time_out(&gateway, "o-1", &headers).await;
    let other = time_out(&gateway, "o-2", &[]).await;
    let topic = gateway.topic("payment_request");
    // The worker leaves what has expired alone, so that only the first has a late reply.
    await_records(&gateway.cluster, &(topic.clone() + ".DLQ"), 3).await;

    for name in [
        &[id.as_str(), "--topic", &topic][..],
        &[&id.to_uppercase(), "--topic", &topic],
        &["pay o-1 once", "--topic", &topic],
        &[TRACE, "--topic", &topic],
        &[&parent, "--topic", &topic],
        &["--record", &record],
        &[&id, "--record", &record, "--since", "10m"],
    ] {
        let said = why(&gateway, &[name, &["--json"]].concat()).await;
        assert_eq!(said.code, 0, "{name:?}: {}", said.err);
        let story = said.story();
        assert_eq!(story["correlation_id"], id.as_str(), "{name:?}");
        assert_eq!(story["verdict"], "answered-late", "{name:?}: {story}");
        assert_eq!(story["key"], "o-1");
        assert_eq!(story["idempotency_key"], "pay o-1 once");
        let what: Vec<&str> =
            story["records"].as_array().unwrap().iter().map(|r| r["what"].as_str().unwrap()).collect();
        // The reply itself may have been trimmed by now; the copy beside the dead letter stays.
        for expected in ["request", "dead letter", "late reply"] {
            assert_eq!(what.iter().filter(|w| **w == expected).count(), 1, "{name:?}: {what:?}");
        }
        assert!(said.out.contains("(hidden)") && !said.out.contains("hunter2"), "{}", said.out);
        assert!(said.out.contains("acme"), "{}", said.out);
    }

    let proto = concat!(env!("CARGO_MANIFEST_DIR"), "/proto/payments/v1/payments.proto");
    let arguments = [id.as_str(), "--topic", &topic, "--proto", proto];
    let said = why(&gateway, &arguments).await;
    let line = |start: &str| said.out.lines().find(|line| line.starts_with(start)).unwrap_or_default();
    assert!(
        line("verdict").contains("answered OK ") && line("verdict").contains(" after the caller's deadline")
    );
    assert!(line("verdict").contains("the worker took 9") || line("verdict").contains("the worker took 1."));
    assert!(line("call").ends_with(&id), "{}", said.out);
    assert!(line("method").ends_with("payments.v1.PaymentService/Pay"), "{}", said.out);
    assert!(said.out.contains("deadline of the caller"), "{}", said.out);
    assert!(!said.out.contains("|..o-1"), "no value without --value: {}", said.out);
    let said = why(&gateway, &[&arguments[..], &["--value"]].concat()).await;
    assert!(said.out.contains("|..o-1"), "{}", said.out);
    assert!(said.out.contains("payments.v1.PayRequest {"), "{}", said.out);

    // A name that another call has is another story; one that none has is none.
    let said = why(&gateway, &[&other.0, "--topic", &topic, "--json"]).await;
    assert_eq!(said.story()["key"], "o-2");
    let none = why(&gateway, &["no-such-key", "--topic", &topic, "--json"]).await;
    assert_eq!((none.code, none.story()["verdict"].as_str()), (1, Some("not-found")), "{}", none.out);
    let elsewhere = why(&gateway, &[&other.0, "--record", &record]).await;
    assert_eq!(elsewhere.code, 1, "{}", elsewhere.out);
    let before = why(&gateway, &[&id, "--topic", &topic, "--until", "10m"]).await;
    assert_eq!(before.code, 1, "{}", before.out);
    assert!(before.out.contains("Kafka has no such request where it was looked for"), "{}", before.out);
    gateway.stop().await;
}

#[tokio::test]
async fn how_far_the_workers_are_makes_the_verdict() {
    let gateway = with_dead_letters().start().await;
    let (id, record) = time_out(&gateway, "o-1", &[]).await;
    let topic = gateway.topic("payment_request");
    await_records(&gateway.cluster, &(topic.clone() + ".DLQ"), 1).await;
    let place: Vec<i64> = record.split('/').skip(1).map(|part| part.parse().unwrap()).collect();
    let (partition, offset) = (i32::try_from(place[0]).unwrap(), place[1]);

    let said = why(&gateway, &["--record", &record, "--json"]).await;
    assert_eq!(said.story()["correlation_id"], id.as_str());
    let nobody = format!("no worker has answered it; no consumer group has read {topic}/{partition}");
    assert_eq!(said.sentence(), nobody);

    let group = format!("workers-{topic}");
    commit(gateway.bootstrap(), &group, &topic, partition, offset).await;
    let said = why(&gateway, &["--record", &record, "--json"]).await;
    let behind = format!(
        "no worker has answered it; group {group} has no members: it has 1 record to do up to this one, 1 record in all"
    );
    assert_eq!(said.sentence(), behind);
    assert_eq!(said.story()["groups"][0]["committed"], offset);

    commit(gateway.bootstrap(), &group, &topic, partition, offset + 1).await;
    let said = why(&gateway, &["--record", &record, "--json"]).await;
    let passed = format!("no worker has answered it; group {group} has come past it, so a worker has had it");
    assert_eq!(said.sentence(), passed);

    let replay = Command::new(env!("CARGO_BIN_EXE_antiphon"))
        .args(["dlq", "replay", &topic, &id, "--yes", "--bootstrap-servers", gateway.bootstrap()])
        .env_clear()
        .kill_on_drop(true)
        .output();
    let replayed = tokio::time::timeout(PATIENCE, replay).await.unwrap().unwrap();
    assert!(replayed.status.success(), "{replayed:?}");
    let said = why(&gateway, &[&id, "--topic", &topic, "--json"]).await;
    assert!(said.sentence().starts_with(&format!("{passed}; it was replayed at ")), "{}", said.sentence());
    gateway.stop().await;
}

#[tokio::test]
async fn an_answer_in_time_is_told_from_the_reply_topic_while_it_has_it() {
    let gateway = TestGateway::build().worker(|_, message| async move { paid(message) }).start().await;
    let answer = call_with(&gateway, PAY, payment("o-1"), &[]).await.unwrap();
    let id = trailer(answer.metadata(), "antiphon-correlation-id").unwrap();
    let said = why(&gateway, &[&id, "--topic", &gateway.topic("payment_request"), "--json"]).await;
    let story = said.story();
    assert_eq!(story["verdict"], "answered", "{story}");
    assert_eq!(story["instance"], gateway.gateway().instance().name());
    assert_eq!(story["reply_log"], "whole");
    let sentence = said.sentence();
    assert!(sentence.starts_with("answered OK in time; the worker took "), "{sentence}");
    gateway.stop().await;
}

#[tokio::test]
async fn a_search_that_is_cut_short_says_so() {
    let gateway = TestGateway::build().worker(|_, message| async move { paid(message) }).start().await;
    for n in 0..5 {
        call_with(&gateway, PAY, payment(&format!("o-{n}")), &[]).await.unwrap();
    }
    let topic = gateway.topic("payment_request");
    let said = why(&gateway, &["no-such-key", "--topic", &topic, "--records-max", "1", "--json"]).await;
    assert_eq!(said.code, 1, "{}", said.err);
    assert_eq!(said.story()["searched"]["complete"], false, "{}", said.out);
    assert!(said.sentence().starts_with("not found, but not all was read"), "{}", said.sentence());
    assert!(said.err.contains("1 records were read at offset"), "{}", said.err);

    for (arguments, code) in [
        (&["x", "--topic", "no-such-topic"][..], 64),
        (&["--record", "no-such-topic/0/0"], 64),
        (&["--record", "payment_request"], 64),
        (&["x", "--since", "yesterday"], 64),
        (&[], 64),
        (&[""], 64),
        (&["x", "--config", "no-such.toml"], 78),
    ] {
        let said = why(&gateway, arguments).await;
        assert_eq!(said.code, code, "{arguments:?}: {}{}", said.out, said.err);
    }
    let unreachable = why_at("127.0.0.1:9", &["x", "--timeout", "2s"]).await;
    assert_eq!(unreachable.code, 69, "{}", unreachable.err);
    gateway.stop().await;
}

/// Commits an offset as a consumer that is in no group does.
async fn commit(broker: &str, group: &str, topic: &str, partition: i32, offset: i64) {
    let deadline = tokio::time::Instant::now() + PATIENCE;
    loop {
        let code = try_commit(broker, group, topic, partition, offset).await;
        if code == 0 {
            return;
        }
        // The group's coordinator may have to be chosen first.
        assert!(tokio::time::Instant::now() < deadline, "error code {code}");
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
}

async fn try_commit(broker: &str, group: &str, topic: &str, partition: i32, offset: i64) -> i16 {
    let text = |text: &str| StrBytes::from_string(text.to_owned());
    // Apache Kafka makes the topic in which it keeps offsets when first asked for this.
    let coordinator = FindCoordinatorRequest::default().with_key(text(group));
    let found: FindCoordinatorResponse = ask(broker, 10, 0, &coordinator).await;
    if found.error_code != 0 {
        return found.error_code;
    }
    let partition = OffsetCommitRequestPartition::default()
        .with_partition_index(partition)
        .with_committed_offset(offset)
        .with_committed_metadata(Some(StrBytes::new()));
    let topic = OffsetCommitRequestTopic::default()
        .with_name(TopicName(text(topic)))
        .with_partitions(vec![partition]);
    let request = OffsetCommitRequest::default()
        .with_group_id(GroupId(text(group)))
        .with_generation_id_or_member_epoch(-1)
        .with_topics(vec![topic]);
    let answer: OffsetCommitResponse =
        ask(&format!("{}:{}", found.host.as_str(), found.port), 8, 2, &request).await;
    answer.topics[0].partitions[0].error_code
}

/// One request in a version that has no tags, on a connection of its own.
async fn ask<Q: Encodable, R: Decodable>(broker: &str, key: i16, version: i16, request: &Q) -> R {
    let mut frame = BytesMut::new();
    frame.put_u32(0);
    let header = RequestHeader::default().with_request_api_key(key).with_request_api_version(version);
    header.encode(&mut frame, 1).unwrap();
    request.encode(&mut frame, version).unwrap();
    let length = u32::try_from(frame.len() - 4).unwrap();
    frame[0..4].copy_from_slice(&length.to_be_bytes());
    let mut stream = tokio::net::TcpStream::connect(broker).await.unwrap();
    stream.write_all(&frame).await.unwrap();
    let mut answer = vec![0; stream.read_u32().await.unwrap() as usize];
    stream.read_exact(&mut answer).await.unwrap();
    let mut answer = Bytes::from(answer);
    ResponseHeader::decode(&mut answer, 0).unwrap();
    R::decode(&mut answer, version).unwrap()
}
