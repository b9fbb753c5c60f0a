//! confluent-protobuf with a real schema registry, whose URL is in
//! `ANTIPHON_TEST_SCHEMA_REGISTRY`; `scripts/with-kafka --registry` sees to it.
//! Compiled with the feature `registry-tests` only, so that none of it can pass
//! where there is no registry.

use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};
use std::time::{Duration, Instant};

use antiphon::message::format::confluent::{Reference, Schema, SchemaRegistry as _};
use antiphon::registry::{HttpRegistry, config::Config};
use antiphon::route::Settings;
use antiphon::terms::Secret;
use bytes::Bytes;
use tokio::net::{TcpListener, TcpStream};
use tonic::{Code, Status};

use crate::harness::{PATIENCE, TestGateway, TestGatewayBuilder, setting, trailer};
use crate::records::{all, await_records, text};

const PROTO: &str = r#"
    syntax = "proto3";
    package schemas.v1;
    import "antiphon/v1/options.proto";
    import "google/protobuf/timestamp.proto";
    message Before { string unused = 1; }
    message Outer {
        message Request { string id = 1; google.protobuf.Timestamp at = 2; antiphon.v1.Ack place = 3; }
    }
    message Reply { string id = 1; }
    service SchemaService {
        option (antiphon.v1.kafka_defaults) = { format: CONFLUENT_PROTOBUF };
        rpc Do(Outer.Request) returns (Reply);
    }
"#;
const PATH: &str = "/schemas.v1.SchemaService/Do";
const TOPIC: &str = "schemas.v1.SchemaService";
/// `id: "a"`, of both.
const MESSAGE: &[u8] = b"\x0a\x01a";

fn real() -> String {
    std::env::var("ANTIPHON_TEST_SCHEMA_REGISTRY")
        .expect("ANTIPHON_TEST_SCHEMA_REGISTRY is not set; run with scripts/with-kafka --registry")
}

fn settings(url: &str) -> Config {
    Config {
        url: url.to_owned(),
        credentials: Some(("gateway".to_owned(), Secret::new("hunter2"))),
        register: true,
        timeout: Duration::from_secs(2),
        ca_file: None,
    }
}

fn client(url: &str) -> HttpRegistry {
    HttpRegistry::new(&settings(url)).unwrap()
}

fn gateway(url: &str, subject: &str, change: impl FnOnce(&mut Config)) -> TestGatewayBuilder {
    let mut registry = settings(url);
    change(&mut registry);
    let settings = Settings { schema_subject: setting(subject.to_owned()), ..Settings::default() };
    TestGateway::build()
        .proto(PROTO)
        .topic(TOPIC, 1)
        .method("schemas.v1.SchemaService/Do", settings)
        .config(|config| config.schema_registry = Some(registry))
}

fn unique(name: &str) -> String {
    format!("{name}-{:08x}", fastrand::u32(..))
}

fn plain(text: &str) -> Schema {
    Schema { text: text.to_owned(), references: Vec::new() }
}

fn framed(id: i32, index: &[u8], message: &[u8]) -> Bytes {
    Bytes::from([&[0][..], &id.to_be_bytes(), index, message].concat())
}

/// Calls, with a worker that answers the same each time.
async fn answered(gateway: &TestGateway, reply: Bytes) -> Result<Bytes, Status> {
    let call = gateway.raw(PATH, MESSAGE);
    let worker = async {
        let sent = async {
            loop {
                let waiting =
                    all(&gateway.cluster, &gateway.topic(TOPIC)).await.into_iter().rev().find(|(_, r)| {
                        let id = antiphon::correlation::CorrelationId::parse(
                            r.header("kafka_correlationId").unwrap(),
                        );
                        gateway.gateway().instance().shards()[0].pending.is_waiting(id.unwrap())
                    });
                if let Some((_, request)) = waiting {
                    return request;
                }
            }
        };
        let request = tokio::time::timeout(PATIENCE, sent).await.unwrap();
        let id = request.header("kafka_correlationId").unwrap().clone();
        let headers = vec![("kafka_correlationId".into(), id)];
        gateway.write_reply(antiphon::transport::Record { key: None, value: Some(reply), headers }).await;
    };
    tokio::join!(call, worker).0.map(tonic::Response::into_inner)
}

