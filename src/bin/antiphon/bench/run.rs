//! One run from its outside: connections, threads, samples at both ends of the
//! window, and the line that shows how far it is.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use antiphon::supervisor::Supervisor;
use indicatif::{ProgressBar, ProgressStyle};
use tokio::sync::mpsc;
use tokio::time::{sleep, timeout};

use super::crew::{Crew, Orders, Place, Progress, Tally, Window, nanoseconds};
use super::http2::{Broken, Connection, Endpoint};
use super::process::Usage;
use super::schedule::Pace;
use crate::serve::Stop;

/// How often the progress line changes.
const TICK: Duration = Duration::from_millis(200);
/// From the moment that all connections are open to the first call.
const LEAD: Duration = Duration::from_millis(5);
/// Beyond the window and the last call's time-out, how long threads may take.
const END_GRACE: Duration = Duration::from_secs(15);

/// What a run is told.
#[derive(Debug, Clone)]
pub(super) struct Job {
    pub(super) endpoint: Endpoint,
    /// Framed as gRPC has it.
    pub(super) messages: Arc<[Box<[u8]>]>,
    pub(super) pace: Pace,
    pub(super) connections: u32,
    pub(super) threads: u32,
    pub(super) warm_up: Duration,
    pub(super) length: Length,
    pub(super) timeout: Duration,
    pub(super) pid: Option<u32>,
}

/// When a run ends.
#[derive(Debug, Clone, Copy)]
pub(super) enum Length {
    Time(Duration),
    Calls(u64),
}

/// What a run has come to.
#[derive(Debug)]
pub(super) struct Run {
    pub(super) pace: Pace,
    pub(super) connections: u32,
    pub(super) threads: u32,
    /// Most calls that the server allows on one connection.
    pub(super) calls_max: u32,
    pub(super) tally: Tally,
    /// Between the samples below.
    pub(super) seconds: f64,
    /// Calls that ended between them.
    pub(super) finished: u64,
    pub(super) server: Option<Used>,
    pub(super) client: Option<Used>,
    pub(super) interrupted: bool,
}

/// What a process used between two samples.
#[derive(Debug, Clone, Copy)]
pub(super) struct Used {
    pub(super) cpu: Duration,
    pub(super) at_end: Usage,
}

/// A moment of a run.
pub(super) struct Sample {
    at: Instant,
    finished: u64,
    server: Option<Usage>,
    client: Option<Usage>,
}

impl Sample {
    pub(super) fn take(progress: &Progress, pid: Option<u32>) -> Self {
        Self {
            at: Instant::now(),
            finished: progress.finished.load(Ordering::Relaxed),
            server: pid.and_then(|pid| Usage::of(Some(pid)).ok()),
            client: Usage::of(None).ok(),
        }
    }

    /// Seconds, calls, and what server and client used since `begin`.
    pub(super) fn since(&self, begin: &Self) -> (f64, u64, Option<Used>, Option<Used>) {
        let used = |begin: Option<Usage>, end: Option<Usage>| {
            let (begin, at_end) = (begin?, end?);
            Some(Used { cpu: at_end.cpu.saturating_sub(begin.cpu), at_end })
        };
        let seconds = self.at.saturating_duration_since(begin.at).as_secs_f64();
        let finished = self.finished - begin.finished;
        (seconds, finished, used(begin.server, self.server), used(begin.client, self.client))
    }
}

/// Runs `job`, or as much of it as there is time for before a signal.
pub(super) async fn run(job: &Job, supervisor: &Supervisor, stop: &mut Stop) -> Result<Run, Broken> {
    let mut connections = Vec::new();
    for _ in 0..job.connections {
        connections.push(Connection::open(&job.endpoint)?);
    }
    let calls_max = connections.iter().map(Connection::calls_max).min().unwrap_or(u32::MAX);

    let progress = Arc::new(Progress::default());
    let warm = nanoseconds(job.warm_up);
    let (end, calls) = match job.length {
        Length::Time(length) => (warm + nanoseconds(length), None),
        Length::Calls(calls) => (u64::MAX, Some(calls)),
    };
    let epoch = Instant::now() + LEAD;
    let orders = Orders {
        endpoint: job.endpoint.clone(),
        messages: Arc::clone(&job.messages),
        timeout: job.timeout,
        pace: job.pace,
        calls,
        window: Window { epoch, warm, end },
        progress: Arc::clone(&progress),
    };
    let threads = job.threads.min(job.connections);
    let (sender, mut tallies) = mpsc::unbounded_channel();
    for thread in 0..threads {
        let place = Place { thread, threads };
        let own = connections.split_off(connections.len() - connections.len() / (threads - thread) as usize);
        let crew = Crew::new(&orders, place, own);
        let sender = sender.clone();
        supervisor.spawn_thread("bench", move || {
            // Nobody listens any more when the run has been given up.
            let _ = sender.send(crew.run());
        })?;
    }
    drop(sender);

    let mut watch = Watch::new(job, epoch, progress);
    let interrupted = watch.until_over(&mut tallies, threads, stop).await;
    let (seconds, finished, server, client) = watch.measured();
    let mut tally = Tally::new();
    for part in watch.tallies {
        tally.merge(part);
    }
    let Job { pace, connections, .. } = *job;
    Ok(Run { pace, connections, threads, calls_max, tally, seconds, finished, server, client, interrupted })
}

