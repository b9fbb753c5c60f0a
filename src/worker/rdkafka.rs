//! The kit on librdkafka: a member of a consumer group.
//!
//! ```text
//! thread    poll ─► Inbox ─► engine          one thread polls, so that the group
//!   ▲               (bounded)  │             hears of it however long handlers take
//!   └── commits, the end ◄─────┘
//! ```
//!
//! When the inbox is full, the partitions are paused and polling goes on. In a
//! revocation the polling thread waits, inside of librdkafka's callback, until
//! the engine has finished or dropped what it had in hand of the partitions that
//! go; then it commits, and only then they go.
//!
//! TLS and SCRAM need OpenSSL, which is not built in: a worker that needs them
//! names `rdkafka` with its feature `ssl` or `ssl-vendored` beside this crate.

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use ::rdkafka::client::ClientContext;
use ::rdkafka::config::{ClientConfig, RDKafkaLogLevel};
use ::rdkafka::consumer::{BaseConsumer, CommitMode, Consumer, ConsumerContext, Rebalance};
use ::rdkafka::error::{KafkaError, KafkaResult, RDKafkaErrorCode};
use ::rdkafka::message::{BorrowedMessage, Header, Headers, Message, OwnedHeaders};
use ::rdkafka::producer::{FutureProducer, FutureRecord};
use ::rdkafka::topic_partition_list::{Offset, TopicPartitionList};
use async_trait::async_trait;
use bytes::Bytes;
use tokio::sync::{Notify, oneshot};

use super::driver::{
    Destination, Driver, DriverError, Event, Inbound, Outbox, OutboxError, PartitionId, Revocation,
};
use crate::supervisor::Supervisor;
use crate::transport::{HeaderName, Received, Record};

/// Records that were polled and wait for the engine.
const INBOX_RECORDS_MAX: usize = 500;
/// Their bytes; the last may go beyond it.
const INBOX_BYTES_MAX: usize = 16 << 20;
/// How long one poll, or one wait for room in the inbox, may take.
const POLL_WAIT: Duration = Duration::from_millis(100);
/// Beyond a revocation's limit: for the engine to drop what it has.
const REVOKE_GRACE: Duration = Duration::from_secs(1);
/// How long a reply waits for room in librdkafka's queue.
const QUEUE_WAIT: Duration = Duration::from_secs(5);

/// Which group, which topics, and how.
#[derive(Debug, Clone)]
pub struct Config {
    /// Brokers to ask first, `host:port,...`.
    pub bootstrap_servers: String,
    /// The consumer group.
    pub group: String,
    /// Request topics.
    pub topics: Vec<String>,
    /// How long requests in hand may take when their partition goes to another
    /// worker; then they are dropped and not committed. Well below
    /// `max.poll.interval.ms`.
    pub revoke_limit: Duration,
    /// More settings of librdkafka for the consumer, over the kit's own.
    pub consumer: Vec<(String, String)>,
    /// The same for the producer.
    pub producer: Vec<(String, String)>,
}

impl Config {
    /// With the defaults.
    pub fn new(bootstrap_servers: impl Into<String>, group: impl Into<String>, topics: &[&str]) -> Self {
        Self {
            bootstrap_servers: bootstrap_servers.into(),
            group: group.into(),
            topics: topics.iter().map(|&topic| topic.to_owned()).collect(),
            revoke_limit: Duration::from_secs(10),
            consumer: Vec::new(),
            producer: Vec::new(),
        }
    }

    fn client(&self, own: &[(&str, &str)], more: &[(String, String)]) -> ClientConfig {
        let mut client = ClientConfig::new();
        client.set("bootstrap.servers", &self.bootstrap_servers).set("socket.nagle.disable", "true");
        for (name, value) in own {
            client.set(*name, *value);
        }
        for (name, value) in more {
            client.set(name, value);
        }
        client
    }

    fn consumer(&self, inbox: &Arc<Inbox>) -> KafkaResult<BaseConsumer<Group>> {
        let own = [
            ("group.id", self.group.as_str()),
            ("partition.assignment.strategy", "cooperative-sticky"),
            ("auto.offset.reset", "earliest"),
            ("session.timeout.ms", "10000"),
            ("topic.metadata.refresh.interval.ms", "5000"),
            ("queued.max.messages.kbytes", "16384"),
        ];
        let mut client = self.client(&own, &self.consumer);
        // What is committed is the kit's to say.
        client.set("enable.auto.commit", "false").set("enable.auto.offset.store", "false");
        let group = Group { inbox: Arc::clone(inbox), revoke_limit: self.revoke_limit };
        let consumer: BaseConsumer<Group> = client.create_with_context(group)?;
        let topics: Vec<&str> = self.topics.iter().map(String::as_str).collect();
        consumer.subscribe(&topics)?;
        Ok(consumer)
    }

