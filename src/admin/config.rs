//! What the admin listener needs to know.

use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;

/// The admin listener. TOML section `[admin]`.
#[derive(Debug, Clone)]
pub struct Config {
    /// `listen` (`ANTIPHON_ADMIN_LISTEN`): address and port of metrics,
    /// live and ready; port 0 takes a free one. Default: `127.0.0.1:9464`.
    pub listen: SocketAddr,
    /// `token_file` (`ANTIPHON_ADMIN_TOKEN_FILE`): file whose first line is the
    /// token that requests must carry. Default: none.
    pub token_file: Option<PathBuf>,
    /// `console` (`ANTIPHON_ADMIN_CONSOLE`): whether pages for operators are
    /// served, on loopback or with a token. Default: true.
    pub console: bool,
}

impl Default for Config {
    fn default() -> Self {
        Self { listen: SocketAddr::from((Ipv4Addr::LOCALHOST, 9464)), token_file: None, console: true }
    }
}
