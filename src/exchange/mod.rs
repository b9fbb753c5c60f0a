//! The call: from a message to a record, a wait, and an answer.
//!
//! [`Exchange::call`] is the whole way of a call on one screen. One `Exchange`
//! belongs to one shard and runs on that shard's runtime; an [`Instance`] is
//! what the shards of a process share.

pub mod budget;
pub mod config;
mod failure;
mod heartbeat;
mod instance;
mod lane;
mod lanes;
mod replies;
mod topics;

use std::collections::HashMap;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use tokio::time::timeout_at;

use crate::deadline::Deadline;
use crate::message::{self, Reply, ReplyAddress, RequestParts};
use crate::metrics::Metrics;
use crate::pending::{Completion, Coordinates, Pending, Progress, SendFailure, Ticket, WaitFor};
use crate::route::{Idempotency, Partitioning, Route};
use crate::supervisor::{Supervisor, Task};
use crate::terms::{Compression, Mode};
use crate::transport::{Cluster, HeaderName};
use config::ReplyConfig;
use heartbeat::Heart;
use lane::Parcel;
use lanes::Lanes;
use replies::{Recreate, ReplyReader};

pub use failure::{Failure, Outcome, Trace, Why};
pub use instance::{Instance, Phase, ShardState};
pub use topics::TopicDirectory;

/// When a caller should come back that found a lane full.
const LANE_RETRY_AFTER: Duration = Duration::from_millis(200);

/// A method that returns this has nothing to say, so a null value says it.
const EMPTY: &str = "google.protobuf.Empty";

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

/// What a caller gets.
#[derive(Debug)]
pub struct Answer {
    /// The worker's answer, which may be an error of its own.
    pub reply: Reply,
    /// What is known of the request.
    pub trace: Trace,
}

