//! What is done beside the calls, on the control thread.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::sleep;

use super::Config;
use crate::dead_letters::{self, DeadLetterTopic};
use crate::exchange::config::ReplyConfig;
use crate::exchange::{Instance, Janitor};
use crate::kafka::KafkaCluster;
use crate::limits;
use crate::metrics::TopicLabels;
use crate::route::RouteTable;
use crate::supervisor::{Supervisor, Task};
use crate::terms::ReplyRouting;

/// Looks after the cluster's topics: which there are, what lies on those for dead
/// letters, and what dead instances have left behind.
pub(super) fn keep(
    config: &Config,
    routes: &Arc<RouteTable>,
    instance: &Arc<Instance>,
    cluster: &Arc<KafkaCluster>,
    supervisor: &Supervisor,
) -> Vec<Task> {
    let refresh = config.kafka.metadata_refresh;
    let topics = keep_topics_fresh(Arc::clone(instance), Arc::clone(cluster), refresh);
    let letters = count_dead_letters(Arc::clone(instance), Arc::clone(cluster), Arc::clone(routes));
    let mut tasks = vec![supervisor.spawn("topics", topics), supervisor.spawn("dead letters", letters)];
    let ReplyConfig { routing, topic_prefix, orphan_after, .. } = &config.reply;
    // Only topics of instances' own can be left behind.
    if *routing == ReplyRouting::InstanceTopic {
        let (instance, cluster) = (Arc::clone(instance), Arc::clone(cluster));
        let janitor = Janitor::new(instance, cluster, topic_prefix, *orphan_after);
        tasks.push(supervisor.spawn("janitor", janitor.run()));
    }
    tasks
}

async fn keep_topics_fresh(instance: Arc<Instance>, cluster: Arc<KafkaCluster>, interval: Duration) {
    instance.directory.keep_fresh(&*cluster, interval).await;
}

/// Counts what lies on the dead-letter topics, for whoever has to look at it.
/// Never ends.
async fn count_dead_letters(instance: Arc<Instance>, cluster: Arc<KafkaCluster>, routes: Arc<RouteTable>) {
    let mut wanted: Vec<&Arc<str>> = Vec::new();
    for route in routes.routes().iter().filter(|route| !route.dead_letter_on.is_empty()) {
        if !wanted.contains(&&route.dead_letter_topic) {
            wanted.push(&route.dead_letter_topic);
        }
    }
    loop {
        for name in &wanted {
            let Some(partitions) = instance.directory.partitions(name) else { continue };
            let topic = DeadLetterTopic { name: name.to_string(), partitions };
            match dead_letters::count(&*cluster, &topic).await {
                Ok(records) => {
                    let labels = TopicLabels { messaging_destination_name: Arc::clone(name) };
                    let records = i64::try_from(records).unwrap_or(i64::MAX);
                    instance.metrics.dead_letter_records.get_or_create(&labels).set(records);
                }
                Err(error) => tracing::debug!(topic = &***name, %error, "dead letters were not counted"),
            }
        }
        sleep(Duration::from_millis(limits::DEAD_LETTERS_COUNT_INTERVAL_MS)).await;
    }
}
