//! A Kafka cluster in memory, which keeps the contract of the `transport`
//! traits and is as unkind as its plan.
//!
//! What it is strict about, too: a writer or reader that has failed must not be
//! used again, where the traits say so, and nobody may trim replies that have
//! not been fetched.

mod clients;

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use antiphon::correlation::CorrelationId;
use antiphon::message::{CANCEL, IDEMPOTENCY_KEY};
use antiphon::transport::{
    Appended, ClusterError, FetchError, Fetched, HeaderName, ProduceError, Received, Record,
};
use bytes::Bytes;
use fastrand::Rng;
use prost::Message as _;
use tokio::sync::Notify;
use tokio::time::{Instant, sleep, sleep_until};

use crate::faults::{Plan, Trouble, Window};
use crate::history::{Append, Attempt, Beside, History, Kind, RefusedConnect, ReplyEntry};
use crate::{invariants, messages};
use clients::Place;

/// Topics of the simulation's proto file, with their partitions.
pub(crate) const REQUEST_TOPICS: [(&str, i32); 2] = [("keyed", 3), ("spread", 2)];
/// Where dead letters go, by the same file.
pub(crate) const LETTER_TOPICS: [(&str, i32); 2] = [("keyed.DLQ", 2), ("letters", 1)];
/// The reply topic.
pub(crate) const REPLIES: &str = "replies.sim";
/// Records with this key are refused.
pub(crate) const FORBIDDEN_KEY: &[u8] = b"forbidden";

/// All topics but that of the replies.
pub(crate) fn topics() -> impl Iterator<Item = (&'static str, i32)> + Clone {
    REQUEST_TOPICS.into_iter().chain(LETTER_TOPICS)
}

const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
const PRODUCE_TIMEOUT_MS: u64 = 10_000;
const CUT_NOTICED_MS_MAX: u64 = 50;
const LANDS_LATER_MS_MAX: u64 = 15_000;
const THROTTLE_MS_MAX: u64 = 3_000;
const SLOW_FETCH_MS_MAX: u64 = 4_000;
const FETCH_RECORDS_MAX: usize = 20;

#[derive(Clone)]
pub(crate) struct SimCluster(Arc<Shared>);

struct Shared {
    state: Mutex<State>,
    /// Something was appended, created or deleted.
    changed: Notify,
}

/// All that the cluster is, and the history that everybody writes to.
pub(crate) struct State {
    started: Instant,
    rng: Rng,
    plan: Plan,
    topics: BTreeMap<String, TopicState>,
    incarnations: u64,
    /// Offsets of the reply topic that were asked for last, by partition.
    asked: BTreeMap<i32, i64>,
    pub(crate) history: History,
}

struct TopicState {
    incarnation: u64,
    partitions: Vec<Partition>,
}

#[derive(Default)]
struct Partition {
    index: i32,
    start: i64,
    records: Vec<Stored>,
    leader: u64,
    /// Everything before it has been handed to a reader.
    fetched_to: i64,
}

enum Stored {
    Record(Received),
    Poison,
}

/// What will become of a produce.
enum Fate {
    Appended,
    Refused(ProduceError),
    /// `lands`: when the batch is appended, if ever.
    Unknown {
        answer: Duration,
        lands: Option<Duration>,
    },
    Throttled {
        wait: Duration,
        appended: bool,
    },
}

impl SimCluster {
    pub(crate) fn new(plan: Plan, mut rng: Rng) -> Self {
        let rng = rng.fork();
        let state = State {
            started: Instant::now(),
            rng,
            plan,
            topics: BTreeMap::new(),
            incarnations: 0,
            asked: BTreeMap::new(),
            history: History::default(),
        };
        let cluster = Self(Arc::new(Shared { state: Mutex::new(state), changed: Notify::new() }));
        for (topic, partitions) in topics() {
            cluster.create(topic, partitions);
        }
        cluster
    }

    pub(crate) fn state(&self) -> MutexGuard<'_, State> {
        self.0.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn now(&self) -> Duration {
        self.state().now()
    }

    /// Begins to follow a plan.
    pub(crate) fn follow(&self, plan: Plan) {
        self.state().plan = plan;
    }

    /// Ends all noise; windows end by themselves.
    pub(crate) fn calm_down(&self) {
        let mut state = self.state();
        let Plan { windows, circuit, idempotency, .. } = state.plan.clone();
        state.plan = Plan { windows, circuit, idempotency, ..Plan::calm() };
    }

