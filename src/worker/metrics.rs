//! What a worker counts, in OpenMetrics terms.

use std::sync::Arc;

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;

/// Everything that is counted. Clones count together.
#[derive(Debug, Clone, Default)]
pub struct Metrics {
    /// `requests_total{method,code}`: requests that were answered, repeats
    /// among them.
    pub handled: Family<HandledLabels, Counter>,
    /// `skipped_total{reason}`: requests that nobody waited for any more.
    pub skipped: Family<SkippedLabels, Counter>,
    /// `deduplicated_total`: repeats that were answered with what was kept.
    pub deduplicated: Counter,
    /// `retried_total`: attempts after the first.
    pub retried: Counter,
    /// `dead_letters_total{class}`: requests that became dead letters.
    pub dead_letters: Family<DeadLetterLabels, Counter>,
    /// `panics_total`: handlers that panicked.
    pub panics: Counter,
    /// `replies_lost_total`: replies that could not be written.
    pub replies_lost: Counter,
    /// `dead_letters_lost_total`: dead letters that could not be written.
    pub dead_letters_lost: Counter,
    /// `store_errors_total`: the store of answers could not be used.
    pub store_errors: Counter,
    /// `working`: handlers at work.
    pub working: Gauge,
    /// `held`: requests in hand: queued, at work, or waiting for their reply's
    /// acknowledgement.
    pub held: Gauge,
    /// `partitions`: partitions that this worker has.
    pub partitions: Gauge,
}

/// Labels of `requests_total`.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct HandledLabels {
    /// Path of the method, `unknown` for one without a handler.
    pub method: Arc<str>,
    /// Name of the gRPC status code.
    pub code: &'static str,
}

/// Labels of `skipped_total`.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct SkippedLabels {
    /// Why: expired, cancelled or no-value.
    pub reason: &'static str,
}

/// Labels of `dead_letters_total`.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct DeadLetterLabels {
    /// The letter's `failure.class`.
    pub class: &'static str,
}

impl Metrics {
    /// Registers all of them, with the prefix `antiphon_worker`.
    pub fn register(&self, registry: &mut Registry) {
        let registry = registry.sub_registry_with_prefix("antiphon_worker");
        registry.register("requests", "Requests that were answered", self.handled.clone());
        registry.register("skipped", "Requests that nobody waited for any more", self.skipped.clone());
        registry.register("deduplicated", "Repeats answered with what was kept", self.deduplicated.clone());
        registry.register("retried", "Attempts after the first", self.retried.clone());
        registry.register("dead_letters", "Requests that became dead letters", self.dead_letters.clone());
        registry.register("panics", "Handlers that panicked", self.panics.clone());
        registry.register("replies_lost", "Replies that could not be written", self.replies_lost.clone());
        registry.register(
            "dead_letters_lost",
            "Dead letters that could not be written",
            self.dead_letters_lost.clone(),
        );
        registry.register("store_errors", "Failures of the store of answers", self.store_errors.clone());
        registry.register("working", "Handlers at work", self.working.clone());
        registry.register("held", "Requests in hand", self.held.clone());
        registry.register("partitions", "Partitions of this worker", self.partitions.clone());
    }

    /// Requests that were answered with this code.
    pub fn handled_with(&self, method: &str, code: &'static str) -> u64 {
        self.handled.get_or_create(&HandledLabels { method: Arc::from(method), code }).get()
    }

    /// Requests that were skipped for this reason.
    pub fn skipped_for(&self, reason: &'static str) -> u64 {
        self.skipped.get_or_create(&SkippedLabels { reason }).get()
    }

    /// Dead letters of this class.
    pub fn dead_letters_of(&self, class: &'static str) -> u64 {
        self.dead_letters.get_or_create(&DeadLetterLabels { class }).get()
    }

    pub(super) fn skip(&self, reason: &'static str) {
        self.skipped.get_or_create(&SkippedLabels { reason }).inc();
    }
}
