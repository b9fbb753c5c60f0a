//! What the access log needs to know.

use std::path::PathBuf;

/// The access log. TOML section `[access_log]`.
#[derive(Debug, Clone, PartialEq)]
pub struct Config {
    /// `enabled` (`ANTIPHON_ACCESS_LOG_ENABLED`): whether there is one.
    /// Default: true.
    pub enabled: bool,
    /// `good_share` (`ANTIPHON_ACCESS_LOG_GOOD_SHARE`): the share of good calls
    /// that have a line, 0 to 1; each failed call has one. Default: 0.01.
    pub good_share: f64,
    /// `file` (`ANTIPHON_ACCESS_LOG_FILE`): where the lines go. Default:
    /// standard error.
    pub file: Option<PathBuf>,
    /// `format` (`ANTIPHON_ACCESS_LOG_FORMAT`): `text` or `json`. Default: JSON
    /// in a file, else as `log.format`.
    pub format: Format,
}

/// Shape of a line.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Format {
    /// `name=value`, for people.
    Text,
    /// One JSON object.
    Json,
}

impl Default for Config {
    fn default() -> Self {
        Self { enabled: true, good_share: 0.01, file: None, format: Format::Text }
    }
}
