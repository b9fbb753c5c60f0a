//! The worker kit behind a gateway, over the transport's traits.

use std::sync::Arc;
use std::time::Duration;

use antiphon::dead_letters::{DeadLetterTopic, topics};
use antiphon::route::Settings;
use antiphon::supervisor::{Supervisor, Task};
use antiphon::transport::Cluster;
use antiphon::worker::samples::payments::{PayReply, PayRequest};
use antiphon::worker::{
    Code, Context, DeadLetters, DriverError, Ended, From, Kit, Metrics, Replies, TransportDriver, WorkerError,
};
use bytes::Bytes;
use prost::Message as _;
use tokio::sync::oneshot;
use tonic::Code as Status;

use crate::harness::{PATIENCE, PAY, TestGateway, setting, streaming, until_async};
use crate::raw::{RawAnswer, framed, post};
use crate::records::{all, call_with, text};
use crate::several::{self, Text};

/// A kit at work.
pub struct KitWorker {
    pub metrics: Metrics,
    stop: oneshot::Sender<()>,
    ended: oneshot::Receiver<Result<Ended, DriverError>>,
    _task: Task,
}

impl KitWorker {
    pub fn start(kit: Kit, driver: impl antiphon::worker::Driver) -> Self {
        let metrics = kit.metrics().clone();
        let (stop, stopped) = oneshot::channel::<()>();
        let (report, ended) = oneshot::channel();
        let task = Supervisor::new().spawn("kit", async move {
            let _ = report.send(kit.run(driver, async { drop(stopped.await) }).await);
        });
        Self { metrics, stop, ended, _task: task }
    }

    /// Drains and returns how it went.
    pub async fn stop(self) -> Ended {
        self.stop.send(()).unwrap();
        tokio::time::timeout(PATIENCE, self.ended).await.unwrap().unwrap().unwrap()
    }
}

/// Leaders may not know a topic yet that was created a moment ago.
async fn start(gateway: &TestGateway, kit: Kit) -> KitWorker {
    start_on(gateway, "payment_request", kit).await
}

async fn start_on(gateway: &TestGateway, topic: &str, kit: Kit) -> KitWorker {
    let topic = gateway.topic(topic);
    let supervisor = Supervisor::new();
    for _ in 0..100 {
        let cluster: Arc<dyn Cluster> = Arc::clone(&gateway.cluster) as _;
        match TransportDriver::start(cluster, &[&topic], From::End, &supervisor).await {
            Ok(driver) => return KitWorker::start(kit, driver),
            Err(_) => tokio::time::sleep(Duration::from_millis(50)).await,
        }
    }
    panic!("no worker on {topic}");
}

pub fn pay(order: &str, amount_minor: i64) -> PayRequest {
    PayRequest { order_id: order.to_owned(), amount_minor, currency: "EUR".to_owned() }
}

async fn handle(call: Context, request: PayRequest) -> Result<PayReply, WorkerError> {
    match request.order_id.split('-').next() {
        Some("crash") => panic!("the handler broke on order {}", request.order_id),
        Some("away") if call.attempt() < 3 => return Err(WorkerError::transient("the bank is away")),
        Some("never") => return Err(WorkerError::transient("the bank is away")),
        Some("slow") => {
            call.ended().await;
            return Err(WorkerError::ended());
        }
        _ => {}
    }
    if request.amount_minor <= 0 {
        return Err(WorkerError::invalid("amount_minor", "must be above zero"));
    }
    if request.currency == "ZZZ" {
        return Err(WorkerError::rejected(Code::FailedPrecondition, "no such currency"));
    }
    let payment_id = format!("pay-{}-{}", request.order_id, call.attempt());
    Ok(PayReply { order_id: request.order_id, payment_id, state: 1 })
}

fn kit() -> Kit {
    Kit::new()
        .settings(|settings| settings.dead_letters = Some(DeadLetters::default()))
        .handle::<PayRequest, PayReply>(PAY, handle)
}

