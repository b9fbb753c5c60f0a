//! Reading topics for one call, within bounds: from a time on, each partition
//! to the end that it had, no more records, bytes and time than was allowed.

use std::collections::{BTreeSet, HashMap};
use std::ops::ControlFlow;
use std::time::Duration;

use tokio::time::timeout_at;

use super::story::{ReplyLog, Sighting, Story};
use super::{CLOCKS_APART_MS, Error, Question};
use crate::dead_letters::{Letter, Place};
use crate::message::CANCEL;
use crate::message::dialect::{correlation_id_of, reply_topic_of};
use crate::transport::{Cluster, ClusterError, FetchError, PartitionReader};

/// How long one fetch waits where nothing comes.
const FETCH_WAIT: Duration = Duration::from_millis(500);
/// Fetches in a row that bring nothing before the end: an open transaction may
/// lie there.
const EMPTY_FETCHES_MAX: u32 = 10;
/// Partitions that were not read to their end and are remembered by name.
const UNFINISHED_NAMED_MAX: usize = 20;

/// What a search may cost.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Records read.
    pub records_max: u64,
    /// Bytes of keys, values and headers read.
    pub bytes_max: u64,
}

/// What a search has read so far.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Searched {
    /// Partitions that were opened.
    pub partitions: u64,
    /// Records.
    pub records: u64,
    /// Bytes of keys, values and headers.
    pub bytes: u64,
    /// Records that could not be decoded and were stepped over.
    pub undecodable: u64,
    /// Partitions that were not read to their end, and why.
    pub unfinished: Vec<String>,
    /// The partition that is being read.
    pub at: String,
}

impl Searched {
    /// Whether all was read that was asked for.
    pub fn is_complete(&self) -> bool {
        self.unfinished.is_empty()
    }

    fn leave(&mut self, why: String) {
        if self.unfinished.len() < UNFINISHED_NAMED_MAX {
            self.unfinished.push(why);
        }
    }
}

/// Where to begin in a partition.
#[derive(Debug, Clone, Copy)]
enum From {
    Time(i64),
    Offset(i64),
}

type Take<'t> = dyn FnMut(Letter) -> ControlFlow<()> + Send + 't;

/// One search.
pub(super) struct Search<'a> {
    cluster: &'a dyn Cluster,
    question: &'a Question,
    topics: HashMap<String, i32>,
    searched: Searched,
    watch: &'a mut (dyn FnMut(&Searched) + Send),
}

impl<'a> Search<'a> {
    /// Looks the topics up.
    pub(super) async fn begin(
        cluster: &'a dyn Cluster,
        question: &'a Question,
        watch: &'a mut (dyn FnMut(&Searched) + Send),
    ) -> Result<Self, Error> {
        let topics = cluster.topics().await?;
        let topics = topics.into_iter().map(|topic| (topic.name, topic.partitions)).collect();
        Ok(Self { cluster, question, topics, searched: Searched::default(), watch })
    }

    /// What was read.
    pub(super) fn end(self) -> Searched {
        self.searched
    }

