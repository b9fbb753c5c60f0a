//! `antiphon dlq`, the program itself, on dead letters that a gateway left.

use std::process::Stdio;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use antiphon::dev_broker::{Api, Fault, Rule};
use antiphon::route::Settings;
use antiphon::transport::Received;
use antiphon::worker::samples::{echo, payments};
use antiphon::worker::{Call, Handler};
use bytes::Bytes;
use serde_json::Value;
use tokio::process::Command;
use tonic::Code;

use crate::harness::{ECHO, PATIENCE, PAY, TestGateway, TestGatewayBuilder, setting, trailer};
use crate::records::{all, await_records, call_with, header_names, text};

/// What the program said, and its exit code.
struct Said {
    code: i32,
    out: String,
    err: String,
}

impl Said {
    fn json(&self) -> Vec<Value> {
        self.out.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
    }
}

/// Runs `antiphon dlq` against the test's cluster.
async fn dlq(gateway: &TestGateway, arguments: &[&str]) -> Said {
    dlq_at(gateway.bootstrap(), arguments).await
}

async fn dlq_at(bootstrap: &str, arguments: &[&str]) -> Said {
    let run = Command::new(env!("CARGO_BIN_EXE_antiphon"))
        .arg("dlq")
        .args(arguments)
        .args(["--bootstrap-servers", bootstrap])
        // A variable for these tests is none of the program's.
        .env_clear()
        .stdin(Stdio::null())
        .kill_on_drop(true)
        .output();
    let output = tokio::time::timeout(PATIENCE, run).await.unwrap().unwrap();
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
    Said { code: output.status.code().unwrap(), out: text(output.stdout), err: text(output.stderr) }
}

fn with_dead_letters() -> TestGatewayBuilder {
    let reasons = ["timeout", "undecodable-reply", "rejected"].map(str::to_owned).to_vec();
    let settings = Settings { dead_letter_on: setting(reasons), ..Settings::default() };
    TestGateway::build()
        .method("payments.v1.PaymentService/Pay", settings.clone())
        .method("echo.v1.EchoService/Echo", settings)
}

fn payment(order_id: &str) -> payments::PayRequest {
    payments::PayRequest { order_id: order_id.to_owned(), amount_minor: 5, currency: "EUR".to_owned() }
}

/// A payment that times out; its correlation id.
async fn time_out(gateway: &TestGateway, order_id: &str) -> String {
    let headers = [("grpc-timeout", "400m")];
    let status = call_with(gateway, PAY, payment(order_id), &headers).await.unwrap_err();
    assert_eq!(status.code(), Code::DeadlineExceeded);
    trailer(status.metadata(), "antiphon-correlation-id").unwrap()
}

/// A worker that keeps what it gets and answers nothing.
#[derive(Clone, Default)]
struct Silent(Arc<Mutex<Vec<Received>>>);

#[async_trait::async_trait]
impl Handler for Silent {
    async fn handle(&self, call: Call<'_>) -> Option<Result<Bytes, antiphon::message::WorkerStatus>> {
        self.0.lock().unwrap().push(call.record.clone());
        None
    }
}

impl Silent {
    fn seen(&self) -> Vec<Received> {
        self.0.lock().unwrap().clone()
    }
}

const PROTO: [&str; 2] =
    ["--proto", concat!(env!("CARGO_MANIFEST_DIR"), "/proto/payments/v1/payments.proto")];

