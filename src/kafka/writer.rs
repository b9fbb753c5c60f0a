//! Appending to one partition, at most once.
//!
//! What rskafka reports as a broken connection may mean that nothing was sent,
//! or that all was and the answer is lost. The difference decides whether a
//! payment may be sent again, and there is one sure sign of it: the send
//! itself. A request that fails before it has ever waited was not sent whole:
//! the connection was known to be dead, or the write failed at once, and a
//! broker does not act on half a frame. After it has waited once, nobody knows.
//! The sign holds only where nothing else runs between two polls, so on a
//! `current_thread` runtime; elsewhere every such failure counts as unknown.

use std::collections::BTreeMap;
use std::future::{Future, poll_fn};
use std::pin::pin;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use async_trait::async_trait;
use rskafka::chrono::{DateTime, Utc};
use rskafka::client::error::{Error as ClientError, ProtocolError};
use rskafka::client::partition::{Compression as RskafkaCompression, PartitionClient};
use rskafka::record::Record as RskafkaRecord;
use tokio::runtime::{Handle, RuntimeFlavor};

use super::explain;
use super::throttle::{Sentinel, Throttled};
use crate::terms::Compression;
use crate::transport::{Appended, PartitionWriter, ProduceError, Record};

pub(super) struct Writer {
    client: PartitionClient,
    sentinel: Sentinel,
    timeout: Duration,
}

impl Writer {
    pub(super) fn new(client: PartitionClient, timeout: Duration) -> Self {
        Self { client, sentinel: Sentinel::new(), timeout }
    }
}

#[async_trait]
impl PartitionWriter for Writer {
    async fn produce(
        &mut self,
        records: &[Record],
        compression: Compression,
    ) -> Result<Appended, ProduceError> {
        let now = now();
        let batch = records.iter().map(|record| to_rskafka(record, now)).collect();
        // rskafka's future is large. In a box it is not copied into each of those around it.
        let request = Box::pin(self.client.produce(batch, to_rskafka_compression(compression)));
        let watched = note_waiting(self.sentinel.watch(request));
        match tokio::time::timeout(self.timeout, watched).await {
            Ok((Ok(Ok(offsets)), _)) => Ok(Appended { base_offset: offsets.first().copied() }),
            Ok((Ok(Err(error)), waited)) => Err(judge(&error, waited)),
            Ok((Err(Throttled { wait }), _)) => Err(ProduceError::Throttled { wait }),
            Err(_) => Err(ProduceError::Unknown(format!("no acknowledgement within {:?}", self.timeout))),
        }
    }
}

/// The output, and whether the future ever had to wait for it.
async fn note_waiting<F: Future>(future: F) -> (F::Output, bool) {
    let mut future = pin!(future);
    let mut waited = Handle::current().runtime_flavor() != RuntimeFlavor::CurrentThread;
    let output = poll_fn(|context| {
        let polled = future.as_mut().poll(context);
        waited |= polled.is_pending();
        polled
    })
    .await;
    (output, waited)
}

fn judge(error: &ClientError, waited: bool) -> ProduceError {
    let line = || explain::line(error);
    match explain::root(error) {
        ClientError::ServerError { protocol_error, .. } => judge_answer(*protocol_error, line()),
        // Finding and connecting the leader comes before sending.
        ClientError::Connection(_) => ProduceError::NotSent(line()),
        _ if !waited => ProduceError::NotSent(line()),
        _ => ProduceError::Unknown(line()),
    }
}

/// What an error code in the answer says about the log.
fn judge_answer(code: ProtocolError, line: String) -> ProduceError {
    use ProtocolError as E;
    match code {
        // Appended to the leader at least, or nobody can tell.
        E::RequestTimedOut
        | E::NotEnoughReplicasAfterAppend
        | E::KafkaStorageError
        | E::NetworkException
        | E::UnknownServerError => ProduceError::Unknown(line),
        E::UnknownTopicOrPartition | E::UnknownTopicId => ProduceError::NoSuchTopic,
        E::MessageTooLarge | E::RecordListTooLarge => ProduceError::TooLarge,
        // Checked before anything is appended; may be different in a moment.
        E::LeaderNotAvailable
        | E::NotLeaderOrFollower
        | E::BrokerNotAvailable
        | E::ReplicaNotAvailable
        | E::NotEnoughReplicas
        | E::CorruptMessage
        | E::FencedLeaderEpoch
        | E::UnknownLeaderEpoch
        | E::ThrottlingQuotaExceeded => ProduceError::NotSent(line),
        _ => ProduceError::Refused(line),
    }
}

fn now() -> DateTime<Utc> {
    let since_1970 = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    DateTime::from_timestamp_millis(i64::try_from(since_1970.as_millis()).unwrap_or(i64::MAX))
        .unwrap_or_default()
}

fn to_rskafka(record: &Record, timestamp: DateTime<Utc>) -> RskafkaRecord {
    let headers: BTreeMap<String, Vec<u8>> =
        record.headers.iter().map(|(name, value)| (name.clone().into_owned(), value.to_vec())).collect();
    RskafkaRecord {
        key: record.key.as_ref().map(|bytes| bytes.to_vec()),
        value: record.value.as_ref().map(|bytes| bytes.to_vec()),
        headers,
        timestamp,
    }
}

fn to_rskafka_compression(compression: Compression) -> RskafkaCompression {
    match compression {
        Compression::None => RskafkaCompression::NoCompression,
        Compression::Gzip => RskafkaCompression::Gzip,
        Compression::Snappy => RskafkaCompression::Snappy,
        Compression::Lz4 => RskafkaCompression::Lz4,
        Compression::Zstd => RskafkaCompression::Zstd,
    }
}
