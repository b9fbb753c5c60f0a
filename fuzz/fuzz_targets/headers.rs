//! Headers on their way through: metadata of a call into its record, and what a
//! worker echoes back into metadata of the response. The input is lines of
//! `name: value`.
#![no_main]

use std::time::Duration;

use antiphon::correlation::CorrelationId;
use antiphon::deadline::Deadline;
use antiphon::ingress::metadata::Allowed;
use antiphon::limits::{IDEMPOTENCY_KEY_BYTES_MAX, RESPONSE_METADATA_BYTES_MAX};
use antiphon::message::dialect::{Dialect, Kind, classify};
use antiphon::message::{
    IDEMPOTENCY_KEY, PROTOBUF, Reply, ReplyAddress, RequestParts, TRACEPARENT, TRACESTATE,
};
use antiphon::terms::CorrelationForm;
use antiphon::transport::Received;
use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue};
use libfuzzer_sys::fuzz_target;

const FORWARD: [&str; 3] = ["X-Tenant", "x-user-bin", "traceparent"];
const GIVE_BACK: [&str; 3] = ["x-tenant", "X-Cost", "grpc-status"];
const TRAILERS: [&str; 3] = ["x-took", "x-user-bin", "grpc-message"];

fn metadata(input: &[u8]) -> HeaderMap {
    let mut metadata = HeaderMap::new();
    for line in input.split(|byte| *byte == b'\n') {
        let Some(colon) = line.iter().position(|byte| *byte == b':') else { continue };
        let value = line[colon + 1..].strip_prefix(b" ").unwrap_or(&line[colon + 1..]);
        // HTTP/2 lets nothing else through.
        if let (Ok(name), Ok(value)) =
            (HeaderName::from_bytes(&line[..colon]), HeaderValue::from_bytes(value))
        {
            metadata.append(name, value);
        }
    }
    metadata
}

fuzz_target!(|input: &[u8]| {
    let names = |names: [&str; 3]| names.map(str::to_owned);
    let allowed = Allowed::new(&names(FORWARD), &names(GIVE_BACK), &names(TRAILERS));
    let metadata = metadata(input);
    let key_bytes: usize = metadata.get_all(IDEMPOTENCY_KEY).iter().map(HeaderValue::len).sum();
    let Ok(forwarded) = allowed.forward(&metadata) else {
        let text = metadata.values().all(|value| value.to_str().is_ok());
        let binary = metadata.contains_key("x-user-bin");
        return assert!(key_bytes > IDEMPOTENCY_KEY_BYTES_MAX || !text || binary);
    };
    assert!(key_bytes <= IDEMPOTENCY_KEY_BYTES_MAX);
    for (n, (name, value)) in forwarded.iter().enumerate() {
        let named =
            FORWARD.iter().chain(&[TRACESTATE, IDEMPOTENCY_KEY]).any(|a| a.eq_ignore_ascii_case(name));
        assert!(named, "{name} was not allowed");
        assert!(forwarded[..n].iter().all(|(other, _)| other != name), "{name} is there twice");
        assert!(value.is_ascii(), "{name} is not text");
        if name.ends_with("-bin") {
            continue;
        }
        let values: Vec<_> = metadata.get_all(&**name).iter().map(HeaderValue::as_bytes).collect();
        assert_eq!(*value, values.join(&b','));
    }
    assert_eq!(forwarded.iter().any(|(name, _)| name == TRACEPARENT), metadata.contains_key(TRACEPARENT));

    let id = CorrelationId::parse(b"00000102-0003-8004-8005-000000000006").expect("an id");
    let address = ReplyAddress { topic: Bytes::from_static(b"replies"), partition: Some(1) };
    let dialect = Dialect::Spring(CorrelationForm::Text);
    let parts = RequestParts {
        dialect: &dialect,
        method: Bytes::from_static(b"/a.B/C"),
        id,
        reply_to: Some(&address),
        deadline: Deadline::after(Duration::from_secs(1)),
        key: None,
        value: Bytes::new(),
        content_type: PROTOBUF,
        metadata: forwarded,
    };
    let mut headers = parts.into_record().headers;
    let request = Received { offset: 1, partition: 0, timestamp_ms: 0, key: None, value: None, headers: headers.clone() };
    assert!(matches!(classify(&request, None), Kind::Request));

    // A worker that echoes every header, and adds what the caller has sent.
    headers.retain(|(name, _)| !name.starts_with("kafka_reply"));
    for (name, value) in &metadata {
        let known = headers.iter().any(|(known, _)| *known == name.as_str());
        if !known {
            headers.push((name.as_str().to_owned().into(), Bytes::copy_from_slice(value.as_bytes())));
        }
    }
    let record = Received { value: Some(Bytes::new()), headers, ..request };
    // A caller's own headers may make it anything; a reply, if there are none.
    let kind = classify(&record, None);
    assert!(matches!(kind, Kind::Reply(found) if found == id) || !metadata.is_empty());
    let Ok(reply) = Reply::decode(record, &dialect, false, 64) else { return };
    let given = allowed.give_back(&reply.headers);
    let both = || given.headers.iter().chain(&given.trailers);
    let bytes: usize = both().map(|(name, value)| name.as_str().len() + value.len()).sum();
    assert!(bytes <= RESPONSE_METADATA_BYTES_MAX);
    for (name, value) in both() {
        let named = GIVE_BACK.iter().chain(&TRAILERS).any(|a| a.eq_ignore_ascii_case(name.as_str()));
        assert!(named, "{name} was not allowed");
        assert!(!name.as_str().starts_with("grpc-"), "{name} is gRPC's own");
        assert!(value.to_str().is_ok(), "{name} is not text");
    }
});
