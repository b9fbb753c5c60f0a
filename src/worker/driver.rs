//! Where requests come from and where replies go, as the engine sees it.

use std::fmt;
use std::sync::Arc;
use std::sync::mpsc;
use std::time::Duration;

use async_trait::async_trait;
use tokio::time::Instant;

use crate::transport::{Received, Record};

/// A partition of a topic.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct PartitionId {
    /// The topic.
    pub topic: Arc<str>,
    /// Its partition.
    pub partition: i32,
}

impl fmt::Display for PartitionId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}[{}]", self.topic, self.partition)
    }
}

/// A record that was read.
#[derive(Debug)]
pub struct Inbound {
    /// Where.
    pub partition: PartitionId,
    /// What.
    pub record: Received,
}

/// What a driver has to tell.
#[derive(Debug)]
pub enum Event {
    /// These partitions are this worker's now.
    Assigned(Vec<PartitionId>),
    /// These will go to another worker. Records of theirs come no more.
    Revoked(Revocation),
    /// Records, in order for each partition.
    Records(Vec<Inbound>),
}

/// Partitions that are about to go. The group waits until this is answered or
/// dropped, or its deadline has passed.
#[derive(Debug)]
pub struct Revocation {
    /// Which.
    pub partitions: Vec<PartitionId>,
    /// By when to be done.
    pub deadline: Instant,
    answer: mpsc::SyncSender<Vec<(PartitionId, i64)>>,
}

impl Revocation {
    /// A revocation that must be answered within `limit`, and where the answer
    /// comes: the offsets to commit.
    pub fn new(
        partitions: Vec<PartitionId>,
        limit: Duration,
    ) -> (Self, mpsc::Receiver<Vec<(PartitionId, i64)>>) {
        let (answer, answered) = mpsc::sync_channel(1);
        (Self { partitions, deadline: Instant::now() + limit, answer }, answered)
    }

    /// The work on them has ended; `points` are to be committed.
    pub fn answer(self, points: Vec<(PartitionId, i64)>) {
        // Nobody may be waiting any more.
        let _ = self.answer.try_send(points);
    }
}

/// Why a driver can't go on.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum DriverError {
    /// The settings are wrong.
    #[error("the worker's settings: {0}")]
    Settings(String),
    /// The client library has given up.
    #[error("Kafka: {0}")]
    Fatal(String),
    /// The offsets that were finished could not be committed at the end.
    #[error("the last offsets could not be committed: {0}")]
    Commit(String),
}

/// Reads requests. The engine asks for one thing at a time.
#[async_trait]
pub trait Driver: Send + 'static {
    /// Waits for what comes next. Of records at most `records_max`, and none if
    /// that is zero; assignments and revocations come before records. Nothing
    /// is lost when the wait is given up.
    async fn next(&mut self, records_max: usize) -> Result<Event, DriverError>;

    /// Commits these offsets soon, without waiting for it.
    fn commit(&mut self, points: Vec<(PartitionId, i64)>);

    /// Where replies go.
    fn outbox(&self) -> Arc<dyn Outbox>;

    /// Commits, leaves the group and ends, within `limit`.
    async fn close(
        self: Box<Self>,
        points: Vec<(PartitionId, i64)>,
        limit: Duration,
    ) -> Result<(), DriverError>;
}

/// Where a record goes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Destination {
    /// The topic.
    pub topic: Arc<str>,
    /// The partition; without one the key decides.
    pub partition: Option<i32>,
}

/// Why a record could not be written.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum OutboxError {
    /// Larger than the broker or the client takes; it is not in the log.
    #[error("too large: {0}")]
    TooLarge(String),
    /// Anything else. It may be in the log.
    #[error("{0}")]
    Failed(String),
}

/// Writes replies and dead letters, in batches.
#[async_trait]
pub trait Outbox: Send + Sync + 'static {
    /// Ends when all in-sync replicas have the record, or after a bounded time.
    /// Records for one partition are written in the order in which these calls
    /// were first polled.
    async fn send(&self, to: Destination, record: Record) -> Result<(), OutboxError>;
}
