//! Questions to other servers over HTTP/1.1, with TLS where the URL says so.
//!
//! They are rare (schemas, keys of tokens), so each has a connection of its
//! own, and there is nothing to pool.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::header::HOST;
use http::{Request, StatusCode, Uri, request};
use http_body_util::{BodyExt as _, Full, Limited};
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use rustls_pki_types::ServerName;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_rustls::TlsConnector;

use crate::pem::{self, PemError};

/// Bytes of one answer.
const ANSWER_BYTES_MAX: usize = 4 * 1024 * 1024;

/// Settings that can't be used.
#[derive(Debug, thiserror::Error)]
pub enum WebClientError {
    /// The URL is none.
    #[error("{0:?} is no URL; expected http://HOST[:PORT][/PATH] or https://...")]
    Url(String),
    /// A certificate file is of no use.
    #[error(transparent)]
    Pem(#[from] PemError),
    /// TLS refuses the settings.
    #[error("TLS: {0}")]
    Tls(#[from] rustls::Error),
}

/// A server that is asked now and then.
pub struct WebClient {
    /// As it was configured, without a slash at its end.
    url: String,
    host: String,
    port: u16,
    /// In front of every path.
    base: String,
    tls: Option<TlsConnector>,
    timeout: Duration,
}

impl std::fmt::Debug for WebClient {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("WebClient").field("url", &self.url).finish_non_exhaustive()
    }
}

/// Splits a URL; `None` for what is none, or has a user in it.
pub fn parse_url(url: &str) -> Option<Uri> {
    let uri: Uri = url.parse().ok()?;
    let known = matches!(uri.scheme_str(), Some("http" | "https"));
    let plain = uri.host().is_some_and(|host| !host.is_empty()) && uri.query().is_none();
    (known && plain && !uri.authority()?.as_str().contains('@')).then_some(uri)
}

impl WebClient {
    /// A client of the server at `url`, whose certificate must lead to those in
    /// `ca_file`, or to the system's; nothing is connected to yet. A question
    /// and its answer may take `timeout`.
    ///
    /// # Errors
    /// The URL is none, or the certificates are of no use.
    pub fn new(url: &str, ca_file: Option<&Path>, timeout: Duration) -> Result<Self, WebClientError> {
        let uri = parse_url(url).ok_or_else(|| WebClientError::Url(url.to_owned()))?;
        let secure = uri.scheme_str() == Some("https");
        Ok(Self {
            url: url.trim_end_matches('/').to_owned(),
            host: uri.host().unwrap_or_default().to_owned(),
            port: uri.port_u16().unwrap_or(if secure { 443 } else { 80 }),
            base: uri.path().trim_end_matches('/').to_owned(),
            tls: if secure { Some(tls(ca_file)?) } else { None },
            timeout,
        })
    }

    /// Where it is, without a slash at its end.
    pub fn url(&self) -> &str {
        &self.url
    }

    /// Asks for what is at `path` behind the URL; `request` has what else is to
    /// be said.
    ///
    /// # Errors
    /// In words: no connection, no answer in time, or too long a one.
    pub async fn ask(
        &self,
        request: request::Builder,
        path: &str,
        body: Bytes,
    ) -> Result<(StatusCode, Bytes), String> {
        match timeout(self.timeout, self.send(request, path, body)).await {
            Ok(answer) => answer.map_err(|error| chain(&*error)),
            Err(_) => Err(format!("no answer within {:?}", self.timeout)),
        }
    }

    async fn send(
        &self,
        request: request::Builder,
        path: &str,
        body: Bytes,
    ) -> Result<(StatusCode, Bytes), Box<dyn std::error::Error + Send + Sync>> {
        let path = match format!("{}{path}", self.base) {
            empty if empty.is_empty() => "/".to_owned(),
            path => path,
        };
        let request =
            request.uri(path).header(HOST, format!("{}:{}", self.host, self.port)).body(Full::new(body))?;
        let bare = self.host.trim_start_matches('[').trim_end_matches(']');
        let tcp = TcpStream::connect((bare, self.port)).await?;
        match &self.tls {
            None => exchange(tcp, request).await,
            Some(tls) => {
                let name = ServerName::try_from(bare.to_owned())?;
                exchange(tls.connect(name, tcp).await?, request).await
            }
        }
    }
}

/// One request over a connection of its own, which this drives to its end.
async fn exchange(
    stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
    request: Request<Full<Bytes>>,
) -> Result<(StatusCode, Bytes), Box<dyn std::error::Error + Send + Sync>> {
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await?;
    let answer = async {
        let response = sender.send_request(request).await?;
        let status = response.status();
        let body = Limited::new(response.into_body(), ANSWER_BYTES_MAX).collect().await?;
        Ok((status, body.to_bytes()))
    };
    let (mut answer, mut connection) = (std::pin::pin!(answer), std::pin::pin!(connection));
    tokio::select! {
        answer = &mut answer => answer,
        // The answer hears of it, or has been read already.
        _ = &mut connection => answer.await,
    }
}

/// An error and its causes: hyper keeps them apart.
fn chain(error: &(dyn std::error::Error + 'static)) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        let cause_text = cause.to_string();
        if !text.contains(&cause_text) {
            text = format!("{text}: {cause_text}");
        }
        source = cause.source();
    }
    text
}

fn tls(ca_file: Option<&Path>) -> Result<TlsConnector, WebClientError> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()?
        .with_root_certificates(pem::roots(ca_file)?)
        .with_no_client_auth();
    Ok(TlsConnector::from(Arc::new(config)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn urls_are_told_from_anything_else() {
        for good in ["http://r:8081", "https://r", "http://[::1]:8081/apis/ccompat/v7/", "http://r/x"] {
            assert!(parse_url(good).is_some(), "{good}");
        }
        for bad in ["r:8081", "ftp://r", "http://", "http://me:pw@r", "/apis", "", "http://r/?x=1"] {
            assert!(parse_url(bad).is_none(), "{bad}");
        }
    }
}