#[tokio::test]
async fn what_timed_out_and_was_done_all_the_same_is_listed_and_shown() {
    let gateway = with_dead_letters()
        .worker(|_, message| async move {
            let request: payments::PayRequest = prost::Message::decode(message).unwrap();
            if request.order_id != "o-done" {
                return None;
            }
            tokio::time::sleep(Duration::from_millis(900)).await;
            let reply = payments::PayReply { order_id: request.order_id, ..Default::default() };
            Some(Ok(Bytes::from(prost::Message::encode_to_vec(&reply))))
        })
        .start()
        .await;
    let done = time_out(&gateway, "o-done").await;
    let open = time_out(&gateway, "o-open").await;
    let topic = gateway.topic("payment_request");
    let dlq_topic = topic.clone() + ".DLQ";
    await_records(&gateway.cluster, &dlq_topic, 3).await;

    let listed = dlq(&gateway, &["list", &topic]).await;
    assert_eq!(listed.code, 0, "{}", listed.err);
    let lines: Vec<&str> = listed.out.lines().collect();
    assert!(lines[0].starts_with("PLACE  AGE"), "{}", listed.out);
    assert!(lines[1].contains(&done) && lines[1].contains("done: OK"), "{}", listed.out);
    assert!(lines[2].contains(&open) && !lines[2].contains("done"), "{}", listed.out);
    assert!(lines[1].contains("timeout  payments.v1.PaymentService/Pay  o-done"), "{}", listed.out);
    let summary = format!("2 dead letters on {dlq_topic}, 1 of them done all the same");
    assert_eq!(lines[4], summary);

    let rows = dlq(&gateway, &["list", &dlq_topic, "--json", "--key", "o-done"]).await.json();
    assert_eq!(rows.len(), 1);
    assert_eq!(rows[0]["correlation_id"], done.as_str());
    assert_eq!(rows[0]["late_reply"]["done"], true);
    assert_eq!(rows[0]["original"]["topic"], topic.as_str());
    for (filter, expected) in [
        (["--class", "late-reply"], 1),
        (["--class", "timeout"], 2),
        (["--class", "rejected"], 0),
        (["--since", "10m"], 2),
        (["--until", "10m"], 0),
        (["--method", "payments.v1.PaymentService/Pay"], 2),
        (["--method", "/payments.v1.PaymentService/Refund"], 0),
        (["--correlation-id", open.as_str()], 1),
        (["--limit", "1"], 1),
    ] {
        let rows = dlq(&gateway, &[&["list", &topic, "--json"], &filter[..]].concat()).await.json();
        assert_eq!(rows.len(), expected, "{filter:?}");
    }

    let shown = dlq(&gateway, &[&["show", &topic, &done], &PROTO[..]].concat()).await;
    assert_eq!(shown.code, 0, "{}", shown.err);
    for expected in [
        "class           timeout",
        "  idempotency",
        "  original.topic: ",
        "value, ",
        "|..o-done",
        "decoded, payments.v1.PayRequest\n  {\"amountMinor\":\"5\",\"currency\":\"EUR\",\"orderId\":\"o-done\"}",
        ": OK\n",
        "decoded, payments.v1.PayReply\n  {\"orderId\":\"o-done\"}",
    ] {
        // The call had no key, so there is no such header.
        assert_eq!(shown.out.contains(expected), expected != "  idempotency", "{expected}: {}", shown.out);
    }
    let place = format!("{}/{}", rows[0]["partition"], rows[0]["offset"]);
    let shown = dlq(&gateway, &[&["show", &topic, &place, "--json"], &PROTO[..]].concat()).await.json();
    assert_eq!(shown[0]["message"]["orderId"], "o-done");
    assert_eq!(shown[0]["late_reply"]["decoded"]["orderId"], "o-done");
    assert_eq!(shown[0]["headers"]["failure.class"], "timeout");
    assert_eq!(dlq(&gateway, &["show", &topic, "0/999"]).await.code, 65);
    assert_eq!(dlq(&gateway, &["show", &topic, "no-such-id"]).await.code, 65);

    // What was done is not done again, unless somebody insists.
    let before = all(&gateway.cluster, &topic).await.len();
    let refused = dlq(&gateway, &["replay", &topic, &done, "--yes"]).await;
    assert_eq!(refused.code, 65, "{}", refused.out);
    assert!(refused.out.contains("refused: it was carried out"), "{}", refused.out);
    assert_eq!(all(&gateway.cluster, &topic).await.len(), before);
    let insisted = dlq(&gateway, &["replay", &topic, &done, "--yes", "--even-if-done"]).await;
    assert_eq!(insisted.code, 0, "{} {}", insisted.out, insisted.err);
    assert_eq!(all(&gateway.cluster, &topic).await.len(), before + 1);
    gateway.stop().await;
}

