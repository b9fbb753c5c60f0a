//! Which metadata travels: request metadata into record headers, reply headers
//! into response metadata. Nothing does that is not named; `authorization` is
//! no exception.
//!
//! Record headers are text, in every dialect, so binary metadata (`-bin`) is
//! base64 there, with padding, which every decoder takes. A key that came
//! several times is one header, its values joined by commas: gRPC says that
//! both are the same, and of two record headers with one name rskafka keeps one.

use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, STANDARD_NO_PAD};
use base64::engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig};
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

/// gRPC sends binary metadata without padding and accepts both; so do we.
const EITHER: GeneralPurpose = GeneralPurpose::new(
    &base64::alphabet::STANDARD,
    GeneralPurposeConfig::new().with_decode_padding_mode(DecodePaddingMode::Indifferent),
);
/// How the names of binary metadata end.
const BINARY: &str = "-bin";

/// The allow-lists, ready to use.
#[derive(Debug)]
pub struct Allowed {
    forward: Vec<HeaderName>,
    headers: Vec<String>,
    trailers: Vec<String>,
}

/// Response metadata, in front of the message and behind it.
#[derive(Debug, Default)]
pub struct Returned {
    /// In front of the message.
    pub headers: HeaderMap,
    /// Behind it.
    pub trailers: HeaderMap,
}

impl Allowed {
    /// These names of request metadata go into records, those of reply headers
    /// come back, before or behind the message; upper and lower case are one.
    pub fn new(forward: &[String], headers: &[String], trailers: &[String]) -> Self {
        let lower = |names: &[String]| names.iter().map(|name| name.to_ascii_lowercase()).collect();
        // What is no header name can't be in a request, either.
        let mut forward: Vec<HeaderName> = forward.iter().filter_map(|name| name.parse().ok()).collect();
        forward.retain(|name| !ALWAYS.contains(name));
        Self { forward, headers: lower(headers), trailers: lower(trailers) }
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
            push(&mut forwarded, headers, name, || RecordHeaderName::Borrowed(text))?;
        }
        for name in &self.forward {
            push(&mut forwarded, headers, name, || RecordHeaderName::Owned(name.to_string()))?;
        }
        Ok(forwarded)
    }

    /// Response metadata from a reply's headers. What gRPC has no form for (text
    /// that is not ASCII, binary metadata that is not base64) is left out, and so
    /// is what goes beyond [`limits::RESPONSE_METADATA_BYTES_MAX`].
    pub fn give_back(&self, reply: &[(RecordHeaderName, Bytes)]) -> Returned {
        let mut returned = Returned::default();
        let mut room = limits::RESPONSE_METADATA_BYTES_MAX;
        for (name, value) in reply {
            let named = |list: &[String]| list.iter().any(|allowed| name.eq_ignore_ascii_case(allowed));
            let into = match () {
                () if named(&self.headers) => &mut returned.headers,
                () if named(&self.trailers) => &mut returned.trailers,
                () => continue,
            };
            if append(into, name, value, &mut room).is_none() {
                let hint = "metadata has no form for it, or there is too much";
                tracing::debug!(name = &**name, hint, "a reply header is left out");
            }
        }
        returned
    }
}

/// All of the value or nothing. The name counts each time that it is sent.
fn append(into: &mut HeaderMap, name: &str, value: &Bytes, room: &mut usize) -> Option<()> {
    let name = HeaderName::from_bytes(name.as_bytes()).ok()?;
    if !name.as_str().ends_with(BINARY) {
        let value = HeaderValue::from_maybe_shared(value.clone()).ok()?;
        value.to_str().ok()?;
        *room = room.checked_sub(name.as_str().len() + value.len())?;
        into.append(name, value);
        return Some(());
    }
    let mut left = *room;
    let mut parts = Vec::new();
    for part in value.split(|byte| *byte == b',') {
        let part = STANDARD_NO_PAD.encode(EITHER.decode(part.trim_ascii()).ok()?);
        left = left.checked_sub(name.as_str().len() + part.len())?;
        parts.push(HeaderValue::from_maybe_shared(Bytes::from(part)).ok()?);
    }
    *room = left;
    for part in parts {
        into.append(&name, part);
    }
    Some(())
}

