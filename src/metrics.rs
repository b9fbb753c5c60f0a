//! What the process counts, in OpenMetrics terms.
//!
//! One [`Metrics`] belongs to one instance, so that several instances in one
//! process (tests, scenarios) count apart. Labels have few values by design:
//! methods of the route table, their topics, status codes, reply kinds. Names
//! and labels are OpenTelemetry's where it has some; [`table`] lists them.

mod histogram;
mod reference;

use std::fmt::Write as _;
use std::sync::Arc;

use prometheus_client::encoding::EncodeLabelSet;
pub use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
pub use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::gauge::Gauge as AnyGauge;
use prometheus_client::registry::{Metric, Registry};
use tokio::time::Instant;

pub use histogram::{Histogram, Histograms, Sum};
use histogram::{Pairs, Scale, View};
pub use reference::{ROWS, Row, table};

/// The kind of a reply that a waiting call got.
const DELIVERED: &str = "delivered";
/// Partitions that have gauges of their own, over all topics.
const PARTITIONS_SHOWN_MAX: usize = 2_000;

/// Everything that is counted; `reference` says what each is.
#[derive(Debug)]
pub struct Metrics {
    registry: Registry,
    /// Of `replies`, the one that nearly all of them are: looked up once.
    delivered: Counter,
    /// `rpc_server_call_duration_seconds` and `antiphon_calls_total`, in
    /// microseconds.
    pub calls: Arc<Histograms<CallLabels>>,
    /// `antiphon_lane_wait_seconds`, by topic.
    pub lane_wait: Arc<Histograms<Arc<str>>>,
    /// `messaging_client_operation_duration_seconds`, by topic and error.
    pub sends: Arc<Histograms<(Arc<str>, &'static str)>>,
    /// `antiphon_batch_records` and `messaging_client_sent_messages_total`, by
    /// topic.
    pub batches: Arc<Histograms<Arc<str>>>,
    /// `antiphon_reply_wait_seconds`, by method.
    pub reply_wait: Arc<Histograms<Arc<str>>>,
    /// `antiphon_calls_in_flight`.
    pub calls_in_flight: Gauge,
    /// `antiphon_bytes_held`.
    pub bytes_held: Gauge,
    /// `antiphon_ready`.
    pub ready: Gauge,
    /// `antiphon_connections`.
    pub connections: Gauge,
    /// `antiphon_reply_path_trouble`.
    reply_path_trouble: Family<TroubleLabels, Gauge>,
    /// `antiphon_heartbeat_age_seconds`.
    pub heartbeat_age: Family<ReplyPartition, AnyGauge<f64, std::sync::atomic::AtomicU64>>,
    /// `antiphon_lane_records`.
    lane_records: Family<PartitionLabels, Gauge>,
    /// `antiphon_lane_calls_waiting`.
    lane_calls_waiting: Family<PartitionLabels, Gauge>,
    /// `antiphon_tls_certificate_expiry_seconds`; 0 without one.
    pub certificate_expiry: Gauge,
    /// `antiphon_replies_total`.
    pub replies: Family<ReplyLabels, Counter>,
    /// `antiphon_reply_lag_records`.
    pub reply_lag: Family<ReplyPartition, Gauge>,
    /// `antiphon_collected_replies_total`.
    pub collected_replies: Family<MethodLabels, Counter>,
    /// `antiphon_produce_errors_total`.
    pub produce_errors: Family<ProduceErrorLabels, Counter>,
    /// `antiphon_kafka_connections_total`.
    pub kafka_connections: Family<RoleLabels, Counter>,
    /// `antiphon_dead_letters_total`.
    pub dead_letters: Family<DeadLetterLabels, Counter>,
    /// `antiphon_dead_letter_records`.
    pub dead_letter_records: Family<TopicLabels, Gauge>,
    /// `antiphon_aftermath_lost_total`.
    pub aftermath_lost: Counter,
    /// `antiphon_circuit_opened_total`.
    pub circuit_opened: Counter,
    /// `antiphon_idempotent_total`.
    pub idempotent: Family<IdempotentLabels, Counter>,
    /// `antiphon_reader_errors_total`.
    pub reader_errors: Counter,
    /// `antiphon_reply_topics`: topics with the prefix of reply topics, by the
    /// last look.
    pub reply_topics: Gauge,
    /// `antiphon_orphans_removed_total`: reply topics of dead instances that
    /// this one has removed.
    pub orphans_removed: Counter,
    /// `antiphon_access_log_dropped_total`.
    pub access_log_dropped: Counter,
    /// `antiphon_spans_exported_total`.
    pub spans_exported: Counter,
    /// `antiphon_spans_dropped_total`.
    pub spans_dropped: Counter,
    /// `antiphon_leases_total{kind}`: what became of leases of reply partitions.
    pub leases: Family<LeaseLabels, Counter>,
}

/// Labels of `antiphon_reply_path_trouble`.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct TroubleLabels {
    /// What it is: credentials, denied, reply-topic-gone or unreachable.
    pub reason: &'static str,
}

