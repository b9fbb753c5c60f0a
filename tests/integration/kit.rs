//! The worker kit behind a gateway, over the transport's traits.

use std::sync::Arc;
use std::time::Duration;

use antiphon::dead_letters::{DeadLetterTopic, topics};
use antiphon::route::Settings;
use antiphon::supervisor::{Supervisor, Task};
use antiphon::transport::Cluster;
use antiphon::worker::samples::payments::{PayReply, PayRequest};
use antiphon::worker::{
    Code, Context, DeadLetters, DriverError, Ended, From, Kit, Metrics, TransportDriver, WorkerError,
};
use tokio::sync::oneshot;
use tonic::Code as Status;

use crate::harness::{PATIENCE, PAY, TestGateway, setting, until_async};
use crate::records::{all, call_with, text};

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
    let topic = gateway.topic("payment_request");
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
