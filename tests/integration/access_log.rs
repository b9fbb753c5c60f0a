//! The access log: each call that failed has one line, and what the line says is
//! where the call was.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use antiphon::access_log::config::Format;
use antiphon::message::WorkerStatus;
use antiphon::worker::samples::{echo, payments};
use bytes::Bytes;
use prost::Message as _;
use serde_json::Value;
use tonic::{Code, Request};

use crate::harness::{ECHO, PAY, TestGateway, TestGatewayBuilder, streaming, trailer, unary};
use crate::records::call_with;

const TRACE: &str = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-00";

const PROTO: &str = r#"
syntax = "proto3";
package access.v1;
import "google/protobuf/empty.proto";
import "antiphon/v1/options.proto";
service AccessService {
  rpc Tell(Note) returns (google.protobuf.Empty) { option (antiphon.v1.kafka) = { mode: ONE_WAY }; }
  rpc Follow(Note) returns (stream Note);
  rpc Up(stream Note) returns (Note);
}
message Note { string text = 1; }
"#;

struct Log {
    file: PathBuf,
}

impl Log {
    fn lines(&self) -> Vec<Value> {
        let text = std::fs::read_to_string(&self.file).unwrap();
        text.lines().map(|line| serde_json::from_str(line).expect(line)).collect()
    }

    /// The lines once there are so many; they are written a little later.
    async fn after(&self, count: usize) -> Vec<Value> {
        crate::harness::until("the lines are written", || self.lines().len() >= count).await;
        self.lines()
    }
}

fn logging(good_share: f64) -> (TestGatewayBuilder, Log) {
    let file = tempfile::tempdir().unwrap().keep().join("access.log");
    let path = file.clone();
    let builder = TestGateway::build().config(move |config| {
        config.access_log.enabled = true;
        config.access_log.good_share = good_share;
        config.access_log.format = Format::Json;
        config.access_log.file = Some(path);
    });
    (builder, Log { file })
}

/// Ended calls by status code, as the metrics have them.
fn counted(gateway: &TestGateway) -> BTreeMap<String, usize> {
    let mut by_code = BTreeMap::new();
    for line in gateway.gateway().instance().metrics.render().lines() {
        let Some(rest) = line.strip_prefix("antiphon_calls_total{") else { continue };
        let code = rest.split("code=\"").nth(1).unwrap().split('"').next().unwrap();
        let count: usize = rest.rsplit(' ').next().unwrap().parse().unwrap();
        *by_code.entry(code.to_owned()).or_default() += count;
    }
    by_code
}

fn by_code(lines: &[Value]) -> BTreeMap<String, usize> {
    let mut by_code = BTreeMap::new();
    for line in lines {
        *by_code.entry(line["code"].as_str().unwrap().to_owned()).or_default() += 1;
    }
    by_code
}

fn echo(payload: &'static str) -> echo::EchoRequest {
    echo::EchoRequest { payload: payload.as_bytes().into() }
}

/// What the callers of these tests do not want to read in a log.
fn says_nothing_secret(lines: &[Value]) {
    for line in lines {
        assert!(!line.to_string().contains("s3cret"), "{line}");
    }
}

