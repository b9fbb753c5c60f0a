//! Reading what rskafka can't.
//!
//! rskafka decodes a fetch's answer as a whole, and one header without a value
//! (`null`, which Kafka allows and librdkafka, Spring and others write) or one
//! transaction marker makes all of it undecodable: the good replies in the
//! same answer would be lost with it. So for as long as such records turn up,
//! a partition is read by this small reader of our own, over the encoders of
//! `kafka-protocol`, which decodes batch by batch.
//!
//! It speaks plaintext and TLS, without SASL or with any mechanism that the
//! gateway knows. Where it can't
//! connect, the caller steps over the offset as it would without it.

use std::collections::{HashSet, VecDeque};
use std::io;
use std::sync::Arc;
use std::time::Duration;

use bytes::{Buf as _, BufMut as _, Bytes, BytesMut};
use kafka_protocol::messages::fetch_request::{FetchPartition, FetchTopic};
use kafka_protocol::messages::fetch_response::PartitionData;
use kafka_protocol::messages::metadata_request::MetadataRequestTopic;
use kafka_protocol::messages::{
    ApiKey, FetchRequest, FetchResponse, MetadataRequest, MetadataResponse, RequestHeader, ResponseHeader,
    SaslAuthenticateRequest, SaslAuthenticateResponse, SaslHandshakeRequest, SaslHandshakeResponse,
    TopicName,
};
use kafka_protocol::protocol::{Decodable, Encodable, StrBytes};
use kafka_protocol::records::{Record, RecordBatchDecoder};
use rustls_pki_types::ServerName;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::time::timeout;

use super::config::SaslConfig;
use super::connect::Connector;
use super::sasl;
use crate::limits;
use crate::transport::{Fetched, HeaderName, Received};

/// Versions that Apache Kafka 2.1 and later know; the same as rskafka's.
pub(super) const METADATA_VERSION: i16 = 4;
const FETCH_VERSION: i16 = 4;
const SASL_HANDSHAKE_VERSION: i16 = 1;
const SASL_AUTHENTICATE_VERSION: i16 = 0;
/// One request beside a fetch.
pub(super) const REQUEST_TIMEOUT: Duration = Duration::from_secs(5);
/// Bytes of one answer: what was asked for, and what goes around it.
const FRAME_BYTES_MAX: usize = limits::FETCH_BYTES_MAX as usize * 2 + 64 * 1024;
/// Bytes of a batch in front of its length's end: base offset and length.
const BATCH_PREFIX_BYTES: usize = 12;
/// Where a batch holds the offset of its last record, less its base offset.
const LAST_OFFSET_DELTA_AT: usize = 23;
/// `isolation.level=read_committed`.
const READ_COMMITTED: i8 = 1;

pub(super) trait Stream: AsyncRead + AsyncWrite + Unpin + Send + Sync {}
impl<S: AsyncRead + AsyncWrite + Unpin + Send + Sync> Stream for S {}

/// Reads one partition, batch by batch.
pub(super) struct RawReader {
    connector: Arc<Connector>,
    topic: String,
    partition: i32,
    leader: Option<Box<dyn Stream>>,
}

impl RawReader {
    pub(super) fn new(connector: Arc<Connector>, topic: &str, partition: i32) -> Self {
        Self { connector, topic: topic.to_owned(), partition, leader: None }
    }

    /// Records from `offset` on, each batch decoded by itself; a batch that is
    /// of no use is left out. Waits up to `wait` for the first.
    pub(super) async fn fetch(&mut self, offset: i64, wait: Duration) -> io::Result<Fetched> {
        let limit = wait + REQUEST_TIMEOUT;
        let fetched = timeout(limit, self.try_fetch(offset, wait)).await.unwrap_or_else(|_| {
            Err(io::Error::new(io::ErrorKind::TimedOut, format!("no answer within {limit:?}")))
        });
        if fetched.is_err() {
            self.leader = None;
        }
        fetched
    }

    async fn try_fetch(&mut self, offset: i64, wait: Duration) -> io::Result<Fetched> {
        let leader = match &mut self.leader {
            Some(leader) => leader,
            None => {
                let found = find_leader(&self.connector, &self.topic, self.partition).await?;
                self.leader.insert(open(&self.connector, &found).await?)
            }
        };
        let request = fetch_request(&self.topic, self.partition, offset, wait);
        let answer: FetchResponse = ask(&mut **leader, ApiKey::Fetch, FETCH_VERSION, &request).await?;
        let data = answer.responses.into_iter().next().and_then(|topic| topic.partitions.into_iter().next());
        let data = data.ok_or_else(|| refused("an answer without the partition"))?;
        if data.error_code != 0 {
            return Err(refused(&format!("error code {}", data.error_code)));
        }
        Ok(read_batches(data, offset))
    }
}

