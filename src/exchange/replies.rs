//! Reading a shard's partition of the reply topic.
//!
//! The loop ends only with the instance. Whatever lies on the topic (garbage,
//! foreign records, requests that went astray) is counted and passed over; the
//! replies behind it must arrive.

use std::sync::Arc;
use std::time::Duration;

use super::aftermath::Scribe;
use super::instance::Instance;
use crate::backoff::Backoff;
use crate::correlation::CorrelationId;
use crate::message::HEARTBEAT;
use crate::message::dialect::{self, Custom, Kind};
use crate::metrics::{ReplyPartition, RoleLabels};
use crate::pending::{Pending, Verdict};
use crate::transport::{Cluster, FetchError, PartitionReader, Received};

/// Reads one partition of the reply topic.
pub(super) struct ReplyReader {
    pub(super) shard: usize,
    pub(super) partition: i32,
    pub(super) instance: Arc<Instance>,
    pub(super) scribe: Scribe,
    pub(super) cluster: Arc<dyn Cluster>,
    pub(super) fetch_wait: Duration,
    pub(super) recreate: Recreate,
    /// Headers that the configuration names.
    pub(super) custom: Option<Arc<Custom>>,
}

/// How to make the reply topic anew when somebody has deleted it.
#[derive(Debug, Clone, Copy)]
pub(super) struct Recreate {
    pub(super) partitions: i32,
    pub(super) replication_factor: i16,
}

/// Why the reader has to be opened anew, and from where.
enum Interrupted {
    /// The connection is of no use any more.
    Reopen(FetchError),
    /// The topic is gone.
    Gone,
}

/// How a record reaches its call: as a reply or as a part of one.
type Handover = fn(&Pending, CorrelationId, &mut Option<Received>) -> Verdict;

impl ReplyReader {
    /// Never ends.
    pub(super) async fn run(self) {
        let mut backoff = Backoff::default();
        let mut next_offset = None;
        loop {
            let interrupted = self.read(&mut next_offset, &mut backoff).await;
            self.instance.metrics.reader_errors.inc();
            let topic = self.instance.reply_topic();
            match interrupted {
                Interrupted::Reopen(error) => {
                    tracing::warn!(%topic, partition = self.partition, %error, "reply reader interrupted");
                    self.instance.set_trouble(Some(&format!("reply topic {topic}: {error}")));
                }
                // Only now replies are missed; else the offset stands, and the
                // heartbeats tell when it takes too long.
                Interrupted::Gone => {
                    self.instance.set_positioned(self.shard, false);
                    self.recreate_topic().await;
                    next_offset = Some(0);
                }
            }
            backoff.pause().await;
        }
    }

    async fn read(&self, next_offset: &mut Option<i64>, backoff: &mut Backoff) -> Interrupted {
        self.instance.metrics.kafka_connections.get_or_create(&RoleLabels { role: "reply-reader" }).inc();
        let opened = self.cluster.reader(self.instance.reply_topic(), self.partition).await;
        let mut reader = match opened {
            Ok(reader) => reader,
            Err(crate::transport::ClusterError::NoSuchTopic(_)) => return Interrupted::Gone,
            Err(error) => return Interrupted::Reopen(FetchError::Unreachable(error.to_string())),
        };
        let mut offset = match self.position(&mut *reader, *next_offset).await {
            Ok(offset) => offset,
            Err(FetchError::NoSuchTopic) => return Interrupted::Gone,
            Err(error) => return Interrupted::Reopen(error),
        };
        self.instance.set_next_offset(self.shard, offset);
        self.instance.set_positioned(self.shard, true);
        let place = ReplyPartition { messaging_destination_partition_id: self.partition };
        let lag = self.instance.metrics.reply_lag.get_or_create_owned(&place);
        loop {
            *next_offset = Some(offset);
            match reader.fetch(offset, self.fetch_wait).await {
                Ok(fetched) => {
                    offset = fetched.next_offset;
                    for record in fetched.records {
                        self.take(record);
                    }
                    self.instance.set_next_offset(self.shard, offset);
                    lag.set((fetched.high_watermark - offset).max(0));
                    backoff.reset();
                }
                Err(FetchError::OffsetOutOfRange) => match self.find_place(&mut *reader, offset).await {
                    Ok(place) => offset = place,
                    Err(error) => return Interrupted::Reopen(error),
                },
                Err(FetchError::Undecodable(why)) => {
                    self.step_over(offset, &why);
                    offset += 1;
                }
                Err(FetchError::NoSuchTopic) => return Interrupted::Gone,
                Err(error) => return Interrupted::Reopen(error),
            }
        }
    }

    /// At the start the end, since nobody waits for what came before; later
    /// where we were, so that nothing is missed.
    async fn position(
        &self,
        reader: &mut dyn PartitionReader,
        known: Option<i64>,
    ) -> Result<i64, FetchError> {
        match known {
            Some(offset) => Ok(offset),
            None => reader.end_offset().await,
        }
    }

    /// Where to go on when the partition no longer has the next offset: it was
    /// trimmed past it, or the topic was made anew and begins again.
    async fn find_place(&self, reader: &mut dyn PartitionReader, offset: i64) -> Result<i64, FetchError> {
        let start = reader.start_offset().await?;
        tracing::warn!(
            topic = %self.instance.reply_topic(), partition = self.partition, offset, start,
            "the next reply's offset is gone; going on at the start of what there is",
        );
        Ok(start)
    }

    fn step_over(&self, offset: i64, why: &str) {
        self.instance.metrics.count_reply("undecodable");
        tracing::warn!(
            topic = %self.instance.reply_topic(), partition = self.partition, offset, why,
            "a record on the reply topic cannot be decoded; it is passed over",
        );
    }

    async fn recreate_topic(&self) {
        let topic = self.instance.reply_topic();
        tracing::error!(%topic, "the reply topic is gone; it is created again");
        let Recreate { partitions, replication_factor } = self.recreate;
        let created = self.cluster.create_topic(topic, partitions, replication_factor).await;
        match created {
            // Another shard was faster.
            Ok(()) | Err(crate::transport::ClusterError::TopicExists(_)) => {}
            Err(error) => tracing::error!(%topic, %error, "the reply topic could not be created"),
        }
    }

    fn take(&self, record: Received) {
        let kind = match dialect::classify(&record, self.custom.as_deref()) {
            Kind::Reply(id) => self.hand_over(id, record, Pending::resolve),
            Kind::Part(id) => self.hand_over(id, record, Pending::keep_part),
            Kind::Request => "request",
            Kind::Uncorrelated => match record.header(HEARTBEAT) {
                Some(name) if name == self.instance.name().as_bytes() => {
                    let beat = record.value.as_deref().unwrap_or_default();
                    if self.instance.heartbeat_seen(self.shard, beat) { "heartbeat" } else { "foreign" }
                }
                _ => "uncorrelated",
            },
        };
        self.instance.metrics.count_reply(kind);
    }

    /// To the shard that the id names, wherever the reply came in.
    fn hand_over(&self, id: CorrelationId, record: Received, to: Handover) -> &'static str {
        let Some(shard) = self.instance.shards().get(usize::from(id.shard())) else { return "foreign" };
        let mut record = Some(record);
        match to(&shard.pending, id, &mut record) {
            Verdict::Delivered => "delivered",
            Verdict::Kept => "part",
            Verdict::Refused => "refused",
            Verdict::Duplicate => "duplicate",
            Verdict::Foreign => "foreign",
            Verdict::Late => {
                if let Some(record) = record {
                    self.scribe.late_reply(id, self.partition, record);
                }
                "late"
            }
        }
    }
}
