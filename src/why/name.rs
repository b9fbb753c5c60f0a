//! What a call can be named by.

use crate::correlation::CorrelationId;
use crate::message::dialect::{Custom, correlation_id_of};
use crate::message::{IDEMPOTENCY_KEY, TRACEPARENT};
use crate::transport::Received;

/// Hexadecimal digits of a trace id, by W3C Trace Context.
const TRACE_ID_DIGITS: usize = 32;

/// A correlation id, an idempotency key or a trace id: which of them is known
/// only once a record has it, since an idempotency key may look like anything.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Name {
    text: String,
    id: Option<CorrelationId>,
    trace: Option<String>,
}

impl Name {
    /// As people write it: what the trailer, the log or the caller says; also a
    /// whole `traceparent`.
    pub fn new(text: &str) -> Self {
        let text = text.trim();
        let trace = trace_id(text).or_else(|| is_trace_id(text).then_some(text));
        Self {
            text: text.to_owned(),
            id: CorrelationId::parse(text.as_bytes()).filter(|_| text.len() == 36),
            trace: trace.map(str::to_ascii_lowercase),
        }
    }

    /// As it was written.
    pub fn text(&self) -> &str {
        &self.text
    }

    /// The correlation id, where it can be one of ours and thus nothing else.
    pub fn correlation_id(&self) -> Option<CorrelationId> {
        self.id.filter(|id| id.is_of_our_form())
    }

    /// Whether the record has it.
    pub fn names(&self, record: &Received, custom: Option<&Custom>) -> bool {
        let is_id = self.id.is_some() && correlation_id_of(record, custom) == self.id;
        let is_key = || record.header(IDEMPOTENCY_KEY).is_some_and(|key| key == self.text.as_bytes());
        let is_trace = || {
            let Some(trace) = &self.trace else { return false };
            let parent = record.header(TRACEPARENT).and_then(|value| std::str::from_utf8(value).ok());
            parent.and_then(trace_id).is_some_and(|found| found.eq_ignore_ascii_case(trace))
        };
        is_id || is_key() || is_trace()
    }
}

/// The trace id in a `traceparent`.
fn trace_id(traceparent: &str) -> Option<&str> {
    let mut parts = traceparent.split('-');
    let (version, id, parent) = (parts.next()?, parts.next()?, parts.next()?);
    (version.len() == 2 && parent.len() == 16 && is_trace_id(id)).then_some(id)
}

fn is_trace_id(text: &str) -> bool {
    text.len() == TRACE_ID_DIGITS && text.bytes().all(|byte| byte.is_ascii_hexdigit())
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;

    fn record(headers: &[(&'static str, &'static str)]) -> Received {
        let headers = headers.iter().map(|(n, v)| ((*n).into(), Bytes::from_static(v.as_bytes())));
        Received {
            offset: 0,
            partition: 0,
            timestamp_ms: 0,
            key: None,
            value: None,
            headers: headers.collect(),
        }
    }

    #[test]
    fn a_record_is_found_by_each_of_its_names() {
        const TRACEPARENT: &str = "00-4BF92F3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";
        let record = record(&[
            ("kafka_correlationId", "00000102-0003-8004-8005-00000000000a"),
            ("idempotency-key", "5f2b9c1e-0003-4004-8005-000000000000"),
            ("traceparent", TRACEPARENT),
        ]);
        for (text, expected) in [
            ("00000102-0003-8004-8005-00000000000A", true),
            (" 00000102-0003-8004-8005-00000000000a\n", true),
            ("5f2b9c1e-0003-4004-8005-000000000000", true),
            ("4bf92f3577b34da6a3ce929d0e0e4736", true),
            (TRACEPARENT, true),
            ("00000102-0003-8004-8005-00000000000b", false),
            ("4bf92f3577b34da6a3ce929d0e0e4737", false),
            ("5f2b9c1e", false),
            ("", false),
        ] {
            assert_eq!(Name::new(text).names(&record, None), expected, "{text:?}");
        }
        assert!(Name::new("00000102-0003-8004-8005-00000000000a").correlation_id().is_some());
        // Of version 4, so it may be an idempotency key as well.
        assert!(Name::new("5f2b9c1e-0003-4004-8005-000000000000").correlation_id().is_none());
    }
}
