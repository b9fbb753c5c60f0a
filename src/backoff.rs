//! Pauses between attempts that grow, with jitter.

use std::time::Duration;

use crate::limits;

/// Exponential backoff with full jitter between half and all of each step, so
/// that lanes which failed together do not come back together.
#[derive(Debug, Clone)]
pub struct Backoff {
    first: Duration,
    next: Duration,
    max: Duration,
}

impl Default for Backoff {
    fn default() -> Self {
        Self::new(
            Duration::from_millis(limits::RETRY_BACKOFF_MS),
            Duration::from_millis(limits::RETRY_BACKOFF_MAX_MS),
        )
    }
}

impl Backoff {
    /// Pauses from `first` on, doubled each time up to `max`.
    pub fn new(first: Duration, max: Duration) -> Self {
        Self { first, next: first.min(max), max }
    }

    /// The pause before the next attempt.
    pub fn next_pause(&mut self) -> Duration {
        let step = self.next;
        self.next = (step * 2).min(self.max);
        step.mul_f64(0.5 + 0.5 * fastrand::f64())
    }

    /// Waits before the next attempt.
    pub async fn pause(&mut self) {
        tokio::time::sleep(self.next_pause()).await;
    }

    /// Starts again after a success.
    pub fn reset(&mut self) {
        *self = Self::new(self.first, self.max);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_grow_up_to_the_bound() {
        let mut backoff = Backoff::default();
        let mut step = Duration::from_millis(limits::RETRY_BACKOFF_MS);
        for _ in 0..20 {
            let pause = backoff.next_pause();
            assert!(pause >= step / 2 && pause <= step, "{pause:?} of {step:?}");
            step = (step * 2).min(Duration::from_millis(limits::RETRY_BACKOFF_MAX_MS));
        }
    }
}
