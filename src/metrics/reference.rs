//! Every metric by name: what is registered, and what `docs/metrics.md` says.

/// One metric.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Row {
    /// As it is scraped, without `_total`, `_bucket`, `_sum`, `_count`.
    pub name: &'static str,
    /// `counter`, `gauge` or `histogram`.
    pub kind: &'static str,
    /// Its labels.
    pub labels: &'static [&'static str],
    /// What it says.
    pub help: &'static str,
}

const fn row(
    name: &'static str,
    kind: &'static str,
    labels: &'static [&'static str],
    help: &'static str,
) -> Row {
    Row { name, kind, labels, help }
}

/// What a record on the reply topic can be.
pub(super) const REPLY_KINDS: [&str; 12] = [
    "delivered",
    "part",
    "late",
    "duplicate",
    "refused",
    "foreign",
    "heartbeat",
    "peer-heartbeat",
    "lease",
    "request",
    "uncorrelated",
    "undecodable",
];
/// What can stand in the way of the reply path.
pub(super) const TROUBLE_REASONS: [&str; 4] = ["credentials", "denied", "reply-topic-gone", "unreachable"];
/// What becomes of a lease of a reply partition.
pub(super) const LEASE_KINDS: [&str; 4] = ["claimed", "contested", "lost", "released"];
/// What can be known of a produce request that failed.
pub(super) const PRODUCE_ERROR_KINDS: [&str; 6] =
    ["not-sent", "unknown", "throttled", "refused", "too-large", "no-topic"];
/// What becomes a dead letter.
pub(super) const DEAD_LETTER_CLASSES: [&str; 4] = ["timeout", "undecodable-reply", "rejected", "late-reply"];
/// What becomes of a call with an idempotency key.
pub(super) const IDEMPOTENT_KINDS: [&str; 5] = ["first", "joined", "kept", "conflict", "full"];
/// What a connection to a partition's leader is for.
pub(super) const CONNECTION_ROLES: [&str; 2] = ["lane", "reply-reader"];

const TOPIC: &str = "messaging_destination_name";
const PARTITION: &str = "messaging_destination_partition_id";

