//! What the gRPC listener needs to know.

use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use crate::access::{Policy, TokenRules};
use crate::limits;
pub use crate::terms::ClientAuth;

/// The gRPC listener. TOML section `[grpc]`.
#[derive(Debug, Clone)]
pub struct Config {
    /// `listen` (`ANTIPHON_GRPC_LISTEN`): address and port; port 0 takes a
    /// free one. Default: `0.0.0.0:50051`.
    pub listen: SocketAddr,
    /// `message_bytes_max` (`ANTIPHON_GRPC_MESSAGE_BYTES_MAX`): one
    /// message, each way, after decompression. Default: 4 MiB.
    pub message_bytes_max: usize,
    /// `reflection` (`ANTIPHON_GRPC_REFLECTION`): answer
    /// `grpc.reflection.v1` and `v1alpha`. Default: true.
    pub reflection: bool,
    /// `metadata_forward` (`ANTIPHON_GRPC_METADATA_FORWARD`, comma
    /// separated): request metadata that goes into record headers. Default:
    /// none. `authorization` goes only when it is named here.
    pub metadata_forward: Vec<String>,
    /// `metadata_return` (`ANTIPHON_GRPC_METADATA_RETURN`, comma
    /// separated): reply headers that become response metadata. Default:
    /// none.
    pub metadata_return: Vec<String>,
    /// `trailers_return` (`ANTIPHON_GRPC_TRAILERS_RETURN`, comma separated):
    /// reply headers that become trailers. Default: none.
    pub trailers_return: Vec<String>,
    /// `web_origins` (`ANTIPHON_GRPC_WEB_ORIGINS`, comma separated): origins,
    /// as `https://app.example.com`, whose pages may call by gRPC-Web; `*` is
    /// every origin. Default: none, and gRPC-Web and HTTP/1.1 are off.
    pub web_origins: Vec<String>,
    /// `connections_max` (`ANTIPHON_GRPC_CONNECTIONS_MAX`), process-wide;
    /// more are closed at once. Default: 10,000.
    pub connections_max: u32,
    /// `streams_per_connection_max`
    /// (`ANTIPHON_GRPC_STREAMS_PER_CONNECTION_MAX`)
    /// (SETTINGS_MAX_CONCURRENT_STREAMS). Default: 1,000.
    pub streams_per_connection_max: u32,
    /// `keep_alive_interval` (`ANTIPHON_GRPC_KEEP_ALIVE_INTERVAL`): an
    /// HTTP/2 ping after this much quiet. Default: 30s.
    pub keep_alive_interval: Duration,
    /// `keep_alive_timeout` (`ANTIPHON_GRPC_KEEP_ALIVE_TIMEOUT`): a
    /// connection whose ping is not answered within this is closed.
    /// Default: 20s.
    pub keep_alive_timeout: Duration,
    /// `connection_age_max` (`ANTIPHON_GRPC_CONNECTION_AGE_MAX`): a connection
    /// is told to go (GOAWAY) after this, so that callers behind a balancer of
    /// connections spread anew. Its calls may finish. Default: none.
    pub connection_age_max: Option<Duration>,
    /// `[grpc.tls]`: present when callers speak TLS.
    pub tls: Option<TlsConfig>,
    /// `[access]`: present when not everybody may call everything.
    pub access: Option<AccessConfig>,
}

/// TLS towards callers. TOML section `[grpc.tls]`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TlsConfig {
    /// `cert_file` (`ANTIPHON_GRPC_TLS_CERT_FILE`): PEM chain to show callers.
    pub cert_file: PathBuf,
    /// `key_file` (`ANTIPHON_GRPC_TLS_KEY_FILE`): PEM private key of it.
    pub key_file: PathBuf,
    /// `client_ca_file` (`ANTIPHON_GRPC_TLS_CLIENT_CA_FILE`): PEM certificates
    /// that callers' certificates must lead to. Default: callers are not asked
    /// for any.
    pub client_ca_file: Option<PathBuf>,
    /// `client_auth` (`ANTIPHON_GRPC_TLS_CLIENT_AUTH`). Default: `required`.
    pub client_auth: ClientAuth,
    /// `reload_interval` (`ANTIPHON_GRPC_TLS_RELOAD_INTERVAL`): how often the
    /// files are looked at. Default: 10s.
    pub reload_interval: Duration,
}

/// Who may call what. TOML section `[access]`.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct AccessConfig {
    /// `allow` (`ANTIPHON_ACCESS_ALLOW`).
    pub policy: Policy,
    /// Where the keys of tokens are. Default: tokens are not looked at.
    pub keys: Option<KeySource>,
    /// `issuer`, `audience`, `leeway`.
    pub tokens: TokenRules,
    /// `jwks_refresh` (`ANTIPHON_ACCESS_JWKS_REFRESH`): how often the keys are
    /// read again. Default: 1m.
    pub keys_refresh: Duration,
}

/// Where a JWK set is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum KeySource {
    /// `jwks_file` (`ANTIPHON_ACCESS_JWKS_FILE`).
    File(PathBuf),
    /// `jwks_url` (`ANTIPHON_ACCESS_JWKS_URL`), and the certificates that its
    /// own must lead to, `jwks_ca_file` (`ANTIPHON_ACCESS_JWKS_CA_FILE`).
    Url(String, Option<PathBuf>),
}

impl Default for Config {
    fn default() -> Self {
        Self {
            listen: SocketAddr::from((Ipv4Addr::UNSPECIFIED, 50051)),
            message_bytes_max: limits::MESSAGE_BYTES_MAX,
            reflection: true,
            metadata_forward: Vec::new(),
            metadata_return: Vec::new(),
            trailers_return: Vec::new(),
            web_origins: Vec::new(),
            connections_max: limits::CONNECTIONS_MAX,
            streams_per_connection_max: limits::STREAMS_PER_CONNECTION_MAX,
            keep_alive_interval: Duration::from_millis(limits::KEEP_ALIVE_INTERVAL_MS),
            keep_alive_timeout: Duration::from_millis(limits::KEEP_ALIVE_TIMEOUT_MS),
            connection_age_max: None,
            tls: None,
            access: None,
        }
    }
}
