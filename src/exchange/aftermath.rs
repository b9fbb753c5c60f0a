//! What is left of a call once its caller has its status: a dead letter, a late
//! reply beside it, a word to the worker that nobody waits any more.
//!
//! Dead letters go to the topic that the route names (default: the request
//! topic and `.DLQ`), into the request's own partition as far as there is one.
//! They are the request as it was sent, key, value and headers, and these
//! headers besides, all UTF-8:
//!
//! | header | value |
//! |---|---|
//! | `original.topic`, `original.partition`, `original.offset` | where the request is; the offset where it is known |
//! | `failure.class` | `timeout`, `undecodable-reply`, `rejected`, or `late-reply` |
//! | `failure.reason` | for people |
//! | `failure.timestamp` | milliseconds since 1970 |
//! | `antiphon-outcome` | `not-sent`, `sent` or `unknown` |
//! | `antiphon-correlation-id` | the id, where the dialect is `custom` |
//! | `antiphon-value-left-out` | bytes of the value, where it is left out because the broker takes no record as large |
//!
//! A `late-reply` record is the reply, under the key of the request; its
//! `original.*` say where on the reply topic it was found. Request and late
//! reply have the correlation id in common.

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use tokio::time::Instant;

use super::budget::BytesHeld;
use super::failure::Trace;
use super::instance::Instance;
use super::lane::{Aftermath, Owner, Parcel};
use super::lanes::Lanes;
use crate::correlation::CorrelationId;
use crate::limits;
use crate::message::{self, CANCEL, CORRELATION_ID, GRPC_METHOD};
use crate::metrics::DeadLetterLabels;
use crate::route::Route;
use crate::terms::{Compression, DeadLetterOn};
use crate::transport::{HeaderName, Received, Record};

/// Dead letters whose replies may still come; the oldest are forgotten first.
#[derive(Debug, Default)]
pub(super) struct Remembered {
    inner: Mutex<(HashMap<CorrelationId, Note>, VecDeque<CorrelationId>)>,
}

/// Where a dead letter went.
#[derive(Debug, Clone)]
struct Note {
    topic: Arc<str>,
    partition: i32,
    key: Option<Bytes>,
}

impl Remembered {
    fn remember(&self, id: CorrelationId, note: Note) {
        let mut inner = self.inner.lock().unwrap_or_else(PoisonError::into_inner);
        let (notes, order) = &mut *inner;
        if notes.insert(id, note).is_none() {
            order.push_back(id);
        }
        while order.len() > limits::DEAD_LETTERS_REMEMBERED_MAX {
            if let Some(oldest) = order.pop_front() {
                notes.remove(&oldest);
            }
        }
    }

    /// Forgets it: of several late replies the first is recorded.
    fn recall(&self, id: CorrelationId) -> Option<Note> {
        let mut inner = self.inner.lock().unwrap_or_else(PoisonError::into_inner);
        inner.0.remove(&id)
    }
}

/// Writes what is left of calls, through the shard's lanes.
#[derive(Clone)]
pub(super) struct Scribe {
    pub(super) instance: Arc<Instance>,
    pub(super) lanes: Arc<Lanes>,
}

impl Scribe {
    /// The request of a call that failed, for the operators.
    pub(super) fn dead_letter(
        &self,
        route: &Route,
        class: DeadLetterOn,
        reason: &str,
        trace: &Trace,
        place: i32,
        (mut request, held): (Record, Arc<BytesHeld>),
    ) {
        let Some(id) = trace.id else { return };
        let topic = &route.dead_letter_topic;
        let partition = self.partition_like(topic, place);
        request.headers.extend(place_headers(&trace.topic, place, trace.at.and_then(|at| at.offset)));
        request.headers.extend(failure_headers(class.as_str(), reason));
        request.headers.push(header("antiphon-outcome", trace.outcome.as_str()));
        name_the_call(&mut request.headers, id);
        // Copied: a part of the message would keep all of it alive.
        let key = request.key.as_deref().map(Bytes::copy_from_slice);
        let note = Note { topic: Arc::clone(topic), partition, key };
        self.instance.dead_letters.remember(id, note);
        self.count(class.as_str());
        self.write(topic, partition, "dead letter", id, request, Some(held));
    }

