//! Whatever lies on the reply topic, the replies behind it arrive.

use std::time::Duration;

use antiphon::correlation::Minter;
use antiphon::transport::{HeaderName, Record};
use antiphon::worker::samples::{Samples, echo};
use bytes::{BufMut as _, Bytes, BytesMut};
use kafka_protocol::messages::produce_request::{PartitionProduceData, TopicProduceData};
use kafka_protocol::messages::{
    ApiKey, ProduceRequest, ProduceResponse, RequestHeader, ResponseHeader, TopicName,
};
use kafka_protocol::protocol::{Decodable as _, Encodable as _, StrBytes};
use kafka_protocol::records::{
    Compression, Record as KafkaRecord, RecordBatchEncoder, RecordEncodeOptions, TimestampType,
};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use crate::bad_input::next_correlation_id;
use crate::harness::{ECHO, TestGateway};

fn record(headers: Vec<(&'static str, Bytes)>) -> Record {
    let headers = headers.into_iter().map(|(n, v)| (HeaderName::Borrowed(n), v)).collect();
    Record { key: None, value: Some(Bytes::from_static(b"x")), headers }
}

#[tokio::test]
async fn foreign_late_and_request_like_records_are_counted_and_passed_over() {
    let gateway = TestGateway::build().handler(Samples::default()).start().await;
    let foreign = Minter::new(0, 1, [9; 32]).mint(3);
    let foreign = Bytes::copy_from_slice(&foreign.to_text());
    gateway.write_reply(record(vec![("kafka_correlationId", foreign.clone())])).await;
    gateway
        .write_reply(record(vec![("kafka_correlationId", foreign), ("kafka_replyTopic", Bytes::from("t"))]))
        .await;
    gateway.write_reply(record(vec![("kafka_correlationId", Bytes::from_static(b"\xff\x00"))])).await;
    gateway.write_reply(record(vec![])).await;

    let request = echo::EchoRequest { payload: Bytes::from_static(b"behind") };
    let reply = gateway.call::<_, echo::EchoReply>(ECHO, request).await.unwrap();
    assert_eq!(reply.get_ref().payload, "behind");
    let foreign = gateway.replies_of("foreign") + gateway.replies_of("late");
    assert_eq!((foreign, gateway.replies_of("request"), gateway.replies_of("uncorrelated")), (1, 1, 2));
    gateway.stop().await;
}

#[tokio::test]
async fn a_late_reply_is_counted_and_reaches_nobody() {
    let gateway = TestGateway::build()
        .worker(|_, message| async move {
            tokio::time::sleep(Duration::from_millis(1_500)).await;
            Some(Ok(message))
        })
        .start()
        .await;
    let mut request = tonic::Request::new(echo::EchoRequest { payload: Bytes::from_static(b"slow") });
    request.set_timeout(Duration::from_millis(600));
    let status = gateway.send::<_, echo::EchoReply>(ECHO, request).await.unwrap_err();
    assert!(matches!(status.code(), tonic::Code::DeadlineExceeded | tonic::Code::Cancelled), "{status:?}");
    gateway.until("the late reply is counted", || gateway.replies_of("late") == 1).await;
    gateway.settled().await;
    gateway.stop().await;
}

/// One batch: a record with a header that has no value, and behind it the
/// reply that somebody waits for. rskafka can't decode the batch at all.
#[tokio::test]
async fn a_null_header_does_not_take_the_replies_beside_it_along() {
    let gateway = TestGateway::build().start().await;
    for round in 0..3 {
        let call = gateway.raw(ECHO, Bytes::new());
        let reply = async {
            let id = next_correlation_id(&gateway, "echo.v1.EchoService").await;
            let poison = raw_record(0, [("kafka_correlationId", None), ("x", None)]);
            let good = raw_record(1, [("kafka_correlationId", Some(id)), ("y", None)]);
            produce_batch(&gateway, &[poison, good]).await;
        };
        let (answer, ()) = tokio::join!(call, reply);
        assert_eq!(answer.unwrap().get_ref(), IN_THE_SAME_BATCH, "round {round}");
    }
    assert_eq!(gateway.replies_of("undecodable"), 0);
    assert_eq!((gateway.replies_of("delivered"), gateway.replies_of("uncorrelated")), (3, 3));
    gateway.stop().await;
}

/// An `EchoReply`.
const IN_THE_SAME_BATCH: &[u8] = b"\x0a\x11in the same batch";

fn raw_record<const N: usize>(offset: i64, headers: [(&'static str, Option<Bytes>); N]) -> KafkaRecord {
    KafkaRecord {
        transactional: false,
        control: false,
        delete_horizon: false,
        partition_leader_epoch: -1,
        producer_id: -1,
        producer_epoch: -1,
        timestamp_type: TimestampType::Creation,
        offset,
        sequence: offset as i32,
        timestamp: 1,
        key: None,
        value: Some(Bytes::from_static(IN_THE_SAME_BATCH)),
        headers: headers.into_iter().map(|(n, v)| (StrBytes::from_static_str(n), v)).collect(),
    }
}

/// A produce request by hand, to partition 0 of the reply topic.
async fn produce_batch(gateway: &TestGateway, records: &[KafkaRecord]) {
    const VERSION: i16 = 7;
    let options = RecordEncodeOptions { version: 2, compression: Compression::None };
    let mut batch = BytesMut::new();
    RecordBatchEncoder::encode(&mut batch, records, &options).unwrap();

    let topic = gateway.gateway().instance().reply_topic().to_string();
    let partition = PartitionProduceData::default().with_index(0).with_records(Some(batch.freeze()));
    let topic = TopicProduceData::default()
        .with_name(TopicName(StrBytes::from_string(topic)))
        .with_partition_data(vec![partition]);
    let request = ProduceRequest::default().with_acks(-1).with_timeout_ms(5_000).with_topic_data(vec![topic]);
    let header = RequestHeader::default()
        .with_request_api_key(ApiKey::Produce as i16)
        .with_request_api_version(VERSION)
        .with_client_id(Some(StrBytes::from_static_str("poison")));
    let mut frame = BytesMut::new();
    frame.put_i32(0);
    header.encode(&mut frame, ApiKey::Produce.request_header_version(VERSION)).unwrap();
    request.encode(&mut frame, VERSION).unwrap();
    let length = (frame.len() - 4) as i32;
    frame[0..4].copy_from_slice(&length.to_be_bytes());

    let mut stream = tokio::net::TcpStream::connect(gateway.bootstrap()).await.unwrap();
    stream.write_all(&frame).await.unwrap();
    let length = stream.read_i32().await.unwrap();
    let mut answer = vec![0; length as usize];
    stream.read_exact(&mut answer).await.unwrap();
    let mut answer = Bytes::from(answer);
    ResponseHeader::decode(&mut answer, ApiKey::Produce.response_header_version(VERSION)).unwrap();
    let answer = ProduceResponse::decode(&mut answer, VERSION).unwrap();
    assert_eq!(answer.responses[0].partition_responses[0].error_code, 0);
}
