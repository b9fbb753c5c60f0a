//! One record of a dead-letter topic, and what its headers say.

use std::borrow::Cow;
use std::fmt;
use std::str::FromStr;

use bytes::Bytes;

use crate::correlation::CorrelationId;
use crate::message::dialect::Dialect;
use crate::message::{GRPC_METHOD, OUTCOME, REPLAYED_BY, Reply, VALUE_LEFT_OUT};
use crate::terms::DeadLetterClass;
use crate::transport::Received;

/// Where the worker frameworks have the correlation id.
const CORRELATION_IDS: [&str; 5] = [
    "kafka_correlationId",
    "REPLY_CORRELATION_ID",
    "zilla:correlation-id",
    "antiphon-correlation-id",
    "correlation_id",
];
/// Statuses by which a worker says that it has not done what was asked:
/// RESOURCE_EXHAUSTED, ABORTED and UNAVAILABLE.
const NOT_DONE: [u8; 3] = [8, 10, 14];

/// A record's place within its topic, `partition/offset`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Place {
    /// The partition.
    pub partition: i32,
    /// The offset.
    pub offset: i64,
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.partition, self.offset)
    }
}

/// What is no place.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is no place; expected PARTITION/OFFSET, such as 2/41")]
pub struct PlaceError(String);

impl FromStr for Place {
    type Err = PlaceError;

    fn from_str(text: &str) -> Result<Self, PlaceError> {
        let parse = || {
            let (partition, offset) = text.split_once('/')?;
            let place = Self { partition: partition.parse().ok()?, offset: offset.parse().ok()? };
            (place.partition >= 0 && place.offset >= 0).then_some(place)
        };
        parse().ok_or_else(|| PlaceError(text.to_owned()))
    }
}

/// A record of a dead-letter topic.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Letter {
    /// Where it is.
    pub place: Place,
    /// The record; its value may have been left out to save memory.
    pub record: Received,
    /// Bytes of its value; `None` when it has none.
    pub value_bytes: Option<usize>,
}

/// Where the request of a dead letter was.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Original {
    /// Request topic.
    pub topic: String,
    /// Its partition, where it is known.
    pub partition: Option<i32>,
    /// Its offset, where it is known.
    pub offset: Option<i64>,
}

impl Letter {
    /// A record that was read.
    pub fn new(partition: i32, record: Received) -> Self {
        let value_bytes = record.value.as_ref().map(Bytes::len);
        Self { place: Place { partition, offset: record.offset }, record, value_bytes }
    }

    /// A header as text; what is not UTF-8 is shown as well as can be.
    pub fn text(&self, name: &str) -> Option<Cow<'_, str>> {
        self.record.header(name).map(|value| String::from_utf8_lossy(value))
    }

    /// What the record is; `None` when another program has written it.
    pub fn class(&self) -> Option<DeadLetterClass> {
        self.text("failure.class")?.parse().ok()
    }

    /// Whether it is a request, rather than something beside one.
    pub fn is_request(&self) -> bool {
        !matches!(self.class(), Some(DeadLetterClass::LateReply | DeadLetterClass::Replayed))
    }

    /// Why it is here, for people.
    pub fn reason(&self) -> Option<Cow<'_, str>> {
        self.first(&["failure.reason", "kafka_dlt-exception-message", "dead-letter-reason"])
    }

    /// Whether the request was in the log: `not-sent`, `sent` or `unknown`.
    pub fn outcome(&self) -> Option<Cow<'_, str>> {
        self.text(OUTCOME)
    }

    /// Path of the method.
    pub fn method(&self) -> Option<Cow<'_, str>> {
        self.text(GRPC_METHOD)
    }

    /// The key as text, or in hexadecimal where it is none.
    pub fn key(&self) -> Option<String> {
        self.record.key.as_deref().map(readable)
    }

    /// The correlation id, in the form that callers see.
    pub fn correlation_id(&self) -> Option<String> {
        let id = CORRELATION_IDS.iter().find_map(|name| self.record.header(name))?;
        Some(CorrelationId::parse(id).map_or_else(|| readable(id), |id| id.to_string()))
    }

    /// When it became a dead letter, in milliseconds since 1970.
    pub fn failed_at_ms(&self) -> i64 {
        let said = self.text("failure.timestamp").and_then(|text| text.parse().ok());
        said.unwrap_or(self.record.timestamp_ms)
    }

    /// Bytes of the value that was too large to be kept.
    pub fn value_left_out(&self) -> Option<Cow<'_, str>> {
        self.text(VALUE_LEFT_OUT)
    }

    /// Where the request was.
    pub fn original(&self) -> Option<Original> {
        let topic = self.first(&["original.topic", "kafka_dlt-original-topic", "dead-letter-topic"])?;
        let number = |names: &[&str], binary: &str| {
            let text = self.first(names).and_then(|text| text.parse::<i64>().ok());
            text.or_else(|| self.record.header(binary).and_then(|value| big_endian(value)))
        };
        let partition =
            number(&["original.partition", "dead-letter-partition"], "kafka_dlt-original-partition");
        Some(Original {
            topic: topic.into_owned(),
            partition: partition.and_then(|partition| i32::try_from(partition).ok()),
            offset: number(&["original.offset", "dead-letter-offset"], "kafka_dlt-original-offset"),
        })
    }

    fn first(&self, names: &[&str]) -> Option<Cow<'_, str>> {
        names.iter().find_map(|name| self.text(name))
    }
}

