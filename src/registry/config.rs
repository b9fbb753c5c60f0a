//! What the schema registry's client needs to know.

use std::path::PathBuf;
use std::time::Duration;

use crate::terms::Secret;

/// The schema registry. TOML section `[schema_registry]`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Config {
    /// `url` (`ANTIPHON_SCHEMA_REGISTRY_URL`): `http` or `https`; with
    /// Apicurio it ends with `/apis/ccompat/v7`.
    pub url: String,
    /// `username` (`ANTIPHON_SCHEMA_REGISTRY_USERNAME`) and `password`
    /// (`ANTIPHON_SCHEMA_REGISTRY_PASSWORD`), or what `password_file` holds.
    /// Default: none.
    pub credentials: Option<(String, Secret)>,
    /// `register` (`ANTIPHON_SCHEMA_REGISTRY_REGISTER`): register the schemas
    /// of requests, instead of using the latest of their subjects. Default:
    /// true.
    pub register: bool,
    /// `timeout` (`ANTIPHON_SCHEMA_REGISTRY_TIMEOUT`): one question, with its
    /// answer. Default: 5s.
    pub timeout: Duration,
    /// `ca_file` (`ANTIPHON_SCHEMA_REGISTRY_CA_FILE`): PEM certificates that
    /// the registry's must lead to. Default: the system's.
    pub ca_file: Option<PathBuf>,
}
