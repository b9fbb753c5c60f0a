//! Reading a partition of the reply topic.
//!
//! The loop ends only with the instance, or with the last call that waits on a
//! partition whose lease was lost. Whatever lies on the topic (garbage, foreign
//! records, requests that went astray) is counted and passed over; the replies
//! behind it must arrive.

use std::sync::Arc;
use std::time::Duration;

use super::aftermath::Scribe;
use super::instance::Instance;
use super::lease::Entry;
use super::lessee::Tenancy;
use super::place::Place;
use super::trouble::{Half, Trouble};
use crate::backoff::Backoff;
use crate::correlation::CorrelationId;
use crate::message::dialect::{self, Custom, Kind};
use crate::message::{HEARTBEAT, LEASE};
use crate::metrics::{ReplyPartition, RoleLabels};
use crate::pending::{Pending, Verdict};
use crate::transport::{Cluster, FetchError, PartitionReader, Received};

/// What all readers of a shard have in common.
#[derive(Clone)]
pub(super) struct Reading {
    pub(super) shard: usize,
    pub(super) instance: Arc<Instance>,
    pub(super) scribe: Scribe,
    pub(super) cluster: Arc<dyn Cluster>,
    pub(super) fetch_wait: Duration,
    pub(super) recreate: Recreate,
    /// Headers that the configuration names.
    pub(super) custom: Option<Arc<Custom>>,
    /// Whose heartbeats may be met.
    pub(super) company: Company,
}

/// Who else writes heartbeats where this reads.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Company {
    /// Nobody but another life of this instance's name.
    Namesakes,
    /// Nobody: each is that of a rival.
    Rivals,
    /// Instances that read the same, whose replies are here, too.
    Peers,
}

/// Reads one partition of the reply topic.
pub(super) struct ReplyReader {
    pub(super) reading: Reading,
    pub(super) place: Arc<Place>,
    /// Where to begin; at the end when that is not said.
    pub(super) from: Option<i64>,
    /// The lease under which it is read.
    pub(super) tenancy: Option<Tenancy>,
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
    /// The lease was lost, and the last call that waited here has ended.
    Done,
}

/// How a record reaches its call: as a reply or as a part of one.
type Handover = fn(&Pending, CorrelationId, &mut Option<Received>) -> Verdict;

impl ReplyReader {
    /// Ends only where a lease was lost.
    pub(super) async fn run(mut self) {
        let mut backoff = Backoff::default();
        let mut next_offset = self.from;
        loop {
            let interrupted = self.read(&mut next_offset, &mut backoff).await;
            if matches!(interrupted, Interrupted::Done) {
                return;
            }
            self.reading.instance.metrics.reader_errors.inc();
            let (topic, partition) = (self.reading.instance.reply_topic(), self.place.partition());
            match interrupted {
                Interrupted::Reopen(error) => {
                    tracing::warn!(%topic, partition, %error, "reply reader interrupted");
                    let trouble = Trouble::new(Half::Reader, format!("reply topic {topic}: {error}"));
                    self.reading.instance.note_trouble(partition, trouble);
                }
                // Only now replies are missed; else the offset stands, and the
                // heartbeats tell when it takes too long.
                Interrupted::Gone => {
                    self.place.set_positioned(false);
                    self.lose_lease("the topic is gone");
                    self.recreate_topic().await;
                    next_offset = Some(0);
                }
                Interrupted::Done => return,
            }
            backoff.pause().await;
        }
    }