/// Spring writes int32 and int64 so.
fn big_endian(value: &[u8]) -> Option<i64> {
    match value.len() {
        4 => value.try_into().ok().map(|bytes| i32::from_be_bytes(bytes).into()),
        8 => value.try_into().ok().map(i64::from_be_bytes),
        _ => None,
    }
}

fn readable(bytes: &[u8]) -> String {
    match std::str::from_utf8(bytes) {
        Ok(text) if !text.chars().any(char::is_control) => text.to_owned(),
        _ => bytes.iter().map(|byte| format!("{byte:02x}")).collect(),
    }
}

/// What stands beside a request on its dead-letter topic.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Beside {
    /// Its late reply.
    pub late_reply: Option<LateReply>,
    /// How often it was sent again from here.
    pub replays: u32,
    /// The last time of these.
    pub last_replay: Option<Replayed>,
}

/// A note that a request was sent again.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Replayed {
    /// When; milliseconds since 1970.
    pub at_ms: i64,
    /// By whom, where that was said.
    pub by: Option<String>,
    /// Where the request is now.
    pub to: Option<Original>,
    /// Whether it was sent for certain: `sent` or `unknown`.
    pub outcome: Option<String>,
}

impl Replayed {
    /// Reads a `replayed` record.
    pub fn of(letter: &Letter) -> Self {
        Self {
            at_ms: letter.failed_at_ms(),
            by: letter.text(REPLAYED_BY).map(Into::into),
            to: letter.original(),
            outcome: letter.outcome().map(Into::into),
        }
    }
}

/// A reply that came after its call had ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LateReply {
    /// Where it is.
    pub place: Place,
    /// Its status, 0 for OK, or why it can't be understood.
    pub status: Result<u8, String>,
    /// The message of a status that is not OK.
    pub message: String,
}

impl LateReply {
    /// Reads a `late-reply` record.
    pub fn of(letter: &Letter) -> Self {
        let dialect = Dialect::guess(&letter.record);
        let (status, message) = match Reply::decode(letter.record.clone(), &dialect, true, usize::MAX) {
            Ok(Reply { result: Ok(_), .. }) => (Ok(0), String::new()),
            Ok(Reply { result: Err(status), .. }) => (Ok(status.code), status.message),
            Err(error) => (Err(error.to_string()), String::new()),
        };
        Self { place: letter.place, status, message }
    }

    /// Whether a worker has dealt with the request: it has, unless it says
    /// itself that another attempt may help.
    pub fn is_done(&self) -> bool {
        !self.status.as_ref().is_ok_and(|code| NOT_DONE.contains(code))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn letter(headers: &[(&'static str, &'static [u8])]) -> Letter {
        let headers = headers.iter().map(|(n, v)| ((*n).into(), Bytes::from_static(v))).collect();
        Letter::new(
            2,
            Received { offset: 41, partition: 0, timestamp_ms: 7, key: None, value: None, headers },
        )
    }

    #[test]
    fn a_place_reads_back_and_nothing_else_is_one() {
        let place = letter(&[]).place;
        assert_eq!((place.to_string().as_str(), "2/41".parse()), ("2/41", Ok(place)));
        for wrong in ["", "2", "/", "2/", "/41", "-1/0", "0/-1", "2/41/0", "a/b", "99999999999/0"] {
            assert_eq!(wrong.parse::<Place>(), Err(PlaceError(wrong.to_owned())));
        }
    }

    #[test]
    fn ours_springs_and_smallryes_say_where_the_request_was() {
        let original = Original { topic: "pay".to_owned(), partition: Some(1), offset: Some(258) };
        let cases: [&[(&str, &[u8])]; 3] = [
            &[("original.topic", b"pay"), ("original.partition", b"1"), ("original.offset", b"258")],
            &[
                ("kafka_dlt-original-topic", b"pay"),
                ("kafka_dlt-original-partition", &[0, 0, 0, 1]),
                ("kafka_dlt-original-offset", &[0, 0, 0, 0, 0, 0, 1, 2]),
            ],
            &[("dead-letter-topic", b"pay"), ("dead-letter-partition", b"1"), ("dead-letter-offset", b"258")],
        ];
        for headers in cases {
            assert_eq!(letter(headers).original(), Some(original.clone()), "{headers:?}");
        }
        assert_eq!(letter(&[]).original(), None);
    }

    #[test]
    fn both_forms_of_a_correlation_id_are_one() {
        let text = letter(&[("kafka_correlationId", b"00000102-0003-8004-8005-000000000006")]);
        let binary =
            letter(&[("kafka_correlationId", &[0, 0, 1, 2, 0, 3, 0x80, 4, 0x80, 5, 0, 0, 0, 0, 0, 6])]);
        assert_eq!(text.correlation_id(), binary.correlation_id());
        assert_eq!(letter(&[("correlation_id", b"\xff\x00")]).correlation_id().as_deref(), Some("ff00"));
    }

    #[test]
    fn a_worker_that_asks_for_another_attempt_has_not_done_it() {
        for (status, done) in
            [("0", true), ("9", true), ("8", false), ("10", false), ("14", false), ("x", true)]
        {
            let reply = letter(&[("failure.class", b"late-reply"), ("grpc-status", status.as_bytes())]);
            assert_eq!(LateReply::of(&reply).is_done(), done, "{status}");
        }
    }
}
