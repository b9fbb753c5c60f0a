//! The spans of a sampled call, made when it is over.
//!
//! ```text
//! caller's span ──► SERVER package.Service/Method
//!                     ├──► PRODUCER send REQUEST-TOPIC ──► the worker's, by the record
//!                     └──► CONSUMER process REPLY-TOPIC ┄┄ linked to the worker's
//! ```
//!
//! Names and attributes are those of OpenTelemetry's semantic conventions for
//! RPC and for messaging with Kafka.

use std::net::SocketAddr;

use http::HeaderValue;
use tonic::Code;

use super::account::code_name;
use crate::exchange::{Journey, Outcome};
use crate::pending::Coordinates;
use crate::traces::{Context, Kind, Sampled, Span};

/// A call that is traced.
#[derive(Debug)]
pub(super) struct Traced {
    pub(super) sampled: Sampled,
    pub(super) state: Option<HeaderValue>,
}

/// What the spans of a call are made of.
pub(super) struct Told<'a> {
    pub(super) traced: &'a Traced,
    pub(super) path: &'a str,
    pub(super) request_topic: Option<&'a str>,
    pub(super) reply_topic: &'a str,
    pub(super) peer: Option<SocketAddr>,
    pub(super) code: Code,
    pub(super) reason: &'a str,
    pub(super) outcome: Outcome,
    pub(super) id: Option<String>,
    pub(super) journey: Option<&'a Journey>,
    /// When it ended, in nanoseconds since 1970, and how long it took.
    pub(super) end_ns: u64,
    pub(super) took_us: u64,
}

impl Told<'_> {
    /// All of them.
    pub(super) fn spans(&self) -> Vec<Span> {
        let mut spans = vec![self.server()];
        spans.extend(self.producer());
        spans.extend(self.consumer());
        spans
    }

    fn at_ns(&self, us: u64) -> u64 {
        let began = self.end_ns.saturating_sub(self.took_us * 1_000);
        (began + us * 1_000).min(self.end_ns)
    }

    fn server(&self) -> Span {
        let Sampled { context, parent, .. } = self.traced.sampled;
        let method = self.path.trim_start_matches('/');
        let mut span = Span::new(Kind::Server, method, context, self.at_ns(0), self.end_ns);
        if let Some(parent) = parent {
            span.below(parent, true);
        }
        if let Some(state) = self.traced.state.as_ref().and_then(|state| state.to_str().ok()) {
            span.state(state);
        }
        span.text("rpc.system.name", "grpc");
        span.text("rpc.method", method);
        span.text("rpc.response.status_code", code_name(self.code));
        if let Some(peer) = self.peer {
            span.text("client.address", peer.ip().to_string());
            span.number("client.port", peer.port().into());
        }
        span.text("antiphon.outcome", self.outcome.as_str());
        self.name_the_call(&mut span);
        match self.code {
            // Those that the conventions count as the server's failure.
            Code::Unknown
            | Code::DeadlineExceeded
            | Code::Unimplemented
            | Code::Internal
            | Code::Unavailable
            | Code::DataLoss => span.failed(code_name(self.code), self.reason),
            _ => {}
        }
        span
    }

    fn name_the_call(&self, span: &mut Span) {
        if let Some(id) = &self.id {
            span.text("messaging.message.conversation_id", id.as_str());
        }
    }

    fn messaging(&self, span: &mut Span, operation: &str, topic: &str, at: Option<Coordinates>) {
        span.below(self.traced.sampled.context.span_id, false);
        span.text("messaging.system", "kafka");
        span.text("messaging.operation.name", operation);
        span.text("messaging.operation.type", operation);
        span.text("messaging.destination.name", topic);
        self.name_the_call(span);
        if let Some(at) = at {
            span.text("messaging.destination.partition.id", at.partition.to_string());
            if let Some(offset) = at.offset {
                span.number("messaging.kafka.offset", offset);
            }
        }
    }

    /// From when the request was sent to its acknowledgement.
    fn producer(&self) -> Option<Span> {
        let (journey, topic) = (self.journey?, self.request_topic?);
        let sent = journey.sent_us()?;
        // A reply may be faster than the acknowledgement.
        let settled = journey.acknowledged_us().or(journey.answered_us());
        let context = Context { span_id: self.traced.sampled.producer, ..self.traced.sampled.context };
        let end = settled.map_or(self.end_ns, |us| self.at_ns(us));
        let mut span = Span::new(Kind::Producer, format!("send {topic}"), context, self.at_ns(sent), end);
        self.messaging(&mut span, "send", topic, journey.request());
        if settled.is_none() {
            span.failed(self.outcome.as_str(), "the request was not acknowledged");
        }
        Some(span)
    }

    /// From when the reply came to the end of the call.
    fn consumer(&self) -> Option<Span> {
        let journey = self.journey?;
        let (came, at) = (journey.answered_us()?, journey.reply()?);
        let context = Context { span_id: fastrand::u64(1..), ..self.traced.sampled.context };
        let name = format!("process {}", self.reply_topic);
        let mut span = Span::new(Kind::Consumer, name, context, self.at_ns(came), self.end_ns);
        self.messaging(&mut span, "process", self.reply_topic, Some(at));
        if let Some(worker) = journey.reply_context().and_then(|text| Context::parse(text)) {
            span.link(worker);
        }
        Some(span)
    }
}
