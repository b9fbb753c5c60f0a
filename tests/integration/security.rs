//! Who may come in: TLS, certificates, tokens, and what they may call.

use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use antiphon::access::{Policy, TokenRules};
use antiphon::app::StartError;
use antiphon::ingress::config::{AccessConfig, ClientAuth, KeySource, TlsConfig};
use antiphon::worker::samples::{Samples, payments};
use axum::Router;
use axum::routing::get;
use bytes::Bytes;
use http_body_util::Empty;
use hyper::client::conn::http2;
use hyper_util::rt::{TokioExecutor, TokioIo};
use jsonwebtoken::jwk::Jwk;
use jsonwebtoken::{Algorithm, EncodingKey, Header, encode};
use prost::Message as _;
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair, SanType};
use serde_json::json;
use tempfile::TempDir;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tonic::transport::{Certificate, Channel, ClientTlsConfig, Endpoint, Identity};
use tonic::{Code, Request, Status};

use crate::harness::{ECHO, PATIENCE, PAY, TestGateway, unary, until_async};

const WEB: &str = "spiffe://prod/ns/shop/sa/web";

/// Somebody who signs certificates.
struct Authority(CertifiedIssuer<'static, KeyPair>);

impl Authority {
    fn new() -> Self {
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        Self(CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap())
    }

    /// Certificate and key, in PEM.
    fn issue(&self, dns: &str, uri: Option<&str>) -> (String, String) {
        let mut params = CertificateParams::new([dns.to_owned()]).unwrap();
        params.subject_alt_names.extend(uri.map(|uri| SanType::URI(uri.try_into().unwrap())));
        let key = KeyPair::generate().unwrap();
        let certificate = params.signed_by(&key, &self.0).unwrap();
        (certificate.pem(), key.serialize_pem())
    }

    fn pem(&self) -> String {
        self.0.pem()
    }
}

/// A folder with what the gateway reads.
struct Files(TempDir);

impl Files {
    fn new() -> Self {
        Self(TempDir::new().unwrap())
    }

    fn put(&self, name: &str, text: &str) -> PathBuf {
        let path = self.0.path().join(name);
        // As a tool that rotates does it: never half a file.
        let fresh = self.0.path().join(format!("{name}.fresh"));
        std::fs::write(&fresh, text).unwrap();
        std::fs::rename(&fresh, &path).unwrap();
        path
    }

    fn path(&self) -> &Path {
        self.0.path()
    }

    fn tls(&self, server: &Authority, clients: Option<&Authority>) -> TlsConfig {
        let (certificate, key) = server.issue("localhost", None);
        TlsConfig {
            cert_file: self.put("cert.pem", &certificate),
            key_file: self.put("key.pem", &key),
            client_ca_file: clients.map(|clients| self.put("clients.pem", &clients.pem())),
            client_auth: ClientAuth::Required,
            reload_interval: Duration::from_millis(100),
        }
    }
}

fn access(rules: &[&str], keys: Option<KeySource>) -> AccessConfig {
    AccessConfig {
        policy: Policy::new(rules.iter().map(|rule| rule.parse().unwrap()).collect()),
        keys,
        tokens: TokenRules { leeway: Duration::from_secs(5), ..TokenRules::default() },
        keys_refresh: Duration::from_millis(100),
    }
}

async fn gateway(tls: Option<TlsConfig>, access: Option<AccessConfig>) -> TestGateway {
    TestGateway::build()
        .config(|config| {
            config.grpc.tls = tls;
            config.grpc.access = access;
        })
        .handler(Samples::default())
        .start()
        .await
}

/// A connection of its own, shown this certificate.
fn channel(gateway: &TestGateway, server: &Authority, shown: Option<(String, String)>) -> Channel {
    let port = gateway.gateway().grpc_address().port();
    let mut tls =
        ClientTlsConfig::new().ca_certificate(Certificate::from_pem(server.pem())).domain_name("localhost");
    if let Some((certificate, key)) = shown {
        tls = tls.identity(Identity::from_pem(certificate, key));
    }
    let endpoint = Endpoint::try_from(format!("https://127.0.0.1:{port}")).unwrap();
    endpoint.connect_timeout(PATIENCE).tls_config(tls).unwrap().connect_lazy()
}

async fn pay(channel: &Channel, token: Option<&str>) -> Result<(), Status> {
    let message =
        payments::PayRequest { order_id: "o-1".to_owned(), amount_minor: 5, currency: "EUR".to_owned() };
    let mut request = Request::new(Bytes::from(message.encode_to_vec()));
    request.set_timeout(PATIENCE);
    if let Some(token) = token {
        request.metadata_mut().insert("authorization", format!("Bearer {token}").parse().unwrap());
    }
    unary(channel.clone(), PAY, request).await.map(drop)
}

fn code(result: Result<(), Status>) -> Code {
    result.map_or_else(|status| status.code(), |()| Code::Ok)
}

/// How often calls of Pay have ended so.
fn counted(gateway: &TestGateway, code: &str) -> bool {
    let text = gateway.gateway().instance().metrics.render();
    text.lines().any(|line| line.contains(PAY) && line.contains(code))
}

#[tokio::test]
async fn certificates_decide_who_may_call_what() {
    let (server, clients, strangers) = (Authority::new(), Authority::new(), Authority::new());
    let files = Files::new();
    let rules = access(&["cert:spiffe://prod/ns/shop/* -> payments.v1.PaymentService/Pay"], None);
    let gateway = gateway(Some(files.tls(&server, Some(&clients))), Some(rules)).await;

    let web = channel(&gateway, &server, Some(clients.issue("web", Some(WEB))));
    pay(&web, None).await.unwrap();
    let echo = unary(web, ECHO, Request::new(Bytes::new())).await.unwrap_err();
    assert_eq!(echo.code(), Code::PermissionDenied, "{echo:?}");

    let other = channel(&gateway, &server, Some(clients.issue("other", Some("spiffe://prod/ns/bank/sa/x"))));
    assert_eq!(code(pay(&other, None).await), Code::PermissionDenied);
    assert!(counted(&gateway, "PERMISSION_DENIED"));

    // These do not come as far as a call.
    for shown in [None, Some(strangers.issue("web", Some(WEB)))] {
        let refused = pay(&channel(&gateway, &server, shown), None).await.unwrap_err();
        // tonic says it in several ways, all of which have no answer of a server.
        assert!(
            refused.metadata().is_empty() && std::error::Error::source(&refused).is_some(),
            "{refused:?}"
        );
    }
    assert!(files.path().exists());
    gateway.stop().await;
}

#[tokio::test]
async fn probes_need_no_identity_and_reflection_does() {
    use tonic_health::pb::health_client::HealthClient;
    let gateway = gateway(None, Some(access(&["authenticated -> *"], None))).await;
    let endpoint = Endpoint::try_from(format!("http://{}", gateway.gateway().grpc_address())).unwrap();
    let channel = endpoint.connect().await.unwrap();
    let mut health = HealthClient::new(channel.clone());
    let request = tonic_health::pb::HealthCheckRequest { service: String::new() };
    assert_eq!(health.check(request).await.unwrap().into_inner().status, 1);
    assert_eq!(code(pay(&channel, None).await), Code::Unauthenticated);
    assert!(counted(&gateway, "UNAUTHENTICATED"));
    let reflection = "/grpc.reflection.v1.ServerReflection/ServerReflectionInfo";
    let refused = unary(channel, reflection, Request::new(Bytes::new())).await.unwrap_err();
    assert_eq!(refused.code(), Code::Unauthenticated);
    gateway.stop().await;
}

#[tokio::test]
async fn certificates_are_read_again_and_bad_ones_change_nothing() {
    let (old, new) = (Authority::new(), Authority::new());
    let files = Files::new();
    let gateway = gateway(Some(files.tls(&old, None)), None).await;
    let before = channel(&gateway, &old, None);
    pay(&before, None).await.unwrap();
    assert!(pay(&channel(&gateway, &new, None), None).await.is_err());

    let expiry = || gateway.gateway().instance().metrics.certificate_expiry.get();
    assert!(expiry() > 0);
    files.put("cert.pem", "not a certificate");
    tokio::time::sleep(Duration::from_millis(300)).await;
    pay(&channel(&gateway, &old, None), None).await.unwrap();

    files.tls(&new, None);
    until_async("new connections see the new certificate", async || {
        pay(&channel(&gateway, &new, None), None).await.is_ok()
    })
    .await;
    // The connection that was there goes on.
    pay(&before, None).await.unwrap();
    gateway.stop().await;
}

/// Somebody who signs tokens.
struct Issuer {
    key: EncodingKey,
    jwk: Jwk,
}

impl Issuer {
    fn new(id: &str) -> Self {
        let key = EncodingKey::from_ec_der(&KeyPair::generate().unwrap().serialize_der());
        let mut jwk = Jwk::from_encoding_key(&key, Algorithm::ES256).unwrap();
        jwk.common.key_id = Some(id.to_owned());
        Self { key, jwk }
    }

    fn sign(&self, scope: &str, expires_in: i64) -> String {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs() as i64;
        let mut header = Header::new(Algorithm::ES256);
        header.kid = self.jwk.common.key_id.clone();
        encode(&header, &json!({ "sub": "shop", "scope": scope, "exp": now + expires_in }), &self.key)
            .unwrap()
    }

    fn set(issuers: &[&Self]) -> String {
        let keys: Vec<_> = issuers.iter().map(|issuer| &issuer.jwk).collect();
        json!({ "keys": keys }).to_string()
    }
}

#[tokio::test]
async fn tokens_decide_and_their_keys_rotate() {
    let (old, new) = (Issuer::new("old"), Issuer::new("new"));
    let files = Files::new();
    let keys = KeySource::File(files.put("jwks.json", &Issuer::set(&[&old])));
    let rules = access(&["token:scope=payments:write & sub=sh* -> payments.v1.PaymentService/*"], Some(keys));
    let gateway = gateway(None, Some(rules)).await;
    let endpoint = Endpoint::try_from(format!("http://{}", gateway.gateway().grpc_address())).unwrap();
    let channel = endpoint.connect().await.unwrap();

    let good = old.sign("payments:read payments:write", 60);
    pay(&channel, Some(&good)).await.unwrap();
    assert_eq!(code(pay(&channel, Some(&old.sign("payments:read", 60))).await), Code::PermissionDenied);
    let said = |status: Status| (status.code(), status.message().to_owned());
    let expired = said(pay(&channel, Some(&old.sign("payments:write", -60))).await.unwrap_err());
    assert_eq!(expired, (Code::Unauthenticated, "the token has expired".to_owned()));
    let tampered = format!("{}AAAA", &good[..good.len() - 4]);
    let tampered = said(pay(&channel, Some(&tampered)).await.unwrap_err());
    assert_eq!(tampered, (Code::Unauthenticated, "the token's signature does not match".to_owned()));
    assert_eq!(code(pay(&channel, None).await), Code::Unauthenticated);
    let mut basic = Request::new(Bytes::new());
    basic.metadata_mut().insert("authorization", "Basic aGk6aG8=".parse().unwrap());
    assert_eq!(unary(channel.clone(), PAY, basic).await.unwrap_err().code(), Code::Unauthenticated);

    let of_new = new.sign("payments:write", 60);
    assert_eq!(code(pay(&channel, Some(&of_new)).await), Code::Unauthenticated);
    files.put("jwks.json", "{}");
    tokio::time::sleep(Duration::from_millis(300)).await;
    pay(&channel, Some(&good)).await.unwrap();
    files.put("jwks.json", &Issuer::set(&[&new]));
    until_async("the new key counts", async || pay(&channel, Some(&of_new)).await.is_ok()).await;
    assert_eq!(code(pay(&channel, Some(&good)).await), Code::Unauthenticated);
    gateway.stop().await;
}

#[tokio::test]
async fn keys_come_from_a_server_too() {
    let issuer = Issuer::new("a");
    let set = Issuer::set(&[&issuer]);
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}/keys", listener.local_addr().unwrap());
    let router = Router::new().route("/keys", get(move || async move { set }));
    let server = tokio::spawn(async move { axum::serve(listener, router).await });
    let rules = access(&["token:scope=payments:write -> *"], Some(KeySource::Url(url, None)));
    let gateway = gateway(None, Some(rules)).await;
    let endpoint = Endpoint::try_from(format!("http://{}", gateway.gateway().grpc_address())).unwrap();
    let channel = endpoint.connect().await.unwrap();
    let token = issuer.sign("payments:write", 60);
    pay(&channel, Some(&token)).await.unwrap();
    // Their server goes away; the keys that are known stay.
    server.abort();
    tokio::time::sleep(Duration::from_millis(300)).await;
    pay(&channel, Some(&token)).await.unwrap();
    gateway.stop().await;
}

