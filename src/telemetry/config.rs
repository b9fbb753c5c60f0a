//! What logging needs to know.

/// Logs. TOML section `[log]`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Config {
    /// `format` (`ANTIPHON_LOG_FORMAT`): `text` or `json`. Default: text.
    pub format: LogFormat,
    /// `filter` (`ANTIPHON_LOG_FILTER`): as tracing-subscriber's
    /// `EnvFilter` reads it. Default: `info,rskafka=warn`.
    pub filter: String,
}

/// Shape of a log line.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LogFormat {
    /// One line for people.
    Text,
    /// One JSON object a line.
    Json,
}

impl Default for Config {
    fn default() -> Self {
        Self { format: LogFormat::Text, filter: "info,rskafka=warn".to_owned() }
    }
}
