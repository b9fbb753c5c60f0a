//! The task that a worker is: takes records, starts handlers in turn, commits
//! what is settled, gives partitions up, drains.

use std::collections::{HashMap, HashSet};
use std::future::Future;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::mpsc;
use tokio::time::{Instant, MissedTickBehavior};

use super::board::{Board, LaneName, Ticket};
use super::context::{Context, correlation_of};
use super::driver::{Driver, DriverError, Event, Inbound, PartitionId, Revocation};
use super::execute::Shared;
use super::kit::{Kit, Order};
use crate::message::{CANCEL, IDEMPOTENCY_KEY};
use crate::supervisor::{Supervisor, Task};
use crate::transport::Received;

/// How long the last commit and leaving the group may take.
const CLOSE_LIMIT: Duration = Duration::from_secs(10);
/// Reports of tasks that are dealt with in one go.
const REPORTS_MAX: usize = 256;

/// How a worker ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ended {
    /// Requests in hand that were cut off and not committed: another worker
    /// gets them.
    pub cut: usize,
}

/// What a request's task reports.
#[derive(Debug, Clone, Copy)]
enum Report {
    /// The next one of its key may start.
    Released(u64),
    /// It may be committed.
    Settled(u64),
}

/// Bytes of a request in hand; dropping it gives them back.
struct Held {
    bytes: usize,
    all: Arc<AtomicUsize>,
}

impl Held {
    fn new(bytes: usize, all: &Arc<AtomicUsize>) -> Self {
        all.fetch_add(bytes, Ordering::Relaxed);
        Self { bytes, all: Arc::clone(all) }
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        self.all.fetch_sub(self.bytes, Ordering::Relaxed);
    }
}

struct Running {
    ticket: Ticket,
    released: bool,
    name: Option<CallName>,
    _held: Held,
    _task: Task,
}

/// A partition and a correlation id within it.
type CallName = (PartitionId, Bytes);

pub(super) struct Engine {
    shared: Arc<Shared>,
    driver: Box<dyn Driver>,
    supervisor: Supervisor,
    board: Board<(Context, Held)>,
    running: HashMap<u64, Running>,
    started: u64,
    held_bytes: Arc<AtomicUsize>,
    /// Calls in hand, to be cancelled by name.
    calls: HashMap<CallName, Context>,
    revocations: Vec<Revocation>,
    reports: mpsc::UnboundedReceiver<Report>,
    /// At most two reports for a request in hand.
    reporter: mpsc::UnboundedSender<Report>,
    /// Until when to finish what is in hand.
    draining: Option<Instant>,
    failure: Option<DriverError>,
}

impl Engine {
    pub(super) fn new(kit: Kit, driver: Box<dyn Driver>) -> Result<Self, DriverError> {
        let settings = &kit.settings;
        if settings.concurrency == 0 || settings.held_max == 0 || settings.uncommitted_max == 0 {
            let text = "concurrency, held_max and uncommitted_max must be above zero";
            return Err(DriverError::Settings(text.to_owned()));
        }
        if settings.retries.attempts_max == 0 || settings.commit_interval.is_zero() {
            let text = "retries.attempts_max and commit_interval must be above zero";
            return Err(DriverError::Settings(text.to_owned()));
        }
        let (reporter, reports) = mpsc::unbounded_channel();
        Ok(Self {
            shared: Arc::new(Shared { outbox: driver.outbox(), kit }),
            driver,
            supervisor: Supervisor::new(),
            board: Board::default(),
            running: HashMap::new(),
            started: 0,
            held_bytes: Arc::default(),
            calls: HashMap::new(),
            revocations: Vec::new(),
            reports,
            reporter,
            draining: None,
            failure: None,
        })
    }

