//! Reading a dead-letter topic once, from its start to the end that it had
//! when the reading began.

use std::collections::{HashMap, VecDeque};
use std::time::Duration;

use tokio::time::{Instant, timeout_at};

use super::filter::Filter;
use super::letter::{Beside, LateReply, Letter, Place, Replayed};
use super::{DeadLetterTopic, Error};
use crate::terms::DeadLetterClass;
use crate::transport::{Cluster, FetchError, PartitionReader};

/// How long one fetch waits where nothing comes.
const FETCH_WAIT: Duration = Duration::from_millis(500);
/// Fetches in a row that bring nothing before the end: an open transaction may
/// lie there.
const EMPTY_FETCHES_MAX: u32 = 10;
/// Records that could not be decoded and are remembered by place.
const UNDECODABLE_NAMED_MAX: usize = 20;

/// What one reading has met.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Scan {
    /// Records that were read.
    pub records: u64,
    /// Records before the place where the reading was to begin.
    pub passed_over: u64,
    /// Records that could not be decoded and were stepped over.
    pub undecodable: u64,
    /// Where the first of them are, and why.
    pub undecodable_places: Vec<(Place, String)>,
    /// Partitions that were not read to their end, and why.
    pub unfinished: Vec<(i32, String)>,
}

impl Scan {
    fn step_over(&mut self, place: Place, why: String) {
        self.undecodable += 1;
        if self.undecodable_places.len() < UNDECODABLE_NAMED_MAX {
            self.undecodable_places.push((place, why));
        }
    }
}

/// A letter and what stands beside it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// The letter, without its value.
    pub letter: Letter,
    /// What stands beside it.
    pub beside: Beside,
}

/// Which letters are kept when there are too many.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Keep {
    /// The first so many of each partition.
    Oldest(usize),
    /// The last so many.
    Newest(usize),
}

/// Where the reading of a partition begins.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Begin {
    /// With its first record.
    AtStart,
    /// So many records before its end, or with its first.
    BeforeEnd(u64),
    /// At this offset: what stands beside a letter is always behind it.
    At(i64),
}

impl Begin {
    fn offset(self, start: i64, end: i64) -> i64 {
        match self {
            Self::AtStart => start,
            Self::BeforeEnd(records) => end.saturating_sub_unsigned(records).max(start),
            Self::At(offset) => offset.max(start),
        }
    }
}

/// The letters that a filter has found.
#[derive(Debug, Default)]
pub struct Collected {
    /// By the time of their failure; those of one partition by offset.
    pub entries: Vec<Entry>,
    /// How many more there are that were not kept.
    pub more: u64,
    /// What the reading has met.
    pub scan: Scan,
}

impl Collected {
    /// Brings the letters of each request partition into the order in which
    /// the requests were: a request may fail after one that was sent later.
    /// Those that never were in the log come last.
    pub fn in_original_order(&mut self) {
        self.entries.sort_by_cached_key(|entry| {
            let original = entry.letter.original();
            let offset = original.as_ref().and_then(|original| original.offset);
            let topic = original.map(|original| (original.topic, original.partition));
            (topic, offset.unwrap_or(i64::MAX), entry.letter.failed_at_ms())
        });
    }
}

/// Reads the topic and keeps what the filter takes, and what stands beside it.
pub async fn collect(
    cluster: &dyn Cluster,
    topic: &DeadLetterTopic,
    filter: &Filter,
    keep: Keep,
    deadline: Instant,
) -> Result<Collected, Error> {
    collect_from(cluster, topic, filter, Begin::AtStart, keep, deadline).await
}