#[tokio::test]
async fn a_replay_is_the_request_as_it_was_and_leaves_a_note() {
    let worker = Silent::default();
    let mut gateway = with_dead_letters().handler(worker.clone()).start().await;
    let headers = [("grpc-timeout", "400m"), ("idempotency-key", "k-1")];
    let status = call_with(&gateway, PAY, payment("o-1"), &headers).await.unwrap_err();
    let id = trailer(status.metadata(), "antiphon-correlation-id").unwrap();
    let topic = gateway.topic("payment_request");
    let dlq_topic = topic.clone() + ".DLQ";
    await_records(&gateway.cluster, &dlq_topic, 1).await;
    // With its gateway goes its reply topic.
    let reply_topic = gateway.gateway().instance().reply_topic().to_string();
    gateway.take_gateway().stop().await.unwrap();
    crate::harness::until_async("the reply topic is gone", async || {
        !gateway.cluster_topics().await.contains(&reply_topic)
    })
    .await;

    let dry = dlq(&gateway, &["replay", &topic, "--all", "--dry-run"]).await;
    assert_eq!(dry.code, 0, "{}", dry.err);
    assert!(dry.out.contains(&format!("{id} would be sent to {topic}/")), "{}", dry.out);
    assert!(dry.out.contains(&format!("no kafka_replyTopic, since {reply_topic} is gone")), "{}", dry.out);
    assert_eq!(worker.seen().len(), 1);

    let replayed = dlq(&gateway, &["replay", &topic, &id]).await;
    assert_eq!(replayed.code, 0, "one request needs no --yes: {}", replayed.err);
    gateway.until("the worker has it", || worker.seen().len() == 2).await;
    let [request, replay] = &worker.seen()[..] else { panic!() };
    assert_eq!((&replay.key, &replay.value), (&request.key, &request.value));
    assert_eq!(replay.offset, request.offset + 1, "the same partition");
    let expected =
        ["antiphon-replay", "content-type", "grpc-method", "idempotency-key", "kafka_correlationId"];
    assert_eq!(header_names(replay), expected);
    for name in &expected[1..] {
        assert_eq!(replay.header(name), request.header(name), "{name}");
    }
    assert_eq!(text(replay, "antiphon-replay").as_deref(), Some("1"));

    // The note beside the letter.
    let letters = await_records(&gateway.cluster, &dlq_topic, 2).await;
    let note = &letters[1].1;
    assert_eq!(text(note, "failure.class").as_deref(), Some("replayed"));
    assert_eq!(text(note, "kafka_correlationId").as_deref(), Some(id.as_str()));
    assert_eq!(text(note, "original.offset"), Some(replay.offset.to_string()));
    let listed = dlq(&gateway, &["list", &topic]).await;
    assert!(listed.out.contains("replayed 1x"), "{}", listed.out);

    let refused = dlq(&gateway, &["replay", &topic, &id]).await;
    assert_eq!(refused.code, 65);
    assert!(refused.out.contains("it was replayed before, 1 times"), "{}", refused.out);
    let again = ["replay", &topic, &id, "--again", "--deadline", "60s", "--json"];
    let rows = dlq(&gateway, &again).await.json();
    assert_eq!((&rows[0]["result"], &rows[0]["replay"]), (&"sent".into(), &2.into()));
    gateway.until("the worker has it again", || worker.seen().len() == 3).await;
    let third = &worker.seen()[2];
    assert_eq!(text(third, "antiphon-replay").as_deref(), Some("2"));
    let deadline: i64 = text(third, "grpc-deadline").unwrap().parse().unwrap();
    assert!((deadline - third.timestamp_ms - 60_000).abs() < 10_000);
}

