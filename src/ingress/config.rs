//! What the gRPC listener needs to know.

use std::net::{Ipv4Addr, SocketAddr};
use std::time::Duration;

use crate::limits;

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
        }
    }
}
