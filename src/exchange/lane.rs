//! A lane: the task that produces to one partition.
//!
//! ```text
//! calls ──► bounded queue ──► [ take all that has queued ] ──► produce ──► acknowledged ─┐
//!                                     ▲                     one in flight                │
//!                                     └──────────────────────────────────────────────────┘
//! ```
//!
//! One produce in flight keeps the order of a key; taking whatever has queued
//! meanwhile makes batches grow with load and costs no waiting when there is
//! none. After a failure the lane knows what may be done:
//!
//! | what is known | what follows |
//! |---|---|
//! | certainly not in the log | the same records again, after a pause, as long as their calls wait |
//! | may be in the log | never again, but for methods that say that twice does no harm |
//! | refused | halved until the culprit is alone; it fails, the rest goes on |

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::mpsc;
use tokio::time::{Instant, timeout};

use super::budget::BytesHeld;
use super::instance::Held;
use super::journey::Journey;
use super::topics::TopicDirectory;
use crate::backoff::Backoff;
use crate::correlation::CorrelationId;
use crate::limits;
use crate::message::VALUE_LEFT_OUT;
use crate::metrics::{Histogram, Metrics, ProduceErrorLabels, RoleLabels, micros};
use crate::pending::{Coordinates, Pending, Progress, SendFailure};
use crate::terms::Compression;
use crate::transport::{Cluster, ClusterError, HeaderName, PartitionWriter, ProduceError, Record};

/// A lane that has had nothing to do for this long closes its connection.
const IDLE: Duration = Duration::from_secs(300);
/// How often a broker may deny knowing a topic before it is believed: right
/// after creation, leaders do not know their partition yet.
const NO_SUCH_TOPIC_ATTEMPTS_MAX: u32 = 6;
/// The longest that a throttling broker is left alone.
const THROTTLE_WAIT_MAX: Duration = Duration::from_secs(30);

/// One record in a lane.
#[derive(Debug)]
pub(super) struct Parcel {
    /// Whom it is for.
    pub(super) owner: Owner,
    /// Its message's bytes count as held until it is gone.
    pub(super) held: Option<Arc<BytesHeld>>,
    /// What to send.
    pub(super) record: Record,
    /// What must follow it at once, in the same batch: the end of a request
    /// that is a stream.
    pub(super) behind: Option<Box<Record>>,
    /// The batch's compression.
    pub(super) compression: Compression,
    /// Sending it twice does no harm.
    pub(super) repeatable: bool,
    /// It may be in the log already.
    pub(super) maybe_sent: bool,
}

impl Parcel {
    fn size(&self) -> usize {
        self.record.size() + self.behind.as_ref().map_or(0, |behind| behind.size())
    }

    fn journey(&self) -> Option<&Journey> {
        self.held.as_ref()?.journey().map(|journey| &**journey)
    }

    /// How many records it is in the log.
    fn records(&self) -> usize {
        1 + usize::from(self.behind.is_some())
    }

    /// A dead letter that is too large goes without its value rather than not
    /// at all. `false`: it has none to leave out, or a call waits for it.
    fn leave_value_out(&mut self) -> bool {
        if matches!(self.owner, Owner::Call(_)) {
            return false;
        }
        let Some(value) = self.record.value.take() else { return false };
        let bytes = Bytes::from(value.len().to_string());
        self.record.headers.push((HeaderName::Borrowed(VALUE_LEFT_OUT), bytes));
        true
    }
}

/// Whom a record is for.
#[derive(Debug)]
pub(super) enum Owner {
    /// A call waits for it; with the call's end it is not sent any more.
    Call(CorrelationId),
    /// What is left of a call: a dead letter, a cancel record.
    Aftermath(Aftermath),
}

/// A record that no call waits for, and until when it is tried.
#[derive(Debug)]
pub(super) struct Aftermath {
    /// The call that it is about.
    pub(super) about: CorrelationId,
    /// What it is, for the log.
    pub(super) what: &'static str,
    /// When it is given up.
    pub(super) expires: Instant,
    /// Counted as long as it exists, so that a drain can wait for it.
    pub(super) _held: Held,
}

/// Where a lane counts what is done for every request.
pub(super) struct Measures {
    wait: Arc<Histogram>,
    send: Arc<Histogram>,
    batch: Arc<Histogram>,
}