fn push(
    into: &mut Vec<(RecordHeaderName, Bytes)>,
    headers: &HeaderMap,
    name: &HeaderName,
    as_name: impl FnOnce() -> RecordHeaderName,
) -> Result<(), Status> {
    let values = headers.get_all(name);
    if values.iter().next().is_none() {
        return Ok(());
    }
    let joined = match name.as_str().ends_with(BINARY) {
        true => join_binary(values.iter())
            .ok_or_else(|| Status::invalid_argument(format!("metadata {name} is not base64")))?,
        false => join_text(values.iter()).ok_or_else(|| {
            let hint = "binary metadata has a name that ends with -bin";
            Status::invalid_argument(format!("metadata {name} is not printable ASCII; {hint}"))
        })?,
    };
    into.push((as_name(), joined));
    Ok(())
}

fn join_text<'a>(mut values: impl Iterator<Item = &'a HeaderValue>) -> Option<Bytes> {
    let first = values.next()?.to_str().ok()?;
    let Some(second) = values.next() else { return Some(Bytes::copy_from_slice(first.as_bytes())) };
    let mut joined = first.to_owned();
    for value in [second].into_iter().chain(values) {
        joined.push(',');
        joined.push_str(value.to_str().ok()?);
    }
    Some(Bytes::from(joined))
}

