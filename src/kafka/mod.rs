//! Apache Kafka through rskafka, which is named in this room and nowhere else.
//!
//! rskafka has no deadlines, retries without end and may send a produce twice.
//! The room gives the flow what it needs instead: every call ends within its
//! own time limit, nothing is sent twice, and an error says whether the record
//! is certainly not in the log or may be.
//!
//! ```text
//! writer ── PartitionClient ── TCP ──► leader     one produce in flight
//! reader ── PartitionClient ── TCP ──► leader     long poll; never shares with a writer
//! cluster ─ Client ─────────── TCP ──► any broker metadata, topics
//! ```

pub mod config;
mod connect;
mod explain;
mod groups;
mod nodelay;
mod raw;
mod reader;
mod sasl;
mod throttle;
mod writer;

use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use rskafka::client::Client;
use rskafka::client::error::{Error as ClientError, ProtocolError};
use rskafka::client::partition::{PartitionClient, UnknownTopicHandling};
use tokio::sync::Mutex;
use tokio::time::timeout;

use crate::transport::{
    Cluster, ClusterError, GroupProgress, Groups, PartitionReader, PartitionWriter, Topic,
};
use config::Config;
use explain::Deed;

pub use connect::{ConnectError, Connector};

/// How long the controller may take for creating or deleting a topic.
const CONTROLLER_TIMEOUT_MS: i32 = 10_000;

/// A cluster behind rskafka.
///
/// Its connections live on the runtime that first uses it, which has to be a
/// `current_thread` runtime: only there can a failed send be told from a send
/// whose answer was lost (see `writer`).
#[derive(Debug)]
pub struct KafkaCluster {
    connector: Arc<Connector>,
    timeout: Duration,
    produce_timeout: Duration,
    client: Mutex<Option<Arc<Client>>>,
}

impl KafkaCluster {
    /// A cluster that is connected to on first use.
    pub fn new(config: &Config, connector: Arc<Connector>) -> Self {
        Self {
            connector,
            timeout: config.connect_timeout,
            produce_timeout: config.produce_timeout,
            client: Mutex::new(None),
        }
    }

    async fn client(&self) -> Result<Arc<Client>, ClusterError> {
        let mut client = self.client.lock().await;
        if let Some(client) = &*client {
            return Ok(Arc::clone(client));
        }
        let fresh = Arc::new(self.connector.connect().await?);
        nodelay::set_on_all_sockets();
        *client = Some(Arc::clone(&fresh));
        Ok(fresh)
    }

    /// Forgets the client after it failed: its cached metadata may be what is
    /// wrong with it.
    async fn forget(&self, failed: &Arc<Client>) {
        let mut client = self.client.lock().await;
        if client.as_ref().is_some_and(|current| Arc::ptr_eq(current, failed)) {
            *client = None;
        }
    }

    /// Runs one request against the cluster, within its time limit.
    async fn ask<T, F>(
        &self,
        limit: Duration,
        request: impl FnOnce(Arc<Client>) -> F,
    ) -> Result<T, ClusterError>
    where
        F: Future<Output = Result<T, ClusterError>>,
    {
        let client = match timeout(self.timeout, self.client()).await {
            Ok(client) => client?,
            Err(_) => return Err(self.connector.explain_silence(self.timeout).await),
        };
        let answer = within(limit, request(Arc::clone(&client))).await;
        if matches!(answer, Err(ClusterError::Unreachable(_))) {
            self.forget(&client).await;
        }
        answer
    }

    async fn partition(&self, topic: &str, partition: i32) -> Result<PartitionClient, ClusterError> {
        let client = match timeout(self.timeout, self.client()).await {
            Ok(client) => client?,
            Err(_) => return Err(self.connector.explain_silence(self.timeout).await),
        };
        let connecting = async {
            let connected = client.partition_client(topic, partition, UnknownTopicHandling::Error).await;
            connected.map_err(|error| self.connector.explain(&error, Deed::new("Describe", topic)))
        };
        let connected = within(self.timeout, connecting).await;
        match &connected {
            Ok(_) => nodelay::set_on_all_sockets(),
            // The metadata that led here is stale: the next look must be fresh.
            Err(_) => self.forget(&client).await,
        }
        connected
    }
}