    pub(crate) fn create(&self, topic: &str, partitions: i32) -> bool {
        let mut state = self.state();
        if state.topics.contains_key(topic) {
            return false;
        }
        state.incarnations += 1;
        let incarnation = state.incarnations;
        let partitions = (0..partitions).map(|index| Partition { index, ..Partition::default() }).collect();
        state.topics.insert(topic.to_owned(), TopicState { incarnation, partitions });
        drop(state);
        self.0.changed.notify_waiters();
        true
    }

    pub(crate) fn delete(&self, topic: &str) -> bool {
        let mut state = self.state();
        let now = state.now();
        let Some(gone) = state.topics.remove(topic) else { return false };
        if topic == REPLIES {
            state.lose_replies(now, |reply| reply.incarnation == gone.incarnation);
        }
        drop(state);
        self.0.changed.notify_waiters();
        true
    }

    fn move_leaders(&self, topic: &str) {
        if let Some(topic) = self.state().topics.get_mut(topic) {
            topic.partitions.iter_mut().for_each(|partition| partition.leader += 1);
        }
    }

    /// Retention: everything goes, read or not.
    fn expire(&self, topic: &str) {
        let mut state = self.state();
        let now = state.now();
        let Some(found) = state.topics.get_mut(topic) else { return };
        let incarnation = found.incarnation;
        for partition in &mut found.partitions {
            partition.start = partition.end();
            partition.fetched_to = partition.fetched_to.max(partition.start);
        }
        if topic == REPLIES {
            state.lose_replies(now, |reply| reply.incarnation == incarnation);
        }
    }

    /// Does what a window does to the topic itself. Ends with the window.
    pub(crate) async fn afflict(self, window: Window, partitions: i32) {
        let (started, topic) = (self.state().started, window.topic);
        sleep_until(started + window.time.start).await;
        match window.trouble {
            Trouble::Deleted => {
                self.delete(topic);
                sleep_until(started + window.time.end).await;
                self.create(topic, partitions);
            }
            Trouble::Recreated => {
                self.delete(topic);
                self.create(topic, partitions);
            }
            // Then workers can read what it had taken.
            Trouble::BrokerDies => {
                sleep_until(started + window.time.end).await;
                self.0.changed.notify_waiters();
            }
            Trouble::LeaderMoves => self.move_leaders(topic),
            Trouble::Forbidden if window.time.start.as_millis().is_multiple_of(2) => self.move_leaders(topic),
            Trouble::Trimmed => self.expire(topic),
            _ => {}
        }
    }

    /// Waits for the next change.
    pub(crate) async fn changed(&self) {
        self.0.changed.notified().await;
    }

    /// Requests of a partition from `next` on, which is moved behind them.
    pub(crate) fn requests(&self, topic: &str, partition: i32, next: &mut (u64, i64)) -> Vec<Received> {
        let state = self.state();
        if state.has(topic, Trouble::BrokerDies) {
            return Vec::new();
        }
        let Some(found) = state.topics.get(topic) else { return Vec::new() };
        if next.0 != found.incarnation {
            *next = (found.incarnation, 0);
        }
        let Some(partition) = found.partitions.get(partition as usize) else { return Vec::new() };
        next.1 = next.1.max(partition.start);
        let unread = &partition.records[next.1 as usize..];
        next.1 = partition.end();
        let records = unread.iter().filter_map(|stored| match stored {
            Stored::Record(record) => Some(record.clone()),
            Stored::Poison => None,
        });
        records.collect()
    }

    /// How long workers of this topic do not answer, if they do not.
    pub(crate) fn silent(&self, topic: &str) -> Option<Duration> {
        self.state().left_of(topic, Trouble::Silent)
    }

    /// A worker's record on the reply topic; `ends`: the call that it ends.
    pub(crate) fn reply(&self, partition: i32, record: Record, ends: Option<(usize, CorrelationId)>) {
        let mut state = self.state();
        let (at, poison) = (state.now(), state.plan.noise.poison);
        let poison = state.roll(poison);
        let Some(topic) = state.topics.get_mut(REPLIES) else { return };
        let incarnation = topic.incarnation;
        let Some(found) = topic.partitions.get_mut(partition as usize) else { return };
        if poison {
            found.records.push(Stored::Poison);
        }
        let offset = found.append(at, &record);
        if let Some((call, id)) = ends {
            let status = record.headers.iter().find(|(name, _)| name == "grpc-status");
            let asks_again = status.is_some_and(|(_, code)| [&b"8"[..], b"10", b"14"].contains(&&code[..]));
            let entry = ReplyEntry { call, id, asks_again, at, incarnation, partition, offset, lost: None };
            state.history.replies.push(entry);
        }
        drop(state);
        self.0.changed.notify_waiters();
    }

