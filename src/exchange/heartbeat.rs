//! Heartbeats through the real reply path, and trimming what has been read.
//!
//! Each shard writes a small record to its own partition of the reply topic
//! every few seconds. That it comes back proves what a health check should
//! prove: that a reply would come back too.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use tokio::time::Instant;

use super::instance::Instance;
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

/// Beats for one shard.
pub(super) struct Heart {
    pub(super) shard: usize,
    pub(super) partition: i32,
    pub(super) instance: Arc<Instance>,
    pub(super) cluster: Arc<dyn Cluster>,
    pub(super) interval: Duration,
}

impl Heart {
    /// Never ends. The first beat goes out as soon as it can be read, and again
    /// soon until one has come back.
    pub(super) async fn run(self) {
        let mut backoff = Backoff::default();
        let mut writer = None;
        while !self.instance.is_positioned(self.shard) {
            tokio::time::sleep(POSITION_POLL).await;
        }
        let mut trimmer = Trimmer { next: Instant::now() + trim_interval(), trimmed_to: 0, reader: None };
        loop {
            match self.beat(&mut writer).await {
                Ok(()) => {
                    backoff.reset();
                    tokio::time::sleep(self.pause()).await;
                }
                Err(error) => {
                    tracing::warn!(shard = self.shard, error, "heartbeat not written");
                    self.instance.set_trouble(Some(&format!("heartbeat not written: {error}")));
                    writer = None;
                    backoff.pause().await;
                }
            }
            trimmer.trim(&self).await;
        }
    }

    /// The first has to come back before the instance is ready.
    fn pause(&self) -> Duration {
        if self.instance.has_heartbeat(self.shard) { self.interval } else { FIRST_BEATS_INTERVAL }
    }

    async fn beat(&self, writer: &mut Option<Box<dyn PartitionWriter>>) -> Result<(), String> {
        let topic = self.instance.reply_topic();
        let connected = match writer {
            Some(connected) => connected,
            None => {
                let fresh = self.cluster.writer(topic, self.partition).await;
                writer.insert(fresh.map_err(|error| error.to_string())?)
            }
        };
        let name = Bytes::copy_from_slice(self.instance.name().as_bytes());
        let beat = Record {
            key: None,
            value: Some(Bytes::from(self.instance.heartbeat())),
            headers: vec![(HeaderName::Borrowed(HEARTBEAT), name)],
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

/// Drops replies that have been read, so that the topic stays small. On a
/// connection of its own: it must not hold up a fetch.
struct Trimmer {
    next: Instant,
    trimmed_to: i64,
    reader: Option<Box<dyn PartitionReader>>,
}

impl Trimmer {
    async fn trim(&mut self, heart: &Heart) {
        if Instant::now() < self.next {
            return;
        }
        self.next = Instant::now() + trim_interval();
        let reader = match &mut self.reader {
            Some(reader) => reader,
            None => match heart.cluster.reader(heart.instance.reply_topic(), heart.partition).await {
                Ok(fresh) => self.reader.insert(fresh),
                Err(error) => return tracing::debug!(%error, "reply topic not trimmed"),
            },
        };
        // Only now: while this connected, the topic may have been made anew, and
        // the old offset would be that of a reply which nobody has read.
        let read_to = heart.instance.next_offset(heart.shard);
        if !heart.instance.is_positioned(heart.shard) || read_to == self.trimmed_to {
            return;
        }
        match reader.trim(read_to).await {
            Ok(()) => self.trimmed_to = read_to,
            Err(error) => {
                tracing::debug!(%error, "reply topic not trimmed");
                self.reader = None;
            }
        }
    }
}