    /// The calls that have the name, as far as one record of each.
    pub(super) async fn find_calls(&mut self) -> Result<Vec<Story>, Error> {
        let mut stories = Vec::new();
        if let Some((topic, partition, offset)) = self.question.record.clone() {
            self.topics.get(&topic).ok_or_else(|| Error::NoTopic(topic.clone()))?;
            let custom = self.question.custom.as_deref();
            let is_meant = |found: &Sighting| {
                let name = self.question.name.as_ref();
                name.is_none_or(|name| name.names(&found.letter.record, custom))
            };
            if let Some(found) = self.record_at(&topic, partition, offset).await?.filter(is_meant) {
                self.tell(&mut stories, found);
            }
            return Ok(stories);
        }
        let since = From::Time(self.question.since_ms);
        for topic in self.question.dead_letter_topics.clone() {
            self.scan_named(&mut stories, &topic, since, false).await?;
        }
        self.find_originals(&mut stories).await?;
        // An id of ours is that of one call, so nothing else can have it.
        let is_one = self.question.name.as_ref().is_some_and(|name| name.correlation_id().is_some());
        if is_one && stories.iter().any(|story| !story.requests.is_empty()) {
            return Ok(stories);
        }
        for topic in self.question.request_topics.clone() {
            self.scan_named(&mut stories, &topic, since, is_one).await?;
            if is_one && stories.iter().any(|story| !story.requests.is_empty()) {
                break;
            }
        }
        if stories.is_empty() {
            // Its request may be gone while its reply is still there.
            let mut topics: Vec<String> = self.topics.keys().cloned().collect();
            topics.retain(|topic| topic.starts_with(&self.question.reply_prefix));
            for topic in topics {
                self.scan_named(&mut stories, &topic, since, false).await?;
            }
        }
        Ok(stories)
    }

