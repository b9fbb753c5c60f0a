//! Calls in every dialect, byte for byte as the workers of the frameworks see
//! and answer them. The frameworks themselves are in `tests/interop`.

use std::time::Duration;

use antiphon::correlation::CorrelationId;
use antiphon::dead_letters::{Beside, DeadLetterTopic, Letter, ReplayOptions, Replayer, Sent};
use antiphon::message::dialect::Custom;
use antiphon::route::Settings;
use antiphon::terms::{Compression, CorrelationForm, PartitionForm};
use antiphon::transport::{Cluster as _, HeaderName, Received, Record};
use bytes::Bytes;
use tonic::{Code, Response, Status};

use crate::harness::{PATIENCE, TestGateway, TestGatewayBuilder, setting, trailer, until_async};
use crate::raw::post;
use crate::records::{all, await_records, text};

const PROTO: &str = r#"
    syntax = "proto3";
    package dialects.v1;
    import "antiphon/v1/options.proto";
    import "google/protobuf/empty.proto";
    message Text { string text = 1; }
    service DialectService {
        rpc Spring(Text) returns (Text);
        rpc Binary(Text) returns (Text) { option (antiphon.v1.kafka) = { correlation_form: BINARY }; }
        rpc Nestjs(Text) returns (Text) { option (antiphon.v1.kafka) = { dialect: "nestjs" }; }
        rpc Smallrye(Text) returns (Text) { option (antiphon.v1.kafka) = { dialect: "smallrye" }; }
        rpc Faststream(Text) returns (Text) { option (antiphon.v1.kafka) = { dialect: "faststream" }; }
        rpc Zilla(Text) returns (Text) { option (antiphon.v1.kafka) = { dialect: "zilla" }; }
        rpc ZillaByKey(Text) returns (Text) { option (antiphon.v1.kafka) = { dialect: "zilla" key: "text" }; }
        rpc ZillaEmpty(Text) returns (google.protobuf.Empty) { option (antiphon.v1.kafka) = { dialect: "zilla" }; }
        rpc ZillaOneWay(Text) returns (google.protobuf.Empty) {
            option (antiphon.v1.kafka) = { dialect: "zilla" mode: ONE_WAY };
        }
        rpc Custom(Text) returns (Text) { option (antiphon.v1.kafka) = { dialect: "custom" }; }
    }
"#;

const TOPIC: &str = "dialects.v1.DialectService";
/// `text: "hi"`
const HI: &[u8] = b"\x0a\x02hi";
/// `text: "ho"`
const HO: &[u8] = b"\x0a\x02ho";

/// Two shards, so that the reply partition matters; they share what comes to
/// either.
fn gateway() -> TestGatewayBuilder {
    let custom = Custom {
        correlation_id: "x-call".to_owned(),
        correlation_form: CorrelationForm::Text,
        reply_topic: "x-answer-to".to_owned(),
        reply_partition: Some("x-answer-partition".to_owned()),
        reply_partition_form: PartitionForm::Decimal,
        error_code: Some("x-code".to_owned()),
        error_message: Some("x-error".to_owned()),
        last: None,
    };
    TestGateway::build().proto(PROTO).topic(TOPIC, 3).custom_dialect(custom).config(|config| {
        config.shards = 2;
        config.grpc.metadata_forward = vec!["x-tenant".to_owned(), "x-token-bin".to_owned()];
        config.grpc.trailers_return = vec!["x-took".to_owned(), "x-token-bin".to_owned()];
        config.grpc.metadata_return = vec!["x-cost".to_owned()];
    })
}