/// The same without the records before `begin` in each partition.
pub async fn collect_from(
    cluster: &dyn Cluster,
    topic: &DeadLetterTopic,
    filter: &Filter,
    begin: Begin,
    keep: Keep,
    deadline: Instant,
) -> Result<Collected, Error> {
    let mut collected = Collected::default();
    for partition in topic.chosen(filter.partition)? {
        let mut shelf = Shelf { filter, keep, entries: VecDeque::new(), beside: HashMap::new(), more: 0 };
        let section = Section { partition, begin, deadline };
        read_partition(cluster, topic, section, &mut collected.scan, &mut |letter| shelf.take(letter))
            .await?;
        collected.more += shelf.more;
        collected.entries.extend(shelf.into_entries());
    }
    // Stable: letters of one partition stay in the order of their offsets.
    collected.entries.sort_by_key(|entry| entry.letter.failed_at_ms());
    let (Keep::Oldest(max) | Keep::Newest(max)) = keep;
    if let Some(beyond) = collected.entries.len().checked_sub(max).filter(|beyond| *beyond > 0) {
        collected.more += beyond as u64;
        match keep {
            Keep::Oldest(_) => collected.entries.truncate(max),
            Keep::Newest(_) => drop(collected.entries.drain(..beyond)),
        }
    }
    Ok(collected)
}

/// The letters of one partition that are kept. A late reply is always behind
/// its request, so only those of kept requests are remembered.
struct Shelf<'a> {
    filter: &'a Filter,
    keep: Keep,
    entries: VecDeque<(Option<String>, Letter)>,
    beside: HashMap<String, Beside>,
    more: u64,
}

impl Shelf<'_> {
    fn take(&mut self, mut letter: Letter) {
        let id = letter.correlation_id();
        if let Some(beside) = id.as_ref().and_then(|id| self.beside.get_mut(id)) {
            match letter.class() {
                Some(DeadLetterClass::LateReply) => beside.late_reply = Some(LateReply::of(&letter)),
                Some(DeadLetterClass::Replayed) => {
                    beside.replays += 1;
                    beside.last_replay = Some(Replayed::of(&letter));
                }
                _ => {}
            }
        }
        if !self.filter.takes(&letter) {
            return;
        }
        letter.record.value = None;
        match self.keep {
            Keep::Oldest(max) if self.entries.len() >= max => self.more += 1,
            Keep::Newest(max) if self.entries.len() >= max => {
                self.more += 1;
                if let Some((Some(id), _)) = self.entries.pop_front() {
                    self.beside.remove(&id);
                }
                self.put(id, letter);
            }
            _ => self.put(id, letter),
        }
    }

    fn put(&mut self, id: Option<String>, letter: Letter) {
        if let Some(id) = id.clone().filter(|_| letter.is_request()) {
            self.beside.entry(id).or_default();
        }
        self.entries.push_back((id, letter));
    }

    fn into_entries(self) -> Vec<Entry> {
        let Self { entries, beside, .. } = self;
        let with_beside = |(id, letter): (Option<String>, Letter)| {
            let beside = id.and_then(|id| beside.get(&id).cloned()).filter(|_| letter.is_request());
            Entry { letter, beside: beside.unwrap_or_default() }
        };
        entries.into_iter().map(with_beside).collect()
    }
}

/// What of a topic is read, and until when.
#[derive(Debug, Clone, Copy)]
struct Section {
    partition: i32,
    begin: Begin,
    deadline: Instant,
}

