//! All lanes of one shard, opened when they are first needed.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::mpsc;
use tokio::sync::mpsc::error::TrySendError;

use super::lane::{Lane, LastError, Measures, Parcel};
use super::load::{self, Load, Waiting};
use super::topics::TopicDirectory;
use crate::metrics::{LaneLoad, Metrics};
use crate::pending::Pending;
use crate::supervisor::{Supervisor, Task};
use crate::transport::Cluster;

/// The lane's queue is full.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct LaneFull;

/// Opens lanes and hands parcels to them.
pub(super) struct Lanes {
    pub(super) cluster: Arc<dyn Cluster>,
    pub(super) pending: Arc<Pending>,
    pub(super) directory: Arc<TopicDirectory>,
    pub(super) metrics: Arc<Metrics>,
    pub(super) supervisor: Supervisor,
    pub(super) queue_max: usize,
    pub(super) open: Mutex<HashMap<Arc<str>, TopicLanes>>,
}

/// The lanes of one topic.
#[derive(Default)]
pub(super) struct TopicLanes {
    by_partition: Vec<Option<OpenLane>>,
    /// Calls that wait on all of them.
    waiting: Arc<AtomicU32>,
    /// Where the last call without a key went.
    last_spread: usize,
}

impl TopicLanes {
    fn waiting_on(&self, partition: usize) -> u32 {
        let lane = self.by_partition.get(partition).and_then(Option::as_ref);
        lane.map_or(0, |lane| lane.load.waiting())
    }
}

/// A lane that runs.
struct OpenLane {
    queue: mpsc::Sender<Parcel>,
    load: Arc<Load>,
    last_error: Arc<LastError>,
    _task: Task,
}

impl Lanes {
    /// Puts a parcel into the lane of its partition, where its call waits until
    /// what is returned is dropped. Must be called on the shard's runtime,
    /// where the lane will run.
    pub(super) fn send(&self, topic: &Arc<str>, partition: i32, parcel: Parcel) -> Result<Waiting, LaneFull> {
        let index = usize::try_from(partition).unwrap_or_default();
        let mut open = self.lock();
        let TopicLanes { by_partition, waiting, .. } = of_topic(&mut open, topic);
        if by_partition.len() <= index {
            by_partition.resize_with(index + 1, || None);
        }
        let lane =
            by_partition[index].get_or_insert_with(|| self.open(topic, partition, Arc::clone(waiting)));
        match lane.queue.try_send(parcel) {
            Ok(()) => Ok(lane.load.add()),
            // A closed lane has panicked; the supervisor is stopping us.
            Err(TrySendError::Full(_) | TrySendError::Closed(_)) => Err(LaneFull),
        }
    }

    /// What each lane has to do.
    pub(super) fn loads(&self) -> Vec<LaneLoad> {
        let open = self.lock();
        let of_topic = |(topic, lanes): (&Arc<str>, &TopicLanes)| {
            let lanes =
                lanes.by_partition.iter().enumerate().filter_map(|(n, lane)| Some((n, lane.as_ref()?)));
            let load = |(partition, lane): (usize, &OpenLane)| LaneLoad {
                topic: Arc::clone(topic),
                partition: i32::try_from(partition).unwrap_or(i32::MAX),
                records: lane.queue.max_capacity() - lane.queue.capacity(),
                calls: lane.load.waiting(),
                last_error: lane.last_error.get(),
            };
            lanes.map(load).collect::<Vec<_>>()
        };
        open.iter().flat_map(of_topic).collect()
    }

    /// The partition for a call without a key.
    pub(super) fn spread(&self, topic: &Arc<str>, partitions: i32) -> i32 {
        let mut open = self.lock();
        let lanes = of_topic(&mut open, topic);
        let total = lanes.waiting.load(Ordering::Relaxed);
        let count = usize::try_from(partitions).unwrap_or_default();
        let chosen = load::choose(lanes.last_spread, count, total, |partition| lanes.waiting_on(partition));
        lanes.last_spread = chosen;
        i32::try_from(chosen).unwrap_or_default()
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<Arc<str>, TopicLanes>> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn open(&self, topic: &Arc<str>, partition: i32, waiting: Arc<AtomicU32>) -> OpenLane {
        let (queue, receiver) = mpsc::channel(self.queue_max);
        let last_error = Arc::new(LastError::default());
        let lane = Lane {
            topic: Arc::clone(topic),
            partition,
            cluster: Arc::clone(&self.cluster),
            pending: Arc::clone(&self.pending),
            directory: Arc::clone(&self.directory),
            metrics: Arc::clone(&self.metrics),
            measures: Measures::new(&self.metrics, topic),
            last_error: Arc::clone(&last_error),
            queue: receiver,
        };
        let task = self.supervisor.spawn("lane", lane.run());
        OpenLane { queue, load: Load::new(waiting), last_error, _task: task }
    }
}

fn of_topic<'a>(open: &'a mut HashMap<Arc<str>, TopicLanes>, topic: &Arc<str>) -> &'a mut TopicLanes {
    if !open.contains_key(topic) {
        // Shards and instances that start together do not begin together.
        let last_spread = usize::from(fastrand::u8(..));
        open.insert(Arc::clone(topic), TopicLanes { last_spread, ..TopicLanes::default() });
    }
    open.entry(Arc::clone(topic)).or_default()
}