/// Each value may be several already, with commas between.
fn join_binary<'a>(values: impl Iterator<Item = &'a HeaderValue>) -> Option<Bytes> {
    let parts = values.flat_map(|value| value.as_bytes().split(|byte| *byte == b','));
    let parts: Option<Vec<String>> =
        parts.map(|part| Some(STANDARD.encode(EITHER.decode(part.trim_ascii()).ok()?))).collect();
    Some(Bytes::from(parts?.join(",")))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn names(names: &[&str]) -> Vec<String> {
        names.iter().map(|name| (*name).to_owned()).collect()
    }

    #[test]
    fn only_what_is_named_travels() {
        let allowed = Allowed::new(&names(&["X-Tenant"]), &names(&["x-cost"]), &[]);
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
        let named = Allowed::new(&names(&["authorization"]), &[], &[]);
        assert_eq!(named.forward(&headers).unwrap()[1].1, "Bearer secret");

        let reply = [
            ("X-Cost".into(), Bytes::from_static(b"7")),
            ("x-other".into(), Bytes::from_static(b"8")),
            ("x-cost".into(), Bytes::from_static(b"\n")),
            ("x-cost".into(), Bytes::from("없음")),
        ];
        let returned = allowed.give_back(&reply);
        assert_eq!(returned.headers.get_all("x-cost").iter().collect::<Vec<_>>(), ["7"]);
        assert_eq!((returned.headers.len(), returned.trailers.len()), (1, 0));
    }

    #[test]
    fn headers_and_trailers_are_named_apart_and_repeated_keys_are_kept() {
        let allowed = Allowed::new(&[], &names(&["x-cost"]), &names(&["x-took"]));
        let reply = ["x-took", "x-cost", "x-took"].map(|name| (name.into(), Bytes::from_static(b"1")));
        let returned = allowed.give_back(&reply);
        assert_eq!(returned.headers.get_all("x-cost").iter().count(), 1);
        assert_eq!(returned.trailers.get_all("x-took").iter().count(), 2);
    }

    #[test]
    fn binary_metadata_is_base64_in_records() {
        let allowed = Allowed::new(&names(&["x-token-bin"]), &names(&["x-token-bin"]), &[]);
        let mut headers = HeaderMap::new();
        // Bytes ff; 00 01 and 02; as clients write them, with padding or without.
        headers.append("x-token-bin", HeaderValue::from_static("/w"));
        headers.append("x-token-bin", HeaderValue::from_static("AAE=, Ag"));
        let forwarded = allowed.forward(&headers).unwrap();
        assert_eq!(forwarded, [("x-token-bin".into(), Bytes::from_static(b"/w==,AAE=,Ag=="))]);

        let returned = allowed.give_back(&forwarded).headers;
        assert_eq!(returned.get_all("x-token-bin").iter().collect::<Vec<_>>(), ["/w", "AAE", "Ag"]);
        let wrong = [("x-token-bin".into(), Bytes::from_static(b"\xff\x00"))];
        assert!(allowed.give_back(&wrong).headers.is_empty());
    }

    #[test]
    fn a_name_that_is_sent_often_counts_as_often() {
        let allowed = Allowed::new(&[], &names(&["x-token-bin", "x-cost"]), &[]);
        let commas = ",".repeat(limits::RESPONSE_METADATA_BYTES_MAX / 2);
        let reply =
            [("x-token-bin".into(), Bytes::from(commas)), ("x-cost".into(), Bytes::from_static(b"1"))];
        let returned = allowed.give_back(&reply).headers;
        assert_eq!(returned.len(), 1, "all of a header or nothing");
        assert!(returned.contains_key("x-cost"));
    }

    #[test]
    fn what_is_not_text_is_refused() {
        let allowed = Allowed::new(&names(&["x-name", "x-token-bin"]), &[], &[]);
        for (name, value, expected) in [
            (
                "x-name",
                "é",
                "metadata x-name is not printable ASCII; binary metadata has a name that ends with -bin",
            ),
            ("x-token-bin", "*", "metadata x-token-bin is not base64"),
        ] {
            let mut headers = HeaderMap::new();
            headers.insert(name, HeaderValue::from_bytes(value.as_bytes()).unwrap());
            let refused = allowed.forward(&headers).unwrap_err();
            assert_eq!((refused.code(), refused.message()), (tonic::Code::InvalidArgument, expected));
        }
    }

    #[test]
    fn a_key_that_is_too_long_is_refused() {
        let mut headers = HeaderMap::new();
        headers.insert(IDEMPOTENCY_KEY, HeaderValue::from_str(&"k".repeat(257)).unwrap());
        let refused = Allowed::new(&[], &[], &[]).forward(&headers).unwrap_err();
        assert_eq!(refused.message(), "idempotency-key has 257 bytes; at most 256 are allowed");
    }

    proptest! {
        /// FastStream, for one, drops a message with a header that is not UTF-8.
        #[test]
        fn what_is_forwarded_is_text(
            values in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 0..24), 0..4)
        ) {
            let allowed = Allowed::new(&names(&["x-name", "x-token-bin"]), &[], &[]);
            let mut headers = HeaderMap::new();
            for value in &values {
                if let Ok(value) = HeaderValue::from_bytes(value) {
                    headers.append("x-name", value.clone());
                    headers.append("x-token-bin", value);
                }
            }
            for (_, value) in allowed.forward(&headers).unwrap_or_default() {
                prop_assert!(std::str::from_utf8(&value).is_ok());
            }
        }

        #[test]
        fn binary_metadata_survives_the_way_there_and_back(
            values in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 1..24), 1..4)
        ) {
            let name = names(&["x-token-bin"]);
            let allowed = Allowed::new(&name, &[], &name);
            let mut headers = HeaderMap::new();
            for value in &values {
                headers.append("x-token-bin", STANDARD_NO_PAD.encode(value).parse().unwrap());
            }
            let returned = allowed.give_back(&allowed.forward(&headers).unwrap()).trailers;
            let back: Vec<Vec<u8>> =
                returned.get_all("x-token-bin").iter().map(|value| EITHER.decode(value).unwrap()).collect();
            prop_assert_eq!(back, values);
        }
    }
}