/// Labels of `antiphon_leases_total`.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct LeaseLabels {
    /// What happened: claimed, contested, lost or released.
    pub kind: &'static str,
}

/// What a lane has to do at the moment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LaneLoad {
    /// Topic.
    pub topic: Arc<str>,
    /// Partition.
    pub partition: i32,
    /// Records in its queue.
    pub records: usize,
    /// Calls that wait on the partition.
    pub calls: u32,
    /// Its last produce that failed: when, and why.
    pub last_error: Option<(Instant, Arc<str>)>,
}

/// A method and how its calls end.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct CallLabels {
    /// Path of the method.
    pub method: Arc<str>,
    /// Name of the gRPC status code.
    pub code: &'static str,
}

/// A partition of a request topic.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct PartitionLabels {
    /// Topic.
    pub messaging_destination_name: Arc<str>,
    /// Partition.
    pub messaging_destination_partition_id: i32,
}

/// A partition of the reply topic.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct ReplyPartition {
    /// Partition.
    pub messaging_destination_partition_id: i32,
}

/// A topic.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct TopicLabels {
    /// Topic.
    pub messaging_destination_name: Arc<str>,
}

/// Labels of `antiphon_kafka_connections_total`.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct RoleLabels {
    /// What for: lane or reply-reader.
    pub role: &'static str,
}

/// Labels of `antiphon_replies_total`.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct ReplyLabels {
    /// What the record was: delivered, part, late, duplicate, refused, foreign,
    /// heartbeat, peer-heartbeat, lease, request, uncorrelated or undecodable.
    pub kind: &'static str,
}

/// Labels of `antiphon_collected_replies_total`.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct MethodLabels {
    /// Path of the method.
    pub method: Arc<str>,
}

/// Labels of `antiphon_produce_errors_total`.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct ProduceErrorLabels {
    /// What is known: not-sent, unknown, throttled, refused, too-large or
    /// no-topic.
    pub kind: &'static str,
}

/// Labels of `antiphon_dead_letters_total`.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct DeadLetterLabels {
    /// Why: timeout, undecodable-reply, rejected or late-reply.
    pub class: &'static str,
}

/// Labels of `antiphon_idempotent_total`.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct IdempotentLabels {
    /// What became of the call: first, joined, kept, conflict or full.
    pub kind: &'static str,
}

impl Default for Metrics {
    fn default() -> Self {
        Self::new()
    }
}

impl Metrics {
    /// All at zero.
    pub fn new() -> Self {
        let replies = Family::<ReplyLabels, Counter>::default();
        let mut metrics = Self {
            registry: Registry::default(),
            delivered: replies.get_or_create_owned(&ReplyLabels { kind: DELIVERED }),
            calls: Histograms::new(Scale::Time),
            lane_wait: Histograms::new(Scale::Time),
            sends: Histograms::new(Scale::Time),
            batches: Histograms::new(Scale::Records),
            reply_wait: Histograms::new(Scale::Time),
            calls_in_flight: Gauge::default(),
            bytes_held: Gauge::default(),
            ready: Gauge::default(),
            connections: Gauge::default(),
            reply_path_trouble: Family::default(),
            heartbeat_age: Family::default(),
            lane_records: Family::default(),
            lane_calls_waiting: Family::default(),
            certificate_expiry: Gauge::default(),
            replies,
            reply_lag: Family::default(),
            collected_replies: Family::default(),
            produce_errors: Family::default(),
            kafka_connections: Family::default(),
            dead_letters: Family::default(),
            dead_letter_records: Family::default(),
            aftermath_lost: Counter::default(),
            circuit_opened: Counter::default(),
            idempotent: Family::default(),
            reader_errors: Counter::default(),
            reply_topics: Gauge::default(),
            orphans_removed: Counter::default(),
            access_log_dropped: Counter::default(),
            spans_exported: Counter::default(),
            spans_dropped: Counter::default(),
            leases: Family::default(),
        };
        metrics.begin_at_zero();
        metrics.register_histograms();
        metrics.register_others();
        metrics
    }

