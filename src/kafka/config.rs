//! What the Kafka edge needs to know.

use std::path::PathBuf;
use std::time::Duration;

use crate::limits;
pub use crate::terms::Secret;

use crate::terms::Compression;

/// The cluster and how to talk to it. TOML section `[kafka]`.
#[derive(Debug, Clone)]
pub struct Config {
    /// `bootstrap_servers` (`ANTIPHON_KAFKA_BOOTSTRAP_SERVERS`, comma
    /// separated): brokers to ask for the rest, `host:port` each. Default:
    /// `127.0.0.1:9092`.
    pub bootstrap_servers: Vec<String>,
    /// `client_id` (`ANTIPHON_KAFKA_CLIENT_ID`): the name that brokers log
    /// and set quotas by. Default: `antiphon`.
    pub client_id: String,
    /// `compression` (`ANTIPHON_KAFKA_COMPRESSION`) of request batches.
    /// Default: none.
    pub compression: Compression,
    /// `connect_timeout` (`ANTIPHON_KAFKA_CONNECT_TIMEOUT`): one attempt to
    /// connect, metadata included. Default: 5s.
    pub connect_timeout: Duration,
    /// `produce_timeout` (`ANTIPHON_KAFKA_PRODUCE_TIMEOUT`): one produce
    /// until its acknowledgement; after that its outcome is unknown.
    /// Default: 10s.
    pub produce_timeout: Duration,
    /// `metadata_refresh` (`ANTIPHON_KAFKA_METADATA_REFRESH`): how often
    /// topics and partitions are looked up. Default: 10s.
    pub metadata_refresh: Duration,
    /// `[kafka.tls]`: present when brokers are spoken to over TLS.
    pub tls: Option<TlsConfig>,
    /// `[kafka.sasl]`: present when brokers ask who we are.
    pub sasl: Option<SaslConfig>,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            bootstrap_servers: vec!["127.0.0.1:9092".to_owned()],
            client_id: "antiphon".to_owned(),
            compression: Compression::None,
            connect_timeout: Duration::from_millis(limits::KAFKA_CONNECT_TIMEOUT_MS),
            produce_timeout: Duration::from_millis(limits::PRODUCE_TIMEOUT_MS),
            metadata_refresh: Duration::from_millis(limits::METADATA_REFRESH_MS),
            tls: None,
            sasl: None,
        }
    }
}

/// TLS towards the brokers. TOML section `[kafka.tls]`.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct TlsConfig {
    /// `ca_file` (`ANTIPHON_KAFKA_TLS_CA_FILE`): PEM certificates that
    /// broker certificates must lead to.
    pub ca_file: Option<PathBuf>,
    /// `cert_file` (`ANTIPHON_KAFKA_TLS_CERT_FILE`): PEM chain to show the
    /// broker (mutual TLS).
    pub cert_file: Option<PathBuf>,
    /// `key_file` (`ANTIPHON_KAFKA_TLS_KEY_FILE`): PEM private key of
    /// `cert_file`.
    pub key_file: Option<PathBuf>,
}

/// SASL towards the brokers. TOML section `[kafka.sasl]`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SaslConfig {
    /// `mechanism` (`ANTIPHON_KAFKA_SASL_MECHANISM`): `PLAIN`,
    /// `SCRAM-SHA-256`, `SCRAM-SHA-512` or `OAUTHBEARER`.
    pub mechanism: SaslMechanism,
    /// `username` (`ANTIPHON_KAFKA_SASL_USERNAME`); not for OAUTHBEARER.
    pub username: String,
    /// `password` (`ANTIPHON_KAFKA_SASL_PASSWORD`), or what `password_file`
    /// holds; for OAUTHBEARER the token.
    pub password: Secret,
    /// `password_file` (`ANTIPHON_KAFKA_SASL_PASSWORD_FILE`): read again for
    /// each new connection, so that passwords and tokens can rotate.
    pub password_file: Option<PathBuf>,
}

/// How SASL proves who we are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SaslMechanism {
    /// RFC 4616.
    Plain,
    /// RFC 7677.
    ScramSha256,
    /// RFC 7677 with SHA-512.
    ScramSha512,
    /// RFC 7628.
    OauthBearer,
}
