//! The kit with a driver in memory and a clock that jumps.

use std::collections::HashMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use async_trait::async_trait;
use bytes::Bytes;
use prost::Message;
use tokio::sync::{Semaphore, mpsc, oneshot, watch};
use tokio::time::Instant;

use super::samples::echo::{EchoReply, EchoRequest};
use super::*;
use crate::transport::{Received, Record};

const ECHO: &str = "/echo.v1.EchoService/Echo";
const PATIENCE: Duration = Duration::from_secs(600);

fn place(partition: i32) -> PartitionId {
    PartitionId { topic: Arc::from("requests"), partition }
}

/// What the driver was told.
#[derive(Default)]
struct Told {
    sent: Mutex<Vec<(Destination, Record)>>,
    committed: Mutex<HashMap<PartitionId, i64>>,
    closed: Mutex<Option<HashMap<PartitionId, i64>>>,
    records_max: AtomicUsize,
    changed: watch::Sender<u64>,
}

struct Acks(Arc<Told>, Arc<Semaphore>);

#[async_trait]
impl Outbox for Acks {
    async fn send(&self, to: Destination, record: Record) -> Result<(), OutboxError> {
        if record.size() > 100_000 {
            return Err(OutboxError::TooLarge("1 MB at most".to_owned()));
        }
        self.0.sent.lock().unwrap().push((to, record));
        self.0.changed.send_modify(|count| *count += 1);
        self.1.acquire().await.map_err(|_| OutboxError::Failed("no acknowledgement".to_owned()))?.forget();
        Ok(())
    }
}

struct Scripted {
    events: mpsc::UnboundedReceiver<Event>,
    told: Arc<Told>,
    acks: Arc<Semaphore>,
}

#[async_trait]
impl Driver for Scripted {
    async fn next(&mut self, records_max: usize) -> Result<Event, DriverError> {
        self.told.records_max.store(records_max, Ordering::SeqCst);
        match self.events.recv().await {
            Some(event) => Ok(event),
            None => std::future::pending().await,
        }
    }

    fn commit(&mut self, points: Vec<(PartitionId, i64)>) {
        self.told.committed.lock().unwrap().extend(points);
        self.told.changed.send_modify(|count| *count += 1);
    }

    fn outbox(&self) -> Arc<dyn Outbox> {
        Arc::new(Acks(Arc::clone(&self.told), Arc::clone(&self.acks)))
    }

    async fn close(self: Box<Self>, points: Vec<(PartitionId, i64)>, _: Duration) -> Result<(), DriverError> {
        *self.told.closed.lock().unwrap() = Some(points.into_iter().collect());
        Ok(())
    }
}

/// A kit at work.
struct Bench {
    events: mpsc::UnboundedSender<Event>,
    told: Arc<Told>,
    acks: Arc<Semaphore>,
    metrics: Metrics,
    stop: oneshot::Sender<()>,
    ended: oneshot::Receiver<Result<Ended, DriverError>>,
    _task: crate::supervisor::Task,
    next: i64,
}

impl Bench {
    fn start(kit: Kit) -> Self {
        let (events, received) = mpsc::unbounded_channel();
        let (told, acks) = (Arc::<Told>::default(), Arc::new(Semaphore::new(1_000_000)));
        let driver = Scripted { events: received, told: Arc::clone(&told), acks: Arc::clone(&acks) };
        let (stop, stopped) = oneshot::channel::<()>();
        let (report, ended) = oneshot::channel();
        let metrics = kit.metrics().clone();
        let task = crate::supervisor::Supervisor::new().spawn("kit", async move {
            let stop = async { stopped.await.unwrap() };
            let _ = report.send(kit.run(driver, stop).await);
        });
        events.send(Event::Assigned(vec![place(0), place(1)])).unwrap();
        Self { events, told, acks, metrics, stop, ended, _task: task, next: 0 }
    }