    /// A rate needs a beginning: what has not happened yet is there as zero.
    fn begin_at_zero(&self) {
        for kind in reference::REPLY_KINDS {
            drop(self.replies.get_or_create(&ReplyLabels { kind }));
        }
        for reason in reference::TROUBLE_REASONS {
            self.show_trouble(reason, false);
        }
        for kind in reference::PRODUCE_ERROR_KINDS {
            drop(self.produce_errors.get_or_create(&ProduceErrorLabels { kind }));
        }
        for class in reference::DEAD_LETTER_CLASSES {
            drop(self.dead_letters.get_or_create(&DeadLetterLabels { class }));
        }
        for kind in reference::IDEMPOTENT_KINDS {
            drop(self.idempotent.get_or_create(&IdempotentLabels { kind }));
        }
        for kind in reference::LEASE_KINDS {
            drop(self.leases.get_or_create(&LeaseLabels { kind }));
        }
        for role in reference::CONNECTION_ROLES {
            drop(self.kafka_connections.get_or_create(&RoleLabels { role }));
        }
    }

    fn register_histograms(&mut self) {
        fn topic(topic: &Arc<str>) -> Pairs {
            vec![("messaging_destination_name", topic.to_string())]
        }
        let registry = &mut self.registry;
        let (calls, sends) = (&self.calls, &self.sends);
        registry.register_collector(Box::new(View::whole(
            "rpc_server_call_duration_seconds",
            calls,
            |call| {
                vec![
                    ("rpc_system_name", "grpc".to_owned()),
                    // OpenTelemetry has it without the slash.
                    ("rpc_method", call.method.trim_start_matches('/').to_owned()),
                    ("rpc_response_status_code", call.code.to_owned()),
                ]
            },
        )));
        registry.register_collector(Box::new(View::count("antiphon_calls", calls, |call| {
            vec![("method", call.method.to_string()), ("code", call.code.to_owned())]
        })));
        registry.register_collector(Box::new(View::whole(
            "antiphon_lane_wait_seconds",
            &self.lane_wait,
            topic,
        )));
        let name = "messaging_client_operation_duration_seconds";
        registry.register_collector(Box::new(View::whole(name, sends, |(topic, error)| {
            let mut labels = vec![
                ("messaging_system", "kafka".to_owned()),
                ("messaging_operation_name", "send".to_owned()),
                ("messaging_destination_name", topic.to_string()),
            ];
            if !error.is_empty() {
                labels.push(("error_type", (*error).to_owned()));
            }
            labels
        })));
        registry.register_collector(Box::new(View::sum(
            "messaging_client_sent_messages",
            &self.batches,
            topic,
        )));
        registry.register_collector(Box::new(View::whole("antiphon_batch_records", &self.batches, topic)));
        registry.register_collector(Box::new(View::whole(
            "antiphon_reply_wait_seconds",
            &self.reply_wait,
            |method| vec![("rpc_method", method.trim_start_matches('/').to_owned())],
        )));
    }

