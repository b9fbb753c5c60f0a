//! Kafka as the flow of calls sees it: a record, and what can be done with
//! topics and partitions, in words that tell what is known of the outcome.
//!
//! Two things implement [`Cluster`]: the `kafka` room, and the simulation in
//! the tests.

use std::borrow::Cow;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;

use crate::terms::Compression;

/// Name of a record header.
pub type HeaderName = Cow<'static, str>;

/// A record on its way to Kafka. Cloning it copies no payload.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Record {
    /// The key, if any.
    pub key: Option<Bytes>,
    /// The value; `None` is a tombstone.
    pub value: Option<Bytes>,
    /// Header names and values. Of two with one name the edge keeps the last,
    /// since rskafka's headers are a map.
    pub headers: Vec<(HeaderName, Bytes)>,
}

impl Record {
    /// Bytes of key, value and headers, with Kafka's overhead per record and
    /// header rounded up.
    pub fn size(&self) -> usize {
        let bytes = |part: &Option<Bytes>| part.as_ref().map_or(0, Bytes::len);
        PER_RECORD + bytes(&self.key) + bytes(&self.value) + size_of_headers(&self.headers)
    }
}

/// Kafka's overhead for a record, rounded up.
const PER_RECORD: usize = 24;
/// The same for a header.
const PER_HEADER: usize = 6;

fn size_of_headers(headers: &[(HeaderName, Bytes)]) -> usize {
    headers.iter().map(|(name, value)| name.len() + value.len() + PER_HEADER).sum()
}

/// A record that was read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Received {
    /// Its offset in the partition.
    pub offset: i64,
    /// The partition that it was read from.
    pub partition: i32,
    /// Its time stamp, in milliseconds since 1970.
    pub timestamp_ms: i64,
    /// The key, if any.
    pub key: Option<Bytes>,
    /// The value; `None` is a tombstone.
    pub value: Option<Bytes>,
    /// Headers by name; each name once.
    pub headers: Vec<(HeaderName, Bytes)>,
}

impl Received {
    /// Bytes of key, value and headers, as [`Record::size`] counts them.
    pub fn size(&self) -> usize {
        let bytes = |part: &Option<Bytes>| part.as_ref().map_or(0, Bytes::len);
        PER_RECORD + bytes(&self.key) + bytes(&self.value) + size_of_headers(&self.headers)
    }

    /// The value of the header `name`.
    pub fn header(&self, name: &str) -> Option<&Bytes> {
        self.headers.iter().find(|(n, _)| n == name).map(|(_, value)| value)
    }
}

/// What one fetch brought.
#[derive(Debug, Clone, Default)]
pub struct Fetched {
    /// Records, in order of offset.
    pub records: Vec<Received>,
    /// Where to fetch next.
    pub next_offset: i64,
    /// The partition's end as the broker sees it.
    pub high_watermark: i64,
}

/// Where Kafka has put a record.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Appended {
    /// Offset of the first record of the batch; `None` when the broker has
    /// appended it but its answer could not be had.
    pub base_offset: Option<i64>,
}

/// A topic, as far as routing is concerned.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Topic {
    /// Its name.
    pub name: String,
    /// How many partitions it has.
    pub partitions: i32,
}

/// Why a question to the cluster had no answer.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ClusterError {
    /// Nobody answered, or not in time. May pass.
    #[error("Kafka cannot be reached: {0}")]
    Unreachable(String),
    /// The broker said no, and will say so again.
    #[error("Kafka refused: {0}")]
    Refused(String),
    /// The topic or partition does not exist.
    #[error("topic {0} does not exist, or has no such partition")]
    NoSuchTopic(String),
    /// The topic exists already.
    #[error("topic {0} exists already")]
    TopicExists(String),
}

