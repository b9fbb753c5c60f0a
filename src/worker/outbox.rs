//! Replies over the transport: a task for each partition that is written to,
//! and in one batch what has come while the last was on its way.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use tokio::sync::{mpsc, oneshot};
use tokio::time::Instant;

use super::driver::{Destination, Outbox, OutboxError};
use crate::backoff::Backoff;
use crate::limits;
use crate::message::partition_of_key;
use crate::supervisor::Supervisor;
use crate::terms::Compression;
use crate::transport::{Cluster, PartitionWriter, ProduceError, Record};

/// How long a record is tried.
const SEND_LIMIT: Duration = Duration::from_secs(30);
/// Records that wait for one partition's writer.
const QUEUE_MAX: usize = 1_000;
/// Partitions whose writer is kept; beyond it all are closed.
const WRITERS_MAX: usize = 256;

/// A topic and its partition.
type Place = (Arc<str>, i32);
type Sent = Result<(), OutboxError>;

struct Parcel {
    record: Record,
    until: Instant,
    sent: oneshot::Sender<Sent>,
}

/// Writes over a [`Cluster`].
pub(super) struct TransportOutbox {
    cluster: Arc<dyn Cluster>,
    supervisor: Supervisor,
    writers: Mutex<HashMap<Place, mpsc::Sender<Parcel>>>,
    /// Partitions of topics that were written to without naming one.
    counts: Mutex<HashMap<Arc<str>, i32>>,
}

impl TransportOutbox {
    pub(super) fn new(cluster: Arc<dyn Cluster>, supervisor: Supervisor) -> Self {
        Self { cluster, supervisor, writers: Mutex::default(), counts: Mutex::default() }
    }

    fn writer(&self, topic: Arc<str>, partition: i32) -> mpsc::Sender<Parcel> {
        let mut writers = self.writers.lock().unwrap_or_else(PoisonError::into_inner);
        if writers.len() >= WRITERS_MAX && !writers.contains_key(&(Arc::clone(&topic), partition)) {
            writers.clear();
        }
        let open = || {
            let (sender, parcels) = mpsc::channel(QUEUE_MAX);
            let writing = Writing {
                cluster: Arc::clone(&self.cluster),
                topic: Arc::clone(&topic),
                partition,
                writer: None,
            };
            // It ends with its sender, once all is written.
            self.supervisor.spawn("worker replies", writing.run(parcels)).detach();
            sender
        };
        writers.entry((Arc::clone(&topic), partition)).or_insert_with(open).clone()
    }

    async fn count(&self, topic: &Arc<str>) -> Result<i32, OutboxError> {
        let known = self.counts.lock().unwrap_or_else(PoisonError::into_inner).get(topic).copied();
        if let Some(count) = known {
            return Ok(count);
        }
        let topics = self.cluster.topics().await.map_err(|error| OutboxError::Failed(error.to_string()))?;
        let found = topics.into_iter().find(|found| *found.name == **topic);
        let count =
            found.ok_or_else(|| OutboxError::Failed(format!("topic {topic} does not exist")))?.partitions;
        let mut counts = self.counts.lock().unwrap_or_else(PoisonError::into_inner);
        if counts.len() >= WRITERS_MAX {
            counts.clear();
        }
        counts.insert(Arc::clone(topic), count);
        Ok(count)
    }
}

#[async_trait]
impl Outbox for TransportOutbox {
    async fn send(&self, to: Destination, record: Record) -> Result<(), OutboxError> {
        let partition = match (to.partition, &record.key) {
            (Some(partition), _) => partition,
            (None, None) => 0,
            (None, Some(key)) => partition_of_key(key, self.count(&to.topic).await?),
        };
        let (sent, acknowledged) = oneshot::channel();
        let until = Instant::now() + SEND_LIMIT;
        let closed = |_| OutboxError::Failed("the writer has ended".to_owned());
        let parcel = Parcel { record, until, sent };
        tokio::time::timeout_at(until, self.writer(to.topic, partition).send(parcel))
            .await
            .map_err(|_| OutboxError::Failed("the queue of its writer stayed full".to_owned()))?
            .map_err(|_| OutboxError::Failed("the writer has ended".to_owned()))?;
        acknowledged.await.map_err(closed)?
    }
}

struct Writing {
    cluster: Arc<dyn Cluster>,
    topic: Arc<str>,
    partition: i32,
    writer: Option<Box<dyn PartitionWriter>>,
}

impl Writing {
    async fn run(mut self, mut parcels: mpsc::Receiver<Parcel>) {
        let mut parcel = None;
        loop {
            let first = match parcel.take() {
                Some(parcel) => parcel,
                None => match parcels.recv().await {
                    Some(parcel) => parcel,
                    None => return,
                },
            };
            let mut bytes = first.record.size();
            let until = first.until;
            let (mut records, mut waiting) = (vec![first.record], vec![first.sent]);
            while records.len() < limits::BATCH_RECORDS_MAX {
                let Ok(next) = parcels.try_recv() else { break };
                bytes += next.record.size();
                if bytes > limits::BATCH_BYTES_MAX {
                    parcel = Some(next);
                    break;
                }
                records.push(next.record);
                waiting.push(next.sent);
            }
            let mut sent = self.write(&records, until).await;
            // The others are not to blame for one that is too large.
            let apart = records.len() > 1 && matches!(sent, Err(OutboxError::TooLarge(_)));
            for (record, waiting) in records.iter().zip(waiting) {
                if apart {
                    sent = self.write(std::slice::from_ref(record), until).await;
                }
                // Whoever waited may have been cut off.
                let _ = waiting.send(sent.clone());
            }
        }
    }

    /// Twice does no harm: the second reply to a call is counted and dropped.
    async fn write(&mut self, records: &[Record], until: Instant) -> Sent {
        let mut backoff = Backoff::default();
        loop {
            let error = match self.try_write(records).await {
                Ok(()) | Err(Failure::Produce(ProduceError::Throttled { .. })) => return Ok(()),
                Err(Failure::Produce(error)) => error,
                Err(Failure::Connect(text)) => ProduceError::NotSent(text),
            };
            self.writer = None;
            match error {
                ProduceError::TooLarge => return Err(OutboxError::TooLarge(error.to_string())),
                ProduceError::Refused(_) => return Err(OutboxError::Failed(error.to_string())),
                _ => {}
            }
            let pause = backoff.next_pause();
            if Instant::now() + pause >= until {
                return Err(OutboxError::Failed(error.to_string()));
            }
            tracing::warn!(topic = %self.topic, partition = self.partition, %error, "not written yet");
            tokio::time::sleep(pause).await;
        }
    }

    async fn try_write(&mut self, records: &[Record]) -> Result<(), Failure> {
        let writer = match &mut self.writer {
            Some(writer) => writer,
            none => {
                let opened = self.cluster.writer(&self.topic, self.partition).await;
                none.insert(opened.map_err(|error| Failure::Connect(error.to_string()))?)
            }
        };
        writer.produce(records, Compression::None).await.map(drop).map_err(Failure::Produce)
    }
}

enum Failure {
    Connect(String),
    Produce(ProduceError),
}