    fn register_others(&mut self) {
        let registry = &mut self.registry;
        fn put(registry: &mut Registry, name: &'static str, metric: impl Metric) {
            registry.register(name, reference::help(name), metric);
        }
        put(registry, "antiphon_calls_in_flight", self.calls_in_flight.clone());
        put(registry, "antiphon_bytes_held", self.bytes_held.clone());
        put(registry, "antiphon_ready", self.ready.clone());
        put(registry, "antiphon_connections", self.connections.clone());
        put(registry, "antiphon_tls_certificate_expiry_seconds", self.certificate_expiry.clone());
        put(registry, "antiphon_reply_path_trouble", self.reply_path_trouble.clone());
        put(registry, "antiphon_heartbeat_age_seconds", self.heartbeat_age.clone());
        put(registry, "antiphon_lane_records", self.lane_records.clone());
        put(registry, "antiphon_lane_calls_waiting", self.lane_calls_waiting.clone());
        put(registry, "antiphon_replies", self.replies.clone());
        put(registry, "antiphon_collected_replies", self.collected_replies.clone());
        put(registry, "antiphon_reply_lag_records", self.reply_lag.clone());
        put(registry, "antiphon_produce_errors", self.produce_errors.clone());
        put(registry, "antiphon_kafka_connections", self.kafka_connections.clone());
        put(registry, "antiphon_dead_letters", self.dead_letters.clone());
        put(registry, "antiphon_dead_letter_records", self.dead_letter_records.clone());
        put(registry, "antiphon_aftermath_lost", self.aftermath_lost.clone());
        put(registry, "antiphon_circuit_opened", self.circuit_opened.clone());
        put(registry, "antiphon_idempotent", self.idempotent.clone());
        put(registry, "antiphon_reader_errors", self.reader_errors.clone());
        put(registry, "antiphon_reply_topics", self.reply_topics.clone());
        put(registry, "antiphon_orphans_removed", self.orphans_removed.clone());
        put(registry, "antiphon_leases", self.leases.clone());
        put(registry, "antiphon_access_log_dropped", self.access_log_dropped.clone());
        put(registry, "antiphon_spans_exported", self.spans_exported.clone());
        put(registry, "antiphon_spans_dropped", self.spans_dropped.clone());
    }

    /// Shows what the lanes have to do, those with the most first if there are
    /// too many to show.
    pub fn show_lanes(&self, mut loads: Vec<LaneLoad>) {
        loads.sort_by_key(|load| std::cmp::Reverse((load.calls, load.records)));
        loads.truncate(PARTITIONS_SHOWN_MAX);
        self.lane_records.clear();
        self.lane_calls_waiting.clear();
        for LaneLoad { topic, partition, records, calls, .. } in loads {
            let labels = PartitionLabels {
                messaging_destination_name: topic,
                messaging_destination_partition_id: partition,
            };
            // Shards have lanes of their own to the same partition.
            self.lane_records.get_or_create(&labels).inc_by(i64::try_from(records).unwrap_or(i64::MAX));
            self.lane_calls_waiting.get_or_create(&labels).inc_by(i64::from(calls));
        }
    }

    /// Whether this stands in the way of the reply path at the moment.
    pub fn show_trouble(&self, reason: &'static str, is_met: bool) {
        self.reply_path_trouble.get_or_create(&TroubleLabels { reason }).set(i64::from(is_met));
    }

    /// One more record of this kind on the reply topic.
    pub fn count_reply(&self, kind: &'static str) {
        match kind {
            DELIVERED => self.delivered.inc(),
            _ => self.replies.get_or_create(&ReplyLabels { kind }).inc(),
        };
    }

    /// One more lease of which this became.
    pub fn count_lease(&self, kind: &'static str) {
        self.leases.get_or_create(&LeaseLabels { kind }).inc();
    }

    /// How many leases of which this became there have been.
    pub fn leases_of(&self, kind: &'static str) -> u64 {
        self.leases.get_or_create(&LeaseLabels { kind }).get()
    }

    /// How many records of this kind there have been.
    pub fn replies_of(&self, kind: &'static str) -> u64 {
        self.replies.get_or_create(&ReplyLabels { kind }).get()
    }

    /// All of it, as OpenMetrics text.
    pub fn render(&self) -> String {
        let mut text = String::new();
        if prometheus_client::encoding::text::encode(&mut text, &self.registry).is_err() {
            // Writing to a string fails only if an encoder does.
            let _ = writeln!(text, "# incomplete");
        }
        text
    }
}

/// A time for a histogram.
pub fn micros(duration: std::time::Duration) -> u64 {
    duration.as_secs().saturating_mul(1_000_000) + u64::from(duration.subsec_micros())
}

#[cfg(test)]
mod tests {
    use std::collections::{BTreeMap, BTreeSet};

    use super::*;

