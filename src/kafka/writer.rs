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
use rskafka::client::partition::{Compression as RskafkaCompression, OffsetAt, PartitionClient};
use rskafka::record::Record as RskafkaRecord;
use tokio::runtime::{Handle, RuntimeFlavor};
use tokio::time::Instant;

use super::explain::{self, Deed};
use super::throttle::{Sentinel, Throttled};
use crate::terms::Compression;
use crate::transport::{Appended, PartitionWriter, ProduceError, Record};

/// At first, and after so long without a produce, the leader is asked for something harmless
/// first: it may have been deposed, or the connection may be dead, and a request
/// that finds out too late is one of which nobody knows what became.
const PROBE_AFTER: Duration = Duration::from_secs(1);
/// How long that may take.
const PROBE_TIMEOUT: Duration = Duration::from_secs(2);

pub(super) struct Writer {
    client: PartitionClient,
    sentinel: Sentinel,
    timeout: Duration,
    last_used: Option<Instant>,
}

impl Writer {
    pub(super) fn new(client: PartitionClient, timeout: Duration) -> Self {
        Self { client, sentinel: Sentinel::new(), timeout, last_used: None }
    }

    /// Whether the leader still answers, and as the leader.
    async fn probe(&self) -> Result<(), ProduceError> {
        match tokio::time::timeout(PROBE_TIMEOUT, self.client.get_offset(OffsetAt::Latest)).await {
            Ok(Ok(_)) => Ok(()),
            Ok(Err(error)) => Err(self.unprobed(&error)),
            Err(_) => Err(ProduceError::NotSent(format!("the leader is silent for {PROBE_TIMEOUT:?}"))),
        }
    }
}

impl Writer {
    /// A topic that may not even be looked at may not be written to, and will not
    /// be in a moment.
    fn unprobed(&self, error: &ClientError) -> ProduceError {
        let line = explain::line(error, Deed::new("Describe", self.client.topic()));
        match explain::root(error) {
            ClientError::ServerError { protocol_error: ProtocolError::TopicAuthorizationFailed, .. } => {
                ProduceError::Refused(line)
            }
            _ => ProduceError::NotSent(line),
        }
    }
}

#[async_trait]
impl PartitionWriter for Writer {
    async fn produce(
        &mut self,
        records: &[Record],
        compression: Compression,
    ) -> Result<Appended, ProduceError> {
        if self.last_used.is_none_or(|used| used.elapsed() >= PROBE_AFTER) {
            self.probe().await?;
        }
        let now = now();
        let batch = records.iter().map(|record| to_rskafka(record, now)).collect();
        // rskafka's future is large. In a box it is not copied into each of those around it.
        let request = Box::pin(self.client.produce(batch, to_rskafka_compression(compression)));
        let watched = note_waiting(self.sentinel.watch(request));
        let produced = tokio::time::timeout(self.timeout, watched).await;
        self.last_used = Some(Instant::now());
        match produced {
            Ok((Ok(Ok(offsets)), _)) => Ok(Appended { base_offset: offsets.first().copied() }),
            Ok((Ok(Err(error)), waited)) => Err(judge(&error, waited, self.client.topic())),
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

fn judge(error: &ClientError, waited: bool, topic: &str) -> ProduceError {
    let line = || explain::line(error, Deed::new("Write", topic));
    match explain::root(error) {
        // rskafka's own check of the leader, made before it sends.
        ClientError::ServerError { is_virtual: true, .. } => ProduceError::NotSent(line()),
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
        // Appended to the leader at least, or nobody can tell. A leader that
        // is deposed while it waits for its followers answers the same as one
        // that never was (`DelayedProduce` of Kafka's broker): taking that for
        // a proof put nine payments into the log twice in one rolling restart.
        E::RequestTimedOut
        | E::NotLeaderOrFollower
        | E::ReplicaNotAvailable
        | E::NotEnoughReplicasAfterAppend
        | E::KafkaStorageError
        | E::NetworkException
        | E::UnknownServerError => ProduceError::Unknown(line),
        E::UnknownTopicOrPartition | E::UnknownTopicId => ProduceError::NoSuchTopic,
        E::MessageTooLarge | E::RecordListTooLarge => ProduceError::TooLarge,
        // Checked before anything is appended; may be different in a moment.
        E::LeaderNotAvailable
        | E::BrokerNotAvailable
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_leader_that_steps_down_may_have_appended() {
        let judged = judge_answer(ProtocolError::NotLeaderOrFollower, String::new());
        assert!(matches!(judged, ProduceError::Unknown(_)));
        let judged = judge_answer(ProtocolError::NotEnoughReplicas, String::new());
        assert!(matches!(judged, ProduceError::NotSent(_)));
    }
}