    pub(super) async fn run(mut self, stop: impl Future<Output = ()> + Send) -> Result<Ended, DriverError> {
        let mut stop = std::pin::pin!(stop);
        let mut commits = tokio::time::interval(self.shared.kit.settings.commit_interval);
        commits.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let supervisor = self.supervisor.clone();
        loop {
            self.start_ready();
            self.answer_revocations();
            self.gauge();
            if self.draining.is_some_and(|until| self.board.held() == 0 || Instant::now() >= until) {
                return self.end().await;
            }
            let (room, wake) = (self.room(), self.next_limit());
            tokio::select! {
                biased;
                Some(report) = self.reports.recv() => self.heard(report),
                () = &mut stop, if self.draining.is_none() => self.drain(),
                () = sleep_until(wake) => {}
                _ = commits.tick() => self.commit(),
                name = supervisor.failed(), if self.failure.is_none() => {
                    self.fail(DriverError::Fatal(format!("the task {name:?} of the worker itself panicked")));
                }
                event = self.driver.next(room), if self.failure.is_none() => match event {
                    Ok(event) => self.happened(event),
                    Err(error) => self.fail(error),
                },
            }
        }
    }

    fn start_ready(&mut self) {
        while self.board.working() < self.shared.kit.settings.concurrency {
            let Some((ticket, (call, held))) = self.board.start() else { return };
            self.started += 1;
            let id = self.started;
            let name = call.correlation_id().map(|id| (ticket.partition.clone(), id.clone()));
            let (shared, reporter) = (Arc::clone(&self.shared), self.reporter.clone());
            let task = self.supervisor.spawn("worker call", async move {
                // The engine may have ended; then nobody needs to hear.
                shared.execute(&call, || _ = reporter.send(Report::Released(id))).await;
                _ = reporter.send(Report::Settled(id));
            });
            self.running.insert(id, Running { ticket, released: false, name, _held: held, _task: task });
        }
    }

    fn heard(&mut self, first: Report) {
        let (mut next, mut heard) = (Some(first), 0);
        while let Some(report) = next {
            match report {
                Report::Released(id) => {
                    if let Some(running) = self.running.get_mut(&id) {
                        running.released = true;
                        self.board.release(&running.ticket);
                    }
                }
                Report::Settled(id) => {
                    if let Some(running) = self.running.remove(&id) {
                        self.board.settle(&running.ticket);
                        if let Some(name) = &running.name {
                            self.calls.remove(name);
                        }
                    }
                }
            }
            heard += 1;
            next = if heard < REPORTS_MAX { self.reports.try_recv().ok() } else { None };
        }
    }

    fn happened(&mut self, event: Event) {
        match event {
            Event::Assigned(partitions) => {
                for partition in partitions {
                    tracing::info!(topic = %partition.topic, partition = partition.partition, "assigned");
                    self.board.assign(partition);
                }
            }
            Event::Revoked(revocation) => {
                for partition in &revocation.partitions {
                    tracing::info!(topic = %partition.topic, partition = partition.partition, "revoked");
                    self.board.leave(partition);
                }
                // Those at work can still be cancelled.
                let working: HashSet<_> = self.running.values().filter_map(|one| one.name.as_ref()).collect();
                self.calls
                    .retain(|name, _| !revocation.partitions.contains(&name.0) || working.contains(name));
                self.revocations.push(revocation);
            }
            Event::Records(records) => records.into_iter().for_each(|record| self.take(record)),
        }
    }

    fn take(&mut self, Inbound { partition, record }: Inbound) {
        let offset = record.offset;
        let name = correlation_of(&record).map(|id| (partition.clone(), id.clone()));
        if record.header(CANCEL).is_some() {
            if let Some(call) = name.and_then(|name| self.calls.get(&name)) {
                call.cancel();
            }
            return self.board.pass_over(&partition, offset);
        }
        let held = Held::new(size_of(&record), &self.held_bytes);
        let settings = &self.shared.kit.settings;
        let lane = lane_of(settings.order, &record);
        let call = Context::new(partition.clone(), record, settings.clock_skew);
        if self.board.take(&partition, offset, lane, (call.clone(), held))
            && let Some(name) = name
        {
            self.calls.insert(name, call);
        }
    }