/// Looks at a run while it goes on.
struct Watch {
    progress: Arc<Progress>,
    pid: Option<u32>,
    warm_at: Instant,
    end_at: Option<Instant>,
    give_up_after: Duration,
    begin: Sample,
    end: Option<Sample>,
    tallies: Vec<Tally>,
    line: Line,
}

impl Watch {
    fn new(job: &Job, epoch: Instant, progress: Arc<Progress>) -> Self {
        let warm_at = epoch + job.warm_up;
        let end_at = match job.length {
            Length::Time(length) => Some(warm_at + length),
            Length::Calls(_) => None,
        };
        let mut begin = Sample::take(&progress, job.pid);
        if job.warm_up.is_zero() {
            begin.at = epoch;
        }
        Self {
            begin,
            progress,
            pid: job.pid,
            warm_at,
            end_at,
            give_up_after: job.timeout + END_GRACE,
            end: None,
            tallies: Vec::new(),
            line: Line::new(job.pace),
        }
    }

    /// Whether it was ended by a signal. Ends when every thread has: their
    /// calls have time-outs. What a thread that hangs has measured is lost.
    async fn until_over(
        &mut self,
        tallies: &mut mpsc::UnboundedReceiver<Tally>,
        threads: u32,
        stop: &mut Stop,
    ) -> bool {
        // Without a warm-up the first sample is already that of the beginning.
        let mut warm = self.warm_at <= self.begin.at;
        let mut interrupted = false;
        while self.tallies.len() < threads as usize {
            let now = Instant::now();
            let next = match (warm, self.end_at) {
                (false, _) => self.warm_at,
                (true, Some(end_at)) if self.end.is_none() => end_at,
                (true, _) => now + TICK,
            };
            tokio::select! {
                tally = tallies.recv() => match tally {
                    Some(tally) => self.tallies.push(tally),
                    None => break,
                },
                () = stop.requested() => {
                    if interrupted {
                        std::process::exit(crate::exit::SECOND_SIGNAL.number());
                    }
                    interrupted = true;
                    self.sample_end();
                    self.progress.halt.store(true, Ordering::Relaxed);
                }
                () = sleep(next.saturating_duration_since(now).min(TICK)) => {}
            }
            let now = Instant::now();
            if !warm && now >= self.warm_at {
                warm = true;
                self.begin = Sample::take(&self.progress, self.pid);
            }
            if let Some(end_at) = self.end_at
                && now >= end_at
            {
                self.sample_end();
                if now > end_at + self.give_up_after {
                    break;
                }
            }
            self.line.show(&self.progress);
        }
        self.sample_end();
        self.line.clear();
        // A thread's last words may still be on their way.
        if let Ok(Some(tally)) = timeout(Duration::ZERO, tallies.recv()).await {
            self.tallies.push(tally);
        }
        interrupted
    }

    fn sample_end(&mut self) {
        if self.end.is_none() {
            self.end = Some(Sample::take(&self.progress, self.pid));
        }
    }

    fn measured(&self) -> (f64, u64, Option<Used>, Option<Used>) {
        match &self.end {
            Some(end) => end.since(&self.begin),
            None => (0.0, 0, None, None),
        }
    }
}

/// The line on a terminal that shows how a run goes.
pub(super) struct Line {
    bar: ProgressBar,
    what: String,
    before: (Instant, u64),
}

impl Line {
    pub(super) fn new(pace: Pace) -> Self {
        let what = match pace {
            Pace::InFlight(calls) => format!("{calls} in flight"),
            Pace::Rate(rate, _) => format!("{rate} calls/s wanted"),
        };
        // On standard error, and on a terminal alone.
        let bar = ProgressBar::new_spinner();
        if let Ok(style) = ProgressStyle::with_template("{spinner} {elapsed:>4}  {msg}") {
            bar.set_style(style);
        }
        Self { bar, what, before: (Instant::now(), 0) }
    }

    pub(super) fn show(&mut self, progress: &Progress) {
        let (then, before) = self.before;
        let elapsed = then.elapsed();
        if elapsed < TICK {
            return;
        }
        let finished = progress.finished.load(Ordering::Relaxed);
        let failed = progress.failed.load(Ordering::Relaxed);
        let rate = (finished - before) as f64 / elapsed.as_secs_f64();
        self.before = (Instant::now(), finished);
        let what = &self.what;
        self.bar.set_message(format!("{what}: {rate:.0} calls/s, {finished} done, {failed} failed"));
        self.bar.tick();
    }

    pub(super) fn clear(&self) {
        self.bar.finish_and_clear();
    }
}
