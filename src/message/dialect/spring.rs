//! The headers of Spring for Apache Kafka, as `ReplyingKafkaTemplate` writes
//! and `@SendTo` listeners read them. Sources, in spring-kafka's main branch:
//! `KafkaHeaders` (names), `ReplyingKafkaTemplate` (16 bytes for the id, four
//! for the partition), `MessagingMessageListenerAdapter` (what a listener
//! echoes).
//!
//! | header | value |
//! |---|---|
//! | `kafka_correlationId` | the id; echoed byte for byte, so by default the 36 ASCII characters of a UUID, which every language can print; with `correlation_form: BINARY` the 16 bytes, most significant first, that `ReplyingKafkaTemplate` writes |
//! | `kafka_replyTopic` | UTF-8 |
//! | `kafka_replyPartition` | int32, big-endian |
//!
//! The reply has `kafka_correlationId`, and since 3.3 the request's key. A
//! listener that throws sends no reply (it is tried ten times and then passed
//! over), nor does one that returns null; a `KafkaListenerErrorHandler` or a
//! `ReplyHeadersConfigurer` can answer with the `grpc-status` headers.

use bytes::Bytes;

use super::{ReplyAddress, int32, text_id};
use crate::correlation::CorrelationId;
use crate::terms::CorrelationForm;
use crate::transport::HeaderName;

pub(super) const CORRELATION_ID: &str = "kafka_correlationId";
pub(super) const REPLY_TOPIC: &str = "kafka_replyTopic";
pub(super) const REPLY_PARTITION: &str = "kafka_replyPartition";

pub(super) fn write_request(
    form: CorrelationForm,
    id: CorrelationId,
    reply_to: Option<&ReplyAddress>,
    headers: &mut Vec<(HeaderName, Bytes)>,
) {
    let id = match form {
        CorrelationForm::Text => text_id(id),
        CorrelationForm::Binary => Bytes::copy_from_slice(&id.to_bytes()),
    };
    headers.push((HeaderName::Borrowed(CORRELATION_ID), id));
    let Some(address) = reply_to else { return };
    headers.push((HeaderName::Borrowed(REPLY_TOPIC), address.topic.clone()));
    if let Some(partition) = address.partition {
        headers.push((HeaderName::Borrowed(REPLY_PARTITION), int32(partition)));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::message::dialect::tests::{ADDRESS, ID, ID_BYTES, assert_headers};

    #[test]
    fn golden_bytes_of_a_request() {
        let mut headers = Vec::new();
        write_request(CorrelationForm::Text, ID(), Some(&ADDRESS()), &mut headers);
        assert_headers(
            &headers,
            &[
                ("kafka_correlationId", b"00000102-0003-8004-8005-000000000006"),
                ("kafka_replyTopic", b"replies.a"),
                ("kafka_replyPartition", &[0, 0, 1, 2]),
            ],
        );
    }

    #[test]
    fn golden_bytes_of_a_request_with_a_binary_id() {
        let mut headers = Vec::new();
        write_request(CorrelationForm::Binary, ID(), None, &mut headers);
        assert_headers(&headers, &[("kafka_correlationId", &ID_BYTES)]);
    }
}
