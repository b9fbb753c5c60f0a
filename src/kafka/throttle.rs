//! Hears when rskafka is about to send an appended batch a second time.
//!
//! When the answer to a produce carries a throttle time (a quota was exceeded;
//! the records *are* in the log), rskafka throws the answer away, sleeps and
//! sends the batch again. No setting stops it; its only sign is a log event.
//! So a produce runs with a subscriber of our own, which hears that event and
//! nothing else, and is dropped during the sleep.

use std::fmt;
use std::future::{Future, poll_fn};
use std::pin::pin;
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::PoisonError;
use std::task::Poll;
use std::time::Duration;

use tracing::field::{Field, Visit};
use tracing::instrument::WithSubscriber as _;
use tracing::level_filters::LevelFilter;
use tracing::span;
use tracing::{Dispatch, Event, Metadata, Subscriber};

const TARGET: &str = "rskafka::backoff";
const MESSAGE: &str = "broker asked us to throttle";

/// rskafka was about to repeat what it had sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Throttled {
    /// How long the broker wants to hear nothing.
    pub(super) wait: Duration,
}

/// One for each connection, used for one request at a time.
#[derive(Debug)]
pub(super) struct Sentinel {
    heard: Arc<Mutex<Option<Duration>>>,
    dispatch: Dispatch,
}

impl Sentinel {
    pub(super) fn new() -> Self {
        let heard = Arc::new(Mutex::new(None));
        Self { dispatch: Dispatch::new(Listener { heard: Arc::clone(&heard) }), heard }
    }

    /// Polls `request` until it ends or would be repeated.
    pub(super) async fn watch<F: Future>(&self, request: F) -> Result<F::Output, Throttled> {
        *self.heard() = None;
        let mut request = pin!(request.with_subscriber(self.dispatch.clone()));
        poll_fn(|context| match request.as_mut().poll(context) {
            Poll::Ready(output) => Poll::Ready(Ok(output)),
            Poll::Pending => match self.heard().take() {
                Some(wait) => Poll::Ready(Err(Throttled { wait })),
                None => Poll::Pending,
            },
        })
        .await
    }

    fn heard(&self) -> std::sync::MutexGuard<'_, Option<Duration>> {
        self.heard.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

struct Listener {
    heard: Arc<Mutex<Option<Duration>>>,
}

impl Subscriber for Listener {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        metadata.is_event() && metadata.target() == TARGET
    }

    fn max_level_hint(&self) -> Option<LevelFilter> {
        Some(LevelFilter::INFO)
    }

    fn new_span(&self, _: &span::Attributes<'_>) -> span::Id {
        span::Id::from_u64(1)
    }

    fn record(&self, _: &span::Id, _: &span::Record<'_>) {}

    fn record_follows_from(&self, _: &span::Id, _: &span::Id) {}

    fn event(&self, event: &Event<'_>) {
        let mut found = ThrottleEvent::default();
        event.record(&mut found);
        if found.is_throttle {
            *self.heard.lock().unwrap_or_else(PoisonError::into_inner) = Some(found.wait);
        }
    }

    fn enter(&self, _: &span::Id) {}

    fn exit(&self, _: &span::Id) {}
}

#[derive(Default)]
struct ThrottleEvent {
    is_throttle: bool,
    wait: Duration,
}

impl Visit for ThrottleEvent {
    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        match field.name() {
            "message" => self.is_throttle = format!("{value:?}") == MESSAGE,
            "throttle" => self.wait = parse_debug_duration(&format!("{value:?}")).unwrap_or_default(),
            _ => {}
        }
    }
}

/// Reads back what `Debug` makes of a whole number of milliseconds: `250ms`,
/// `1s`, `1.5s`.
fn parse_debug_duration(text: &str) -> Option<Duration> {
    if text == "0ns" {
        return Some(Duration::ZERO);
    }
    let (number, scale) = match text.strip_suffix("ms") {
        Some(number) => (number, 0.001),
        None => (text.strip_suffix('s')?, 1.0),
    };
    Duration::try_from_secs_f64(number.parse::<f64>().ok()? * scale).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_whole_millisecond_reads_back() {
        for ms in [0, 1, 250, 999, 1000, 1500, 61_001] {
            let duration = Duration::from_millis(ms);
            let read = parse_debug_duration(&format!("{duration:?}")).unwrap();
            assert!(read.abs_diff(duration) < Duration::from_micros(1), "{duration:?} {read:?}");
        }
    }

    #[tokio::test]
    async fn other_events_do_not_disturb() {
        let sentinel = Sentinel::new();
        let watched = sentinel
            .watch(async {
                tracing::info!("broker asked us to throttle");
                tokio::task::yield_now().await;
                7
            })
            .await;
        assert_eq!(watched, Ok(7));
    }
}
