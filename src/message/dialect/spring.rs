//! The headers of Spring for Apache Kafka, as `ReplyingKafkaTemplate` writes
//! and `@SendTo` listeners read them. Source: `KafkaHeaders` and
//! `ReplyingKafkaTemplate` of spring-kafka.
//!
//! | header | value |
//! |---|---|
//! | `kafka_correlationId` | the id; echoed byte for byte, so the 36 ASCII characters of a UUID, which every language can print |
//! | `kafka_replyTopic` | UTF-8 |
//! | `kafka_replyPartition` | int32, big-endian |
//!
//! A listener that throws or returns null sends no reply at all, unless an
//! error handler of its own makes one.

use bytes::Bytes;

use super::{Kind, ReplyAddress};
use crate::correlation::CorrelationId;
use crate::transport::{HeaderName, Received};

const CORRELATION_ID: &str = "kafka_correlationId";
const REPLY_TOPIC: &str = "kafka_replyTopic";
const REPLY_PARTITION: &str = "kafka_replyPartition";

pub(super) fn write_request(
    id: CorrelationId,
    reply_to: Option<&ReplyAddress>,
    headers: &mut Vec<(HeaderName, Bytes)>,
) {
    headers.push((HeaderName::Borrowed(CORRELATION_ID), Bytes::copy_from_slice(&id.to_text())));
    let Some(address) = reply_to else { return };
    headers.push((HeaderName::Borrowed(REPLY_TOPIC), address.topic.clone()));
    if let Some(partition) = address.partition {
        headers
            .push((HeaderName::Borrowed(REPLY_PARTITION), Bytes::copy_from_slice(&partition.to_be_bytes())));
    }
}

pub(super) fn classify(record: &Received) -> Kind {
    if record.header(REPLY_TOPIC).is_some() {
        return Kind::Request;
    }
    match record.header(CORRELATION_ID).and_then(|value| CorrelationId::parse(value)) {
        Some(id) => Kind::Reply(id),
        None => Kind::Uncorrelated,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::correlation::Minter;

    fn id() -> CorrelationId {
        CorrelationId::parse(b"00000102-0003-8004-8005-000000000006").unwrap()
    }

    fn received(headers: Vec<(HeaderName, Bytes)>) -> Received {
        Received { offset: 0, timestamp_ms: 0, key: None, value: None, headers }
    }

    #[test]
    fn golden_bytes_of_a_request() {
        let address = ReplyAddress { topic: Bytes::from_static(b"replies.a"), partition: Some(258) };
        let mut headers = Vec::new();
        write_request(id(), Some(&address), &mut headers);
        assert_eq!(
            headers,
            [
                ("kafka_correlationId".into(), Bytes::from_static(b"00000102-0003-8004-8005-000000000006")),
                ("kafka_replyTopic".into(), Bytes::from_static(b"replies.a")),
                ("kafka_replyPartition".into(), Bytes::from_static(&[0, 0, 1, 2])),
            ]
        );
    }

    #[test]
    fn a_reply_is_told_from_a_request_and_from_noise() {
        let id = Minter::new(1, 2, [3; 32]).mint(4);
        let text = Bytes::copy_from_slice(&id.to_text());
        let binary = Bytes::copy_from_slice(&id.to_bytes());
        let cases = [
            (vec![(CORRELATION_ID.into(), text.clone())], Kind::Reply(id)),
            (vec![(CORRELATION_ID.into(), binary)], Kind::Reply(id)),
            (vec![(CORRELATION_ID.into(), text), (REPLY_TOPIC.into(), Bytes::new())], Kind::Request),
            (vec![(CORRELATION_ID.into(), Bytes::from_static(b"7"))], Kind::Uncorrelated),
            (vec![], Kind::Uncorrelated),
        ];
        for (headers, expected) in cases {
            assert_eq!(classify(&received(headers.clone())), expected, "{headers:?}");
        }
    }
}
