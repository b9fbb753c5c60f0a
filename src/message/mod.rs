//! A call's request as a Kafka record, and a Kafka record as its reply.
//!
//! Every record carries two kinds of headers: those by which a worker's
//! framework finds the way back, which its `dialect` names, and our own, which
//! are the same in all dialects (all of them UTF-8):
//!
//! | request header | value |
//! |---|---|
//! | `grpc-method` | `/pkg.Service/Method` |
//! | `grpc-deadline` | absolute, milliseconds since 1970, decimal |
//! | `content-type` | of the value |
//! | `idempotency-key`, `traceparent`, `tracestate` | as the caller sent them |
//!
//! | reply header, all optional | value |
//! |---|---|
//! | `grpc-status` | decimal status code; absent is 0 |
//! | `grpc-message` | percent-encoded, as gRPC has it on the wire |
//! | `grpc-status-details-bin` | base64 of `google.rpc.Status` |
//! | `antiphon-last` | `true`: no reply to this call follows |
//! | `antiphon-sequence` | place among the replies to this call, from 1, decimal |

pub mod dialect;
pub mod format;
mod partition;
mod reply;
mod series;

use bytes::Bytes;
use prost::Message as _;

use crate::correlation::CorrelationId;
use crate::deadline::Deadline;
use crate::transport::{HeaderName, Received, Record};
use dialect::Dialect;

pub use partition::partition_of_key;
pub use reply::{DecodeError, Reply, WorkerStatus, reply_headers};
pub use series::{Series, Turn};

/// Header of a request: path of the method.
pub const GRPC_METHOD: &str = "grpc-method";
/// Header of a request: when its caller gives up, milliseconds since 1970.
pub const GRPC_DEADLINE: &str = "grpc-deadline";
/// Header of both: media type of the value.
pub const CONTENT_TYPE: &str = "content-type";
/// Header of a request: the caller's key for one logical request, after the
/// IETF draft "The Idempotency-Key HTTP Header Field".
pub const IDEMPOTENCY_KEY: &str = "idempotency-key";
/// Header of both: W3C Trace Context.
pub const TRACEPARENT: &str = "traceparent";
/// Header of both: W3C Trace Context.
pub const TRACESTATE: &str = "tracestate";
/// Header of a request without a value: the caller has given up.
pub const CANCEL: &str = "antiphon-cancel";
/// Header of a heartbeat in a reply topic: name of the instance.
pub const HEARTBEAT: &str = "antiphon-heartbeat";
/// Header of a lease record in a shared reply topic: who wrote it, for people.
pub const LEASE: &str = "antiphon-lease";
/// Header of a request that was sent again from a dead-letter topic: how many
/// times by now.
pub const REPLAY: &str = "antiphon-replay";
/// Header of a request that was sent again, and of the note of it: who did it,
/// where that was said.
pub const REPLAYED_BY: &str = "antiphon-replayed-by";
/// Header of a dead letter: whether the request is in the log.
pub const OUTCOME: &str = "antiphon-outcome";
/// Header of a dead letter in the dialect `custom`: the correlation id.
pub const CORRELATION_ID: &str = "antiphon-correlation-id";
/// Header of a dead letter without its value, which was too large: how many
/// bytes it had.
pub const VALUE_LEFT_OUT: &str = "antiphon-value-left-out";
/// Header of a reply: `true` where no other one follows.
pub const LAST: &str = "antiphon-last";
/// Header of a reply: its place among those to one call, from 1.
pub const SEQUENCE: &str = "antiphon-sequence";
/// Media type of a protobuf message in a record.
pub const PROTOBUF: &str = "application/protobuf";

/// Where workers send their replies.
#[derive(Debug, Clone)]
pub struct ReplyAddress {
    /// Reply topic.
    pub topic: Bytes,
    /// Partition of it that the waiting shard reads, for dialects that can say
    /// so.
    pub partition: Option<i32>,
}

/// All that goes into a request's record.
#[derive(Debug)]
pub struct RequestParts<'a> {
    /// Which framework's headers to write.
    pub dialect: &'a Dialect,
    /// Path of the method.
    pub method: Bytes,
    /// Names the call.
    pub id: CorrelationId,
    /// Where the reply is waited for; `None` when nobody waits.
    pub reply_to: Option<&'a ReplyAddress>,
    /// When the caller gives up.
    pub deadline: Deadline,
    /// The record's key.
    pub key: Option<Bytes>,
    /// The message, in the route's format.
    pub value: Bytes,
    /// Media type of the value.
    pub content_type: &'static str,
    /// Metadata to forward: allow-listed, tracing and idempotency headers.
    pub metadata: Vec<(HeaderName, Bytes)>,
}

impl RequestParts<'_> {
    /// The record to produce.
    pub fn into_record(self) -> Record {
        let mut headers = self.metadata;
        self.dialect.rename_metadata(&mut headers);
        headers.reserve(7);
        // By name, as far as possible: rskafka sorts them, and sorts what is sorted at once.
        headers.push((HeaderName::Borrowed(CONTENT_TYPE), Bytes::from_static(self.content_type.as_bytes())));
        headers.push((HeaderName::Borrowed(GRPC_DEADLINE), decimal(self.deadline.unix_ms())));
        headers.push((HeaderName::Borrowed(GRPC_METHOD), self.method.clone()));
        self.dialect.write_request(&self.method, self.id, self.reply_to, &mut headers);
        let key = self.key.or_else(|| self.dialect.key_without_one(self.id));
        Record { key, value: Some(self.value), headers }
    }
}

fn decimal(number: u64) -> Bytes {
    Bytes::copy_from_slice(itoa::Buffer::new().format(number).as_bytes())
}

/// The headers of a trace in a record, for a reply to it. One that makes spans
/// puts its own in their place.
pub fn trace_context_of(record: &Received) -> impl Iterator<Item = (HeaderName, Bytes)> {
    [TRACEPARENT, TRACESTATE]
        .into_iter()
        .filter_map(|name| Some((HeaderName::Borrowed(name), record.header(name)?.clone())))
}

/// Whether a header is one of our own, which are the same in every dialect.
pub fn is_own_header(name: &str) -> bool {
    [CONTENT_TYPE, IDEMPOTENCY_KEY, TRACEPARENT, TRACESTATE].contains(&name)
        || name.starts_with("grpc-")
        || name.starts_with("antiphon-")
}

/// `antiphon.v1.Ack`, kept equal to `proto/antiphon/v1/options.proto`.
#[derive(Clone, PartialEq, prost::Message)]
struct Ack {
    #[prost(string, tag = "1")]
    topic: String,
    #[prost(int32, tag = "2")]
    partition: i32,
    #[prost(int64, tag = "3")]
    offset: i64,
}

/// What a one-way method returns: an `antiphon.v1.Ack` where `output` names
/// it, else nothing, which is `google.protobuf.Empty`.
pub fn acknowledgement(output: &str, topic: &str, partition: i32, offset: Option<i64>) -> Bytes {
    if output != "antiphon.v1.Ack" {
        return Bytes::new();
    }
    // -1 is Kafka's own word for an offset that is not known.
    let ack = Ack { topic: topic.to_owned(), partition, offset: offset.unwrap_or(-1) };
    Bytes::from(ack.encode_to_vec())
}
