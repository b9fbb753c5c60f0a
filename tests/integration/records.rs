//! What is in the topics, and calls with headers of their own.

use std::time::Duration;

use antiphon::kafka::KafkaCluster;
use antiphon::transport::{Cluster as _, Received};
use bytes::Bytes;
use prost::Message;
use tonic::metadata::MetadataMap;
use tonic::{Code, Extensions, Response, Status};

use crate::harness::{PATIENCE, TestGateway};
use crate::raw::{framed, post};

/// Every record of a topic with its partition, partition by partition.
pub async fn all(cluster: &KafkaCluster, topic: &str) -> Vec<(i32, Received)> {
    let topics = cluster.topics().await.unwrap();
    let partitions = topics.iter().find(|found| found.name == topic).map_or(0, |found| found.partitions);
    let mut found = Vec::new();
    for partition in 0..partitions {
        let Ok(mut reader) = cluster.reader(topic, partition).await else { continue };
        let Ok(mut offset) = reader.start_offset().await else { continue };
        let Ok(end) = reader.end_offset().await else { continue };
        while offset < end {
            let fetched = reader.fetch(offset, Duration::from_millis(100)).await.unwrap();
            offset = fetched.next_offset;
            found.extend(fetched.records.into_iter().map(|record| (partition, record)));
        }
    }
    found
}

/// The same, as soon as there are so many.
pub async fn await_records(cluster: &KafkaCluster, topic: &str, count: usize) -> Vec<(i32, Received)> {
    let deadline = tokio::time::Instant::now() + PATIENCE;
    loop {
        let found = all(cluster, topic).await;
        if found.len() >= count {
            return found;
        }
        assert!(
            tokio::time::Instant::now() < deadline,
            "{} of {count} records in {topic}: {found:?}",
            found.len()
        );
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// A header as text.
pub fn text(record: &Received, name: &str) -> Option<String> {
    record.header(name).map(|value| String::from_utf8_lossy(value).into_owned())
}

/// Names of a record's headers, in order.
pub fn header_names(record: &Received) -> Vec<&str> {
    let mut names: Vec<&str> = record.headers.iter().map(|(name, _)| &**name).collect();
    names.sort_unstable();
    names
}

/// A call with request headers. tonic's client would keep a grpc-timeout
/// itself, and answer before the gateway does.
pub async fn call_with(
    gateway: &TestGateway,
    path: &'static str,
    message: impl Message,
    headers: &[(&'static str, &str)],
) -> Result<Response<Bytes>, Status> {
    let address = gateway.gateway().grpc_address();
    let answer = post(address, path, headers, framed(&message.encode_to_vec())).await;
    let status = answer.status();
    match status.code() {
        Code::Ok => {
            let metadata = MetadataMap::from_headers(answer.trailers);
            Ok(Response::from_parts(metadata, answer.body.slice(5..), Extensions::default()))
        }
        _ => Err(status),
    }
}
