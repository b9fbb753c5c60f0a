//! The access log: a line for each call that failed, and for a share of the
//! others.
//!
//! ```text
//! shards ──► [ bounded queue of lines ] ──► thread ──► file or standard error
//! ```
//!
//! Whoever has a line never waits: where the thread can't keep up, lines are
//! dropped, counted (`antiphon_access_log_dropped_total`) and told of. The lines
//! are made by who knows the calls; this room knows how they are written.

pub mod config;
mod line;
mod writer;

use std::io;
use std::path::PathBuf;
use std::sync::mpsc::{SyncSender, TrySendError, sync_channel};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use crate::limits;
use crate::metrics::Counter;
use crate::supervisor::Supervisor;
use config::Config;

pub use line::Line;
use writer::{Order, Writer};

/// What the lines are called among the others of a log.
const TARGET: &str = "antiphon::access";

/// Why the log can't be written.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The file can't be opened.
    #[error("access_log.file {path:?} cannot be opened for writing: {source}")]
    File {
        /// Its path.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// There is no thread to write it.
    #[error("the access log's thread cannot be started: {0}")]
    Thread(#[source] io::Error),
}

/// Takes lines.
#[derive(Debug)]
pub struct AccessLog {
    config: Config,
    /// Of all `u64`, how many mean that a good call has a line.
    good_below: u64,
    lines: SyncSender<Order>,
    dropped: Counter,
}

impl AccessLog {
    /// Opens the log and starts its thread; `None` where none is wanted.
    /// `dropped` counts what could not be written.
    ///
    /// # Errors
    /// The file can't be opened, or there is no thread.
    pub fn open(config: &Config, supervisor: &Supervisor, dropped: Counter) -> Result<Option<Self>, Error> {
        if !config.enabled {
            return Ok(None);
        }
        let (lines, orders) = sync_channel(limits::ACCESS_LOG_LINES_MAX);
        let writer = Writer::open(config.file.clone(), dropped.clone())?;
        let thread = supervisor.spawn_thread("access log", move || writer.run(&orders));
        // It ends when the last sender is gone.
        drop(thread.map_err(Error::Thread)?);
        Ok(Some(Self { good_below: share_of_all(config.good_share), config: config.clone(), lines, dropped }))
    }

    /// Whether a good call has a line. The same `seed`, such as the caller's
    /// trace id, has the same answer everywhere.
    pub fn wants_good(&self, seed: u64) -> bool {
        self.good_below == u64::MAX || scatter(seed) < self.good_below
    }

    /// A new line.
    pub fn line(&self) -> Line {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        Line::begin(self.config.format, TARGET, i64::try_from(now.as_millis()).unwrap_or(i64::MAX))
    }

    /// Writes a line, some time soon.
    pub fn write(&self, line: Line) {
        match self.lines.try_send(Order::Write(line.finish())) {
            Ok(()) => {}
            Err(TrySendError::Full(_) | TrySendError::Disconnected(_)) => {
                self.dropped.inc();
            }
        }
    }

    /// Waits until all lines so far are written, for at most `limit`. Blocks.
    pub fn flush(&self, limit: Duration) {
        let (done, written) = sync_channel(1);
        // A full queue is on its way out; one more place will be free.
        let until = std::time::Instant::now() + limit;
        let mut order = Order::Flush(done);
        while let Err(TrySendError::Full(back)) = self.lines.try_send(order) {
            if std::time::Instant::now() >= until {
                return;
            }
            order = back;
            std::thread::sleep(Duration::from_millis(1));
        }
        let left = until.saturating_duration_since(std::time::Instant::now());
        let _ = written.recv_timeout(left);
    }
}

fn share_of_all(share: f64) -> u64 {
    // Saturates at both ends.
    (share * u64::MAX as f64) as u64
}

/// Spreads seeds that are not random, as trace ids of some callers (the
/// finalizer of SplitMix64).
fn scatter(seed: u64) -> u64 {
    let mut bits = seed.wrapping_add(0x9e37_79b9_7f4a_7c15);
    bits = (bits ^ (bits >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    bits = (bits ^ (bits >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    bits ^ (bits >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn open(config: Config) -> (AccessLog, Counter) {
        let dropped = Counter::default();
        (AccessLog::open(&config, &Supervisor::new(), dropped.clone()).unwrap().unwrap(), dropped)
    }

    #[test]
    fn of_good_calls_a_share_has_a_line() {
        let wanted = |good_share| {
            let (log, _) = open(Config { good_share, ..Config::default() });
            // Even of seeds that count up.
            (0..100_000).filter(|seed| log.wants_good(*seed)).count()
        };
        assert_eq!((wanted(0.0), wanted(1.0)), (0, 100_000));
        let hundredth = wanted(0.01);
        assert!((900..1_100).contains(&hundredth), "{hundredth}");
    }

    #[test]
    fn every_line_is_in_the_file_or_counted_as_dropped() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("access.log");
        let (log, dropped) = open(Config { file: Some(file.clone()), ..Config::default() });
        let lines = limits::ACCESS_LOG_LINES_MAX * 3;
        for number in 0..lines {
            let mut line = log.line();
            line.number("number", number);
            log.write(line);
        }
        log.flush(Duration::from_secs(30));
        let written = std::fs::read_to_string(&file).unwrap().lines().count();
        assert_eq!(written as u64 + dropped.get(), lines as u64);
        assert!(written >= limits::ACCESS_LOG_LINES_MAX);
    }

    #[test]
    fn a_file_that_was_moved_away_is_made_anew() {
        let folder = tempfile::tempdir().unwrap();
        let (file, old) = (folder.path().join("access.log"), folder.path().join("access.log.1"));
        let (log, _) = open(Config { file: Some(file.clone()), ..Config::default() });
        let write = || {
            log.write(log.line());
            log.flush(Duration::from_secs(30));
        };
        write();
        std::fs::rename(&file, &old).unwrap();
        std::thread::sleep(writer::LOOK_INTERVAL);
        write();
        let lines = |file| std::fs::read_to_string(file).unwrap().lines().count();
        assert_eq!((lines(&old), lines(&file)), (1, 1));
    }

    #[test]
    fn a_file_that_cannot_be_had_is_named() {
        let config = Config { file: Some("/nowhere/access.log".into()), ..Config::default() };
        let error = AccessLog::open(&config, &Supervisor::new(), Counter::default()).unwrap_err();
        assert!(error.to_string().starts_with("access_log.file \"/nowhere/access.log\" cannot be opened"));
    }
}
