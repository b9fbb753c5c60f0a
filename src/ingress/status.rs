//! The only place that makes a `tonic::Status` out of our errors.
//!
//! | what happened | status |
//! |---|---|
//! | no reply in time, the request being in the log or perhaps there | DEADLINE_EXCEEDED |
//! | nothing was sent: not ready, draining, Kafka away, no such topic | UNAVAILABLE, with `grpc-retry-pushback-ms` |
//! | a bound was reached | RESOURCE_EXHAUSTED, with `grpc-retry-pushback-ms` and RetryInfo |
//! | an open circuit | UNAVAILABLE, with `grpc-retry-pushback-ms` |
//! | message, key or partition of no use | INVALID_ARGUMENT |
//! | an idempotency key that stands for another message | INVALID_ARGUMENT: the caller's mistake, and repeating it will not help (the IETF draft has 422 for it) |
//! | larger than the broker takes | RESOURCE_EXHAUSTED |
//! | more replies to one call than may be held | RESOURCE_EXHAUSTED |
//! | a reply among several that was lost | DATA_LOSS |
//! | refused by the broker for good | FAILED_PRECONDITION |
//! | a reply that can't be understood | INTERNAL |
//! | the worker's own error | as the worker says |
//!
//! Every status of a call that reached its route's exchange tells what is known
//! of the request, in trailers:
//! `antiphon-outcome` (`not-sent`, `sent` or `unknown`), `antiphon-record`
//! (`topic/partition/offset`, as far as known), `antiphon-correlation-id`, and
//! `antiphon-idempotency` (`joined` or `kept`) where a key was known already.
//! Where a call has several replies, `antiphon-replies` counts them (`3`, or
//! `2/3` where 3 are all), `antiphon-replies-skipped` those that were errors and
//! are left out, and `antiphon-partial: true` says that the deadline came first.

use std::error::Error as _;
use std::time::Duration;

use bytes::{BufMut as _, Bytes, BytesMut};
use http::{HeaderMap, HeaderName, HeaderValue};
use prost::Message as _;
use tonic::metadata::MetadataMap;
use tonic::{Code, Status};

use crate::deadline::TimeoutError;
use crate::exchange::{Failure, Tally, Trace, Why};
use crate::message::WorkerStatus;
use crate::message::format::EncodeError;
use crate::pending::Coordinates;

const OUTCOME: HeaderName = HeaderName::from_static("antiphon-outcome");
const RECORD: HeaderName = HeaderName::from_static("antiphon-record");
const CORRELATION_ID: HeaderName = HeaderName::from_static("antiphon-correlation-id");
const IDEMPOTENCY: HeaderName = HeaderName::from_static("antiphon-idempotency");
/// All trailers that a call can end with and a page may want to read.
pub(super) const TRAILERS: [HeaderName; 11] = [
    HeaderName::from_static("grpc-status"),
    HeaderName::from_static("grpc-message"),
    HeaderName::from_static("grpc-status-details-bin"),
    OUTCOME,
    RECORD,
    CORRELATION_ID,
    IDEMPOTENCY,
    REPLIES,
    SKIPPED,
    PARTIAL,
    PUSHBACK,
];
const REPLIES: HeaderName = HeaderName::from_static("antiphon-replies");
const SKIPPED: HeaderName = HeaderName::from_static("antiphon-replies-skipped");
const PARTIAL: HeaderName = HeaderName::from_static("antiphon-partial");
const PUSHBACK: HeaderName = HeaderName::from_static("grpc-retry-pushback-ms");

/// What becomes of a call that ended without a worker's answer.
pub(super) fn of_failure(failure: &Failure) -> Status {
    let message = sentence(&failure.why);
    let mut trailers = of_trace(&failure.trace);
    let code = match &*failure.why {
        Why::NotReady(_) | Why::Draining | Why::NoSuchTopic(_) | Why::NotSent(_) => Code::Unavailable,
        Why::Overloaded { retry_after, .. } => {
            return overloaded(message, *retry_after, trailers);
        }
        Why::CircuitOpen { retry_after, .. } => {
            trailers.insert(PUSHBACK, millis(*retry_after));
            return Status::with_metadata(Code::Unavailable, message, MetadataMap::from_headers(trailers));
        }
        Why::Unwritable(EncodeError::NoSchemaId(_)) => Code::Internal,
        Why::BadMessage(_)
        | Why::Unwritable(_)
        | Why::NoSuchPartition { .. }
        | Why::KeyReused
        | Why::KeyOfStream => Code::InvalidArgument,
        Why::TimedOut | Why::TooLate | Why::Unfinished { .. } | Why::NotRead { .. } => Code::DeadlineExceeded,
        Why::TooLarge | Why::TooManyReplies { .. } => Code::ResourceExhausted,
        Why::ReplyLost { .. } => Code::DataLoss,
        Why::Refused(_) => Code::FailedPrecondition,
        Why::BadReply { .. } => Code::Internal,
    };
    if code == Code::Unavailable {
        trailers.insert(PUSHBACK, HeaderValue::from_static("1000"));
    }
    Status::with_metadata(code, message, MetadataMap::from_headers(trailers))
}

