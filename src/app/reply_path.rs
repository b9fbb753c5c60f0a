//! The reply path of a gateway: its topic is found or made at the start, and
//! taken away or given back at the end.

use std::collections::BTreeMap;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use tokio::time::{Instant, sleep, timeout};

use super::{Config, StartError};
use crate::backoff::Backoff;
use crate::correlation::Minter;
use crate::exchange::budget::Budget;
use crate::exchange::config::{Ordinal, ReplyConfig};
use crate::exchange::{Instance, Parts};
use crate::kafka::{Connector, KafkaCluster};
use crate::limits;
use crate::pending::Pending;
use crate::route::RouteTable;
use crate::terms::{Mode, ReplyRouting};
use crate::transport::{Cluster, ClusterError};

/// Beyond the start's time limit, for finding out why nobody answers.
const EXPLAIN_GRACE: Duration = Duration::from_millis(1_500);

/// How long a start that was broken off may take to put things away.
const CLEAR_TIMEOUT: Duration = Duration::from_secs(5);

/// What there is to be put away, from when it may exist on.
#[derive(Debug, Clone, Default)]
pub(super) struct Traces(Arc<OnceLock<Trace>>);

type Trace = (Arc<Instance>, Arc<KafkaCluster>, ReplyConfig);

impl Traces {
    pub(super) fn begin(&self, instance: &Arc<Instance>, cluster: &Arc<KafkaCluster>, reply: &ReplyConfig) {
        // Set once: a start opens one reply path.
        let _ = self.0.set((Arc::clone(instance), Arc::clone(cluster), reply.clone()));
    }

    /// After a start that was broken off.
    pub(super) async fn clear(&self) {
        if let Some((instance, cluster, reply)) = self.0.get() {
            let closing = close(instance, &**cluster, reply.routing);
            if timeout(CLEAR_TIMEOUT, closing).await.is_err() {
                tracing::warn!(topic = %instance.reply_topic(), "reply topic left behind: Kafka does not answer");
            }
        }
    }
}

/// Names the process and makes its shards' places.
pub(super) fn new_instance(config: &Config, routes: &RouteTable) -> Result<Arc<Instance>, StartError> {
    let random = || {
        let mut bytes = [0; 32];
        rand::TryRng::try_fill_bytes(&mut rand::rngs::SysRng, &mut bytes)
            .map_err(|error| StartError::Random(error.to_string()))?;
        Ok::<_, StartError>(bytes)
    };
    let seed = random()?;
    let tag = u16::from_be_bytes([seed[0], seed[1]]);
    let name = config.reply.instance.clone().unwrap_or_else(|| instance_name(&seed[2..6]));
    let topic: Arc<str> = match &config.reply.topic {
        Some(topic) if config.reply.routing != ReplyRouting::InstanceTopic => topic.as_str().into(),
        _ => format!("{}.{name}", config.reply.topic_prefix).into(),
    };
    // Calls with a key are waited for beyond their callers, so that they must not
    // take the places of others.
    let carried_max = u32::try_from(config.idempotency.keys_max).unwrap_or(u32::MAX);
    let slots_max = config.limits.in_flight_max.saturating_add(carried_max);
    let pendings = (0..config.shards)
        .map(|shard| {
            let shard = u8::try_from(shard).unwrap_or(u8::MAX);
            Ok(Pending::new(tag, Minter::new(shard, tag, random()?), slots_max))
        })
        .collect::<Result<Vec<_>, StartError>>()?;
    let heartbeat_age_max =
        Duration::from_millis(limits::HEARTBEAT_AGE_MAX_MS).max(config.reply.heartbeat_interval * 3);
    Ok(Instance::new(Parts {
        name,
        reply_topic: topic,
        heartbeat_age_max,
        pendings,
        budget: Budget::new(&config.limits, routes),
        circuit: config.circuit.clone(),
        idempotency: config.idempotency.clone(),
    }))
}

fn host_name() -> String {
    rustix::system::uname().nodename().to_string_lossy().into_owned()
}

/// The host's name, as far as a topic's name can hold it, and a random part.
fn instance_name(random: &[u8]) -> String {
    let host: String = host_name()
        .chars()
        .map(|c| if c.is_ascii_alphanumeric() || c == '-' { c } else { '-' })
        .take(60)
        .collect();
    let random: String = random.iter().map(|byte| format!("{byte:02x}")).collect();
    format!("{host}-{random}")
}

