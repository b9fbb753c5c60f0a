//! `antiphon bench floor-kafka`: the records of calls without the calls. The
//! same requests go to the same worker and the same replies come back, through
//! the same client library, but nothing speaks gRPC. What a gateway adds to
//! this is its own.

use std::path::Path;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use antiphon::backoff::Backoff;
use antiphon::correlation::{CorrelationId, Minter};
use antiphon::deadline::Deadline;
use antiphon::limits;
use antiphon::message::dialect::{Dialect, Kind, classify};
use antiphon::message::{PROTOBUF, ReplyAddress, RequestParts};
use antiphon::supervisor::{Supervisor, Task};
use antiphon::terms::{Compression, CorrelationForm};
use antiphon::transport::{Cluster, PartitionReader, PartitionWriter, Record};
use antiphon::worker::samples::echo::EchoRequest;
use bytes::Bytes;
use prost::Message as _;
use serde_json::json;
use tokio::sync::mpsc;

use super::crew::{Progress, Tally, nanoseconds};
use super::flags::FloorFlags;
use super::http2::Outcome;
use super::run::{Line, Run, Sample};
use super::schedule::Pace;
use super::worker::{cluster, make_topic};
use super::{finish, report, unavailable};
use crate::serve::Stop;

const METHOD: &str = "/echo.v1.EchoService/Echo";
/// How long a fetch waits for a reply, and so how late the end is seen.
const FETCH_WAIT: Duration = Duration::from_millis(100);
/// Fetches that may fail one after another.
const FETCH_FAILURES_MAX: u32 = 20;

pub(super) async fn run(flags: &FloorFlags) -> ExitCode {
    match run_all(flags).await {
        Ok(runs) => {
            let topic = &flags.kafka.topic;
            let what = json!({ "floor": "kafka", "topic": topic, "message_bytes": message(flags.payload_bytes).len() });
            let json: Option<&Path> = flags.json.as_deref();
            finish(&report::print(&what, &runs, json), &runs)
        }
        Err(text) => unavailable(&text),
    }
}

async fn run_all(flags: &FloorFlags) -> Result<Vec<Run>, String> {
    let mut stop = Stop::listen().map_err(|error| format!("cannot listen for signals: {error}"))?;
    let cluster = cluster(&flags.kafka)?;
    let known = cluster.topics().await.map_err(|error| error.to_string())?;
    let request_topic = known.into_iter().find(|topic| topic.name == flags.kafka.topic);
    let partitions = request_topic.map(|topic| topic.partitions);
    let partitions = partitions.ok_or_else(|| {
        format!("topic {} does not exist; start antiphon bench worker first", flags.kafka.topic)
    })?;
    let reply_topic = format!("antiphon.bench.{:08x}", fastrand::u32(..));
    make_topic(&*cluster, &reply_topic, 1).await.map_err(|error| error.to_string())?;

    let mut runs = Vec::new();
    let mut failure = None;
    for in_flight in &flags.in_flight {
        match Floor::open(flags, &cluster, partitions, &reply_topic, *in_flight).await {
            Ok(floor) => runs.push(floor.run(flags, &mut stop).await),
            Err(text) => failure = Some(text),
        }
        if failure.is_some() || runs.last().is_some_and(|run| run.interrupted) {
            break;
        }
    }
    if let Err(error) = cluster.delete_topic(&reply_topic).await {
        eprintln!("antiphon: topic {reply_topic} could not be deleted: {error}");
    }
    match failure {
        Some(text) if runs.is_empty() => Err(text),
        _ => Ok(runs),
    }
}

fn message(payload_bytes: u32) -> Bytes {
    EchoRequest { payload: vec![b'x'; payload_bytes as usize].into() }.encode_to_vec().into()
}

/// A request in flight.
#[derive(Clone, Copy)]
struct Slot {
    id: Option<CorrelationId>,
    sent: u64,
}

/// All that is in flight, and the ways there and back.
struct Floor {
    lanes: Vec<mpsc::UnboundedSender<Record>>,
    _tasks: Vec<Task>,
    reader: Box<dyn PartitionReader>,
    next_offset: i64,
    next_lane: usize,
    slots: Vec<Slot>,
    minter: Minter,
    reply_to: ReplyAddress,
    value: Bytes,
    epoch: Instant,
    warm: u64,
    timeout: Duration,
    progress: Arc<Progress>,
    tally: Tally,
}

impl Floor {
    async fn open(
        flags: &FloorFlags,
        cluster: &Arc<dyn Cluster>,
        partitions: i32,
        reply_topic: &str,
        in_flight: u32,
    ) -> Result<Self, String> {
        let progress = Arc::new(Progress::default());
        let value = message(flags.payload_bytes);
        let supervisor = Supervisor::new();
        let mut lanes = Vec::new();
        let mut tasks = Vec::new();
        for partition in 0..partitions {
            let writer = cluster.writer(&flags.kafka.topic, partition).await;
            let writer = writer.map_err(|error| error.to_string())?;
            // Bounded by the slots: each has one record under way.
            let (sender, queue) = mpsc::unbounded_channel();
            lanes.push(sender);
            tasks.push(supervisor.spawn("lane", lane(writer, queue, value.len())));
        }
        let mut reader = cluster.reader(reply_topic, 0).await.map_err(|error| error.to_string())?;
        let next_offset = reader.end_offset().await.map_err(|error| error.to_string())?;
        Ok(Self {
            lanes,
            _tasks: tasks,
            reader,
            next_offset,
            next_lane: 0,
            slots: vec![Slot { id: None, sent: 0 }; in_flight as usize],
            minter: Minter::new(0, fastrand::u16(..), std::array::from_fn(|_| fastrand::u8(..))),
            reply_to: ReplyAddress {
                topic: Bytes::copy_from_slice(reply_topic.as_bytes()),
                partition: Some(0),
            },
            value,
            epoch: Instant::now(),
            warm: nanoseconds(flags.warm_up),
            timeout: flags.timeout,
            progress,
            tally: Tally::new(),
        })
    }

