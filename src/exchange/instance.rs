//! What the shards of one process have in common.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicI32, AtomicU8, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError, Weak};
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::Instant;

use super::aftermath::Remembered;
use super::budget::Budget;
use super::circuit::Circuits;
use super::config::{CircuitConfig, IdempotencyConfig};
use super::idempotency::KeyStore;
use super::lanes::Lanes;
use super::lessee::Leases;
use super::place::Place;
use super::topics::TopicDirectory;
use super::trouble::{Reason, Trouble};
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
    /// How many partitions the reply topic has.
    reply_partitions: AtomicI32,
    pub(super) heartbeat_age_max: Duration,
    pub(super) started: Instant,
    /// Tells this life of an instance from others with the same name.
    life: u64,
    /// When a heartbeat of another life was last seen; as `heartbeat_ms`.
    rival_ms: AtomicU64,
    /// What stood in the way of the reply path last, by the partition of the reply
    /// topic, until a heartbeat comes back through it.
    troubles: Mutex<BTreeMap<i32, Trouble>>,
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
    /// Partitions of a shared reply topic that this instance holds.
    pub(super) leases: Leases,
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
    /// The partition that new requests name; `NO_SEAT` or `NO_NAME`.
    seat: AtomicI32,
    /// The partitions that it reads; all must be in order.
    places: Mutex<Vec<Arc<Place>>>,
    /// Its lanes, which end with its exchange.
    pub(super) lanes: OnceLock<Weak<Lanes>>,
}

/// There is no partition to which replies could come: no calls are let in.
const NO_SEAT: i32 = -2;
/// Replies may come to any partition.
const NO_NAME: i32 = -1;

impl ShardState {
    fn new(pending: Arc<Pending>) -> Self {
        Self { pending, seat: AtomicI32::new(NO_SEAT), places: Mutex::default(), lanes: OnceLock::new() }
    }

    /// Whether calls may be let in, as far as replies are concerned.
    pub(super) fn is_seated(&self) -> bool {
        self.seat.load(Ordering::Acquire) != NO_SEAT
    }

    /// The partition for requests to name, where they should name one.
    pub(super) fn named_partition(&self) -> Option<i32> {
        Some(self.seat.load(Ordering::Acquire)).filter(|partition| *partition >= 0)
    }

    /// From now on requests name this partition, or none.
    pub(super) fn sit(&self, partition: Option<i32>) {
        self.seat.store(partition.unwrap_or(NO_NAME), Ordering::Release);
    }

    /// No calls are let in any more.
    pub(super) fn stand_up(&self) {
        self.seat.store(NO_SEAT, Ordering::Release);
    }

    /// One more partition to be read.
    pub(super) fn add_place(&self, partition: i32) -> Arc<Place> {
        let place = Arc::new(Place::new(partition));
        self.lock().push(Arc::clone(&place));
        place
    }

    /// It is still read, perhaps, but readiness does not depend on it.
    pub(super) fn remove_place(&self, place: &Arc<Place>) {
        self.lock().retain(|other| !Arc::ptr_eq(other, place));
    }

