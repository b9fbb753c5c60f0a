//! What the cases of calls with several replies share: methods, and a worker
//! whose every record is written by hand.

use antiphon::kafka::KafkaCluster;
use antiphon::message::dialect::Custom;
use antiphon::terms::{Compression, CorrelationForm, PartitionForm};
use antiphon::transport::{Cluster as _, HeaderName, PartitionReader, Received, Record};
use bytes::Bytes;
use prost::Message;
use std::sync::Arc;
use std::time::Duration;

use crate::harness::{PATIENCE, TestGateway, TestGatewayBuilder};
use crate::raw::RawAnswer;
use crate::records::text;

const PROTO: &str = r#"
    syntax = "proto3";
    package several.v1;
    import "antiphon/v1/options.proto";
    message Text { string text = 1; }
    message Texts { string note = 1; repeated Text all = 7; }
    service StreamService {
        option (antiphon.v1.kafka_defaults) = { request_topic: "several" };
        rpc Stream(Text) returns (stream Text);
        rpc Three(Text) returns (stream Text) { option (antiphon.v1.kafka) = { replies: 3 until_last: false }; }
        rpc Small(Text) returns (stream Text) { option (antiphon.v1.kafka) = { replies_max: 100 cancel_record: true }; }
        rpc Partial(Text) returns (stream Text) { option (antiphon.v1.kafka) = { partial_on_timeout: true }; }
        rpc Letters(Text) returns (stream Text) {
            option (antiphon.v1.kafka) = { dead_letter_on: [TIMEOUT, UNDECODABLE_REPLY] cancel_record: true };
        }
        rpc Json(Text) returns (stream Text) { option (antiphon.v1.kafka) = { format: JSON }; }
        rpc Nestjs(Text) returns (stream Text) { option (antiphon.v1.kafka) = { dialect: "nestjs" }; }
        rpc Smallrye(Text) returns (stream Text) { option (antiphon.v1.kafka) = { dialect: "smallrye" }; }
        rpc Faststream(Text) returns (stream Text) { option (antiphon.v1.kafka) = { dialect: "faststream" }; }
        rpc Zilla(Text) returns (stream Text) { option (antiphon.v1.kafka) = { dialect: "zilla" }; }
        rpc Custom(Text) returns (stream Text) { option (antiphon.v1.kafka) = { dialect: "custom" }; }
    }
    service CollectService {
        option (antiphon.v1.kafka_defaults) = { request_topic: "several" };
        rpc All(Text) returns (Texts) { option (antiphon.v1.kafka) = { until_last: true }; }
        rpc Three(Text) returns (Texts) { option (antiphon.v1.kafka) = { replies: 3 dead_letter_on: [TIMEOUT] }; }
        rpc Partial(Text) returns (Texts) {
            option (antiphon.v1.kafka) = { replies: 3 partial_on_timeout: true dead_letter_on: [TIMEOUT] };
        }
        rpc Gather(Text) returns (Texts) { option (antiphon.v1.kafka) = { partial_on_timeout: true }; }
        rpc Skipping(Text) returns (Texts) { option (antiphon.v1.kafka) = { replies: 3 skip_errors: true }; }
        rpc Few(Text) returns (Texts) { option (antiphon.v1.kafka) = { until_last: true replies_max: 3 cancel_record: true }; }
        rpc Json(Text) returns (Texts) { option (antiphon.v1.kafka) = { until_last: true format: JSON }; }
        rpc Nestjs(Text) returns (Texts) { option (antiphon.v1.kafka) = { until_last: true dialect: "nestjs" }; }
        rpc Zilla(Text) returns (Texts) { option (antiphon.v1.kafka) = { until_last: true dialect: "zilla" }; }
        rpc ZillaTwo(Text) returns (Texts) { option (antiphon.v1.kafka) = { replies: 2 dialect: "zilla" }; }
    }
"#;

pub const TOPIC: &str = "several";

#[derive(Clone, PartialEq, Message)]
pub struct Text {
    #[prost(string, tag = "1")]
    pub text: String,
}

#[derive(Clone, PartialEq, Message)]
pub struct Texts {
    #[prost(string, tag = "1")]
    pub note: String,
    #[prost(message, repeated, tag = "7")]
    pub all: Vec<Text>,
}

