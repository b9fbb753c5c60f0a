//! The call: from a message to a record, a wait, and an answer.
//!
//! [`Exchange::call`] is the whole way of a call on one screen. One `Exchange`
//! belongs to one shard and runs on that shard's runtime; an [`Instance`] is
//! what the shards of a process share.

mod aftermath;
pub mod budget;
mod circuit;
pub mod config;
mod failure;
mod flight;
mod heartbeat;
mod idempotency;
mod instance;
mod janitor;
mod journey;
mod lane;
mod lanes;
mod lease;
mod lessee;
mod load;
mod orphans;
mod place;
mod replies;
mod schemas;
mod stream;
mod topics;
mod trouble;
mod view;

use std::collections::HashMap;
use std::sync::{Arc, Mutex, OnceLock};
use std::time::Duration;

use crate::deadline::Deadline;
use crate::message::dialect::Custom;
use crate::message::{self, IDEMPOTENCY_KEY, Reply, ReplyAddress, RequestParts};
use crate::metrics::{Histogram, Metrics};
use crate::pending::{About, Pending, Ticket, WaitFor};
use crate::route::{Idempotency, Partitioning, Route};
use crate::supervisor::{Supervisor, Task};
use crate::terms::{Compression, Mode, ReplyRouting};
use crate::transport::{Cluster, HeaderName};
use aftermath::Scribe;
use budget::{BytesHeld, Permit};
use bytes::Bytes;
use circuit::{Ending, Pass};
use config::ReplyConfig;
use flight::{Collecting, Flight};
use heartbeat::{Heart, Trim};
use lane::{Owner, Parcel};
use lanes::{LaneFull, Lanes};
use lessee::Lessee;
use load::Waiting;
use replies::{Company, Reading, Recreate, ReplyReader};

pub use circuit::CircuitState;
pub use failure::{Failure, Outcome, Repeat, Tally, Trace, Why};
pub use instance::{Instance, Parts, Phase, ShardState};
pub use janitor::Janitor;
pub use journey::Journey;
pub use schemas::{PrepareError, Schemas};
pub use stream::{Item, ReplyStream};
pub use topics::TopicDirectory;
pub use trouble::Reason;
pub use view::ReplyPlace;

/// When a caller should come back that found a lane full.
const LANE_RETRY_AFTER: Duration = Duration::from_millis(200);

/// What a caller asks for.
#[derive(Debug)]
pub struct Request {
    /// The message, as gRPC brought it.
    pub message: Bytes,
    /// Metadata to forward in the record.
    pub metadata: Vec<(HeaderName, Bytes)>,
    /// When the caller gives up.
    pub deadline: Deadline,
}

impl Request {
    /// The key under which the caller may repeat the call.
    fn idempotency_key(&self) -> Option<Bytes> {
        let found = self.metadata.iter().find(|(name, _)| name == IDEMPOTENCY_KEY);
        found.map(|(_, key)| key.clone()).filter(|key| !key.is_empty())
    }
}

/// A call that has been let in: its place, and the room that its message takes
/// so far.
#[derive(Debug)]
pub struct Admission {
    topic: Arc<str>,
    permit: Permit,
    held: BytesHeld,
}

impl Admission {
    /// Where it is noted how far the call comes.
    pub fn journey(&self) -> Option<&Arc<Journey>> {
        self.held.journey()
    }

    /// Counts `bytes` more of the message as held, from when they are read.
    pub fn hold(&mut self, bytes: usize) -> Result<(), Failure> {
        self.held.grow(bytes).map_err(|why| Failure::new(why, Trace::nothing_sent(Arc::clone(&self.topic))))
    }
}

/// What a caller gets.
#[derive(Debug, Clone)]
pub struct Answer {
    /// The worker's answer, which may be an error of its own.
    pub reply: Reply,
    /// What is known of the request.
    pub trace: Trace,
}

/// Calls of one shard.
pub struct Exchange {
    shard: usize,
    instance: Arc<Instance>,
    pending: Arc<Pending>,
    lanes: Arc<Lanes>,
    reply_topic: Bytes,
    settings: Settings,
    /// By `Route::index`: where the waits for replies are counted.
    reply_waits: Box<[OnceLock<Arc<Histogram>>]>,
    /// Readers and hearts; dropped, and so ended, with the exchange.
    _tasks: Vec<Task>,
}