    /// A reply that came after its call had ended: beside the dead letter,
    /// where there is one.
    pub(super) fn late_reply(&self, id: CorrelationId, partition: i32, reply: Received) {
        let Some(note) = self.instance.dead_letters.recall(id) else { return };
        let mut headers = reply.headers;
        headers.extend(place_headers(self.instance.reply_topic(), partition, Some(reply.offset)));
        headers.extend(failure_headers("late-reply", "the reply came after the call had ended"));
        name_the_call(&mut headers, id);
        self.count("late-reply");
        let record = Record { key: note.key, value: reply.value, headers };
        self.write(&note.topic, note.partition, "late reply", id, record, None);
    }

    /// Tells the worker that nobody waits any more: the request's key and
    /// correlation id, no value, behind the request in its own partition.
    pub(super) fn cancel(&self, route: &Route, id: CorrelationId, partition: i32, key: Option<Bytes>) {
        let mut headers = vec![
            header(CANCEL, "1"),
            (HeaderName::Borrowed(GRPC_METHOD), Bytes::copy_from_slice(route.path.as_bytes())),
        ];
        let path = Bytes::copy_from_slice(route.path.as_bytes());
        route.dialect.write_request(&path, id, None, &mut headers);
        let record = Record { key, value: None, headers };
        self.write(&route.request_topic, partition, "cancel record", id, record, None);
    }

    fn write(
        &self,
        topic: &Arc<str>,
        partition: i32,
        what: &'static str,
        about: CorrelationId,
        record: Record,
        held: Option<Arc<BytesHeld>>,
    ) {
        let rest = Aftermath {
            about,
            what,
            expires: Instant::now() + Duration::from_millis(limits::AFTERMATH_TIMEOUT_MS),
            _held: self.instance.hold(),
        };
        let parcel = Parcel {
            owner: Owner::Aftermath(rest),
            held,
            record,
            behind: None,
            compression: Compression::None,
            // Twice does no harm here, never would.
            repeatable: true,
            maybe_sent: false,
        };
        if self.lanes.send(topic, partition, parcel).is_err() {
            self.instance.metrics.aftermath_lost.inc();
            tracing::error!(%topic, partition, correlation_id = %about, what, "record lost: its lane is full");
        }
    }

    fn partition_like(&self, topic: &str, partition: i32) -> i32 {
        match self.instance.directory.partitions(topic) {
            Some(partitions) if partitions > 0 => partition % partitions,
            _ => 0,
        }
    }

    fn count(&self, class: &'static str) {
        self.instance.metrics.dead_letters.get_or_create(&DeadLetterLabels { class }).inc();
    }
}

fn header(name: &'static str, value: &str) -> (HeaderName, Bytes) {
    (HeaderName::Borrowed(name), Bytes::copy_from_slice(value.as_bytes()))
}

/// In a dialect of the configuration's, only its reader knows which header has
/// the correlation id; those who read dead letters do not.
fn name_the_call(headers: &mut Vec<(HeaderName, Bytes)>, id: CorrelationId) {
    if !message::dialect::names_a_call(headers) {
        headers.push((HeaderName::Borrowed(CORRELATION_ID), Bytes::copy_from_slice(&id.to_text())));
    }
}

fn place_headers(topic: &str, partition: i32, offset: Option<i64>) -> Vec<(HeaderName, Bytes)> {
    let mut headers =
        vec![header("original.topic", topic), header("original.partition", &partition.to_string())];
    if let Some(offset) = offset {
        headers.push(header("original.offset", &offset.to_string()));
    }
    headers
}

fn failure_headers(class: &str, reason: &str) -> [(HeaderName, Bytes); 3] {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_millis();
    [
        header("failure.class", class),
        header("failure.reason", reason),
        header("failure.timestamp", &now.to_string()),
    ]
}