/// What is known of a batch that was not acknowledged.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ProduceError {
    /// Certainly not in the log, and another attempt may succeed.
    #[error("not sent: {0}")]
    NotSent(String),
    /// Certainly not in the log: the broker says there is no such topic.
    #[error("not sent: no such topic or partition")]
    NoSuchTopic,
    /// Certainly not in the log: larger than the broker takes.
    #[error("not sent: larger than the broker takes")]
    TooLarge,
    /// Certainly not in the log, and no attempt will succeed.
    #[error("refused by the broker: {0}")]
    Refused(String),
    /// The broker has answered that it throttles us, and the rest of its answer
    /// is lost: the batch is in the log unless something else was wrong too.
    #[error("outcome unknown: the broker throttles this client for {wait:?}")]
    Throttled {
        /// How long the broker wants to hear nothing.
        wait: Duration,
    },
    /// It may be in the log: the connection broke, or the answer did not come.
    #[error("outcome unknown: {0}")]
    Unknown(String),
}

/// Why a fetch brought nothing.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum FetchError {
    /// Nobody answered, or not in time. May pass.
    #[error("cannot read: {0}")]
    Unreachable(String),
    /// The offset is outside of what the partition has.
    #[error("offset out of range")]
    OffsetOutOfRange,
    /// The topic or partition does not exist.
    #[error("no such topic or partition")]
    NoSuchTopic,
    /// What is at this offset can't be decoded, now or later.
    #[error("undecodable record: {0}")]
    Undecodable(String),
    /// The broker said no, and will say so again.
    #[error("refused: {0}")]
    Refused(String),
}

/// A Kafka cluster. Every method has a deadline of its own.
#[async_trait]
pub trait Cluster: Send + Sync + 'static {
    /// All topics that may be seen, fresh from the cluster.
    async fn topics(&self) -> Result<Vec<Topic>, ClusterError>;

    /// Creates a topic. `replication_factor` -1 is the cluster's default.
    async fn create_topic(
        &self,
        name: &str,
        partitions: i32,
        replication_factor: i16,
    ) -> Result<(), ClusterError>;

    /// Deletes a topic.
    async fn delete_topic(&self, name: &str) -> Result<(), ClusterError>;

    /// Connects to a partition's leader, for writing.
    async fn writer(&self, topic: &str, partition: i32) -> Result<Box<dyn PartitionWriter>, ClusterError>;

    /// Connects to a partition's leader, for reading.
    async fn reader(&self, topic: &str, partition: i32) -> Result<Box<dyn PartitionReader>, ClusterError>;
}

/// Writes to one partition. After an error it is thrown away.
#[async_trait]
pub trait PartitionWriter: Send {
    /// Appends all records as one batch, acknowledged by all in-sync replicas,
    /// or says what is known. Never sends a batch twice.
    async fn produce(
        &mut self,
        records: &[Record],
        compression: Compression,
    ) -> Result<Appended, ProduceError>;
}

/// Reads from one partition. After an error other than `OffsetOutOfRange` and
/// `Undecodable` it is thrown away.
#[async_trait]
pub trait PartitionReader: Send {
    /// Offset of the first record there is.
    async fn start_offset(&mut self) -> Result<i64, FetchError>;

    /// Offset that the next record will have.
    async fn end_offset(&mut self) -> Result<i64, FetchError>;

    /// Offset of the first record whose time stamp is not before `time_ms`,
    /// milliseconds since 1970; where there is none, the end.
    async fn offset_at(&mut self, time_ms: i64) -> Result<i64, FetchError>;

    /// Records from `offset` on; waits up to `wait` for the first.
    async fn fetch(&mut self, offset: i64, wait: Duration) -> Result<Fetched, FetchError>;

    /// Lets the broker drop all records before `offset`.
    async fn trim(&mut self, offset: i64) -> Result<(), FetchError>;
}

/// How far one consumer group has come on a partition.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GroupProgress {
    /// The group's id.
    pub group: String,
    /// Offset of the first record that it has not committed; `None` when it has
    /// committed nothing here.
    pub committed: Option<i64>,
    /// How many members it has; `None` where the broker does not tell.
    pub members: Option<usize>,
    /// Client id of the member that has the partition, where one has it and the
    /// broker tells.
    pub holder: Option<String>,
}

/// What brokers tell of consumer groups.
#[async_trait]
pub trait Groups: Send + Sync {
    /// The groups that have committed an offset of the partition, or have a
    /// member to which it is assigned.
    async fn groups_on(&self, topic: &str, partition: i32) -> Result<Vec<GroupProgress>, ClusterError>;
}