fn fetch_request(topic: &str, partition: i32, offset: i64, wait: Duration) -> FetchRequest {
    let partition = FetchPartition::default()
        .with_partition(partition)
        .with_fetch_offset(offset)
        .with_partition_max_bytes(limits::FETCH_BYTES_MAX);
    let topic = FetchTopic::default().with_topic(topic_name(topic)).with_partitions(vec![partition]);
    FetchRequest::default()
        .with_max_wait_ms(i32::try_from(wait.as_millis()).unwrap_or(i32::MAX))
        .with_min_bytes(1)
        .with_max_bytes(limits::FETCH_BYTES_MAX)
        .with_isolation_level(READ_COMMITTED)
        .with_topics(vec![topic])
}

/// All batches that are whole; what is not for us is left out, but counts for
/// where to go on.
fn read_batches(data: PartitionData, offset: i64) -> Fetched {
    let aborted = data.aborted_transactions.unwrap_or_default();
    let mut aborted = Aborted::new(aborted.iter().map(|a| (a.first_offset, a.producer_id.0)));
    let mut rest = data.records.unwrap_or_default();
    let mut fetched =
        Fetched { records: Vec::new(), next_offset: offset, high_watermark: data.high_watermark };
    while let Some((mut batch, end)) = next_batch(&mut rest) {
        fetched.next_offset = fetched.next_offset.max(end);
        match RecordBatchDecoder::decode(&mut batch) {
            Ok(set) => {
                let wanted = |r: &Record| !aborted.includes(r) && !r.control && r.offset >= offset;
                fetched.records.extend(
                    set.records
                        .into_iter()
                        .filter(wanted)
                        .map(|record| to_received(data.partition_index, record)),
                );
            }
            Err(error) => {
                tracing::warn!(next_offset = end, %error, "a batch cannot be decoded; it is passed over");
            }
        }
    }
    fetched
}

/// Transactions of which nothing counts, as one goes from record to record: each
/// begins at the offset that the broker names, and ends with its producer's next
/// marker. What the same producer writes after that is another transaction's.
struct Aborted {
    /// First offsets and producers, the earliest first.
    ahead: VecDeque<(i64, i64)>,
    /// Producers in the middle of one.
    open: HashSet<i64>,
}

impl Aborted {
    fn new(transactions: impl Iterator<Item = (i64, i64)>) -> Self {
        let mut ahead: Vec<_> = transactions.collect();
        ahead.sort_unstable();
        Self { ahead: ahead.into(), open: HashSet::new() }
    }

    fn includes(&mut self, record: &Record) -> bool {
        self.includes_at(record.offset, record.producer_id, record.transactional, record.control)
    }

    fn includes_at(&mut self, offset: i64, producer: i64, transactional: bool, control: bool) -> bool {
        while let Some((first, beginner)) = self.ahead.front().copied()
            && first <= offset
        {
            self.open.insert(beginner);
            self.ahead.pop_front();
        }
        if control {
            return self.open.remove(&producer);
        }
        transactional && self.open.contains(&producer)
    }
}

/// Splits the next whole batch off, with the offset behind its last record.
fn next_batch(rest: &mut Bytes) -> Option<(Bytes, i64)> {
    if rest.len() < LAST_OFFSET_DELTA_AT + 4 {
        return None;
    }
    let base = rest.slice(0..8).get_i64();
    let length = usize::try_from(rest.slice(8..BATCH_PREFIX_BYTES).get_i32()).ok()?;
    let delta = rest.slice(LAST_OFFSET_DELTA_AT..LAST_OFFSET_DELTA_AT + 4).get_i32();
    let whole = BATCH_PREFIX_BYTES.checked_add(length).filter(|whole| *whole <= rest.len())?;
    Some((rest.split_to(whole), base.checked_add(i64::from(delta))?.checked_add(1)?))
}

/// A header without a value says nothing, so it is left out.
fn to_received(partition: i32, record: Record) -> Received {
    let headers = record.headers.into_iter();
    Received {
        offset: record.offset,
        partition,
        timestamp_ms: record.timestamp,
        // Copied: a part would keep the whole answer alive.
        key: record.key.map(|key| Bytes::copy_from_slice(&key)),
        value: record.value.map(|value| Bytes::copy_from_slice(&value)),
        headers: headers
            .filter_map(|(name, value)| {
                Some((HeaderName::Owned(name.as_str().to_owned()), Bytes::copy_from_slice(&value?)))
            })
            .collect(),
    }
}

async fn find_leader(connector: &Connector, topic: &str, partition: i32) -> io::Result<String> {
    let mut last = refused("no bootstrap server");
    for server in connector.bootstrap_servers() {
        let found = async {
            let mut stream = open(connector, server).await?;
            let wanted = MetadataRequestTopic::default().with_name(Some(topic_name(topic)));
            let request = MetadataRequest::default()
                .with_topics(Some(vec![wanted]))
                .with_allow_auto_topic_creation(false);
            let answer = ask(&mut *stream, ApiKey::Metadata, METADATA_VERSION, &request).await?;
            leader_address(&answer, partition).ok_or_else(|| refused("the partition has no leader"))
        };
        match timeout(REQUEST_TIMEOUT, found).await {
            Ok(Ok(address)) => return Ok(address),
            Ok(Err(error)) => last = error,
            Err(_) => last = io::ErrorKind::TimedOut.into(),
        }
    }
    Err(last)
}

