//! An instance as operators see it: what is read, written and waited for at the
//! moment. Nothing here is on the way of a call.

use std::collections::BTreeMap;
use std::sync::{Arc, Weak};
use std::time::Duration;

use tokio::time::Instant;

use super::circuit::CircuitState;
use super::instance::Instance;
use crate::metrics::{LaneLoad, ReplyPartition};
use crate::pending::{InFlight, Oldest};

/// A partition of the reply topic that this instance reads.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ReplyPlace {
    /// The shard that reads it.
    pub shard: usize,
    /// The partition.
    pub partition: i32,
    /// New requests ask for replies to it by name.
    pub is_named: bool,
    /// Its reader stands where the next reply will be.
    pub is_positioned: bool,
    /// Age of the newest heartbeat that came back.
    pub heartbeat_age: Option<Duration>,
    /// The next offset to be read.
    pub next_offset: i64,
    /// Records that are yet to be read, by the last fetch.
    pub lag: Option<i64>,
}

impl Instance {
    /// Since when it is there.
    pub const fn started(&self) -> Instant {
        self.started
    }

    /// How old the newest heartbeat may be.
    pub const fn heartbeat_age_max(&self) -> Duration {
        self.heartbeat_age_max
    }

    /// The `max` calls in flight that began first, over all shards, and how many
    /// there are.
    pub fn oldest_calls(&self, max: usize) -> Oldest {
        let mut all = Oldest::default();
        for (calls, total) in self.shards().iter().map(|shard| {
            let Oldest { calls, total } = shard.pending.oldest(max);
            (calls, total)
        }) {
            all.calls.extend(calls);
            all.total += total;
        }
        all.calls.sort_by_key(|call: &InFlight| call.about.began);
        all.calls.truncate(max);
        all
    }

    /// What each lane has to do, by topic and partition; those of several shards
    /// to one partition as one.
    pub fn lanes(&self) -> Vec<LaneLoad> {
        let mut by_place: BTreeMap<(Arc<str>, i32), LaneLoad> = BTreeMap::new();
        let lanes = self.shards().iter().filter_map(|state| state.lanes.get().and_then(Weak::upgrade));
        for load in lanes.flat_map(|lanes| lanes.loads()) {
            let place = (Arc::clone(&load.topic), load.partition);
            match by_place.get_mut(&place) {
                None => {
                    by_place.insert(place, load);
                }
                Some(known) => {
                    known.records += load.records;
                    known.calls += load.calls;
                    known.last_error = known.last_error.take().max(load.last_error);
                }
            }
        }
        by_place.into_values().collect()
    }

    /// The topics whose calls time out, with their circuits.
    pub fn circuits(&self) -> BTreeMap<Arc<str>, CircuitState> {
        self.circuits.states()
    }

    /// The partitions of the reply topic that are read.
    pub fn reply_places(&self) -> Vec<ReplyPlace> {
        let now = self.now_ms();
        let mut places = Vec::new();
        for (shard, state) in self.shards().iter().enumerate() {
            let named = state.named_partition();
            for place in state.lock().iter() {
                let partition = place.partition();
                let labels = ReplyPartition { messaging_destination_partition_id: partition };
                let age = |beat: u64| Duration::from_millis(now.saturating_sub(beat));
                places.push(ReplyPlace {
                    shard,
                    partition,
                    is_named: named == Some(partition),
                    is_positioned: place.is_positioned(),
                    heartbeat_age: Some(place.heartbeat_ms()).filter(|beat| *beat > 0).map(age),
                    next_offset: place.next_offset(),
                    lag: self.metrics.reply_lag.get(&labels).map(|gauge| gauge.get()),
                });
            }
        }
        places.sort_by_key(|place| (place.partition, place.shard));
        places
    }
}