#[tokio::test]
async fn a_request_carries_the_id_of_its_registered_schema() {
    let url = real();
    let subject = unique("request");
    let gateway = gateway(&url, &subject, |_| {}).start().await;
    let registry = client(&url);
    let registered = registry.latest(&subject).await.unwrap();
    // The file's messages, and what they import and nothing more.
    let messages = antiphon::message::format::confluent::Messages::read(&registered.text).unwrap();
    assert_eq!(messages.name_at(&[1, 0]).as_deref(), Some("schemas.v1.Outer.Request"));
    registry.latest("antiphon/v1/options.proto").await.unwrap();

    let reply_subject = unique("reply");
    let text = "syntax = \"proto3\"; package schemas.v1; message Reply { string id = 1; } message Other {}";
    let id = registry.register(&reply_subject, &plain(text)).await.unwrap();
    let answer = answered(&gateway, framed(id, &[0], MESSAGE)).await.unwrap();
    assert_eq!(answer, MESSAGE);
    let sent = await_records(&gateway.cluster, &gateway.topic(TOPIC), 1).await;
    let request = &sent[0].1;
    assert_eq!(request.value, Some(framed(registered.id, &[4, 2, 0], MESSAGE)));
    assert_eq!(text_of(request).as_deref(), Some("application/vnd.confluent.protobuf"));

    // What a worker may get wrong.
    let avro_like =
        registry.register(&unique("other"), &plain("syntax = \"proto3\"; message X {}")).await.unwrap();
    let cases: [(Bytes, String); 6] = [
        (Bytes::from_static(MESSAGE), "its first byte is 0x0a and not 0x00".to_owned()),
        (Bytes::from_static(&[0, 0, 0]), "its schema id is cut off".to_owned()),
        (framed(id, &[2, 2], MESSAGE), format!("its schema id {id} is that of schemas.v1.Other")),
        (framed(id, &[2, 8], MESSAGE), format!("its schema id {id} has no message at index [4]")),
        (framed(avro_like, &[0], MESSAGE), format!("its schema id {avro_like} is that of X")),
        (
            framed(i32::MAX, &[0], MESSAGE),
            format!("its schema id {} is not known to the schema registry", i32::MAX),
        ),
    ];
    for (reply, message) in cases {
        let status = answered(&gateway, reply).await.unwrap_err();
        assert_eq!(status.code(), Code::Internal, "{status:?}");
        assert!(status.message().contains(&message), "{message}: {status:?}");
        assert_eq!(trailer(status.metadata(), "antiphon-outcome").as_deref(), Some("sent"));
    }
    // And the good ones go on.
    assert_eq!(answered(&gateway, framed(id, &[0], MESSAGE)).await.unwrap(), MESSAGE);
    gateway.settled().await;
    gateway.stop().await;
}

fn text_of(record: &antiphon::transport::Received) -> Option<String> {
    text(record, "content-type")
}

#[tokio::test]
async fn without_registering_the_latest_schema_is_used() {
    let url = real();
    let registry = client(&url);
    let subject = unique("latest");
    let refused = gateway(&url, &subject, |config| config.register = false).try_start().await;
    let error = refused.map(|_| ()).unwrap_err().to_string();
    assert!(
        error.starts_with(&format!("schema registry at {url}, subject {subject:?}: 404 Not Found")),
        "{error}"
    );

    let ours = "syntax = \"proto3\"; package schemas.v1; message Outer { message A {} message Request { string id = 1; } }";
    let id = registry.register(&subject, &plain(ours)).await.unwrap();
    let gateway = gateway(&url, &subject, |config| config.register = false).start().await;
    answered(&gateway, Bytes::from_static(MESSAGE)).await.unwrap_err();
    let sent = await_records(&gateway.cluster, &gateway.topic(TOPIC), 1).await;
    assert_eq!(sent[0].1.value, Some(framed(id, &[4, 0, 2], MESSAGE)));
    gateway.stop().await;

    let other = unique("other");
    registry.register(&other, &plain("syntax = \"proto3\"; message X {}")).await.unwrap();
    let refused = self::gateway(&url, &other, |config| config.register = false).try_start().await;
    let error = refused.map(|_| ()).unwrap_err().to_string();
    assert!(error.contains("version 1 has no message schemas.v1.Outer.Request"), "{error}");
}

