//! A shard that leases its reply partition: looks for one that is free, claims
//! it, reads and beats under the lease, and moves when it is lost.
//!
//! ```text
//! watch all ──free──► claim ──own claim read, and it holds──► read and beat
//!   ▲    ▲              │ contested                              │ a rival's claim holds
//!   │    └──────────────┘                                        ▼
//!   └──────────────── look for another ◄──── read on, for the calls that wait here
//! ```
//!
//! A partition is free when nobody holds it by the log, or when nothing was heard
//! of its holder for `reply.lease_ttl` of this process's own clock while it was
//! read to its end. What `lease` makes of the log decides whether that was so.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::oneshot;
use tokio::time::{Instant, sleep};

use super::heartbeat::{Heart, Trim};
use super::instance::Instance;
use super::lease::{Entry, Ledger, Tenant};
use super::replies::{Reading, ReplyReader};
use crate::backoff::Backoff;
use crate::correlation::CorrelationId;
use crate::limits;
use crate::message::LEASE;
use crate::pending::Pending;
use crate::supervisor::{Supervisor, Task};
use crate::terms::Compression;
use crate::transport::{Cluster, FetchError, HeaderName, PartitionReader, ProduceError, Received, Record};

/// How long a fetch waits that should find something at once.
const LOOK_WAIT: Duration = Duration::from_millis(100);
/// Fetches of one look; what has so much traffic is not idle.
const LOOK_FETCHES_MAX: usize = 200;
/// How often a partition that was lost is looked at for calls that still wait.
const SWEEP_INTERVAL: Duration = Duration::from_millis(200);

/// A lease record of this instance's.
pub(super) fn record(instance: &Instance, entry: &Entry) -> Record {
    let name = Bytes::copy_from_slice(instance.name().as_bytes());
    Record {
        key: None,
        value: Some(Bytes::from(entry.encode())),
        headers: vec![(HeaderName::Borrowed(LEASE), name)],
    }
}

/// What the shards of an instance hold, and know of other holders.
#[derive(Debug, Default)]
pub(super) struct Leases {
    inner: Mutex<Known>,
}

#[derive(Debug, Default)]
struct Known {
    /// Partitions that one of our shards holds, or is trying for.
    taken: BTreeMap<i32, Option<(Tenant, i64)>>,
    /// Names of other holders.
    others: BTreeMap<i32, String>,
}

impl Leases {
    /// `false`: another of our shards has it.
    fn reserve(&self, partition: i32) -> bool {
        let mut known = self.lock();
        let free = !known.taken.contains_key(&partition);
        if free {
            known.taken.insert(partition, None);
        }
        free
    }

    fn hold(&self, partition: i32, by: Tenant, term: i64) {
        self.lock().taken.insert(partition, Some((by, term)));
    }

    /// It is free for our other shards.
    pub(super) fn let_go(&self, partition: i32) {
        self.lock().taken.remove(&partition);
    }

    fn saw(&self, partition: i32, holder: Option<&str>) {
        let mut known = self.lock();
        match holder {
            Some(name) => known.others.insert(partition, name.to_owned()),
            None => known.others.remove(&partition),
        };
    }

    fn lock(&self) -> MutexGuard<'_, Known> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Instance {
    /// Who holds the partitions of the reply topic that are not ours, as far as
    /// is known.
    pub fn other_holders(&self) -> BTreeMap<i32, String> {
        self.leases.lock().others.clone()
    }

    /// Partitions of the reply topic that are ours.
    pub fn leased_partitions(&self) -> Vec<i32> {
        let known = self.leases.lock();
        known.taken.iter().filter(|(_, held)| held.is_some()).map(|(partition, _)| *partition).collect()
    }

