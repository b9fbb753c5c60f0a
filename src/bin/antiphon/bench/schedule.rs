//! When calls start.
//!
//! A closed loop starts a call when another ends. That is how a pool of
//! clients behaves, but when the server stalls the load stalls with it, and
//! the calls that would have been slow are never made (coordinated omission).
//! An open loop has a schedule that the server cannot slow down: a call that
//! is sent late has waited since the moment when it was due.

/// Nanoseconds of a second.
const SECOND: f64 = 1e9;

/// How calls are paced.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) enum Pace {
    /// So many calls in flight, always.
    InFlight(u32),
    /// So many calls a second, and at most so many in flight.
    Rate(f64, u32),
}

impl Pace {
    pub(super) fn in_flight_max(self) -> u32 {
        match self {
            Self::InFlight(calls) | Self::Rate(_, calls) => calls,
        }
    }
}

/// The intended starts of one of several threads that take turns.
#[derive(Debug, Clone)]
pub(super) struct Schedule {
    rate: f64,
    next: u64,
    step: u64,
}

impl Schedule {
    /// `rate` calls a second in all, of which `thread` out of `threads` makes
    /// its share.
    pub(super) fn new(rate: f64, thread: u32, threads: u32) -> Self {
        Self { rate, next: thread.into(), step: threads.into() }
    }

    /// When the next call is due, in nanoseconds from the start of the run.
    /// Computed from its number, so that nothing adds up.
    pub(super) fn due(&self) -> u64 {
        // Exact enough: below 2^53 calls and nanoseconds.
        (self.next as f64 / self.rate * SECOND) as u64
    }

    /// The intended start of the next call, once it is due. A start that was
    /// missed is not forgotten; it is still the next one's.
    pub(super) fn take(&mut self, now: u64) -> Option<u64> {
        let due = self.due();
        (due <= now).then(|| {
            self.next += self.step;
            due
        })
    }

    /// Calls that are due before `end` and have not been taken.
    pub(super) fn untaken(&self, end: u64) -> u64 {
        let before = (end as f64 / SECOND * self.rate).ceil() as u64;
        before.saturating_sub(self.next).div_ceil(self.step)
    }
}

/// So much of `whole` falls to `part` of `parts`: they differ by one at most
/// and add up.
pub(super) fn share(whole: u64, part: u32, parts: u32) -> u64 {
    let (part, parts) = (u64::from(part), u64::from(parts));
    whole / parts + u64::from(part < whole % parts)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn threads_take_turns_and_nothing_drifts() {
        let mut threads = [Schedule::new(3.0, 0, 2), Schedule::new(3.0, 1, 2)];
        let starts: Vec<_> = (0..6).filter_map(|n| threads[n % 2].take(u64::MAX)).collect();
        assert_eq!(starts, [0, 333_333_333, 666_666_666, 1_000_000_000, 1_333_333_333, 1_666_666_666]);

        let mut long = Schedule::new(7_000.0, 0, 1);
        for _ in 0..7_000_000 {
            long.take(u64::MAX);
        }
        assert_eq!(long.due(), 1_000_000_000_000);
    }

    #[test]
    fn a_call_is_not_taken_before_it_is_due() {
        let mut schedule = Schedule::new(1_000.0, 0, 1);
        assert_eq!(schedule.take(0), Some(0));
        assert_eq!(schedule.take(999_999), None);
        assert_eq!(schedule.take(1_000_000), Some(1_000_000));
    }

    /// The heart of it: after a stall of 50 ms the missed starts come with the
    /// times at which they were due, so the wait is in their latency.
    #[test]
    fn what_a_stall_has_delayed_keeps_its_intended_start() {
        let mut schedule = Schedule::new(1_000.0, 0, 1);
        let mut late = Vec::new();
        while let Some(intended) = schedule.take(50_000_000) {
            late.push(50_000_000 - intended);
        }
        assert_eq!(late.len(), 51);
        assert_eq!((late[0], late[50]), (50_000_000, 0));
    }

    #[test]
    fn what_was_not_sent_is_counted() {
        let mut threads = [Schedule::new(100.0, 0, 2), Schedule::new(100.0, 1, 2)];
        assert_eq!(threads.each_ref().map(|s| s.untaken(1_000_000_000)), [50, 50]);
        while threads[0].take(400_000_000).is_some() {}
        assert_eq!(threads[0].untaken(1_000_000_000), 50 - 21);
        assert_eq!(threads[0].untaken(0), 0);
    }

    #[test]
    fn shares_add_up() {
        assert_eq!([0, 1, 2].map(|part| share(11, part, 3)), [4, 4, 3]);
        assert_eq!([0, 1, 2].map(|part| share(2, part, 3)), [1, 1, 0]);
    }
}
