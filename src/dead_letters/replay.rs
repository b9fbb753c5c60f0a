//! Sending requests again: judged, prepared, sent once, and noted.
//!
//! A replay is the request as it was sent, under its own correlation id and
//! idempotency key, so that a worker can tell that it has seen it. What would
//! keep it from being worked on goes: the deadline that has passed, and the
//! address for a reply where nobody reads any more. Every replay leaves a
//! record of class `replayed` beside the letter, so that the next reader knows.

use std::collections::HashMap;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use tokio::time::Instant;

use super::DeadLetterTopic;
use super::letter::{Beside, Letter};
use crate::backoff::Backoff;
use crate::message::{
    CORRELATION_ID, GRPC_DEADLINE, OUTCOME, REPLAY, REPLAYED_BY, VALUE_LEFT_OUT, partition_of_key,
};
use crate::terms::{Compression, DeadLetterClass};
use crate::transport::{Cluster, ClusterError, HeaderName, PartitionWriter, ProduceError, Record};

/// Headers that a dead letter has and its request had not.
const OF_LETTERS: [&str; 4] = ["failure.", "original.", "kafka_dlt-", "dead-letter-"];
/// Where the worker frameworks have the reply topic, and what is of no use
/// without it.
const REPLY_TOPICS: [(&str, &str); 4] = [
    ("kafka_replyTopic", "kafka_replyPartition"),
    ("REPLY_TOPIC", "REPLY_PARTITION"),
    ("reply_to", "reply_to"),
    ("zilla:reply-to", "zilla:reply-to"),
];
/// Headers that a note of a replay takes over from the letter.
const OF_NOTES: [&str; 6] = [
    "kafka_correlationId",
    "REPLY_CORRELATION_ID",
    "correlation_id",
    "zilla:correlation-id",
    "antiphon-correlation-id",
    "grpc-method",
];
/// A request with this header is a stream, which a record without a value ends.
const STREAM: &str = "zilla:reply-to";
/// How long one request is tried for, as long as it is certainly not sent.
const SEND_TIMEOUT: Duration = Duration::from_secs(15);

/// Characters that the name of whoever sends requests again may have.
const OPERATOR_CHARS_MAX: usize = 64;

/// What is no name of an operator.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("a name has 1 to {OPERATOR_CHARS_MAX} characters, none of them a control character")]
pub struct OperatorError;

/// The name of whoever sends requests again, as it goes into a header.
pub fn operator(name: &str) -> Result<String, OperatorError> {
    let name = name.trim();
    let fits = !name.is_empty() && name.chars().count() <= OPERATOR_CHARS_MAX;
    if fits && !name.chars().any(char::is_control) { Ok(name.to_owned()) } else { Err(OperatorError) }
}

/// How requests are sent again.
#[derive(Debug, Clone, Default)]
pub struct ReplayOptions {
    /// Also what a worker has answered already.
    pub even_if_done: bool,
    /// Also what was replayed already.
    pub again: bool,
    /// A new deadline, so long after the moment of sending.
    pub deadline: Option<Duration>,
    /// How batches are compressed.
    pub compression: Option<Compression>,
    /// Who does it; goes into the request and into the note beside the letter.
    pub by: Option<String>,
}

/// Why a letter is not sent again.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// It is no request.
    #[error("it is no request")]
    NotARequest,
    /// A worker has answered it.
    #[error("it was carried out: {0} (--even-if-done sends it all the same)")]
    Done(String),
    /// It has been sent again before.
    #[error("it was replayed before, {0} times (--again sends it once more)")]
    Replayed(u32),
    /// It was too large to be kept.
    #[error("its value of {0} bytes was too large to be kept")]
    NoValue(String),
    /// It does not say where it was.
    #[error("it does not say what topic it was on (no original.topic)")]
    NoOriginal,
    /// Its topic is gone.
    #[error("its topic {0} does not exist any more")]
    TopicGone(String),
}

/// A request ready to be sent again.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Prepared {
    /// Where to.
    pub topic: String,
    /// Where to.
    pub partition: i32,
    /// What.
    pub record: Record,
    /// What goes behind it, in the same batch: the end of a request that is a
    /// stream.
    pub end: Option<Record>,
    /// How many times it will have been replayed.
    pub count: u32,
    /// What is different from the request as it was, for people.
    pub changes: Vec<String>,
}

