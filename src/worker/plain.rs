//! A worker that takes bytes and belongs to no group: what the demo, the tests
//! and the benchmarks need.
//!
//! It reads every partition of its topics from their end on, in order, so there
//! must be one such worker for a topic. For anything else there is the kit.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;

use crate::backoff::Backoff;
use crate::limits;
use crate::message::{
    CONTENT_TYPE, GRPC_DEADLINE, GRPC_METHOD, LAST, PROTOBUF, SEQUENCE, WorkerStatus, reply_headers,
    trace_context_of,
};
use crate::supervisor::{Supervisor, Task};
use crate::terms::Compression;
use crate::transport::{
    Cluster, ClusterError, FetchError, HeaderName, PartitionReader, PartitionWriter, ProduceError, Received,
    Record,
};

/// gRPC's code of what is too large.
const RESOURCE_EXHAUSTED: u8 = 8;
/// How long a fetch waits for a request.
const FETCH_WAIT: Duration = Duration::from_millis(500);
/// Attempts at writing a batch of replies.
const REPLY_ATTEMPTS_MAX: u32 = 20;
/// Reply partitions whose connection is kept; beyond it all are closed.
const WRITERS_MAX: usize = 256;

/// One request, as a handler sees it.
#[derive(Debug)]
pub struct Call<'a> {
    /// Path of the method.
    pub method: &'a str,
    /// The message.
    pub message: Bytes,
    /// The record it came in.
    pub record: &'a Received,
}

/// Answers requests. Calls of one partition come one after the other.
#[async_trait]
pub trait Handler: Send + Sync + 'static {
    /// The reply's message, or the error in its place; `None` sends no reply.
    async fn handle(&self, call: Call<'_>) -> Option<Result<Bytes, WorkerStatus>>;

    /// The messages of a call that has several replies, for methods that answer
    /// so; `None`: the call has one, which `handle` makes.
    async fn handle_many(&self, _call: &Call<'_>) -> Option<Vec<Bytes>> {
        None
    }
}

/// A worker that runs until it is dropped.
#[derive(Debug)]
pub struct Worker {
    _partitions: Vec<Task>,
}

impl Worker {
    /// Starts a worker on `topics`, which must exist. Returns when every
    /// partition is positioned at its end: requests sent from now on are seen.
    pub async fn start(
        cluster: Arc<dyn Cluster>,
        topics: &[&str],
        handler: Arc<dyn Handler>,
        supervisor: &Supervisor,
    ) -> Result<Self, ClusterError> {
        let known: HashMap<_, _> =
            cluster.topics().await?.into_iter().map(|topic| (topic.name, topic.partitions)).collect();
        let mut partitions = Vec::new();
        for topic in topics {
            let count = *known.get(*topic).ok_or_else(|| ClusterError::NoSuchTopic((*topic).to_owned()))?;
            for partition in 0..count {
                let mut reader = cluster.reader(topic, partition).await?;
                let end = reader.end_offset().await;
                let next_offset = end.map_err(|error| ClusterError::Unreachable(error.to_string()))?;
                let work = PartitionWork {
                    topic: (*topic).to_owned(),
                    partition,
                    next_offset,
                    cluster: Arc::clone(&cluster),
                    handler: Arc::clone(&handler),
                    writers: HashMap::new(),
                };
                partitions.push(supervisor.spawn("worker partition", work.run(Some(reader))));
            }
        }
        Ok(Self { _partitions: partitions })
    }
}

type ReplyPlace = (String, i32);

struct PartitionWork {
    topic: String,
    partition: i32,
    next_offset: i64,
    cluster: Arc<dyn Cluster>,
    handler: Arc<dyn Handler>,
    writers: HashMap<ReplyPlace, Box<dyn PartitionWriter>>,
}

impl PartitionWork {
    async fn run(mut self, mut reader: Option<Box<dyn PartitionReader>>) {
        let mut backoff = Backoff::default();
        loop {
            let opened = match reader.take() {
                Some(reader) => Ok(reader),
                None => self.cluster.reader(&self.topic, self.partition).await,
            };
            match opened {
                Ok(reader) => {
                    let error = self.work(reader, &mut backoff).await;
                    tracing::warn!(topic = self.topic, partition = self.partition, %error, "worker interrupted");
                }
                Err(error) => {
                    tracing::warn!(topic = self.topic, partition = self.partition, %error, "worker cannot read");
                }
            }
            backoff.pause().await;
        }
    }

    async fn work(&mut self, mut reader: Box<dyn PartitionReader>, backoff: &mut Backoff) -> FetchError {
        loop {
            match reader.fetch(self.next_offset, FETCH_WAIT).await {
                Ok(fetched) => {
                    backoff.reset();
                    self.next_offset = fetched.next_offset;
                    self.handle(fetched.records).await;
                }
                Err(FetchError::OffsetOutOfRange) => match reader.start_offset().await {
                    Ok(start) => self.next_offset = start,
                    Err(error) => return error,
                },
                Err(FetchError::Undecodable(_)) => self.next_offset += 1,
                Err(error) => return error,
            }
        }
    }

    async fn handle(&mut self, requests: Vec<Received>) {
        let mut replies: HashMap<ReplyPlace, Vec<Record>> = HashMap::new();
        for request in &requests {
            for (result, more) in answers(&*self.handler, request).await {
                let Some((place, mut record)) = reply(request, result) else { continue };
                record.headers.extend(more);
                replies.entry(place).or_default().push(record);
            }
        }
        for (place, records) in replies {
            for batch in batches(records) {
                self.send(&place, &batch).await;
            }
        }
    }

