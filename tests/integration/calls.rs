//! Calls that work.

use antiphon::message::WorkerStatus;
use antiphon::worker::samples::{Samples, echo, payments};
use bytes::Bytes;
use tonic::Code;

use crate::harness::{ECHO, PAY, TestGateway, trailer};

fn pay(order_id: &str, amount_minor: i64) -> payments::PayRequest {
    payments::PayRequest { order_id: order_id.to_owned(), amount_minor, currency: "EUR".to_owned() }
}

#[tokio::test]
async fn a_payment_is_answered_by_the_worker() {
    let gateway = TestGateway::build().handler(Samples::default()).start().await;
    let reply = gateway.call::<_, payments::PayReply>(PAY, pay("o-1", 1250)).await.unwrap();
    assert_eq!(reply.get_ref().order_id, "o-1");
    assert_eq!(reply.get_ref().state(), payments::PaymentState::Approved);
    gateway.settled().await;
    gateway.stop().await;
}

#[tokio::test]
async fn a_workers_error_is_the_callers_status() {
    let gateway = TestGateway::build().handler(Samples::default()).start().await;
    let status = gateway.call::<_, payments::PayReply>(PAY, pay("o-1", 0)).await.unwrap_err();
    assert_eq!(status.code(), Code::InvalidArgument);
    assert_eq!(status.message(), "amount_minor is 0; it must be above zero");
    assert_eq!(trailer(status.metadata(), "antiphon-outcome").as_deref(), Some("sent"));
    gateway.stop().await;
}

#[tokio::test]
async fn details_and_message_arrive_byte_for_byte() {
    let gateway = TestGateway::build()
        .worker(|_, details| async move {
            Some(Err(WorkerStatus { code: 9, message: "kein Geld: 없음 100%\n".to_owned(), details }))
        })
        .start()
        .await;
    let details = Bytes::from_static(b"\x08\x09\x12\x01x");
    let status = gateway.raw(ECHO, details.clone()).await.unwrap_err();
    assert_eq!((status.code(), status.message()), (Code::FailedPrecondition, "kein Geld: 없음 100%\n"));
    assert_eq!(status.details(), details);
    gateway.stop().await;
}

#[tokio::test]
async fn many_calls_at_once_get_their_own_replies() {
    let gateway =
        TestGateway::build().config(|config| config.shards = 2).handler(Samples::default()).start().await;
    let calls = (0..2_000).map(|n: u32| {
        let payload = Bytes::from(n.to_string());
        let request = echo::EchoRequest { payload: payload.clone() };
        let call = gateway.call::<_, echo::EchoReply>(ECHO, request);
        async move { assert_eq!(call.await.unwrap().get_ref().payload, payload) }
    });
    futures_util::future::join_all(calls).await;
    gateway.settled().await;
    assert_eq!(gateway.replies_of("delivered"), 2_000);
    for other in ["late", "duplicate", "foreign", "uncorrelated", "undecodable"] {
        assert_eq!(gateway.replies_of(other), 0, "{other}");
    }
    gateway.stop().await;
}

/// Together they are more than a broker takes in one batch.
#[tokio::test]
async fn large_replies_that_come_together_all_arrive() {
    let gateway = TestGateway::build().worker(|_, message| async move { Some(Ok(message)) }).start().await;
    let payload = Bytes::from(vec![7; 400 * 1024]);
    let calls = (0..8).map(|_| {
        let request = echo::EchoRequest { payload: payload.clone() };
        gateway.call::<_, echo::EchoReply>(ECHO, request)
    });
    for answered in futures_util::future::join_all(calls).await {
        assert_eq!(answered.unwrap().get_ref().payload.len(), payload.len());
    }
    gateway.stop().await;
}

#[tokio::test]
async fn a_reply_that_the_broker_does_not_take_is_told() {
    let gateway = TestGateway::build()
        .worker(|_, _| async move { Some(Ok(Bytes::from(vec![0x0a; 2 << 20]))) })
        .start()
        .await;
    let status = gateway.raw(ECHO, Bytes::new()).await.unwrap_err();
    assert_eq!(status.code(), Code::ResourceExhausted, "{status:?}");
    gateway.stop().await;
}