/// What became of a request that was sent again.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Sent {
    /// It is in the log, at this offset where it is known.
    Sent(Option<i64>),
    /// It may be in the log; it was not repeated.
    Unknown(String),
    /// It is certainly not in the log.
    NotSent(String),
}

/// Sends requests again.
pub struct Replayer<'a> {
    cluster: &'a dyn Cluster,
    topics: &'a HashMap<String, i32>,
    options: ReplayOptions,
    writers: HashMap<(String, i32), Box<dyn PartitionWriter>>,
}

impl<'a> Replayer<'a> {
    /// Sends to these topics of the cluster.
    pub fn new(cluster: &'a dyn Cluster, topics: &'a HashMap<String, i32>, options: ReplayOptions) -> Self {
        Self { cluster, topics, options, writers: HashMap::new() }
    }

    /// Whether the letter may be sent again; looks at what stands beside it and
    /// not at its value, which need not be there.
    pub fn judge(&self, letter: &Letter, beside: &Beside) -> Result<(), Refusal> {
        if !letter.is_request() {
            return Err(Refusal::NotARequest);
        }
        if let Some(bytes) = letter.value_left_out() {
            return Err(Refusal::NoValue(bytes.into_owned()));
        }
        let original = letter.original().ok_or(Refusal::NoOriginal)?;
        if !self.topics.contains_key(&original.topic) {
            return Err(Refusal::TopicGone(original.topic));
        }
        if beside.replays > 0 && !self.options.again {
            return Err(Refusal::Replayed(beside.replays));
        }
        if self.options.even_if_done {
            return Ok(());
        }
        match &beside.late_reply {
            Some(late) if late.is_done() => {
                Err(Refusal::Done(format!("its late reply is at {}", late.place)))
            }
            None if letter.class() == Some(DeadLetterClass::UndecodableReply) => {
                Err(Refusal::Done("a worker has replied, in a way that could not be understood".to_owned()))
            }
            _ => Ok(()),
        }
    }

    /// The request that the letter holds, as it will be sent.
    pub fn prepare(&self, letter: &Letter, beside: &Beside) -> Result<Prepared, Refusal> {
        self.judge(letter, beside)?;
        let original = letter.original().ok_or(Refusal::NoOriginal)?;
        let partitions = self.topics.get(&original.topic).copied().unwrap_or_default();
        let mut changes = Vec::new();
        let mut headers = letter.record.headers.clone();
        headers.retain(|(name, _)| {
            !OF_LETTERS.iter().any(|prefix| name.starts_with(prefix))
                && ![OUTCOME, VALUE_LEFT_OUT, CORRELATION_ID].contains(&&**name)
        });
        self.renew_deadline(&mut headers, &mut changes);
        self.drop_dead_address(&mut headers, &mut changes);
        let before = letter.text(REPLAY).and_then(|text| text.parse::<u32>().ok()).unwrap_or_default();
        let count = before.saturating_add(beside.replays).saturating_add(1);
        headers.retain(|(name, _)| name != REPLAY && name != REPLAYED_BY);
        headers.push((HeaderName::Borrowed(REPLAY), Bytes::from(count.to_string())));
        headers.extend(self.signature());

        let key = letter.record.key.clone();
        let partition = match original.partition.filter(|partition| (0..partitions).contains(partition)) {
            Some(partition) => partition,
            None => {
                let by_key = key.as_ref().map_or(0, |key| partition_of_key(key, partitions));
                changes.push(format!("partition {by_key}, since its own is gone"));
                by_key
            }
        };
        let record = Record { key, value: letter.record.value.clone(), headers };
        let ends = letter.record.header(STREAM).is_some();
        let end = ends.then(|| Record { value: None, ..record.clone() });
        Ok(Prepared { topic: original.topic, partition, record, end, count, changes })
    }

    fn signature(&self) -> Option<(HeaderName, Bytes)> {
        let by = self.options.by.as_ref()?;
        Some((HeaderName::Borrowed(REPLAYED_BY), Bytes::from(by.clone())))
    }

    /// Its deadline has passed, or its caller has its status: either way it
    /// would keep workers from it.
    fn renew_deadline(&self, headers: &mut Vec<(HeaderName, Bytes)>, changes: &mut Vec<String>) {
        let before = headers.len();
        headers.retain(|(name, _)| name != GRPC_DEADLINE);
        if let Some(deadline) = self.options.deadline {
            let at = (since_1970() + deadline).as_millis();
            headers.push((HeaderName::Borrowed(GRPC_DEADLINE), Bytes::from(at.to_string())));
            changes.push("a new deadline".to_owned());
        } else if headers.len() < before {
            changes.push("no deadline".to_owned());
        }
    }