    async fn read(&mut self, next_offset: &mut Option<i64>, backoff: &mut Backoff) -> Interrupted {
        let Reading { cluster, instance, fetch_wait, .. } = self.reading.clone();
        instance.metrics.kafka_connections.get_or_create(&RoleLabels { role: "reply-reader" }).inc();
        let opened = cluster.reader(instance.reply_topic(), self.place.partition()).await;
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
        self.place.set_next_offset(offset);
        self.place.set_positioned(true);
        let labels = ReplyPartition { messaging_destination_partition_id: self.place.partition() };
        let lag = instance.metrics.reply_lag.get_or_create_owned(&labels);
        loop {
            *next_offset = Some(offset);
            if self.tenancy.as_mut().is_some_and(Tenancy::is_over) {
                return Interrupted::Done;
            }
            match reader.fetch(offset, fetch_wait).await {
                Ok(fetched) => {
                    offset = fetched.next_offset;
                    for record in fetched.records {
                        self.take(record);
                    }
                    self.place.set_next_offset(offset);
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
    async fn find_place(&mut self, reader: &mut dyn PartitionReader, offset: i64) -> Result<i64, FetchError> {
        let start = reader.start_offset().await?;
        tracing::warn!(
            topic = %self.reading.instance.reply_topic(), partition = self.place.partition(), offset, start,
            "the next reply's offset is gone; going on at the start of what there is",
        );
        // A rival's claim may have been in what is gone.
        self.lose_lease("the log no longer has the next offset");
        Ok(start)
    }

    fn step_over(&self, offset: i64, why: &str) {
        self.reading.instance.metrics.count_reply("undecodable");
        tracing::warn!(
            topic = %self.reading.instance.reply_topic(), partition = self.place.partition(), offset, why,
            "a record on the reply topic cannot be decoded; it is passed over",
        );
    }

    async fn recreate_topic(&self) {
        let topic = self.reading.instance.reply_topic();
        tracing::error!(%topic, "the reply topic is gone; it is created again");
        let Recreate { partitions, replication_factor } = self.reading.recreate;
        let created = self.reading.cluster.create_topic(topic, partitions, replication_factor).await;
        match created {
            // Another shard was faster.
            Ok(()) | Err(crate::transport::ClusterError::TopicExists(_)) => {}
            Err(error) => {
                tracing::error!(%topic, %error, "the reply topic could not be created");
                let text = format!("reply topic {topic} is gone, and could not be created again: {error}");
                self.reading.instance.note_trouble(self.place.partition(), Trouble::topic_gone(text));
            }
        }
    }

    fn take(&mut self, record: Received) {
        let Reading { instance, custom, company, .. } = &self.reading;
        // Most records on a topic that is shared are other instances' replies.
        let skims = *company == Company::Peers;
        if skims && dialect::is_foreign(&record, instance.tag(), custom.as_deref()) {
            return instance.metrics.count_reply("foreign");
        }
        let kind = match dialect::classify(&record, custom.as_deref()) {
            Kind::Reply(id) => self.hand_over(id, record, Pending::resolve),
            Kind::Part(id) => self.hand_over(id, record, Pending::keep_part),
            Kind::Request => "request",
            Kind::Uncorrelated => match (record.header(HEARTBEAT), record.header(LEASE)) {
                (Some(name), _) => self.take_heartbeat(name, &record),
                (None, Some(_)) => self.take_lease_record(&record),
                (None, None) => "uncorrelated",
            },
        };
        self.reading.instance.metrics.count_reply(kind);
    }

    fn take_heartbeat(&self, name: &[u8], record: &Received) -> &'static str {
        let Reading { instance, company, .. } = &self.reading;
        if let Some(written_ms) = instance.own_heartbeat(record.value.as_deref().unwrap_or_default()) {
            self.place.heartbeat(record.offset, written_ms);
            instance.end_trouble(self.place.partition());
            return "heartbeat";
        }
        let namesake = name == instance.name().as_bytes();
        match company {
            Company::Namesakes if !namesake => "uncorrelated",
            Company::Peers => "peer-heartbeat",
            Company::Namesakes | Company::Rivals => {
                if !instance.has_rival() {
                    let (topic, rival) = (instance.reply_topic(), String::from_utf8_lossy(name));
                    tracing::error!(
                        %topic, partition = self.place.partition(), %rival,
                        "another process uses this instance's reply partition, too",
                    );
                }
                instance.rival_seen();
                "foreign"
            }
        }
    }

    fn take_lease_record(&mut self, record: &Received) -> &'static str {
        let Some(entry) = record.value.as_deref().and_then(Entry::parse) else { return "uncorrelated" };
        let Some(tenancy) = &mut self.tenancy else { return "uncorrelated" };
        tenancy.apply(record.offset, &entry);
        match entry {
            Entry::Beat { by, written_ms, .. } if by == tenancy.tenant() => {
                self.place.heartbeat(record.offset, written_ms);
                self.reading.instance.end_trouble(self.place.partition());
                return "heartbeat";
            }
            _ if !tenancy.holds() => self.lose_lease("another instance has claimed the partition"),
            _ => {}
        }
        "lease"
    }

    /// From now on no calls are registered here; those that wait are read for
    /// until they have ended.
    fn lose_lease(&mut self, why: &'static str) {
        let Reading { shard, instance, .. } = &self.reading;
        let state = &instance.shards()[*shard];
        let Some(tenancy) = self.tenancy.as_mut() else { return };
        if tenancy.leave(&state.pending) {
            let (topic, partition) = (instance.reply_topic(), self.place.partition());
            tracing::warn!(%topic, partition, shard, why, "the lease of this shard's reply partition is lost");
            instance.metrics.count_lease("lost");
            state.stand_up();
            state.remove_place(&self.place);
            instance.leases.let_go(partition);
        }
    }

    /// To the shard that the id names, wherever the reply came in.
    fn hand_over(&self, id: CorrelationId, record: Received, to: Handover) -> &'static str {
        let Some(shard) = self.reading.instance.shards().get(usize::from(id.shard())) else {
            return "foreign";
        };
        let mut record = Some(record);
        match to(&shard.pending, id, &mut record) {
            Verdict::Delivered => "delivered",
            Verdict::Kept => "part",
            Verdict::Refused => "refused",
            Verdict::Duplicate => "duplicate",
            Verdict::Foreign => "foreign",
            Verdict::Late => {
                if let Some(record) = record {
                    self.reading.scribe.late_reply(id, self.place.partition(), record);
                }
                "late"
            }
        }
    }
}
