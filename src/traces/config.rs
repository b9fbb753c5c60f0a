//! What traces need to know.

use std::path::PathBuf;
use std::time::Duration;

/// Traces. TOML section `[traces]`; on where `endpoint` is set.
#[derive(Debug, Clone, PartialEq)]
pub struct Config {
    /// `endpoint` (`ANTIPHON_TRACES_ENDPOINT`): URL that spans are posted to, as
    /// OTLP over HTTP in protobuf.
    pub endpoint: String,
    /// `ratio` (`ANTIPHON_TRACES_RATIO`): the share of traces that begin here
    /// and are recorded, 0 to 1. Default: 0.01.
    pub ratio: f64,
    /// `service_name` (`ANTIPHON_TRACES_SERVICE_NAME`). Default: antiphon.
    pub service_name: String,
    /// `resource` (`ANTIPHON_TRACES_RESOURCE`): further attributes of the
    /// process, name and value. Default: none.
    pub resource: Vec<(String, String)>,
    /// `headers`, `headers_file` (`ANTIPHON_TRACES_HEADERS`): HTTP headers of
    /// each export, such as a token; name and value. Default: none.
    pub headers: Headers,
    /// `timeout` (`ANTIPHON_TRACES_TIMEOUT`): one export. Default: 10s.
    pub timeout: Duration,
    /// `ca_file` (`ANTIPHON_TRACES_CA_FILE`): PEM certificates that the
    /// collector's must lead to. Default: the system's.
    pub ca_file: Option<PathBuf>,
}

/// HTTP headers whose values are not shown.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct Headers(pub Vec<(String, String)>);

impl std::fmt::Debug for Headers {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_list().entries(self.0.iter().map(|(name, _)| name)).finish()
    }
}

impl Default for Config {
    fn default() -> Self {
        Self {
            endpoint: String::new(),
            ratio: 0.01,
            service_name: "antiphon".to_owned(),
            resource: Vec::new(),
            headers: Headers::default(),
            timeout: Duration::from_secs(10),
            ca_file: None,
        }
    }
}
