//! What the shards of one process have in common.

use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU8, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError, Weak};
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::Instant;

use super::aftermath::Remembered;
use super::budget::Budget;
use super::circuit::Circuits;
use super::config::{CircuitConfig, IdempotencyConfig};
use super::idempotency::KeyStore;
use super::lanes::Lanes;
use super::topics::TopicDirectory;
use crate::metrics::{Metrics, ReplyPartition};
use crate::pending::Pending;

/// Whether calls are accepted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Phase {
    /// Not yet, or not at the moment: replies could not be read.
    NotReady,
    /// Yes.
    Ready,
    /// Still, but the instance is about to stop and says so to health checks.
    Leaving,
    /// No more: the instance stops.
    Draining,
}

/// One process as its callers and workers see it.
#[derive(Debug)]
pub struct Instance {
    name: String,
    reply_topic: Arc<str>,
    heartbeat_age_max: Duration,
    started: Instant,
    /// Tells this life of an instance from others with the same name.
    life: u64,
    /// When a heartbeat of another life was last seen; as `heartbeat_ms`.
    rival_ms: AtomicU64,
    /// What stood in the way of the reply path last, until a heartbeat comes back.
    trouble: Mutex<Option<Arc<str>>>,
    phase: watch::Sender<Phase>,
    phase_now: AtomicU8,
    shards: Vec<ShardState>,
    /// What is held, process-wide.
    pub budget: Arc<Budget>,
    /// Topics of the cluster.
    pub directory: Arc<TopicDirectory>,
    /// What is counted.
    pub metrics: Arc<Metrics>,
    /// Topics that are failing fast.
    pub(super) circuits: Circuits,
    /// Calls by their idempotency key.
    pub(super) keys: KeyStore,
    /// Dead letters whose replies may still come.
    pub(super) dead_letters: Remembered,
    /// Records that are being written and no call waits for.
    aftermath: Arc<AtomicUsize>,
}

/// Counts one record that no call waits for, until it is dropped.
#[derive(Debug)]
pub(super) struct Held {
    count: Arc<AtomicUsize>,
}

impl Drop for Held {
    fn drop(&mut self) {
        self.count.fetch_sub(1, Ordering::Relaxed);
    }
}

/// What an instance is made of.
#[derive(Debug)]
pub struct Parts {
    /// Names the process.
    pub name: String,
    /// Where replies go.
    pub reply_topic: Arc<str>,
    /// How old the newest heartbeat may be.
    pub heartbeat_age_max: Duration,
    /// The waiting calls of each shard.
    pub pendings: Vec<Arc<Pending>>,
    /// What is held, process-wide.
    pub budget: Arc<Budget>,
    /// Failing fast.
    pub circuit: CircuitConfig,
    /// Calls with a key.
    pub idempotency: IdempotencyConfig,
}

/// What one shard makes known to the others.
#[derive(Debug)]
pub struct ShardState {
    /// Its waiting calls; other shards hand replies over that came to them.
    pub pending: Arc<Pending>,
    /// Its reader stands where the next reply will be.
    positioned: AtomicBool,
    /// When the newest heartbeat that came back was written; milliseconds since
    /// the start, plus 1.
    heartbeat_ms: AtomicU64,
    /// Everything before it has been read.
    next_offset: AtomicI64,
    /// Its lanes, which end with its exchange.
    lanes: OnceLock<Weak<Lanes>>,
}