    fn producer(&self) -> KafkaResult<FutureProducer<Logs>> {
        let own = [
            ("enable.idempotence", "true"),
            ("linger.ms", "0"),
            ("delivery.timeout.ms", "30000"),
            ("partitioner", "murmur2_random"),
            ("message.max.bytes", "16777216"),
            // A reply topic that is gone belonged to a gateway that is gone.
            ("topic.metadata.propagation.max.ms", "2000"),
        ];
        self.client(&own, &self.producer).create_with_context(Logs)
    }
}

/// A member of a consumer group.
pub struct RdKafkaDriver {
    inbox: Arc<Inbox>,
    outbox: Arc<ProducerOutbox>,
    ended: Option<oneshot::Receiver<Result<(), DriverError>>>,
}

impl RdKafkaDriver {
    /// Joins the group. Topics that do not exist yet are waited for.
    pub fn start(config: &Config) -> Result<Self, DriverError> {
        let settings = |error: KafkaError| DriverError::Settings(error.to_string());
        let inbox = Arc::new(Inbox::default());
        let consumer = config.consumer(&inbox).map_err(settings)?;
        let producer = config.producer().map_err(settings)?;
        let (report, ended) = oneshot::channel();
        let polling = Polling { consumer, inbox: Arc::clone(&inbox), topics: HashMap::new(), paused: false };
        Supervisor::new()
            .spawn_thread("worker poll", move || {
                let guard = EndGuard(Arc::clone(&polling.inbox));
                let committed = polling.run();
                drop(guard);
                // The engine may have stopped waiting.
                drop(report.send(committed));
            })
            .map_err(|error| DriverError::Fatal(error.to_string()))?;
        Ok(Self { inbox, outbox: Arc::new(ProducerOutbox { producer }), ended: Some(ended) })
    }
}

impl Drop for RdKafkaDriver {
    fn drop(&mut self) {
        self.inbox.close(Vec::new());
    }
}

#[async_trait]
impl Driver for RdKafkaDriver {
    async fn next(&mut self, records_max: usize) -> Result<Event, DriverError> {
        loop {
            let mut arrived = std::pin::pin!(self.inbox.arrived.notified());
            arrived.as_mut().enable();
            if let Some(event) = self.inbox.take(records_max) {
                return event;
            }
            arrived.await;
        }
    }

    fn commit(&mut self, points: Vec<(PartitionId, i64)>) {
        self.inbox.state().commits.extend(points);
    }

    fn outbox(&self) -> Arc<dyn Outbox> {
        Arc::clone(&self.outbox) as _
    }

    async fn close(
        mut self: Box<Self>,
        points: Vec<(PartitionId, i64)>,
        limit: Duration,
    ) -> Result<(), DriverError> {
        self.inbox.close(points);
        let Some(ended) = self.ended.take() else { return Ok(()) };
        match tokio::time::timeout(limit, ended).await {
            Ok(Ok(committed)) => committed,
            Ok(Err(_)) => Err(DriverError::Fatal("the polling thread panicked".to_owned())),
            Err(_) => Err(DriverError::Commit(format!("not within {limit:?}"))),
        }
    }
}

/// What was polled and not yet taken, and what the engine wants done.
#[derive(Default)]
struct Inbox {
    state: Mutex<State>,
    arrived: Notify,
    taken: Condvar,
}

#[derive(Default)]
struct State {
    control: VecDeque<Event>,
    records: VecDeque<Inbound>,
    bytes: usize,
    commits: HashMap<PartitionId, i64>,
    failure: Option<DriverError>,
    /// The engine has ended; what is to be committed last.
    closing: Option<Vec<(PartitionId, i64)>>,
}

impl State {
    fn is_full(&self) -> bool {
        self.records.len() >= INBOX_RECORDS_MAX || self.bytes >= INBOX_BYTES_MAX
    }
}

impl Inbox {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn take(&self, records_max: usize) -> Option<Result<Event, DriverError>> {
        let mut state = self.state();
        if let Some(event) = state.control.pop_front() {
            return Some(Ok(event));
        }
        if let Some(error) = &state.failure {
            return Some(Err(error.clone()));
        }
        let count = records_max.min(state.records.len());
        if count == 0 {
            return None;
        }
        let records: Vec<Inbound> = state.records.drain(..count).collect();
        state.bytes -= records.iter().map(size_of).sum::<usize>();
        drop(state);
        self.taken.notify_one();
        Some(Ok(Event::Records(records)))
    }

    fn tell(&self, event: Event) {
        let mut state = self.state();
        if state.closing.is_none() {
            state.control.push_back(event);
        }
        drop(state);
        self.arrived.notify_one();
    }