#[tokio::test]
async fn a_typed_handler_answers_calls_with_replies_and_statuses() {
    let gateway = TestGateway::build().topic("payment_request.DLQ", 0).start().await;
    let letters = format!("{}.DLQ", gateway.topic("payment_request"));
    gateway.cluster.create_topic(&letters, 2, 1).await.unwrap();
    let worker = start(&gateway, kit()).await;

    let reply = gateway.call::<_, PayReply>(PAY, pay("o-1", 5)).await.unwrap().into_inner();
    assert_eq!(reply.payment_id, "pay-o-1-1");
    let reply = gateway.call::<_, PayReply>(PAY, pay("away-1", 5)).await.unwrap().into_inner();
    assert_eq!(reply.payment_id, "pay-away-1-3", "the third attempt");
    let refused = gateway.call::<_, PayReply>(PAY, pay("o-2", 0)).await.unwrap_err();
    assert_eq!(
        (refused.code(), refused.message()),
        (Status::InvalidArgument, "amount_minor: must be above zero")
    );
    assert!(String::from_utf8_lossy(refused.details()).contains("google.rpc.BadRequest"));
    let crashed = gateway.call::<_, PayReply>(PAY, pay("crash-주문", 5)).await.unwrap_err();
    assert_eq!(crashed.code(), Status::Internal);
    assert_eq!(crashed.message(), "the handler panicked: the handler broke on order crash-주문");
    let given_up = gateway.call::<_, PayReply>(PAY, pay("never-1", 5)).await.unwrap_err();
    assert_eq!((given_up.code(), given_up.message()), (Status::Unavailable, "the bank is away"));

    let known = topics(&*gateway.cluster).await.unwrap();
    let found = DeadLetterTopic::find(&known, &gateway.topic("payment_request")).unwrap();
    assert_eq!(found.name, letters, "antiphon dlq finds them");
    let mut classes: Vec<_> = all(&gateway.cluster, &letters)
        .await
        .iter()
        .map(|(_, letter)| text(letter, "failure.class").unwrap())
        .collect();
    classes.sort();
    assert_eq!(classes, ["handler-panicked", "retries-exhausted"]);
    assert_eq!(worker.metrics.handled_with(PAY, "OK"), 2);
    assert_eq!(worker.metrics.retried.get(), 2 + 4);
    assert_eq!((worker.metrics.panics.get(), worker.metrics.replies_lost.get()), (1, 0));
    assert_eq!(worker.stop().await, Ended { cut: 0 });
    gateway.stop().await;
}

#[tokio::test]
async fn a_caller_that_goes_away_ends_the_handler() {
    let settings = Settings { cancel_record: setting(true), ..Settings::default() };
    let gateway = TestGateway::build().method("payments.v1.PaymentService/Pay", settings).start().await;
    let worker = start(&gateway, kit()).await;
    let call = call_with(&gateway, PAY, pay("slow-1", 5), &[("grpc-timeout", "60S")]);
    // Given up as a caller does, by dropping the call.
    tokio::time::timeout(Duration::from_secs(1), call).await.unwrap_err();
    until_async("the handler has ended", async || worker.metrics.handled_with(PAY, "CANCELLED") == 1).await;
    // Its key goes on.
    call_with(&gateway, PAY, pay("slow-1", 5), &[("grpc-timeout", "300m")]).await.unwrap_err();
    gateway.call::<_, PayReply>(PAY, pay("quick-1", 5)).await.unwrap();
    worker.stop().await;
    gateway.settled().await;
    gateway.stop().await;
}

