//! The topics there are, by name: creating, deleting, finding a partition. It
//! knows logs and nothing of requests.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard};

use super::log::Log;
use super::{Config, PARTITIONS_PER_TOPIC_MAX, PARTITIONS_TOTAL_MAX, TOPIC_NAME_BYTES_MAX, code, lock};

/// Why a topic was not created or deleted; [`TopicError::code`] is Kafka's
/// number for it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum TopicError {
    /// The name is taken.
    #[error("the topic exists already")]
    Exists,
    /// There is none of that name.
    #[error("there is no such topic")]
    Unknown,
    /// The name is not one that Kafka accepts.
    #[error("a topic's name has 1 to {TOPIC_NAME_BYTES_MAX} of a-z, A-Z, 0-9, '.', '_' and '-'")]
    Name,
    /// So many partitions cannot be.
    #[error("a topic has 1 to {PARTITIONS_PER_TOPIC_MAX} partitions, or -1 for the default")]
    Partitions,
    /// There is one broker, so there is one replica.
    #[error("there is one broker: the replication factor is 1, or -1 for the default")]
    Replication,
    /// The request contradicts itself.
    #[error("partitions are either counted or assigned, to broker 1, numbered from 0, each topic once")]
    Request,
    /// The broker is full.
    #[error("the broker has {PARTITIONS_TOTAL_MAX} partitions at most")]
    Full,
}

impl TopicError {
    /// Kafka's error code.
    pub const fn code(self) -> i16 {
        match self {
            Self::Exists => code::TOPIC_ALREADY_EXISTS,
            Self::Unknown => code::UNKNOWN_TOPIC_OR_PARTITION,
            Self::Name => code::INVALID_TOPIC_EXCEPTION,
            Self::Partitions => code::INVALID_PARTITIONS,
            Self::Replication => code::INVALID_REPLICATION_FACTOR,
            Self::Request => code::INVALID_REQUEST,
            Self::Full => code::POLICY_VIOLATION,
        }
    }
}

/// One topic: a log per partition.
#[derive(Debug)]
pub(super) struct Topic {
    partitions: Vec<Mutex<Log>>,
}

impl Topic {
    pub(super) fn partition_count(&self) -> i32 {
        i32::try_from(self.partitions.len()).unwrap_or(i32::MAX)
    }

    /// The log of one partition, locked.
    pub(super) fn log(&self, partition: i32) -> Option<MutexGuard<'_, Log>> {
        usize::try_from(partition).ok().and_then(|index| self.partitions.get(index)).map(lock)
    }
}

/// Every topic of the broker.
#[derive(Debug)]
pub(super) struct Topics {
    config: Config,
    by_name: Mutex<BTreeMap<String, Arc<Topic>>>,
}

impl Topics {
    pub(super) fn new(config: Config) -> Self {
        Self { config, by_name: Mutex::new(BTreeMap::new()) }
    }

    pub(super) fn get(&self, name: &str) -> Option<Arc<Topic>> {
        lock(&self.by_name).get(name).cloned()
    }

    pub(super) fn all(&self) -> Vec<(String, Arc<Topic>)> {
        lock(&self.by_name).iter().map(|(name, topic)| (name.clone(), Arc::clone(topic))).collect()
    }

    /// Creates a topic of so many partitions (-1: the default) and tells how
    /// many there are; with `only_check` it stops short of creating it.
    pub(super) fn create(&self, name: &str, partitions: i32, only_check: bool) -> Result<i32, TopicError> {
        if !name_is_valid(name) {
            return Err(TopicError::Name);
        }
        let count = if partitions == -1 { self.config.default_partitions } else { partitions };
        let wanted = usize::try_from(count).map_err(|_| TopicError::Partitions)?;
        if !(1..=PARTITIONS_PER_TOPIC_MAX).contains(&wanted) {
            return Err(TopicError::Partitions);
        }
        let mut topics = lock(&self.by_name);
        if topics.contains_key(name) {
            return Err(TopicError::Exists);
        }
        let present: usize = topics.values().map(|topic| topic.partitions.len()).sum();
        if present + wanted > PARTITIONS_TOTAL_MAX {
            return Err(TopicError::Full);
        }
        if !only_check {
            let log = || Log::new(self.config.retention_bytes_per_partition, self.config.batch_bytes_max);
            let partitions = std::iter::repeat_with(|| Mutex::new(log())).take(wanted).collect();
            topics.insert(name.to_owned(), Arc::new(Topic { partitions }));
        }
        Ok(count)
    }

    /// Deletes a topic and wakes whoever waits for its records.
    pub(super) fn delete(&self, name: &str) -> Result<(), TopicError> {
        let topic = lock(&self.by_name).remove(name).ok_or(TopicError::Unknown)?;
        for log in &topic.partitions {
            lock(log).wake();
        }
        Ok(())
    }
}

fn name_is_valid(name: &str) -> bool {
    let legal = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'_' | b'-');
    (1..=TOPIC_NAME_BYTES_MAX).contains(&name.len()) && name != "." && name != ".." && name.bytes().all(legal)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn topics_are_checked_bounded_and_deleted() {
        let topics = Topics::new(Config { default_partitions: 3, ..Config::default() });
        assert_eq!(topics.create("a", -1, false), Ok(3));
        assert_eq!(topics.create("a", 1, false), Err(TopicError::Exists));
        assert_eq!(topics.create("b", 5, true), Ok(5));
        assert!(topics.get("b").is_none());
        for name in ["", ".", "..", "a/b", "ä", &"x".repeat(250)] {
            assert_eq!(topics.create(name, 1, false), Err(TopicError::Name), "{name}");
        }
        for partitions in [0, -2, 1 + PARTITIONS_PER_TOPIC_MAX as i32] {
            assert_eq!(topics.create("b", partitions, false), Err(TopicError::Partitions));
        }
        assert_eq!(topics.delete("a"), Ok(()));
        assert_eq!(topics.delete("a"), Err(TopicError::Unknown));
        let most = PARTITIONS_PER_TOPIC_MAX as i32;
        let full = (0..).find(|n| topics.create(&format!("t{n}"), most, false) == Err(TopicError::Full));
        assert_eq!(full, Some(PARTITIONS_TOTAL_MAX / PARTITIONS_PER_TOPIC_MAX));
    }
}
