//! The calls that have waited longest, for whoever looks at what is in flight.
//!
//! Taken piece by piece: between two pieces the slab is free, so that a call
//! waits for a look no longer than for another call.

use std::collections::BinaryHeap;

use tokio::time::Instant;

use super::{About, Pending, Progress, Slot, State, WaitFor};
use crate::correlation::CorrelationId;

/// Slots that are looked at under one lock: some ten microseconds.
const SLOTS_AT_ONCE: usize = 512;

/// A call that holds a place.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct InFlight {
    /// Its correlation id.
    pub id: CorrelationId,
    /// What is known of it besides.
    pub about: About,
    /// What it waits for; `None` when it has what it waited for.
    pub wait_for: Option<WaitFor>,
    /// What is known of its request.
    pub progress: Progress,
}

/// The calls that a look has found.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Oldest {
    /// The oldest, in order.
    pub calls: Vec<InFlight>,
    /// How many there are in all.
    pub total: usize,
}

/// Ordered so that the youngest is on top of the heap.
struct Kept(Instant, InFlight);

impl PartialEq for Kept {
    fn eq(&self, other: &Self) -> bool {
        self.0 == other.0
    }
}

impl Eq for Kept {}

impl PartialOrd for Kept {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Kept {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        self.0.cmp(&other.0)
    }
}

impl Pending {
    /// The `max` calls that began first. Calls that come and go meanwhile may or
    /// may not be among them.
    pub fn oldest(&self, max: usize) -> Oldest {
        let mut kept = BinaryHeap::with_capacity(max.saturating_add(1));
        let (mut total, mut from) = (0, 0);
        loop {
            let slots = self.lock();
            let upto = slots.all.len().min(from + SLOTS_AT_ONCE);
            for slot in slots.all.get(from..upto).unwrap_or_default() {
                let youngest = kept.peek().map(|Kept(began, _)| *began);
                let is_full = kept.len() >= max;
                let is_wanted = !is_full || youngest.is_some_and(|youngest| slot.about.began < youngest);
                let Some(progress) = slot.progress() else { continue };
                total += 1;
                if is_wanted && max > 0 {
                    if is_full {
                        kept.pop();
                    }
                    kept.push(Kept(slot.about.began, slot.shown(progress.clone())));
                }
            }
            let is_done = upto >= slots.all.len();
            drop(slots);
            if is_done {
                break;
            }
            from = upto;
        }
        let mut calls: Vec<InFlight> = kept.into_iter().map(|Kept(_, call)| call).collect();
        calls.sort_by_key(|call| call.about.began);
        Oldest { calls, total }
    }
}

impl Slot {
    /// What is known of the request, unless the call has ended.
    fn progress(&self) -> Option<&Progress> {
        match &self.state {
            State::Waiting { progress, .. } | State::Done { progress, .. } => Some(progress),
            State::Free { .. } => None,
        }
    }

    fn shown(&self, progress: Progress) -> InFlight {
        let wait_for = match &self.state {
            State::Waiting { wait_for, .. } => Some(*wait_for),
            State::Done { .. } | State::Free { .. } => None,
        };
        InFlight { id: self.id, about: self.about, wait_for, progress }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::correlation::Minter;

    #[test]
    fn the_oldest_are_found_across_pieces_and_the_ended_are_not() {
        let pending = Pending::new(9, Minter::new(0, 9, [1; 32]), 10_000);
        let start = Instant::now();
        let calls = SLOTS_AT_ONCE * 2 + 7;
        let mut tickets: Vec<_> = (0..calls)
            .map(|n| {
                // The last to register began first.
                let began = start + Duration::from_millis((calls - n) as u64);
                let about = About { route: n as u32, partition: 1, began, deadline: began };
                pending.register(WaitFor::Reply, about).unwrap()
            })
            .collect();
        // The oldest of all goes.
        drop(tickets.pop());
        pending.begin_send(tickets[calls - 2].id());
        let found = pending.oldest(3);
        assert_eq!(found.total, calls - 1);
        let routes: Vec<u32> = found.calls.iter().map(|call| call.about.route).collect();
        assert_eq!(routes, [calls as u32 - 2, calls as u32 - 3, calls as u32 - 4]);
        assert_eq!(
            (&found.calls[0].progress, &found.calls[1].progress),
            (&Progress::Sending, &Progress::Queued)
        );
        assert_eq!(found.calls[0].wait_for, Some(WaitFor::Reply));
        assert_eq!((pending.oldest(0).calls.len(), pending.oldest(0).total), (0, calls - 1));
        assert_eq!(pending.oldest(usize::from(u16::MAX)).calls.len(), calls - 1);
    }
}
