//! Every setting by section, name, kind and default: one table that reads the
//! layers, knows what is unknown, and makes the reference.

use std::path::PathBuf;

use super::kinds::{
    Bytes, Listen, LogFormat, Mechanism, MetadataNames, OrdinalWord, Origins, Pause, Rules, Servers, Share,
    Time,
};
use super::layers::Layers;
use super::raw::{Found, FromRaw, Paths, Term};
use crate::kafka::config::Secret;
use crate::route::Mistakes;
use crate::terms::{ClientAuth, Compression, CorrelationForm, PartitionForm, ReplyRouting};

/// One setting.
#[derive(Debug)]
pub(super) struct Row {
    /// Section in the TOML file; empty at its top.
    pub(super) section: &'static str,
    /// Name within the section.
    pub(super) name: &'static str,
    /// What it takes.
    pub(super) kind: &'static str,
    /// What holds when it is not set; empty for nothing.
    pub(super) default: &'static str,
    /// What it is for.
    pub(super) doc: &'static str,
}

impl Row {
    /// The environment variable that sets it.
    pub(super) fn variable(&self) -> String {
        let section = self.section.replace('.', "_");
        let parts = ["ANTIPHON", &section, self.name];
        let parts = parts.into_iter().filter(|part| !part.is_empty());
        parts.collect::<Vec<_>>().join("_").to_ascii_uppercase()
    }
}

