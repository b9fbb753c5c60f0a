//! One thread's share of a run: some connections, driven from one loop.
//!
//! ```text
//! ┌─► start what is due ─► write ─► wait for a socket or the next start ─► read ─► record ─┐
//! └────────────────────────────────────────────────────────────────────────────────────────┘
//! ```
//!
//! It is a loop around `poll(2)` rather than tasks on a runtime: that costs
//! less per call, and starts come within some 50 µs of when they are due,
//! where a runtime's timers tick by the millisecond.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use hdrhistogram::Histogram;
use rustix::event::{PollFd, PollFlags, Timespec, poll};

use super::http2::{Broken, Call, Connection, Done, Endpoint, Outcome};
use super::schedule::{Pace, Schedule, share};

/// How long the loop may sleep: how late it sees that it should stop, and how
/// late a call can be given up.
const SLEEP_MAX: Duration = Duration::from_millis(20);
/// The longest latency that is told apart.
const LATENCY_MAX: Duration = Duration::from_secs(3_600);
const LATENCY_DIGITS: u8 = 3;
/// How long a call is waited for beyond its deadline, so that the server's own
/// answer to that is seen.
const TIMEOUT_GRACE: Duration = Duration::from_millis(500);
/// Pause before a lost connection is opened again.
const RECONNECT_PAUSE: Duration = Duration::from_millis(200);
/// How long all connections may be lost before the run is given up.
const LOST_MAX: Duration = Duration::from_secs(10);

/// What is counted while a run goes on.
#[derive(Debug, Default)]
pub(super) struct Progress {
    pub(super) finished: AtomicU64,
    pub(super) failed: AtomicU64,
    /// Set to end a run early.
    pub(super) halt: AtomicBool,
}

/// When a run measures, in nanoseconds since its epoch.
#[derive(Debug, Clone, Copy)]
pub(super) struct Window {
    pub(super) epoch: Instant,
    /// Calls that are due from here on count.
    pub(super) warm: u64,
    /// None are due from here on.
    pub(super) end: u64,
}

impl Window {
    fn now(&self) -> u64 {
        nanoseconds(self.epoch.elapsed())
    }
}

pub(super) fn nanoseconds(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}

/// What calls have come to.
#[derive(Debug)]
pub(super) struct Tally {
    /// Nanoseconds from the intended start of each call to its end.
    pub(super) latency: Histogram<u64>,
    /// Nanoseconds from when it was sent.
    pub(super) service: Histogram<u64>,
    /// The same of those calls alone that did not succeed.
    pub(super) failure: Histogram<u64>,
    /// How many ended how.
    pub(super) outcomes: BTreeMap<Outcome, u64>,
    /// A message for each outcome that has one.
    pub(super) messages: BTreeMap<Outcome, Vec<u8>>,
    /// Calls of the schedule that were not sent before the end.
    pub(super) unsent: u64,
    /// Connections that were lost, with the latest reason.
    pub(super) lost: u64,
    pub(super) lost_because: Option<String>,
}

impl Tally {
    pub(super) fn new() -> Self {
        Self {
            latency: histogram(),
            service: histogram(),
            failure: histogram(),
            outcomes: BTreeMap::new(),
            messages: BTreeMap::new(),
            unsent: 0,
            lost: 0,
            lost_because: None,
        }
    }

    /// Adds one call.
    pub(super) fn record(&mut self, latency: u64, service: u64, outcome: Outcome, message: Vec<u8>) {
        self.latency.saturating_record(latency);
        self.service.saturating_record(service);
        if outcome != Outcome::OK {
            self.failure.saturating_record(service);
        }
        *self.outcomes.entry(outcome).or_default() += 1;
        if !message.is_empty() {
            self.messages.entry(outcome).or_insert(message);
        }
    }

    pub(super) fn merge(&mut self, other: Self) {
        self.latency += other.latency;
        self.service += other.service;
        self.failure += other.failure;
        for (outcome, calls) in other.outcomes {
            *self.outcomes.entry(outcome).or_default() += calls;
        }
        for (outcome, message) in other.messages {
            self.messages.entry(outcome).or_insert(message);
        }
        self.unsent += other.unsent;
        self.lost += other.lost;
        self.lost_because = self.lost_because.take().or(other.lost_because);
    }

    pub(super) fn calls(&self) -> u64 {
        self.outcomes.values().sum()
    }

    pub(super) fn ok(&self) -> u64 {
        self.outcomes.get(&Outcome::OK).copied().unwrap_or_default()
    }
}

fn histogram() -> Histogram<u64> {
    // The bounds are constants that hdrhistogram takes; the fallback grows.
    Histogram::new_with_max(nanoseconds(LATENCY_MAX), LATENCY_DIGITS)
        .or_else(|_| Histogram::new(LATENCY_DIGITS))
        .unwrap_or_else(|_| unreachable!("{LATENCY_DIGITS} digits are allowed"))
}

