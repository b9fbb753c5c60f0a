//! Refusals in measure.
//!
//! To refuse a call costs two thirds of what it costs to serve one: most of
//! either is HTTP/2. A shard that is offered twice what it can do and refuses
//! all the rest at once has no time left for the calls that it has let in. So
//! refusals that come faster than [`limits::REFUSALS_PER_SECOND`] wait for their
//! turn, for up to [`limits::REFUSAL_DELAY_MAX_MS`]; a stream that waits costs
//! nothing, and a caller whose streams are all taken sends no more.

use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use tokio::time::{Instant, sleep_until};

use crate::limits;

const INTERVAL: Duration = Duration::from_nanos(1_000_000_000 / limits::REFUSALS_PER_SECOND);
/// Refusals that need not wait, after a quiet time.
const BURST: Duration = Duration::from_millis(100);
const DELAY_MAX: Duration = Duration::from_millis(limits::REFUSAL_DELAY_MAX_MS);

/// When the next refusal of a shard may go out.
#[derive(Debug)]
pub(super) struct Pace {
    next: Mutex<Instant>,
}

impl Pace {
    pub(super) fn new() -> Self {
        Self { next: Mutex::new(Instant::now()) }
    }

    /// Waits for the turn of one refusal, at most until `deadline`. One that
    /// would have to wait too long need not: what waits is bounded.
    pub(super) async fn turn(&self, deadline: Instant) {
        if let Some(turn) = self.take(Instant::now()) {
            sleep_until(turn.min(deadline)).await;
        }
    }

    fn take(&self, now: Instant) -> Option<Instant> {
        let mut next = self.next.lock().unwrap_or_else(PoisonError::into_inner);
        if *next > now + DELAY_MAX {
            return None;
        }
        let turn = (*next).max(now.checked_sub(BURST).unwrap_or(now));
        *next = turn + INTERVAL;
        (turn > now).then_some(turn)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_burst_is_refused_at_once_and_a_flood_in_measure() {
        let pace = Pace::new();
        tokio::time::advance(Duration::from_secs(1)).await;
        let (now, second) = (Instant::now(), Duration::from_secs(1));
        let turns: Vec<_> = (0..20_000).map(|_| pace.take(now)).collect();
        let at_once = turns.iter().take_while(|turn| turn.is_none()).count();
        assert_eq!(at_once as u64, 1 + limits::REFUSALS_PER_SECOND / 10);
        // So many wait as have a turn within the longest delay, each behind the other.
        let waiting: Vec<_> = turns.iter().flatten().collect();
        assert!(waiting.is_sorted() && **waiting.last().unwrap() <= now + DELAY_MAX + INTERVAL);
        let expected = DELAY_MAX.as_nanos() / INTERVAL.as_nanos();
        assert!(waiting.len().abs_diff(expected as usize) <= 1, "{}", waiting.len());

        tokio::time::advance(second * 3).await;
        assert_eq!(pace.take(Instant::now()), None, "all is forgotten");
        pace.turn(now).await;
    }
}