/// The first partition of a process that has an ordinal instead of leases.
pub(super) fn first_partition(config: &Config) -> Result<Option<i32>, StartError> {
    let number = match config.reply.ordinal {
        Some(_) if config.reply.routing != ReplyRouting::Partition => return Ok(None),
        None => return Ok(None),
        Some(Ordinal::Number(number)) => number,
        Some(Ordinal::Hostname) => {
            let host = host_name();
            ordinal_of(&host).ok_or(StartError::NoOrdinal { host })?
        }
    };
    let first = i64::from(number) * i64::try_from(config.shards).unwrap_or(i64::MAX);
    Ok(Some(i32::try_from(first).unwrap_or(i32::MAX)))
}

/// The number that ends the first label of a host's name.
fn ordinal_of(host: &str) -> Option<u32> {
    let label = host.split('.').next().unwrap_or_default();
    let digits = label.len() - label.trim_end_matches(|c: char| c.is_ascii_digit()).len();
    label[label.len() - digits..].parse().ok()
}

/// How long a reply may be waited for: what was read longer ago than that is of
/// no use to anyone.
pub(super) fn longest_call(config: &Config, routes: &RouteTable) -> Duration {
    let waiting = routes.routes().iter().filter(|route| route.mode == Mode::RequestReply);
    let longest = waiting.map(|route| route.timeout_max).max().unwrap_or_default();
    config.reply.keep.unwrap_or_else(|| longest.max(config.idempotency.window))
}

/// The control thread's own way to Kafka, which waits no longer than the start may take.
pub(super) fn control_cluster(config: &Config, connector: &Arc<Connector>) -> KafkaCluster {
    let mut kafka = config.kafka.clone();
    kafka.connect_timeout = kafka.connect_timeout.min(config.reply.start_timeout);
    KafkaCluster::new(&kafka, Arc::clone(connector))
}

/// Finds the cluster and the reply topic, or makes it, again and again until it
/// works or the start has taken too long: Kafka may be starting too.
pub(super) async fn open(
    config: &Config,
    instance: &Instance,
    cluster: &KafkaCluster,
    began: Instant,
) -> Result<(), StartError> {
    let deadline = began + config.reply.start_timeout;
    let first = first_partition(config)?;
    let mut backoff = Backoff::default();
    let mut last = None;
    loop {
        let left = deadline.saturating_duration_since(Instant::now()) + EXPLAIN_GRACE;
        let source = match timeout(left, try_open(config, instance, cluster, first)).await {
            Ok(Ok(())) => return Ok(()),
            Ok(Err(error)) => error,
            // What the attempt before it met says more.
            Err(_) => last.take().unwrap_or_else(|| ClusterError::Unreachable("no answer".to_owned())),
        };
        let refused = matches!(source, ClusterError::Refused(_));
        let pause = backoff.next_pause();
        if refused || Instant::now() + pause >= deadline {
            return Err(StartError::Kafka { servers: config.kafka.bootstrap_servers.join(","), source });
        }
        tracing::warn!(error = %source, "Kafka is not ready; trying again");
        last = Some(source);
        sleep(pause).await;
    }
}

async fn try_open(
    config: &Config,
    instance: &Instance,
    cluster: &KafkaCluster,
    first_partition: Option<i32>,
) -> Result<(), ClusterError> {
    let topic = instance.reply_topic();
    instance.directory.refresh(cluster).await?;
    if config.reply.routing == ReplyRouting::InstanceTopic {
        check_instances(config, instance)?;
    }
    if instance.directory.partitions(topic).is_none() {
        let partitions = partitions_to_make(config, first_partition);
        match cluster.create_topic(topic, partitions, config.reply.replication_factor).await {
            Ok(()) => {
                instance.set_reply_partitions(partitions);
                instance.directory.look_again();
                return Ok(());
            }
            // Another instance was faster; how it was made is to be seen.
            Err(ClusterError::TopicExists(_)) => instance.directory.refresh(cluster).await?,
            Err(error) => return Err(error),
        }
    }
    let Some(found) = instance.directory.partitions(topic) else {
        return Err(ClusterError::NoSuchTopic(topic.to_string()));
    };
    check_partitions(config, topic, found, first_partition)?;
    instance.set_reply_partitions(found);
    Ok(())
}