/// A reply that has no place among those which its caller does not take.
pub(super) fn of_untaken(waiting: u64, trace: &Trace) -> Status {
    let message = format!(
        "the reply came and was dropped: {waiting} bytes of earlier replies wait on this connection for \
         their caller to take them"
    );
    Status::with_metadata(Code::ResourceExhausted, message, MetadataMap::from_headers(of_trace(trace)))
}

/// Our errors keep their cause apart; a caller sees one sentence.
fn sentence(why: &Why) -> String {
    let text = why.to_string();
    match why.source() {
        Some(source) if !text.contains(&source.to_string()) => format!("{text}: {source}"),
        _ => text,
    }
}

fn overloaded(message: String, retry_after: Duration, mut trailers: HeaderMap) -> Status {
    trailers.insert(PUSHBACK, millis(retry_after));
    let details = retry_info(Code::ResourceExhausted, &message, retry_after);
    let metadata = MetadataMap::from_headers(trailers);
    Status::with_details_and_metadata(Code::ResourceExhausted, message, details, metadata)
}

fn millis(duration: Duration) -> HeaderValue {
    HeaderValue::from(u64::try_from(duration.as_millis()).unwrap_or(u64::MAX))
}

/// A worker's own error, handed on.
pub(super) fn of_worker(status: WorkerStatus, trace: &Trace, mut returned: HeaderMap) -> Status {
    let code = Code::from(i32::from(status.code));
    // Over whatever a worker says under these names.
    returned.extend(of_trace(trace));
    let metadata = MetadataMap::from_headers(returned);
    Status::with_details_and_metadata(code, status.message, status.details, metadata)
}

/// A `grpc-timeout` that is none.
pub(super) fn of_timeout_error(error: &TimeoutError) -> Status {
    Status::invalid_argument(error.to_string())
}

/// What is known of the request, as trailers.
pub(super) fn of_trace(trace: &Trace) -> HeaderMap {
    let mut trailers = HeaderMap::with_capacity(5);
    trailers.insert(OUTCOME, HeaderValue::from_static(trace.outcome.as_str()));
    if let Some(at) = trace.at {
        insert_once(&mut trailers, RECORD, place(&trace.topic, at));
    }
    if let Some(id) = trace.id {
        insert_once(&mut trailers, CORRELATION_ID, Bytes::copy_from_slice(&id.to_text()));
    }
    if let Some(repeat) = trace.repeat {
        trailers.insert(IDEMPOTENCY, HeaderValue::from_static(repeat.as_str()));
    }
    if let Some(tally) = &trace.replies {
        count(tally, &mut trailers);
    }
    trailers
}

fn count(tally: &Tally, trailers: &mut HeaderMap) {
    let text = match tally.expected {
        Some(expected) => format!("{}/{expected}", tally.came),
        None => tally.came.to_string(),
    };
    insert_once(trailers, REPLIES, Bytes::from(text));
    if tally.skipped > 0 {
        trailers.insert(SKIPPED, HeaderValue::from(tally.skipped));
    }
    if tally.partial {
        trailers.insert(PARTIAL, HeaderValue::from_static("true"));
    }
}

/// The good end of a stream, with what a worker says in `returned`.
pub(super) fn of_end(trace: &Trace, mut returned: HeaderMap) -> Status {
    // Over whatever a worker says under these names.
    returned.extend(of_trace(trace));
    Status::with_metadata(Code::Ok, "", MetadataMap::from_headers(returned))
}

