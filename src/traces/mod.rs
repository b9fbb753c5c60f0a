//! Traces: the context that travels with calls, and spans of those that are
//! sampled, exported over OTLP.
//!
//! ```text
//! call ends ──► its spans ──► [ bounded queue ] ──► exporter ──► collector
//! ```
//!
//! Whether a call is sampled is decided when it begins: as its caller's trace
//! is, or else by chance. The spans are made when it has ended, from what was
//! noted on its way, so that a call which is not sampled has nothing to carry.
//! Nobody waits for the collector: what does not find room is dropped and counted.

pub mod config;
mod context;
mod export;
mod otlp;
mod span;

use std::time::Duration;

use tokio::sync::{mpsc, oneshot};
use tokio::time::timeout;

use crate::limits;
use crate::metrics::Counter;
use crate::web_client::{WebClient, WebClientError};
use config::Config;
use export::Order;
use otlp::{Resource, attribute};

pub use context::Context;
pub use export::Exporter;
pub use otlp::Value;
pub use span::{Kind, Span};

/// Decides what is sampled, and takes spans.
#[derive(Debug)]
pub struct Tracer {
    /// Of all `u64`, how many mean that a trace that begins here is recorded.
    root_below: u64,
    orders: mpsc::Sender<Order>,
    dropped: Counter,
}

/// A sampled call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Sampled {
    /// The trace, and our own span of it.
    pub context: Context,
    /// The caller's span.
    pub parent: Option<u64>,
    /// The span that sends the request, which is named before it exists.
    pub producer: u64,
}

impl Tracer {
    /// A tracer and what exports its spans, which must run. `instance` names the
    /// process; `exported` and `dropped` count spans.
    ///
    /// # Errors
    /// The endpoint or the certificates are of no use.
    pub fn new(
        config: &Config,
        instance: &str,
        exported: Counter,
        dropped: Counter,
    ) -> Result<(Self, Exporter), WebClientError> {
        let client = WebClient::new(&config.endpoint, config.ca_file.as_deref(), config.timeout)?;
        let (orders, taken) = mpsc::channel(limits::SPANS_WAITING_CALLS_MAX);
        let own = [
            ("service.name", config.service_name.as_str()),
            ("service.instance.id", instance),
            ("service.version", env!("CARGO_PKG_VERSION")),
        ];
        let more = config.resource.iter().map(|(name, value)| (name.as_str(), value.as_str()));
        // What is set by name wins over what is in the list.
        let more = more.filter(|(name, _)| !own[..2].iter().any(|(ours, _)| ours == name));
        let attributes = own.into_iter().chain(more);
        let attributes = attributes.map(|(name, value)| attribute(name, Value::Text(value.to_owned())));
        let exporter = Exporter {
            orders: taken,
            client,
            headers: config.headers.0.clone(),
            resource: Resource { attributes: attributes.collect() },
            exported,
            dropped: dropped.clone(),
            told: None,
        };
        let root_below = (config.ratio * u64::MAX as f64) as u64;
        Ok((Self { root_below, orders, dropped }, exporter))
    }

    /// Whether a call is sampled whose caller sent this context.
    pub fn sample(&self, parent: Option<Context>) -> Option<Sampled> {
        let trace_id = match parent {
            Some(parent) if parent.sampled => parent.trace_id,
            Some(_) => return None,
            None if self.root_below == u64::MAX || fastrand::u64(..) < self.root_below => fastrand::u128(1..),
            None => return None,
        };
        Some(Sampled {
            context: Context { trace_id, span_id: fastrand::u64(1..), sampled: true },
            parent: parent.map(|parent| parent.span_id),
            producer: fastrand::u64(1..),
        })
    }

    /// Hands in the spans of one call.
    pub fn export(&self, spans: Vec<Span>) {
        let count = spans.len() as u64;
        let messages = spans.into_iter().map(Span::into_message).collect();
        if self.orders.try_send(Order::Export(messages)).is_err() {
            self.dropped.inc_by(count);
        }
    }

    /// Waits until all spans so far are exported, for at most `limit`.
    pub async fn flush(&self, limit: Duration) {
        let (done, exported) = oneshot::channel();
        let flushed = async {
            if self.orders.send(Order::Flush(done)).await.is_ok() {
                let _ = exported.await;
            }
        };
        if timeout(limit, flushed).await.is_err() {
            tracing::warn!("spans are left that could not be exported in time");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tracer(ratio: f64) -> (Tracer, Exporter, Counter) {
        let config = Config { endpoint: "http://127.0.0.1:9/v1/traces".into(), ratio, ..Config::default() };
        let dropped = Counter::default();
        let (tracer, exporter) = Tracer::new(&config, "one", Counter::default(), dropped.clone()).unwrap();
        (tracer, exporter, dropped)
    }

    #[test]
    fn the_caller_decides_and_else_chance() {
        let parent = |sampled| Some(Context { trace_id: 7, span_id: 9, sampled });
        for ratio in [0.0, 1.0] {
            let (tracer, ..) = tracer(ratio);
            assert_eq!(tracer.sample(parent(false)), None);
            let sampled = tracer.sample(parent(true)).unwrap();
            assert_eq!((sampled.context.trace_id, sampled.parent), (7, Some(9)));
            assert_ne!(sampled.context.span_id, sampled.producer);
            assert_eq!(tracer.sample(None).is_some(), ratio == 1.0);
        }
        let (tracer, ..) = tracer(0.01);
        let roots = (0..100_000).filter(|_| tracer.sample(None).is_some()).count();
        assert!((800..1_200).contains(&roots), "{roots}");
    }

    #[test]
    fn what_finds_no_room_is_counted() {
        let (tracer, _exporter, dropped) = tracer(1.0);
        let spans = || vec![Span::new(Kind::Server, "s", tracer.sample(None).unwrap().context, 1, 2)];
        for _ in 0..limits::SPANS_WAITING_CALLS_MAX {
            tracer.export(spans());
        }
        assert_eq!(dropped.get(), 0);
        tracer.export(spans());
        assert_eq!(dropped.get(), 1);
    }

    #[tokio::test(start_paused = true)]
    async fn a_collector_that_is_not_there_costs_spans_and_no_more() {
        let (tracer, exporter, dropped) = tracer(1.0);
        let sampled = tracer.sample(None).unwrap();
        tracer.export(vec![Span::new(Kind::Server, "s", sampled.context, 1, 2)]);
        tokio::select! {
            () = exporter.run() => panic!("it runs as long as the tracer lives"),
            () = tracer.flush(Duration::from_secs(600)) => {}
        }
        assert_eq!(dropped.get(), 1);
    }
}