fn partitions_to_make(config: &Config, first_partition: Option<i32>) -> i32 {
    let shards = i32::try_from(config.shards).unwrap_or(i32::MAX);
    let leased = config.reply.routing == ReplyRouting::Partition;
    let default = if leased { shards.max(limits::LEASED_PARTITIONS) } else { shards };
    let wanted = config.reply.partitions.unwrap_or(default);
    // Those of the lower ordinals are made, too.
    wanted.max(first_partition.map_or(0, |first| first.saturating_add(shards)))
}

/// Beyond a bound it is likelier that something goes wrong than that so many
/// instances are wanted.
fn check_instances(config: &Config, instance: &Instance) -> Result<(), ClusterError> {
    let prefix = format!("{}.", config.reply.topic_prefix);
    let own = instance.reply_topic();
    let known = instance.directory.snapshot();
    let others = known.keys().filter(|name| name.starts_with(&prefix) && ***name != **own).count();
    let most = config.reply.instances_max;
    if others < most {
        return Ok(());
    }
    Err(ClusterError::Refused(format!(
        "there are {others} reply topics {prefix}* of other instances already, and reply.instances_max \
         allows {most} with this one; delete those of instances that are gone (a living instance does so \
         {:?} after their last heartbeat), or raise reply.instances_max",
        config.reply.orphan_after
    )))
}

fn check_partitions(
    config: &Config,
    topic: &str,
    found: i32,
    first_partition: Option<i32>,
) -> Result<(), ClusterError> {
    let shards = i32::try_from(config.shards).unwrap_or(i32::MAX);
    let needed = first_partition.unwrap_or(0).saturating_add(shards);
    match config.reply.routing {
        _ if found >= needed => Ok(()),
        ReplyRouting::Shared => Ok(()),
        // Left by an earlier life of an instance with a fixed name.
        ReplyRouting::InstanceTopic => Err(ClusterError::Refused(format!(
            "reply topic {topic} exists with {found} partitions, and {shards} shards need as many; \
             delete it, or set shards = {found}"
        ))),
        ReplyRouting::Partition => Err(ClusterError::Refused(format!(
            "reply topic {topic} has {found} partitions, and this process needs {needed} ({}); add \
             partitions to it, or lower shards",
            match first_partition {
                Some(first) =>
                    format!("its ordinal gives it those from {first} on, one for each of {shards} shards"),
                None => format!("one for each of its {shards} shards, and as many for each other process"),
            }
        ))),
    }
}

/// Why a process that leases has no partition.
pub(super) fn explain_no_lease(instance: &Instance, waited: Duration) -> Option<StartError> {
    let shards = instance.shards().len();
    let leased = instance.leased_partitions();
    if leased.len() >= shards {
        return None;
    }
    let holders: BTreeMap<i32, String> = instance.other_holders();
    if holders.is_empty() {
        return None;
    }
    let list: Vec<String> =
        holders.iter().map(|(partition, name)| format!("{partition} by {name}")).collect();
    Some(StartError::NoLease {
        topic: Arc::clone(instance.reply_topic()),
        partitions: instance.reply_partitions(),
        shards,
        leased: leased.len(),
        holders: list.join(", "),
        waited,
    })
}

/// Takes away what is this instance's, once nothing is read any more.
pub(super) async fn close(instance: &Instance, cluster: &dyn Cluster, routing: ReplyRouting) {
    let topic = instance.reply_topic();
    match routing {
        ReplyRouting::Shared => {}
        ReplyRouting::Partition => instance.release_leases(cluster).await,
        ReplyRouting::InstanceTopic if instance.has_rival() => {
            tracing::warn!(%topic, "another process uses this reply topic; it is left to it");
        }
        ReplyRouting::InstanceTopic => remove_topic(topic, cluster).await,
    }
}

/// Once more when Kafka could not be reached: the connection may have died
/// while it was idle, and only the next attempt makes a new one.
async fn remove_topic(topic: &str, cluster: &dyn Cluster) {
    let mut removed = cluster.delete_topic(topic).await;
    if let Err(ClusterError::Unreachable(_)) = removed {
        removed = cluster.delete_topic(topic).await;
    }
    match removed {
        Ok(()) => tracing::info!(%topic, "reply topic removed"),
        Err(error) => tracing::error!(%topic, %error, "reply topic not removed"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_statefulsets_pods_end_in_their_ordinals() {
        assert_eq!(ordinal_of("gateway-0"), Some(0));
        assert_eq!(ordinal_of("gateway-2-17.gateway.default.svc"), Some(17));
        assert_eq!(ordinal_of("gateway"), None);
        assert_eq!(ordinal_of("7"), Some(7));
        assert_eq!(ordinal_of(""), None);
    }
}