    /// Gives up partitions whose work has ended, or whose time is over.
    fn answer_revocations(&mut self) {
        for revocation in std::mem::take(&mut self.revocations) {
            let still = revocation.partitions.iter().all(|partition| self.board.is_still(partition));
            if !still && Instant::now() < revocation.deadline {
                self.revocations.push(revocation);
                continue;
            }
            self.cut(|ticket| revocation.partitions.contains(&ticket.partition));
            let points = (revocation.partitions.iter())
                .filter_map(|partition| Some((partition.clone(), self.board.remove(partition)?)))
                .collect();
            revocation.answer(points);
        }
    }

    /// Drops handlers where they are: nothing of theirs is committed.
    fn cut(&mut self, which: impl Fn(&Ticket) -> bool) {
        let board = &mut self.board;
        let calls = &mut self.calls;
        self.running.retain(|_, running| {
            if !which(&running.ticket) {
                return true;
            }
            let Ticket { partition, offset, .. } = &running.ticket;
            tracing::warn!(topic = %partition.topic, partition = partition.partition, offset, "cut off, not committed");
            if !running.released {
                board.release(&running.ticket);
            }
            if let Some(name) = &running.name {
                calls.remove(name);
            }
            false
        });
    }

    fn commit(&mut self) {
        let points = self.board.points();
        if !points.is_empty() {
            self.driver.commit(points);
        }
    }

    fn drain(&mut self) {
        let limit = self.shared.kit.settings.drain_limit;
        tracing::info!(held = self.board.held(), ?limit, "draining");
        self.draining = Some(Instant::now() + limit);
    }

    fn fail(&mut self, error: DriverError) {
        tracing::error!(%error, "the worker stops");
        self.failure = Some(error);
        if self.draining.is_none() {
            self.drain();
        }
    }

    async fn end(mut self) -> Result<Ended, DriverError> {
        let cut = self.board.held();
        self.cut(|_| true);
        let points = self.board.all_points();
        for revocation in self.revocations.drain(..) {
            let points = (revocation.partitions.iter())
                .filter_map(|partition| Some((partition.clone(), self.board.remove(partition)?)))
                .collect();
            revocation.answer(points);
        }
        let closed = self.driver.close(points, CLOSE_LIMIT).await;
        match self.failure {
            Some(error) => Err(error),
            None => closed.map(|()| Ended { cut }),
        }
    }

    /// Records to ask for.
    fn room(&self) -> usize {
        let settings = &self.shared.kit.settings;
        if self.draining.is_some() || self.held_bytes.load(Ordering::Relaxed) >= settings.held_bytes_max {
            return 0;
        }
        let uncommitted = settings.uncommitted_max.saturating_sub(self.board.remembered());
        settings.held_max.saturating_sub(self.board.held()).min(uncommitted)
    }

    fn next_limit(&self) -> Option<Instant> {
        self.revocations.iter().map(|revocation| revocation.deadline).chain(self.draining).min()
    }

    fn gauge(&self) {
        let metrics = &self.shared.kit.metrics;
        metrics.working.set(i64::try_from(self.board.working()).unwrap_or(i64::MAX));
        metrics.held.set(i64::try_from(self.board.held()).unwrap_or(i64::MAX));
        metrics.partitions.set(i64::try_from(self.board.partitions()).unwrap_or(i64::MAX));
    }
}

async fn sleep_until(moment: Option<Instant>) {
    match moment {
        Some(moment) => tokio::time::sleep_until(moment).await,
        None => std::future::pending().await,
    }
}

/// Which requests this one has to wait for.
fn lane_of(order: Order, record: &Received) -> LaneName {
    if order == Order::Partition {
        return LaneName::Partition;
    }
    match (&record.key, record.header(IDEMPOTENCY_KEY)) {
        (Some(key), _) => LaneName::Key(key.clone()),
        (None, Some(key)) => LaneName::Idempotency(key.clone()),
        (None, None) => LaneName::Alone(record.offset),
    }
}

fn size_of(record: &Received) -> usize {
    let headers: usize = record.headers.iter().map(|(name, value)| name.len() + value.len()).sum();
    record.key.as_ref().map_or(0, Bytes::len) + record.value.as_ref().map_or(0, Bytes::len) + headers
}
