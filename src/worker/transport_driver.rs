//! The kit over the transport's traits: every partition of its topics, no
//! group, nothing committed. For the demo, tests, and a worker that is alone.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use tokio::sync::mpsc;

use super::driver::{Driver, DriverError, Event, Inbound, Outbox, PartitionId};
use super::outbox::TransportOutbox;
use crate::backoff::Backoff;
use crate::supervisor::{Supervisor, Task};
use crate::transport::{Cluster, ClusterError, FetchError, PartitionReader};

/// How long a fetch waits for a request.
const FETCH_WAIT: Duration = Duration::from_millis(500);
/// Records that were read and wait for the engine, beside one fetch of each
/// partition.
const QUEUE_MAX: usize = 1_000;

/// Where to begin, since there are no committed offsets.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum From {
    /// With requests that come from now on.
    #[default]
    End,
    /// With the first that there is.
    Start,
}

/// Reads every partition of its topics.
pub struct TransportDriver {
    records: mpsc::Receiver<Inbound>,
    assigned: Option<Vec<PartitionId>>,
    outbox: Arc<TransportOutbox>,
    _readers: Vec<Task>,
}

impl TransportDriver {
    /// Positions a reader at every partition of `topics`, which must exist.
    /// Requests sent from now on are seen.
    pub async fn start(
        cluster: Arc<dyn Cluster>,
        topics: &[&str],
        from: From,
        supervisor: &Supervisor,
    ) -> Result<Self, ClusterError> {
        let known: HashMap<_, _> =
            cluster.topics().await?.into_iter().map(|topic| (topic.name, topic.partitions)).collect();
        let (sender, records) = mpsc::channel(QUEUE_MAX);
        let (mut readers, mut assigned) = (Vec::new(), Vec::new());
        for topic in topics {
            let count = *known.get(*topic).ok_or_else(|| ClusterError::NoSuchTopic((*topic).to_owned()))?;
            let topic: Arc<str> = Arc::from(*topic);
            for partition in 0..count {
                let mut reader = cluster.reader(&topic, partition).await?;
                let found = match from {
                    From::End => reader.end_offset().await,
                    From::Start => reader.start_offset().await,
                };
                let next_offset = found.map_err(|error| ClusterError::Unreachable(error.to_string()))?;
                let id = PartitionId { topic: Arc::clone(&topic), partition };
                assigned.push(id.clone());
                let reading =
                    Reading { cluster: Arc::clone(&cluster), id, next_offset, records: sender.clone() };
                readers.push(supervisor.spawn("worker partition", reading.run(reader)));
            }
        }
        let outbox = Arc::new(TransportOutbox::new(cluster, supervisor.clone()));
        Ok(Self { records, assigned: Some(assigned), outbox, _readers: readers })
    }
}

#[async_trait]
impl Driver for TransportDriver {
    async fn next(&mut self, records_max: usize) -> Result<Event, DriverError> {
        if let Some(assigned) = self.assigned.take() {
            return Ok(Event::Assigned(assigned));
        }
        if records_max == 0 {
            return std::future::pending().await;
        }
        let mut records = Vec::new();
        match self.records.recv_many(&mut records, records_max).await {
            0 => Err(DriverError::Fatal("every reader has ended".to_owned())),
            _ => Ok(Event::Records(records)),
        }
    }

    fn commit(&mut self, _: Vec<(PartitionId, i64)>) {}

    fn outbox(&self) -> Arc<dyn Outbox> {
        Arc::clone(&self.outbox) as _
    }

    async fn close(self: Box<Self>, _: Vec<(PartitionId, i64)>, _: Duration) -> Result<(), DriverError> {
        Ok(())
    }
}

struct Reading {
    cluster: Arc<dyn Cluster>,
    id: PartitionId,
    next_offset: i64,
    records: mpsc::Sender<Inbound>,
}

impl Reading {
    async fn run(mut self, reader: Box<dyn PartitionReader>) {
        let mut backoff = Backoff::default();
        let mut reader = Some(reader);
        loop {
            let opened = match reader.take() {
                Some(reader) => Ok(reader),
                None => self.cluster.reader(&self.id.topic, self.id.partition).await,
            };
            let error = match opened {
                Ok(reader) => match self.read(reader, &mut backoff).await {
                    Some(error) => error.to_string(),
                    None => return,
                },
                Err(error) => error.to_string(),
            };
            tracing::warn!(place = %self.id, error, "worker interrupted");
            backoff.pause().await;
        }
    }

    /// Ends with an error, or when nobody wants the records any more.
    async fn read(
        &mut self,
        mut reader: Box<dyn PartitionReader>,
        backoff: &mut Backoff,
    ) -> Option<FetchError> {
        loop {
            match reader.fetch(self.next_offset, FETCH_WAIT).await {
                Ok(fetched) => {
                    backoff.reset();
                    for record in fetched.records {
                        let partition = self.id.clone();
                        self.next_offset = record.offset + 1;
                        self.records.send(Inbound { partition, record }).await.ok()?;
                    }
                    self.next_offset = fetched.next_offset;
                }
                Err(FetchError::OffsetOutOfRange) => match reader.start_offset().await {
                    Ok(start) => self.next_offset = start,
                    Err(error) => return Some(error),
                },
                Err(FetchError::Undecodable(_)) => self.next_offset += 1,
                Err(error) => return Some(error),
            }
        }
    }
}