    fn now(&self) -> u64 {
        nanoseconds(self.epoch.elapsed())
    }

    async fn run(mut self, flags: &FloorFlags, stop: &mut Stop) -> Run {
        let pid = Some(std::process::id());
        let pace = Pace::InFlight(u32::try_from(self.slots.len()).unwrap_or(u32::MAX));
        let mut line = Line::new(pace);
        self.epoch = Instant::now();
        let mut begin = Sample::take(&self.progress, pid);
        let mut warm = flags.warm_up.is_zero();
        for slot in 0..self.slots.len() {
            self.send(slot);
        }
        let end = nanoseconds(flags.warm_up + flags.duration);
        let mut failures = 0;
        let mut backoff = Backoff::default();
        let interrupted = loop {
            let fetched = tokio::select! {
                fetched = self.reader.fetch(self.next_offset, FETCH_WAIT) => fetched,
                () = stop.requested() => break true,
            };
            match fetched {
                Ok(fetched) => {
                    failures = 0;
                    self.next_offset = fetched.next_offset;
                    for record in &fetched.records {
                        if let Kind::Reply(id) = classify(record, None) {
                            self.land(id);
                        }
                    }
                }
                Err(error) if failures == FETCH_FAILURES_MAX => {
                    eprintln!("antiphon: replies cannot be read: {error}");
                    break true;
                }
                Err(_) => {
                    failures += 1;
                    backoff.pause().await;
                }
            }
            self.expire();
            line.show(&self.progress);
            if !warm && self.now() >= self.warm {
                warm = true;
                begin = Sample::take(&self.progress, pid);
            }
            if self.now() >= end {
                break false;
            }
        };
        line.clear();
        let (seconds, finished, server, client) = Sample::take(&self.progress, pid).since(&begin);
        let connections = u32::try_from(self.lanes.len()).unwrap_or(u32::MAX);
        let tally = self.tally;
        Run {
            pace,
            connections,
            threads: 1,
            calls_max: u32::MAX,
            tally,
            seconds,
            finished,
            server,
            client,
            interrupted,
        }
    }

    /// Sends what a gateway would for a call.
    fn send(&mut self, slot: usize) {
        let id = self.minter.mint(u32::try_from(slot).unwrap_or(u32::MAX));
        self.slots[slot] = Slot { id: Some(id), sent: self.now() };
        let parts = RequestParts {
            dialect: &Dialect::Spring(CorrelationForm::Text),
            content_type: PROTOBUF,
            method: Bytes::from_static(METHOD.as_bytes()),
            id,
            reply_to: Some(&self.reply_to),
            deadline: Deadline::after(self.timeout),
            key: None,
            value: self.value.clone(),
            metadata: Vec::new(),
        };
        let lane = self.next_lane;
        self.next_lane = (lane + 1) % self.lanes.len();
        // A lane that has ended loses the request, which then times out.
        let _ = self.lanes[lane].send(parts.into_record());
    }

    fn land(&mut self, id: CorrelationId) {
        let slot = id.slot() as usize;
        if self.slots.get(slot).is_some_and(|held| held.id == Some(id)) {
            self.end(slot, Outcome::OK);
        }
    }

    fn expire(&mut self) {
        let sent_before = self.now().saturating_sub(nanoseconds(self.timeout));
        if sent_before == 0 {
            return;
        }
        for slot in 0..self.slots.len() {
            if self.slots[slot].sent < sent_before {
                self.end(slot, Outcome::TimedOut);
            }
        }
    }

    fn end(&mut self, slot: usize, outcome: Outcome) {
        let latency = self.now() - self.slots[slot].sent;
        self.progress.finished.fetch_add(1, Ordering::Relaxed);
        if outcome != Outcome::OK {
            self.progress.failed.fetch_add(1, Ordering::Relaxed);
        }
        if self.slots[slot].sent >= self.warm {
            self.tally.record(latency, latency, outcome, Vec::new());
        }
        self.send(slot);
    }
}

/// Everything that queued while a batch was under way is the next batch.
async fn lane(
    mut writer: Box<dyn PartitionWriter>,
    mut queue: mpsc::UnboundedReceiver<Record>,
    value_bytes: usize,
) {
    /// Headers of a request, rounded up.
    const HEADER_BYTES: usize = 1_024;
    let records_max =
        (limits::BATCH_BYTES_MAX / (value_bytes + HEADER_BYTES)).clamp(1, limits::BATCH_RECORDS_MAX);
    let mut batch = Vec::new();
    while queue.recv_many(&mut batch, records_max).await > 0 {
        if let Err(error) = writer.produce(&batch, Compression::None).await {
            eprintln!("antiphon: requests cannot be written: {error}");
            return;
        }
        batch.clear();
    }
}
