//! A schema registry with Confluent's API, over HTTP: Confluent's own, Karapace,
//! Apicurio, Redpanda. Source: "Schema Registry API Reference" of Confluent.

pub mod config;

use async_trait::async_trait;
use base64::Engine as _;
use bytes::Bytes;
use http::header::{ACCEPT, AUTHORIZATION, CONTENT_TYPE};
use http::{HeaderValue, Method, Request, StatusCode};
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

use crate::message::format::confluent::{Registered, RegistryError, Schema, SchemaRegistry};
use crate::web_client::{WebClient, WebClientError};
use config::Config;

const JSON: &str = "application/vnd.schemaregistry.v1+json";
/// Characters of an error that is not the registry's own.
const ERROR_CHARS_MAX: usize = 300;
/// What a subject is written with in a path.
const SEGMENT: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'.').remove(b'_').remove(b'~');

/// Settings that can't be used.
#[derive(Debug, thiserror::Error)]
pub enum SettingsError {
    /// The URL or its certificates.
    #[error(transparent)]
    Client(#[from] WebClientError),
    /// User and password hold what HTTP can't carry.
    #[error("username and password can't be sent")]
    Credentials,
}

/// A registry over HTTP.
pub struct HttpRegistry {
    client: WebClient,
    authorization: Option<HeaderValue>,
}

/// Without the credentials.
impl std::fmt::Debug for HttpRegistry {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("HttpRegistry").field("client", &self.client).finish_non_exhaustive()
    }
}

impl HttpRegistry {
    /// A client; nothing is connected to yet.
    pub fn new(config: &Config) -> Result<Self, SettingsError> {
        let client = WebClient::new(&config.url, config.ca_file.as_deref(), config.timeout)?;
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
        Ok(Self { client, authorization })
    }

    async fn ask<T: DeserializeOwned>(
        &self,
        method: Method,
        path: &str,
        body: Option<Value>,
    ) -> Result<T, RegistryError> {
        let mut request = Request::builder()
            .method(method)
            .header(ACCEPT, format!("{JSON}, application/json"))
            .header(CONTENT_TYPE, JSON);
        if let Some(authorization) = &self.authorization {
            request = request.header(AUTHORIZATION, authorization.clone());
        }
        let body = body.map_or_else(Bytes::new, |body| Bytes::from(body.to_string()));
        let answer = self.client.ask(request, path, body).await;
        let (status, body) =
            answer.map_err(|cause| RegistryError::Unreachable(format!("cannot be reached: {cause}")))?;
        if status.is_success() {
            return serde_json::from_slice(&body).map_err(|error| {
                RegistryError::Refused(format!("the answer is not that of a schema registry: {error}"))
            });
        }
        Err(refusal(status, &body))
    }
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
        self.client.url()
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
    use std::time::Duration;

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