    fn drop_dead_address(&self, headers: &mut Vec<(HeaderName, Bytes)>, changes: &mut Vec<String>) {
        for (name, with) in REPLY_TOPICS {
            let Some((_, topic)) = headers.iter().find(|(found, _)| found == name) else { continue };
            let topic = String::from_utf8_lossy(topic).into_owned();
            if !self.topics.contains_key(&topic) {
                headers.retain(|(found, _)| found != name && found != with);
                changes.push(format!("no {name}, since {topic} is gone"));
            }
        }
    }

    /// Sends a request, again only as long as it is certainly not in the log.
    pub async fn send(&mut self, prepared: &Prepared) -> Sent {
        let records: Vec<Record> =
            [Some(&prepared.record), prepared.end.as_ref()].into_iter().flatten().cloned().collect();
        self.produce(&prepared.topic, prepared.partition, &records).await
    }

    /// Notes beside the letter that it was sent again.
    pub async fn note(
        &mut self,
        topic: &DeadLetterTopic,
        letter: &Letter,
        prepared: &Prepared,
        sent: &Sent,
    ) -> Sent {
        let (offset, outcome) = match sent {
            Sent::Sent(offset) => (*offset, "sent"),
            Sent::Unknown(_) => (None, "unknown"),
            Sent::NotSent(why) => return Sent::NotSent(why.clone()),
        };
        let taken = letter.record.headers.iter().filter(|(name, _)| OF_NOTES.contains(&&**name));
        let mut headers: Vec<(HeaderName, Bytes)> = taken.cloned().collect();
        let mut put = |name: &'static str, value: String| {
            headers.push((HeaderName::Borrowed(name), Bytes::from(value)));
        };
        put("original.topic", prepared.topic.clone());
        put("original.partition", prepared.partition.to_string());
        if let Some(offset) = offset {
            put("original.offset", offset.to_string());
        }
        put("failure.class", DeadLetterClass::Replayed.as_str().to_owned());
        put("failure.reason", format!("the request at {} was sent again", letter.place));
        put("failure.timestamp", since_1970().as_millis().to_string());
        put(OUTCOME, outcome.to_owned());
        put(REPLAY, prepared.count.to_string());
        headers.extend(self.signature());
        let record = Record { key: letter.record.key.clone(), value: None, headers };
        self.produce(&topic.name, letter.place.partition, &[record]).await
    }

    async fn produce(&mut self, topic: &str, partition: i32, records: &[Record]) -> Sent {
        let deadline = Instant::now() + SEND_TIMEOUT;
        let mut backoff = Backoff::default();
        loop {
            let error = match self.try_produce(topic, partition, records).await {
                Ok(offset) => return Sent::Sent(offset),
                Err(error) => error,
            };
            self.writers.remove(&(topic.to_owned(), partition));
            match error {
                ProduceError::NotSent(_) | ProduceError::NoSuchTopic if Instant::now() < deadline => {
                    backoff.pause().await;
                }
                ProduceError::Throttled { wait } => {
                    tokio::time::sleep(wait.min(SEND_TIMEOUT)).await;
                    return Sent::Unknown(ProduceError::Throttled { wait }.to_string());
                }
                ProduceError::Unknown(_) => return Sent::Unknown(error.to_string()),
                _ => return Sent::NotSent(error.to_string()),
            }
        }
    }

    async fn try_produce(
        &mut self,
        topic: &str,
        partition: i32,
        records: &[Record],
    ) -> Result<Option<i64>, ProduceError> {
        let place = (topic.to_owned(), partition);
        let writer = match self.writers.entry(place) {
            std::collections::hash_map::Entry::Occupied(writer) => writer.into_mut(),
            std::collections::hash_map::Entry::Vacant(empty) => {
                let connected = self.cluster.writer(topic, partition).await;
                empty.insert(connected.map_err(|error| match error {
                    ClusterError::NoSuchTopic(_) => ProduceError::NoSuchTopic,
                    ClusterError::Refused(cause) => ProduceError::Refused(cause),
                    other => ProduceError::NotSent(other.to_string()),
                })?)
            }
        };
        let compression = self.options.compression.unwrap_or(Compression::None);
        writer.produce(records, compression).await.map(|appended| appended.base_offset)
    }
}

fn since_1970() -> Duration {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default()
}
