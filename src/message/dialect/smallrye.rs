//! The headers of SmallRye Reactive Messaging, which Quarkus has for Kafka.
//! Sources, in smallrye-reactive-messaging's main branch: `KafkaRequestReply`
//! (names), `KafkaRequestReplyImpl` and `UUIDCorrelationIdHandler` (what a
//! requester writes), `KafkaRecordHelper.getHeaders` and `KafkaSink` (what a
//! worker's outgoing channel does with them).
//!
//! | header | value |
//! |---|---|
//! | `REPLY_CORRELATION_ID` | 36 ASCII characters; echoed as it is |
//! | `REPLY_TOPIC` | UTF-8 |
//! | `REPLY_PARTITION` | int32, big-endian |
//!
//! There is no header for errors. A processor that fails nacks its message, and
//! no reply is sent; one that wants to say why sets the `grpc-status` headers
//! in its outgoing metadata.

use bytes::Bytes;

use super::{ReplyAddress, int32, text_id};
use crate::correlation::CorrelationId;
use crate::transport::HeaderName;

pub(super) const CORRELATION_ID: &str = "REPLY_CORRELATION_ID";
pub(super) const REPLY_TOPIC: &str = "REPLY_TOPIC";
const REPLY_PARTITION: &str = "REPLY_PARTITION";

pub(super) fn write_request(
    id: CorrelationId,
    reply_to: Option<&ReplyAddress>,
    headers: &mut Vec<(HeaderName, Bytes)>,
) {
    headers.push((HeaderName::Borrowed(CORRELATION_ID), text_id(id)));
    let Some(address) = reply_to else { return };
    headers.push((HeaderName::Borrowed(REPLY_TOPIC), address.topic.clone()));
    if let Some(partition) = address.partition {
        headers.push((HeaderName::Borrowed(REPLY_PARTITION), int32(partition)));
    }
}

pub(super) fn is_own(name: &str) -> bool {
    [CORRELATION_ID, REPLY_TOPIC, REPLY_PARTITION].contains(&name)
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
            &[
                ("REPLY_CORRELATION_ID", b"00000102-0003-8004-8005-000000000006"),
                ("REPLY_TOPIC", b"replies.a"),
                ("REPLY_PARTITION", &[0, 0, 1, 2]),
            ],
        );
    }
}