    fn push(&self, record: Inbound) {
        let mut state = self.state();
        state.bytes += size_of(&record);
        state.records.push_back(record);
        drop(state);
        self.arrived.notify_one();
    }

    fn fail(&self, error: DriverError) {
        self.state().failure.get_or_insert(error);
        self.arrived.notify_one();
    }

    /// Nothing more is taken; a callback that waits for an answer goes on.
    fn close(&self, points: Vec<(PartitionId, i64)>) {
        let mut state = self.state();
        state.control.clear();
        state.closing.get_or_insert(points);
        drop(state);
        self.taken.notify_one();
    }

    /// Forgets what was polled of partitions that go, and what was to be
    /// committed: a commit of ours must not follow one of the next owner's.
    fn forget(&self, partitions: &[PartitionId]) {
        let mut state = self.state();
        state.records.retain(|record| !partitions.contains(&record.partition));
        state.bytes = state.records.iter().map(size_of).sum();
        state.commits.retain(|partition, _| !partitions.contains(partition));
    }

    /// Whether there is room, or is before long.
    fn wait_for_room(&self) -> bool {
        let full = |state: &mut State| state.is_full() && state.closing.is_none();
        let waited = self.taken.wait_timeout_while(self.state(), POLL_WAIT, full);
        let (state, _) = waited.unwrap_or_else(PoisonError::into_inner);
        !state.is_full()
    }
}

fn size_of(inbound: &Inbound) -> usize {
    let record = &inbound.record;
    let headers: usize = record.headers.iter().map(|(name, value)| name.len() + value.len()).sum();
    record.key.as_ref().map_or(0, Bytes::len) + record.value.as_ref().map_or(0, Bytes::len) + headers
}

/// Tells the engine when the thread has ended by a panic.
struct EndGuard(Arc<Inbox>);

impl Drop for EndGuard {
    fn drop(&mut self) {
        self.0.fail(DriverError::Fatal("the polling thread has ended".to_owned()));
    }
}

/// The thread that polls.
struct Polling {
    consumer: BaseConsumer<Group>,
    inbox: Arc<Inbox>,
    /// One name for each topic, not one for each record.
    topics: HashMap<String, Arc<str>>,
    paused: bool,
}

impl Polling {
    fn run(mut self) -> Result<(), DriverError> {
        loop {
            let room = self.inbox.wait_for_room();
            let mut state = self.inbox.state();
            let commits = std::mem::take(&mut state.commits);
            if let Some(points) = state.closing.clone() {
                drop(state);
                // Dropping the consumer leaves the group.
                return commit(&self.consumer, points, CommitMode::Sync)
                    .map_err(|error| DriverError::Commit(error.to_string()));
            }
            drop(state);
            if let Err(error) = commit(&self.consumer, commits, CommitMode::Async) {
                tracing::warn!(%error, "not committed; requests may come twice");
            }
            self.pause(!room);
            match self.consumer.poll(POLL_WAIT) {
                Some(Ok(message)) => {
                    let inbound = received(&mut self.topics, &message);
                    // Of a partition that was assigned while the others were paused.
                    self.paused = false;
                    self.inbox.push(inbound);
                }
                Some(Err(error @ KafkaError::MessageConsumptionFatal(_))) => {
                    self.inbox.fail(DriverError::Fatal(error.to_string()));
                }
                // Such as a topic that is not there yet: librdkafka tries again.
                Some(Err(error)) => tracing::warn!(%error, "worker cannot read"),
                None => {}
            }
        }
    }

    fn pause(&mut self, pause: bool) {
        if self.paused == pause {
            return;
        }
        let change = self.consumer.assignment().and_then(|assigned| match pause {
            true => self.consumer.pause(&assigned),
            false => self.consumer.resume(&assigned),
        });
        match change {
            Ok(()) => self.paused = pause,
            Err(error) => tracing::warn!(%error, pause, "partitions could not be paused or resumed"),
        }
    }
}

fn commit<C: ConsumerContext>(
    consumer: &BaseConsumer<C>,
    points: impl IntoIterator<Item = (PartitionId, i64)>,
    mode: CommitMode,
) -> KafkaResult<()> {
    let mut list = TopicPartitionList::new();
    for (place, offset) in points {
        list.add_partition_offset(&place.topic, place.partition, Offset::Offset(offset))?;
    }
    if list.count() == 0 { Ok(()) } else { consumer.commit(&list, mode) }
}

