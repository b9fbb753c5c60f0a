//! What the admin listener needs to know.

use std::net::{Ipv4Addr, SocketAddr};

/// The admin listener. TOML section `[admin]`.
#[derive(Debug, Clone)]
pub struct Config {
    /// `listen` (`ANTIPHON_ADMIN_LISTEN`): address and port of metrics,
    /// live and ready; port 0 takes a free one. Default: `127.0.0.1:9464`.
    pub listen: SocketAddr,
}

impl Default for Config {
    fn default() -> Self {
        Self { listen: SocketAddr::from((Ipv4Addr::LOCALHOST, 9464)) }
    }
}
