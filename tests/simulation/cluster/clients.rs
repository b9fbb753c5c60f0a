//! The cluster as its clients see it: the `transport` traits.

use std::time::Duration;

use antiphon::terms::Compression;
use antiphon::transport::{
    Appended, Cluster, ClusterError, FetchError, Fetched, PartitionReader, PartitionWriter, ProduceError,
    Record, Topic,
};
use async_trait::async_trait;
use tokio::time::{Instant, sleep, timeout_at};

use super::{Fate, Partition, REPLIES, SLOW_FETCH_MS_MAX, SimCluster, topics};
use crate::faults::Trouble;

#[async_trait]
impl Cluster for SimCluster {
    async fn topics(&self) -> Result<Vec<Topic>, ClusterError> {
        self.latency().await;
        let state = self.state();
        let names = topics().map(|(topic, _)| topic).chain([REPLIES]);
        if names.clone().any(|name| state.has(name, Trouble::ListFails)) {
            return Err(ClusterError::Unreachable("no answer".to_owned()));
        }
        let seen = names.filter(|name| !state.has(name, Trouble::Denied)).filter_map(|name| {
            let partitions = state.topics.get(name)?.partitions.len() as i32;
            Some(Topic { name: name.to_owned(), partitions })
        });
        Ok(seen.collect())
    }

    async fn create_topic(&self, name: &str, partitions: i32, _: i16) -> Result<(), ClusterError> {
        self.latency().await;
        if self.state().has(name, Trouble::ConnectRefused) {
            return Err(ClusterError::Unreachable("connection refused".to_owned()));
        }
        if self.create(name, partitions) { Ok(()) } else { Err(ClusterError::TopicExists(name.to_owned())) }
    }

    async fn delete_topic(&self, name: &str) -> Result<(), ClusterError> {
        self.latency().await;
        if self.delete(name) { Ok(()) } else { Err(ClusterError::NoSuchTopic(name.to_owned())) }
    }

    async fn writer(&self, topic: &str, partition: i32) -> Result<Box<dyn PartitionWriter>, ClusterError> {
        let leader = self.connect(topic, partition).await?;
        let place = Place { topic: topic.to_owned(), partition, leader };
        Ok(Box::new(SimWriter { cluster: self.clone(), place, broken: false }))
    }

    async fn reader(&self, topic: &str, partition: i32) -> Result<Box<dyn PartitionReader>, ClusterError> {
        let leader = self.connect(topic, partition).await?;
        let place = Place { topic: topic.to_owned(), partition, leader };
        Ok(Box::new(SimReader { cluster: self.clone(), place, broken: false }))
    }
}

/// A partition, and the leader that a client has found for it.
#[derive(Debug, Clone)]
pub(super) struct Place {
    pub(super) topic: String,
    pub(super) partition: i32,
    pub(super) leader: u64,
}

struct SimWriter {
    cluster: SimCluster,
    place: Place,
    broken: bool,
}

impl SimWriter {
    async fn attempt(&self, records: &[Record], attempt: usize) -> Result<Appended, ProduceError> {
        let (cluster, Place { topic, partition, leader }) = (&self.cluster, &self.place);
        cluster.latency().await;
        let fate = cluster.state().fate(topic, *partition, *leader, records);
        let append = || cluster.append(topic, *partition, records, attempt);
        match fate {
            Fate::Appended => {
                let base_offset = append();
                cluster.latency().await;
                let mut state = cluster.state();
                let no_offset = state.plan.noise.no_offset;
                let base_offset = base_offset.filter(|_| !state.roll(no_offset));
                Ok(Appended { base_offset })
            }
            Fate::Refused(error) => {
                cluster.latency().await;
                Err(error)
            }
            Fate::Unknown { answer, lands } => {
                if let Some(lands) = lands {
                    self.land_later(records, attempt, lands);
                }
                sleep(answer).await;
                Err(ProduceError::Unknown("no acknowledgement".to_owned()))
            }
            Fate::Throttled { wait, appended } => {
                if appended {
                    append();
                }
                cluster.latency().await;
                Err(ProduceError::Throttled { wait })
            }
        }
    }