    fn append(&self, topic: &str, partition: i32, records: &[Record], attempt: usize) -> Option<i64> {
        let mut guard = self.state();
        let state = &mut *guard;
        let now = state.now();
        let found = state.topics.get_mut(topic)?.partitions.get_mut(partition as usize)?;
        let base = found.end();
        for record in records {
            let offset = found.append(now, record);
            let late = state.history.attempts[attempt].to.is_some();
            let topic = topic.to_owned();
            match identify(&topic, record) {
                Some(Item::Request(call, id)) => {
                    let idempotency_key = header(record, IDEMPOTENCY_KEY).cloned();
                    let append = Append { call, id, topic, partition, offset, late, idempotency_key };
                    state.history.appends.push(append);
                }
                Some(Item::Beside(kind, id)) => {
                    let (record, behind) = (record.clone(), state.history.appends.len());
                    state.history.beside.push(Beside { kind, id, topic, partition, record, behind, late });
                }
                None => {}
            }
        }
        drop(guard);
        self.0.changed.notify_waiters();
        Some(base)
    }

    async fn latency(&self) {
        let latency = {
            let mut state = self.state();
            let max = state.plan.latency_max;
            state.millis(max.as_millis() as u64)
        };
        sleep(latency).await;
    }

    async fn connect(&self, topic: &str, partition: i32) -> Result<u64, ClusterError> {
        let from = self.now();
        self.latency().await;
        let hang = self.state().left_of(topic, Trouble::ConnectHangs);
        if let Some(left) = hang {
            sleep(left.min(CONNECT_TIMEOUT)).await;
            return Err(ClusterError::Unreachable("no answer".to_owned()));
        }
        let mut state = self.state();
        let noise = state.plan.noise.connect;
        let refused = [Trouble::ConnectRefused, Trouble::BrokerDies].iter().any(|t| state.has(topic, *t));
        if refused || state.roll(noise) {
            return Err(ClusterError::Unreachable("connection refused".to_owned()));
        }
        if state.has(topic, Trouble::Forbidden) {
            if topic != REPLIES {
                let refused = RefusedConnect { topic: topic.to_owned(), time: from..=state.now() };
                state.history.refused_connects.push(refused);
            }
            return Err(ClusterError::Refused("not authorised".to_owned()));
        }
        state
            .partition(topic, partition)
            .map(|partition| partition.leader)
            .ok_or_else(|| ClusterError::NoSuchTopic(topic.to_owned()))
    }
}

/// What a record on its way from the gateway is.
enum Item {
    /// The request of a call, under an id.
    Request(usize, CorrelationId),
    /// Something else about the call with this id.
    Beside(Kind, CorrelationId),
}

/// `None` for what the gateway should not have sent, and on the reply topic.
fn identify(topic: &str, record: &Record) -> Option<Item> {
    if topic == REPLIES {
        return None;
    }
    let id = CorrelationId::parse(header(record, "kafka_correlationId")?)?;
    if REQUEST_TOPICS.iter().any(|(known, _)| *known == topic) {
        if header(record, CANCEL).is_some() {
            return Some(Item::Beside(Kind::Cancel, id));
        }
        let call = messages::Request::decode(record.value.clone()?).ok()?.call;
        return Some(Item::Request(call as usize, id));
    }
    let class = header(record, "failure.class")?;
    let kind = if class == "late-reply" { Kind::LateReply } else { Kind::DeadLetter };
    Some(Item::Beside(kind, id))
}

pub(crate) fn header<'a>(record: &'a Record, name: &str) -> Option<&'a Bytes> {
    record.headers.iter().find(|(known, _)| known == name).map(|(_, value)| value)
}

impl State {
    pub(crate) fn now(&self) -> Duration {
        self.started.elapsed()
    }

    pub(crate) const fn plan(&self) -> &Plan {
        &self.plan
    }

    fn has(&self, topic: &str, trouble: Trouble) -> bool {
        self.left_of(topic, trouble).is_some()
    }

