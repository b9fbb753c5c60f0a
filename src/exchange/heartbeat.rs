//! Heartbeats through the real reply path, and trimming what has been read.
//!
//! For each partition that a shard reads, a small record is written to it every
//! few seconds. That it comes back proves what a health check should prove: that
//! a reply would come back too. Where the partition is leased, the heartbeat
//! keeps the lease as well.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use tokio::time::Instant;

use super::instance::Instance;
use super::lease::{Entry, Tenant};
use super::lessee;
use super::place::Place;
use super::trouble::{Half, Trouble};
use crate::backoff::Backoff;
use crate::limits;
use crate::message::HEARTBEAT;
use crate::terms::Compression;
use crate::transport::{Cluster, HeaderName, PartitionReader, PartitionWriter, Record};

/// How often to look whether the reader has taken its place: a beat that is
/// written before is never read.
const POSITION_POLL: Duration = Duration::from_millis(2);
/// Between beats until the first has come back.
const FIRST_BEATS_INTERVAL: Duration = Duration::from_millis(100);

/// What of a partition may be dropped.
#[derive(Debug, Clone, Copy)]
pub(super) enum Trim {
    /// All that has been read: nobody else reads it.
    Read,
    /// What was read so long ago that no call of anyone can wait for it.
    After(Duration),
    /// Nothing: others read it at their own pace.
    Never,
}

/// Beats in one partition.
pub(super) struct Heart {
    pub(super) place: Arc<Place>,
    pub(super) instance: Arc<Instance>,
    pub(super) cluster: Arc<dyn Cluster>,
    pub(super) interval: Duration,
    pub(super) trim: Trim,
    /// The lease that it keeps, with its term.
    pub(super) lease: Option<(Tenant, i64)>,
}

impl Heart {
    /// Never ends. The first beat goes out as soon as it can be read, and again
    /// soon until one has come back.
    pub(super) async fn run(self) {
        let mut backoff = Backoff::default();
        let mut writer = None;
        while !self.place.is_positioned() {
            tokio::time::sleep(POSITION_POLL).await;
        }
        let mut trimmer = Trimmer::new();
        loop {
            match self.beat(&mut writer).await {
                Ok(()) => {
                    backoff.reset();
                    tokio::time::sleep(self.pause()).await;
                }
                Err(error) => {
                    let partition = self.place.partition();
                    tracing::warn!(partition, error, "heartbeat not written");
                    let trouble = Trouble::new(Half::Heart, format!("heartbeat not written: {error}"));
                    self.instance.note_trouble(partition, trouble);
                    writer = None;
                    backoff.pause().await;
                }
            }
            trimmer.trim(&self).await;
        }
    }

    /// The first has to come back before the instance is ready.
    fn pause(&self) -> Duration {
        if self.place.heartbeat_ms() > 0 { self.interval } else { FIRST_BEATS_INTERVAL }
    }

    async fn beat(&self, writer: &mut Option<Box<dyn PartitionWriter>>) -> Result<(), String> {
        let topic = self.instance.reply_topic();
        let connected = match writer {
            Some(connected) => connected,
            None => {
                let fresh = self.cluster.writer(topic, self.place.partition()).await;
                writer.insert(fresh.map_err(|error| error.to_string())?)
            }
        };
        let beat = match self.lease {
            Some((by, term)) => {
                let written_ms = self.instance.now_ms();
                lessee::record(&self.instance, &Entry::Beat { by, term, written_ms })
            }
            None => Record {
                key: None,
                value: Some(Bytes::from(self.instance.heartbeat())),
                headers: vec![(
                    HeaderName::Borrowed(HEARTBEAT),
                    Bytes::copy_from_slice(self.instance.name().as_bytes()),
                )],
            },
        };
        match connected.produce(&[beat], Compression::None).await {
            Ok(_) => Ok(()),
            Err(error) => Err(error.to_string()),
        }
    }
}

fn trim_interval() -> Duration {
    Duration::from_millis(limits::TRIM_INTERVAL_MS)
}

/// Drops replies that nobody needs any more, so that the topic stays small. On a
/// connection of its own: it must not hold up a fetch.
struct Trimmer {
    next: Instant,
    trimmed_to: i64,
    /// How far had been read, and when; oldest first, one an interval for as
    /// long as is kept.
    read: VecDeque<(Instant, i64)>,
    reader: Option<Box<dyn PartitionReader>>,
}

impl Trimmer {
    fn new() -> Self {
        Self { next: Instant::now() + trim_interval(), trimmed_to: 0, read: VecDeque::new(), reader: None }
    }

    async fn trim(&mut self, heart: &Heart) {
        if matches!(heart.trim, Trim::Never) || Instant::now() < self.next {
            return;
        }
        self.next = Instant::now() + trim_interval();
        let reader = match &mut self.reader {
            Some(reader) => reader,
            None => match heart.cluster.reader(heart.instance.reply_topic(), heart.place.partition()).await {
                Ok(fresh) => self.reader.insert(fresh),
                Err(error) => return tracing::debug!(%error, "reply topic not trimmed"),
            },
        };
        // Only now: while this connected, the topic may have been made anew, and
        // the old offset would be that of a reply which nobody has read.
        let up_to = match heart.trim {
            Trim::After(kept) => outdated(&mut self.read, &heart.place, kept),
            Trim::Read | Trim::Never => heart.place.dispensable(),
        };
        let Some(up_to) = up_to.filter(|up_to| *up_to != self.trimmed_to) else { return };
        match reader.trim(up_to).await {
            Ok(()) => self.trimmed_to = up_to,
            Err(error) => {
                tracing::debug!(%error, "reply topic not trimmed");
                self.reader = None;
            }
        }
    }
}

/// Up to where everything was read at least `kept` ago, by this process's
/// clock. A call that waited for a reply before that has ended since, whosever
/// it was: the reply had been written when it was read.
fn outdated(read: &mut VecDeque<(Instant, i64)>, place: &Place, kept: Duration) -> Option<i64> {
    let now = Instant::now();
    if !place.is_positioned() {
        read.clear();
        return None;
    }
    read.push_back((now, place.next_offset()));
    let mut up_to = None;
    while let Some((at, offset)) = read.front().copied()
        && now.duration_since(at) >= kept
    {
        up_to = Some(offset);
        read.pop_front();
    }
    up_to
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn what_a_call_may_wait_for_stays() {
        let (place, kept) = (Place::new(0), Duration::from_secs(60));
        let mut read = VecDeque::new();
        place.set_positioned(true);
        for offset in 0..12 {
            place.set_next_offset(offset * 10);
            let up_to = outdated(&mut read, &place, kept);
            // What was read six rounds of ten seconds ago.
            let expected = (offset >= 6).then(|| (offset - 6) * 10);
            assert_eq!(up_to, expected, "{offset}");
            tokio::time::advance(trim_interval()).await;
        }
        // Offsets of a topic that was made anew mean something else.
        place.set_positioned(false);
        assert_eq!(outdated(&mut read, &place, kept), None);
        place.set_positioned(true);
        tokio::time::advance(kept).await;
        assert_eq!(outdated(&mut read, &place, kept), None);
    }
}