#[tokio::test]
async fn a_line_says_where_the_call_was() {
    let (builder, log) = logging(1.0);
    let gateway = builder.worker(|_, message| async move { Some(Ok(message)) }).start().await;
    let metadata =
        [("idempotency-key", "order-1"), ("traceparent", TRACE), ("authorization", "Bearer s3cret")];
    let pay = payments::PayRequest { order_id: "o-1".into(), ..Default::default() };
    let answered = call_with(&gateway, PAY, pay.clone(), &metadata).await.unwrap();
    let told = |name| trailer(answered.metadata(), name).unwrap();
    call_with(&gateway, PAY, pay, &metadata).await.unwrap();
    let lines = log.after(2).await;
    let line = &lines[0];
    assert_eq!(line["target"], "antiphon::access");
    assert_eq!((&line["method"], &line["code"]), (&PAY.into(), &"OK".into()));
    assert_eq!(line["outcome"], "sent");
    assert_eq!(line["instance"], gateway.gateway().instance().name());
    assert_eq!(line["idempotency_key"], "order-1");
    assert_eq!(line["trace_id"], "4bf92f3577b34da6a3ce929d0e0e4736");
    assert_eq!(line["correlation_id"], told("antiphon-correlation-id"));
    let record = format!(
        "{}/{}/{}",
        line["request_topic"].as_str().unwrap(),
        line["request_partition"],
        line["request_offset"]
    );
    assert_eq!(record, told("antiphon-record"));
    let reply_topic = gateway.gateway().instance().reply_topic().to_string();
    assert_eq!(line["reply_topic"], reply_topic);
    assert_eq!(line["reply_partition"], 0);
    assert!(line["reply_offset"].as_i64().unwrap() > 0, "behind the first heartbeat");
    let phases = ["lane_wait_ms", "acknowledge_ms", "reply_wait_ms", "total_ms"];
    let phases: Vec<f64> = phases.iter().map(|name| line[*name].as_f64().expect(name)).collect();
    assert!(phases[0] + phases[2] <= phases[3] && phases[3] < 30_000.0, "{phases:?}");
    assert!(line["peer"].as_str().unwrap().starts_with("127.0.0.1:"));
    assert_eq!((&line["bytes_in"], &line["bytes_out"]), (&5.into(), &5.into()));
    // The repeat: the same request, and nothing sent for it.
    assert_eq!(lines[1]["idempotency"], "kept");
    assert_eq!(lines[1]["correlation_id"], line["correlation_id"]);
    assert_eq!(lines[1]["request_offset"], line["request_offset"]);
    assert!(lines[1].get("lane_wait_ms").is_none());
    says_nothing_secret(&lines);
    gateway.stop().await;
}

