//! Sends spans to a collector: OTLP over HTTP, batch by batch.

use std::time::Duration;

use bytes::Bytes;
use http::{Request, StatusCode, header};
use prost::Message as _;
use tokio::sync::{mpsc, oneshot};
use tokio::time::{Instant, sleep, timeout_at};

use super::otlp::{ExportRequest, ExportResponse, Resource, ResourceSpans, Scope, ScopeSpans, SpanMessage};
use crate::backoff::Backoff;
use crate::limits;
use crate::metrics::Counter;
use crate::web_client::WebClient;

/// How long the first span of a batch waits for others.
const BATCH_WAIT: Duration = Duration::from_secs(1);
/// How often it is told that a collector takes nothing.
const TELL_INTERVAL: Duration = Duration::from_secs(60);

/// What the exporter is told.
pub(super) enum Order {
    /// The spans of one call.
    Export(Vec<SpanMessage>),
    /// Say so when all before it is sent, or given up.
    Flush(oneshot::Sender<()>),
}

/// Owns the way to the collector.
pub struct Exporter {
    pub(super) orders: mpsc::Receiver<Order>,
    pub(super) client: WebClient,
    pub(super) headers: Vec<(String, String)>,
    pub(super) resource: Resource,
    pub(super) exported: Counter,
    pub(super) dropped: Counter,
    pub(super) told: Option<Instant>,
}

impl Exporter {
    /// Sends until nobody can hand in any more.
    pub async fn run(mut self) {
        while let Some(order) = self.orders.recv().await {
            let (mut spans, mut done) = (Vec::new(), None);
            let until = Instant::now() + BATCH_WAIT;
            let mut next = Some(order);
            while let Some(order) = next {
                match order {
                    Order::Export(more) => spans.extend(more),
                    Order::Flush(waits) => done = Some(waits),
                }
                if done.is_some() || spans.len() >= limits::SPANS_PER_EXPORT {
                    break;
                }
                next = timeout_at(until, self.orders.recv()).await.ok().flatten();
            }
            if !spans.is_empty() {
                self.send(spans, done.is_some()).await;
            }
            if let Some(done) = done {
                // Whoever asked may have stopped waiting.
                let _ = done.send(());
            }
        }
    }

    /// Tries a few times; then they are dropped, so that what comes behind them
    /// has its chance.
    async fn send(&mut self, spans: Vec<SpanMessage>, last: bool) {
        let count = spans.len() as u64;
        let scope = Scope { name: "antiphon".to_owned(), version: env!("CARGO_PKG_VERSION").to_owned() };
        let request = ExportRequest {
            resource_spans: vec![ResourceSpans {
                resource: Some(self.resource.clone()),
                scope_spans: vec![ScopeSpans { scope: Some(scope), spans }],
            }],
        };
        let body = Bytes::from(request.encode_to_vec());
        let mut backoff = Backoff::default();
        let attempts = if last { 1 } else { limits::EXPORT_ATTEMPTS_MAX };
        let mut trouble = String::new();
        for attempt in 1..=attempts {
            match self.post(body.clone()).await {
                Ok(rejected) => {
                    let rejected = rejected.min(count);
                    self.exported.inc_by(count - rejected);
                    self.dropped.inc_by(rejected);
                    return;
                }
                Err(Refusal { why, may_pass }) => {
                    trouble = why;
                    if !may_pass {
                        break;
                    }
                }
            }
            if attempt < attempts {
                sleep(backoff.next_pause()).await;
            }
        }
        self.dropped.inc_by(count);
        self.tell(&trouble, count);
    }

    async fn post(&self, body: Bytes) -> Result<u64, Refusal> {
        let mut request = Request::post("").header(header::CONTENT_TYPE, "application/x-protobuf");
        for (name, value) in &self.headers {
            request = request.header(name, value);
        }
        let (status, answer) =
            self.client.ask(request, "", body).await.map_err(|why| Refusal { why, may_pass: true })?;
        if status.is_success() {
            let answer = ExportResponse::decode(answer).unwrap_or_default();
            let rejected = answer.partial_success.map_or(0, |partial| partial.rejected_spans);
            return Ok(u64::try_from(rejected).unwrap_or(0));
        }
        // Those that OTLP says are worth another try.
        let may_pass = matches!(
            status,
            StatusCode::TOO_MANY_REQUESTS
                | StatusCode::BAD_GATEWAY
                | StatusCode::SERVICE_UNAVAILABLE
                | StatusCode::GATEWAY_TIMEOUT
        );
        Err(Refusal { why: format!("HTTP {status}"), may_pass })
    }

    fn tell(&mut self, why: &str, spans: u64) {
        if self.told.is_some_and(|told| told.elapsed() < TELL_INTERVAL) {
            return;
        }
        self.told = Some(Instant::now());
        let dropped = self.dropped.get();
        tracing::warn!(collector = self.client.url(), why, spans, dropped, "spans could not be exported");
    }
}

struct Refusal {
    why: String,
    may_pass: bool,
}
