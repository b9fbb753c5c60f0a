//! All lanes of one shard, opened when they are first needed.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use tokio::sync::mpsc;
use tokio::sync::mpsc::error::TrySendError;

use super::lane::{Lane, Parcel};
use super::topics::TopicDirectory;
use crate::metrics::Metrics;
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
    pub(super) open: Mutex<HashMap<Arc<str>, Vec<Option<OpenLane>>>>,
}

/// A lane that runs.
pub(super) struct OpenLane {
    queue: mpsc::Sender<Parcel>,
    _task: Task,
}

impl Lanes {
    /// Puts a parcel into the lane of its partition. Must be called on the
    /// shard's runtime, where the lane will run.
    pub(super) fn send(&self, topic: &Arc<str>, partition: i32, parcel: Parcel) -> Result<(), LaneFull> {
        let index = usize::try_from(partition).unwrap_or_default();
        let mut open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        let lanes = match open.get_mut(topic) {
            Some(lanes) => lanes,
            None => open.entry(Arc::clone(topic)).or_default(),
        };
        if lanes.len() <= index {
            lanes.resize_with(index + 1, || None);
        }
        let lane = lanes[index].get_or_insert_with(|| self.open(topic, partition));
        match lane.queue.try_send(parcel) {
            Ok(()) => Ok(()),
            // A closed lane has panicked; the supervisor is stopping us.
            Err(TrySendError::Full(_) | TrySendError::Closed(_)) => Err(LaneFull),
        }
    }

    fn open(&self, topic: &Arc<str>, partition: i32) -> OpenLane {
        let (queue, receiver) = mpsc::channel(self.queue_max);
        let lane = Lane {
            topic: Arc::clone(topic),
            partition,
            cluster: Arc::clone(&self.cluster),
            pending: Arc::clone(&self.pending),
            directory: Arc::clone(&self.directory),
            metrics: Arc::clone(&self.metrics),
            queue: receiver,
        };
        OpenLane { queue, _task: self.supervisor.spawn("lane", lane.run()) }
    }
}
