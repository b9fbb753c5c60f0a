//! One execution for as many calls as a caller makes with one key.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use antiphon::dev_broker::{Api, Fault, Rule, code};
use antiphon::message::WorkerStatus;
use antiphon::metrics::IdempotentLabels;
use antiphon::worker::samples::echo;
use bytes::Bytes;
use tonic::{Code, Response, Status};

use crate::harness::{ECHO, TestGateway, TestGatewayBuilder, trailer, unary};
use crate::records::{all, call_with, text};

type Answered = Result<Response<Bytes>, Status>;

/// A worker that counts its executions and takes its time.
fn counting(executed: &Arc<AtomicU32>, takes: Duration) -> TestGatewayBuilder {
    let executed = Arc::clone(executed);
    TestGateway::build().worker(move |_, message| {
        let executed = Arc::clone(&executed);
        async move {
            tokio::time::sleep(takes).await;
            executed.fetch_add(1, Ordering::SeqCst);
            Some(Ok(message))
        }
    })
}

fn payload(text: &'static str) -> echo::EchoRequest {
    echo::EchoRequest { payload: Bytes::from_static(text.as_bytes()) }
}

async fn keyed(gateway: &TestGateway, key: &str, message: &'static str, timeout: &str) -> Answered {
    call_with(gateway, ECHO, payload(message), &[("idempotency-key", key), ("grpc-timeout", timeout)]).await
}

fn repeat(answered: &Answered) -> Option<String> {
    match answered {
        Ok(response) => trailer(response.metadata(), "antiphon-idempotency"),
        Err(status) => trailer(status.metadata(), "antiphon-idempotency"),
    }
}

fn counted(gateway: &TestGateway, kind: &'static str) -> u64 {
    gateway.gateway().instance().metrics.idempotent.get_or_create(&IdempotentLabels { kind }).get()
}

#[tokio::test]
async fn calls_with_one_key_join_the_one_in_flight() {
    let executed = Arc::default();
    let gateway = counting(&executed, Duration::from_millis(300)).start().await;
    let (first, second) =
        tokio::join!(keyed(&gateway, "k", "pay", "10S"), keyed(&gateway, "k", "pay", "10S"));
    let mut repeats = [repeat(&first), repeat(&second)];
    repeats.sort();
    assert_eq!(repeats, [None, Some("joined".to_owned())]);
    let (first, second) = (first.unwrap(), second.unwrap());
    assert_eq!(first.get_ref(), second.get_ref());
    let record = |response: &Response<Bytes>| trailer(response.metadata(), "antiphon-correlation-id");
    assert_eq!(record(&first), record(&second), "both are the one request");
    assert_eq!(executed.load(Ordering::SeqCst), 1);
    assert_eq!((counted(&gateway, "first"), counted(&gateway, "joined")), (1, 1));
    gateway.stop().await;
}

#[tokio::test]
async fn a_reply_is_kept_for_its_key() {
    let executed = Arc::default();
    let gateway = counting(&executed, Duration::ZERO).start().await;
    let first = keyed(&gateway, "k", "pay", "10S").await;
    assert_eq!(repeat(&first), None);
    for _ in 0..3 {
        let again = keyed(&gateway, "k", "pay", "10S").await;
        assert_eq!(repeat(&again).as_deref(), Some("kept"));
        assert_eq!(again.unwrap().get_ref(), first.as_ref().unwrap().get_ref());
    }
    assert_eq!(executed.load(Ordering::SeqCst), 1);

    let other_key = keyed(&gateway, "k2", "pay", "10S").await;
    assert_eq!((repeat(&other_key), executed.load(Ordering::SeqCst)), (None, 2));
    let records = all(&gateway.cluster, &gateway.topic("echo.v1.EchoService")).await;
    let mut keys: Vec<_> = records.iter().map(|(_, record)| text(record, "idempotency-key")).collect();
    keys.sort();
    assert_eq!(keys, [Some("k".to_owned()), Some("k2".to_owned())], "the key travels in the record");
    gateway.stop().await;
}

#[tokio::test]
async fn a_key_stands_for_one_message() {
    let executed = Arc::default();
    let gateway = counting(&executed, Duration::ZERO).start().await;
    keyed(&gateway, "k", "pay 1", "10S").await.unwrap();
    let status = keyed(&gateway, "k", "pay 2", "10S").await.unwrap_err();
    assert_eq!(status.code(), Code::InvalidArgument);
    assert!(status.message().starts_with("this idempotency-key was sent with another message"), "{status:?}");
    assert_eq!(trailer(status.metadata(), "antiphon-outcome").as_deref(), Some("not-sent"));
    assert_eq!((executed.load(Ordering::SeqCst), counted(&gateway, "conflict")), (1, 1));
    gateway.stop().await;
}

