//! Which metadata travels: request metadata into record headers, reply headers
//! into response metadata. Nothing does that is not named; `authorization` is
//! no exception.

use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue};
use tonic::Status;

use crate::limits;
use crate::message::{IDEMPOTENCY_KEY, TRACEPARENT, TRACESTATE};
use crate::transport::HeaderName as RecordHeaderName;

/// Always forwarded: tracing, and the key by which workers tell repeats. To
/// look a text up in a `HeaderMap` parses it as a name each time.
static ALWAYS: [HeaderName; 3] = [
    HeaderName::from_static(TRACEPARENT),
    HeaderName::from_static(TRACESTATE),
    HeaderName::from_static(IDEMPOTENCY_KEY),
];

/// The allow-lists, ready to use.
#[derive(Debug)]
pub struct Allowed {
    forward: Vec<HeaderName>,
    give_back: Vec<String>,
}

impl Allowed {
    /// These names of request metadata go into records, those of reply headers
    /// come back; upper and lower case are one.
    pub fn new(forward: &[String], give_back: &[String]) -> Self {
        let lower = |names: &[String]| names.iter().map(|name| name.to_ascii_lowercase()).collect();
        // What is no header name can't be in a request, either.
        let mut forward: Vec<HeaderName> = forward.iter().filter_map(|name| name.parse().ok()).collect();
        forward.retain(|name| !ALWAYS.contains(name));
        Self { forward, give_back: lower(give_back) }
    }

    /// Record headers for a request. A key that came several times becomes one
    /// header, its values joined by commas, as gRPC allows for metadata.
    pub fn forward(&self, headers: &HeaderMap) -> Result<Vec<(RecordHeaderName, Bytes)>, Status> {
        let key: usize = headers.get_all(&ALWAYS[2]).iter().map(HeaderValue::len).sum();
        if key > limits::IDEMPOTENCY_KEY_BYTES_MAX {
            let max = limits::IDEMPOTENCY_KEY_BYTES_MAX;
            return Err(Status::invalid_argument(format!(
                "idempotency-key has {key} bytes; at most {max} are allowed"
            )));
        }
        let mut forwarded = Vec::with_capacity(10);
        for (name, text) in ALWAYS.iter().zip([TRACEPARENT, TRACESTATE, IDEMPOTENCY_KEY]) {
            push(&mut forwarded, headers, name, || RecordHeaderName::Borrowed(text));
        }
        for name in &self.forward {
            push(&mut forwarded, headers, name, || RecordHeaderName::Owned(name.to_string()));
        }
        Ok(forwarded)
    }

    /// Response metadata from a reply's headers. A value that HTTP/2 can't
    /// carry is left out, and so is what goes beyond
    /// [`limits::RESPONSE_METADATA_BYTES_MAX`].
    pub fn give_back(&self, reply: &[(RecordHeaderName, Bytes)]) -> HeaderMap {
        let mut metadata = HeaderMap::new();
        let mut bytes = 0;
        for (name, value) in reply {
            if !self.give_back.iter().any(|allowed| name.eq_ignore_ascii_case(allowed)) {
                continue;
            }
            bytes += name.len() + value.len();
            if bytes > limits::RESPONSE_METADATA_BYTES_MAX {
                break;
            }
            let pair =
                (HeaderName::from_bytes(name.as_bytes()), HeaderValue::from_maybe_shared(value.clone()));
            if let (Ok(name), Ok(value)) = pair {
                metadata.append(name, value);
            }
        }
        metadata
    }
}

fn push(
    into: &mut Vec<(RecordHeaderName, Bytes)>,
    headers: &HeaderMap,
    name: &HeaderName,
    as_name: impl FnOnce() -> RecordHeaderName,
) {
    let mut values = headers.get_all(name).iter();
    let Some(first) = values.next() else { return };
    let mut joined = first.as_bytes().to_vec();
    for value in values {
        joined.push(b',');
        joined.extend_from_slice(value.as_bytes());
    }
    into.push((as_name(), Bytes::from(joined)));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_is_named_travels() {
        let allowed = Allowed::new(&["X-Tenant".to_owned()], &["x-cost".to_owned()]);
        let mut headers = HeaderMap::new();
        headers.insert("authorization", HeaderValue::from_static("Bearer secret"));
        headers.append("x-tenant", HeaderValue::from_static("a"));
        headers.append("x-tenant", HeaderValue::from_static("b"));
        headers.insert("traceparent", HeaderValue::from_static("00-1-2-01"));
        let forwarded = allowed.forward(&headers).unwrap();
        assert_eq!(
            forwarded,
            [
                ("traceparent".into(), Bytes::from_static(b"00-1-2-01")),
                ("x-tenant".into(), Bytes::from_static(b"a,b")),
            ]
        );

        let reply = [
            ("X-Cost".into(), Bytes::from_static(b"7")),
            ("x-other".into(), Bytes::from_static(b"8")),
            ("x-cost".into(), Bytes::from_static(b"\n")),
        ];
        let metadata = allowed.give_back(&reply);
        assert_eq!(metadata.get_all("x-cost").iter().collect::<Vec<_>>(), ["7"]);
        assert_eq!(metadata.len(), 1);
    }

    #[test]
    fn a_key_that_is_too_long_is_refused() {
        let mut headers = HeaderMap::new();
        headers.insert(IDEMPOTENCY_KEY, HeaderValue::from_str(&"k".repeat(257)).unwrap());
        let refused = Allowed::new(&[], &[]).forward(&headers).unwrap_err();
        assert_eq!(refused.message(), "idempotency-key has 257 bytes; at most 256 are allowed");
    }
}