async fn read_partition(
    cluster: &dyn Cluster,
    topic: &DeadLetterTopic,
    section: Section,
    scan: &mut Scan,
    take: &mut (dyn FnMut(Letter) + Send),
) -> Result<(), Error> {
    let Section { partition, begin, deadline } = section;
    let Ok(opened) = timeout_at(deadline, open(cluster, topic, partition)).await else {
        scan.unfinished.push((partition, "the time limit has passed".to_owned()));
        return Ok(());
    };
    let (mut reader, start, end) = opened?;
    let mut offset = begin.offset(start, end);
    scan.passed_over += u64::try_from(offset.min(end) - start).unwrap_or_default();
    let mut empty = 0;
    while offset < end {
        let Ok(fetched) = timeout_at(deadline, reader.fetch(offset, FETCH_WAIT)).await else {
            scan.unfinished
                .push((partition, format!("the time limit has passed at offset {offset} of {end}")));
            return Ok(());
        };
        match fetched {
            Ok(fetched) => {
                empty = if fetched.next_offset > offset { 0 } else { empty + 1 };
                offset = fetched.next_offset.max(offset);
                for record in fetched.records.into_iter().filter(|record| record.offset < end) {
                    scan.records += 1;
                    take(Letter::new(partition, record));
                }
            }
            Err(FetchError::Undecodable(why)) => {
                scan.step_over(Place { partition, offset }, why);
                offset += 1;
            }
            // Retention or a purge was here first.
            Err(FetchError::OffsetOutOfRange) => {
                let start = reader.start_offset().await.map_err(|error| topic.error(partition, error))?;
                offset = start.max(offset + 1);
            }
            Err(error) => return Err(topic.error(partition, error)),
        }
        if empty >= EMPTY_FETCHES_MAX {
            let why = format!("nothing can be read at offset {offset} of {end}; an open transaction?");
            scan.unfinished.push((partition, why));
            return Ok(());
        }
    }
    Ok(())
}

/// A reader, with the first offset there is and the one behind the last.
async fn open(
    cluster: &dyn Cluster,
    topic: &DeadLetterTopic,
    partition: i32,
) -> Result<(Box<dyn PartitionReader>, i64, i64), Error> {
    let mut reader = cluster.reader(&topic.name, partition).await?;
    let start = reader.start_offset().await.map_err(|error| topic.error(partition, error))?;
    let end = reader.end_offset().await.map_err(|error| topic.error(partition, error))?;
    Ok((reader, start, end))
}

/// One letter, whole. `None`: there is nothing at this place any more.
pub async fn fetch_one(
    cluster: &dyn Cluster,
    topic: &DeadLetterTopic,
    place: Place,
) -> Result<Option<Letter>, Error> {
    let error = |source| topic.error(place.partition, source);
    topic.chosen(Some(place.partition))?;
    let mut reader = cluster.reader(&topic.name, place.partition).await?;
    if place.offset >= reader.end_offset().await.map_err(error)? {
        return Ok(None);
    }
    for _ in 0..EMPTY_FETCHES_MAX {
        match reader.fetch(place.offset, FETCH_WAIT).await {
            Ok(fetched) => {
                let found = fetched.records.into_iter().find(|record| record.offset == place.offset);
                if found.is_some() || fetched.next_offset > place.offset {
                    return Ok(found.map(|record| Letter::new(place.partition, record)));
                }
            }
            Err(FetchError::OffsetOutOfRange) => return Ok(None),
            Err(source) => return Err(error(source)),
        }
    }
    Ok(None)
}

/// The first offset whose record is not older than `time_ms`, or the end.
pub(super) async fn first_since(
    cluster: &dyn Cluster,
    topic: &DeadLetterTopic,
    partition: i32,
    time_ms: i64,
    deadline: Instant,
) -> Result<(i64, i64, Scan), Error> {
    let (mut scan, mut first) = (Scan::default(), None);
    let (_, start, end) = open(cluster, topic, partition).await?;
    let mut take = |letter: Letter| {
        if first.is_none() && letter.record.timestamp_ms >= time_ms {
            first = Some(letter.place.offset);
        }
    };
    let section = Section { partition, begin: Begin::AtStart, deadline };
    read_partition(cluster, topic, section, &mut scan, &mut take).await?;
    // What was not read is not known to be old.
    let behind = if scan.unfinished.is_empty() { end } else { start };
    Ok((start, first.unwrap_or(behind), scan))
}

/// The first offset of a partition and the one behind its last.
pub(super) async fn bounds(
    cluster: &dyn Cluster,
    topic: &DeadLetterTopic,
    partition: i32,
) -> Result<(i64, i64), Error> {
    let (_, start, end) = open(cluster, topic, partition).await?;
    Ok((start, end))
}