    /// Gives back what is held, so that others need not wait. For the end, once
    /// nothing is read any more.
    pub async fn release_leases(&self, cluster: &dyn Cluster) {
        let taken = self.leases.lock().taken.clone();
        for (partition, held) in taken {
            let Some((by, term)) = held else { continue };
            let entry = record(self, &Entry::Release { by, term });
            let released = match cluster.writer(self.reply_topic(), partition).await {
                Ok(mut writer) => match writer.produce(&[entry], Compression::None).await {
                    Ok(_) => Ok(()),
                    Err(error) => Err(error.to_string()),
                },
                Err(error) => Err(error.to_string()),
            };
            self.leases.let_go(partition);
            let topic = self.reply_topic();
            match released {
                Ok(()) => {
                    self.metrics.count_lease("released");
                    tracing::info!(%topic, partition, "lease released");
                }
                Err(error) => tracing::warn!(%topic, partition, error, "lease not released; it runs out"),
            }
        }
    }
}

/// The lease under which a partition is read.
pub(super) struct Tenancy {
    me: Tenant,
    term: i64,
    ledger: Ledger,
    /// Told when the lease is lost; gone after that.
    lost: Option<oneshot::Sender<()>>,
    /// Calls that still wait here after that.
    waiting: Vec<CorrelationId>,
    pending: Option<Arc<Pending>>,
    swept: Instant,
}

impl Tenancy {
    fn new(me: Tenant, term: i64, ledger: Ledger, lost: oneshot::Sender<()>) -> Self {
        let lost = Some(lost);
        Self { me, term, ledger, lost, waiting: Vec::new(), pending: None, swept: Instant::now() }
    }

    pub(super) const fn tenant(&self) -> Tenant {
        self.me
    }

    pub(super) fn apply(&mut self, offset: i64, entry: &Entry) {
        self.ledger.apply(offset, entry);
    }

    /// Whether the partition is still ours by what has been read of it.
    pub(super) fn holds(&self) -> bool {
        self.ledger.is_held_by(self.me, self.term)
    }

    /// The lease is lost: notes who still waits. Registering a call and writing
    /// its request are one step on this thread, so that none slips between.
    /// `false`: it was lost before.
    pub(super) fn leave(&mut self, pending: &Arc<Pending>) -> bool {
        let Some(lost) = self.lost.take() else { return false };
        self.waiting = pending.ids();
        self.pending = Some(Arc::clone(pending));
        // Nobody listens any more when the instance ends.
        let _ = lost.send(());
        true
    }

    /// Whether it was lost and nobody waits here any more.
    pub(super) fn is_over(&mut self) -> bool {
        let Some(pending) = &self.pending else { return false };
        if self.swept.elapsed() >= SWEEP_INTERVAL {
            self.swept = Instant::now();
            self.waiting.retain(|id| pending.progress_of(*id).is_some());
        }
        self.waiting.is_empty()
    }
}

/// Finds a shard its partition, and another when that is lost.
pub(super) struct Lessee {
    pub(super) reading: Reading,
    pub(super) supervisor: Supervisor,
    pub(super) interval: Duration,
    pub(super) ttl: Duration,
    /// How long what was read is kept.
    pub(super) keep: Duration,
}

/// A partition that was won.
struct Lease {
    partition: i32,
    term: i64,
    ledger: Ledger,
    next_offset: i64,
}

impl Lessee {
    /// Never ends.
    pub(super) async fn run(self) {
        let mut leaving: Vec<Task> = Vec::new();
        loop {
            let lease = self.find().await;
            leaving.retain(|reader| !reader.is_finished());
            let (reader, heart, lost) = self.move_in(lease);
            // An error means that the reader has panicked, which ends the process.
            let _ = lost.await;
            drop(heart);
            leaving.push(reader);
        }
    }

    fn me(&self) -> Tenant {
        let shard = u8::try_from(self.reading.shard).unwrap_or(u8::MAX);
        Tenant { life: self.reading.instance.life(), shard }
    }