impl Measures {
    /// Of a lane to `topic`.
    pub(super) fn new(metrics: &Metrics, topic: &Arc<str>) -> Self {
        Self {
            wait: metrics.lane_wait.own(topic),
            send: metrics.sends.own(&(Arc::clone(topic), "")),
            batch: metrics.batches.own(topic),
        }
    }
}

/// The last produce that failed, for those who look; a lane that works never
/// touches it.
#[derive(Debug, Default)]
pub(super) struct LastError(Mutex<Option<(Instant, Arc<str>)>>);

impl LastError {
    /// When it was, and what.
    pub(super) fn get(&self) -> Option<(Instant, Arc<str>)> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn set(&self, error: &ProduceError) {
        let now = (Instant::now(), error.to_string().into());
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Some(now);
    }
}

/// What a lane works with.
pub(super) struct Lane {
    pub(super) topic: Arc<str>,
    pub(super) partition: i32,
    pub(super) cluster: Arc<dyn Cluster>,
    pub(super) pending: Arc<Pending>,
    pub(super) directory: Arc<TopicDirectory>,
    pub(super) metrics: Arc<Metrics>,
    pub(super) measures: Measures,
    pub(super) last_error: Arc<LastError>,
    pub(super) queue: mpsc::Receiver<Parcel>,
}

impl Lane {
    /// Runs until every sender of the queue is gone and the queue is empty.
    pub(super) async fn run(mut self) {
        let mut writer = None;
        let mut waiting = VecDeque::new();
        let mut arrived = Vec::with_capacity(limits::BATCH_RECORDS_MAX);
        loop {
            if waiting.is_empty() {
                match timeout(IDLE, self.queue.recv_many(&mut arrived, limits::BATCH_RECORDS_MAX)).await {
                    Ok(0) => return,
                    Ok(_) => {}
                    Err(_) => writer = None,
                }
            } else {
                // No more than one batch: what lies here no longer counts in the queue's bound.
                while waiting.len() + arrived.len() < limits::BATCH_RECORDS_MAX {
                    let Ok(parcel) = self.queue.try_recv() else { break };
                    arrived.push(parcel);
                }
            }
            waiting.extend(arrived.drain(..));
            let batch = next_batch(&mut waiting);
            self.deliver(batch, &mut writer).await;
        }
    }

    /// Brings a batch into the log, or every call in it to its end.
    async fn deliver(&self, mut batch: Vec<Parcel>, writer: &mut Option<Box<dyn PartitionWriter>>) {
        let mut backoff = Backoff::default();
        let mut denials = 0;
        let mut behind: Vec<Vec<Parcel>> = Vec::new();
        loop {
            batch.retain(|parcel| self.is_wanted(parcel));
            if batch.is_empty() {
                let Some(next) = behind.pop() else { return };
                batch = next;
                continue;
            }
            let error = match self.attempt(&mut batch, writer).await {
                Ok(base_offset) => {
                    self.acknowledge(&batch, base_offset);
                    batch.clear();
                    continue;
                }
                Err(error) => error,
            };
            self.note(&error);
            match error {
                ProduceError::NotSent(cause) => {
                    self.not_sent(&batch, &cause);
                    *writer = None;
                    backoff.pause().await;
                }
                ProduceError::NoSuchTopic => {
                    denials += 1;
                    *writer = None;
                    self.directory.look_again();
                    if denials >= NO_SUCH_TOPIC_ATTEMPTS_MAX {
                        self.fail(&mut batch, &SendFailure::NoSuchTopic);
                    } else {
                        self.not_sent(&batch, "the broker knows no such topic or partition");
                        backoff.pause().await;
                    }
                }
                ProduceError::TooLarge => {
                    self.not_sent(&batch, &ProduceError::TooLarge.to_string());
                    self.isolate(&mut batch, &mut behind, SendFailure::TooLarge);
                }
                // The connection was refused, not a record in the batch.
                ProduceError::Refused(cause) if writer.is_none() => {
                    self.fail(&mut batch, &SendFailure::Refused(cause.into()));
                }
                ProduceError::Refused(cause) => {
                    self.not_sent(&batch, &cause);
                    self.isolate(&mut batch, &mut behind, SendFailure::Refused(cause.into()));
                }
                ProduceError::Throttled { wait } => {
                    self.unknown(&batch, &error_text(wait));
                    batch.clear();
                    tokio::time::sleep(wait.min(THROTTLE_WAIT_MAX)).await;
                }
                ProduceError::Unknown(cause) => {
                    self.unknown(&batch, &cause);
                    *writer = None;
                    batch.retain(|parcel| parcel.repeatable);
                    for parcel in &mut batch {
                        parcel.maybe_sent = true;
                    }
                    backoff.pause().await;
                }
            }
        }
    }