#[tokio::test]
async fn every_failure_has_one_line() {
    let (builder, log) = logging(0.0);
    let gateway = builder
        .proto(PROTO)
        .topic("access.v1.AccessService", 1)
        .worker(|method, message| async move {
            match &method[..] {
                PAY => Some(Err(WorkerStatus {
                    code: 9,
                    message: "the card s3cret is void".into(),
                    details: Bytes::new(),
                })),
                _ if message.ends_with(b"silence") => None,
                _ => Some(Ok(message)),
            }
        })
        .start()
        .await;
    let channel = || gateway.channel.clone();
    for _ in 0..3 {
        call_with(&gateway, ECHO, echo("hello"), &[]).await.unwrap();
    }
    let timed_out = call_with(&gateway, ECHO, echo("silence"), &[("grpc-timeout", "300m")]).await;
    assert_eq!(timed_out.unwrap_err().code(), Code::DeadlineExceeded);
    call_with(&gateway, PAY, payments::PayRequest::default(), &[]).await.unwrap_err();
    // Malformed: the time-out, the key, the message, its encoding.
    call_with(&gateway, ECHO, echo(""), &[("grpc-timeout", "soon")]).await.unwrap_err();
    let long: &'static str = "k".repeat(300).leak();
    call_with(&gateway, ECHO, echo(""), &[("idempotency-key", long)]).await.unwrap_err();
    gateway.raw(ECHO, Bytes::from_static(b"\xff\xff\xff")).await.unwrap_err();
    // What is not served.
    unary(channel(), "/nowhere.v1.Nothing/At", Request::new(Bytes::new())).await.unwrap_err();
    unary(channel(), "/echo.v1.EchoService/NoSuch", Request::new(Bytes::new())).await.unwrap_err();
    unary(channel(), "/access.v1.AccessService/Up", Request::new(Bytes::new())).await.unwrap_err();
    // Streams and one-way calls; a good one has no line.
    unary(channel(), "/access.v1.AccessService/Tell", Request::new(Bytes::new())).await.unwrap();
    let mut late = Request::new(Bytes::from_static(b"\x0a\x07silence"));
    late.metadata_mut().insert("grpc-timeout", "300m".parse().unwrap());
    // tonic's client may say CANCELLED of its own; the gateway does not.
    streaming(channel(), "/access.v1.AccessService/Follow", late).await.unwrap_err();
    // Callers that go away.
    for path in [ECHO, "/access.v1.AccessService/Follow"] {
        let silent = Request::new(Bytes::from_static(b"\x0a\x07silence"));
        let leaving = tokio::time::timeout(Duration::from_millis(200), unary(channel(), path, silent));
        assert!(leaving.await.is_err());
    }
    gateway.settled().await;
    let expected: BTreeMap<String, usize> = [
        ("DEADLINE_EXCEEDED", 2),
        ("FAILED_PRECONDITION", 1),
        ("INVALID_ARGUMENT", 3),
        ("UNIMPLEMENTED", 3),
        ("CANCELLED", 2),
    ]
    .map(|(code, count)| (code.to_owned(), count))
    .into();
    let total: usize = expected.values().sum();
    let lines = log.after(total).await;
    let mut counts = counted(&gateway);
    assert_eq!(counts.remove("OK"), Some(4));
    assert_eq!((by_code(&lines), counts), (expected.clone(), expected));

    let of = |code: &str| lines.iter().filter(|line| line["code"] == code).cloned().collect::<Vec<_>>();
    for line in of("DEADLINE_EXCEEDED").iter().chain(&of("CANCELLED")) {
        assert_eq!(line["outcome"], "sent", "{line}");
        assert!(line["request_offset"].is_i64() && line["correlation_id"].is_string(), "{line}");
        assert!(line.get("reply_topic").is_none() && line["bytes_in"] == 9, "{line}");
    }
    assert!(of("FAILED_PRECONDITION")[0].get("reason").is_none(), "a worker's words are not ours to log");
    assert_eq!(of("DEADLINE_EXCEEDED")[0]["reason"], "no reply within the deadline");
    for line in of("UNIMPLEMENTED") {
        assert_eq!(line["outcome"], "not-sent");
    }
    says_nothing_secret(&lines);
    gateway.stop().await;
}

#[tokio::test]
async fn refusals_have_lines_too() {
    let (builder, log) = logging(0.0);
    let gateway = builder
        .config(|config| {
            config.limits.in_flight_max = 4;
            config.circuit.timeouts_max = 1;
            config.idempotency.keys_max = 2;
            config.drain.notice = Duration::ZERO;
        })
        .start()
        .await;
    // Four wait, the others find no room; then the circuit opens.
    let silent = || call_with(&gateway, ECHO, echo("silence"), &[("grpc-timeout", "1500m")]);
    let mut told: BTreeMap<String, usize> = BTreeMap::new();
    for answered in futures_util::future::join_all((0..40).map(|_| silent())).await {
        *told.entry(name_of(answered.unwrap_err().code())).or_default() += 1;
    }
    for _ in 0..5 {
        let refused = gateway.raw(ECHO, echo("").encode_to_vec()).await.unwrap_err();
        *told.entry(name_of(refused.code())).or_default() += 1;
    }
    assert!(told["RESOURCE_EXHAUSTED"] >= 30 && told["UNAVAILABLE"] >= 5, "{told:?}");
    let lines = log.after(45).await;
    assert_eq!((by_code(&lines), counted(&gateway)), (told.clone(), told));
    let overloaded = lines.iter().find(|line| line["code"] == "RESOURCE_EXHAUSTED").unwrap();
    assert_eq!(overloaded["outcome"], "not-sent");
    assert!(overloaded["reason"].as_str().unwrap().contains("limits.in_flight_max"));
    gateway.stop().await;
}

fn name_of(code: Code) -> String {
    antiphon::terms::STATUS_NAMES[code as usize].to_owned()
}