/// One thread's place among the others.
#[derive(Debug, Clone, Copy)]
pub(super) struct Place {
    pub(super) thread: u32,
    pub(super) threads: u32,
}

/// A connection, or what is left of it.
enum Line {
    Up(Box<Connection>),
    Down { retry_at: u64 },
}

/// The connections of one thread and what they do.
pub(super) struct Crew {
    endpoint: Endpoint,
    lines: Vec<Line>,
    messages: Arc<[Box<[u8]>]>,
    timeout: u64,
    window: Window,
    place: Place,
    in_flight_max: u32,
    schedule: Option<Schedule>,
    /// Measured calls that may still be started.
    quota: u64,
    next_message: usize,
    next_line: usize,
    down_since: Option<u64>,
    progress: Arc<Progress>,
    tally: Tally,
    done: Vec<Done>,
}

/// What the crews of a run have in common.
pub(super) struct Orders {
    pub(super) endpoint: Endpoint,
    pub(super) messages: Arc<[Box<[u8]>]>,
    pub(super) timeout: Duration,
    pub(super) pace: Pace,
    pub(super) calls: Option<u64>,
    pub(super) window: Window,
    pub(super) progress: Arc<Progress>,
}

impl Crew {
    pub(super) fn new(orders: &Orders, place: Place, connections: Vec<Connection>) -> Self {
        let Place { thread, threads } = place;
        let in_flight_max = share(orders.pace.in_flight_max().into(), thread, threads);
        Self {
            endpoint: orders.endpoint.clone(),
            lines: connections.into_iter().map(|open| Line::Up(Box::new(open))).collect(),
            messages: Arc::clone(&orders.messages),
            timeout: nanoseconds(orders.timeout + TIMEOUT_GRACE),
            window: orders.window,
            place,
            in_flight_max: u32::try_from(in_flight_max).unwrap_or(u32::MAX),
            schedule: match orders.pace {
                Pace::InFlight(_) => None,
                Pace::Rate(rate, _) => Some(Schedule::new(rate, thread, threads)),
            },
            quota: orders.calls.map_or(u64::MAX, |calls| share(calls, thread, threads)),
            next_message: thread as usize,
            next_line: 0,
            down_since: None,
            progress: Arc::clone(&orders.progress),
            tally: Tally::new(),
            done: Vec::new(),
        }
    }

    /// Ends when the window has and no call is in flight any more, which their
    /// time-out sees to, or soon after it is told to halt.
    pub(super) fn run(mut self) -> Tally {
        std::thread::sleep(self.window.epoch.saturating_duration_since(Instant::now()));
        loop {
            let now = self.window.now();
            let over = now >= self.window.end || self.quota == 0;
            if self.progress.halt.load(Ordering::Relaxed) || (over && self.open_calls() == 0) {
                break;
            }
            if self.down_since.is_some_and(|since| now - since > nanoseconds(LOST_MAX)) {
                break;
            }
            let next = if over { None } else { self.start_calls(now) };
            self.expire_and_write(now);
            self.wait_and_read(next);
        }
        let end = self.window.end.min(self.window.now());
        self.tally.unsent = match &self.schedule {
            Some(schedule) if self.quota > 0 => schedule.untaken(end).min(self.quota),
            _ => 0,
        };
        self.tally
    }

    fn open_calls(&self) -> usize {
        let open = |line: &Line| match line {
            Line::Up(connection) => connection.open_calls(),
            Line::Down { .. } => 0,
        };
        self.lines.iter().map(open).sum()
    }

    /// Starts all calls that may be. Returns when the next is due, unless an
    /// answer has to come first.
    fn start_calls(&mut self, now: u64) -> Option<u64> {
        self.reconnect(now);
        if self.schedule.is_some() { self.start_due(now) } else { self.refill(now) }
    }

    /// Closed loop: every connection has its share in flight.
    fn refill(&mut self, now: u64) -> Option<u64> {
        let lines = u32::try_from(self.lines.len()).unwrap_or(u32::MAX);
        for (n, line) in (0..lines).zip(&mut self.lines) {
            let Line::Up(connection) = line else { continue };
            let wanted = share(self.in_flight_max.into(), n, lines);
            while self.quota > 0 && (connection.open_calls() as u64) < wanted && connection.has_room() {
                let call = Call { intended: now, sent: now, message: self.next_message };
                self.next_message = (self.next_message + self.place.threads as usize) % self.messages.len();
                self.quota -= u64::from(now >= self.window.warm);
                connection.start(call, &self.messages);
            }
        }
        None
    }