    pub(super) fn lock(&self) -> MutexGuard<'_, Vec<Arc<Place>>> {
        self.places.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Instance {
    /// An instance that is not ready yet, with one shard for each of
    /// `pendings`.
    pub fn new(parts: Parts) -> Arc<Self> {
        let Parts { name, reply_topic, heartbeat_age_max, pendings, budget, circuit, idempotency } = parts;
        let shards: Vec<_> = pendings.into_iter().map(ShardState::new).collect();
        Arc::new(Self {
            name,
            reply_topic,
            reply_partitions: AtomicI32::new(i32::try_from(shards.len()).unwrap_or(1)),
            heartbeat_age_max,
            started: Instant::now(),
            life: fastrand::u64(..),
            rival_ms: AtomicU64::new(0),
            troubles: Mutex::default(),
            phase: watch::Sender::new(Phase::NotReady),
            phase_now: AtomicU8::new(Phase::NotReady as u8),
            shards,
            budget,
            directory: Arc::new(TopicDirectory::new()),
            metrics: Arc::new(Metrics::new()),
            circuits: Circuits::new(circuit),
            keys: KeyStore::new(idempotency),
            dead_letters: Remembered::default(),
            leases: Leases::default(),
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

    /// How many partitions the reply topic has. Unless it was set, one a shard.
    pub fn reply_partitions(&self) -> i32 {
        self.reply_partitions.load(Ordering::Acquire)
    }

    /// Notes how many partitions the reply topic turned out to have.
    pub fn set_reply_partitions(&self, partitions: i32) {
        self.reply_partitions.store(partitions, Ordering::Release);
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
        for reason in Reason::ALL {
            let is_met = self.lock_troubles().values().any(|trouble| trouble.reason == reason);
            metrics.show_trouble(reason.as_str(), is_met);
        }
        let mut loads = Vec::new();
        // Places come and go with leases.
        metrics.heartbeat_age.clear();
        for state in &self.shards {
            for place in state.lock().iter() {
                let labels = ReplyPartition { messaging_destination_partition_id: place.partition() };
                let age = match place.heartbeat_ms() {
                    0 => -1.0,
                    beat => self.now_ms().saturating_sub(beat) as f64 / 1e3,
                };
                metrics.heartbeat_age.get_or_create(&labels).set(age);
            }
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
        let now = self.now_ms();
        let alive = |place: &Arc<Place>| {
            let beat = place.heartbeat_ms();
            let age = now.saturating_sub(beat);
            place.is_positioned() && beat > 0 && u128::from(age) <= self.heartbeat_age_max.as_millis()
        };
        shard.is_seated() && shard.lock().iter().all(alive)
    }

    fn set_phase(&self, phase: Phase) {
        self.phase_now.store(phase as u8, Ordering::Release);
        let changed = self.phase.send_if_modified(|now| std::mem::replace(now, phase) != phase);
        if changed {
            self.metrics.ready.set(i64::from(phase == Phase::Ready));
            tracing::info!(phase = ?phase, "phase");
        }
    }

    pub(super) fn now_ms(&self) -> u64 {
        u64::try_from(self.started.elapsed().as_millis()).unwrap_or(u64::MAX).saturating_add(1)
    }

    /// What correlation ids of this instance have in common.
    pub(super) fn tag(&self) -> u16 {
        self.shards.first().map_or(0, |shard| shard.pending.instance())
    }

    /// Tells this life from others, in heartbeats and leases.
    pub(super) const fn life(&self) -> u64 {
        self.life
    }

    /// What a heartbeat says: whose it is, and when it was written.
    pub(super) fn heartbeat(&self) -> String {
        format!("{:016x} {}", self.life, self.now_ms())
    }

    /// When one of our heartbeats was written; `None` for that of another life.
    /// Not when it was read counts: a reader that lags reads old ones.
    pub(super) fn own_heartbeat(&self, beat: &[u8]) -> Option<u64> {
        let (life, written_ms) = std::str::from_utf8(beat).ok()?.split_once(' ')?;
        let ours = u64::from_str_radix(life, 16).ok()? == self.life;
        ours.then(|| written_ms.parse().ok()).flatten()
    }

    /// Another process has written a heartbeat where only ours should be.
    pub(super) fn rival_seen(&self) {
        self.rival_ms.store(self.now_ms(), Ordering::Release);
    }

    /// What stands in the way of the reply path, as far as it is known.
    pub fn trouble(&self) -> Option<Arc<str>> {
        self.weightiest(|trouble| Arc::clone(&trouble.text))
    }

    /// The same in one word, which may be told to anyone.
    pub fn trouble_reason(&self) -> Option<Reason> {
        self.weightiest(|trouble| trouble.reason)
    }

    fn weightiest<T>(&self, of: impl FnOnce(&Trouble) -> T) -> Option<T> {
        self.lock_troubles().values().min_by_key(|trouble| trouble.reason).map(of)
    }

    fn lock_troubles(&self) -> MutexGuard<'_, BTreeMap<i32, Trouble>> {
        self.troubles.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Replies can't come through this partition, or it is not known whether.
    pub(super) fn note_trouble(&self, partition: i32, trouble: Trouble) {
        let mut troubles = self.lock_troubles();
        if troubles.get(&partition).is_none_or(|known| trouble.outweighs(known)) {
            troubles.insert(partition, trouble);
        }
    }

    /// A heartbeat has come back through this partition. What was wrong with
    /// those that are read no more does not matter now either.
    pub(super) fn end_trouble(&self, partition: i32) {
        let mut troubles = self.lock_troubles();
        if troubles.is_empty() {
            return;
        }
        let read = |number: i32| {
            self.shards.iter().any(|shard| shard.lock().iter().any(|place| place.partition() == number))
        };
        troubles.retain(|number, _| *number != partition && read(*number));
    }

    /// Whether another process has written heartbeats to the same reply topic
    /// lately: two instances with one fixed name.
    pub fn has_rival(&self) -> bool {
        let seen = self.rival_ms.load(Ordering::Acquire);
        let age = self.now_ms().saturating_sub(seen);
        seen > 0 && u128::from(age) <= self.heartbeat_age_max.as_millis()
    }
}