    fn move_in(&self, lease: Lease) -> (Task, Task, oneshot::Receiver<()>) {
        let Lease { partition, term, ledger, next_offset } = lease;
        let instance = &self.reading.instance;
        let state = &instance.shards()[self.reading.shard];
        let place = state.add_place(partition);
        let (lost, hear) = oneshot::channel();
        let reader = ReplyReader {
            reading: self.reading.clone(),
            place: Arc::clone(&place),
            from: Some(next_offset),
            tenancy: Some(Tenancy::new(self.me(), term, ledger, lost)),
        };
        let heart = Heart {
            place,
            instance: Arc::clone(instance),
            cluster: Arc::clone(&self.reading.cluster),
            interval: self.interval,
            trim: Trim::After(self.keep),
            lease: Some((self.me(), term)),
        };
        instance.leases.hold(partition, self.me(), term);
        instance.metrics.count_lease("claimed");
        state.sit(Some(partition));
        let (topic, shard) = (instance.reply_topic(), self.reading.shard);
        tracing::info!(%topic, partition, shard, term, "reply partition leased");
        let reader = self.supervisor.spawn("reply reader", reader.run());
        (reader, self.supervisor.spawn("heart", heart.run()), hear)
    }

    /// Looks until there is one.
    async fn find(&self) -> Lease {
        let mut watches = HashMap::new();
        let mut backoff = Backoff::default();
        let leases = &self.reading.instance.leases;
        loop {
            let partitions = self.reading.instance.reply_partitions().max(1);
            // Those who start together do not all try the same one first.
            let first = fastrand::i32(0..partitions);
            for partition in (first..partitions).chain(0..first) {
                if !leases.reserve(partition) {
                    continue;
                }
                match self.try_partition(&mut watches, partition).await {
                    Ok(Some(lease)) => return lease,
                    Ok(None) => backoff.reset(),
                    Err(error) => {
                        self.explain(partition, &error).await;
                        backoff.pause().await;
                    }
                }
                leases.let_go(partition);
            }
            let poll = Duration::from_millis(limits::LEASE_POLL_MS);
            sleep(poll.mul_f64(0.5 + fastrand::f64())).await;
        }
    }

    async fn try_partition(
        &self,
        watches: &mut HashMap<i32, Watch>,
        partition: i32,
    ) -> Result<Option<Lease>, FetchError> {
        let mut watch = match watches.remove(&partition) {
            Some(watch) => watch,
            None => Watch::open(&self.reading, partition).await?,
        };
        let free = match watch.look(self.me(), self.ttl).await? {
            Look::Mine(lease) => return Ok(Some(lease)),
            Look::Free => true,
            Look::Taken => false,
        };
        let holder = watch.holder_name.as_deref().filter(|_| !free);
        self.reading.instance.leases.saw(partition, holder);
        if free {
            return Ok(self.claim(watch).await);
        }
        watches.insert(partition, watch);
        Ok(None)
    }

    async fn explain(&self, partition: i32, error: &FetchError) {
        let topic = self.reading.instance.reply_topic();
        tracing::warn!(%topic, partition, %error, "reply partition could not be looked at");
        if *error == FetchError::NoSuchTopic {
            let again = self.reading.recreate;
            // Another instance may be faster; what went wrong shows at the next look.
            let _ =
                self.reading.cluster.create_topic(topic, again.partitions, again.replication_factor).await;
        }
    }

    /// Claims the partition and reads on until the log says who has won. A claim
    /// that lands after this has given up harms nobody: it counts only where
    /// nothing was heard of anyone.
    async fn claim(&self, mut watch: Watch) -> Option<Lease> {
        let instance = &self.reading.instance;
        let claim = Entry::Claim { by: self.me(), seen: watch.next - 1 };
        let writer = self.reading.cluster.writer(instance.reply_topic(), watch.partition).await;
        match writer.ok()?.produce(&[record(instance, &claim)], Compression::None).await {
            Ok(_) | Err(ProduceError::Unknown(_) | ProduceError::Throttled { .. }) => {}
            Err(error) => {
                tracing::warn!(partition = watch.partition, %error, "claim not written");
                return None;
            }
        }
        let deadline = Instant::now() + Duration::from_millis(limits::LEASE_CLAIM_TIMEOUT_MS);
        while Instant::now() < deadline {
            let claimed = watch.read_on(&claim).await.ok()?;
            match (watch.mine(self.me()), claimed) {
                (Some(lease), _) => return Some(lease),
                (None, true) => {
                    instance.metrics.count_lease("contested");
                    return None;
                }
                (None, false) => {}
            }
        }
        None
    }
}