/// What an exchange needs besides its instance.
#[derive(Debug, Clone)]
pub struct Settings {
    /// The cluster's compression, where the route has none of its own.
    pub compression: Compression,
    /// Largest message that goes back to a caller, in bytes.
    pub message_bytes_max: usize,
    /// Records that may wait in one lane.
    pub lane_queue_max: usize,
    /// How replies come back.
    pub reply: ReplyConfig,
    /// The partition of a shared reply topic that this shard has without a
    /// lease.
    pub reply_partition: Option<i32>,
    /// How long what was read stays on a reply topic that others read, too.
    pub keep: Duration,
    /// Header names of the dialect `custom`, where there is one.
    pub custom_dialect: Option<Arc<Custom>>,
    /// Schemas of replies, where there is a registry.
    pub schemas: Option<Arc<Schemas>>,
}

impl Exchange {
    /// Starts lanes, reader and heart of `shard`. Must be called on the
    /// shard's runtime.
    pub fn start(
        shard: usize,
        instance: Arc<Instance>,
        cluster: Arc<dyn Cluster>,
        supervisor: &Supervisor,
        settings: Settings,
    ) -> Self {
        let pending = Arc::clone(&instance.shards()[shard].pending);
        let lanes = Arc::new(Lanes {
            cluster: Arc::clone(&cluster),
            pending: Arc::clone(&pending),
            directory: Arc::clone(&instance.directory),
            metrics: Arc::clone(&instance.metrics),
            supervisor: supervisor.clone(),
            queue_max: settings.lane_queue_max,
            open: Mutex::new(HashMap::new()),
        });
        let reading = Reading {
            shard,
            instance: Arc::clone(&instance),
            scribe: Scribe { instance: Arc::clone(&instance), lanes: Arc::clone(&lanes) },
            cluster,
            fetch_wait: settings.reply.fetch_wait,
            recreate: Recreate {
                partitions: instance.reply_partitions(),
                replication_factor: settings.reply.replication_factor,
            },
            custom: settings.custom_dialect.clone(),
            company: match settings.reply.routing {
                ReplyRouting::InstanceTopic => Company::Namesakes,
                ReplyRouting::Partition if settings.reply_partition.is_some() => Company::Rivals,
                ReplyRouting::Partition | ReplyRouting::Shared => Company::Peers,
            },
        };
        instance.show_lanes_of(shard, &lanes);
        let tasks = start_reading(reading, &settings, supervisor);
        let reply_topic = Bytes::copy_from_slice(instance.reply_topic().as_bytes());
        let reply_waits = (0..instance.budget.routes()).map(|_| OnceLock::new()).collect();
        Self { shard, pending, lanes, reply_topic, settings, reply_waits, _tasks: tasks, instance }
    }

    /// What the shards share.
    pub fn instance(&self) -> &Arc<Instance> {
        &self.instance
    }

    /// What is counted.
    pub fn metrics(&self) -> &Metrics {
        &self.instance.metrics
    }

    /// Lets a call in whose message is still to be read, or says why not.
    pub fn admit(&self, route: &Arc<Route>, deadline: Deadline) -> Result<Admission, Failure> {
        let unsent = |why| Failure::new(why, Trace::nothing_sent(Arc::clone(&route.request_topic)));
        self.accepts(deadline).map_err(unsent)?;
        let permit = self.instance.budget.admit(route).map_err(unsent)?;
        let held = self.instance.budget.no_bytes_of(Journey::new(deadline.began()));
        Ok(Admission { topic: Arc::clone(&route.request_topic), permit, held })
    }

    /// One call, from its message to its answer, within its deadline.
    pub async fn call(self: &Arc<Self>, route: &Arc<Route>, request: Request) -> Result<Answer, Failure> {
        let mut admission = self.admit(route, request.deadline)?;
        admission.hold(request.message.len())?;
        self.call_admitted(route, request, admission).await
    }

    /// The same for a call that has been let in before.
    pub async fn call_admitted(
        self: &Arc<Self>,
        route: &Arc<Route>,
        request: Request,
        admission: Admission,
    ) -> Result<Answer, Failure> {
        let Admission { permit: _permit, held, .. } = admission;
        let journey = held.journey().cloned();
        let held = Arc::new(held);
        let answered = match request.idempotency_key() {
            Some(key) => idempotency::call(self, route, key, request, held).await,
            None => Flight::depart(self, route, request, held).await?.land().await,
        };
        if answered.is_ok()
            && route.mode == Mode::RequestReply
            && let Some(waited) = journey.and_then(|journey| journey.reply_wait_us())
        {
            self.count_reply_wait(route, waited);
        }
        answered
    }