    /// How long this trouble goes on, if it is there.
    fn left_of(&self, topic: &str, trouble: Trouble) -> Option<Duration> {
        let now = self.now();
        self.plan.until(now, topic, trouble).map(|until| until - now)
    }

    /// Judges all that has happened.
    pub(crate) fn judge(&mut self) {
        self.history.end = self.now();
        invariants::check(&mut self.history, &self.plan);
    }

    fn roll(&mut self, percent: u8) -> bool {
        percent > 0 && self.rng.u8(..100) < percent
    }

    /// 1 to `max` milliseconds.
    fn millis(&mut self, max: u64) -> Duration {
        Duration::from_millis(self.rng.u64(1..=max.max(1)))
    }

    /// The partition, unless the broker knows nothing of it.
    fn partition(&mut self, topic: &str, partition: i32) -> Option<&mut Partition> {
        if self.has(topic, Trouble::Denied) {
            return None;
        }
        self.topics.get_mut(topic)?.partitions.get_mut(partition as usize)
    }

    fn lose_replies(&mut self, now: Duration, which: impl Fn(&ReplyEntry) -> bool) {
        for reply in self.history.replies.iter_mut().filter(|reply| reply.lost.is_none() && which(reply)) {
            reply.lost = Some(now);
        }
    }

    fn fate(&mut self, topic: &str, partition: i32, leader: u64, records: &[Record]) -> Fate {
        let not_sent = |why: &str| Fate::Refused(ProduceError::NotSent(why.to_owned()));
        let noise = self.plan.noise;
        match self.partition(topic, partition) {
            None => return Fate::Refused(ProduceError::NoSuchTopic),
            Some(partition) if partition.leader != leader => return not_sent("not the leader"),
            Some(_) => {}
        }
        if self.has(topic, Trouble::Forbidden) {
            return Fate::Refused(ProduceError::Refused("not authorised".to_owned()));
        }
        if records.iter().map(Record::size).sum::<usize>() > self.plan.batch_bytes_max {
            return Fate::Refused(ProduceError::TooLarge);
        }
        if records.iter().any(|record| record.key.as_deref() == Some(FORBIDDEN_KEY)) {
            return Fate::Refused(ProduceError::Refused("invalid record".to_owned()));
        }
        if self.has(topic, Trouble::NotSent) || self.roll(noise.not_sent) {
            return not_sent("connection lost before anything was sent");
        }
        // A connection that is cut is noticed at once, one that is silent is not.
        let cut = self.rng.bool();
        let answer = self.millis(if cut { CUT_NOTICED_MS_MAX } else { PRODUCE_TIMEOUT_MS });
        if self.has(topic, Trouble::BrokerDies) {
            let answer = self.millis(CUT_NOTICED_MS_MAX);
            return Fate::Unknown { answer, lands: Some(Duration::ZERO) };
        }
        if self.has(topic, Trouble::Vanishes) || self.roll(noise.vanishes) {
            return Fate::Unknown { answer, lands: None };
        }
        if self.has(topic, Trouble::AnswerLost) || self.roll(noise.answer_lost) {
            return Fate::Unknown { answer, lands: Some(Duration::ZERO) };
        }
        if self.has(topic, Trouble::Delayed) || self.roll(noise.delayed) {
            return Fate::Unknown { answer, lands: Some(self.millis(LANDS_LATER_MS_MAX)) };
        }
        if self.has(topic, Trouble::Throttled) || self.roll(noise.throttled) {
            return Fate::Throttled { wait: self.millis(THROTTLE_MS_MAX), appended: !self.roll(10) };
        }
        Fate::Appended
    }

    fn begin_attempt(&mut self, topic: &str, records: &[Record]) -> usize {
        let (mut calls, mut ids, mut beside) = (Vec::new(), Vec::new(), Vec::new());
        for item in records.iter().map(|record| identify(topic, record)) {
            match item {
                Some(Item::Request(call, id)) => {
                    calls.push(call);
                    ids.push(id);
                }
                Some(Item::Beside(kind, id)) => beside.push((kind, id)),
                None if topic == REPLIES => {}
                None => {
                    self.history.violated(format!("a record was sent to {topic} that has no place there"))
                }
            }
        }
        let from = self.now();
        let attempt = Attempt { calls, ids, beside, from, to: None, certain: false, throttled: false };
        self.history.attempts.push(attempt);
        self.history.attempts.len() - 1
    }