#[tokio::test]
async fn references_are_understood_by_the_registry() {
    let url = real();
    let registry = client(&url);
    let (inner, outer) = (unique("inner"), unique("outer"));
    let text = plain("syntax = \"proto3\"; package i; message I {}");
    registry.register(&inner, &text).await.unwrap();
    let version = registry.version_of(&inner, &text).await.unwrap();
    assert_eq!(version, 1);
    let schema = Schema {
        text: "syntax = \"proto3\"; import \"i.proto\"; message O { i.I i = 1; }".to_owned(),
        references: vec![Reference { name: "i.proto".to_owned(), subject: inner, version }],
    };
    let id = registry.register(&outer, &schema).await.unwrap();
    assert_eq!(registry.register(&outer, &schema).await.unwrap(), id, "twice is as good as once");
    assert!(registry.by_id(id).await.unwrap().contains("message O"));
}

/// A way to the registry that can be blocked.
struct Way {
    url: String,
    state: Arc<AtomicU8>,
}

const OPEN: u8 = 0;
const SILENT: u8 = 1;
const CUT: u8 = 2;

async fn way_to(url: &str) -> Way {
    let (host, path) = url.strip_prefix("http://").unwrap().split_once('/').unwrap();
    let host = host.to_owned();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let here = format!("http://{}/{path}", listener.local_addr().unwrap());
    let state = Arc::new(AtomicU8::new(OPEN));
    let seen = Arc::clone(&state);
    tokio::spawn(async move {
        let mut silent = Vec::new();
        while let Ok((mut stream, _)) = listener.accept().await {
            match seen.load(Ordering::Relaxed) {
                OPEN => {
                    let mut there = TcpStream::connect(&host).await.unwrap();
                    tokio::spawn(async move { tokio::io::copy_bidirectional(&mut stream, &mut there).await });
                }
                SILENT => silent.push(stream),
                _ => drop(stream),
            }
        }
    });
    Way { url: here, state }
}

/// What is known stays known; what is not ends as an error, in time.
#[tokio::test]
async fn a_registry_that_goes_away_holds_nothing_up() {
    let url = real();
    let way = way_to(&url).await;
    let gateway = gateway(&way.url, &unique("request"), |config| config.timeout = Duration::from_millis(600))
        .start()
        .await;
    let registry = client(&url);
    let text = |n: u32| {
        format!(
            "syntax = \"proto3\"; package schemas.v1; message Reply {{ string id = 1; string x{n} = 2; }}"
        )
    };
    let mut ids = Vec::new();
    for _ in 0..3 {
        ids.push(registry.register(&unique("reply"), &plain(&text(fastrand::u32(..)))).await.unwrap());
    }
    assert_eq!(answered(&gateway, framed(ids[0], &[0], MESSAGE)).await.unwrap(), MESSAGE);
    for (state, id, cause) in [(SILENT, ids[1], "no answer within 600ms"), (CUT, ids[2], "cannot be reached")]
    {
        way.state.store(state, Ordering::Relaxed);
        let began = Instant::now();
        let status = answered(&gateway, framed(id, &[0], MESSAGE)).await.unwrap_err();
        assert_eq!(status.code(), Code::Internal, "{status:?}");
        let at = format!("its schema id {id} could not be looked up at {}", way.url);
        assert!(status.message().contains(&at) && status.message().contains(cause), "{status:?}");
        assert_eq!(trailer(status.metadata(), "antiphon-outcome").as_deref(), Some("sent"));
        assert!(began.elapsed() < Duration::from_secs(5));
        assert_eq!(answered(&gateway, framed(ids[0], &[0], MESSAGE)).await.unwrap(), MESSAGE);
    }
    way.state.store(OPEN, Ordering::Relaxed);
    // A failure is kept for a second.
    tokio::time::sleep(Duration::from_millis(1_100)).await;
    assert_eq!(answered(&gateway, framed(ids[1], &[0], MESSAGE)).await.unwrap(), MESSAGE);
    gateway.settled().await;
    gateway.stop().await;
}