    /// One of everything.
    fn touched() -> Metrics {
        let metrics = Metrics::new();
        let topic: Arc<str> = "pay".into();
        metrics.calls.observe(&CallLabels { method: "/p.S/M".into(), code: "OK" }, 1_000);
        metrics.lane_wait.observe(&topic, 10);
        metrics.sends.observe(&(Arc::clone(&topic), ""), 700);
        metrics.sends.observe(&(Arc::clone(&topic), "unknown"), 700);
        metrics.batches.observe(&topic, 3);
        metrics.reply_wait.observe(&"/p.S/M".into(), 900);
        let partition = ReplyPartition { messaging_destination_partition_id: 0 };
        metrics.heartbeat_age.get_or_create(&partition).set(0.5);
        metrics.reply_lag.get_or_create(&partition).set(0);
        let load =
            LaneLoad { topic: Arc::clone(&topic), partition: 1, records: 2, calls: 3, last_error: None };
        metrics.show_lanes(vec![load.clone(), load]);
        metrics.count_reply("late");
        metrics.produce_errors.get_or_create(&ProduceErrorLabels { kind: "unknown" }).inc();
        metrics.kafka_connections.get_or_create(&RoleLabels { role: "lane" }).inc();
        metrics.dead_letters.get_or_create(&DeadLetterLabels { class: "timeout" }).inc();
        let collected = MethodLabels { method: Arc::from("/p.S/M") };
        metrics.collected_replies.get_or_create(&collected).inc();
        let labels = TopicLabels { messaging_destination_name: topic };
        metrics.dead_letter_records.get_or_create(&labels).set(1);
        metrics.idempotent.get_or_create(&IdempotentLabels { kind: "first" }).inc();
        metrics
    }

    /// The reference is what is scraped: names, kinds, labels and words.
    #[test]
    fn the_reference_is_what_is_scraped() {
        let text = touched().render();
        let mut scraped: BTreeMap<&str, (&str, BTreeSet<&str>)> = BTreeMap::new();
        for line in text.lines().filter_map(|line| line.strip_prefix("# TYPE ")) {
            let (name, kind) = line.split_once(' ').unwrap();
            scraped.insert(name, (kind, BTreeSet::new()));
        }
        for line in text.lines().filter(|line| !line.starts_with('#')) {
            let Some((name, labels)) = line.split_once('{') else { continue };
            let name = ["_total", "_bucket", "_sum", "_count"]
                .iter()
                .find_map(|suffix| name.strip_suffix(suffix).filter(|name| scraped.contains_key(name)))
                .unwrap_or(name);
            let labels = labels.split('}').next().unwrap().split(',');
            let names = labels.filter_map(|label| label.split_once('=')).map(|(name, _)| name);
            scraped.get_mut(name).unwrap().1.extend(names.filter(|name| *name != "le"));
        }
        let expected: BTreeMap<&str, (&str, BTreeSet<&str>)> =
            ROWS.iter().map(|row| (row.name, (row.kind, row.labels.iter().copied().collect()))).collect();
        assert_eq!(scraped, expected);
        for row in ROWS {
            assert!(text.contains(&format!("# HELP {} {}", row.name, row.help)), "{}", row.name);
        }
    }

    #[test]
    fn calls_are_counted_once_and_shown_in_two_ways() {
        let text = touched().render();
        for line in [
            "antiphon_calls_total{method=\"/p.S/M\",code=\"OK\"} 1",
            "rpc_server_call_duration_seconds_count{rpc_system_name=\"grpc\",rpc_method=\"p.S/M\",rpc_response_status_code=\"OK\"} 1",
            "rpc_server_call_duration_seconds_sum{rpc_system_name=\"grpc\",rpc_method=\"p.S/M\",rpc_response_status_code=\"OK\"} 0.001",
            "messaging_client_sent_messages_total{messaging_destination_name=\"pay\"} 3",
            "antiphon_batch_records_bucket{le=\"+Inf\",messaging_destination_name=\"pay\"} 1",
            "antiphon_replies_total{kind=\"late\"} 1",
            "antiphon_calls_in_flight 0",
            "antiphon_lane_calls_waiting{messaging_destination_name=\"pay\",messaging_destination_partition_id=\"1\"} 6",
        ] {
            assert!(text.lines().any(|found| found == line), "{line} is not in\n{text}");
        }
    }
}