/// `topic/partition/offset`. Every answer has it: written without `format!`,
/// which costs four times as much.
fn place(topic: &str, at: Coordinates) -> Bytes {
    // Two separators and the longest numbers of both kinds.
    let mut text = BytesMut::with_capacity(topic.len() + 33);
    text.put_slice(topic.as_bytes());
    let numbers = std::iter::once(i64::from(at.partition)).chain(at.offset);
    for number in numbers {
        text.put_u8(b'/');
        text.put_slice(itoa::Buffer::new().format(number).as_bytes());
    }
    text.freeze()
}

/// A value that no other call has. "Sensitive" has HPACK write it as it is:
/// indexed, each would push another one out of the table that connections
/// share, after having been compared with all of them.
///
/// Topic names are checked when routes are compiled, so this can't fail.
fn insert_once(trailers: &mut HeaderMap, name: HeaderName, value: Bytes) {
    if let Ok(mut value) = HeaderValue::from_maybe_shared(value) {
        value.set_sensitive(true);
        trailers.insert(name, value);
    }
}

/// What tonic found wrong with the message on the wire. It says OUT_OF_RANGE
/// of a message that is too large; every other gRPC server says
/// RESOURCE_EXHAUSTED.
pub(super) fn of_unread_message(status: Status) -> Status {
    match status.code() {
        Code::OutOfRange => Status::resource_exhausted(status.message()),
        _ => status,
    }
}

/// `google.rpc.Status` with a `google.rpc.RetryInfo`, encoded.
fn retry_info(code: Code, message: &str, retry_after: Duration) -> Bytes {
    let delay = prost_types::Duration {
        seconds: i64::try_from(retry_after.as_secs()).unwrap_or(i64::MAX),
        nanos: i32::try_from(retry_after.subsec_nanos()).unwrap_or_default(),
    };
    let info = prost_types::Any {
        type_url: "type.googleapis.com/google.rpc.RetryInfo".to_owned(),
        value: RetryInfo { retry_delay: Some(delay) }.encode_to_vec(),
    };
    let status = RpcStatus { code: code as i32, message: message.to_owned(), details: vec![info] };
    Bytes::from(status.encode_to_vec())
}

/// `google.rpc.Status`.
#[derive(Clone, PartialEq, prost::Message)]
struct RpcStatus {
    #[prost(int32, tag = "1")]
    code: i32,
    #[prost(string, tag = "2")]
    message: String,
    #[prost(message, repeated, tag = "3")]
    details: Vec<prost_types::Any>,
}

/// `google.rpc.RetryInfo`.
#[derive(Clone, PartialEq, prost::Message)]
struct RetryInfo {
    #[prost(message, optional, tag = "1")]
    retry_delay: Option<prost_types::Duration>,
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::exchange::Outcome;

    fn trace(outcome: Outcome, at: Option<Coordinates>) -> Trace {
        Trace { id: None, outcome, topic: "pay".into(), at, repeat: None, replies: None }
    }

    #[test]
    fn a_time_out_tells_where_the_request_is() {
        let at = Coordinates { partition: 3, offset: Some(41) };
        let status = of_failure(&Failure::new(Why::TimedOut, trace(Outcome::Sent, Some(at))));
        assert_eq!(status.code(), Code::DeadlineExceeded);
        let trailer =
            |name: &str| status.metadata().get(name).and_then(|v| v.to_str().ok()).map(str::to_owned);
        assert_eq!(trailer("antiphon-outcome").as_deref(), Some("sent"));
        assert_eq!(trailer("antiphon-record").as_deref(), Some("pay/3/41"));
    }

    #[test]
    fn an_overload_says_when_to_come_back() {
        let why = Why::Overloaded { what: "x", limit: 5, retry_after: Duration::from_millis(1_250) };
        let status = of_failure(&Failure::new(why, trace(Outcome::NotSent, None)));
        assert_eq!(status.code(), Code::ResourceExhausted);
        assert_eq!(status.metadata().get("grpc-retry-pushback-ms").unwrap(), "1250");
        let details = RpcStatus::decode(status.details()).unwrap();
        let info = RetryInfo::decode(&*details.details[0].value).unwrap();
        assert_eq!(info.retry_delay, Some(prost_types::Duration { seconds: 1, nanos: 250_000_000 }));
    }

    #[test]
    fn causes_are_told_once() {
        let why = Why::Refused(Arc::from("TopicAuthorizationFailed"));
        let status = of_failure(&Failure::new(why, trace(Outcome::NotSent, None)));
        assert_eq!(status.message(), "Kafka refused the request: TopicAuthorizationFailed");
    }
}
