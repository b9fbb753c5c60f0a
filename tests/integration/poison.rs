//! Whatever lies on the reply topic, the replies behind it arrive.

use std::time::Duration;

use antiphon::correlation::Minter;
use antiphon::transport::{HeaderName, Record};
use antiphon::worker::samples::{Samples, echo};
use bytes::Bytes;

use crate::harness::{ECHO, TestGateway};

fn record(headers: Vec<(&'static str, Bytes)>) -> Record {
    let headers = headers.into_iter().map(|(n, v)| (HeaderName::Borrowed(n), v)).collect();
    Record { key: None, value: Some(Bytes::from_static(b"x")), headers }
}

#[tokio::test]
async fn foreign_late_and_request_like_records_are_counted_and_passed_over() {
    let gateway = TestGateway::build().handler(Samples::default()).start().await;
    let foreign = Minter::new(0, 1, [9; 32]).mint(3);
    let foreign = Bytes::copy_from_slice(&foreign.to_text());
    gateway.write_reply(record(vec![("kafka_correlationId", foreign.clone())])).await;
    gateway
        .write_reply(record(vec![("kafka_correlationId", foreign), ("kafka_replyTopic", Bytes::from("t"))]))
        .await;
    gateway.write_reply(record(vec![("kafka_correlationId", Bytes::from_static(b"\xff\x00"))])).await;
    gateway.write_reply(record(vec![])).await;

    let request = echo::EchoRequest { payload: Bytes::from_static(b"behind") };
    let reply = gateway.call::<_, echo::EchoReply>(ECHO, request).await.unwrap();
    assert_eq!(reply.get_ref().payload, "behind");
    let foreign = gateway.replies_of("foreign") + gateway.replies_of("late");
    assert_eq!((foreign, gateway.replies_of("request"), gateway.replies_of("uncorrelated")), (1, 1, 2));
    gateway.stop().await;
}

#[tokio::test]
async fn a_late_reply_is_counted_and_reaches_nobody() {
    let gateway = TestGateway::build()
        .worker(|_, message| async move {
            tokio::time::sleep(Duration::from_millis(400)).await;
            Some(Ok(message))
        })
        .start()
        .await;
    let mut request = tonic::Request::new(echo::EchoRequest { payload: Bytes::from_static(b"slow") });
    request.set_timeout(Duration::from_millis(150));
    let status = gateway.send::<_, echo::EchoReply>(ECHO, request).await.unwrap_err();
    assert!(matches!(status.code(), tonic::Code::DeadlineExceeded | tonic::Code::Cancelled), "{status:?}");
    gateway.until("the late reply is counted", || gateway.replies_of("late") == 1).await;
    gateway.settled().await;
    gateway.stop().await;
}