/// Calls of one shard.
pub struct Exchange {
    instance: Arc<Instance>,
    pending: Arc<Pending>,
    lanes: Lanes,
    reply_to: ReplyAddress,
    settings: Settings,
    next_partition: AtomicU32,
    /// Reader and heart; dropped, and so ended, with the exchange.
    _tasks: [Task; 2],
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
        let partition = i32::try_from(shard).unwrap_or_default();
        let reader = ReplyReader {
            shard,
            partition,
            instance: Arc::clone(&instance),
            cluster: Arc::clone(&cluster),
            fetch_wait: settings.reply.fetch_wait,
            recreate: Recreate {
                partitions: i32::try_from(instance.shards().len()).unwrap_or(1),
                replication_factor: settings.reply.replication_factor,
            },
        };
        let heart = Heart {
            shard,
            partition,
            instance: Arc::clone(&instance),
            cluster: Arc::clone(&cluster),
            interval: settings.reply.heartbeat_interval,
        };
        let pending = Arc::clone(&instance.shards()[shard].pending);
        let lanes = Lanes {
            cluster,
            pending: Arc::clone(&pending),
            directory: Arc::clone(&instance.directory),
            metrics: Arc::clone(&instance.metrics),
            supervisor: supervisor.clone(),
            queue_max: settings.lane_queue_max,
            open: Mutex::new(HashMap::new()),
        };
        let topic = Bytes::copy_from_slice(instance.reply_topic().as_bytes());
        Self {
            pending,
            lanes,
            reply_to: ReplyAddress { topic, partition: Some(partition) },
            settings,
            next_partition: AtomicU32::new(fastrand::u32(..)),
            _tasks: [supervisor.spawn("reply reader", reader.run()), supervisor.spawn("heart", heart.run())],
            instance,
        }
    }

    /// What the shards share.
    pub fn instance(&self) -> &Arc<Instance> {
        &self.instance
    }

    /// What is counted.
    pub fn metrics(&self) -> &Metrics {
        &self.instance.metrics
    }

    /// One call, from its message to its answer, within its deadline.
    pub async fn call(&self, route: &Arc<Route>, request: Request) -> Result<Answer, Failure> {
        let unsent = |why| Failure { why, trace: Trace::nothing_sent(Arc::clone(&route.request_topic)) };
        let deadline = request.deadline;

        self.accepts(deadline).map_err(unsent)?;
        let _permit = self.instance.budget.admit(route, request.message.len()).map_err(unsent)?;
        let key = find_key(route, &request.message).map_err(unsent)?;
        let partition = self.choose_partition(route, &request, key.as_ref()).await.map_err(unsent)?;

        // Registered before anything is sent: a fast worker beats a slow registration.
        let ticket = self.register(route).map_err(unsent)?;
        let parcel = self.pack(route, request, key, &ticket);
        self.lanes.send(&route.request_topic, partition, parcel).map_err(|lanes::LaneFull| {
            unsent(Why::Overloaded {
                what: "limits.lane_queue_max (requests waiting for one partition)",
                limit: self.settings.lane_queue_max as u64,
                retry_after: LANE_RETRY_AFTER,
            })
        })?;
        self.wait(route, ticket, deadline).await
    }

    fn accepts(&self, deadline: Deadline) -> Result<(), Why> {
        match self.instance.phase() {
            Phase::NotReady => Err(Why::NotReady),
            Phase::Draining => Err(Why::Draining),
            Phase::Ready if deadline.has_passed() => Err(Why::TooLate),
            Phase::Ready => Ok(()),
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
                    None => self.spread(partitions),
                });
            }
        };
        match i32::try_from(named) {
            Ok(partition) if (0..partitions).contains(&partition) => Ok(partition),
            _ => Err(Why::NoSuchPartition { partition: named, topic: Arc::clone(topic), partitions }),
        }
    }

    /// Round robin: it gives every worker its share even of few calls, which
    /// filling one partition's batch after the other would not.
    fn spread(&self, partitions: i32) -> i32 {
        let next = self.next_partition.fetch_add(1, Ordering::Relaxed);
        i32::try_from(next % partitions.unsigned_abs()).unwrap_or_default()
    }

    fn register(&self, route: &Route) -> Result<Ticket, Why> {
        let wait_for = match route.mode {
            Mode::RequestReply => WaitFor::Reply,
            Mode::OneWay => WaitFor::Acknowledgement,
        };
        self.pending.register(wait_for).map_err(|full| Why::Overloaded {
            what: "limits.in_flight_max (calls in flight in one shard)",
            limit: full.slots_max.into(),
            retry_after: LANE_RETRY_AFTER,
        })
    }

    fn pack(&self, route: &Route, request: Request, key: Option<Bytes>, ticket: &Ticket) -> Parcel {
        let parts = RequestParts {
            dialect: route.dialect,
            method: Bytes::copy_from_slice(route.path.as_bytes()),
            id: ticket.id(),
            reply_to: (route.mode == Mode::RequestReply).then_some(&self.reply_to),
            deadline: request.deadline,
            key,
            value: request.message,
            metadata: request.metadata,
        };
        Parcel {
            id: ticket.id(),
            record: parts.into_record(),
            compression: route.compression.unwrap_or(self.settings.compression),
            repeatable: route.idempotency != Idempotency::Unknown,
            maybe_sent: false,
        }
    }

    async fn wait(
        &self,
        route: &Arc<Route>,
        mut ticket: Ticket,
        deadline: Deadline,
    ) -> Result<Answer, Failure> {
        let completion = timeout_at(deadline.at(), ticket.wait()).await;
        let mut trace = trace(route, &ticket);
        if let Ok(Completion::Reply(_)) = &completion {
            // Who replies has read the request, whatever the acknowledgement says, or will say.
            trace.outcome = Outcome::Sent;
        }
        let failed = |why| Err(Failure { why, trace: trace.clone() });
        match completion {
            Ok(Completion::Reply(record)) => {
                let offset = record.offset;
                match Reply::decode(
                    *record,
                    route.output.full_name() == EMPTY,
                    self.settings.message_bytes_max,
                ) {
                    Ok(reply) => Ok(Answer { reply, trace }),
                    Err(source) => {
                        let topic = Arc::clone(self.instance.reply_topic());
                        failed(Why::BadReply { topic, offset, source })
                    }
                }
            }
            Ok(Completion::Acknowledged(at)) => {
                let message = message::acknowledgement(
                    route.output.full_name(),
                    &route.request_topic,
                    at.partition,
                    at.offset,
                );
                Ok(Answer { reply: Reply { result: Ok(message), headers: Vec::new() }, trace })
            }
            Ok(Completion::Failed(failure)) => failed(Why::from_send_failure(failure, route)),
            Err(_) => {
                let progress = ticket.progress();
                ticket.time_out();
                failed(match progress {
                    Progress::NotSent(cause) => Why::NotSent(cause),
                    Progress::Queued => {
                        Why::NotSent("the requests before it were not acknowledged in time".into())
                    }
                    _ => Why::TimedOut,
                })
            }
        }
    }
}

/// The key, where the route has one. Walking to the key checks the message as
/// a whole; without a key it is checked all the same.
fn find_key(route: &Route, message: &Bytes) -> Result<Option<Bytes>, Why> {
    let Some(path) = &route.key else {
        crate::route::validate(message).map_err(Why::BadMessage)?;
        return Ok(None);
    };
    let found = path.extract(message).map_err(Why::BadMessage)?;
    Ok(found.map(|key| match key {
        std::borrow::Cow::Borrowed(part) => message.slice_ref(part),
        std::borrow::Cow::Owned(text) => Bytes::from(text),
    }))
}

fn trace(route: &Route, ticket: &Ticket) -> Trace {
    let progress = ticket.progress();
    let at: Option<Coordinates> = match &progress {
        Progress::Appended(at) => Some(*at),
        _ => None,
    };
    Trace {
        id: Some(ticket.id()),
        outcome: Outcome::from(&progress),
        topic: Arc::clone(&route.request_topic),
        at,
    }
}

impl Why {
    fn from_send_failure(failure: SendFailure, route: &Route) -> Self {
        match failure {
            SendFailure::NoSuchTopic => Self::NoSuchTopic(Arc::clone(&route.request_topic)),
            SendFailure::TooLarge => Self::TooLarge,
            SendFailure::Refused(cause) => Self::Refused(cause),
            SendFailure::Stopping => Self::Draining,
        }
    }
}