#[tokio::test]
async fn replays_keep_the_order_of_the_requests() {
    let worker = Silent::default();
    let gateway = with_dead_letters().handler(worker.clone()).start().await;
    let topic = gateway.topic("payment_request");
    // The later request of a key fails first.
    let call = async |currency: &str, timeout: &str, pause: u64| {
        tokio::time::sleep(Duration::from_millis(pause)).await;
        let request = payments::PayRequest { currency: currency.to_owned(), ..payment("o-1") };
        call_with(&gateway, PAY, request, &[("grpc-timeout", timeout)]).await.unwrap_err();
    };
    tokio::join!(call("KRW", "900m", 0), call("EUR", "300m", 200));
    let letters = await_records(&gateway.cluster, &(topic.clone() + ".DLQ"), 2).await;
    assert!(text(&letters[0].1, "original.offset") > text(&letters[1].1, "original.offset"));

    let many = dlq(&gateway, &["replay", &topic, "--all"]).await;
    assert_eq!(many.code, 64, "{}", many.out);
    assert!(
        many.err.contains("2 requests would be sent; --dry-run shows them, --yes sends them"),
        "{}",
        many.err
    );
    let replayed = dlq(&gateway, &["replay", &topic, "--all", "--yes", "--rate", "20/s"]).await;
    assert_eq!(replayed.code, 0, "{}", replayed.err);
    assert!(replayed.err.contains("2 sent, 0 refused"), "{}", replayed.err);
    gateway.until("the worker has all", || worker.seen().len() == 4).await;
    let seen = worker.seen();
    assert_eq!((&seen[0].value, &seen[1].value), (&seen[2].value, &seen[3].value));
    // The gateway still reads its replies, so they may still come.
    assert!(seen[2].header("kafka_replyTopic").is_some());
    gateway.stop().await;
}

#[tokio::test]
async fn what_is_in_doubt_is_said_and_not_repeated() {
    let gateway = with_dead_letters().on_the_embedded_broker().start().await;
    let id = time_out(&gateway, "o-1").await;
    let topic = gateway.topic("payment_request");
    await_records(&gateway.cluster, &(topic.clone() + ".DLQ"), 1).await;
    let faults = gateway.broker().faults();
    faults.inject(Rule::new(Api::Produce, Fault::CutAfter).topic(&topic).times(1));
    let doubtful = dlq(&gateway, &["replay", &topic, &id]).await;
    assert_eq!(doubtful.code, 65, "{}", doubtful.err);
    assert!(doubtful.out.contains("it may be in the log, and was not repeated"), "{}", doubtful.out);
    assert_eq!(all(&gateway.cluster, &topic).await.len(), 2);
    // Certainly not sent: tried again.
    let too_few = antiphon::dev_broker::code::NOT_ENOUGH_REPLICAS;
    faults.inject(Rule::new(Api::Produce, Fault::Error(too_few)).topic(&topic).times(2));
    let sent = dlq(&gateway, &["replay", &topic, &id, "--again"]).await;
    assert_eq!(sent.code, 0, "{} {}", sent.out, sent.err);
    assert_eq!(all(&gateway.cluster, &topic).await.len(), 3);
    gateway.stop().await;
}

#[tokio::test]
async fn what_can_not_be_replayed_is_left_alone() {
    let gateway = with_dead_letters().start().await;
    let request = echo::EchoRequest { payload: Bytes::from(vec![7; 2 << 20]) };
    call_with(&gateway, ECHO, request, &[]).await.unwrap_err();
    let topic = gateway.topic("echo.v1.EchoService");
    await_records(&gateway.cluster, &(topic.clone() + ".DLQ"), 1).await;
    let refused = dlq(&gateway, &["replay", &topic, "--all", "--yes"]).await;
    assert_eq!(refused.code, 65);
    assert!(refused.out.contains("its value of 2097157 bytes was too large to be kept"), "{}", refused.out);
    assert_eq!(all(&gateway.cluster, &topic).await.len(), 0);
    gateway.stop().await;
}

