//! A schema registry with Confluent's API, over HTTP: Confluent's own, Karapace,
//! Apicurio, Redpanda. Source: "Schema Registry API Reference" of Confluent.
//!
//! Questions are rare (at the start, and once for each schema that replies
//! name), so each has a connection of its own, and there is nothing to pool.

pub mod config;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use base64::Engine as _;
use bytes::Bytes;
use http::header::{ACCEPT, AUTHORIZATION, CONTENT_TYPE, HOST};
use http::{HeaderValue, Method, Request, StatusCode, Uri};
use http_body_util::{BodyExt as _, Full, Limited};
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};
use rustls::RootCertStore;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, ServerName};
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_rustls::TlsConnector;

use crate::message::format::confluent::{Registered, RegistryError, Schema, SchemaRegistry};
use config::Config;

const JSON: &str = "application/vnd.schemaregistry.v1+json";
/// Bytes of one answer.
const ANSWER_BYTES_MAX: usize = 4 * 1024 * 1024;
/// Characters of an error that is not the registry's own.
const ERROR_CHARS_MAX: usize = 300;
/// What a subject is written with in a path.
const SEGMENT: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'.').remove(b'_').remove(b'~');

/// Settings that can't be used.
#[derive(Debug, thiserror::Error)]
pub enum SettingsError {
    /// The URL is none.
    #[error("{0:?} is no URL of a registry; expected http://HOST[:PORT][/PATH] or https://...")]
    Url(String),
    /// User and password hold what HTTP can't carry.
    #[error("username and password can't be sent")]
    Credentials,
    /// A certificate file can't be read.
    #[error("{}: {source}", path.display())]
    Pem {
        /// The file.
        path: PathBuf,
        /// Why.
        source: rustls::pki_types::pem::Error,
    },
    /// No certificate to trust.
    #[error("no certificates to trust: the system has none; set schema_registry.ca_file")]
    NoRoots,
    /// TLS refuses the settings.
    #[error("TLS: {0}")]
    Tls(#[from] rustls::Error),
}

/// A registry over HTTP.
pub struct HttpRegistry {
    /// As it was configured, without a slash at its end.
    url: String,
    host: String,
    port: u16,
    /// In front of every path.
    base: String,
    authorization: Option<HeaderValue>,
    tls: Option<TlsConnector>,
    timeout: Duration,
}

/// Without the credentials.
impl std::fmt::Debug for HttpRegistry {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("HttpRegistry").field("url", &self.url).finish_non_exhaustive()
    }
}

/// Splits a registry's URL; `None` for what is none, or has a user in it.
pub fn parse_url(url: &str) -> Option<Uri> {
    let uri: Uri = url.parse().ok()?;
    let known = matches!(uri.scheme_str(), Some("http" | "https"));
    let plain = uri.host().is_some_and(|host| !host.is_empty()) && uri.query().is_none();
    (known && plain && !uri.authority()?.as_str().contains('@')).then_some(uri)
}

impl HttpRegistry {
    /// A client; nothing is connected to yet.
    pub fn new(config: &Config) -> Result<Self, SettingsError> {
        let uri = parse_url(&config.url).ok_or_else(|| SettingsError::Url(config.url.clone()))?;
        let secure = uri.scheme_str() == Some("https");
        let authorization = match &config.credentials {
            Some((user, password)) => {
                let pair =
                    base64::engine::general_purpose::STANDARD.encode(format!("{user}:{}", password.reveal()));
                let value = HeaderValue::try_from(format!("Basic {pair}"));
                let mut value = value.map_err(|_| SettingsError::Credentials)?;
                value.set_sensitive(true);
                Some(value)
            }
            None => None,
        };
        Ok(Self {
            url: config.url.trim_end_matches('/').to_owned(),
            host: uri.host().unwrap_or_default().to_owned(),
            port: uri.port_u16().unwrap_or(if secure { 443 } else { 80 }),
            base: uri.path().trim_end_matches('/').to_owned(),
            authorization,
            tls: if secure { Some(tls(config)?) } else { None },
            timeout: config.timeout,
        })
    }

    async fn ask<T: DeserializeOwned>(
        &self,
        method: Method,
        path: &str,
        body: Option<Value>,
    ) -> Result<T, RegistryError> {
        let answer = timeout(self.timeout, self.send(method, path, body)).await;
        let unreachable = |cause: String| RegistryError::Unreachable(format!("cannot be reached: {cause}"));
        let (status, body) = answer
            .map_err(|_| unreachable(format!("no answer within {:?}", self.timeout)))?
            .map_err(|error| unreachable(chain(&*error)))?;
        if status.is_success() {
            return serde_json::from_slice(&body).map_err(|error| {
                RegistryError::Refused(format!("the answer is not that of a schema registry: {error}"))
            });
        }
        Err(refusal(status, &body))
    }

