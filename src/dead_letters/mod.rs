//! Dead letters as operators see them: found, shown, sent again, thrown away.
//!
//! `exchange` writes them (its `aftermath` has the format); this room reads
//! them back, over any [`Cluster`]. Dead letters of
//! Spring and SmallRye are read too, as far as their headers go.
//!
//! ```text
//! topic ── read: start to the end as it was ──► letters ── filter ──► list, show
//!   ▲                                             │ late replies and notes of replays
//!   │                                             ▼ beside them, by correlation id
//!   └── a note of the replay ◄── replay: judge, prepare, send ──► original topic
//! ```

mod filter;
mod letter;
mod purge;
mod read;
mod replay;
pub mod show;

use std::collections::HashMap;

use crate::transport::{Cluster, ClusterError, FetchError};

pub use filter::{Filter, WhenError, parse_when};
pub use letter::{Beside, LateReply, Letter, Original, Place, PlaceError, Replayed};
pub use purge::{Before, Purge, plan_purge, purge};
pub use read::{Begin, Collected, Entry, Keep, Scan, collect, collect_from, fetch_one};
pub use replay::{OperatorError, Prepared, Refusal, ReplayOptions, Replayer, Sent, operator};

/// What the topics that this room knows end with: ours, and Spring's.
pub const SUFFIXES: [&str; 2] = [".DLQ", "-dlt"];

/// Why dead letters could not be had.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The cluster did not answer.
    #[error(transparent)]
    Cluster(#[from] ClusterError),
    /// Neither the topic nor its dead-letter topic exists.
    #[error("there is no topic {0} on the cluster, and none of that name with .DLQ or -dlt")]
    NoTopic(String),
    /// The topic has no such partition.
    #[error("{topic} has no partition {partition}; it has {partitions}")]
    NoPartition {
        /// The topic.
        topic: String,
        /// What was asked for.
        partition: i32,
        /// How many there are.
        partitions: i32,
    },
    /// A partition can't be read.
    #[error("partition {partition} of {topic}: {source}")]
    Fetch {
        /// The topic.
        topic: String,
        /// The partition.
        partition: i32,
        /// Why.
        source: FetchError,
    },
    /// An offset names a record of one partition.
    #[error("an offset says nothing of {partitions} partitions; name one of them")]
    WhichPartition {
        /// How many there are.
        partitions: i32,
    },
}

/// A topic with dead letters.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DeadLetterTopic {
    /// Its name.
    pub name: String,
    /// Its partitions.
    pub partitions: i32,
}

impl DeadLetterTopic {
    /// The topic of that name, or, where `named` is a request topic, the one
    /// for its dead letters.
    pub fn find(topics: &HashMap<String, i32>, named: &str) -> Result<Self, Error> {
        let beside = SUFFIXES.map(|suffix| format!("{named}{suffix}"));
        let is_one = SUFFIXES.iter().any(|suffix| named.ends_with(suffix));
        let mut names = beside.iter().map(String::as_str).filter(|_| !is_one).chain([named]);
        let found =
            names.find_map(|name| Some(Self { name: name.to_owned(), partitions: *topics.get(name)? }));
        found.ok_or_else(|| Error::NoTopic(named.to_owned()))
    }

    /// Whether its name says that it holds dead letters.
    pub fn is_named_as_one(&self) -> bool {
        SUFFIXES.iter().any(|suffix| self.name.ends_with(suffix))
    }

    /// The partitions to look at: all, or the one that was asked for.
    fn chosen(&self, partition: Option<i32>) -> Result<std::ops::Range<i32>, Error> {
        match partition {
            None => Ok(0..self.partitions),
            Some(partition) if (0..self.partitions).contains(&partition) => Ok(partition..partition + 1),
            Some(partition) => {
                let (topic, partitions) = (self.name.clone(), self.partitions);
                Err(Error::NoPartition { topic, partition, partitions })
            }
        }
    }

    fn error(&self, partition: i32, source: FetchError) -> Error {
        Error::Fetch { topic: self.name.clone(), partition, source }
    }
}

/// How many records a topic has, as far as its offsets tell: those that were
/// compacted or belong to transactions count too.
pub async fn count(cluster: &dyn Cluster, topic: &DeadLetterTopic) -> Result<u64, Error> {
    let mut records = 0;
    for partition in 0..topic.partitions {
        let (start, end) = read::bounds(cluster, topic, partition).await?;
        records += u64::try_from(end - start).unwrap_or_default();
    }
    Ok(records)
}

/// The cluster's topics with their partitions.
pub async fn topics(cluster: &dyn Cluster) -> Result<HashMap<String, i32>, Error> {
    Ok(cluster.topics().await?.into_iter().map(|topic| (topic.name, topic.partitions)).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_topic_leads_to_its_dead_letters() {
        let topics = ["pay", "pay.DLQ", "spring", "spring-dlt", "plain"].map(|name| (name.to_owned(), 3));
        let topics = HashMap::from(topics);
        let found = |named| DeadLetterTopic::find(&topics, named).map(|topic| topic.name).ok();
        for (named, expected) in [
            ("pay", Some("pay.DLQ")),
            ("pay.DLQ", Some("pay.DLQ")),
            ("spring", Some("spring-dlt")),
            ("plain", Some("plain")),
            ("none", None),
        ] {
            assert_eq!(found(named).as_deref(), expected, "{named}");
        }
    }
}
