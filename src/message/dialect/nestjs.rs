//! The headers of NestJS microservices over Kafka. Sources, in
//! `packages/microservices` of nestjs/nest: `enums/kafka-headers.enum.ts`
//! (names), `server/server-kafka.ts` (`assignReplyPartition` reads the
//! partition with `parseFloat`; `assignErrorHeader`, `assignIsDisposedHeader`),
//! `helpers/kafka-parser.ts` and `serializers/kafka-request.serializer.ts`
//! (values), `exceptions/base-rpc-exception-filter.ts` (what an error looks
//! like), `server/server.ts` (`send`: values, errors and completion of an
//! observable, one after the other).
//!
//! | request header | value |
//! |---|---|
//! | `kafka_correlationId` | 36 ASCII characters; NestJS turns headers into strings, so bytes would come back spoilt |
//! | `kafka_replyTopic` | UTF-8 |
//! | `kafka_replyPartition` | decimal ASCII; four bytes of an int32 would be no number, and no reply would come |
//!
//! | reply header | value |
//! |---|---|
//! | `kafka_correlationId` | the request's |
//! | `kafka_nest-is-disposed` | one zero byte, on the last record of a reply |
//! | `kafka_nest-err` | on an error: a string, or the JSON of an object; the record's value is null |
//!
//! An error's object may have a `code`, from 1 to 16, which is taken for the
//! gRPC status as in NestJS's own gRPC transport, and a `message`; without a
//! code it is UNKNOWN. `throw new RpcException({code: 9, message: '...'})`
//! makes such an object; any other exception becomes
//! `{"status":"error","message":"Internal server error"}`. A handler that
//! returns null or undefined sends a null value, without an error. Of a handler
//! that returns an observable with several values, the first is the reply, unless
//! the route collects them.

use bytes::Bytes;

use super::{ReplyAddress, spring, text_id};
use crate::correlation::CorrelationId;
use crate::message::reply::{UNKNOWN, WorkerStatus};
use crate::transport::{HeaderName, Received};

const ERROR: &str = "kafka_nest-err";
const IS_DISPOSED: &str = "kafka_nest-is-disposed";

pub(super) fn write_request(
    id: CorrelationId,
    reply_to: Option<&ReplyAddress>,
    headers: &mut Vec<(HeaderName, Bytes)>,
) {
    headers.push((HeaderName::Borrowed(spring::CORRELATION_ID), text_id(id)));
    let Some(address) = reply_to else { return };
    headers.push((HeaderName::Borrowed(spring::REPLY_TOPIC), address.topic.clone()));
    if let Some(partition) = address.partition {
        headers.push((HeaderName::Borrowed(spring::REPLY_PARTITION), Bytes::from(partition.to_string())));
    }
}

/// The handler's observable has completed. It says so on its last value where
/// that had not been sent yet, else in a record of its own, without a value.
pub(super) fn is_last(reply: &Received) -> bool {
    reply.header(IS_DISPOSED).is_some()
}

pub(super) fn error_of(reply: &Received) -> Option<WorkerStatus> {
    let error = reply.header(ERROR)?;
    let object = serde_json::from_slice::<serde_json::Map<String, serde_json::Value>>(error).ok();
    let field = |name| object.as_ref().and_then(|object| object.get(name));
    let code = field("code").and_then(serde_json::Value::as_u64).and_then(|code| u8::try_from(code).ok());
    let message = field("message").and_then(serde_json::Value::as_str);
    let message = message.map_or_else(|| String::from_utf8_lossy(error).into_owned(), str::to_owned);
    let code = code.filter(|code| (1..=16).contains(code)).unwrap_or(UNKNOWN);
    Some(WorkerStatus::new(code, message, Bytes::new()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::message::dialect::tests::{ADDRESS, ID, assert_headers, reply};

    #[test]
    fn golden_bytes_of_a_request() {
        let mut headers = Vec::new();
        write_request(ID(), Some(&ADDRESS()), &mut headers);
        assert_headers(
            &headers,
            &[
                ("kafka_correlationId", b"00000102-0003-8004-8005-000000000006"),
                ("kafka_replyTopic", b"replies.a"),
                ("kafka_replyPartition", b"258"),
            ],
        );
    }

    #[test]
    fn golden_errors() {
        let cases: [(&[u8], u8, &str); 7] = [
            (br#"{"code":9,"message":"no funds"}"#, 9, "no funds"),
            (br#"{"status":"error","message":"Internal server error"}"#, 2, "Internal server error"),
            (b"There is no matching message handler", 2, "There is no matching message handler"),
            (br#"{"code":0,"message":"fine?"}"#, 2, "fine?"),
            (br#"{"code":"5"}"#, 2, r#"{"code":"5"}"#),
            (br#"["a"]"#, 2, r#"["a"]"#),
            (b"\xff", 2, "\u{fffd}"),
        ];
        for (error, code, message) in cases {
            let found = error_of(&reply(None, &[(ERROR, error), ("kafka_nest-is-disposed", &[0])]));
            let expected = WorkerStatus { code, message: message.to_owned(), details: Bytes::new() };
            assert_eq!(found, Some(expected));
        }
        assert_eq!(error_of(&reply(None, &[("kafka_nest-is-disposed", &[0])])), None);
    }
}