#[tokio::test]
async fn what_can_not_be_used_is_named_at_the_start() {
    let files = Files::new();
    let server = Authority::new();
    let start = async |tls: TlsConfig| {
        let built = TestGateway::build().config(|config| config.grpc.tls = Some(tls));
        match built.try_start().await {
            Err(error) => error,
            Ok(_) => panic!("started"),
        }
    };
    let mut missing = files.tls(&server, None);
    missing.key_file = files.path().join("no-such.pem");
    let error = start(missing).await;
    assert!(matches!(error, StartError::Tls(_)), "{error}");
    assert!(error.to_string().contains("no-such.pem"), "{error}");

    let mut mismatched = files.tls(&server, None);
    mismatched.key_file = files.put("other.pem", &server.issue("x", None).1);
    let error = start(mismatched).await;
    assert!(error.to_string().contains("cert.pem"), "{error}");

    let keys = KeySource::File(files.put("empty.json", r#"{"keys":[]}"#));
    let built = TestGateway::build()
        .config(|config| config.grpc.access = Some(access(&["authenticated -> *"], Some(keys))));
    let error = built.try_start().await.err().unwrap();
    assert!(matches!(error, StartError::Keys(_)), "{error}");
    assert!(error.to_string().contains("empty.json"), "{error}");
}

#[tokio::test]
async fn a_connection_is_told_to_go_at_its_age_and_its_calls_finish() {
    let gateway = TestGateway::build()
        .config(|config| config.grpc.connection_age_max = Some(Duration::from_millis(500)))
        .worker(|_, message| async move {
            tokio::time::sleep(Duration::from_millis(1_200)).await;
            Some(Ok(message))
        })
        .start()
        .await;
    let address = gateway.gateway().grpc_address();
    let idle = tokio::net::TcpStream::connect(address).await.unwrap();
    let (_sender, idle) =
        http2::handshake::<_, _, Empty<Bytes>>(TokioExecutor::new(), TokioIo::new(idle)).await.unwrap();
    gateway.raw(ECHO, Bytes::new()).await.unwrap();
    let ended = tokio::time::timeout(PATIENCE, idle).await;
    assert!(ended.is_ok(), "the connection without calls has ended");
    gateway.raw(ECHO, Bytes::new()).await.unwrap();
    gateway.stop().await;
}

/// Status and body of a page of the admin listener.
async fn admin_page(gateway: &TestGateway, path: &str, token: Option<&str>) -> (u16, String) {
    let mut stream = tokio::net::TcpStream::connect(gateway.gateway().admin_address()).await.unwrap();
    let authorization = token.map_or_else(String::new, |token| format!("authorization: Bearer {token}\r\n"));
    let request = format!("GET {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n{authorization}\r\n");
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut answer = String::new();
    tokio::time::timeout(PATIENCE, stream.read_to_string(&mut answer)).await.unwrap().unwrap();
    let (head, body) = answer.split_once("\r\n\r\n").unwrap();
    (head.split(' ').nth(1).unwrap().parse().unwrap(), body.to_owned())
}

#[tokio::test]
async fn the_admin_listener_asks_for_its_token() {
    let files = Files::new();
    let file = files.put("admin-token", "open-sesame\n");
    let gateway = TestGateway::build().config(|config| config.admin.token_file = Some(file)).start().await;
    for (path, nobody) in [("/live", 200), ("/ready", 200), ("/metrics", 401), ("/other", 401)] {
        assert_eq!(admin_page(&gateway, path, None).await.0, nobody, "{path}");
        assert_eq!(admin_page(&gateway, path, Some("guess")).await.0, nobody, "{path}");
    }
    let (code, metrics) = admin_page(&gateway, "/metrics", Some("open-sesame")).await;
    assert!(code == 200 && metrics.contains("antiphon_"), "{code} {metrics}");
    files.put("admin-token", "changed");
    assert_eq!(admin_page(&gateway, "/metrics", Some("open-sesame")).await.0, 401);
    assert_eq!(admin_page(&gateway, "/metrics", Some("changed")).await.0, 200);
    gateway.stop().await;
}
