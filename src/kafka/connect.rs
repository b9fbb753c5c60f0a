//! Clients from settings: TLS, SASL, and none of rskafka's own retries.

use std::sync::Arc;
use std::time::Duration;

use rskafka::BackoffConfig;
use rskafka::client::error::Error as ClientError;
use rskafka::client::{
    Client, ClientBuilder, Credentials, OauthBearerCredentials, SaslConfig as RskafkaSasl,
};

use futures_util::StreamExt as _;
use futures_util::stream::FuturesUnordered;
use tokio::net::TcpStream;
use tokio::time::{Instant, timeout, timeout_at};

use super::config::{Config, SaslConfig, SaslMechanism, Secret, TlsConfig};
use super::explain::{self, Deed};
use super::sasl;
use crate::limits;
use crate::pem::{self, PemError};
use crate::transport::ClusterError;

/// One look whether anybody listens.
const PROBE_TIMEOUT: Duration = Duration::from_millis(500);
/// How much later than the first another server may answer that look.
const PROBE_GRACE: Duration = Duration::from_millis(20);

/// Settings that can't be used, found before anything is connected.
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    /// A file of certificates or keys is of no use.
    #[error("kafka.tls: {0}")]
    Pem(#[from] PemError),
    /// Certificate and key do not go together, or are not supported.
    #[error("kafka.tls: {0}")]
    Tls(#[from] rustls::Error),
}

/// Makes clients that all have the same settings.
pub struct Connector {
    bootstrap_servers: Vec<String>,
    client_id: Arc<str>,
    tls: Option<Arc<rustls::ClientConfig>>,
    sasl: Option<SaslConfig>,
}

impl std::fmt::Debug for Connector {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Connector")
            .field("bootstrap_servers", &self.bootstrap_servers)
            .field("tls", &self.tls.is_some())
            .field("sasl", &self.sasl.is_some())
            .finish_non_exhaustive()
    }
}

impl Connector {
    /// Reads certificates and keys; connects nothing.
    pub fn new(config: &Config) -> Result<Self, ConnectError> {
        Ok(Self {
            bootstrap_servers: config.bootstrap_servers.clone(),
            client_id: config.client_id.as_str().into(),
            tls: config.tls.as_ref().map(tls).transpose()?,
            sasl: config.sasl.clone(),
        })
    }

    /// A client that has seen the cluster's metadata. The caller sets the time
    /// limit.
    pub(super) async fn connect(&self) -> Result<Client, ClusterError> {
        let mut builder = ClientBuilder::new(self.servers_that_listen().await)
            .client_id(Arc::clone(&self.client_id))
            .backoff_config(no_retries());
        if let Some(tls) = &self.tls {
            builder = builder.tls_config(Arc::clone(tls));
        }
        if let Some(sasl) = &self.sasl {
            builder = builder.sasl_config(rskafka_sasl(sasl));
        }
        builder.build().await.map_err(|error| self.explain(&error, Deed::new("Describe", "")))
    }
}

impl Connector {
    /// What has failed, in our words, and for whom.
    pub(super) fn explain(&self, error: &ClientError, deed: Deed<'_>) -> ClusterError {
        match (explain::cluster_error(error, deed), &self.sasl) {
            (ClusterError::Unreachable(text), Some(sasl)) => {
                ClusterError::Unreachable(explain::name_user(&text, || sasl::whose(sasl)))
            }
            (other, _) => other,
        }
    }

    /// Those bootstrap servers that take connections; all of them where none
    /// does, so that the error names them. rskafka tries one after the other,
    /// without a limit: a host that is down and answers nothing at all would
    /// use up the whole of `kafka.connect_timeout`.
    async fn servers_that_listen(&self) -> Vec<String> {
        if self.bootstrap_servers.len() < 2 {
            return self.bootstrap_servers.clone();
        }
        let mut probes: FuturesUnordered<_> = self
            .bootstrap_servers
            .iter()
            .map(|server| async move { TcpStream::connect(server).await.is_ok().then_some(server) })
            .collect();
        let mut listening = Vec::new();
        let mut limit = Instant::now() + PROBE_TIMEOUT;
        while let Ok(Some(answered)) = timeout_at(limit, probes.next()).await {
            if let Some(server) = answered {
                listening.push(server.clone());
                limit = limit.min(Instant::now() + PROBE_GRACE);
            }
        }
        if listening.is_empty() { self.bootstrap_servers.clone() } else { listening }
    }

    pub(super) fn bootstrap_servers(&self) -> &[String] {
        &self.bootstrap_servers
    }

    pub(super) fn tls(&self) -> Option<Arc<rustls::ClientConfig>> {
        self.tls.clone()
    }

    pub(super) fn sasl(&self) -> Option<&SaslConfig> {
        self.sasl.as_ref()
    }