#[async_trait]
impl Cluster for KafkaCluster {
    async fn topics(&self) -> Result<Vec<Topic>, ClusterError> {
        let connector = Arc::clone(&self.connector);
        self.ask(self.timeout, |client| async move {
            let topics = client
                .list_topics()
                .await
                .map_err(|error| connector.explain(&error, Deed::new("Describe", "")))?;
            Ok(topics
                .into_iter()
                .map(|topic| Topic {
                    partitions: i32::try_from(topic.partitions.len()).unwrap_or(i32::MAX),
                    name: topic.name,
                })
                .collect())
        })
        .await
    }

    async fn create_topic(
        &self,
        name: &str,
        partitions: i32,
        replication_factor: i16,
    ) -> Result<(), ClusterError> {
        let (name, connector) = (name.to_owned(), Arc::clone(&self.connector));
        self.ask(controller_limit(self.timeout), |client| async move {
            let deed = Deed::new("Create", &name);
            let controller = client.controller_client().map_err(|error| connector.explain(&error, deed))?;
            controller
                .create_topic(name.clone(), partitions, replication_factor, CONTROLLER_TIMEOUT_MS)
                .await
                .map_err(|error| match protocol_error(&error) {
                    Some(ProtocolError::TopicAlreadyExists) => ClusterError::TopicExists(name.clone()),
                    _ => connector.explain(&error, deed),
                })
        })
        .await
    }

    async fn delete_topic(&self, name: &str) -> Result<(), ClusterError> {
        let (name, connector) = (name.to_owned(), Arc::clone(&self.connector));
        self.ask(controller_limit(self.timeout), |client| async move {
            let deed = Deed::new("Delete", &name);
            let controller = client.controller_client().map_err(|error| connector.explain(&error, deed))?;
            controller
                .delete_topic(name.clone(), CONTROLLER_TIMEOUT_MS)
                .await
                .map_err(|error| connector.explain(&error, deed))
        })
        .await
    }

    async fn writer(&self, topic: &str, partition: i32) -> Result<Box<dyn PartitionWriter>, ClusterError> {
        let client = self.partition(topic, partition).await?;
        Ok(Box::new(writer::Writer::new(client, self.produce_timeout)))
    }

    async fn reader(&self, topic: &str, partition: i32) -> Result<Box<dyn PartitionReader>, ClusterError> {
        let client = self.partition(topic, partition).await?;
        let raw = raw::RawReader::new(Arc::clone(&self.connector), topic, partition);
        Ok(Box::new(reader::Reader::new(client, self.timeout, raw)))
    }
}

#[async_trait]
impl Groups for KafkaCluster {
    async fn groups_on(&self, topic: &str, partition: i32) -> Result<Vec<GroupProgress>, ClusterError> {
        let found = within(groups::LIMIT, async {
            let found = groups::on_partition(&self.connector, topic, partition).await;
            found.map_err(|error| ClusterError::Unreachable(error.to_string()))
        });
        found.await
    }
}

fn controller_limit(connect: Duration) -> Duration {
    connect + Duration::from_millis(CONTROLLER_TIMEOUT_MS.unsigned_abs().into())
}

async fn within<T>(
    limit: Duration,
    request: impl Future<Output = Result<T, ClusterError>>,
) -> Result<T, ClusterError> {
    match timeout(limit, request).await {
        Ok(answer) => answer,
        Err(_) => Err(ClusterError::Unreachable(format!("no answer within {limit:?}"))),
    }
}

/// The broker's own error code, where there is one.
fn protocol_error(error: &ClientError) -> Option<ProtocolError> {
    match explain::root(error) {
        ClientError::ServerError { protocol_error, .. } => Some(*protocol_error),
        _ => None,
    }
}
