//! What the flow of calls needs to know: limits and reply routing.

use std::time::Duration;

use crate::limits;
use crate::terms::ReplyRouting;

/// Bounds on what is held. TOML section `[limits]`.
#[derive(Debug, Clone)]
pub struct LimitsConfig {
    /// `in_flight_max` (`ANTIPHON_LIMITS_IN_FLIGHT_MAX`): calls in flight,
    /// process-wide. Default: 20,000.
    pub in_flight_max: u32,
    /// `bytes_held_max` (`ANTIPHON_LIMITS_BYTES_HELD_MAX`): bytes of
    /// request messages held by calls in flight, process-wide. Default: 512
    /// MiB.
    pub bytes_held_max: u64,
    /// `lane_queue_max` (`ANTIPHON_LIMITS_LANE_QUEUE_MAX`): records waiting
    /// for one partition, per shard. Default: 10,000.
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

/// Which number a process has among its like.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ordinal {
    /// This one.
    Number(u32),
    /// The one that ends the host's name, as in a StatefulSet's pods.
    Hostname,
}

/// How replies come back. TOML section `[reply]`.
#[derive(Debug, Clone)]
pub struct ReplyConfig {
    /// `routing` (`ANTIPHON_REPLY_ROUTING`). Default: `instance-topic`.
    pub routing: ReplyRouting,
    /// `topic` (`ANTIPHON_REPLY_TOPIC`): the reply topic that instances share;
    /// for `partition` and `shared` routing. Default: none.
    pub topic: Option<String>,
    /// `partitions` (`ANTIPHON_REPLY_PARTITIONS`): of a reply topic that is
    /// created. Default: one a shard; 32 for `partition` routing.
    pub partitions: Option<i32>,
    /// `ordinal` (`ANTIPHON_REPLY_ORDINAL`): instead of a lease: shard s of
    /// process o has partition o × shards + s. Default: none.
    pub ordinal: Option<Ordinal>,
    /// `lease_ttl` (`ANTIPHON_REPLY_LEASE_TTL`): how long nothing may be heard
    /// of a partition's holder before another may claim it. Default: 15s.
    pub lease_ttl: Duration,
    /// `keep` (`ANTIPHON_REPLY_KEEP`): how long what was read stays on a leased
    /// partition. Default: the longest that a call may take.
    pub keep: Option<Duration>,
    /// `orphan_after` (`ANTIPHON_REPLY_ORPHAN_AFTER`): how long no heartbeat
    /// must have come from an instance's reply topic before it is removed.
    /// Default: 30s.
    pub orphan_after: Duration,
    /// `instances_max` (`ANTIPHON_REPLY_INSTANCES_MAX`): reply topics with this
    /// prefix, this instance's included. Default: 1,000.
    pub instances_max: usize,
    /// `topic_prefix` (`ANTIPHON_REPLY_TOPIC_PREFIX`): the reply topic is
    /// `<prefix>.<instance>`. Default: `antiphon.reply`.
    pub topic_prefix: String,
    /// `instance` (`ANTIPHON_REPLY_INSTANCE`): names this process; 1 to 100
    /// of [a-zA-Z0-9_-]. Default: the host name and a random part.
    pub instance: Option<String>,
    /// `replication_factor` (`ANTIPHON_REPLY_REPLICATION_FACTOR`) of the
    /// reply topic. Default: the cluster's own (-1), which every Kafka
    /// since 2.4 accepts.
    pub replication_factor: i16,
    /// `fetch_wait` (`ANTIPHON_REPLY_FETCH_WAIT`): how long the broker may
    /// hold a fetch that finds nothing. Default: 500ms.
    pub fetch_wait: Duration,
    /// `heartbeat_interval` (`ANTIPHON_REPLY_HEARTBEAT_INTERVAL`). Default:
    /// 3s.
    pub heartbeat_interval: Duration,
    /// `start_timeout` (`ANTIPHON_REPLY_START_TIMEOUT`): how long the start
    /// may take before it is given up. Default: 30s.
    pub start_timeout: Duration,
}

impl Default for ReplyConfig {
    fn default() -> Self {
        Self {
            routing: ReplyRouting::InstanceTopic,
            topic: None,
            partitions: None,
            ordinal: None,
            lease_ttl: Duration::from_millis(limits::LEASE_TTL_MS),
            keep: None,
            orphan_after: Duration::from_millis(limits::ORPHAN_AFTER_MS),
            instances_max: limits::INSTANCES_MAX,
            topic_prefix: "antiphon.reply".to_owned(),
            instance: None,
            replication_factor: -1,
            fetch_wait: Duration::from_millis(limits::FETCH_WAIT_MS),
            heartbeat_interval: Duration::from_millis(limits::HEARTBEAT_INTERVAL_MS),
            start_timeout: Duration::from_millis(limits::START_TIMEOUT_MS),
        }
    }
}

/// Calls that carry an `idempotency-key`. TOML section `[idempotency]`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct IdempotencyConfig {
    /// `window` (`ANTIPHON_IDEMPOTENCY_WINDOW`): how long a key is remembered,
    /// and a late reply to it waited for. Default: 5m.
    pub window: Duration,
    /// `keys_max` (`ANTIPHON_IDEMPOTENCY_KEYS_MAX`): keys remembered,
    /// process-wide. Default: 100,000.
    pub keys_max: usize,
    /// `bytes_max` (`ANTIPHON_IDEMPOTENCY_BYTES_MAX`): bytes of kept replies,
    /// process-wide; the oldest go first. Default: 64 MiB.
    pub bytes_max: usize,
}

impl Default for IdempotencyConfig {
    fn default() -> Self {
        Self {
            window: Duration::from_millis(limits::IDEMPOTENCY_WINDOW_MS),
            keys_max: limits::IDEMPOTENCY_KEYS_MAX,
            bytes_max: limits::IDEMPOTENCY_BYTES_MAX,
        }
    }
}

/// Failing fast when a topic's workers do not answer. TOML section
/// `[circuit]`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CircuitConfig {
    /// `timeouts_max` (`ANTIPHON_CIRCUIT_TIMEOUTS_MAX`): so many time-outs in
    /// a row on one request topic open its circuit; 0 never does. Default: 0.
    pub timeouts_max: u32,
    /// `open_for` (`ANTIPHON_CIRCUIT_OPEN_FOR`): how long calls are refused
    /// before one of them is let through to try. Default: 10s.
    pub open_for: Duration,
}

impl Default for CircuitConfig {
    fn default() -> Self {
        Self { timeouts_max: 0, open_for: Duration::from_millis(limits::CIRCUIT_OPEN_MS) }
    }
}
