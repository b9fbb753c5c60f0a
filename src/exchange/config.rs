//! What the flow of calls needs to know: limits and reply routing.

use std::time::Duration;

use crate::limits;
use crate::terms::ReplyRouting;

/// Bounds on what is held. TOML section `[limits]`.
#[derive(Debug, Clone)]
pub struct LimitsConfig {
    /// `in_flight_max`: calls in flight, process-wide. Default: 20,000.
    pub in_flight_max: u32,
    /// `bytes_held_max`: bytes of request messages held by calls in flight,
    /// process-wide. Default: 512 MiB.
    pub bytes_held_max: u64,
    /// `lane_queue_max`: records waiting for one partition, per shard.
    /// Default: 10,000.
    pub lane_queue_max: usize,
}

impl Default for LimitsConfig {
    fn default() -> Self {
        Self {
            in_flight_max: limits::IN_FLIGHT_MAX,
            bytes_held_max: limits::BYTES_HELD_MAX,
            lane_queue_max: limits::LANE_QUEUE_RECORDS_MAX,
        }
    }
}

/// How replies come back. TOML section `[reply]`.
#[derive(Debug, Clone)]
pub struct ReplyConfig {
    /// `routing`. Default: `instance-topic`.
    pub routing: ReplyRouting,
    /// `topic_prefix`: the reply topic is `<prefix>.<instance>`.
    /// Default: `antiphon.reply`.
    pub topic_prefix: String,
    /// `instance`: names this process; 1 to 100 of [a-zA-Z0-9_-].
    /// Default: the host name and a random part.
    pub instance: Option<String>,
    /// `replication_factor` of the reply topic. Default: the cluster's own
    /// (-1), which every Kafka since 2.4 accepts.
    pub replication_factor: i16,
    /// `fetch_wait`: how long the broker may hold a fetch that finds nothing.
    /// Default: 500ms.
    pub fetch_wait: Duration,
    /// `heartbeat_interval`. Default: 3s.
    pub heartbeat_interval: Duration,
    /// `start_timeout`: how long the start may take before it is given up.
    /// Default: 30s.
    pub start_timeout: Duration,
}

impl Default for ReplyConfig {
    fn default() -> Self {
        Self {
            routing: ReplyRouting::InstanceTopic,
            topic_prefix: "antiphon.reply".to_owned(),
            instance: None,
            replication_factor: -1,
            fetch_wait: Duration::from_millis(limits::FETCH_WAIT_MS),
            heartbeat_interval: Duration::from_millis(limits::HEARTBEAT_INTERVAL_MS),
            start_timeout: Duration::from_millis(limits::START_TIMEOUT_MS),
        }
    }
}
