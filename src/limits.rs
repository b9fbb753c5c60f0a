//! Every bound by name, unit last. A room takes its defaults and ceilings from
//! here, so that one page shows what the process can ever hold or wait for.

use std::time::Duration;

/// Calls in flight in the whole process, unless configured otherwise.
pub const IN_FLIGHT_MAX: u32 = 20_000;
/// The most that `limits.in_flight_max` may be set to; the correlation id has
/// 24 bits for the slot.
pub const IN_FLIGHT_CEILING: u32 = 1 << 24;
/// Bytes of request messages held in lanes and calls, process-wide.
pub const BYTES_HELD_MAX: u64 = 512 * 1024 * 1024;
/// The most that `limits.bytes_held_max` may be set to: a tebibyte.
pub const BYTES_HELD_CEILING: u64 = 1 << 40;
/// Records waiting in one lane, per shard.
pub const LANE_QUEUE_RECORDS_MAX: usize = 10_000;
/// The most that `limits.lane_queue_max` may be set to.
pub const LANE_QUEUE_RECORDS_CEILING: usize = 1_000_000;
/// Records in one produce request.
pub const BATCH_RECORDS_MAX: usize = 1_000;
/// Bytes of keys, values and headers in one produce request, before
/// compression. Kafka's `max.message.bytes` allows 1,048,588 for a batch.
pub const BATCH_BYTES_MAX: usize = 900 * 1024;
/// Bytes of one gRPC message, each way (gRPC's customary default).
pub const MESSAGE_BYTES_MAX: usize = 4 * 1024 * 1024;
/// The most that `grpc.message_bytes_max` may be set to.
pub const MESSAGE_BYTES_CEILING: usize = 256 * 1024 * 1024;
/// Routes in one table.
pub const ROUTES_MAX: usize = 100_000;
/// Steps of the path of a key or partition field.
pub const FIELD_PATH_STEPS_MAX: usize = 32;
/// Protobuf groups within groups that are still skipped; protobuf's own
/// customary limit.
pub const GROUP_DEPTH_MAX: usize = 100;
/// Characters of a topic name, by Kafka's rule.
pub const TOPIC_NAME_CHARS_MAX: usize = 249;
/// Characters of an instance's name, which ends the reply topic's.
pub const INSTANCE_CHARS_MAX: usize = 100;
/// Partitions that a topic may have as far as lanes are concerned.
pub const PARTITIONS_MAX: i32 = 100_000;
/// Shards: the correlation id has 8 bits for them.
pub const SHARDS_MAX: usize = 256;

/// Time a call may take when neither caller nor route says.
pub const CALL_TIMEOUT_MS: u64 = 10_000;
/// Longest time a caller may ask for when the route does not say.
pub const CALL_TIMEOUT_MAX_MS: u64 = 300_000;
/// Longest time-out that can be configured.
pub const CALL_TIMEOUT_CEILING: Duration = Duration::from_secs(24 * 60 * 60);