    async fn send(&mut self, place: &ReplyPlace, records: &[Record]) {
        match self.write(place, records).await {
            Some(ProduceError::TooLarge) => {}
            _ => return,
        }
        // The others are not to blame for one that is too large, and its caller hears of it.
        for record in records {
            let one = std::slice::from_ref(record);
            if records.len() == 1 || matches!(self.write(place, one).await, Some(ProduceError::TooLarge)) {
                self.write(place, &[too_large(record)]).await;
            }
        }
    }

    /// Until it is written, or a few times; what stood in the way at last.
    async fn write(&mut self, place: &ReplyPlace, records: &[Record]) -> Option<ProduceError> {
        let mut backoff = Backoff::default();
        let mut failed = None;
        for _ in 0..REPLY_ATTEMPTS_MAX {
            let Err(error) = self.try_write(place, records).await else { return None };
            if matches!(error, ProduceError::TooLarge) {
                return Some(error);
            }
            tracing::warn!(topic = place.0, partition = place.1, %error, "replies not written");
            self.writers.remove(place);
            failed = Some(error);
            backoff.pause().await;
        }
        failed
    }

    async fn try_write(&mut self, place: &ReplyPlace, records: &[Record]) -> Result<(), ProduceError> {
        if self.writers.len() > WRITERS_MAX {
            self.writers.clear();
        }
        if !self.writers.contains_key(place) {
            let opened = self.cluster.writer(&place.0, place.1).await;
            let writer = opened.map_err(|error| ProduceError::NotSent(error.to_string()))?;
            self.writers.insert(place.clone(), writer);
        }
        match self.writers.get_mut(place) {
            Some(writer) => writer.produce(records, Compression::None).await.map(drop),
            None => Ok(()),
        }
    }
}

/// So many records together as a broker takes by default.
fn batches(records: Vec<Record>) -> Vec<Vec<Record>> {
    let (mut batches, mut bytes) = (vec![Vec::new()], 0);
    for record in records {
        let size = record.size();
        if bytes + size > limits::BATCH_BYTES_MAX && bytes > 0 {
            batches.push(Vec::new());
            bytes = 0;
        }
        bytes += size;
        if let Some(batch) = batches.last_mut() {
            batch.push(record);
        }
    }
    batches
}

/// What the caller gets in place of a reply that the broker does not take.
fn too_large(reply: &Record) -> Record {
    let message = "the reply is larger than the broker takes".to_owned();
    let status = WorkerStatus { code: RESOURCE_EXHAUSTED, message, details: Bytes::new() };
    let mut headers = reply.headers.clone();
    headers.extend(reply_headers(&status));
    Record { key: reply.key.clone(), value: Some(Bytes::new()), headers }
}

/// One of the replies to a request, and the headers that it has besides.
type Numbered = (Result<Bytes, WorkerStatus>, Vec<(HeaderName, Bytes)>);

/// What is sent for one request.
async fn answers(handler: &dyn Handler, request: &Received) -> Vec<Numbered> {
    if has_expired(request) {
        return Vec::new();
    }
    let method =
        request.header(GRPC_METHOD).and_then(|value| std::str::from_utf8(value).ok()).unwrap_or_default();
    // A tombstone is a caller's word that it has gone.
    let Some(message) = request.value.clone() else { return Vec::new() };
    let call = Call { method, message, record: request };
    match handler.handle_many(&call).await {
        Some(messages) => number(messages),
        None => handler.handle(call).await.into_iter().map(|result| (result, Vec::new())).collect(),
    }
}

/// Replies in their order, the last one marked. One at least: the end is said
/// with a message.
fn number(messages: Vec<Bytes>) -> Vec<Numbered> {
    let count = messages.len();
    let numbered = messages.into_iter().zip(1..).map(|(message, number)| {
        let mut headers = vec![(HeaderName::Borrowed(SEQUENCE), Bytes::from(number.to_string()))];
        if number == count {
            headers.push((HeaderName::Borrowed(LAST), Bytes::from_static(b"true")));
        }
        (Ok(message), headers)
    });
    numbered.collect()
}

/// Nobody waits any more: working on it would only delay the others.
fn has_expired(request: &Received) -> bool {
    let deadline = request
        .header(GRPC_DEADLINE)
        .and_then(|value| std::str::from_utf8(value).ok())
        .and_then(|text| text.parse::<u128>().ok());
    let now =
        std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default().as_millis();
    deadline.is_some_and(|deadline| deadline < now)
}

/// Where the reply goes and what it is; `None` when nobody asked for one.
fn reply(request: &Received, result: Result<Bytes, WorkerStatus>) -> Option<(ReplyPlace, Record)> {
    let topic = std::str::from_utf8(request.header("kafka_replyTopic")?).ok()?.to_owned();
    let partition = request
        .header("kafka_replyPartition")
        .and_then(|value| <[u8; 4]>::try_from(&value[..]).ok())
        .map_or(0, i32::from_be_bytes);
    let mut headers = vec![
        (HeaderName::Borrowed("kafka_correlationId"), request.header("kafka_correlationId")?.clone()),
        (HeaderName::Borrowed(CONTENT_TYPE), Bytes::from_static(PROTOBUF.as_bytes())),
    ];
    headers.extend(trace_context_of(request));
    let value = match result {
        Ok(message) => message,
        Err(status) => {
            headers.extend(reply_headers(&status));
            Bytes::new()
        }
    };
    Some(((topic, partition), Record { key: request.key.clone(), value: Some(value), headers }))
}
