//! Which topics exist, and how many partitions they have.
//!
//! Looked up every few seconds and whenever somebody misses a topic, never by
//! topic name: a broker that creates topics on first sight would make one out
//! of a typo.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{Notify, watch};
use tokio::time::{Instant, timeout_at};

use crate::transport::{Cluster, ClusterError};

/// Between two look-ups that somebody asked for.
const ASKED_FOR_INTERVAL_MIN: Duration = Duration::from_millis(200);
/// How long a call waits for a look-up that may bring its topic.
const WAIT_MAX: Duration = Duration::from_secs(2);

/// The cluster's topics as of the last look.
#[derive(Debug)]
pub struct TopicDirectory {
    view: watch::Sender<View>,
    wanted: Notify,
}

#[derive(Debug, Default)]
struct View {
    generation: u64,
    partitions: Arc<HashMap<String, i32>>,
}

impl Default for TopicDirectory {
    fn default() -> Self {
        Self::new()
    }
}

impl TopicDirectory {
    /// Knows of no topic yet.
    pub fn new() -> Self {
        Self { view: watch::Sender::new(View::default()), wanted: Notify::new() }
    }

    /// How many partitions `topic` has, by the last look.
    pub fn partitions(&self, topic: &str) -> Option<i32> {
        self.view.borrow().partitions.get(topic).copied()
    }

    /// All topics, by the last look.
    pub fn snapshot(&self) -> Arc<HashMap<String, i32>> {
        Arc::clone(&self.view.borrow().partitions)
    }

    /// The same, but an unknown topic is looked for once more, at most until
    /// `deadline`.
    pub async fn find(&self, topic: &str, deadline: Instant) -> Option<i32> {
        if let Some(partitions) = self.partitions(topic) {
            return Some(partitions);
        }
        let mut view = self.view.subscribe();
        let seen = view.borrow_and_update().generation;
        self.look_again();
        let limit = deadline.min(Instant::now() + WAIT_MAX);
        let _ = timeout_at(limit, view.wait_for(|view| view.generation > seen)).await;
        self.partitions(topic)
    }

    /// Asks for a fresh look soon: something we knew turned out wrong.
    pub fn look_again(&self) {
        self.wanted.notify_one();
    }

    /// Looks once.
    pub async fn refresh(&self, cluster: &dyn Cluster) -> Result<(), ClusterError> {
        let topics = cluster.topics().await?;
        let partitions: HashMap<_, _> =
            topics.into_iter().map(|topic| (topic.name, topic.partitions)).collect();
        self.view.send_modify(|view| {
            view.generation += 1;
            view.partitions = Arc::new(partitions);
        });
        Ok(())
    }

    /// Keeps looking. Never ends.
    pub async fn keep_fresh(&self, cluster: &dyn Cluster, interval: Duration) {
        loop {
            let _ = tokio::time::timeout(interval, self.wanted.notified()).await;
            if let Err(error) = self.refresh(cluster).await {
                tracing::warn!(%error, "topics could not be looked up; the last view stays");
            }
            tokio::time::sleep(ASKED_FOR_INTERVAL_MIN).await;
        }
    }
}
