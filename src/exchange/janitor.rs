//! Removes the reply topics of instances that died without doing so.
//!
//! Each living instance looks at those that follow its own in the order of their
//! names, as on a ring, until it has met two that live. So every dead one's topic
//! is watched by the two living instances nearest to it, however many there are,
//! and a look costs a question or two.
//!
//! A look asks for the end of a partition first. Only what has come since the
//! look before is read, and only as far as it may have been written after its
//! instance's death (replies to calls that it had in flight): where more has
//! come, somebody is alive. A topic in which there is no heartbeat at all is
//! somebody else's, whatever its name, and is left alone.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use tokio::time::{Instant, sleep};

use super::instance::Instance;
use super::orphans::{Sign, Verdict, Watch};
use crate::limits;
use crate::message::HEARTBEAT;
use crate::transport::{Cluster, ClusterError, FetchError, PartitionReader};

/// Looks per limit, so that a topic is removed soon after it has passed.
const LOOKS_PER_LIMIT: u32 = 5;
/// Living instances that one walk has to meet.
const LIVING_MET: usize = 2;
/// How long a fetch waits that should find something at once.
const LOOK_WAIT: Duration = Duration::from_millis(100);

/// Looks for orphans.
pub struct Janitor {
    instance: Arc<Instance>,
    cluster: Arc<dyn Cluster>,
    prefix: String,
    after: Duration,
    clock: Instant,
    known: HashMap<String, Known>,
    /// Topics that turned out to be somebody else's; said once.
    strangers: HashSet<String>,
}

/// What is known of one topic.
struct Known {
    watch: Watch,
    /// The end of each partition at the look before.
    ends: Vec<i64>,
}

impl Janitor {
    /// One for the topics `<prefix>.<instance>`.
    pub fn new(instance: Arc<Instance>, cluster: Arc<dyn Cluster>, prefix: &str, after: Duration) -> Self {
        Self {
            instance,
            cluster,
            prefix: format!("{prefix}."),
            after,
            clock: Instant::now(),
            known: HashMap::new(),
            strangers: HashSet::new(),
        }
    }

    /// Never ends.
    pub async fn run(mut self) {
        loop {
            let interval = self.after / LOOKS_PER_LIMIT;
            sleep(interval.mul_f64(0.75 + 0.5 * fastrand::f64())).await;
            self.round().await;
        }
    }

    /// Once around, as far as it must be.
    async fn round(&mut self) {
        let snapshot = self.instance.directory.snapshot();
        let topics = snapshot.keys().filter(|name| name.starts_with(&self.prefix)).cloned();
        let topics: BTreeSet<String> = topics.collect();
        let own = self.instance.reply_topic().to_string();
        self.instance.metrics.reply_topics.set(i64::try_from(topics.len()).unwrap_or(i64::MAX));
        self.known.retain(|name, _| topics.contains(name));
        self.strangers.retain(|name| topics.contains(name));

        let ring = topics.range(own.clone()..).chain(topics.range(..own.clone()));
        let ring = ring.filter(|name| **name != own && !self.strangers.contains(*name));
        let ring: Vec<String> = ring.take(limits::JANITOR_TOPICS_MAX).cloned().collect();
        let mut living = 0;
        for name in &ring {
            let partitions = snapshot.get(name).copied().unwrap_or_default();
            match self.consider(name, partitions).await {
                Ok(Verdict::Living) => living += 1,
                Ok(_) => {}
                // Most likely another janitor has just removed it.
                Err(FetchError::NoSuchTopic) => {
                    self.known.remove(name);
                    self.instance.directory.look_again();
                }
                // Nothing was learnt, and no silence counts.
                Err(error) => {
                    tracing::debug!(topic = %name, %error, "reply topic could not be looked at");
                    self.known.remove(name);
                }
            }
            if living >= LIVING_MET {
                break;
            }
        }
    }

    async fn consider(&mut self, name: &str, partitions: i32) -> Result<Verdict, FetchError> {
        let verdict = self.look(name, partitions).await?;
        if verdict != Verdict::Orphan {
            return Ok(verdict);
        }
        if !self.has_heartbeat(name, partitions).await? {
            tracing::warn!(
                topic = name,
                "this topic has the prefix of reply topics, and no heartbeat in it; it is taken for somebody \
                 else's and left alone",
            );
            self.strangers.insert(name.to_owned());
            return Ok(Verdict::Unknown);
        }
        // Once more, right before.
        let verdict = self.look(name, partitions).await?;
        if verdict == Verdict::Orphan {
            self.remove(name).await;
        }
        Ok(verdict)
    }

