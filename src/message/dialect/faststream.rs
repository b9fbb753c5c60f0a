//! The headers of FastStream over Kafka. Sources, in faststream:
//! `faststream/kafka/publisher/producer.py` (names; a reply has `reply_to` only
//! if its publisher was given one), `faststream/kafka/parser.py` (every header
//! is decoded as UTF-8, and a message with one that is not is dropped),
//! `encode_message` (values and `content-type`).
//!
//! | request header | value |
//! |---|---|
//! | `correlation_id` | 36 ASCII characters |
//! | `reply_to` | UTF-8 |
//! | `content-type` | written for every dialect; FastStream decodes the value by it |
//!
//! A reply has `correlation_id` and `content-type`. No header names a partition:
//! replies go to any partition of the reply topic. A handler that raises sends
//! no reply; one that returns None sends an empty value.

use bytes::Bytes;

use super::{ReplyAddress, text_id};
use crate::correlation::CorrelationId;
use crate::transport::HeaderName;

pub(super) const CORRELATION_ID: &str = "correlation_id";
pub(super) const REPLY_TO: &str = "reply_to";

pub(super) fn write_request(
    id: CorrelationId,
    reply_to: Option<&ReplyAddress>,
    headers: &mut Vec<(HeaderName, Bytes)>,
) {
    headers.push((HeaderName::Borrowed(CORRELATION_ID), text_id(id)));
    if let Some(address) = reply_to {
        headers.push((HeaderName::Borrowed(REPLY_TO), address.topic.clone()));
    }
}

pub(super) fn is_own(name: &str) -> bool {
    [CORRELATION_ID, REPLY_TO].contains(&name)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::message::dialect::tests::{ADDRESS, ID, assert_headers};

    #[test]
    fn golden_bytes_of_a_request() {
        let mut headers = Vec::new();
        write_request(ID(), Some(&ADDRESS()), &mut headers);
        assert_headers(
            &headers,
            &[("correlation_id", b"00000102-0003-8004-8005-000000000006"), ("reply_to", b"replies.a")],
        );
    }
}
