//! What the process counts, in OpenMetrics terms.
//!
//! One [`Metrics`] belongs to one instance, so that several instances in one
//! process (tests, scenarios) count apart. Labels have few values by design:
//! methods of the route table, status codes, reply kinds.

use std::fmt::Write as _;
use std::sync::Arc;

use prometheus_client::encoding::EncodeLabelSet;
pub use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;

/// The kind of a reply that a waiting call got.
const DELIVERED: &str = "delivered";

/// Everything that is counted.
#[derive(Debug)]
pub struct Metrics {
    registry: Registry,
    /// Of `replies`, the one that nearly all of them are: looked up once.
    delivered: Counter,
    /// `antiphon_calls_total{method,code}`: calls that ended.
    pub calls: Family<CallLabels, Counter>,
    /// `antiphon_calls_in_flight`: calls between their first byte and their end.
    pub calls_in_flight: Gauge,
    /// `antiphon_bytes_held`: bytes of request messages of calls in flight.
    pub bytes_held: Gauge,
    /// `antiphon_ready`: 1 when calls are accepted.
    pub ready: Gauge,
    /// `antiphon_connections`: gRPC connections open.
    pub connections: Gauge,
    /// `antiphon_tls_certificate_expiry_seconds`: when the certificate of the
    /// gRPC listener ends, in seconds since 1970; 0 without one.
    pub certificate_expiry: Gauge,
    /// `antiphon_replies_total{kind}`: records read from the reply topic.
    pub replies: Family<ReplyLabels, Counter>,
    /// `antiphon_produced_records_total`: request records acknowledged.
    pub produced_records: Counter,
    /// `antiphon_produced_batches_total`: produce requests acknowledged.
    pub produced_batches: Counter,
    /// `antiphon_produce_errors_total{kind}`: produce requests that failed.
    pub produce_errors: Family<ProduceErrorLabels, Counter>,
    /// `antiphon_dead_letters_total{class}`: dead letters handed to their lane.
    pub dead_letters: Family<DeadLetterLabels, Counter>,
    /// `antiphon_aftermath_lost_total`: dead letters and cancel records that
    /// could not be written.
    pub aftermath_lost: Counter,
    /// `antiphon_circuit_opened_total`: circuits that opened.
    pub circuit_opened: Counter,
    /// `antiphon_idempotent_total{kind}`: calls with an idempotency key.
    pub idempotent: Family<IdempotentLabels, Counter>,
    /// `antiphon_reader_errors_total`: fetches from the reply topic that failed.
    pub reader_errors: Counter,
    /// `antiphon_reply_topics`: topics with the prefix of reply topics, by the
    /// last look.
    pub reply_topics: Gauge,
    /// `antiphon_orphans_removed_total`: reply topics of dead instances that
    /// this one has removed.
    pub orphans_removed: Counter,
    /// `antiphon_leases_total{kind}`: what became of leases of reply partitions.
    pub leases: Family<LeaseLabels, Counter>,
}

/// Labels of `antiphon_leases_total`.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct LeaseLabels {
    /// What happened: claimed, contested, lost or released.
    pub kind: &'static str,
}

/// Labels of `antiphon_calls_total`.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct CallLabels {
    /// Path of the method.
    pub method: Arc<str>,
    /// Name of the gRPC status code.
    pub code: &'static str,
}

/// Labels of `antiphon_replies_total`.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct ReplyLabels {
    /// What the record was: delivered, part, late, duplicate, foreign,
    /// heartbeat, peer-heartbeat, lease, request, uncorrelated or undecodable.
    pub kind: &'static str,
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
            registry: Registry::with_prefix("antiphon"),
            delivered: replies.get_or_create_owned(&ReplyLabels { kind: DELIVERED }),
            calls: Family::default(),
            calls_in_flight: Gauge::default(),
            bytes_held: Gauge::default(),
            ready: Gauge::default(),
            connections: Gauge::default(),
            certificate_expiry: Gauge::default(),
            replies,
            produced_records: Counter::default(),
            produced_batches: Counter::default(),
            produce_errors: Family::default(),
            dead_letters: Family::default(),
            aftermath_lost: Counter::default(),
            circuit_opened: Counter::default(),
            idempotent: Family::default(),
            reader_errors: Counter::default(),
            reply_topics: Gauge::default(),
            orphans_removed: Counter::default(),
            leases: Family::default(),
        };
        metrics.register();
        metrics
    }

    fn register(&mut self) {
        let registry = &mut self.registry;
        registry.register("calls", "Calls that ended, by method and status code", self.calls.clone());
        registry.register("calls_in_flight", "Calls that have not ended", self.calls_in_flight.clone());
        registry.register(
            "bytes_held",
            "Bytes of request messages of calls in flight",
            self.bytes_held.clone(),
        );
        registry.register("ready", "1 when calls are accepted", self.ready.clone());
        registry.register("connections", "gRPC connections open", self.connections.clone());
        registry.register(
            "tls_certificate_expiry_seconds",
            "When the gRPC listener's certificate ends, in seconds since 1970",
            self.certificate_expiry.clone(),
        );
        registry.register("replies", "Records read from the reply topic, by kind", self.replies.clone());
        registry.register("produced_records", "Request records acknowledged", self.produced_records.clone());
        registry.register("produced_batches", "Produce requests acknowledged", self.produced_batches.clone());
        registry.register(
            "produce_errors",
            "Produce requests that failed, by what is known",
            self.produce_errors.clone(),
        );
        registry.register(
            "dead_letters",
            "Dead letters handed to their lane, by class",
            self.dead_letters.clone(),
        );
        registry.register(
            "aftermath_lost",
            "Dead letters and cancel records that could not be written",
            self.aftermath_lost.clone(),
        );
        registry.register("circuit_opened", "Circuits that opened", self.circuit_opened.clone());
        registry.register("idempotent", "Calls with an idempotency key, by kind", self.idempotent.clone());
        registry.register(
            "reader_errors",
            "Fetches from the reply topic that failed",
            self.reader_errors.clone(),
        );
        registry.register(
            "reply_topics",
            "Topics with the prefix of reply topics",
            self.reply_topics.clone(),
        );
        registry.register(
            "orphans_removed",
            "Reply topics of dead instances that were removed",
            self.orphans_removed.clone(),
        );
        registry.register(
            "leases",
            "Leases of reply partitions, by what became of them",
            self.leases.clone(),
        );
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_have_our_prefix_and_units() {
        let metrics = Metrics::new();
        metrics.count_reply("late");
        let text = metrics.render();
        assert!(text.contains("antiphon_replies_total{kind=\"late\"} 1"), "{text}");
        assert!(text.contains("antiphon_calls_in_flight 0"), "{text}");
        assert_eq!(metrics.replies_of("late"), 1);
    }
}