fn received(topics: &mut HashMap<String, Arc<str>>, message: &BorrowedMessage<'_>) -> Inbound {
    let topic = match topics.get(message.topic()) {
        Some(topic) => Arc::clone(topic),
        None => Arc::clone(topics.entry(message.topic().to_owned()).or_insert_with_key(|n| Arc::from(&**n))),
    };
    let headers = message.headers().map(|headers| {
        // A header without a value says nothing.
        let named = |header: Header<'_, &[u8]>| {
            Some((HeaderName::Owned(header.key.to_owned()), Bytes::copy_from_slice(header.value?)))
        };
        headers.iter().filter_map(named).collect()
    });
    let record = Received {
        offset: message.offset(),
        partition: message.partition(),
        timestamp_ms: message.timestamp().to_millis().unwrap_or(-1),
        key: message.key().map(Bytes::copy_from_slice),
        value: message.payload().map(Bytes::copy_from_slice),
        headers: headers.unwrap_or_default(),
    };
    Inbound { partition: PartitionId { topic, partition: message.partition() }, record }
}

/// What librdkafka calls, on the polling thread.
struct Group {
    inbox: Arc<Inbox>,
    revoke_limit: Duration,
}

impl ClientContext for Group {
    fn log(&self, level: RDKafkaLogLevel, facility: &str, text: &str) {
        log(level, facility, text);
    }

    fn error(&self, error: KafkaError, reason: &str) {
        tracing::warn!(%error, reason, "librdkafka");
    }
}

/// The producer's.
struct Logs;

impl ClientContext for Logs {
    fn log(&self, level: RDKafkaLogLevel, facility: &str, text: &str) {
        log(level, facility, text);
    }

    fn error(&self, error: KafkaError, reason: &str) {
        tracing::warn!(%error, reason, "librdkafka");
    }
}

fn log(level: RDKafkaLogLevel, facility: &str, text: &str) {
    match level {
        RDKafkaLogLevel::Debug => tracing::debug!(facility, text, "librdkafka"),
        RDKafkaLogLevel::Info | RDKafkaLogLevel::Notice => tracing::info!(facility, text, "librdkafka"),
        RDKafkaLogLevel::Warning => tracing::warn!(facility, text, "librdkafka"),
        _ => tracing::error!(facility, text, "librdkafka"),
    }
}

impl ConsumerContext for Group {
    fn pre_rebalance(&self, consumer: &BaseConsumer<Self>, rebalance: &Rebalance<'_>) {
        match rebalance {
            Rebalance::Assign(list) => self.inbox.tell(Event::Assigned(places(list))),
            Rebalance::Revoke(list) => self.revoke(consumer, places(list)),
            Rebalance::Error(error) => tracing::warn!(%error, "rebalance"),
        }
    }

    fn commit_callback(&self, result: KafkaResult<()>, _: &TopicPartitionList) {
        if let Err(error) = result {
            tracing::warn!(%error, "not committed; requests may come twice");
        }
    }
}

impl Group {
    fn revoke(&self, consumer: &BaseConsumer<Self>, partitions: Vec<PartitionId>) {
        if partitions.is_empty() {
            return;
        }
        // What was lost has another owner already: nothing to finish or commit.
        let lost = consumer.assignment_lost();
        let limit = if lost { Duration::ZERO } else { self.revoke_limit };
        self.inbox.forget(&partitions);
        let (revocation, answered) = Revocation::new(partitions, limit);
        self.inbox.tell(Event::Revoked(revocation));
        let Ok(points) = answered.recv_timeout(limit + REVOKE_GRACE) else { return };
        if !lost && let Err(error) = commit(consumer, points, CommitMode::Sync) {
            tracing::warn!(%error, "not committed before the partitions went; requests may come twice");
        }
    }
}

fn places(list: &TopicPartitionList) -> Vec<PartitionId> {
    let place = |(topic, partition): &(String, i32)| PartitionId {
        topic: Arc::from(topic.as_str()),
        partition: *partition,
    };
    list.to_topic_map().keys().map(place).collect()
}

struct ProducerOutbox {
    producer: FutureProducer<Logs>,
}

#[async_trait]
impl Outbox for ProducerOutbox {
    async fn send(&self, to: Destination, record: Record) -> Result<(), OutboxError> {
        let mut headers = OwnedHeaders::new_with_capacity(record.headers.len());
        for (name, value) in &record.headers {
            headers = headers.insert(Header { key: name, value: Some(&value[..]) });
        }
        let record = FutureRecord::<[u8], [u8]> {
            topic: &to.topic,
            partition: to.partition,
            payload: record.value.as_deref(),
            key: record.key.as_deref(),
            timestamp: None,
            headers: Some(headers),
        };
        // librdkafka's delivery.timeout.ms ends it.
        let sent = self.producer.send(record, QUEUE_WAIT).await;
        sent.map(drop).map_err(|(error, _)| match error.rdkafka_error_code() {
            Some(RDKafkaErrorCode::MessageSizeTooLarge) => OutboxError::TooLarge(error.to_string()),
            _ => OutboxError::Failed(error.to_string()),
        })
    }
}