    async fn look(&mut self, name: &str, partitions: i32) -> Result<Verdict, FetchError> {
        let asked = self.clock.elapsed();
        let mut ends = Vec::new();
        let mut signs = Vec::new();
        let before = self.known.get(name);
        for (index, partition) in (0..partitions).enumerate() {
            let known = before.and_then(|known| known.ends.get(index)).copied();
            let mut reader = open(&*self.cluster, name, partition).await?;
            let end = reader.end_offset().await?;
            ends.push(end);
            signs.push(match (before, known) {
                (Some(_), Some(known)) => news(&mut *reader, known, end).await?,
                (Some(_), None) => Sign::Life,
                (None, _) => Sign::Silence,
            });
            // As a rule one partition that lives is enough; where the first is
            // silent, each of the others counts.
            if index == 0 && before.is_some_and(|known| known.ends.len() > 1) && signs[0] == Sign::Life {
                ends.extend(before.into_iter().flat_map(|known| &known.ends[1..]));
                break;
            }
        }
        let answered = self.clock.elapsed();
        let Some(known) = self.known.get_mut(name) else {
            let known = Known { watch: Watch::new(answered, self.after), ends };
            self.known.insert(name.to_owned(), known);
            return Ok(Verdict::Unknown);
        };
        known.ends = ends;
        let sign = if signs.contains(&Sign::Life) { Sign::Life } else { Sign::Silence };
        Ok(known.watch.look(asked, answered, sign))
    }

    /// Whether there is any heartbeat left in it. Its instance keeps the last
    /// one when it trims.
    async fn has_heartbeat(&self, name: &str, partitions: i32) -> Result<bool, FetchError> {
        for partition in 0..partitions {
            let mut reader = open(&*self.cluster, name, partition).await?;
            let (start, end) = (reader.start_offset().await?, reader.end_offset().await?);
            // Trimming leaves it at the start; the first one was there before
            // any reply; and most likely another is near the end.
            let most = limits::JANITOR_RECORDS_MAX;
            for (from, to) in [(start, end.min(start + most)), (start.max(end - most), end)] {
                if read_for_heartbeat(&mut *reader, from, to).await? == Found::Heartbeat {
                    return Ok(true);
                }
            }
        }
        Ok(false)
    }

    async fn remove(&mut self, name: &str) {
        self.known.remove(name);
        self.instance.directory.look_again();
        match self.cluster.delete_topic(name).await {
            Ok(()) => {
                self.instance.metrics.orphans_removed.inc();
                tracing::info!(topic = name, "reply topic of a dead instance removed");
            }
            // Another janitor was faster.
            Err(ClusterError::NoSuchTopic(_)) => {}
            Err(error) => {
                tracing::warn!(topic = name, %error, "reply topic of a dead instance not removed");
            }
        }
    }
}

async fn open(
    cluster: &dyn Cluster,
    name: &str,
    partition: i32,
) -> Result<Box<dyn PartitionReader>, FetchError> {
    cluster.reader(name, partition).await.map_err(|error| match error {
        ClusterError::NoSuchTopic(_) => FetchError::NoSuchTopic,
        other => FetchError::Unreachable(other.to_string()),
    })
}

/// Whether something new in the partition shows life, which ended at `before`
/// and ends at `end` now.
async fn news(reader: &mut dyn PartitionReader, before: i64, end: i64) -> Result<Sign, FetchError> {
    if before == end {
        return Ok(Sign::Silence);
    }
    // Made anew, or more than one cares to read, or trimmed by one who lives.
    let few = before < end && end - before <= limits::JANITOR_RECORDS_MAX;
    if !few || reader.start_offset().await? > before {
        return Ok(Sign::Life);
    }
    match read_for_heartbeat(reader, before, end).await? {
        Found::Nothing => Ok(Sign::Silence),
        Found::Heartbeat | Found::Unread => Ok(Sign::Life),
    }
}

/// What a part of a log holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Found {
    Heartbeat,
    Nothing,
    /// It could not be read to its end.
    Unread,
}

/// Reads from `from` to `end`, as far as the first heartbeat.
async fn read_for_heartbeat(
    reader: &mut dyn PartitionReader,
    mut from: i64,
    end: i64,
) -> Result<Found, FetchError> {
    // Each fetch brings a record at least, or steps over one.
    for _ in 0..=limits::JANITOR_RECORDS_MAX {
        if from >= end {
            return Ok(Found::Nothing);
        }
        match reader.fetch(from, LOOK_WAIT).await {
            Ok(fetched) => {
                if fetched.records.iter().any(|record| record.header(HEARTBEAT).is_some()) {
                    return Ok(Found::Heartbeat);
                }
                from = fetched.next_offset;
            }
            Err(FetchError::Undecodable(_)) => from += 1,
            Err(error) => return Err(error),
        }
    }
    Ok(Found::Unread)
}