    fn count_reply_wait(&self, route: &Route, waited_us: u64) {
        if let Some(own) = self.reply_waits.get(route.index) {
            own.get_or_init(|| self.metrics().reply_wait.own(&route.path)).observe(waited_us);
        }
    }

    /// A call whose answer is a stream and that has been let in before: once its
    /// request is in its lane.
    pub async fn stream_admitted(
        self: &Arc<Self>,
        route: &Arc<Route>,
        request: Request,
        admission: Admission,
    ) -> Result<ReplyStream, Failure> {
        let Admission { permit, held, .. } = admission;
        if request.idempotency_key().is_some() {
            let trace = Trace::nothing_sent(Arc::clone(&route.request_topic));
            return Err(Failure::new(Why::KeyOfStream, trace));
        }
        let flight = Flight::depart(self, route, request, Arc::new(held)).await?;
        Ok(ReplyStream::start(flight, permit, self.supervisor()))
    }

    fn accepts(&self, deadline: Deadline) -> Result<(), Why> {
        match self.instance.phase() {
            Phase::NotReady => Err(Why::NotReady(self.instance.trouble_reason())),
            Phase::Draining => Err(Why::Draining),
            Phase::Ready | Phase::Leaving if deadline.has_passed() => Err(Why::TooLate),
            Phase::Ready | Phase::Leaving => Ok(()),
        }
    }

    async fn choose_partition(
        &self,
        route: &Route,
        request: &Request,
        key: Option<&Bytes>,
    ) -> Result<i32, Why> {
        let topic = &route.request_topic;
        let found = self.instance.directory.find(topic, request.deadline.at()).await;
        let partitions = match found {
            Some(partitions) if partitions > 0 => partitions,
            _ => return Err(Why::NoSuchTopic(Arc::clone(topic))),
        };
        let named = match &route.partitioning {
            Partitioning::Fixed(partition) => i64::from(*partition),
            Partitioning::ByField(path) => {
                path.extract_i64(&request.message).map_err(Why::BadMessage)?.unwrap_or_default()
            }
            Partitioning::ByKey | Partitioning::Spread => {
                return Ok(match key {
                    Some(key) => message::partition_of_key(key, partitions),
                    None => self.lanes.spread(topic, partitions),
                });
            }
        };
        match i32::try_from(named) {
            Ok(partition) if (0..partitions).contains(&partition) => Ok(partition),
            _ => Err(Why::NoSuchPartition { partition: named, topic: Arc::clone(topic), partitions }),
        }
    }

    fn register(&self, route: &Route, about: About, collecting: Option<&Collecting>) -> Result<Ticket, Why> {
        // The shard's lease may have been lost since the call was let in.
        if !self.instance.shards()[self.shard].is_seated() {
            return Err(Why::NotReady(self.instance.trouble_reason()));
        }
        let ticket = match (route.mode, collecting) {
            (_, Some(collecting)) => self.pending.register_for(collecting.replies(), about),
            (Mode::RequestReply, None) => self.pending.register(WaitFor::Reply, about),
            (Mode::OneWay, None) => self.pending.register(WaitFor::Acknowledgement, about),
        };
        ticket.map_err(|full| Why::Overloaded {
            what: "limits.in_flight_max (calls in flight in one shard)",
            limit: full.slots_max.into(),
            retry_after: LANE_RETRY_AFTER,
        })
    }

    fn pack(
        &self,
        route: &Route,
        request: Request,
        key: Option<Bytes>,
        ticket: &Ticket,
        held: Arc<BytesHeld>,
    ) -> Parcel {
        let partition = self.instance.shards()[self.shard].named_partition();
        let reply_to = ReplyAddress { topic: self.reply_topic.clone(), partition };
        let parts = RequestParts {
            dialect: &route.dialect,
            method: route.path_bytes.clone(),
            id: ticket.id(),
            reply_to: (route.mode == Mode::RequestReply).then_some(&reply_to),
            deadline: request.deadline,
            key,
            value: request.message,
            content_type: route.format.content_type(),
            metadata: request.metadata,
        };
        let record = parts.into_record();
        // One that nobody answers is a record of its own in every dialect.
        let behind = match route.mode {
            Mode::RequestReply => route.dialect.end_of_request(&record),
            Mode::OneWay => None,
        };
        Parcel {
            owner: Owner::Call(ticket.id()),
            held: Some(held),
            record,
            behind,
            compression: route.compression.unwrap_or(self.settings.compression),
            repeatable: route.idempotency != Idempotency::Unknown,
            maybe_sent: false,
        }
    }