type Partition = Option<(&'static str, fn(&[u8]) -> i32)>;

/// What a worker knows of where to reply.
struct Dialect {
    path: &'static str,
    id: &'static str,
    topic: &'static str,
    partition: Partition,
}

fn int32(value: &[u8]) -> i32 {
    i32::from_be_bytes(value.try_into().unwrap())
}

fn decimal(value: &[u8]) -> i32 {
    std::str::from_utf8(value).unwrap().parse().unwrap()
}

const fn dialect(path: &'static str, id: &'static str, topic: &'static str, partition: Partition) -> Dialect {
    Dialect { path, id, topic, partition }
}

const SPRING: Dialect = dialect(
    "/dialects.v1.DialectService/Spring",
    "kafka_correlationId",
    "kafka_replyTopic",
    Some(("kafka_replyPartition", int32)),
);
const BINARY: Dialect = Dialect { path: "/dialects.v1.DialectService/Binary", ..SPRING };
const NESTJS: Dialect = dialect(
    "/dialects.v1.DialectService/Nestjs",
    "kafka_correlationId",
    "kafka_replyTopic",
    Some(("kafka_replyPartition", decimal)),
);
const SMALLRYE: Dialect = dialect(
    "/dialects.v1.DialectService/Smallrye",
    "REPLY_CORRELATION_ID",
    "REPLY_TOPIC",
    Some(("REPLY_PARTITION", int32)),
);
const FASTSTREAM: Dialect =
    dialect("/dialects.v1.DialectService/Faststream", "correlation_id", "reply_to", None);
const ZILLA: Dialect =
    dialect("/dialects.v1.DialectService/Zilla", "zilla:correlation-id", "zilla:reply-to", None);
const CUSTOM: Dialect = dialect(
    "/dialects.v1.DialectService/Custom",
    "x-call",
    "x-answer-to",
    Some(("x-answer-partition", decimal)),
);

type Headers = &'static [(&'static str, &'static [u8])];

/// The requests of a method, each with its partition.
async fn requests(gateway: &TestGateway, path: &str) -> Vec<(i32, Received)> {
    let mut found = all(&gateway.cluster, &gateway.topic(TOPIC)).await;
    found.retain(|(_, record)| text(record, "grpc-method").as_deref() == Some(path));
    found
}

impl Dialect {
    /// The request of the call that waits, and what stands behind it.
    async fn request(&self, gateway: &TestGateway) -> Vec<(i32, Received)> {
        let deadline = tokio::time::Instant::now() + PATIENCE;
        let waits = |record: &Received| {
            let id = CorrelationId::parse(record.header(self.id).unwrap()).unwrap();
            gateway.gateway().instance().shards()[usize::from(id.shard())].pending.is_waiting(id)
        };
        loop {
            let mut found = requests(gateway, self.path).await;
            found.retain(|(_, record)| waits(record));
            if !found.is_empty() {
                return found;
            }
            assert!(tokio::time::Instant::now() < deadline, "no request of {}", self.path);
        }
    }

    /// Replies as a worker does: the id echoed, to the topic and partition that
    /// the request names, else to any.
    async fn reply(
        &self,
        gateway: &TestGateway,
        request: &Received,
        value: Option<&'static [u8]>,
        headers: Headers,
    ) {
        let topic = text(request, self.topic).unwrap();
        assert_eq!(topic, **gateway.gateway().instance().reply_topic());
        let partition = self.partition.map_or(1, |(name, read)| read(request.header(name).unwrap()));
        let id = (HeaderName::Borrowed(self.id), request.header(self.id).unwrap().clone());
        let headers = headers.iter().map(|(n, v)| (HeaderName::Borrowed(*n), Bytes::from_static(v)));
        let record = Record {
            key: request.key.clone(),
            value: value.map(Bytes::from_static),
            headers: [id].into_iter().chain(headers).collect(),
        };
        let mut writer = gateway.cluster.writer(&topic, partition).await.unwrap();
        writer.produce(&[record], Compression::None).await.unwrap();
    }

    /// A call, answered with these records one after the other.
    async fn answered(
        &self,
        gateway: &TestGateway,
        replies: &[(Option<&'static [u8]>, Headers)],
    ) -> Result<Response<Bytes>, Status> {
        let worker = async {
            let request = self.request(gateway).await.remove(0).1;
            for (value, headers) in replies {
                self.reply(gateway, &request, *value, headers).await;
            }
        };
        tokio::join!(gateway.raw(self.path, HI), worker).0
    }
}

#[tokio::test]
async fn a_call_goes_there_and_back_in_every_dialect() {
    let gateway = gateway().start().await;
    let topic = gateway.gateway().instance().reply_topic().as_bytes().to_vec();
    for dialect in [SPRING, BINARY, NESTJS, SMALLRYE, FASTSTREAM, CUSTOM] {
        let answer = dialect.answered(&gateway, &[(Some(HO), &[("x-cost", b"7")])]).await;
        let answer = answer.unwrap_or_else(|status| panic!("{}: {status:?}", dialect.path));
        assert_eq!(answer.get_ref(), HO, "{}", dialect.path);
        assert_eq!(answer.metadata().get("x-cost").unwrap(), "7", "{}", dialect.path);

        let all = requests(&gateway, dialect.path).await;
        let (_, request) = &all[0];
        assert_eq!(all.len(), 1, "{}", dialect.path);
        assert_eq!(request.value.as_deref(), Some(HI));
        assert_eq!(request.header(dialect.topic).map(|v| &v[..]), Some(&topic[..]));
        let id = request.header(dialect.id).unwrap();
        let length = if dialect.path == BINARY.path { 16 } else { 36 };
        assert_eq!(id.len(), length, "{}", dialect.path);
        // None but its own: FastStream, for one, drops what is not UTF-8.
        let own: Vec<&str> = [Some(dialect.id), Some(dialect.topic), dialect.partition.map(|p| p.0)]
            .into_iter()
            .flatten()
            .collect();
        for (name, value) in &request.headers {
            let ours = ["grpc-method", "grpc-deadline", "content-type"].contains(&&**name);
            assert!(ours || own.contains(&&**name), "{}: {name}", dialect.path);
            let text = ours || dialect.path == FASTSTREAM.path;
            assert!(!text || std::str::from_utf8(value).is_ok(), "{}: {name}", dialect.path);
        }
    }
    gateway.settled().await;
    gateway.stop().await;
}

#[tokio::test]
async fn the_errors_of_every_dialect_reach_the_caller() {
    const OURS: Headers = &[("grpc-status", b"9"), ("grpc-message", b"no%20funds"), ("x-cost", b"1")];
    const NO: Headers = &[("x-code", b"7"), ("x-error", "아니오".as_bytes())];
    let gateway = gateway().start().await;
    let cases: [(Dialect, Headers, Code, &str); 11] = [
        (SPRING, OURS, Code::FailedPrecondition, "no funds"),
        (NESTJS, OURS, Code::FailedPrecondition, "no funds"),
        (SMALLRYE, OURS, Code::FailedPrecondition, "no funds"),
        (FASTSTREAM, OURS, Code::FailedPrecondition, "no funds"),
        (ZILLA, OURS, Code::FailedPrecondition, "no funds"),
        (CUSTOM, OURS, Code::FailedPrecondition, "no funds"),
        (
            NESTJS,
            &[
                ("kafka_nest-err", br#"{"code":5,"message":"no such order"}"#),
                ("kafka_nest-is-disposed", &[0]),
            ],
            Code::NotFound,
            "no such order",
        ),
        (
            NESTJS,
            &[("kafka_nest-err", br#"{"status":"error","message":"Internal server error"}"#)],
            Code::Unknown,
            "Internal server error",
        ),
        (ZILLA, &[("zilla:status", b"5"), ("zilla:message", b"no%20order")], Code::NotFound, "no order"),
        (CUSTOM, NO, Code::PermissionDenied, "아니오"),
        (CUSTOM, &[("x-code", b"seven")], Code::Internal, "its x-code header \"seven\" is no status code"),
    ];
    for (dialect, headers, code, message) in cases {
        let status = dialect.answered(&gateway, &[(None, headers)]).await.unwrap_err();
        assert_eq!(status.code(), code, "{} {headers:?}: {status:?}", dialect.path);
        assert!(status.message().contains(message), "{}: {status:?}", dialect.path);
        assert_eq!(trailer(status.metadata(), "antiphon-outcome").as_deref(), Some("sent"));
        if headers == OURS && dialect.path != ZILLA.path {
            assert_eq!(trailer(status.metadata(), "x-cost").as_deref(), Some("1"), "{}", dialect.path);
        }
    }
    gateway.settled().await;
    gateway.stop().await;
}

#[tokio::test]
async fn a_null_reply_is_an_error_in_every_dialect() {
    let gateway = gateway().start().await;
    for dialect in [SPRING, BINARY, SMALLRYE, FASTSTREAM, CUSTOM, NESTJS] {
        let status =
            dialect.answered(&gateway, &[(None, &[("kafka_nest-is-disposed", &[0])])]).await.unwrap_err();
        assert_eq!(status.code(), Code::Internal, "{}", dialect.path);
        assert!(status.message().contains("it has no value (a tombstone)"), "{}: {status:?}", dialect.path);
    }
    let empty = SPRING.answered(&gateway, &[(Some(b""), &[])]).await.unwrap();
    assert!(empty.get_ref().is_empty(), "0 bytes are an empty message");
    gateway.stop().await;
}

#[tokio::test]
async fn a_zilla_call_is_two_records_there_and_two_back() {
    let gateway = gateway().start().await;
    let end: Headers = &[("zilla:status", b"0"), ("meta:x-cost", b"7")];
    let call = async {
        let address = gateway.gateway().grpc_address();
        let body = crate::raw::framed(HI);
        post(address, ZILLA.path, &[("x-tenant", "acme"), ("traceparent", "00-1-2-01")], body).await
    };
    let worker = async {
        let deadline = tokio::time::Instant::now() + PATIENCE;
        while requests(&gateway, ZILLA.path).await.len() < 2 {
            assert!(tokio::time::Instant::now() < deadline);
        }
        let sent = requests(&gateway, ZILLA.path).await;
        let [(partition, data), (other, null)] = &sent[..] else { panic!("{sent:?}") };
        assert_eq!((partition, data.offset + 1), (other, null.offset), "one behind the other");
        assert_eq!((data.value.as_deref(), null.value.as_deref()), (Some(HI), None));
        assert_eq!((&data.key, &data.headers), (&null.key, &null.headers));
        assert_eq!(data.key.as_ref(), data.header("zilla:correlation-id"), "the key where there is none");
        assert_eq!(text(data, "zilla:service").as_deref(), Some(TOPIC));
        assert_eq!(text(data, "zilla:method").as_deref(), Some("Zilla"));
        assert_eq!(text(data, "meta:x-tenant").as_deref(), Some("acme"));
        assert_eq!(text(data, "traceparent").as_deref(), Some("00-1-2-01"));
        assert_eq!(data.header("x-tenant"), None);
        ZILLA.reply(&gateway, data, Some(HO), &[]).await;
        gateway.until("the message is kept", || gateway.replies_of("part") == 1).await;
        ZILLA.reply(&gateway, data, None, end).await;
        format!("{}/{partition}/{}", gateway.topic(TOPIC), data.offset)
    };
    let (answer, place) = tokio::join!(call, worker);
    assert_eq!(answer.code(), Code::Ok);
    assert_eq!(&answer.body[5..], HO);
    assert_eq!(answer.headers["x-cost"], "7");
    assert_eq!(answer.trailers["antiphon-record"], *place);
    gateway.settled().await;
    gateway.stop().await;
}

/// Whatever is in the batch: behind each message its end, and the offset that
/// the caller hears of is the message's.
#[tokio::test]
async fn the_two_records_of_a_zilla_call_stay_together_under_load() {
    const PATH: &str = "/dialects.v1.DialectService/ZillaByKey";
    let gateway = gateway().start().await;
    let calls = (0..120).map(|n| {
        let gateway = &gateway;
        let spring = n % 3 == 0;
        let message = Bytes::from(format!("\x0a\x02{:02}", n % 100));
        async move {
            let path = if spring { SPRING.path } else { PATH };
            let address = gateway.gateway().grpc_address();
            let body = crate::raw::framed(&message);
            let answer = post(address, path, &[("grpc-timeout", "2S")], body).await;
            assert_eq!(answer.code(), Code::DeadlineExceeded);
            let place = answer.headers["antiphon-record"].to_str().unwrap().to_owned();
            let id = answer.headers["antiphon-correlation-id"].to_str().unwrap().to_owned();
            (spring, place, id)
        }
    });
    let ended = futures_util::future::join_all(calls).await;
    let all = all(&gateway.cluster, &gateway.topic(TOPIC)).await;
    assert_eq!(all.len(), 40 + 2 * 80);
    for (spring, place, id) in ended {
        let (_, at) = place.split_once('/').unwrap();
        let (partition, offset) = at.split_once('/').unwrap();
        let (partition, offset): (i32, i64) = (partition.parse().unwrap(), offset.parse().unwrap());
        let record = |offset| all.iter().find(|(p, r)| (*p, r.offset) == (partition, offset)).map(|(_, r)| r);
        let data = record(offset).unwrap();
        assert!(data.value.is_some());
        let name = if spring { SPRING.id } else { ZILLA.id };
        assert_eq!(text(data, name).unwrap(), id, "{place}");
        if !spring {
            let end = record(offset + 1).unwrap();
            assert_eq!((&end.value, &end.key, &end.headers), (&None, &data.key, &data.headers));
        }
    }
    gateway.settled().await;
    gateway.stop().await;
}

#[tokio::test]
async fn zilla_replies_that_are_not_one_message_are_named() {
    const EMPTY: Dialect = Dialect { path: "/dialects.v1.DialectService/ZillaEmpty", ..ZILLA };
    let gateway = gateway().start().await;
    let two = ZILLA.answered(&gateway, &[(Some(HO), &[]), (Some(HO), &[])]).await.unwrap_err();
    assert_eq!(two.code(), Code::Internal);
    assert!(two.message().contains("more than one message, of which the first is at offset"), "{two:?}");
    let none = ZILLA.answered(&gateway, &[(None, &[("zilla:status", b"0")])]).await.unwrap_err();
    assert_eq!(none.code(), Code::Internal);
    assert!(none.message().contains("it ended without a message"), "{none:?}");
    let late_error =
        ZILLA.answered(&gateway, &[(Some(HO), &[]), (None, &[("zilla:status", b"10")])]).await.unwrap_err();
    assert_eq!(late_error.code(), Code::Aborted);
    EMPTY.answered(&gateway, &[(None, &[])]).await.unwrap();
    gateway.settled().await;
    gateway.stop().await;
}

/// A message without an end: the call meets its deadline, and what was kept
/// for it goes with it.
#[tokio::test]
async fn a_zilla_reply_that_never_ends_holds_nothing() {
    let gateway = gateway().start().await;
    let address = gateway.gateway().grpc_address();
    let call = post(address, ZILLA.path, &[("grpc-timeout", "700m")], crate::raw::framed(HI));
    let worker = async {
        let request = ZILLA.request(&gateway).await.remove(0).1;
        ZILLA.reply(&gateway, &request, Some(HO), &[]).await;
        request
    };
    let (answer, request) = tokio::join!(call, worker);
    assert_eq!(answer.code(), Code::DeadlineExceeded);
    gateway.settled().await;
    ZILLA.reply(&gateway, &request, None, &[]).await;
    gateway.until("the end is late", || gateway.replies_of("late") == 1).await;
    gateway.stop().await;
}

#[tokio::test]
async fn a_one_way_zilla_call_is_one_record() {
    let gateway = gateway().start().await;
    let path = "/dialects.v1.DialectService/ZillaOneWay";
    gateway.raw(path, HI).await.unwrap();
    let sent = await_records(&gateway.cluster, &gateway.topic(TOPIC), 1).await;
    assert_eq!(sent.len(), 1);
    assert_eq!(sent[0].1.header("zilla:reply-to"), None);
    assert_eq!(text(&sent[0].1, "zilla:method").as_deref(), Some("ZillaOneWay"));
    gateway.stop().await;
}

/// The end of a stream goes with its message again; and a dead letter in a
/// dialect of the configuration's says which call it was.
#[tokio::test]
async fn dead_letters_of_every_dialect_can_be_replayed() {
    let reasons = || setting(vec!["timeout".to_owned()]);
    let settings = || Settings { dead_letter_on: reasons(), ..Settings::default() };
    let gateway = gateway()
        .method("dialects.v1.DialectService/Zilla", settings())
        .method("dialects.v1.DialectService/Custom", settings())
        .start()
        .await;
    let dlq = gateway.topic(TOPIC) + ".DLQ";
    for (letters, dialect) in [(1, ZILLA), (3, CUSTOM)] {
        let address = gateway.gateway().grpc_address();
        let answer = post(address, dialect.path, &[("grpc-timeout", "400m")], crate::raw::framed(HI)).await;
        assert_eq!(answer.code(), Code::DeadlineExceeded);
        let id = answer.headers["antiphon-correlation-id"].to_str().unwrap();
        let letters = await_records(&gateway.cluster, &dlq, letters).await;
        let (partition, record) = letters
            .into_iter()
            .find(|(_, r)| text(r, "grpc-method").as_deref() == Some(dialect.path))
            .unwrap();
        let letter = Letter::new(partition, record);
        assert_eq!(letter.correlation_id().as_deref(), Some(id));

        let topics = gateway.cluster.topics().await.unwrap();
        let topics = topics.into_iter().map(|topic| (topic.name, topic.partitions)).collect();
        let mut replayer = Replayer::new(&*gateway.cluster, &topics, ReplayOptions::default());
        let prepared = replayer.prepare(&letter, &Beside::default()).unwrap();
        let before = requests(&gateway, dialect.path).await.len();
        assert!(matches!(replayer.send(&prepared).await, Sent::Sent(_)));
        let topic = DeadLetterTopic { name: dlq.clone(), partitions: 3 };
        replayer.note(&topic, &letter, &prepared, &Sent::Sent(None)).await;
        until_async("the request is there again", async || {
            requests(&gateway, dialect.path).await.len() == 2 * before
        })
        .await;
        let again = requests(&gateway, dialect.path).await;
        let again: Vec<&Received> =
            again.iter().map(|(_, r)| r).filter(|r| r.header("antiphon-replay").is_some()).collect();
        assert_eq!(again[0].value.as_deref(), Some(HI));
        if dialect.path == ZILLA.path {
            assert_eq!((again.len(), &again[1].value, &again[1].headers), (2, &None, &again[0].headers));
        }
    }
    tokio::time::timeout(Duration::from_secs(10), gateway.settled()).await.unwrap();
    gateway.stop().await;
}

/// Allow-lists, binary metadata, and repeated keys, in every dialect.
#[tokio::test]
async fn metadata_travels_both_ways() {
    let gateway = gateway().start().await;
    let sent = [
        ("x-tenant", "acme"),
        ("x-tenant", "emca"),
        // Bytes ff, without padding, and 00 01.
        ("x-token-bin", "/w"),
        ("x-token-bin", "AAE="),
        ("authorization", "Bearer secret"),
        ("x-other", "1"),
    ];
    const BACK: Headers =
        &[("x-cost", b"7"), ("x-took", b"1,2"), ("x-token-bin", b"/w==,AAE"), ("antiphon-outcome", b"lies")];
    const ZILLA_BACK: Headers = &[
        ("meta:x-cost", b"7"),
        ("meta:x-took", b"1,2"),
        ("meta:x-token-bin", b"/w==,AAE"),
        ("x-other", b"1"),
    ];
    for dialect in [SPRING, NESTJS, SMALLRYE, FASTSTREAM, CUSTOM, ZILLA] {
        let (zilla, address) = (dialect.path == ZILLA.path, gateway.gateway().grpc_address());
        let worker = async {
            let request = dialect.request(&gateway).await.remove(0).1;
            dialect.reply(&gateway, &request, Some(HO), if zilla { &[] } else { BACK }).await;
            if zilla {
                dialect.reply(&gateway, &request, None, ZILLA_BACK).await;
            }
            request
        };
        let (answer, request) =
            tokio::join!(post(address, dialect.path, &sent, crate::raw::framed(HI)), worker);
        let (tenant, token) =
            if zilla { ("meta:x-tenant", "meta:x-token-bin") } else { ("x-tenant", "x-token-bin") };
        assert_eq!(text(&request, tenant).as_deref(), Some("acme,emca"), "{}", dialect.path);
        assert_eq!(text(&request, token).as_deref(), Some("/w==,AAE="), "{}", dialect.path);
        let names = request.headers.iter().map(|(name, _)| &**name);
        assert!(names.into_iter().all(|name| !name.contains("authorization") && !name.contains("x-other")));

        assert_eq!(answer.code(), Code::Ok, "{}", dialect.path);
        assert_eq!(answer.headers["x-cost"], "7");
        assert_eq!(answer.trailers["x-took"], "1,2");
        let tokens: Vec<_> = answer.trailers.get_all("x-token-bin").iter().collect();
        assert_eq!(tokens, ["/w", "AAE"]);
        assert_eq!(answer.trailers["antiphon-outcome"], "sent");
        assert!(!answer.trailers.contains_key("x-cost") && !answer.headers.contains_key("x-took"));
    }
    let address = gateway.gateway().grpc_address();
    let refused = post(address, SPRING.path, &[("x-token-bin", "*")], crate::raw::framed(HI)).await.status();
    assert_eq!(
        (refused.code(), refused.message()),
        (Code::InvalidArgument, "metadata x-token-bin is not base64")
    );
    gateway.settled().await;
    gateway.stop().await;
}