/// One connection attempt to Kafka, metadata and leader look-up included.
pub const KAFKA_CONNECT_TIMEOUT_MS: u64 = 5_000;
/// One produce, from handing it over to its acknowledgement.
pub const PRODUCE_TIMEOUT_MS: u64 = 10_000;
/// How long the broker may hold a fetch that finds nothing.
pub const FETCH_WAIT_MS: u64 = 500;
/// Beyond the wait itself, how long a fetch's answer may take.
pub const FETCH_GRACE_MS: u64 = 5_000;
/// Bytes that one fetch may return.
pub const FETCH_BYTES_MAX: i32 = 8 * 1024 * 1024;
/// First pause after a Kafka failure.
pub const RETRY_BACKOFF_MS: u64 = 20;
/// Longest pause between attempts at Kafka.
pub const RETRY_BACKOFF_MAX_MS: u64 = 1_000;
/// How often topics and partitions are looked up again.
pub const METADATA_REFRESH_MS: u64 = 10_000;
/// How often an instance writes a heartbeat to its reply topic.
pub const HEARTBEAT_INTERVAL_MS: u64 = 3_000;
/// How old the newest heartbeat read back may be while the instance is READY.
pub const HEARTBEAT_AGE_MAX_MS: u64 = 15_000;
/// How long the start may take before it is given up.
pub const START_TIMEOUT_MS: u64 = 30_000;
/// How often a reply topic is trimmed of what has been read.
pub const TRIM_INTERVAL_MS: u64 = 10_000;
/// How long no heartbeat must have come from a reply topic before it is taken
/// for an orphan.
pub const ORPHAN_AFTER_MS: u64 = 30_000;
/// Reply topics with one prefix, and so instances.
pub const INSTANCES_MAX: usize = 1_000;
/// The most that `reply.instances_max` may be set to.
pub const INSTANCES_CEILING: usize = 100_000;
/// Reply topics that one janitor looks at in one round.
pub const JANITOR_TOPICS_MAX: usize = 64;
/// Records of one partition that a janitor reads in one look; where more have
/// come, somebody is alive.
pub const JANITOR_RECORDS_MAX: i64 = 1_000;
/// How long nothing may be heard of the holder of a leased reply partition
/// before another may claim it.
pub const LEASE_TTL_MS: u64 = 15_000;
/// How far from its end a reply partition is read to learn who holds it.
pub const LEASE_TAIL_RECORDS: i64 = 1_000;
/// How often one who has no lease looks at the partitions.
pub const LEASE_POLL_MS: u64 = 250;
/// How long a claim may take to show up in the log.
pub const LEASE_CLAIM_TIMEOUT_MS: u64 = 5_000;
/// Partitions of a leased reply topic that is created.
pub const LEASED_PARTITIONS: i32 = 32;
/// Partitions that a reply topic may have.
pub const REPLY_PARTITIONS_MAX: i32 = 1_000;

/// How long calls in flight may go on after SIGTERM.
pub const DRAIN_TIMEOUT_MS: u64 = 30_000;
/// Between turning NOT_SERVING and refusing new calls.
pub const DRAIN_NOTICE_MS: u64 = 0;

/// gRPC connections in the whole process.
pub const CONNECTIONS_MAX: u32 = 10_000;
/// The most that `grpc.connections_max` may be set to.
pub const CONNECTIONS_CEILING: u32 = 1_000_000;
/// Streams that one HTTP/2 connection may have open.
pub const STREAMS_PER_CONNECTION_MAX: u32 = 1_000;
/// The most that `grpc.streams_per_connection_max` may be set to.
pub const STREAMS_PER_CONNECTION_CEILING: u32 = 1_000_000;
/// Bytes of request headers (SETTINGS_MAX_HEADER_LIST_SIZE), and so of the
/// metadata that is forwarded.
pub const HEADER_LIST_BYTES_MAX: u32 = 16 * 1024;
/// A reply of so many bytes counts as held until its caller has taken it.
pub const REPLY_COUNTED_BYTES_MIN: usize = 4 * 1024;
/// Bytes of replies that a connection's caller has not taken; with so many,
/// further replies are dropped, and their calls end `RESOURCE_EXHAUSTED`.
pub const REPLIES_UNTAKEN_BYTES_MAX: u64 = 64 * 1024 * 1024;
/// Of `grpc.connections_max`, those that have not begun to speak: one in four.
pub const CONNECTIONS_BEGINNING_SHARE: u32 = 4;
/// HTTP/2 keep-alive: a ping after this much quiet.
pub const KEEP_ALIVE_INTERVAL_MS: u64 = 30_000;
/// HTTP/2 keep-alive: how long its answer may take.
pub const KEEP_ALIVE_TIMEOUT_MS: u64 = 20_000;
/// Bytes of reply headers turned into response metadata.
pub const RESPONSE_METADATA_BYTES_MAX: usize = 8 * 1024;
/// Bytes of an error message in `grpc-message`.
pub const STATUS_MESSAGE_BYTES_MAX: usize = 2 * 1024;
/// Replies of one call that are held: of a unary method all of them, of a
/// stream those that its caller has not taken yet; unless `replies_max` says.
pub const REPLIES_PER_CALL_MAX: u32 = 10_000;
/// The most that `replies` and `replies_max` may be set to.
pub const REPLIES_PER_CALL_CEILING: u32 = 1_000_000;
/// Bytes of replies to one call that wait: for their caller, or for the rest.
/// One message of `grpc.message_bytes_max` always has room.
pub const REPLY_BYTES_PER_CALL_MAX: usize = 8 * 1024 * 1024;
/// Messages of a stream between its call and its connection.
pub const STREAM_HANDOVER_MESSAGES: usize = 8;
/// Bytes of an idempotency key.
pub const IDEMPOTENCY_KEY_BYTES_MAX: usize = 256;