    async fn send(
        &self,
        method: Method,
        path: &str,
        body: Option<Value>,
    ) -> Result<(StatusCode, Bytes), Box<dyn std::error::Error + Send + Sync>> {
        let mut request = Request::builder()
            .method(method)
            .uri(format!("{}{path}", self.base))
            .header(HOST, format!("{}:{}", self.host, self.port))
            .header(ACCEPT, format!("{JSON}, application/json"))
            .header(CONTENT_TYPE, JSON);
        if let Some(authorization) = &self.authorization {
            request = request.header(AUTHORIZATION, authorization.clone());
        }
        let body = body.map_or_else(Bytes::new, |body| Bytes::from(body.to_string()));
        let request = request.body(Full::new(body))?;
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

fn refusal(status: StatusCode, body: &[u8]) -> RegistryError {
    #[derive(Deserialize)]
    struct Said {
        error_code: Option<i64>,
        message: String,
    }
    let text = match serde_json::from_slice::<Said>(body) {
        Ok(Said { error_code: Some(code), message }) => format!("{status}: {message} (error code {code})"),
        Ok(Said { error_code: None, message }) => format!("{status}: {message}"),
        Err(_) => {
            let text = String::from_utf8_lossy(body);
            format!("{status}: {}", text.trim())
        }
    };
    let text: String = text.trim_end_matches([' ', ':']).chars().take(ERROR_CHARS_MAX).collect();
    match status {
        StatusCode::NOT_FOUND => RegistryError::NotFound(text),
        StatusCode::REQUEST_TIMEOUT | StatusCode::TOO_MANY_REQUESTS => RegistryError::Unreachable(text),
        status if status.is_server_error() => RegistryError::Unreachable(text),
        _ => RegistryError::Refused(text),
    }
}

fn tls(config: &Config) -> Result<TlsConnector, SettingsError> {
    let mut roots = RootCertStore::empty();
    match &config.ca_file {
        Some(path) => {
            let wrong = |source| SettingsError::Pem { path: path.clone(), source };
            for certificate in CertificateDer::pem_file_iter(path).map_err(wrong)? {
                roots.add(certificate.map_err(wrong)?)?;
            }
        }
        None => {
            roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
        }
    }
    if roots.is_empty() {
        return Err(SettingsError::NoRoots);
    }
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()?
        .with_root_certificates(roots)
        .with_no_client_auth();
    Ok(TlsConnector::from(Arc::new(config)))
}

fn body_of(schema: &Schema) -> Value {
    let references: Vec<Value> = schema
        .references
        .iter()
        .map(|reference| {
            json!({ "name": reference.name, "subject": reference.subject, "version": reference.version })
        })
        .collect();
    json!({ "schemaType": "PROTOBUF", "schema": schema.text, "references": references })
}

fn segment(subject: &str) -> String {
    utf8_percent_encode(subject, SEGMENT).to_string()
}

#[async_trait]
impl SchemaRegistry for HttpRegistry {
    fn url(&self) -> &str {
        &self.url
    }

    async fn register(&self, subject: &str, schema: &Schema) -> Result<i32, RegistryError> {
        #[derive(Deserialize)]
        struct Answer {
            id: i32,
        }
        let path = format!("/subjects/{}/versions", segment(subject));
        let answer: Answer = self.ask(Method::POST, &path, Some(body_of(schema))).await?;
        Ok(answer.id)
    }

    async fn version_of(&self, subject: &str, schema: &Schema) -> Result<i32, RegistryError> {
        #[derive(Deserialize)]
        struct Answer {
            version: i32,
        }
        let path = format!("/subjects/{}", segment(subject));
        let answer: Answer = self.ask(Method::POST, &path, Some(body_of(schema))).await?;
        Ok(answer.version)
    }

    async fn latest(&self, subject: &str) -> Result<Registered, RegistryError> {
        #[derive(Deserialize)]
        struct Answer {
            id: i32,
            version: i32,
            schema: String,
        }
        let path = format!("/subjects/{}/versions/latest", segment(subject));
        let answer: Answer = self.ask(Method::GET, &path, None).await?;
        Ok(Registered { id: answer.id, version: answer.version, text: answer.schema })
    }

    async fn by_id(&self, id: i32) -> Result<String, RegistryError> {
        #[derive(Deserialize)]
        #[serde(rename_all = "camelCase")]
        struct Answer {
            schema: String,
            schema_type: Option<String>,
        }
        let answer: Answer = self.ask(Method::GET, &format!("/schemas/ids/{id}"), None).await?;
        match answer.schema_type.as_deref() {
            Some("PROTOBUF") => Ok(answer.schema),
            // Without a type it is Avro.
            other => {
                Err(RegistryError::Refused(format!("is of type {}, not PROTOBUF", other.unwrap_or("AVRO"))))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    use tokio::net::TcpListener;

    use super::*;
    use crate::terms::Secret;

    fn config(url: &str) -> Config {
        Config {
            url: url.to_owned(),
            credentials: Some(("gateway".to_owned(), Secret::new("hunter2"))),
            register: true,
            timeout: Duration::from_millis(300),
            ca_file: None,
        }
    }

    #[test]
    fn secrets_do_not_show() {
        let config = config("http://127.0.0.1:1");
        let registry = HttpRegistry::new(&config).unwrap();
        assert!(!format!("{config:?} {registry:?}").contains("hunter2"));
    }

    #[test]
    fn urls_are_told_from_anything_else() {
        for good in ["http://r:8081", "https://r", "http://[::1]:8081/apis/ccompat/v7/", "http://r/x"] {
            assert!(parse_url(good).is_some(), "{good}");
        }
        for bad in ["r:8081", "ftp://r", "http://", "http://me:pw@r", "/apis", "", "http://r/?x=1"] {
            assert!(parse_url(bad).is_none(), "{bad}");
        }
    }

    /// Answers one request with these bytes; what it was asked.
    async fn peer(answer: &'static str) -> (String, tokio::task::JoinHandle<String>) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}/base/", listener.local_addr().unwrap());
        let asked = tokio::spawn(async move {
            let (mut stream, _) = listener.accept().await.unwrap();
            let mut request = vec![0; 4096];
            let length = stream.read(&mut request).await.unwrap();
            stream.write_all(answer.as_bytes()).await.unwrap();
            String::from_utf8_lossy(&request[..length]).into_owned()
        });
        (url, asked)
    }

    #[tokio::test]
    async fn a_question_is_authorized_and_its_path_is_escaped() {
        let (url, asked) = peer(
            "HTTP/1.1 200 OK\r\ncontent-length: 42\r\n\r\n{\"id\":7,\"version\":2,\"schema\":\"message {}\"}",
        )
        .await;
        let latest = HttpRegistry::new(&config(&url)).unwrap().latest("a/b c-value").await.unwrap();
        assert_eq!(latest, Registered { id: 7, version: 2, text: "message {}".to_owned() });
        let asked = asked.await.unwrap();
        assert!(
            asked.starts_with("GET /base/subjects/a%2Fb%20c-value/versions/latest HTTP/1.1\r\n"),
            "{asked}"
        );
        assert!(asked.contains("authorization: Basic Z2F0ZXdheTpodW50ZXIy\r\n"), "{asked}");
    }

    #[tokio::test]
    async fn what_a_registry_says_is_told_apart() {
        type IsIt = fn(&RegistryError) -> bool;
        let cases: [(&str, IsIt, &str); 6] = [
            (
                "HTTP/1.1 404 Not Found\r\ncontent-length: 43\r\n\r\n{\"error_code\":40403,\"message\":\"not found\"}  ",
                |e| matches!(e, RegistryError::NotFound(_)),
                "404 Not Found: not found (error code 40403)",
            ),
            (
                "HTTP/1.1 409 Conflict\r\ncontent-length: 12\r\n\r\nincompatible",
                |e| matches!(e, RegistryError::Refused(_)),
                "409 Conflict: incompatible",
            ),
            (
                "HTTP/1.1 503 Service Unavailable\r\ncontent-length: 0\r\n\r\n",
                |e| matches!(e, RegistryError::Unreachable(_)),
                "503 Service Unavailable",
            ),
            (
                "HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\nhello",
                |e| matches!(e, RegistryError::Refused(_)),
                "the answer is not that of a schema registry",
            ),
            (
                "HTTP/1.1 200 OK\r\ncontent-length: 50\r\n\r\n{",
                |e| matches!(e, RegistryError::Unreachable(_)),
                "cannot be reached",
            ),
            ("garbage\r\n\r\n", |e| matches!(e, RegistryError::Unreachable(_)), "cannot be reached"),
        ];
        for (answer, is_it, text) in cases {
            let (url, _asked) = peer(answer).await;
            let error = HttpRegistry::new(&config(&url)).unwrap().by_id(1).await.unwrap_err();
            assert!(is_it(&error) && error.to_string().starts_with(text), "{answer:?}: {error:?}");
            assert!(!error.to_string().contains("hunter2"));
        }
    }

    #[tokio::test]
    async fn silence_and_refusal_end() {
        let silent = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", silent.local_addr().unwrap());
        let error = HttpRegistry::new(&config(&url)).unwrap().by_id(1).await.unwrap_err();
        assert_eq!(error.to_string(), "cannot be reached: no answer within 300ms");
        drop(silent);
        let error = HttpRegistry::new(&config(&url)).unwrap().by_id(1).await.unwrap_err();
        assert!(error.to_string().starts_with("cannot be reached: Connection refused"), "{error}");
    }
}