    /// Hands a call's request to its lane.
    fn dispatch(&self, route: &Route, partition: i32, parcel: Parcel) -> Result<Waiting, Why> {
        self.lanes.send(&route.request_topic, partition, parcel).map_err(|LaneFull| Why::Overloaded {
            what: "limits.lane_queue_max (requests waiting for one partition)",
            limit: self.settings.lane_queue_max as u64,
            retry_after: LANE_RETRY_AFTER,
        })
    }

    fn pass_circuit(&self, topic: &Arc<str>) -> Result<Pass, Why> {
        let passed = self.instance.circuits.admit(topic);
        passed.map_err(|retry_after| Why::CircuitOpen { topic: Arc::clone(topic), retry_after })
    }

    fn settle_circuit(&self, topic: &Arc<str>, pass: Pass, ending: Ending) {
        if self.instance.circuits.settle(topic, pass, ending) {
            self.metrics().circuit_opened.inc();
            tracing::warn!(%topic, "circuit opened: calls on this topic time out one after the other");
        }
    }

    fn scribe(&self) -> Scribe {
        Scribe { instance: Arc::clone(&self.instance), lanes: Arc::clone(&self.lanes) }
    }

    fn schemas(&self) -> Option<&Schemas> {
        self.settings.schemas.as_deref()
    }

    fn message_bytes_max(&self) -> usize {
        self.settings.message_bytes_max
    }

    fn supervisor(&self) -> &Supervisor {
        &self.lanes.supervisor
    }

    fn shard(&self) -> usize {
        self.shard
    }

    fn reply_partition(&self) -> i32 {
        self.instance.shards()[self.shard].named_partition().unwrap_or_default()
    }
}

/// Starts to read what comes to this shard.
fn start_reading(reading: Reading, settings: &Settings, supervisor: &Supervisor) -> Vec<Task> {
    let reply = &settings.reply;
    let state = &reading.instance.shards()[reading.shard];
    if reply.routing == ReplyRouting::Partition && settings.reply_partition.is_none() {
        let lessee = Lessee {
            reading,
            supervisor: supervisor.clone(),
            interval: reply.heartbeat_interval,
            ttl: reply.lease_ttl,
            keep: settings.keep,
        };
        return vec![supervisor.spawn("lessee", lessee.run())];
    }
    let first = i32::try_from(reading.shard).unwrap_or_default();
    let partitions: Vec<i32> = match settings.reply_partition {
        Some(partition) => vec![partition],
        None => {
            (first..reading.instance.reply_partitions()).step_by(reading.instance.shards().len()).collect()
        }
    };
    let trim = match reply.routing {
        ReplyRouting::InstanceTopic => Trim::Read,
        ReplyRouting::Partition => Trim::After(settings.keep),
        ReplyRouting::Shared => Trim::Never,
    };
    // Where all is read by all, the instances choose for themselves, so that
    // they do not all choose the first.
    let named = match reply.routing {
        ReplyRouting::Shared => fastrand::choice(&partitions).copied(),
        ReplyRouting::InstanceTopic | ReplyRouting::Partition => partitions.first().copied(),
    };
    let mut tasks = Vec::new();
    for partition in &partitions {
        let place = state.add_place(*partition);
        let heart = Heart {
            place: Arc::clone(&place),
            instance: Arc::clone(&reading.instance),
            cluster: Arc::clone(&reading.cluster),
            interval: reply.heartbeat_interval,
            trim,
            lease: None,
        };
        let reader = ReplyReader { reading: reading.clone(), place, from: None, tenancy: None };
        tasks.push(supervisor.spawn("reply reader", reader.run()));
        tasks.push(supervisor.spawn("heart", heart.run()));
    }
    state.sit(named);
    tasks
}