#[tokio::test]
async fn a_repeat_gets_the_reply_of_a_call_whose_caller_went_away() {
    let executed = Arc::default();
    let gateway = counting(&executed, Duration::from_millis(400)).start().await;
    let mut request = tonic::Request::new(Bytes::from_static(b"\x0a\x03pay"));
    request.metadata_mut().insert("idempotency-key", "k".parse().unwrap());
    let first = tokio::spawn(unary(gateway.channel.clone(), ECHO, request));
    gateway.until("the call is in flight", || gateway.gateway().instance().pending_calls() == 1).await;
    first.abort();
    gateway.until("its caller has gone", || gateway.gateway().instance().budget.calls() == 0).await;
    let again = keyed(&gateway, "k", "pay", "10S").await;
    assert!(repeat(&again).is_some(), "{again:?}");
    assert_eq!(again.unwrap().get_ref(), "\x0a\x03pay");
    assert_eq!(executed.load(Ordering::SeqCst), 1);
    gateway.stop().await;
}

#[tokio::test]
async fn a_repeat_gets_the_late_reply_of_a_call_that_timed_out() {
    let executed = Arc::default();
    let gateway = counting(&executed, Duration::from_millis(500)).start().await;
    let (first, joined) =
        tokio::join!(keyed(&gateway, "k", "pay", "200m"), keyed(&gateway, "k", "pay", "200m"));
    for status in [first.unwrap_err(), joined.unwrap_err()] {
        assert_eq!(status.code(), Code::DeadlineExceeded);
        assert_eq!(trailer(status.metadata(), "antiphon-outcome").as_deref(), Some("sent"));
    }
    assert_eq!(executed.load(Ordering::SeqCst), 0);
    let joined = keyed(&gateway, "k", "pay", "10S").await;
    assert_eq!(repeat(&joined).as_deref(), Some("joined"));
    assert_eq!(joined.unwrap().get_ref(), "\x0a\x03pay");
    let kept = keyed(&gateway, "k", "pay", "10S").await;
    assert_eq!(repeat(&kept).as_deref(), Some("kept"));
    assert_eq!(kept.unwrap().get_ref(), "\x0a\x03pay");
    assert_eq!(executed.load(Ordering::SeqCst), 1);
    gateway.settled().await;
    gateway.stop().await;
}

/// UNAVAILABLE and its like ask for another attempt; any other error of a
/// worker is an answer like a message.
#[tokio::test]
async fn what_a_worker_says_decides_whether_it_is_kept() {
    for (code, kept) in [(14, false), (10, false), (8, false), (9, true), (3, true)] {
        let executed = Arc::new(AtomicU32::new(0));
        let count = Arc::clone(&executed);
        let gateway =
            TestGateway::build()
                .worker(move |_, _| {
                    count.fetch_add(1, Ordering::SeqCst);
                    async move {
                        Some(Err(WorkerStatus { code, message: "no".to_owned(), details: Bytes::new() }))
                    }
                })
                .start()
                .await;
        for _ in 0..2 {
            let status = keyed(&gateway, "k", "pay", "10S").await.unwrap_err();
            assert_eq!(status.code(), Code::from(i32::from(code)));
        }
        assert_eq!(executed.load(Ordering::SeqCst), if kept { 1 } else { 2 }, "code {code}");
        gateway.stop().await;
    }
}

#[tokio::test]
async fn a_key_is_forgotten_after_its_window() {
    let executed = Arc::default();
    let gateway = counting(&executed, Duration::ZERO)
        .config(|config| config.idempotency.window = Duration::from_millis(100))
        .start()
        .await;
    keyed(&gateway, "k", "pay", "300m").await.unwrap();
    // Never while its own first caller may still wait.
    assert_eq!(repeat(&keyed(&gateway, "k", "pay", "300m").await).as_deref(), Some("kept"));
    tokio::time::sleep(Duration::from_millis(1_500)).await;
    assert_eq!(repeat(&keyed(&gateway, "k", "pay", "300m").await), None);
    assert_eq!(executed.load(Ordering::SeqCst), 2);
    gateway.stop().await;
}

/// A call that timed out is waited for until its window closes, and no longer.
#[tokio::test]
async fn a_call_without_a_reply_frees_its_place_with_its_window() {
    let gateway = TestGateway::build()
        .config(|config| config.idempotency.window = Duration::from_millis(100))
        .start()
        .await;
    let status = keyed(&gateway, "k", "pay", "100m").await.unwrap_err();
    assert_eq!(status.code(), Code::DeadlineExceeded);
    assert_eq!(gateway.gateway().instance().pending_calls(), 1);
    gateway.settled().await;
    gateway.stop().await;
}