/// Sends as many replies as the text says, and then ends as its first word does.
async fn count(call: Context, query: Text, replies: Replies<Text>) -> Result<(), WorkerError> {
    let (how, count) = query.text.split_once(' ').unwrap();
    for number in 0..count.parse().unwrap() {
        if how == "slow" {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        if how == "headers" {
            call.reply_header("x-cost", number.to_string());
        }
        replies.send(&Text { text: number.to_string() }).await?;
    }
    match how {
        "fail" => Err(WorkerError::rejected(Code::FailedPrecondition, "no more")),
        "crash" => panic!("the handler broke"),
        "large" => Ok(replies.send(&Text { text: "x".repeat(2 << 20) }).await?),
        _ => Ok(()),
    }
}

async fn counted(gateway: &TestGateway, path: &'static str, text: &str) -> RawAnswer {
    let message = Text { text: text.to_owned() }.encode_to_vec();
    post(gateway.gateway().grpc_address(), path, &[("grpc-timeout", "20S")], framed(&message)).await
}

#[tokio::test]
async fn a_handler_sends_several_replies_and_their_end_is_said_for_it() {
    const STREAM: &str = "/several.v1.StreamService/Stream";
    const ALL: &str = "/several.v1.CollectService/All";
    let gateway = several::gateway().start().await;
    let kit = Kit::new().handle_stream::<Text, Text>(STREAM, count).handle_stream::<Text, Text>(ALL, count);
    let worker = start_on(&gateway, several::TOPIC, kit).await;

    let numbers = |count: u32| (0..count).map(|number| number.to_string()).collect::<Vec<_>>();
    for many in [0, 1, 3, 500] {
        let answer = counted(&gateway, STREAM, &format!("well {many}")).await;
        assert_eq!((several::texts(&answer), answer.code()), (numbers(many), Status::Ok));
        assert_eq!(answer.said("antiphon-replies"), Some(&*many.to_string()));
    }
    let collected = counted(&gateway, ALL, "well 3").await;
    let texts = several::Texts::decode(collected.body.slice(5..)).unwrap();
    assert_eq!(texts.all.into_iter().map(|text| text.text).collect::<Vec<_>>(), numbers(3));
    assert_eq!(counted(&gateway, STREAM, "headers 2").await.headers["x-cost"], "0");

    let failed = counted(&gateway, STREAM, "fail 2").await;
    assert_eq!((several::texts(&failed), failed.code()), (numbers(2), Status::FailedPrecondition));
    assert_eq!(failed.status().message(), "no more");
    let crashed = counted(&gateway, STREAM, "crash 1").await;
    assert_eq!(
        (crashed.code(), crashed.status().message()),
        (Status::Internal, "the handler panicked: the handler broke")
    );
    let large = counted(&gateway, STREAM, "large 1").await;
    assert_eq!((several::texts(&large), large.code()), (numbers(1), Status::ResourceExhausted));

    assert_eq!(worker.metrics.handled_with(STREAM, "OK"), 5);
    assert_eq!(worker.metrics.replies_lost.get(), 0);
    assert_eq!(gateway.replies_of("late") + gateway.replies_of("duplicate"), 0);
    assert_eq!(worker.stop().await, Ended { cut: 0 });
    gateway.settled().await;
    gateway.stop().await;
}

#[tokio::test]
async fn a_handler_that_streams_hears_that_nobody_reads_any_more() {
    let path = "/several.v1.StreamService/Letters";
    let gateway = several::gateway().start().await;
    let kit = Kit::new().handle_stream::<Text, Text>(path, count);
    let worker = start_on(&gateway, several::TOPIC, kit).await;
    let request = Bytes::from(Text { text: "slow 100000".to_owned() }.encode_to_vec());
    let stream = streaming(gateway.channel.clone(), path, tonic::Request::new(request)).await.unwrap();
    let mut stream = stream.into_inner();
    assert!(stream.message().await.unwrap().is_some());
    drop(stream);
    until_async("the handler has ended", async || worker.metrics.handled_with(path, "CANCELLED") == 1).await;
    worker.stop().await;
    gateway.settled().await;
    gateway.stop().await;
}