/// What a look at a partition came to.
enum Look {
    Free,
    Taken,
    /// By a claim of before, which took its time.
    Mine(Lease),
}

/// A partition that is read for who holds it.
struct Watch {
    partition: i32,
    reader: Box<dyn PartitionReader>,
    ledger: Ledger,
    next: i64,
    /// When a lease record was last read, or else the watch began.
    heard: Instant,
    holder_name: Option<String>,
}

impl Watch {
    async fn open(reading: &Reading, partition: i32) -> Result<Self, FetchError> {
        let opened = reading.cluster.reader(reading.instance.reply_topic(), partition).await;
        let mut reader = opened.map_err(|error| match error {
            crate::transport::ClusterError::NoSuchTopic(_) => FetchError::NoSuchTopic,
            other => FetchError::Unreachable(other.to_string()),
        })?;
        let start = reader.start_offset().await?;
        // All of it would be minutes of replies. What is not known of the rest
        // costs a wait.
        let next = start.max(reader.end_offset().await? - limits::LEASE_TAIL_RECORDS);
        let (ledger, heard) = (Ledger::beginning_at(next), Instant::now());
        Ok(Self { partition, reader, ledger, next, heard, holder_name: None })
    }

    async fn look(&mut self, me: Tenant, ttl: Duration) -> Result<Look, FetchError> {
        // From before the question: silence counts only as far as the answer
        // covers it.
        let asked = Instant::now();
        let end = self.reader.end_offset().await?;
        if end < self.next {
            return Err(FetchError::OffsetOutOfRange);
        }
        let mut fetches = 0;
        while self.next < end {
            fetches += 1;
            if fetches > LOOK_FETCHES_MAX {
                return Ok(Look::Taken);
            }
            self.fetch(LOOK_WAIT, None).await?;
        }
        if let Some(lease) = self.mine(me) {
            return Ok(Look::Mine(lease));
        }
        let silent = asked.saturating_duration_since(self.heard);
        Ok(if self.ledger.is_vacant() || silent >= ttl { Look::Free } else { Look::Taken })
    }

    /// Waits for more. `true`: `claim` was in it.
    async fn read_on(&mut self, claim: &Entry) -> Result<bool, FetchError> {
        self.fetch(Duration::from_millis(limits::FETCH_WAIT_MS), Some(claim)).await
    }

    async fn fetch(&mut self, wait: Duration, claim: Option<&Entry>) -> Result<bool, FetchError> {
        let fetched = match self.reader.fetch(self.next, wait).await {
            Err(FetchError::Undecodable(_)) => {
                self.next += 1;
                return Ok(false);
            }
            fetched => fetched?,
        };
        self.next = fetched.next_offset;
        let mut found = false;
        for record in &fetched.records {
            if let Some(entry) = entry_of(record) {
                self.ledger.apply(record.offset, &entry);
                self.heard = Instant::now();
                found |= claim == Some(&entry);
                self.note_name(record, &entry);
            }
        }
        Ok(found)
    }

    fn note_name(&mut self, record: &Received, entry: &Entry) {
        let (Entry::Claim { by, .. } | Entry::Beat { by, .. } | Entry::Release { by, .. }) = entry;
        match self.ledger.holder() {
            Some((holder, _)) if holder == *by => {
                let name = record.header(LEASE).map(|name| String::from_utf8_lossy(name).into_owned());
                self.holder_name = name.map(|name| format!("{name}/{}", by.shard));
            }
            Some(_) => {}
            None => self.holder_name = None,
        }
    }

    fn mine(&self, me: Tenant) -> Option<Lease> {
        let (_, term) = self.ledger.proven().filter(|(holder, _)| *holder == me)?;
        let ledger = self.ledger.clone();
        Some(Lease { partition: self.partition, term, ledger, next_offset: self.next })
    }
}

fn entry_of(record: &Received) -> Option<Entry> {
    record.header(LEASE)?;
    Entry::parse(record.value.as_deref()?)
}