    /// Nobody has answered within `limit`: whether anybody listens at all is
    /// what the reader of the error wants to know first.
    pub(super) async fn explain_silence(&self, limit: Duration) -> ClusterError {
        let mut listening = Vec::new();
        for server in &self.bootstrap_servers {
            if let Ok(Ok(_)) = timeout(PROBE_TIMEOUT, TcpStream::connect(server)).await {
                listening.push(server.as_str());
            }
        }
        let text = if listening.is_empty() {
            format!(
                "no answer within {limit:?}, not even to a TCP connection: is the address right, is a firewall between?"
            )
        } else {
            format!(
                "no answer within {limit:?}, although {} takes connections: is this a Kafka broker, \
                 and does it expect TLS where none is set?",
                listening.join(",")
            )
        };
        ClusterError::Unreachable(text)
    }
}

/// A deadline of zero makes the first failure final, so that what is retried,
/// and whether it may be, is decided by us. (A zero `init_backoff` panics.)
fn no_retries() -> BackoffConfig {
    BackoffConfig {
        init_backoff: Duration::from_millis(1),
        max_backoff: Duration::from_millis(limits::RETRY_BACKOFF_MAX_MS),
        base: 3.0,
        deadline: Some(Duration::ZERO),
    }
}

fn rskafka_sasl(config: &SaslConfig) -> RskafkaSasl {
    let password = password_now(config);
    let credentials = || Credentials::new(config.username.clone(), password.reveal().to_owned());
    match config.mechanism {
        SaslMechanism::Plain => RskafkaSasl::Plain(credentials()),
        SaslMechanism::ScramSha256 => RskafkaSasl::ScramSha256(credentials()),
        SaslMechanism::ScramSha512 => RskafkaSasl::ScramSha512(credentials()),
        SaslMechanism::OauthBearer => {
            let config = config.clone();
            RskafkaSasl::Oauthbearer(OauthBearerCredentials {
                callback: Arc::new(move || {
                    let config = config.clone();
                    Box::pin(async move { Ok(password_now(&config).reveal().to_owned()) })
                }),
                authz_id: None,
                bearer_kvs: Vec::new(),
            })
        }
    }
}

/// The password as its file has it now: it may have been changed since the
/// start, as tokens and rotated passwords are. The last known one where the
/// file can't be read.
pub(super) fn password_now(config: &SaslConfig) -> Secret {
    let Some(file) = &config.password_file else { return config.password.clone() };
    match std::fs::read_to_string(file) {
        Ok(text) if !text.trim().is_empty() => Secret::new(text.lines().next().unwrap_or_default()),
        Ok(_) => config.password.clone(),
        Err(error) => {
            tracing::warn!(file = %file.display(), %error, "password file not read again; the last password stays");
            config.password.clone()
        }
    }
}

fn tls(config: &TlsConfig) -> Result<Arc<rustls::ClientConfig>, ConnectError> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let builder = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()?
        .with_root_certificates(pem::roots(config.ca_file.as_deref())?);
    let config = match (&config.cert_file, &config.key_file) {
        (Some(certificate), Some(key)) => {
            builder.with_client_auth_cert(pem::certificates(certificate)?, pem::private_key(key)?)?
        }
        _ => builder.with_no_client_auth(),
    };
    Ok(Arc::new(config))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kafka::config::Secret;

    #[test]
    fn secrets_do_not_show() {
        let config = Config {
            sasl: Some(SaslConfig {
                mechanism: SaslMechanism::Plain,
                username: "gateway".to_owned(),
                password: Secret::new("hunter2"),
                password_file: None,
            }),
            ..Config::default()
        };
        let connector = Connector::new(&config).unwrap();
        assert!(!format!("{config:?} {connector:?}").contains("hunter2"));
    }

    #[tokio::test]
    async fn a_server_that_is_down_is_not_waited_for() {
        let up = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let up = up.local_addr().map(|address| (up, address.to_string())).unwrap();
        let refuses = {
            let free = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
            free.local_addr().unwrap().to_string()
        };
        // Reserved for documentation (RFC 5737): nobody answers, or a router says so.
        let silent = "192.0.2.1:9092".to_owned();
        let connector = |servers: &[&String]| {
            let bootstrap_servers = servers.iter().map(|server| (*server).clone()).collect();
            Connector::new(&Config { bootstrap_servers, ..Config::default() }).unwrap()
        };
        let began = Instant::now();
        let listening = connector(&[&silent, &refuses, &up.1]).servers_that_listen().await;
        assert_eq!(listening, [up.1.as_str()]);
        assert!(began.elapsed() < PROBE_TIMEOUT);
        // Where nobody listens the error must name them all.
        let listening = connector(&[&silent, &refuses]).servers_that_listen().await;
        assert_eq!(listening, [silent, refuses]);
    }

    #[test]
    fn a_missing_certificate_is_named() {
        let tls = TlsConfig { ca_file: Some("no/such.pem".into()), ..TlsConfig::default() };
        let refused = Connector::new(&Config { tls: Some(tls), ..Config::default() });
        assert!(refused.unwrap_err().to_string().starts_with("kafka.tls: no/such.pem: "));
    }
}