    /// One produce of what is still wanted once the lane has a connection.
    async fn attempt(
        &self,
        batch: &mut Vec<Parcel>,
        writer: &mut Option<Box<dyn PartitionWriter>>,
    ) -> Result<Option<i64>, ProduceError> {
        let connected = self.connect(writer).await?;
        // Only now: a call that ends while the lane connects has certainly sent nothing.
        let now = Instant::now();
        batch.retain(|parcel| self.begin_send(parcel, now));
        if batch.is_empty() {
            return Ok(None);
        }
        let sent = send(&mut **connected, batch).await;
        let took = micros(now.elapsed());
        match &sent {
            Ok(_) => self.measures.send.observe(took),
            Err(error) => self.metrics.sends.observe(&(Arc::clone(&self.topic), kind_of(error)), took),
        }
        sent
    }

    /// Whether anybody still waits for it, or it is still to be tried.
    fn is_wanted(&self, parcel: &Parcel) -> bool {
        match &parcel.owner {
            Owner::Call(id) => self.pending.is_waiting(*id),
            Owner::Aftermath(rest) if Instant::now() < rest.expires => true,
            Owner::Aftermath(rest) => {
                self.give_up(rest, "Kafka could not be reached in time");
                false
            }
        }
    }

    /// From here on it may be in the log. `false`: its call has just ended.
    fn begin_send(&self, parcel: &Parcel, now: Instant) -> bool {
        match &parcel.owner {
            Owner::Call(id) => {
                let wanted = self.pending.begin_send(*id);
                if wanted && let Some(waited) = parcel.journey().and_then(|journey| journey.sent(now)) {
                    self.measures.wait.observe(waited);
                }
                wanted
            }
            Owner::Aftermath(_) => true,
        }
    }

    fn give_up(&self, rest: &Aftermath, why: &str) {
        self.metrics.aftermath_lost.inc();
        let (topic, partition, about) = (&*self.topic, self.partition, rest.about);
        tracing::error!(topic, partition, correlation_id = %about, what = rest.what, why, "record lost");
    }