/// All there are, in the order in which a call meets them.
pub const ROWS: &[Row] = &[
    row(
        "rpc_server_call_duration_seconds",
        "histogram",
        &["rpc_system_name", "rpc_method", "rpc_response_status_code"],
        "Calls that ended, from their first byte to their status",
    ),
    row("antiphon_calls", "counter", &["method", "code"], "Calls that ended, by method and status code"),
    row("antiphon_calls_in_flight", "gauge", &[], "Calls that have not ended"),
    row(
        "antiphon_bytes_held",
        "gauge",
        &[],
        "Bytes of request messages of calls in flight, and of replies that wait for others",
    ),
    row("antiphon_connections", "gauge", &[], "gRPC connections open"),
    row(
        "antiphon_tls_certificate_expiry_seconds",
        "gauge",
        &[],
        "When the certificate of the gRPC listener ends, in seconds since 1970; 0 without one",
    ),
    row("antiphon_ready", "gauge", &[], "1 when calls are accepted"),
    row(
        "antiphon_reply_path_trouble",
        "gauge",
        &["reason"],
        "1 for what stands in the way of the reply path: credentials, denied, reply-topic-gone, unreachable; else 0",
    ),
    row(
        "antiphon_heartbeat_age_seconds",
        "gauge",
        &[PARTITION],
        "Age of the newest heartbeat that came back, by partition of the reply topic; -1 before the first",
    ),
    row(
        "antiphon_lane_wait_seconds",
        "histogram",
        &[TOPIC],
        "From a call's first byte until its request is on its way to Kafka",
    ),
    row("antiphon_lane_records", "gauge", &[TOPIC, PARTITION], "Requests that wait for their partition"),
    row(
        "antiphon_lane_calls_waiting",
        "gauge",
        &[TOPIC, PARTITION],
        "Calls that wait on a partition, for its acknowledgement or for a worker",
    ),
    row(
        "messaging_client_operation_duration_seconds",
        "histogram",
        &["messaging_system", "messaging_operation_name", TOPIC, "error_type"],
        "Produce requests, from sending to Kafka's answer; with error_type those that failed",
    ),
    row("messaging_client_sent_messages", "counter", &[TOPIC], "Records that Kafka has acknowledged"),
    row("antiphon_batch_records", "histogram", &[TOPIC], "Records of an acknowledged produce request"),
    row(
        "antiphon_produce_errors",
        "counter",
        &["kind"],
        "Produce requests that failed, by what is known: not-sent, unknown, throttled, refused, too-large, no-topic",
    ),
    row(
        "antiphon_kafka_connections",
        "counter",
        &["role"],
        "Connections to a partition's leader that were opened or tried, by lane and reply-reader",
    ),
    row(
        "antiphon_reply_wait_seconds",
        "histogram",
        &["rpc_method"],
        "From sending a request to its reply: Kafka, and the worker",
    ),
    row(
        "antiphon_replies",
        "counter",
        &["kind"],
        "Records read from the reply topic: delivered, part, late, duplicate, refused, foreign, heartbeat, peer-heartbeat, lease, request, uncorrelated, undecodable",
    ),
    row(
        "antiphon_collected_replies",
        "counter",
        &["method"],
        "Replies of calls that have several, by the time these ended",
    ),
    row(
        "antiphon_reply_lag_records",
        "gauge",
        &[PARTITION],
        "Records of the reply topic that are yet to be read",
    ),
    row("antiphon_reader_errors", "counter", &[], "Fetches from the reply topic that failed"),
    row("antiphon_reply_topics", "gauge", &[], "Topics with the prefix of reply topics, by the last look"),
    row(
        "antiphon_orphans_removed",
        "counter",
        &[],
        "Reply topics of dead instances that this one has removed",
    ),
    row(
        "antiphon_leases",
        "counter",
        &["kind"],
        "What became of leases of reply partitions: claimed, contested, lost, released",
    ),
    row(
        "antiphon_dead_letters",
        "counter",
        &["class"],
        "Dead letters handed to their lane: timeout, undecodable-reply, rejected, late-reply",
    ),
    row(
        "antiphon_dead_letter_records",
        "gauge",
        &[TOPIC],
        "Records on a dead-letter topic, looked at every 15 s",
    ),
    row(
        "antiphon_aftermath_lost",
        "counter",
        &[],
        "Dead letters and cancel records that could not be written",
    ),
    row("antiphon_circuit_opened", "counter", &[], "Circuits that opened"),
    row(
        "antiphon_idempotent",
        "counter",
        &["kind"],
        "Calls with an idempotency key: first, joined, kept, conflict, full",
    ),
    row(
        "antiphon_access_log_dropped",
        "counter",
        &[],
        "Lines of the access log that were not written: more came than could be, or the file takes none",
    ),
    row("antiphon_spans_exported", "counter", &[], "Spans that the collector has taken"),
    row(
        "antiphon_spans_dropped",
        "counter",
        &[],
        "Spans that the collector has not taken, or that found no room to wait for it",
    ),
];

/// What a metric says; `name` without its prefix and unit.
pub(super) fn help(name: &str) -> &'static str {
    ROWS.iter().find(|row| row.name == name).map_or("", |row| row.help)
}

/// The table of `docs/metrics.md`.
pub fn table() -> String {
    let mut text = String::from("| metric | kind | labels | what it says |\n|---|---|---|---|\n");
    for Row { name, kind, labels, help } in ROWS {
        let labels: Vec<String> = labels.iter().map(|label| format!("`{label}`")).collect();
        let suffix = if *kind == "counter" { "_total" } else { "" };
        text.push_str(&format!("| `{name}{suffix}` | {kind} | {} | {help} |\n", labels.join(", ")));
    }
    text
}
