//! TLS on the gRPC listener. Certificates are read again while the process
//! runs: connections that begin after a change see the new ones.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use rustls::ServerConfig;
use rustls::server::WebPkiClientVerifier;
use rustls_pki_types::CertificateDer;
use tokio::net::TcpStream;
use tokio::sync::watch;
use tokio::time::{sleep, timeout};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;

use super::config::{ClientAuth, TlsConfig};
use crate::access::{Names, expires_at};
use crate::limits;
use crate::metrics::Metrics;
use crate::pem::{self, PemError};

/// How long a caller may take for its handshake.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_millis(limits::TLS_HANDSHAKE_TIMEOUT_MS);

/// Certificates that can't be used.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// A file of them.
    #[error("grpc.tls: {0}")]
    Pem(#[from] PemError),
    /// Certificate and key do not go together, or are not supported.
    #[error("grpc.tls: {}: {source}", cert_file.display())]
    Pair {
        /// The certificate's file.
        cert_file: PathBuf,
        /// Why.
        source: rustls::Error,
    },
    /// Nobody's certificate could ever be trusted.
    #[error("grpc.tls: {}: {source}", ca_file.display())]
    ClientCa {
        /// The file.
        ca_file: PathBuf,
        /// Why.
        source: rustls::server::VerifierBuilderError,
    },
}

/// The certificates of this moment, for whoever accepts connections.
#[derive(Debug, Clone)]
pub struct Tls {
    now: watch::Receiver<Arc<ServerConfig>>,
}

/// Keeps the certificates of a [`Tls`] fresh.
#[derive(Debug)]
pub struct Refresher {
    config: TlsConfig,
    web: bool,
    read: Vec<Vec<u8>>,
    sender: watch::Sender<Arc<ServerConfig>>,
    metrics: Arc<Metrics>,
}

/// Reads the certificates; `web` says whether HTTP/1.1 is spoken, too.
///
/// # Errors
/// They can't be used.
pub fn tls(config: &TlsConfig, web: bool, metrics: Arc<Metrics>) -> Result<(Tls, Refresher), TlsError> {
    let read = contents(config);
    let sender = watch::Sender::new(Arc::new(server_config(config, web, &metrics)?));
    let tls = Tls { now: sender.subscribe() };
    Ok((tls, Refresher { config: config.clone(), web, read, sender, metrics }))
}

impl Tls {
    /// Shakes hands; `None` when that fails or takes too long.
    pub(super) async fn accept(&self, stream: TcpStream) -> Option<TlsStream<TcpStream>> {
        let config = Arc::clone(&self.now.borrow());
        match timeout(HANDSHAKE_TIMEOUT, TlsAcceptor::from(config).accept(stream)).await {
            Ok(Ok(stream)) => Some(stream),
            Ok(Err(error)) => {
                tracing::info!(%error, "TLS handshake failed");
                None
            }
            Err(_) => {
                tracing::info!("TLS handshake took longer than {HANDSHAKE_TIMEOUT:?}");
                None
            }
        }
    }
}

impl Refresher {
    /// Never ends. Certificates that can't be used are said to be so, and those
    /// in use stay.
    pub async fn run(mut self) {
        loop {
            sleep(self.config.reload_interval).await;
            let read = contents(&self.config);
            if read == self.read {
                continue;
            }
            self.read = read;
            match server_config(&self.config, self.web, &self.metrics) {
                Ok(config) => {
                    self.sender.send_replace(Arc::new(config));
                    tracing::info!(cert_file = %self.config.cert_file.display(), "certificates read again");
                }
                Err(error) => tracing::error!(%error, "new certificates are of no use; the old ones stay"),
            }
        }
    }
}

/// What is in the files, to see whether it has changed. Small, and read rarely.
fn contents(config: &TlsConfig) -> Vec<Vec<u8>> {
    let files = [Some(&config.cert_file), Some(&config.key_file), config.client_ca_file.as_ref()];
    files.into_iter().flatten().map(|file| std::fs::read(file).unwrap_or_default()).collect()
}

fn server_config(config: &TlsConfig, web: bool, metrics: &Metrics) -> Result<ServerConfig, TlsError> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let pair = |source| TlsError::Pair { cert_file: config.cert_file.clone(), source };
    let builder = ServerConfig::builder_with_provider(Arc::clone(&provider))
        .with_safe_default_protocol_versions()
        .map_err(pair)?;
    let builder = match &config.client_ca_file {
        Some(ca_file) => {
            let roots = Arc::new(pem::roots(Some(ca_file))?);
            let mut verifier = WebPkiClientVerifier::builder_with_provider(roots, provider);
            if config.client_auth == ClientAuth::Optional {
                verifier = verifier.allow_unauthenticated();
            }
            let wrong = |source| TlsError::ClientCa { ca_file: ca_file.clone(), source };
            builder.with_client_cert_verifier(verifier.build().map_err(wrong)?)
        }
        None => builder.with_no_client_auth(),
    };
    let chain = pem::certificates(&config.cert_file)?;
    let expiry = chain.first().and_then(expires_at);
    let mut server = builder.with_single_cert(chain, pem::private_key(&config.key_file)?).map_err(pair)?;
    server.alpn_protocols.push(b"h2".to_vec());
    if web {
        server.alpn_protocols.push(b"http/1.1".to_vec());
    }
    metrics.certificate_expiry.set(expiry.unwrap_or_default());
    Ok(server)
}

/// The names in the certificate that the caller has shown.
pub(super) fn names(stream: &TlsStream<TcpStream>) -> Option<Names> {
    let (_, session) = stream.get_ref();
    session.peer_certificates().and_then(<[CertificateDer<'_>]>::first).map(Names::of)
}

/// Whether the caller has asked for HTTP/1.1.
pub(super) fn wants_http1(stream: &TlsStream<TcpStream>) -> bool {
    stream.get_ref().1.alpn_protocol() == Some(b"http/1.1")
}