impl Instance {
    /// An instance that is not ready yet, with one shard for each of
    /// `pendings`.
    pub fn new(parts: Parts) -> Arc<Self> {
        let Parts { name, reply_topic, heartbeat_age_max, pendings, budget, circuit, idempotency } = parts;
        let shards = pendings
            .into_iter()
            .map(|pending| ShardState {
                pending,
                positioned: AtomicBool::new(false),
                heartbeat_ms: AtomicU64::new(0),
                next_offset: AtomicI64::new(0),
                lanes: OnceLock::new(),
            })
            .collect();
        Arc::new(Self {
            name,
            reply_topic,
            heartbeat_age_max,
            started: Instant::now(),
            life: fastrand::u64(..),
            rival_ms: AtomicU64::new(0),
            trouble: Mutex::default(),
            phase: watch::Sender::new(Phase::NotReady),
            phase_now: AtomicU8::new(Phase::NotReady as u8),
            shards,
            budget,
            directory: Arc::new(TopicDirectory::new()),
            metrics: Arc::new(Metrics::new()),
            circuits: Circuits::new(circuit),
            keys: KeyStore::new(idempotency),
            dead_letters: Remembered::default(),
            aftermath: Arc::default(),
        })
    }

    /// Names the process; part of its reply topic's name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Where replies for this instance go.
    pub fn reply_topic(&self) -> &Arc<str> {
        &self.reply_topic
    }

    /// The shards, by number.
    pub fn shards(&self) -> &[ShardState] {
        &self.shards
    }

    /// Calls that have not ended, over all shards.
    pub fn pending_calls(&self) -> usize {
        self.shards.iter().map(|shard| shard.pending.in_flight()).sum()
    }

    /// Records that are being written and no call waits for: dead letters,
    /// cancel records.
    pub fn aftermath(&self) -> usize {
        self.aftermath.load(Ordering::Relaxed)
    }

    /// Brings the gauges up to date, from where the truth is.
    pub fn observe(&self) {
        let metrics = &self.metrics;
        let number = |count: u64| i64::try_from(count).unwrap_or(i64::MAX);
        metrics.calls_in_flight.set(number(self.pending_calls() as u64));
        metrics.bytes_held.set(number(self.budget.bytes()));
        let mut loads = Vec::new();
        for (shard, state) in self.shards.iter().enumerate() {
            let labels = ReplyPartition {
                messaging_destination_partition_id: i32::try_from(shard).unwrap_or(i32::MAX),
            };
            let age = match state.heartbeat_ms.load(Ordering::Acquire) {
                0 => -1.0,
                beat => self.now_ms().saturating_sub(beat) as f64 / 1e3,
            };
            metrics.heartbeat_age.get_or_create(&labels).set(age);
            loads.extend(
                state.lanes.get().and_then(Weak::upgrade).map(|lanes| lanes.loads()).unwrap_or_default(),
            );
        }
        metrics.show_lanes(loads);
    }

    /// The lanes of `shard`, for those who look at what they have to do.
    pub(super) fn show_lanes_of(&self, shard: usize, lanes: &Arc<Lanes>) {
        // There is one exchange for each shard, so that nothing is there yet.
        let _ = self.shards[shard].lanes.set(Arc::downgrade(lanes));
    }

    /// Counts one more of them.
    pub(super) fn hold(&self) -> Held {
        self.aftermath.fetch_add(1, Ordering::Relaxed);
        Held { count: Arc::clone(&self.aftermath) }
    }

    /// Whether calls are accepted; one atomic load.
    pub fn phase(&self) -> Phase {
        match self.phase_now.load(Ordering::Acquire) {
            n if n == Phase::Ready as u8 => Phase::Ready,
            n if n == Phase::Leaving as u8 => Phase::Leaving,
            n if n == Phase::Draining as u8 => Phase::Draining,
            _ => Phase::NotReady,
        }
    }

    /// Hears of every change of phase.
    pub fn watch_phase(&self) -> watch::Receiver<Phase> {
        self.phase.subscribe()
    }

    /// Tells health checks that the instance is about to stop.
    pub fn leave(&self) {
        self.set_phase(Phase::Leaving);
    }

    /// Accepts no more calls, for good.
    pub fn drain(&self) {
        self.set_phase(Phase::Draining);
    }

