//! Throwing dead letters away, from the start of a partition up to a place.

use tokio::time::Instant;

use super::read::{Scan, bounds, first_since};
use super::{DeadLetterTopic, Error};
use crate::transport::Cluster;

/// Up to where.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Before {
    /// This offset, which stays, of one partition.
    Offset(i64),
    /// The first record that is not older, in milliseconds since 1970.
    TimeMs(i64),
    /// The end, as it is now.
    End,
}

/// What would be thrown away of one partition.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Purge {
    /// The partition.
    pub partition: i32,
    /// Its first offset now.
    pub start: i64,
    /// Its first offset then.
    pub before: i64,
    /// What was met while looking for it.
    pub scan: Scan,
}

impl Purge {
    /// Offsets that go; in a topic without transactions these are records.
    pub fn offsets(&self) -> i64 {
        self.before - self.start
    }
}

/// Finds out what `purge` would throw away.
pub async fn plan_purge(
    cluster: &dyn Cluster,
    topic: &DeadLetterTopic,
    partition: Option<i32>,
    before: Before,
    deadline: Instant,
) -> Result<Vec<Purge>, Error> {
    let partitions = topic.chosen(partition)?;
    if matches!(before, Before::Offset(_)) && partitions.len() > 1 {
        return Err(Error::WhichPartition { partitions: topic.partitions });
    }
    let mut plan = Vec::new();
    for partition in partitions {
        let (start, before, scan) = match before {
            Before::TimeMs(time) => first_since(cluster, topic, partition, time, deadline).await?,
            Before::Offset(offset) => {
                let (start, end) = bounds(cluster, topic, partition).await?;
                (start, offset.clamp(start, end), Scan::default())
            }
            Before::End => {
                let (start, end) = bounds(cluster, topic, partition).await?;
                (start, end, Scan::default())
            }
        };
        plan.push(Purge { partition, start, before, scan });
    }
    Ok(plan)
}

/// Throws away what the plan says of one partition.
pub async fn purge(cluster: &dyn Cluster, topic: &DeadLetterTopic, plan: &Purge) -> Result<(), Error> {
    if plan.offsets() <= 0 {
        return Ok(());
    }
    let mut reader = cluster.reader(&topic.name, plan.partition).await?;
    reader.trim(plan.before).await.map_err(|source| topic.error(plan.partition, source))
}
