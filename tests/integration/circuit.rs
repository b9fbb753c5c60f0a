//! Failing fast when a topic's workers do not answer.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use antiphon::worker::samples::{echo, payments};
use tonic::Code;

use crate::harness::{ECHO, PAY, TestGateway, trailer};
use crate::records::{all, call_with};

#[tokio::test]
async fn it_opens_after_timeouts_in_a_row_and_closes_with_an_answer() {
    let answers = Arc::new(AtomicBool::new(false));
    let working = Arc::clone(&answers);
    let gateway = TestGateway::build()
        .config(|config| {
            config.circuit.timeouts_max = 2;
            config.circuit.open_for = Duration::from_millis(700);
        })
        .worker(move |method, message| {
            let answered = method == PAY || working.load(Ordering::SeqCst);
            async move { answered.then_some(Ok(message)) }
        })
        .start()
        .await;
    let call = || call_with(&gateway, ECHO, echo::EchoRequest::default(), &[("grpc-timeout", "150m")]);
    for _ in 0..2 {
        assert_eq!(call().await.unwrap_err().code(), Code::DeadlineExceeded);
    }
    let opened = Instant::now();
    let refused = call().await.unwrap_err();
    assert!(opened.elapsed() < Duration::from_millis(100), "refused at once");
    assert_eq!(refused.code(), Code::Unavailable);
    let topic = gateway.topic("echo.v1.EchoService");
    assert!(
        refused.message().starts_with(&format!("the last calls on {topic} all timed out")),
        "{refused:?}"
    );
    assert_eq!(trailer(refused.metadata(), "antiphon-outcome").as_deref(), Some("not-sent"));
    let pushback: u64 = trailer(refused.metadata(), "grpc-retry-pushback-ms").unwrap().parse().unwrap();
    assert!((1..=700).contains(&pushback), "{pushback}");
    assert_eq!(gateway.gateway().instance().metrics.circuit_opened.get(), 1);

    let pay = payments::PayRequest { order_id: "o-1".to_owned(), ..Default::default() };
    call_with(&gateway, PAY, pay, &[]).await.expect("another topic's calls go on");

    // The call that tries is not answered either: open again.
    tokio::time::sleep(Duration::from_millis(750)).await;
    assert_eq!(call().await.unwrap_err().code(), Code::DeadlineExceeded);
    assert_eq!(call().await.unwrap_err().code(), Code::Unavailable);
    assert_eq!(gateway.gateway().instance().metrics.circuit_opened.get(), 2);

    answers.store(true, Ordering::SeqCst);
    tokio::time::sleep(Duration::from_millis(750)).await;
    for _ in 0..3 {
        call_with(&gateway, ECHO, echo::EchoRequest::default(), &[]).await.unwrap();
    }
    assert_eq!(all(&gateway.cluster, &topic).await.len(), 6, "refused calls have sent nothing");
    gateway.stop().await;
}

#[tokio::test]
async fn without_a_limit_it_never_opens() {
    let gateway = TestGateway::build().start().await;
    for _ in 0..5 {
        let call = call_with(&gateway, ECHO, echo::EchoRequest::default(), &[("grpc-timeout", "30m")]);
        assert_eq!(call.await.unwrap_err().code(), Code::DeadlineExceeded);
    }
    gateway.stop().await;
}