#[tokio::test]
async fn keys_of_calls_in_flight_are_bounded() {
    let executed = Arc::default();
    let gateway = counting(&executed, Duration::from_millis(500))
        .config(|config| config.idempotency.keys_max = 1)
        .start()
        .await;
    let in_flight = keyed(&gateway, "a", "pay", "10S");
    let refused = async {
        gateway.until("the first is in flight", || gateway.gateway().instance().pending_calls() == 1).await;
        keyed(&gateway, "b", "pay", "10S").await.unwrap_err()
    };
    let (answered, refused) = tokio::join!(in_flight, refused);
    answered.unwrap();
    assert_eq!(refused.code(), Code::ResourceExhausted);
    assert!(refused.message().starts_with("idempotency.keys_max"), "{refused:?}");
    assert_eq!(trailer(refused.metadata(), "grpc-retry-pushback-ms").as_deref(), Some("1000"));
    assert_eq!(counted(&gateway, "full"), 1);

    // One that has ended makes room.
    keyed(&gateway, "b", "pay", "10S").await.unwrap();
    assert_eq!(executed.load(Ordering::SeqCst), 2);
    gateway.stop().await;
}

#[tokio::test]
async fn a_key_that_is_empty_is_none_and_one_that_is_too_long_is_refused() {
    let executed = Arc::default();
    let gateway = counting(&executed, Duration::ZERO).start().await;
    for _ in 0..2 {
        assert_eq!(repeat(&keyed(&gateway, "", "pay", "10S").await), None);
    }
    assert_eq!(executed.load(Ordering::SeqCst), 2);
    let status = keyed(&gateway, &"k".repeat(257), "pay", "10S").await.unwrap_err();
    assert_eq!(status.code(), Code::InvalidArgument);
    gateway.stop().await;
}

/// A call with a key is told the same of a request that never left its lane as
/// any other call, and nothing is remembered of it. A call that joined it and
/// ends before it can't know.
#[tokio::test]
async fn a_request_that_was_not_sent_in_time_is_not_remembered() {
    let gateway =
        counting(&Arc::default(), Duration::ZERO).on_the_embedded_broker().topic("echo.v1.EchoService", 1);
    let gateway = gateway.start().await;
    let topic = gateway.topic("echo.v1.EchoService");
    let slow = Rule::new(Api::Produce, Fault::Delay(Duration::from_millis(1_000))).topic(&topic).times(1);
    gateway.broker().faults().inject(slow);
    let behind = async {
        tokio::time::sleep(Duration::from_millis(150)).await;
        let joining = async {
            tokio::time::sleep(Duration::from_millis(50)).await;
            keyed(&gateway, "k", "pay", "100m").await
        };
        tokio::join!(keyed(&gateway, "k", "pay", "300m"), joining)
    };
    let (ahead, (first, joined)) = tokio::join!(keyed(&gateway, "ahead", "pay", "10S"), behind);
    ahead.unwrap();
    let expected = [(first, Code::Unavailable, "not-sent"), (joined, Code::DeadlineExceeded, "unknown")];
    for (answer, code, outcome) in expected {
        let status = answer.unwrap_err();
        assert_eq!(status.code(), code, "{status:?}");
        assert_eq!(trailer(status.metadata(), "antiphon-outcome").as_deref(), Some(outcome));
    }
    let again = keyed(&gateway, "k", "pay", "10S").await;
    assert_eq!(repeat(&again), None);
    again.unwrap();
    assert_eq!(all(&gateway.cluster, &topic).await.len(), 2);
    gateway.stop().await;
}

/// Refused for certain: nothing is in the log, so a repeat may go.
#[tokio::test]
async fn a_refused_request_is_not_remembered() {
    let executed = Arc::default();
    let gateway = counting(&executed, Duration::ZERO).on_the_embedded_broker().start().await;
    let refusal = Fault::Error(code::TOPIC_AUTHORIZATION_FAILED);
    let topic = gateway.topic("echo.v1.EchoService");
    gateway.broker().faults().inject(Rule::new(Api::Produce, refusal).topic(topic).times(1));
    let status = keyed(&gateway, "k", "pay", "10S").await.unwrap_err();
    assert_eq!(status.code(), Code::FailedPrecondition);
    let again = keyed(&gateway, "k", "pay", "10S").await;
    assert_eq!((repeat(&again), executed.load(Ordering::SeqCst)), (None, 1));
    gateway.stop().await;
}