#[tokio::test]
async fn a_purge_takes_what_lies_before_a_place() {
    let gateway = with_dead_letters().start().await;
    for order_id in ["o-1", "o-1", "o-1"] {
        time_out(&gateway, order_id).await;
    }
    let topic = gateway.topic("payment_request");
    let dlq_topic = topic.clone() + ".DLQ";
    let letters = await_records(&gateway.cluster, &dlq_topic, 3).await;
    let partition = letters[0].0.to_string();
    let offset = letters[1].1.offset.to_string();
    let left = async || all(&gateway.cluster, &dlq_topic).await.len();

    let dry = dlq(&gateway, &["purge", &topic, "--before", "end", "--dry-run"]).await;
    assert_eq!(dry.code, 0, "{}", dry.err);
    assert!(dry.err.contains("3 records would be thrown away"), "{}", dry.err);
    assert_eq!(dlq(&gateway, &["purge", &topic, "--before", "end"]).await.code, 64);
    let which = dlq(&gateway, &["purge", &topic, "--before", &offset, "--yes"]).await;
    assert_eq!(which.code, 64, "an offset of which partition? {}", which.err);
    let old = dlq(&gateway, &["purge", &topic, "--before", "10m", "--yes"]).await;
    assert_eq!((old.code, left().await), (0, 3), "{}", old.err);

    let one = ["purge", &topic, "--partition", &partition, "--before", &offset, "--yes"];
    let one = dlq(&gateway, &one).await;
    assert_eq!((one.code, left().await), (0, 2), "{}", one.err);
    assert!(one.err.contains("1 record thrown away"), "{}", one.err);
    let rest = dlq(&gateway, &["purge", &dlq_topic, "--before", "0s", "--yes"]).await;
    assert_eq!((rest.code, left().await), (0, 0), "{}", rest.err);

    let request_topic = gateway.topic("delivery_radius_request");
    let refused = dlq(&gateway, &["purge", &request_topic, "--before", "end", "--yes"]).await;
    assert_eq!(refused.code, 64);
    assert!(refused.err.contains("is not known to hold dead letters"), "{}", refused.err);
    gateway.stop().await;
}

#[tokio::test]
async fn wrong_usage_and_a_missing_cluster_have_codes_of_their_own() {
    let gateway = TestGateway::build().start().await;
    let topic = gateway.topic("payment_request");
    let cases: [(&[&str], i32, &str); 8] = [
        (&["list", "no-such-topic"], 64, "there is no topic no-such-topic"),
        (&["list", &topic, "--partition", "9"], 64, "has no partition 9; it has 3"),
        (&["list", &topic, "--since", "yesterday"], 64, "\"yesterday\" is no time"),
        (&["list", &topic, "--class", "lost"], 64, "unknown value \"lost\""),
        (&["list", &topic, "--config", "no/such.toml"], 78, "no such file"),
        (&["show", &topic, "1/x"], 64, "\"1/x\" is no place"),
        (&["replay", &topic], 64, "which ones?"),
        (&["list", &topic], 0, ""),
    ];
    for (arguments, code, expected) in cases {
        let said = dlq(&gateway, arguments).await;
        assert_eq!(said.code, code, "{arguments:?}: {}", said.err);
        assert!(said.err.contains(expected), "{arguments:?}: {}", said.err);
    }
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let nobody = listener.local_addr().unwrap().to_string();
    drop(listener);
    let said = dlq_at(&nobody, &["list", &topic]).await;
    assert_eq!(said.code, 69);
    assert!(said.err.contains(&nobody) && said.err.contains("Connection refused"), "{}", said.err);
    gateway.stop().await;
}
