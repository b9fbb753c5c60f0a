//! A span that has ended.

use super::context::Context;
use super::otlp::{ERROR, LinkMessage, SpanMessage, StatusMessage, Value, attribute};

/// `flags` of OTLP: sampled, and that it is known whether the parent is remote.
const SAMPLED: u32 = 1;
const HAS_IS_REMOTE: u32 = 0x100;
const IS_REMOTE: u32 = 0x200;

/// What a span stands for, by OpenTelemetry's numbers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// A call that was served.
    Server = 2,
    /// A message that was sent.
    Producer = 4,
    /// A message that was taken.
    Consumer = 5,
}

/// A span that has ended.
#[derive(Debug, Clone, PartialEq)]
pub struct Span(SpanMessage);

impl Span {
    /// A span of this name and context, from and to these times, in nanoseconds
    /// since 1970.
    pub fn new(kind: Kind, name: impl Into<String>, context: Context, start_ns: u64, end_ns: u64) -> Self {
        Self(SpanMessage {
            trace_id: context.trace_id.to_be_bytes().into(),
            span_id: context.span_id.to_be_bytes().into(),
            name: name.into(),
            kind: kind as i32,
            start_time_unix_nano: start_ns,
            end_time_unix_nano: end_ns.max(start_ns),
            flags: SAMPLED | HAS_IS_REMOTE,
            ..SpanMessage::default()
        })
    }

    /// Below this span of the same trace, which may be another process's.
    pub fn below(&mut self, span_id: u64, remote: bool) {
        self.0.parent_span_id = span_id.to_be_bytes().into();
        if remote {
            self.0.flags |= IS_REMOTE;
        }
    }

    /// The caller's `tracestate`.
    pub fn state(&mut self, text: &str) {
        text.clone_into(&mut self.0.trace_state);
    }

    /// One more attribute.
    pub fn text(&mut self, name: &str, value: impl Into<String>) {
        self.0.attributes.push(attribute(name, Value::Text(value.into())));
    }

    /// One more attribute that is a number.
    pub fn number(&mut self, name: &str, value: i64) {
        self.0.attributes.push(attribute(name, Value::Number(value)));
    }

    /// A span that it has to do with.
    pub fn link(&mut self, other: Context) {
        self.0.links.push(LinkMessage {
            trace_id: other.trace_id.to_be_bytes().into(),
            span_id: other.span_id.to_be_bytes().into(),
        });
    }

    /// It stands for a failure of this kind.
    pub fn failed(&mut self, kind: &str, message: &str) {
        self.text("error.type", kind);
        self.0.status = Some(StatusMessage { message: message.to_owned(), code: ERROR });
    }

    pub(super) fn into_message(self) -> SpanMessage {
        self.0
    }
}