/// Lines of the access log that wait to be written.
pub const ACCESS_LOG_LINES_MAX: usize = 16_384;
/// Calls whose spans wait to be exported.
pub const SPANS_WAITING_CALLS_MAX: usize = 2_048;
/// Spans in one export, give or take those of a call.
pub const SPANS_PER_EXPORT: usize = 512;
/// How often an export is tried.
pub const EXPORT_ATTEMPTS_MAX: u32 = 4;
/// How long the end of a process waits for lines and spans to be written, in
/// milliseconds.
pub const OBSERVERS_FLUSH_TIMEOUT_MS: u64 = 3_000;
/// Age at which an idempotency key is forgotten.
pub const IDEMPOTENCY_WINDOW_MS: u64 = 300_000;
/// Idempotency keys remembered, process-wide.
pub const IDEMPOTENCY_KEYS_MAX: usize = 100_000;
/// Bytes of replies kept for their keys, process-wide.
pub const IDEMPOTENCY_BYTES_MAX: usize = 64 * 1024 * 1024;
/// How long a dead letter or a cancel record is tried for.
pub const AFTERMATH_TIMEOUT_MS: u64 = 30_000;
/// Timed-out calls whose late replies are still recognised, process-wide.
pub const DEAD_LETTERS_REMEMBERED_MAX: usize = 50_000;
/// How often the dead letters on their topics are counted.
pub const DEAD_LETTERS_COUNT_INTERVAL_MS: u64 = 15_000;
/// Schemas of replies that are kept, by their ids.
pub const SCHEMAS_KNOWN_MAX: usize = 1_000;
/// One question to the schema registry, with its answer.
pub const SCHEMA_REGISTRY_TIMEOUT_MS: u64 = 5_000;
/// How long an open circuit refuses calls.
pub const CIRCUIT_OPEN_MS: u64 = 10_000;
/// The most that `idempotency.keys_max` may be set to.
pub const IDEMPOTENCY_KEYS_CEILING: usize = 10_000_000;
/// The most that `idempotency.bytes_max` may be set to.
pub const IDEMPOTENCY_BYTES_CEILING: usize = 64 * 1024 * 1024 * 1024;
/// How long a new connection may take until its first HTTP/2 frame, TLS
/// included, in milliseconds.
pub const BEGIN_TIMEOUT_MS: u64 = 10_000;
/// How long a caller may take for its TLS handshake, in milliseconds.
pub const TLS_HANDSHAKE_TIMEOUT_MS: u64 = 10_000;
/// How often certificates are looked at, in milliseconds.
pub const TLS_RELOAD_INTERVAL_MS: u64 = 10_000;
/// How often the keys of tokens are read again, in milliseconds.
pub const JWKS_REFRESH_MS: u64 = 60_000;
/// One look at the keys of tokens, in milliseconds.
pub const JWKS_TIMEOUT_MS: u64 = 5_000;
/// How far the clocks of token issuers may differ from ours, in milliseconds.
pub const TOKEN_LEEWAY_MS: u64 = 30_000;
/// Calls that a shard refuses at once each second for lack of room; more wait
/// for their turn, so that refusals leave time for the calls in flight.
pub const REFUSALS_PER_SECOND: u64 = 10_000;
/// How long such a refusal may wait, in milliseconds.
pub const REFUSAL_DELAY_MAX_MS: u64 = 1_000;