    async fn connect<'a>(
        &self,
        writer: &'a mut Option<Box<dyn PartitionWriter>>,
    ) -> Result<&'a mut Box<dyn PartitionWriter>, ProduceError> {
        match writer {
            Some(connected) => Ok(connected),
            None => {
                self.metrics.kafka_connections.get_or_create(&RoleLabels { role: "lane" }).inc();
                let fresh = self.cluster.writer(&self.topic, self.partition).await;
                Ok(writer.insert(fresh.map_err(|error| match error {
                    ClusterError::NoSuchTopic(_) => ProduceError::NoSuchTopic,
                    ClusterError::Refused(cause) => ProduceError::Refused(cause),
                    other => ProduceError::NotSent(other.to_string()),
                })?))
            }
        }
    }

    fn acknowledge(&self, batch: &[Parcel], base_offset: Option<i64>) {
        if batch.is_empty() {
            return;
        }
        let (mut records, now) = (0, Instant::now());
        for parcel in batch {
            let offset = base_offset.map(|base| base + i64::try_from(records).unwrap_or_default());
            let at = Coordinates { partition: self.partition, offset };
            if let Owner::Call(id) = parcel.owner {
                if let Some(journey) = parcel.journey() {
                    journey.acknowledged(now, at);
                }
                self.pending.appended(id, at);
            }
            records += parcel.records();
        }
        self.measures.batch.observe(records as u64);
    }

    fn not_sent(&self, batch: &[Parcel], cause: &str) {
        let cause: Arc<str> = cause.into();
        for parcel in batch {
            let cause = Arc::clone(&cause);
            let now = if parcel.maybe_sent { Progress::Unknown(cause) } else { Progress::NotSent(cause) };
            self.progress(parcel, now);
        }
    }

    fn unknown(&self, batch: &[Parcel], cause: &str) {
        let cause: Arc<str> = cause.into();
        for parcel in batch {
            self.progress(parcel, Progress::Unknown(Arc::clone(&cause)));
        }
    }

    fn progress(&self, parcel: &Parcel, now: Progress) {
        if let Owner::Call(id) = parcel.owner {
            self.pending.progress(id, now);
        }
    }

    /// Ends the calls whose requests will never be in the log. One that may be
    /// there after an earlier attempt goes on waiting for its reply.
    fn fail(&self, batch: &mut Vec<Parcel>, failure: &SendFailure) {
        for parcel in batch.drain(..) {
            match &parcel.owner {
                Owner::Call(id) if parcel.maybe_sent => {
                    self.pending.progress(*id, Progress::Unknown("refused when repeated".into()));
                }
                Owner::Call(id) => self.pending.fail(*id, failure.clone()),
                Owner::Aftermath(rest) => self.give_up(rest, &format!("{failure:?}")),
            }
        }
    }

    /// A broker refuses a batch as a whole. Halves go separately, in order,
    /// until the record that it minds is alone.
    fn isolate(&self, batch: &mut Vec<Parcel>, behind: &mut Vec<Vec<Parcel>>, failure: SendFailure) {
        if batch.len() > 1 {
            behind.push(batch.split_off(batch.len() / 2));
        } else if failure != SendFailure::TooLarge || !batch.iter_mut().all(Parcel::leave_value_out) {
            self.fail(batch, &failure);
        }
    }

    fn note(&self, error: &ProduceError) {
        let kind = kind_of(error);
        self.metrics.produce_errors.get_or_create(&ProduceErrorLabels { kind }).inc();
        self.last_error.set(error);
        tracing::warn!(topic = &*self.topic, partition = self.partition, %error, "produce failed");
    }
}

/// The records are lent to the writer as they are, since to clone them costs an
/// allocation each.
async fn send(writer: &mut dyn PartitionWriter, batch: &mut [Parcel]) -> Result<Option<i64>, ProduceError> {
    let mut records = Vec::with_capacity(batch.iter().map(Parcel::records).sum());
    for parcel in batch.iter_mut() {
        records.push(std::mem::take(&mut parcel.record));
        if let Some(behind) = &mut parcel.behind {
            records.push(std::mem::take(behind));
        }
    }
    let compression = batch.first().map_or(Compression::None, |parcel| parcel.compression);
    let produced = writer.produce(&records, compression).await;
    let mut records = records.into_iter();
    for parcel in batch {
        parcel.record = records.next().unwrap_or_default();
        if let Some(behind) = &mut parcel.behind {
            **behind = records.next().unwrap_or_default();
        }
    }
    produced.map(|appended| appended.base_offset)
}

/// What is known after a failure, for the counters.
fn kind_of(error: &ProduceError) -> &'static str {
    match error {
        ProduceError::NotSent(_) => "not-sent",
        ProduceError::NoSuchTopic => "no-topic",
        ProduceError::TooLarge => "too-large",
        ProduceError::Refused(_) => "refused",
        ProduceError::Throttled { .. } => "throttled",
        ProduceError::Unknown(_) => "unknown",
    }
}

fn error_text(wait: Duration) -> String {
    ProduceError::Throttled { wait }.to_string()
}

/// Takes from the front as much as goes into one produce: bounded in records
/// and bytes, of one compression, and at least one record.
fn next_batch(waiting: &mut VecDeque<Parcel>) -> Vec<Parcel> {
    let mut batch = Vec::new();
    let (mut bytes, mut records) = (0, 0);
    while let Some(parcel) = waiting.front() {
        bytes += parcel.size();
        records += parcel.records();
        let full = bytes > limits::BATCH_BYTES_MAX || records > limits::BATCH_RECORDS_MAX;
        if batch.first().is_some_and(|first: &Parcel| full || first.compression != parcel.compression) {
            break;
        }
        batch.extend(waiting.pop_front());
    }
    batch
}
