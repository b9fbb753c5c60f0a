//! What is logged, and how that changes while the process runs.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::Notify;
use tokio::time::{Instant, sleep_until};
use tracing_subscriber::{EnvFilter, Registry, reload};

/// What a filter may have, in bytes.
const BYTES_MAX: usize = 4_096;

/// Why a filter is of no use.
#[derive(Debug, thiserror::Error)]
pub enum FilterError {
    /// It says nothing.
    #[error("a filter is expected, such as info,rskafka=warn")]
    Empty,
    /// It is too long.
    #[error("a filter of {0} bytes; at most {BYTES_MAX} are read")]
    TooLong(usize),
    /// It can't be read.
    #[error("{0}")]
    Unreadable(#[from] tracing_subscriber::filter::ParseError),
    /// The subscriber has gone.
    #[error("the log cannot be changed: {0}")]
    Gone(#[from] reload::Error),
}

/// Reads a filter.
pub(super) fn parse(text: &str) -> Result<EnvFilter, FilterError> {
    match text.trim() {
        "" => Err(FilterError::Empty),
        long if long.len() > BYTES_MAX => Err(FilterError::TooLong(long.len())),
        // Values are compared as they are: whoever sets a filter need not be able to write a
        // regular expression that takes long.
        text => Ok(EnvFilter::builder().with_regex(false).parse(text)?),
    }
}

/// The filter of the process's log.
#[derive(Debug)]
pub struct Filter {
    configured: String,
    handle: reload::Handle<EnvFilter, Registry>,
    now: Mutex<Now>,
    changed: Notify,
}

#[derive(Debug)]
struct Now {
    filter: String,
    /// When the configured one comes back.
    until: Option<Instant>,
}

/// The filter, for people.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Shown {
    /// What holds now.
    pub filter: String,
    /// What `log.filter` says.
    pub configured: String,
    /// When that comes back, if it is not there.
    pub back_in: Option<Duration>,
}

impl Filter {
    pub(super) fn new(configured: &str, handle: reload::Handle<EnvFilter, Registry>) -> Self {
        let now = Now { filter: configured.to_owned(), until: None };
        Self { configured: configured.to_owned(), handle, now: Mutex::new(now), changed: Notify::new() }
    }

    /// What holds.
    pub fn show(&self) -> Shown {
        let now = self.lock();
        let back_in = now.until.map(|until| until.saturating_duration_since(Instant::now()));
        Shown { filter: now.filter.clone(), configured: self.configured.clone(), back_in }
    }

    /// From now on another one holds; for a while, or until it is told otherwise.
    ///
    /// # Errors
    /// The filter is of no use; the one before goes on.
    pub fn set(&self, text: &str, lasts: Option<Duration>) -> Result<(), FilterError> {
        let parsed = parse(text)?;
        let text = text.trim();
        // Before, so that it is said even where less is logged from now on.
        tracing::warn!(filter = text, ?lasts, "the log's filter is changed");
        let mut now = self.lock();
        self.handle.reload(parsed)?;
        *now = Now { filter: text.to_owned(), until: lasts.map(|lasts| Instant::now() + lasts) };
        drop(now);
        self.changed.notify_one();
        Ok(())
    }

    /// Back to what is configured.
    ///
    /// # Errors
    /// The subscriber has gone.
    pub fn reset(&self) -> Result<(), FilterError> {
        self.set(&self.configured, None)
    }

    /// Brings the configured filter back when its time has come. Never ends.
    pub async fn keep_time(&self) {
        loop {
            let until = self.lock().until;
            match until {
                None => self.changed.notified().await,
                Some(until) => tokio::select! {
                    () = self.changed.notified() => {}
                    () = sleep_until(until) => {
                        // A longer time may have been set in the meantime.
                        let due = self.lock().until.is_some_and(|until| until <= Instant::now());
                        if due && let Err(error) = self.reset() {
                            return tracing::error!(%error, "the configured filter is not back");
                        }
                    }
                },
            }
        }
    }

    fn lock(&self) -> MutexGuard<'_, Now> {
        self.now.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use tracing_subscriber::layer::SubscriberExt as _;

    use super::*;

    #[test]
    fn what_is_wrong_is_said() {
        assert_eq!(parse(" ").unwrap_err().to_string(), "a filter is expected, such as info,rskafka=warn");
        assert_eq!(
            parse(&"a".repeat(5_000)).unwrap_err().to_string(),
            "a filter of 5000 bytes; at most 4096 are read"
        );
        let unreadable = parse("antiphon=loud").unwrap_err().to_string();
        assert!(unreadable.contains("expected one of \"off\""), "{unreadable}");
        assert!(parse("debug,antiphon::exchange=trace").is_ok());
    }

    #[tokio::test(start_paused = true)]
    async fn another_filter_holds_for_a_while() {
        let (layer, handle) = reload::Layer::new(parse("info").unwrap());
        let filter = Arc::new(Filter::new("info", handle));
        let subscriber = tracing_subscriber::registry().with(layer);
        let _guard = tracing::subscriber::set_default(subscriber);
        let logs_debug = || tracing::enabled!(target: "antiphon::x", tracing::Level::DEBUG);
        assert!(!logs_debug());
        filter.set("debug", None).unwrap();
        assert!(logs_debug());
        assert!(filter.set("antiphon=loud", None).is_err());
        assert_eq!(filter.show(), Shown { filter: "debug".into(), configured: "info".into(), back_in: None });

        let minute = Duration::from_secs(60);
        filter.set("antiphon=debug", Some(minute)).unwrap();
        let watched = Arc::clone(&filter);
        let keeping = async move { watched.keep_time().await };
        let passing = async {
            tokio::time::sleep(minute / 2).await;
            assert!(logs_debug());
            assert_eq!(filter.show().back_in, Some(minute / 2));
            tokio::time::sleep(minute).await;
            assert!(!logs_debug());
            assert_eq!((filter.show().filter, filter.show().back_in), ("info".into(), None));
        };
        tokio::select! {
            () = keeping => panic!("it has nothing to end for"),
            () = passing => {}
        }
    }
}