    /// A request on partition 0 under a key.
    fn send(&mut self, key: &str, payload: &str, headers: &[(&'static str, String)]) -> i64 {
        let message = EchoRequest { payload: Bytes::copy_from_slice(payload.as_bytes()) };
        self.send_value(key, Some(Bytes::from(message.encode_to_vec())), headers)
    }

    fn send_value(&mut self, key: &str, value: Option<Bytes>, headers: &[(&'static str, String)]) -> i64 {
        let offset = self.next;
        self.next += 1;
        let mut all = vec![
            ("grpc-method".into(), Bytes::from_static(ECHO.as_bytes())),
            ("kafka_correlationId".into(), Bytes::from(format!("call-{offset}"))),
            ("kafka_replyTopic".into(), Bytes::from_static(b"replies")),
            ("kafka_replyPartition".into(), Bytes::from_static(&[0, 0, 0, 3])),
        ];
        for (name, value) in headers {
            all.retain(|(given, _): &(crate::transport::HeaderName, Bytes)| given != name);
            all.push(((*name).into(), Bytes::from(value.clone())));
        }
        let key = Some(Bytes::copy_from_slice(key.as_bytes()));
        let record = Received { offset, partition: 0, timestamp_ms: 0, key, value, headers: all };
        self.events.send(Event::Records(vec![Inbound { partition: place(0), record }])).unwrap();
        offset
    }

    async fn until(&self, what: &str, holds: impl Fn(&Self) -> bool) {
        let end = Instant::now() + PATIENCE;
        while !holds(self) {
            assert!(Instant::now() < end, "not in time: {what}");
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    }

    /// Waits for so many records to be written, and returns all replies by call.
    async fn replies(&self, count: usize) -> HashMap<String, Record> {
        self.until("replies", |bench| bench.told.sent.lock().unwrap().len() >= count).await;
        let sent = self.told.sent.lock().unwrap();
        let named = |(to, record): &(Destination, Record)| {
            assert_eq!((&*to.topic, to.partition), ("replies", Some(3)));
            (text(record, "kafka_correlationId").unwrap(), record.clone())
        };
        sent.iter().filter(|(to, _)| &*to.topic == "replies").map(named).collect()
    }

    async fn finish(self) -> (Ended, Option<i64>) {
        self.stop.send(()).unwrap();
        let ended = tokio::time::timeout(PATIENCE, self.ended).await.unwrap().unwrap().unwrap();
        let closed = self.told.closed.lock().unwrap().take().unwrap();
        (ended, closed.get(&place(0)).copied())
    }

    fn committed(&self) -> Option<i64> {
        self.told.committed.lock().unwrap().get(&place(0)).copied()
    }
}

fn text(record: &Record, name: &str) -> Option<String> {
    let header = record.headers.iter().find(|(given, _)| given == name);
    header.map(|(_, value)| String::from_utf8(value.to_vec()).unwrap())
}

fn deadline_in(left: Duration) -> (&'static str, String) {
    let at = SystemTime::now().duration_since(UNIX_EPOCH).unwrap() + left;
    ("grpc-deadline", at.as_millis().to_string())
}

fn echo(request: EchoRequest) -> EchoReply {
    EchoReply { payload: request.payload }
}

#[tokio::test(start_paused = true)]
async fn a_key_keeps_its_order_and_others_do_not_wait() {
    let done = Arc::new(Mutex::new(Vec::new()));
    let log = Arc::clone(&done);
    let kit = Kit::new().handle::<EchoRequest, EchoReply>(ECHO, move |call, request| {
        let log = Arc::clone(&log);
        async move {
            let pause = if call.record().key.as_deref() == Some(b"slow") { 1000 } else { 10 };
            tokio::time::sleep(Duration::from_millis(pause)).await;
            log.lock().unwrap().push(String::from_utf8(request.payload.to_vec()).unwrap());
            Ok(echo(request))
        }
    });
    let mut bench = Bench::start(kit);
    for number in 1..=3 {
        bench.send("slow", &format!("slow-{number}"), &[]);
        bench.send("quick", &format!("quick-{number}"), &[]);
    }
    let replies = bench.replies(6).await;
    let expected = ["quick-1", "quick-2", "quick-3", "slow-1", "slow-2", "slow-3"];
    assert_eq!(*done.lock().unwrap(), expected);
    let reply = EchoReply::decode(replies["call-0"].value.clone().unwrap()).unwrap();
    assert_eq!((&reply.payload[..], text(&replies["call-0"], "grpc-status")), (&b"slow-1"[..], None));
    assert_eq!(bench.finish().await, (Ended { cut: 0 }, Some(6)));
}

#[tokio::test(start_paused = true)]
async fn nothing_is_committed_before_its_reply_is_acknowledged() {
    let kit = Kit::new().handle::<EchoRequest, EchoReply>(ECHO, |_, request| async { Ok(echo(request)) });
    let mut bench = Bench::start(kit);
    bench.acks.forget_permits(usize::MAX);
    bench.send("a", "1", &[]);
    bench.send("a", "2", &[]);
    // The second does not wait for the first's acknowledgement, but for its reply.
    bench.replies(2).await;
    tokio::time::sleep(Duration::from_secs(5)).await;
    assert_eq!(bench.committed(), Some(0), "the first record is where to begin again");
    bench.acks.add_permits(1);
    bench.until("the first is committed", |bench| bench.committed() == Some(1)).await;
    bench.acks.add_permits(1);
    bench.until("both are committed", |bench| bench.committed() == Some(2)).await;
    assert_eq!(bench.finish().await.0, Ended { cut: 0 });
}

#[tokio::test(start_paused = true)]
async fn what_is_transient_is_tried_again_within_the_deadline_and_nothing_else() {
    let kit = Kit::new()
        .settings(|settings| settings.dead_letters = Some(DeadLetters::default()))
        .handle::<EchoRequest, EchoReply>(ECHO, |call, request| async move {
            match &request.payload[..] {
                b"third" if call.attempt() == 3 => Ok(echo(request)),
                b"third" | b"never" => Err(WorkerError::transient("the database is away")),
                b"invalid" => Err(WorkerError::invalid("payload", "is wrong")),
                _ => Err(WorkerError::failed("out of order")),
            }
        });
    let mut bench = Bench::start(kit);
    bench.send("a", "third", &[]);
    bench.send("b", "never", &[]);
    bench.send("c", "invalid", &[]);
    bench.send("d", "failed", &[]);
    // The first pause is at least 25 ms.
    bench.send("e", "never", &[deadline_in(Duration::from_millis(20))]);
    let replies = bench.replies(5 + 3).await;
    let status = |call: &str| text(&replies[call], "grpc-status");
    assert_eq!(status("call-0"), None);
    assert_eq!(status("call-1").as_deref(), Some("14"));
    assert_eq!(status("call-2").as_deref(), Some("3"));
    assert!(text(&replies["call-2"], "grpc-status-details-bin").is_some());
    assert_eq!(status("call-3").as_deref(), Some("13"));
    assert_eq!(bench.metrics.retried.get(), 2 + 4, "third twice, never four times, the hurried not at all");
    let sent = bench.told.sent.lock().unwrap().clone();
    let letters: Vec<&Record> =
        sent.iter().filter(|(to, _)| &*to.topic == "requests.DLQ").map(|(_, record)| record).collect();
    let mut classes: Vec<_> = letters.iter().map(|letter| text(letter, "failure.class").unwrap()).collect();
    classes.sort();
    assert_eq!(classes, ["handler-failed", "retries-exhausted", "retries-exhausted"]);
    let failed =
        letters.iter().find(|letter| text(letter, "failure.class").unwrap() == "handler-failed").unwrap();
    assert_eq!(text(failed, "original.topic").as_deref(), Some("requests"));
    assert_eq!(text(failed, "original.partition").as_deref(), Some("0"));
    assert_eq!(text(failed, "original.offset").as_deref(), Some("3"));
    assert_eq!(text(failed, "failure.reason").as_deref(), Some("INTERNAL: out of order"));
    assert_eq!(text(failed, "grpc-method").as_deref(), Some(ECHO), "the request's own headers stay");
    assert_eq!(failed.key.as_deref(), Some(&b"d"[..]));
    assert_eq!(bench.finish().await, (Ended { cut: 0 }, Some(5)));
}

#[tokio::test(start_paused = true)]
async fn a_panic_and_a_handler_without_end_are_answered_and_harm_nobody() {
    let kit = Kit::new()
        .settings(|settings| settings.handler_limit = Duration::from_secs(60))
        .handle::<EchoRequest, EchoReply>(ECHO, |_, request| {
            // Not even in the future: when it is made.
            assert!(&request.payload[..] != b"early", "at once");
            async move {
                assert!(&request.payload[..] != b"panic", "the handler broke on order {:?}", 7);
                if &request.payload[..] == b"large" {
                    return Ok(EchoReply { payload: Bytes::from(vec![0; 200_000]) });
                }
                if &request.payload[..] == b"stuck" {
                    std::future::pending::<()>().await;
                }
                Ok(echo(request))
            }
        });
    let mut bench = Bench::start(kit);
    for payload in ["panic", "early", "stuck", "fine"] {
        bench.send("a", payload, &[]);
    }
    bench.send_value("a", Some(Bytes::from_static(b"\xff")), &[]);
    bench.send("a", "x", &[("grpc-method", "/no.Such/Method".to_owned())]);
    bench.send("a", "large", &[]);
    let replies = bench.replies(7).await;
    let seen = |call: &str| (text(&replies[call], "grpc-status"), text(&replies[call], "grpc-message"));
    assert_eq!(
        seen("call-0"),
        (Some("13".into()), Some("the handler panicked: the handler broke on order 7".into()))
    );
    assert_eq!(seen("call-1").0.as_deref(), Some("13"));
    assert_eq!(seen("call-2"), (Some("13".into()), Some("the handler took longer than 60s".into())));
    assert_eq!(seen("call-3").0, None);
    assert_eq!(seen("call-4").0.as_deref(), Some("3"), "undecodable");
    assert_eq!(seen("call-5").0.as_deref(), Some("12"));
    assert_eq!(seen("call-6"), (Some("8".into()), Some("the reply is too large: 1 MB at most".into())));
    assert_eq!(bench.metrics.panics.get(), 2);
    assert_eq!(bench.metrics.handled_with(ECHO, "INTERNAL"), 3);
    assert_eq!(bench.metrics.handled_with("unknown", "UNIMPLEMENTED"), 1);
    assert_eq!(bench.finish().await, (Ended { cut: 0 }, Some(7)));
}

#[tokio::test(start_paused = true)]
async fn nobody_works_for_callers_that_have_gone() {
    let kit = Kit::new().settings(|settings| settings.concurrency = 1).handle::<EchoRequest, EchoReply>(
        ECHO,
        |call, request| async move {
            if &request.payload[..] == b"long" {
                call.ended().await;
                assert!(call.is_cancelled() || call.has_expired());
                return Err(WorkerError::ended());
            }
            assert!(call.time_left().is_some_and(|left| left <= Duration::from_secs(90)));
            Ok(echo(request))
        },
    );
    let mut bench = Bench::start(kit);
    let cancelled = bench.send("a", "long", &[]);
    bench.until("it is at work", |bench| bench.metrics.working.get() == 1).await;
    let queued = bench.send("a", "queued", &[]);
    bench.send("a", "expired", &[deadline_in(Duration::ZERO)]);
    bench.send("a", "long", &[deadline_in(Duration::from_secs(30))]);
    bench.send("a", "in time", &[deadline_in(Duration::from_secs(90))]);
    for call in [queued, cancelled] {
        let id = ("kafka_correlationId", format!("call-{call}"));
        bench.send_value("a", None, &[("antiphon-cancel", "1".to_owned()), id]);
    }
    bench.send_value("a", None, &[]);
    let replies = bench.replies(3).await;
    let mut answered: Vec<_> = replies.keys().cloned().collect();
    answered.sort();
    assert_eq!(answered, ["call-0", "call-3", "call-4"]);
    assert_eq!(text(&replies["call-4"], "grpc-status"), None);
    bench.until("the tombstone is skipped", |bench| bench.metrics.skipped_for("no-value") == 1).await;
    assert_eq!(bench.metrics.skipped_for("expired"), 1);
    assert_eq!(bench.metrics.skipped_for("cancelled"), 1);
    assert_eq!(bench.finish().await, (Ended { cut: 0 }, Some(8)));
}

#[tokio::test(start_paused = true)]
async fn an_idempotency_key_is_executed_once() {
    let executed = Arc::new(AtomicUsize::new(0));
    let count = Arc::clone(&executed);
    let kit = Kit::new().handle::<EchoRequest, EchoReply>(ECHO, move |call, request| {
        let number = count.fetch_add(1, Ordering::SeqCst);
        async move {
            call.reply_header("x-number", number.to_string());
            match &request.payload[..] {
                b"refused" => Err(WorkerError::rejected(Code::NotFound, "no such order")),
                b"busy" if number == 2 => Err(WorkerError::rejected(Code::ResourceExhausted, "later")),
                _ => Ok(echo(request)),
            }
        }
    });
    let mut bench = Bench::start(kit);
    let key = |key: &str| [("idempotency-key", key.to_owned())];
    for (idempotency, payload) in [
        ("k1", "pay"),
        ("k1", "pay"),
        ("k1", "other"),
        ("k2", "refused"),
        ("k2", "refused"),
        ("k3", "busy"),
        ("k3", "busy"),
    ] {
        bench.send("a", payload, &key(idempotency));
    }
    let replies = bench.replies(7).await;
    let seen = |call: &str| (text(&replies[call], "grpc-status"), text(&replies[call], "x-number"));
    assert_eq!(seen("call-0"), (None, Some("0".into())));
    assert_eq!(seen("call-1"), seen("call-0"), "the headers are kept, too");
    assert_eq!(replies["call-0"].value, replies["call-1"].value);
    assert_eq!(seen("call-2").0.as_deref(), Some("3"), "another message");
    assert_eq!(seen("call-3"), (Some("5".into()), Some("1".into())));
    assert_eq!(seen("call-4"), seen("call-3"));
    assert_eq!(seen("call-5").0.as_deref(), Some("8"));
    assert_eq!(seen("call-6"), (None, Some("3".into())), "what asks for another try is executed again");
    assert_eq!(executed.load(Ordering::SeqCst), 4);
    assert_eq!(bench.metrics.deduplicated.get(), 2);
    assert_eq!(bench.finish().await.0, Ended { cut: 0 });
}

fn sleeper(kit: Kit) -> Kit {
    kit.handle::<EchoRequest, EchoReply>(ECHO, |_, request| async move {
        let seconds: u64 = std::str::from_utf8(&request.payload).unwrap().parse().unwrap();
        tokio::time::sleep(Duration::from_secs(seconds)).await;
        Ok(echo(request))
    })
}

#[tokio::test(start_paused = true)]
async fn a_drain_finishes_what_is_in_hand_and_cuts_what_takes_too_long() {
    let kit = Kit::new().settings(|settings| settings.drain_limit = Duration::from_secs(20));
    let mut bench = Bench::start(sleeper(kit));
    bench.send("a", "5", &[]);
    bench.send("a", "6", &[]);
    bench.send("b", "100", &[]);
    bench.send("c", "7", &[]);
    bench.until("all are in hand", |bench| bench.metrics.held.get() == 4).await;
    let (metrics, told) = (bench.metrics.clone(), Arc::clone(&bench.told));
    let before = Instant::now();
    let (ended, point) = bench.finish().await;
    assert_eq!(before.elapsed().as_secs(), 20, "no longer than the limit");
    assert_eq!((ended, point), (Ended { cut: 1 }, Some(2)), "the one that was cut is where to begin again");
    assert_eq!(metrics.handled_with(ECHO, "OK"), 3);
    assert_eq!(told.records_max.load(Ordering::SeqCst), 0, "nothing is fetched in a drain");
}

#[tokio::test(start_paused = true)]
async fn revoked_partitions_finish_what_is_at_work_and_drop_the_rest() {
    let mut bench = Bench::start(sleeper(Kit::new()));
    bench.send("a", "5", &[]);
    bench.send("a", "1", &[]);
    bench.send("b", "100", &[]);
    bench.until("two are at work", |bench| bench.metrics.working.get() == 2).await;
    let (revocation, answered) = Revocation::new(vec![place(0)], Duration::from_secs(10));
    let before = Instant::now();
    bench.events.send(Event::Revoked(revocation)).unwrap();
    let mut points = None;
    while points.is_none() {
        tokio::time::sleep(Duration::from_millis(100)).await;
        points = answered.try_recv().ok();
    }
    assert_eq!(before.elapsed().as_secs(), 10);
    assert_eq!(points, Some(vec![(place(0), 1)]), "what was finished, in order");
    assert_eq!(bench.metrics.handled_with(ECHO, "OK"), 1);
    // A record that comes late is nobody's; after it comes back, it is.
    bench.next = 1;
    bench.send("a", "1", &[]);
    tokio::time::sleep(Duration::from_secs(5)).await;
    assert_eq!(bench.metrics.handled_with(ECHO, "OK"), 1);
    bench.events.send(Event::Assigned(vec![place(0)])).unwrap();
    bench.next = 1;
    bench.send("a", "1", &[]);
    bench.until("it is handled", |bench| bench.metrics.handled_with(ECHO, "OK") == 2).await;
    let before = Instant::now();
    let (revocation, answered) = Revocation::new(vec![place(0), place(1)], Duration::from_secs(10));
    bench.events.send(Event::Revoked(revocation)).unwrap();
    let mut points = None;
    while points.is_none() {
        tokio::time::sleep(Duration::from_millis(1)).await;
        points = answered.try_recv().ok();
    }
    assert!(before.elapsed() < Duration::from_secs(1), "nothing to wait for");
    assert_eq!(points, Some(vec![(place(0), 2)]));
    assert_eq!(bench.finish().await, (Ended { cut: 0 }, None));
}

#[tokio::test(start_paused = true)]
async fn no_more_is_taken_than_there_is_room_for() {
    let kit = Kit::new().settings(|settings| {
        (settings.held_max, settings.uncommitted_max, settings.concurrency) = (10, 12, 4);
    });
    let mut bench = Bench::start(sleeper(kit));
    let room = |bench: &Bench| bench.told.records_max.load(Ordering::SeqCst);
    bench.until("room for all", |bench| room(bench) == 10).await;
    bench.send("stuck", "250", &[]);
    for _ in 0..3 {
        bench.send("quick", "0", &[]);
    }
    bench.until("three are done", |bench| bench.metrics.handled_with(ECHO, "OK") == 3).await;
    bench.until("the window is nearly full", |bench| room(bench) == 8).await;
    for _ in 0..8 {
        bench.send("quick", "0", &[]);
    }
    bench.until("the window is full", |bench| room(bench) == 0).await;
    bench.until("it opens", |bench| room(bench) == 10).await;
    bench.until("all are committed", |bench| bench.committed() == Some(12)).await;
    assert_eq!(bench.finish().await.0, Ended { cut: 0 });
}
