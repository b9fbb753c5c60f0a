//! Zilla's grpc-kafka binding, as a client of workers, and its kafka-grpc
//! binding, as a worker. Sources, in aklivity/zilla: `GrpcKafkaWithProduceResult`
//! (headers and key of a request), `GrpcKafkaProxyFactory` (`doKafkaDataNull`
//! ends a request; a null value ends a reply, whose status it carries),
//! `KafkaGrpcFetchHeaderHelper` and `KafkaGrpcConditionResult` (the worker's
//! side of it).
//!
//! | request header | value |
//! |---|---|
//! | `zilla:service`, `zilla:method` | `pkg.Service`, `Method` |
//! | `zilla:reply-to` | topic, UTF-8 |
//! | `zilla:correlation-id` | 36 ASCII characters; Zilla's own are opaque, too |
//! | `meta:<name>` | allow-listed metadata |
//!
//! A request is a stream: a record with the message, and behind it one with the
//! same key and headers and a null value, which ends it. Both have a key, the
//! correlation id where the route has none, because a reply goes to the
//! partition of its key, and its parts must stay together. A one-way request is
//! one record without `zilla:reply-to`, as Zilla has it.
//!
//! | reply header | value |
//! |---|---|
//! | `zilla:correlation-id` | the request's |
//! | `zilla:status` | on the end: decimal status, absent or `0` for OK |
//! | `zilla:message` | on the end: `grpc-message`, percent-encoded as gRPC has it |
//! | `meta:<name>` | metadata |
//!
//! A reply is a stream, too: records with messages, and one with a null value
//! that ends it. Of a unary method there must be one message, unless its route
//! collects several.

use bytes::Bytes;

use super::{ReplyAddress, text_id};
use crate::correlation::CorrelationId;
use crate::message::reply::{DecodeError, WorkerStatus, percent_decoded, status_code};
use crate::transport::{HeaderName, Received, Record};

pub(super) const CORRELATION_ID: &str = "zilla:correlation-id";
pub(super) const REPLY_TO: &str = "zilla:reply-to";
const SERVICE: &str = "zilla:service";
const METHOD: &str = "zilla:method";
const STATUS: &str = "zilla:status";
const MESSAGE: &str = "zilla:message";
const METADATA: &str = "meta:";

pub(super) fn write_request(
    path: &Bytes,
    id: CorrelationId,
    reply_to: Option<&ReplyAddress>,
    headers: &mut Vec<(HeaderName, Bytes)>,
) {
    // `/pkg.Service/Method`
    let slash = path.iter().rposition(|byte| *byte == b'/').unwrap_or_default();
    headers.push((HeaderName::Borrowed(SERVICE), path.slice(slash.min(1)..slash)));
    headers.push((HeaderName::Borrowed(METHOD), path.slice((slash + 1).min(path.len())..)));
    if let Some(address) = reply_to {
        headers.push((HeaderName::Borrowed(REPLY_TO), address.topic.clone()));
    }
    headers.push((HeaderName::Borrowed(CORRELATION_ID), text_id(id)));
}

pub(super) fn key_without_one(id: CorrelationId) -> Bytes {
    text_id(id)
}

pub(super) fn end_of_request(request: &Record) -> Record {
    Record { key: request.key.clone(), value: None, headers: request.headers.clone() }
}

/// A message; the end, which tells how the call went, is still to come.
pub(super) fn is_part(reply: &Received) -> bool {
    reply.value.is_some() && reply.header(STATUS).is_none()
}

pub(super) fn error_of(reply: &Received) -> Result<Option<WorkerStatus>, DecodeError> {
    let code = status_code(STATUS, reply.header(STATUS))?;
    let message = || percent_decoded(reply.header(MESSAGE));
    let status = |code| WorkerStatus::new(code, message(), Bytes::new());
    Ok(code.filter(|code| *code > 0).map(status))
}

pub(super) fn metadata_name(name: &str) -> HeaderName {
    HeaderName::Owned(format!("{METADATA}{name}"))
}

pub(super) fn metadata_of(name: HeaderName) -> Option<HeaderName> {
    match name.strip_prefix(METADATA) {
        Some(metadata) => Some(HeaderName::Owned(metadata.to_owned())),
        None => (!name.starts_with("zilla:")).then_some(name),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::message::dialect::tests::{ADDRESS, ID, assert_headers, reply};

    #[test]
    fn golden_bytes_of_a_request() {
        let path = Bytes::from_static(b"/pay.v1.PayService/Pay");
        let mut headers = Vec::new();
        write_request(&path, ID(), Some(&ADDRESS()), &mut headers);
        let expected: [(&str, &[u8]); 4] = [
            ("zilla:service", b"pay.v1.PayService"),
            ("zilla:method", b"Pay"),
            ("zilla:reply-to", b"replies.a"),
            ("zilla:correlation-id", b"00000102-0003-8004-8005-000000000006"),
        ];
        assert_headers(&headers, &expected);

        let request =
            Record { key: Some(key_without_one(ID())), value: Some(Bytes::from_static(b"m")), headers };
        let end = end_of_request(&request);
        assert_eq!(end.key.as_deref(), Some(&b"00000102-0003-8004-8005-000000000006"[..]));
        assert_eq!(end.value, None);
        assert_headers(&end.headers, &expected);
    }

    #[test]
    fn a_path_that_is_none_does_no_harm() {
        for path in ["", "/", "x", "/x", "//"] {
            let mut headers = Vec::new();
            write_request(&Bytes::from_static(path.as_bytes()), ID(), None, &mut headers);
            assert_eq!(headers.len(), 3, "{path:?}");
        }
    }

    #[test]
    fn golden_ends() {
        type Headers = &'static [(&'static str, &'static [u8])];
        let cases: [(Headers, Option<(u8, &str)>); 4] = [
            (&[], None),
            (&[("zilla:status", b"0")], None),
            (&[("zilla:status", b"5"), ("zilla:message", b"no%20order")], Some((5, "no order"))),
            (&[("zilla:status", b"13")], Some((13, ""))),
        ];
        for (headers, expected) in cases {
            let found = error_of(&reply(None, headers)).unwrap();
            let found = found.map(|status| (status.code, status.message));
            assert_eq!(found, expected.map(|(code, message)| (code, message.to_owned())));
        }
        assert_eq!(
            error_of(&reply(None, &[("zilla:status", b"seven")])),
            Err(DecodeError::Status { header: "zilla:status".into(), found: "seven".to_owned() })
        );
    }

    #[test]
    fn metadata_has_a_prefix() {
        assert_eq!(metadata_name("x-tenant"), "meta:x-tenant");
        assert_eq!(metadata_of("meta:x-cost".into()).as_deref(), Some("x-cost"));
        assert_eq!(metadata_of("zilla:status".into()), None);
        assert_eq!(metadata_of("x-other".into()).as_deref(), Some("x-other"));
    }
}