macro_rules! sections {
    ($($(#[$doc:meta])* $part:ident in $section:literal {
        $($(#[doc = $text:literal])+ $field:ident: $kind:ty = $default:literal,)+
    })+) => {
        $(
            $(#[$doc])*
            pub(super) struct $part {
                $(pub(super) $field: Option<Found<$kind>>,)+
            }

            impl $part {
                /// Reads the section from all layers.
                pub(super) fn read(layers: &Layers, mistakes: &mut Mistakes) -> Self {
                    Self { $($field: layers.read($section, stringify!($field), mistakes),)+ }
                }
            }
        )+

        /// Every setting, section by section.
        pub(super) const ROWS: &[Row] = &[$($(Row {
            section: $section,
            name: stringify!($field),
            kind: <$kind as FromRaw>::EXPECTED,
            default: $default,
            doc: concat!($($text),+),
        },)+)+];
    };
}

sections! {
    /// The top of the file.
    Top in "" {
        /// Shards, each a thread with connections of its own; 1 to 256.
        /// Default: one per core.
        shards: i64 = "",
    }

    /// The cluster.
    Kafka in "kafka" {
        /// Brokers to ask for the rest.
        bootstrap_servers: Servers = "127.0.0.1:9092",
        /// Name that brokers log and set quotas by.
        client_id: String = "antiphon",
        /// Compression of request batches: none, gzip, snappy, lz4 or zstd.
        compression: Term<Compression> = "none",
        /// One attempt to connect, metadata included.
        connect_timeout: Time = "5s",
        /// One produce until its acknowledgement; after that its outcome is
        /// unknown.
        produce_timeout: Time = "10s",
        /// How often topics and partitions are looked up.
        metadata_refresh: Time = "10s",
    }

    /// TLS towards the brokers.
    Tls in "kafka.tls" {
        /// Whether brokers are spoken to over TLS. Default: when anything in
        /// this section is set.
        enabled: bool = "",
        /// PEM certificates that broker certificates must lead to.
        ca_file: PathBuf = "",
        /// PEM chain to show the broker (mutual TLS).
        cert_file: PathBuf = "",
        /// PEM private key of cert_file.
        key_file: PathBuf = "",
    }

    /// SASL towards the brokers.
    Sasl in "kafka.sasl" {
        /// PLAIN, SCRAM-SHA-256, SCRAM-SHA-512 or OAUTHBEARER.
        mechanism: Term<Mechanism> = "",
        /// User name; not for OAUTHBEARER.
        username: String = "",
        /// Password; for OAUTHBEARER the token. password_file keeps it out of
        /// the configuration.
        password: Secret = "",
        /// File whose first line is the password; read again for each new
        /// connection, so that it can change.
        password_file: PathBuf = "",
    }

    /// The gRPC listener.
    Grpc in "grpc" {
        /// Address and port; port 0 takes a free one.
        listen: Listen = "0.0.0.0:50051",
        /// One message, each way, after decompression.
        message_bytes_max: Bytes = "4MiB",
        /// Whether grpc.reflection.v1 and v1alpha are answered.
        reflection: bool = "true",
        /// Request metadata that goes into record headers. authorization goes
        /// only when it is named here.
        metadata_forward: MetadataNames = "",
        /// Reply headers that become response metadata, in front of the message.
        metadata_return: MetadataNames = "",
        /// Reply headers that become trailers of the response.
        trailers_return: MetadataNames = "",
        /// Origins, as https://app.example.com, whose pages may call by
        /// gRPC-Web; * is every origin. With none, gRPC-Web and HTTP/1.1 are
        /// off.
        web_origins: Origins = "",
        /// Connections, process-wide; more are closed at once.
        connections_max: i64 = "10000",
        /// Streams that one connection may have open.
        streams_per_connection_max: i64 = "1000",
        /// An HTTP/2 ping after this much quiet.
        keep_alive_interval: Time = "30s",
        /// A connection whose ping is not answered within this is closed.
        keep_alive_timeout: Time = "20s",
        /// A connection is told to go (GOAWAY) after this, give or take a tenth,
        /// so that callers behind a balancer of connections spread anew; its
        /// calls may finish. Default: never.
        connection_age_max: Time = "",
    }

    /// TLS towards callers. The files are read again when they change.
    GrpcTls in "grpc.tls" {
        /// PEM chain to show callers.
        cert_file: PathBuf = "",
        /// PEM private key of cert_file.
        key_file: PathBuf = "",
        /// PEM certificates that callers' certificates must lead to. Default:
        /// callers are not asked for any.
        client_ca_file: PathBuf = "",
        /// required or optional: whether callers must show a certificate.
        /// Default: required, with client_ca_file.
        client_auth: Term<ClientAuth> = "",
        /// How often the files are looked at. Default: 10s.
        reload_interval: Time = "",
    }

    /// Who may call what. With this section, what no rule allows is refused,
    /// health checks apart.
    Access in "access" {
        /// Rules, as \"WHO -> WHAT\". WHO is anyone, authenticated, cert:PATTERN
        /// (a name in the client's certificate) or token:CLAIM=PATTERN (a claim of
        /// its token; several joined by &). WHAT is *, package.Service/* or
        /// package.Service/Method. In a pattern * is any text.
        allow: Rules = "",
        /// File with the JWK set that tokens are checked with.
        jwks_file: PathBuf = "",
        /// URL of it, http or https.
        jwks_url: String = "",
        /// PEM certificates that the certificate of jwks_url must lead to.
        /// Default: the system's.
        jwks_ca_file: PathBuf = "",
        /// How often the keys are read again. Default: 1m.
        jwks_refresh: Time = "",
        /// Issuer that a token must name (iss). Default: any.
        issuer: String = "",
        /// Audience that a token must name (aud). Default: any.
        audience: String = "",
        /// How far the issuer's clock may differ from ours. Default: 30s.
        leeway: Time = "",
    }

    /// The admin listener.
    Admin in "admin" {
        /// Address and port of metrics, live and ready; port 0 takes a free
        /// one.
        listen: Listen = "127.0.0.1:9464",
        /// File whose first line is the token that requests must carry
        /// (authorization: Bearer); read again for each. Default: none, and
        /// whoever reaches the listener may read.
        token_file: PathBuf = "",
        /// Whether /console is served: pages for operators, only on loopback or
        /// with token_file.
        console: bool = "true",
    }

    /// Bounds on what is held.
    Limits in "limits" {
        /// Calls in flight, process-wide.
        in_flight_max: i64 = "20000",
        /// Bytes of request messages held by calls in flight, process-wide.
        bytes_held_max: Bytes = "512MiB",
        /// Records waiting for one partition, per shard.
        lane_queue_max: i64 = "10000",
    }

    /// How replies come back.
    Reply in "reply" {
        /// How replies find the instance that waits for them: instance-topic,
        /// partition or shared.
        routing: Term<ReplyRouting> = "instance-topic",
        /// The reply topic that instances share; for partition and shared
        /// routing, which need it. Created where it is missing.
        topic: String = "",
        /// Partitions of a reply topic that is created; at least one per shard.
        /// Default: one per shard; 32 for partition routing.
        partitions: i64 = "",
        /// For partition routing, instead of leases: a number, or hostname for
        /// the one that ends the host's name. Shard s of process o has partition
        /// o * shards + s.
        ordinal: OrdinalWord = "",
        /// How long nothing may be heard of the holder of a leased partition
        /// before another may claim it.
        lease_ttl: Time = "15s",
        /// How long what was read stays on a shared reply topic with partition
        /// routing; not less than any instance's calls may take. Default: the
        /// longest that a call may take.
        keep: Time = "",
        /// How long no heartbeat must have come from another instance's reply
        /// topic before it is removed.
        orphan_after: Time = "30s",
        /// Reply topics with this prefix, this instance's included; a start
        /// beyond that is refused.
        instances_max: i64 = "1000",
        /// The reply topic is `<prefix>.<instance>`.
        topic_prefix: String = "antiphon.reply",
        /// Names this process; 1 to 100 of a-z, A-Z, 0-9, '_' and '-'.
        /// Default: the host name and a random part.
        instance: String = "",
        /// Replication factor of the reply topic; -1 for the cluster's own.
        replication_factor: i64 = "-1",
        /// How long the broker may hold a fetch that finds nothing.
        fetch_wait: Time = "500ms",
        /// How often an instance writes a heartbeat to its reply topic.
        heartbeat_interval: Time = "3s",
        /// How long the start may take before it is given up.
        start_timeout: Time = "30s",
    }

    /// Calls that carry an idempotency-key.
    Idempotency in "idempotency" {
        /// How long a key is remembered, and a late reply to it waited for.
        window: Time = "5m",
        /// Keys remembered, process-wide.
        keys_max: i64 = "100000",
        /// Bytes of kept replies, process-wide; the oldest go first.
        bytes_max: Bytes = "64MiB",
    }

    /// Failing fast when a topic's workers do not answer.
    Circuit in "circuit" {
        /// So many time-outs in a row on one request topic open its circuit; 0
        /// never does.
        timeouts_max: i64 = "0",
        /// How long calls are refused before one of them is let through to try.
        open_for: Time = "10s",
    }

    /// The end of a process.
    Drain in "drain" {
        /// Between turning NOT_SERVING and refusing new calls.
        notice: Pause = "0s",
        /// How long calls in flight may go on after SIGTERM.
        timeout: Pause = "30s",
    }

    /// Logs.
    Log in "log" {
        /// text or json.
        format: Term<LogFormat> = "text",
        /// What is logged, as tracing-subscriber's EnvFilter reads it.
        filter: String = "info,rskafka=warn",
    }

    /// A line for each call that failed, and for a share of the others.
    AccessLog in "access_log" {
        /// Whether there is one.
        enabled: bool = "true",
        /// Share of good calls that have a line, 0 to 1; each failed call has
        /// one.
        good_share: Share = "0.01",
        /// Where the lines go; opened anew when it was moved away. Default:
        /// standard error.
        file: PathBuf = "",
        /// text or json. Default: json in a file, else as log.format.
        format: Term<LogFormat> = "",
    }

    /// Spans of sampled calls. The variables of OpenTelemetry that are named
    /// are read, too, and everything else wins over them.
    Traces in "traces" {
        /// URL that spans are posted to, as OTLP over HTTP in protobuf, its path
        /// included (OTEL_EXPORTER_OTLP_TRACES_ENDPOINT; or
        /// OTEL_EXPORTER_OTLP_ENDPOINT without the path). Default: none, and
        /// nothing is sampled.
        endpoint: String = "",
        /// Share of the traces that begin here that are recorded, 0 to 1; of
        /// others their beginning decides (OTEL_TRACES_SAMPLER).
        ratio: Share = "0.01",
        /// Name of the service (OTEL_SERVICE_NAME).
        service_name: String = "antiphon",
        /// Further attributes of the process, as name=value
        /// (OTEL_RESOURCE_ATTRIBUTES).
        resource: Vec<String> = "",
        /// HTTP headers of each export, as name=value
        /// (OTEL_EXPORTER_OTLP_HEADERS). headers_file keeps secrets out of the
        /// configuration.
        headers: Secret = "",
        /// File with such headers, one a line.
        headers_file: PathBuf = "",
        /// One export. Default: 10s.
        timeout: Time = "",
        /// PEM certificates that the collector's must lead to. Default: the
        /// system's.
        ca_file: PathBuf = "",
    }

    /// Headers of the dialect custom.
    CustomDialect in "custom_dialect" {
        /// Header of requests and replies for the correlation id; must be set
        /// where a method has the dialect custom.
        correlation_id: String = "",
        /// How it is written: text (36 characters) or binary (16 bytes).
        /// Default: text.
        correlation_form: Term<CorrelationForm> = "",
        /// Header of requests for the reply topic; must be set where a method
        /// has the dialect custom.
        reply_topic: String = "",
        /// Header of requests for the reply partition. Default: none, and any
        /// partition will do.
        reply_partition: String = "",
        /// How it is written: int32 (4 bytes, big-endian) or decimal. Default:
        /// int32.
        reply_partition_form: Term<PartitionForm> = "",
        /// Header of replies for a gRPC status in decimal; absent or 0 for OK.
        /// Default: none but grpc-status.
        error_code: String = "",
        /// Header of replies for what went wrong; without error_code its
        /// presence is the error, UNKNOWN. Default: none but grpc-message.
        error_message: String = "",
        /// Header of replies that no other one follows, for methods that
        /// collect several. Default: antiphon-last.
        last: String = "",
    }

    /// Schemas of messages, for the format confluent-protobuf.
    SchemaRegistry in "schema_registry" {
        /// Where it is, http or https, up to what is common to all paths of
        /// Confluent's API; with Apicurio it ends with /apis/ccompat/v7.
        url: String = "",
        /// User name for basic authentication.
        username: String = "",
        /// Password for basic authentication. password_file keeps it out of
        /// the configuration.
        password: Secret = "",
        /// File whose first line is the password.
        password_file: PathBuf = "",
        /// Register the schemas of requests, instead of using the latest of
        /// their subjects. Default: true.
        register: bool = "",
        /// One question, with its answer. Default: 5s.
        timeout: Time = "",
        /// PEM certificates that the registry's must lead to. Default: the
        /// system's.
        ca_file: PathBuf = "",
    }

    /// What is served.
    Proto in "proto" {
        /// .proto files whose services are served.
        files: Paths = "",
        /// Folders in which imports are looked for. Default: the folders that
        /// the files' packages count from, and the current folder.
        include_paths: Paths = "",
        /// Encoded FileDescriptorSets whose services are served.
        descriptor_sets: Paths = "",
    }
}