    fn end_attempt(&mut self, attempt: usize, result: &Result<Appended, ProduceError>) {
        let now = self.now();
        let attempt = &mut self.history.attempts[attempt];
        attempt.to = Some(now);
        attempt.throttled = matches!(result, Err(ProduceError::Throttled { .. }));
        attempt.certain = !matches!(result, Err(ProduceError::Unknown(_) | ProduceError::Throttled { .. }));
    }

    /// What a fetch brings; `None` when there is nothing yet.
    fn fetch(&mut self, at: &Place, offset: i64) -> Result<Option<Fetched>, FetchError> {
        let unreachable = |why: &str| Err(FetchError::Unreachable(why.to_owned()));
        let noise = self.plan.noise.fetch;
        let fails = [Trouble::FetchFails, Trouble::BrokerDies].iter().any(|t| self.has(&at.topic, *t));
        if fails || self.roll(noise) {
            return unreachable("connection lost");
        }
        if self.has(&at.topic, Trouble::Forbidden) {
            return Err(FetchError::Refused("not authorised".to_owned()));
        }
        let (records_max, now) = (self.rng.usize(1..=FETCH_RECORDS_MAX), self.now());
        let Some(partition) = self.partition(&at.topic, at.partition) else {
            return Err(FetchError::NoSuchTopic);
        };
        if partition.leader != at.leader {
            return unreachable("not the leader");
        }
        if !(partition.start..=partition.end()).contains(&offset) {
            return Err(FetchError::OffsetOutOfRange);
        }
        let stored = &partition.records[offset as usize..];
        match stored.first() {
            None => return Ok(None),
            Some(Stored::Poison) => {
                partition.fetched_to = partition.fetched_to.max(offset + 1);
                self.asked.insert(at.partition, offset + 1);
                return Err(FetchError::Undecodable("null header value".to_owned()));
            }
            Some(Stored::Record(_)) => {}
        }
        let records = stored.iter().take(records_max).map_while(|stored| match stored {
            Stored::Record(record) => Some(record.clone()),
            Stored::Poison => None,
        });
        let records: Vec<Received> = records.collect();
        let next_offset = offset + records.len() as i64;
        let (skipped_from, high_watermark) = (partition.fetched_to, partition.end());
        partition.fetched_to = partition.fetched_to.max(next_offset);
        self.outgrown(now, at, skipped_from, offset);
        self.asked.insert(at.partition, next_offset);
        Ok(Some(Fetched { records, next_offset, high_watermark }))
    }

    /// Replies that nobody has read may go only where their reader would pass
    /// over them.
    fn trimmed_unread(&mut self, at: &Place, from: i64, to: i64) {
        if self.goes_on_at(at, to) {
            self.outgrown(self.now(), at, from, to);
        } else {
            self.history.violated("replies were trimmed that had not been read");
        }
    }

    fn goes_on_at(&self, at: &Place, offset: i64) -> bool {
        self.asked.get(&at.partition) == Some(&offset)
    }

    /// A topic that was made anew, and has grown past the old offset before the
    /// reader came back, hides what is before it: without topic ids nobody can
    /// tell. This is the only way in which a reader may skip a reply.
    fn outgrown(&mut self, now: Duration, at: &Place, from: i64, to: i64) {
        let continues = self.goes_on_at(at, to);
        let incarnation = self.topics.get(&at.topic).map(|topic| topic.incarnation);
        if from < to && continues && at.topic == REPLIES {
            self.lose_replies(now, |reply| {
                Some(reply.incarnation) == incarnation
                    && reply.partition == at.partition
                    && (from..to).contains(&reply.offset)
            });
        }
    }
}

impl Partition {
    fn end(&self) -> i64 {
        self.records.len() as i64
    }

    fn append(&mut self, now: Duration, record: &Record) -> i64 {
        let offset = self.end();
        self.records.push(Stored::Record(Received {
            offset,
            partition: self.index,
            timestamp_ms: now.as_millis() as i64,
            key: record.key.clone(),
            value: record.value.clone(),
            headers: as_on_the_wire(record),
        }));
        offset
    }
}

/// Headers are a map on their way through the real client.
fn as_on_the_wire(record: &Record) -> Vec<(HeaderName, Bytes)> {
    record.headers.iter().cloned().collect::<BTreeMap<_, _>>().into_iter().collect()
}
