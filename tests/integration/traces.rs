//! Trace context: through the request's record, and the reply's.

use antiphon::traces::Context;
use antiphon::traces::config::Config;
use antiphon::transport::Received;
use antiphon::worker::samples::echo::EchoRequest;

use crate::harness::{ECHO, TestGateway};
use crate::records::{all, call_with};

const TRACE: u128 = 0x4bf9_2f35_77b3_4da6_a3ce_929d_0e0e_4736;

/// A gateway that records calls, and whose spans nobody takes.
async fn tracing(ratio: f64) -> TestGateway {
    TestGateway::build()
        .config(move |config| {
            // It trims what was read, and these tests look at it afterwards.
            config.reply.heartbeat_interval = std::time::Duration::from_secs(30);
            let endpoint = "http://127.0.0.1:9/v1/traces".to_owned();
            config.traces = Some(Config { endpoint, ratio, ..Config::default() });
        })
        .worker(|_, message| async move { Some(Ok(message)) })
        .start()
        .await
}

async fn echo(gateway: &TestGateway, headers: &[(&'static str, &str)]) {
    call_with(gateway, ECHO, EchoRequest::default(), headers).await.unwrap();
}

fn header<'a>(record: &'a Received, name: &str) -> Option<&'a str> {
    record.header(name).map(|value| std::str::from_utf8(value).unwrap())
}

#[tokio::test]
async fn a_recorded_call_is_followed_into_both_records() {
    let gateway = tracing(0.0).await;
    let caller = Context { trace_id: TRACE, span_id: 7, sampled: true };
    echo(&gateway, &[("traceparent", &caller.to_string()), ("tracestate", "vendor=7")]).await;
    let request = &all(&gateway.cluster, &gateway.topic("echo.v1.EchoService")).await[0].1;
    let carried = Context::parse(header(request, "traceparent").unwrap().as_bytes()).unwrap();
    assert_eq!((carried.trace_id, carried.sampled), (TRACE, true));
    assert_ne!(carried.span_id, 7, "a span of our own");
    assert_eq!(header(request, "tracestate"), Some("vendor=7"));
    let replies = all(&gateway.cluster, gateway.gateway().instance().reply_topic()).await;
    let reply = replies.iter().find(|(_, record)| record.header("kafka_correlationId").is_some());
    assert_eq!(header(&reply.unwrap().1, "traceparent"), header(request, "traceparent"));
    gateway.stop().await;
}

#[tokio::test]
async fn what_is_not_recorded_goes_on_as_it_came() {
    let gateway = tracing(0.0).await;
    let caller = Context { trace_id: TRACE, span_id: 7, sampled: false }.to_string();
    echo(&gateway, &[("traceparent", &caller)]).await;
    echo(&gateway, &[("traceparent", "no context")]).await;
    echo(&gateway, &[]).await;
    let mut carried: Vec<_> = all(&gateway.cluster, &gateway.topic("echo.v1.EchoService"))
        .await
        .iter()
        .map(|(_, record)| header(record, "traceparent").map(str::to_owned))
        .collect();
    carried.sort();
    assert_eq!(carried, [None, Some(caller), Some("no context".to_owned())]);
    gateway.stop().await;
}

#[tokio::test]
async fn a_trace_may_begin_here_and_calls_do_not_need_a_collector() {
    let gateway = tracing(1.0).await;
    for _ in 0..10 {
        echo(&gateway, &[]).await;
    }
    let mut traces: Vec<u128> = all(&gateway.cluster, &gateway.topic("echo.v1.EchoService"))
        .await
        .iter()
        .map(|(_, record)| {
            Context::parse(header(record, "traceparent").unwrap().as_bytes()).unwrap().trace_id
        })
        .collect();
    traces.sort_unstable();
    traces.dedup();
    assert_eq!(traces.len(), 10, "each begins one");
    let dropped = gateway.gateway().instance().metrics.spans_dropped.clone();
    crate::harness::until("the spans are counted as dropped", || dropped.get() == 30).await;
    gateway.stop().await;
}