    /// Open loop: what is due goes to the next connection that has room.
    fn start_due(&mut self, now: u64) -> Option<u64> {
        let mut open = self.open_calls();
        while self.quota > 0 && open < self.in_flight_max as usize {
            let free = (0..self.lines.len()).map(|n| (self.next_line + n) % self.lines.len());
            let free = free.into_iter().find(|n| match &self.lines[*n] {
                Line::Up(connection) => connection.has_room(),
                Line::Down { .. } => false,
            });
            let (Some(line), Some(schedule)) = (free, &mut self.schedule) else { return None };
            let Line::Up(connection) = &mut self.lines[line] else { return None };
            let due = schedule.due();
            if due >= self.window.end {
                return None;
            }
            let Some(intended) = schedule.take(now) else { return Some(due) };
            let call = Call { intended, sent: now, message: self.next_message };
            self.next_message = (self.next_message + self.place.threads as usize) % self.messages.len();
            self.quota -= u64::from(intended >= self.window.warm);
            connection.start(call, &self.messages);
            self.next_line = line + 1;
            open += 1;
        }
        None
    }

    fn reconnect(&mut self, now: u64) {
        for line in &mut self.lines {
            let Line::Down { retry_at } = line else { continue };
            if *retry_at > now {
                continue;
            }
            match Connection::open(&self.endpoint) {
                Ok(connection) => *line = Line::Up(Box::new(connection)),
                Err(error) => {
                    self.tally.lost_because = Some(error.to_string());
                    // The attempt may have taken long, so the pause begins now.
                    *retry_at = self.window.now() + nanoseconds(RECONNECT_PAUSE);
                }
            }
        }
        let all_down = self.lines.iter().all(|line| matches!(line, Line::Down { .. }));
        self.down_since = if all_down { self.down_since.or(Some(now)) } else { None };
    }

    fn expire_and_write(&mut self, now: u64) {
        let sent_before = now.saturating_sub(self.timeout);
        for n in 0..self.lines.len() {
            let Line::Up(connection) = &mut self.lines[n] else { continue };
            if connection.oldest_sent().is_some_and(|sent| sent < sent_before) {
                connection.expire(sent_before, &mut self.done);
            }
            if let Err(error) = connection.flush() {
                self.lose(n, &error);
            }
        }
        self.record();
    }

    /// Sleeps until a socket can be read or written, or `next`.
    fn wait_and_read(&mut self, next: Option<u64>) {
        let now = self.window.now();
        let sleep = next.map_or(SLEEP_MAX, |next| Duration::from_nanos(next.saturating_sub(now)));
        let sleep = sleep.min(SLEEP_MAX);
        let mut sockets = Vec::with_capacity(self.lines.len());
        let mut places = Vec::with_capacity(self.lines.len());
        for (n, line) in self.lines.iter().enumerate() {
            if let Line::Up(connection) = line {
                let output = if connection.has_output() { PollFlags::OUT } else { PollFlags::empty() };
                sockets.push(PollFd::new(connection.socket(), PollFlags::IN | output));
                places.push(n);
            }
        }
        let sleep = Timespec { tv_sec: 0, tv_nsec: i64::from(sleep.subsec_nanos()) };
        // Interrupted is as good as nothing ready.
        let _ = poll(&mut sockets, Some(&sleep));
        let readable = PollFlags::IN | PollFlags::HUP | PollFlags::ERR;
        let ready: Vec<bool> = sockets.iter().map(|socket| socket.revents().intersects(readable)).collect();
        drop(sockets);
        for (n, _) in places.into_iter().zip(ready).filter(|(_, ready)| *ready) {
            let Line::Up(connection) = &mut self.lines[n] else { continue };
            if let Err(error) = connection.receive(&self.messages, &mut self.done) {
                self.lose(n, &error);
            }
            self.record();
        }
    }

    fn lose(&mut self, line: usize, error: &Broken) {
        if let Line::Up(connection) = &mut self.lines[line] {
            connection.abandon(&mut self.done);
        }
        self.tally.lost += 1;
        self.tally.lost_because = Some(error.to_string());
        // Who is told to go away may come back at once.
        let pause = if matches!(error, Broken::GoneAway) { Duration::ZERO } else { RECONNECT_PAUSE };
        self.lines[line] = Line::Down { retry_at: self.window.now() + nanoseconds(pause) };
    }

    fn record(&mut self) {
        if self.done.is_empty() {
            return;
        }
        let now = self.window.now();
        let failed = self.done.iter().filter(|done| done.outcome != Outcome::OK).count();
        self.progress.finished.fetch_add(self.done.len() as u64, Ordering::Relaxed);
        self.progress.failed.fetch_add(failed as u64, Ordering::Relaxed);
        for Done { call, outcome, message } in self.done.drain(..) {
            if call.intended >= self.window.warm {
                let since = |then: u64| now.saturating_sub(then);
                self.tally.record(since(call.intended), since(call.sent), outcome, message);
            }
        }
    }
}