fn leader_address(answer: &MetadataResponse, partition: i32) -> Option<String> {
    let partitions = &answer.topics.first()?.partitions;
    let leader = partitions.iter().find(|p| p.partition_index == partition)?.leader_id;
    let broker = answer.brokers.iter().find(|broker| broker.node_id == leader)?;
    Some(format!("{}:{}", broker.host.as_str(), broker.port))
}

/// Connects as the settings say: TCP, perhaps TLS, perhaps SASL.
pub(super) async fn open(connector: &Connector, address: &str) -> io::Result<Box<dyn Stream>> {
    let tcp = TcpStream::connect(address).await?;
    tcp.set_nodelay(true)?;
    let mut stream: Box<dyn Stream> = match connector.tls() {
        Some(tls) => {
            let host = address.rsplit_once(':').map_or(address, |(host, _)| host).to_owned();
            let name = ServerName::try_from(host).map_err(io::Error::other)?;
            Box::new(tokio_rustls::TlsConnector::from(tls).connect(name, tcp).await?)
        }
        None => Box::new(tcp),
    };
    if let Some(sasl) = connector.sasl() {
        authenticate(&mut *stream, sasl).await?;
    }
    Ok(stream)
}

/// Proves who we are, in Kafka's SASL requests (KIP-152).
async fn authenticate(stream: &mut dyn Stream, config: &SaslConfig) -> io::Result<()> {
    let mut session = sasl::session(config)?;
    let mechanism = StrBytes::from_static_str(session.mechanism());
    let handshake = SaslHandshakeRequest::default().with_mechanism(mechanism);
    let answer: SaslHandshakeResponse =
        ask(stream, ApiKey::SaslHandshake, SASL_HANDSHAKE_VERSION, &handshake).await?;
    if answer.error_code != 0 {
        return Err(refused(&format!("SASL {} is not enabled", session.mechanism())));
    }
    let mut said = None;
    while let Some(say) = session.step(said.as_deref())? {
        let request = SaslAuthenticateRequest::default().with_auth_bytes(Bytes::from(say));
        let answer: SaslAuthenticateResponse =
            ask(stream, ApiKey::SaslAuthenticate, SASL_AUTHENTICATE_VERSION, &request).await?;
        if answer.error_code != 0 {
            return Err(refused("SASL authentication failed"));
        }
        said = Some(answer.auth_bytes);
    }
    Ok(())
}

/// One request and its answer.
pub(super) async fn ask<Q: Encodable, R: Decodable>(
    stream: &mut dyn Stream,
    key: ApiKey,
    version: i16,
    request: &Q,
) -> io::Result<R> {
    let header = RequestHeader::default()
        .with_request_api_key(key as i16)
        .with_request_api_version(version)
        .with_client_id(Some(StrBytes::from_static_str("antiphon-raw")));
    let mut frame = BytesMut::new();
    frame.put_i32(0);
    header.encode(&mut frame, key.request_header_version(version)).map_err(io::Error::other)?;
    request.encode(&mut frame, version).map_err(io::Error::other)?;
    let length = u32::try_from(frame.len() - 4).map_err(io::Error::other)?;
    frame[0..4].copy_from_slice(&length.to_be_bytes());
    stream.write_all(&frame).await?;
    stream.flush().await?;

    let length = usize::try_from(stream.read_i32().await?).unwrap_or(usize::MAX);
    if length > FRAME_BYTES_MAX {
        return Err(refused("an answer that is too long"));
    }
    let mut answer = vec![0; length];
    stream.read_exact(&mut answer).await?;
    let mut answer = Bytes::from(answer);
    ResponseHeader::decode(&mut answer, key.response_header_version(version)).map_err(io::Error::other)?;
    R::decode(&mut answer, version).map_err(io::Error::other)
}

pub(super) fn topic_name(topic: &str) -> TopicName {
    TopicName(StrBytes::from_string(topic.to_owned()))
}

pub(super) fn refused(text: &str) -> io::Error {
    io::Error::other(text.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_follows_an_aborted_transaction_counts() {
        let (ours, other, marker) = (7, 8, true);
        // Offset 1 is aborted, 2 its marker; 3 is committed, 4 its marker; 5 is aborted again.
        let mut aborted = Aborted::new([(5, ours), (1, ours)].into_iter());
        let mut includes = |offset, producer, control| aborted.includes_at(offset, producer, true, control);
        assert!(includes(1, ours, !marker));
        assert!(!includes(1, other, !marker));
        includes(2, ours, marker);
        assert!(!includes(3, ours, !marker));
        includes(4, ours, marker);
        assert!(includes(5, ours, !marker));
        assert!(!aborted.includes_at(6, ours, false, false), "without a transaction");
    }
}
