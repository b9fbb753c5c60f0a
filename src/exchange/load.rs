//! How many calls wait on each partition, and where those without a key go.
//!
//! A record alone in its batch costs the gateway, the broker and the worker
//! several times what one among ten does. With few calls in flight that buys
//! nothing, and each goes to the partition with the fewest waiting. With many,
//! calls in a row stay on one partition while it has not much more than its
//! share, as Kafka's own producers do ([KIP-480][480], [KIP-794][794]), and then
//! move on to the one with the fewest. A partition whose worker is stuck has
//! many, and gets no more.
//!
//! [480]: https://cwiki.apache.org/confluence/display/KAFKA/KIP-480%3A+Sticky+Partitioner
//! [794]: https://cwiki.apache.org/confluence/display/KAFKA/KIP-794%3A+Strictly+Uniform+Sticky+Partitioner

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

/// Calls stay on a partition only where so many wait on each, on average.
const STAY_FROM: u32 = 4;
/// They stay until the partition has so many times the average.
const SHARE_MAX: u32 = 2;

/// Calls that wait on one partition.
#[derive(Debug, Default)]
pub(super) struct Load {
    here: AtomicU32,
    topic: Arc<AtomicU32>,
}

impl Load {
    /// Of a partition whose topic's calls are counted in `topic`.
    pub(super) fn new(topic: Arc<AtomicU32>) -> Arc<Self> {
        Arc::new(Self { here: AtomicU32::new(0), topic })
    }

    /// How many wait.
    pub(super) fn waiting(&self) -> u32 {
        self.here.load(Ordering::Relaxed)
    }

    /// One more, until it is dropped.
    pub(super) fn add(self: &Arc<Self>) -> Waiting {
        self.here.fetch_add(1, Ordering::Relaxed);
        self.topic.fetch_add(1, Ordering::Relaxed);
        Waiting { on: Arc::clone(self) }
    }
}

/// A call that waits on a partition.
#[derive(Debug)]
pub(super) struct Waiting {
    on: Arc<Load>,
}

impl Drop for Waiting {
    fn drop(&mut self) {
        self.on.here.fetch_sub(1, Ordering::Relaxed);
        self.on.topic.fetch_sub(1, Ordering::Relaxed);
    }
}

/// The partition for the next call without a key, of `partitions`; `current`
/// had the last one. `waiting` tells how many wait on a partition, `total` on
/// all.
pub(super) fn choose(current: usize, partitions: usize, total: u32, waiting: impl Fn(usize) -> u32) -> usize {
    let many = u32::try_from(partitions).unwrap_or(u32::MAX);
    if current < partitions && total >= many.saturating_mul(STAY_FROM) {
        let share = SHARE_MAX.saturating_mul(total) / many;
        if waiting(current) < share {
            return current;
        }
    }
    // In turn, where several have the fewest.
    let in_turn = (1..=partitions).map(|n| (current + n) % partitions);
    in_turn.min_by_key(|partition| waiting(*partition)).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Sends `calls` of which `in_flight` wait at a time, answered in order.
    fn run(partitions: usize, in_flight: usize, calls: usize) -> (Vec<usize>, u32) {
        let mut waiting = vec![0u32; partitions];
        let (mut chosen, mut worst) = (Vec::new(), 0);
        for n in 0..calls {
            if n >= in_flight {
                waiting[chosen[n - in_flight]] -= 1;
            }
            let current = chosen.last().copied().unwrap_or_default();
            let next = choose(current, partitions, waiting.iter().sum(), |partition| waiting[partition]);
            waiting[next] += 1;
            worst = worst.max(waiting[next]);
            chosen.push(next);
        }
        (chosen, worst)
    }

    proptest! {
        #[test]
        fn no_partition_has_much_more_than_its_share(
            partitions in 1usize..40,
            in_flight in 1usize..600,
        ) {
            let (chosen, worst) = run(partitions, in_flight, 3_000);
            prop_assert!(chosen.iter().all(|partition| *partition < partitions));
            let share = in_flight.div_ceil(partitions) as u32;
            prop_assert!(worst <= SHARE_MAX * share + 1, "{worst} of {share}");
            if in_flight < partitions * STAY_FROM as usize {
                // One more than the others at most.
                prop_assert!(worst <= share + 1, "{worst} of {share}");
            }
            for partition in 0..partitions {
                prop_assert!(chosen.contains(&partition), "{partition} gets none");
            }
        }
    }

    #[test]
    fn many_calls_go_in_runs_and_few_go_each_to_another() {
        let (chosen, _) = run(6, 5, 600);
        assert!(chosen.windows(2).all(|two| two[0] != two[1]));
        let (chosen, _) = run(6, 64, 6_000);
        let changes = chosen.windows(2).filter(|two| two[0] != two[1]).count();
        assert!(changes < 6_000 / 5, "{changes}");
    }

    #[test]
    fn a_stuck_partition_gets_no_more() {
        let loads = [0, 40, 3, 2];
        let next = choose(1, 4, 45, |partition| loads[partition]);
        assert_eq!(next, 0);
    }

    #[test]
    fn what_waits_is_counted_and_forgotten() {
        let topic = Arc::new(AtomicU32::new(0));
        let load = Load::new(Arc::clone(&topic));
        let one = load.add();
        let two = load.add();
        assert_eq!((load.waiting(), topic.load(Ordering::Relaxed)), (2, 2));
        drop((one, two));
        assert_eq!((load.waiting(), topic.load(Ordering::Relaxed)), (0, 0));
    }
}