    /// Looks at every shard's reader and heartbeat, and changes the phase
    /// accordingly. Called a few times a second by the composition.
    pub fn review(&self) {
        if matches!(self.phase(), Phase::NotReady | Phase::Ready) {
            let healthy = self.shards.iter().all(|shard| self.is_healthy(shard));
            self.set_phase(if healthy { Phase::Ready } else { Phase::NotReady });
        }
    }

    fn is_healthy(&self, shard: &ShardState) -> bool {
        let beat = shard.heartbeat_ms.load(Ordering::Acquire);
        let age = self.now_ms().saturating_sub(beat);
        shard.positioned.load(Ordering::Acquire)
            && beat > 0
            && u128::from(age) <= self.heartbeat_age_max.as_millis()
    }

    fn set_phase(&self, phase: Phase) {
        self.phase_now.store(phase as u8, Ordering::Release);
        let changed = self.phase.send_if_modified(|now| std::mem::replace(now, phase) != phase);
        if changed {
            self.metrics.ready.set(i64::from(phase == Phase::Ready));
            tracing::info!(phase = ?phase, "phase");
        }
    }

    fn now_ms(&self) -> u64 {
        u64::try_from(self.started.elapsed().as_millis()).unwrap_or(u64::MAX).saturating_add(1)
    }

    /// The reader of `shard` stands, or stands no more, where it can read the
    /// next reply.
    pub(super) fn set_positioned(&self, shard: usize, positioned: bool) {
        self.shards[shard].positioned.store(positioned, Ordering::Release);
    }

    pub(super) fn is_positioned(&self, shard: usize) -> bool {
        self.shards[shard].positioned.load(Ordering::Acquire)
    }

    /// What a heartbeat says: whose it is, and when it was written.
    pub(super) fn heartbeat(&self) -> String {
        format!("{:016x} {}", self.life, self.now_ms())
    }

    /// A heartbeat has come back: not when it was read counts, but when it was
    /// written, since a reader that lags reads old ones. `false`: it is that of
    /// another life of an instance with this name.
    pub(super) fn heartbeat_seen(&self, shard: usize, beat: &[u8]) -> bool {
        let written = std::str::from_utf8(beat).ok().and_then(|text| {
            let (life, written_ms) = text.split_once(' ')?;
            let ours = u64::from_str_radix(life, 16).ok()? == self.life;
            ours.then(|| written_ms.parse().ok()).flatten()
        });
        match written {
            Some(written_ms) => {
                self.shards[shard].heartbeat_ms.fetch_max(written_ms, Ordering::AcqRel);
                self.set_trouble(None);
                true
            }
            None => {
                self.rival_ms.store(self.now_ms(), Ordering::Release);
                false
            }
        }
    }

    /// What stands in the way of the reply path, as far as it is known.
    pub fn trouble(&self) -> Option<Arc<str>> {
        self.trouble.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    pub(super) fn set_trouble(&self, trouble: Option<&str>) {
        let mut known = self.trouble.lock().unwrap_or_else(PoisonError::into_inner);
        if known.as_deref() != trouble {
            *known = trouble.map(Arc::from);
        }
    }

    /// Whether another process has written heartbeats to the same reply topic
    /// lately: two instances with one fixed name.
    pub fn has_rival(&self) -> bool {
        let seen = self.rival_ms.load(Ordering::Acquire);
        let age = self.now_ms().saturating_sub(seen);
        seen > 0 && u128::from(age) <= self.heartbeat_age_max.as_millis()
    }

    /// Whether a heartbeat has ever come back.
    pub(super) fn has_heartbeat(&self, shard: usize) -> bool {
        self.shards[shard].heartbeat_ms.load(Ordering::Acquire) > 0
    }

    pub(super) fn set_next_offset(&self, shard: usize, offset: i64) {
        self.shards[shard].next_offset.store(offset, Ordering::Release);
    }

    pub(super) fn next_offset(&self, shard: usize) -> i64 {
        self.shards[shard].next_offset.load(Ordering::Acquire)
    }
}