/// A gateway whose requests nobody answers but the test.
pub fn gateway() -> TestGatewayBuilder {
    let custom = Custom {
        correlation_id: "x-call".to_owned(),
        correlation_form: CorrelationForm::Text,
        reply_topic: "x-answer-to".to_owned(),
        reply_partition: None,
        reply_partition_form: PartitionForm::Int32,
        error_code: None,
        error_message: None,
        last: Some("x-last".to_owned()),
    };
    TestGateway::build().proto(PROTO).topic(TOPIC, 1).custom_dialect(custom).config(|config| {
        config.grpc.metadata_return = vec!["x-cost".to_owned()];
        config.grpc.trailers_return = vec!["x-took".to_owned()];
    })
}

/// The request message of every case, and in its frame.
pub const HI: &[u8] = b"\x0a\x02hi";

/// One reply: value and headers.
#[derive(Debug, Clone)]
pub struct Part {
    value: Option<Bytes>,
    headers: Vec<(HeaderName, Bytes)>,
}

pub fn message(text: &str) -> Part {
    value(Text { text: text.to_owned() }.encode_to_vec())
}

pub fn value(bytes: impl Into<Bytes>) -> Part {
    Part { value: Some(bytes.into()), headers: Vec::new() }
}

pub fn nothing() -> Part {
    Part { value: None, headers: Vec::new() }
}

impl Part {
    pub fn with(mut self, name: &'static str, value: impl Into<Bytes>) -> Self {
        self.headers.push((name.into(), value.into()));
        self
    }

    pub fn last(self) -> Self {
        self.with("antiphon-last", "true")
    }

    pub fn error(self, code: &'static str, message: &'static str) -> Self {
        self.with("grpc-status", code).with("grpc-message", message)
    }
}

/// Takes requests in their order and replies where they say.
pub struct ByHand {
    cluster: Arc<KafkaCluster>,
    reader: Box<dyn PartitionReader>,
    offset: i64,
    read: std::collections::VecDeque<Received>,
}

impl ByHand {
    pub async fn new(gateway: &TestGateway) -> Self {
        let cluster = Arc::clone(&gateway.cluster);
        let reader = cluster.reader(&gateway.topic(TOPIC), 0).await.unwrap();
        Self { cluster, reader, offset: 0, read: Default::default() }
    }

    /// The next request; ends of requests that are streams are passed over.
    pub async fn request(&mut self) -> Received {
        let deadline = tokio::time::Instant::now() + PATIENCE;
        loop {
            while let Some(record) = self.read.pop_front() {
                if record.value.is_some() {
                    return record;
                }
            }
            assert!(tokio::time::Instant::now() < deadline, "no request");
            let fetched = self.reader.fetch(self.offset, Duration::from_millis(100)).await.unwrap();
            self.offset = fetched.next_offset;
            self.read.extend(fetched.records);
        }
    }

    /// Replies in one batch.
    pub async fn reply(&self, request: &Received, parts: impl IntoIterator<Item = Part>) {
        const NAMES: [(&str, &str); 5] = [
            ("kafka_correlationId", "kafka_replyTopic"),
            ("REPLY_CORRELATION_ID", "REPLY_TOPIC"),
            ("correlation_id", "reply_to"),
            ("zilla:correlation-id", "zilla:reply-to"),
            ("x-call", "x-answer-to"),
        ];
        let (id, topic) = NAMES.into_iter().find(|(id, _)| request.header(id).is_some()).unwrap();
        let echoed = (HeaderName::Borrowed(id), request.header(id).unwrap().clone());
        let record = |part: Part| Record {
            key: request.key.clone(),
            value: part.value,
            headers: [echoed.clone()].into_iter().chain(part.headers).collect(),
        };
        let records: Vec<Record> = parts.into_iter().map(record).collect();
        let mut writer = self.cluster.writer(&text(request, topic).unwrap(), 0).await.unwrap();
        writer.produce(&records, Compression::None).await.unwrap();
    }

    /// The next request, answered so.
    pub async fn answer(&mut self, parts: impl IntoIterator<Item = Part>) {
        let request = self.request().await;
        self.reply(&request, parts).await;
    }
}

/// The texts of the messages in an answer.
pub fn texts(answer: &RawAnswer) -> Vec<String> {
    let (mut found, mut rest) = (Vec::new(), &answer.body[..]);
    while let [0, a, b, c, d, after @ ..] = rest {
        let (message, behind) = after.split_at(u32::from_be_bytes([*a, *b, *c, *d]) as usize);
        found.push(Text::decode(message).unwrap().text);
        rest = behind;
    }
    assert!(rest.is_empty(), "{rest:?}");
    found
}

impl RawAnswer {
    /// A trailer, wherever an answer has it.
    pub fn said(&self, name: &str) -> Option<&str> {
        self.trailers.get(name).or_else(|| self.headers.get(name)).and_then(|value| value.to_str().ok())
    }
}