    /// What the topic has that carries the name. `first`: the first request is
    /// enough.
    async fn scan_named(
        &mut self,
        stories: &mut Vec<Story>,
        topic: &str,
        from: From,
        first: bool,
    ) -> Result<(), Error> {
        let Some(name) = self.question.name.clone() else { return Ok(()) };
        let (custom, until) = (self.question.custom.clone(), self.question.until_ms);
        for partition in self.partitions_of(topic) {
            let mut found = Vec::new();
            let mut stop = false;
            self.scan(topic, partition, from, &mut |letter| {
                if until.is_some_and(|until| letter.record.timestamp_ms >= until) {
                    return ControlFlow::Continue(());
                }
                if name.names(&letter.record, custom.as_deref()) {
                    stop = first && letter.record.header(CANCEL).is_none();
                    found.push(Sighting { topic: topic.to_owned(), letter });
                }
                if stop { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
            })
            .await?;
            for sighting in found {
                self.tell(stories, sighting);
            }
            if stop {
                break;
            }
        }
        Ok(())
    }

    /// The requests of dead letters, where those say where they are.
    async fn find_originals(&mut self, stories: &mut Vec<Story>) -> Result<(), Error> {
        let mut places = BTreeSet::new();
        for letter in stories.iter().flat_map(|story| &story.letters) {
            if let Some(at) = letter.letter.original()
                && let (Some(partition), Some(offset)) = (at.partition, at.offset)
                && self.partitions_of(&at.topic).contains(&partition)
            {
                places.insert((at.topic, partition, offset));
            }
        }
        for (topic, partition, offset) in places {
            if let Some(found) = self.record_at(&topic, partition, offset).await? {
                self.tell(stories, found);
            }
        }
        Ok(())
    }

    /// Puts a record into the story of its call.
    fn tell(&self, stories: &mut Vec<Story>, sighting: Sighting) {
        let id = self.id_of(&sighting.letter);
        let known = stories.iter().position(|story| story.id == id && id.is_some());
        let index = known.unwrap_or_else(|| {
            stories.push(Story { id, ..Story::default() });
            stories.len() - 1
        });
        stories[index].add(sighting, self.question);
    }

    fn id_of(&self, letter: &Letter) -> Option<String> {
        let id = correlation_id_of(&letter.record, self.question.custom.as_deref());
        id.map(|id| id.to_string()).or_else(|| letter.correlation_id())
    }

    /// Looks for everything else that names the same calls.
    pub(super) async fn complete(&mut self, stories: &mut Vec<Story>) -> Result<(), Error> {
        let Some(began_ms) = stories.iter().map(Story::began_ms).min() else { return Ok(()) };
        let from = From::Time(began_ms - CLOCKS_APART_MS);
        let mut whole = BTreeSet::new();
        let mut behind: HashMap<(String, i32), i64> = HashMap::new();
        for story in stories.iter_mut() {
            for sighting in &story.requests {
                let place = sighting.letter.place;
                let first = behind.entry((sighting.topic.clone(), place.partition)).or_insert(place.offset);
                *first = (*first).min(place.offset);
            }
            whole.extend(self.question.dead_letter_topics.iter().cloned());
            whole.extend(self.note_reply_topic(story).await?);
        }
        for ((topic, partition), offset) in behind {
            self.scan_for(stories, &topic, partition, From::Offset(offset)).await?;
        }
        for topic in whole {
            for partition in self.partitions_of(&topic) {
                self.scan_for(stories, &topic, partition, from).await?;
            }
        }
        Ok(())
    }

    /// What one partition has of the calls that are known.
    async fn scan_for(
        &mut self,
        stories: &mut Vec<Story>,
        topic: &str,
        partition: i32,
        from: From,
    ) -> Result<(), Error> {
        let custom = self.question.custom.clone();
        let ids: BTreeSet<String> = stories.iter().filter_map(|story| story.id.clone()).collect();
        let mut found = Vec::new();
        self.scan(topic, partition, from, &mut |letter| {
            let id = correlation_id_of(&letter.record, custom.as_deref());
            let id = id.map(|id| id.to_string()).or_else(|| letter.correlation_id());
            if id.is_some_and(|id| ids.contains(&id)) {
                found.push(Sighting { topic: topic.to_owned(), letter });
            }
            ControlFlow::Continue(())
        })
        .await?;
        for sighting in found {
            self.tell(stories, sighting);
        }
        Ok(())
    }

    /// The reply topic that the request names, if it is still there, and
    /// whether what it had at the time of the request is.
    async fn note_reply_topic(&mut self, story: &mut Story) -> Result<Option<String>, Error> {
        let named = story.requests.iter().chain(&story.letters).find_map(|sighting| {
            let topic = reply_topic_of(&sighting.letter.record, self.question.custom.as_deref())?;
            Some(String::from_utf8_lossy(topic).into_owned())
        });
        let named = named.or_else(|| story.replies.first().map(|reply| reply.topic.clone()));
        let Some(topic) = named else { return Ok(None) };
        story.reply_topic = Some(topic.clone());
        if !self.topics.contains_key(&topic) {
            story.reply_log = ReplyLog::Gone;
            return Ok(None);
        }
        let mut trimmed = false;
        for partition in self.partitions_of(&topic) {
            trimmed |= self.is_trimmed(&topic, partition, story.began_ms()).await?;
        }
        story.reply_log = if trimmed { ReplyLog::Trimmed } else { ReplyLog::Whole };
        Ok(Some(topic))
    }

    /// Whether records of this time or later may have been dropped already.
    async fn is_trimmed(&mut self, topic: &str, partition: i32, time_ms: i64) -> Result<bool, Error> {
        let Some(mut reader) = self.open(topic, partition).await? else { return Ok(true) };
        let failed = |source| error_at(topic, partition, source);
        let start = reader.start_offset().await.map_err(failed)?;
        if start == 0 {
            return Ok(false);
        }
        // Whole, if something older than the request is still there.
        let first = reader.offset_at(time_ms - CLOCKS_APART_MS).await.map_err(failed)?;
        Ok(first <= start)
    }

    fn partitions_of(&self, topic: &str) -> std::ops::Range<i32> {
        0..self.topics.get(topic).copied().unwrap_or_default()
    }

    async fn record_at(
        &mut self,
        topic: &str,
        partition: i32,
        offset: i64,
    ) -> Result<Option<Sighting>, Error> {
        let mut found = None;
        self.scan(topic, partition, From::Offset(offset), &mut |letter| {
            if letter.place == (Place { partition, offset }) {
                found = Some(Sighting { topic: topic.to_owned(), letter });
            }
            ControlFlow::Break(())
        })
        .await?;
        Ok(found)
    }

    /// `None`: it is not there any more.
    async fn open(&mut self, topic: &str, partition: i32) -> Result<Option<Box<dyn PartitionReader>>, Error> {
        match self.cluster.reader(topic, partition).await {
            Ok(reader) => Ok(Some(reader)),
            Err(ClusterError::NoSuchTopic(_)) => Ok(None),
            Err(error) => Err(error.into()),
        }
    }

    /// Reads a partition to the end that it has now, or until `take` has
    /// enough or a bound is reached.
    async fn scan(
        &mut self,
        topic: &str,
        partition: i32,
        from: From,
        take: &mut Take<'_>,
    ) -> Result<(), Error> {
        let deadline = self.question.deadline;
        self.searched.at = format!("{topic}/{partition}");
        (self.watch)(&self.searched);
        let scanned = timeout_at(deadline, self.scan_until_end(topic, partition, from, take)).await;
        match scanned {
            Ok(Err(Error::Fetch { source: FetchError::NoSuchTopic, .. })) => Ok(()),
            Ok(result) => result,
            Err(_) => {
                self.searched.leave(format!("{topic}/{partition}: the time limit has passed"));
                Ok(())
            }
        }
    }

    async fn scan_until_end(
        &mut self,
        topic: &str,
        partition: i32,
        from: From,
        take: &mut Take<'_>,
    ) -> Result<(), Error> {
        let failed = |source| error_at(topic, partition, source);
        let Some(mut reader) = self.open(topic, partition).await? else { return Ok(()) };
        self.searched.partitions += 1;
        let end = reader.end_offset().await.map_err(failed)?;
        let mut offset = match from {
            From::Time(time_ms) => reader.offset_at(time_ms).await.map_err(failed)?,
            From::Offset(offset) => offset,
        };
        let mut empty = 0;
        while offset < end {
            if let Some(bound) = self.bound_reached() {
                self.searched.leave(format!("{topic}/{partition}: {bound} at offset {offset} of {end}"));
                return Ok(());
            }
            match reader.fetch(offset, FETCH_WAIT).await {
                Ok(fetched) => {
                    empty = if fetched.next_offset > offset { 0 } else { empty + 1 };
                    offset = fetched.next_offset.max(offset);
                    for record in fetched.records.into_iter().filter(|record| record.offset < end) {
                        self.searched.records += 1;
                        self.searched.bytes += size(&record);
                        if take(Letter::new(partition, record)).is_break() {
                            return Ok(());
                        }
                    }
                    (self.watch)(&self.searched);
                }
                Err(FetchError::Undecodable(_)) => {
                    self.searched.undecodable += 1;
                    offset += 1;
                }
                Err(FetchError::OffsetOutOfRange) => {
                    let start = reader.start_offset().await.map_err(failed)?;
                    offset = start.max(offset + 1);
                }
                Err(source) => return Err(failed(source)),
            }
            if empty >= EMPTY_FETCHES_MAX {
                let why = format!("nothing can be read at offset {offset} of {end}; an open transaction?");
                self.searched.leave(format!("{topic}/{partition}: {why}"));
                return Ok(());
            }
        }
        Ok(())
    }

    fn bound_reached(&self) -> Option<String> {
        let Limits { records_max, bytes_max } = self.question.limits;
        if self.searched.records >= records_max {
            Some(format!("{records_max} records were read"))
        } else if self.searched.bytes >= bytes_max {
            Some(format!("{bytes_max} bytes were read"))
        } else {
            None
        }
    }
}

fn size(record: &crate::transport::Received) -> u64 {
    let headers: usize = record.headers.iter().map(|(name, value)| name.len() + value.len()).sum();
    let key = record.key.as_ref().map_or(0, bytes::Bytes::len);
    let value = record.value.as_ref().map_or(0, bytes::Bytes::len);
    (headers + key + value) as u64
}

fn error_at(topic: &str, partition: i32, source: FetchError) -> Error {
    Error::Fetch { topic: topic.to_owned(), partition, source }
}