    /// A batch on its way can't be called back: it lands whatever is reported,
    /// in whatever has the topic's name by then.
    fn land_later(&self, records: &[Record], attempt: usize, after: Duration) {
        let (cluster, place, records) = (self.cluster.clone(), self.place.clone(), records.to_vec());
        drop(tokio::spawn(async move {
            sleep(after).await;
            cluster.append(&place.topic, place.partition, &records, attempt);
        }));
    }
}

#[async_trait]
impl PartitionWriter for SimWriter {
    async fn produce(&mut self, records: &[Record], _: Compression) -> Result<Appended, ProduceError> {
        let attempt = {
            let mut state = self.cluster.state();
            if self.broken {
                state.history.violated("a writer was used after an error that ends it");
            }
            if records.is_empty() {
                state.history.violated("an empty batch was sent");
            }
            state.begin_attempt(&self.place.topic, records)
        };
        let result = self.attempt(records, attempt).await;
        self.cluster.state().end_attempt(attempt, &result);
        let broken = |e: &ProduceError| {
            matches!(e, ProduceError::NotSent(_) | ProduceError::NoSuchTopic | ProduceError::Unknown(_))
        };
        self.broken = result.as_ref().is_err_and(broken);
        result
    }
}

struct SimReader {
    cluster: SimCluster,
    place: Place,
    broken: bool,
}

impl SimReader {
    fn ends_with<T>(&mut self, result: Result<T, FetchError>) -> Result<T, FetchError> {
        if self.broken {
            self.cluster.state().history.violated("a reader was used after an error that ends it");
        }
        let harmless =
            |e: &FetchError| matches!(e, FetchError::OffsetOutOfRange | FetchError::Undecodable(_));
        self.broken = result.as_ref().is_err_and(|error| !harmless(error));
        result
    }

    fn look<T>(&self, look: impl FnOnce(&mut Partition) -> T) -> Result<T, FetchError> {
        let mut state = self.cluster.state();
        let partition = state.partition(&self.place.topic, self.place.partition);
        partition.map(look).ok_or(FetchError::NoSuchTopic)
    }
}

#[async_trait]
impl PartitionReader for SimReader {
    async fn start_offset(&mut self) -> Result<i64, FetchError> {
        self.cluster.latency().await;
        let result = self.look(|partition| partition.start);
        self.ends_with(result)
    }

    async fn end_offset(&mut self) -> Result<i64, FetchError> {
        self.cluster.latency().await;
        let result = self.look(|partition| {
            // Nobody waits for what came before.
            partition.fetched_to = partition.end();
            partition.end()
        });
        self.ends_with(result)
    }

    /// Time has no part in where the gateway reads, so all of it is offered.
    async fn offset_at(&mut self, _time_ms: i64) -> Result<i64, FetchError> {
        self.start_offset().await
    }

    async fn fetch(&mut self, offset: i64, wait: Duration) -> Result<Fetched, FetchError> {
        let deadline = Instant::now() + wait;
        self.cluster.latency().await;
        let slow = {
            let mut state = self.cluster.state();
            let delay = state.millis(SLOW_FETCH_MS_MAX);
            state.left_of(&self.place.topic, Trouble::FetchSlow).map(|left| left.min(delay))
        };
        sleep(slow.unwrap_or_default()).await;
        loop {
            let found = self.cluster.state().fetch(&self.place, offset);
            match found.transpose() {
                Some(result) => return self.ends_with(result),
                None if timeout_at(deadline, self.cluster.changed()).await.is_ok() => {}
                None => {
                    let nothing =
                        Fetched { records: Vec::new(), next_offset: offset, high_watermark: offset };
                    return self.ends_with(Ok(nothing));
                }
            }
        }
    }

    async fn trim(&mut self, offset: i64) -> Result<(), FetchError> {
        self.cluster.latency().await;
        let result = self.look(|partition| {
            if offset > partition.end() {
                return Err(FetchError::OffsetOutOfRange);
            }
            let read_to = partition.fetched_to.max(partition.start);
            partition.start = partition.start.max(offset);
            partition.fetched_to = partition.fetched_to.max(partition.start);
            Ok(read_to)
        });
        if let Ok(Ok(read_to)) = result
            && read_to < offset
        {
            self.cluster.state().trimmed_unread(&self.place, read_to, offset);
        }
        self.ends_with(result.and_then(|trimmed| trimmed.map(drop)))
    }
}
