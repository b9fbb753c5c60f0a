//! Reading one partition by offset.

use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use chrono::DateTime;
use rskafka::client::partition::{OffsetAt, PartitionClient};
use rskafka::record::RecordAndOffset;
use tokio::time::{Instant, timeout};

use super::explain::{self, Deed};
use super::raw::RawReader;
use crate::limits;
use crate::transport::{FetchError, Fetched, HeaderName, PartitionReader, Received};

/// How long the broker may take to drop records.
const TRIM_TIMEOUT_MS: i32 = 5_000;

/// How long a partition is read record batch by record batch after something
/// on it could not be decoded: where there is one there are more.
const RAW_FOR: Duration = Duration::from_secs(60);

pub(super) struct Reader {
    client: PartitionClient,
    timeout: Duration,
    raw: RawReader,
    raw_until: Option<Instant>,
}

impl Reader {
    pub(super) fn new(client: PartitionClient, timeout: Duration, raw: RawReader) -> Self {
        Self { client, timeout, raw, raw_until: None }
    }

    /// By rskafka, which is quick but can't read everything.
    async fn fetch_decoded(&mut self, offset: i64, wait: Duration) -> Result<Fetched, FetchError> {
        let wait_ms = i32::try_from(wait.as_millis()).unwrap_or(i32::MAX);
        let limit = wait + Duration::from_millis(limits::FETCH_GRACE_MS);
        let asked_at = Instant::now();
        // Large, as in `writer`.
        let request = Box::pin(self.client.fetch_records(offset, 1..limits::FETCH_BYTES_MAX, wait_ms));
        let (records, high_watermark) = match timeout(limit, request).await {
            Ok(answer) => answer.map_err(|error| explain::fetch_error(&error, self.deed("Read")))?,
            Err(_) => return Err(FetchError::Unreachable(format!("no answer within {limit:?}"))),
        };
        let next_offset = match records.last() {
            Some(last) => last.offset + 1,
            // An answer that comes at once and brings nothing, where there is
            // something, holds what is not for us: a transaction's marker or
            // aborted records. (Waiting for an open transaction takes all of
            // `wait`.)
            None if offset < high_watermark && asked_at.elapsed() < wait / 2 => offset + 1,
            None => offset,
        };
        let partition = self.client.partition();
        let records = records.into_iter().map(|record| from_rskafka(partition, record)).collect();
        Ok(Fetched { records, next_offset, high_watermark })
    }

    fn deed(&self, operation: &'static str) -> Deed<'_> {
        Deed::new(operation, self.client.topic())
    }

    async fn offset(&self, at: OffsetAt) -> Result<i64, FetchError> {
        match timeout(self.timeout, self.client.get_offset(at)).await {
            Ok(offset) => offset.map_err(|error| explain::fetch_error(&error, self.deed("Describe"))),
            Err(_) => Err(FetchError::Unreachable(format!("no answer within {:?}", self.timeout))),
        }
    }
}

#[async_trait]
impl PartitionReader for Reader {
    async fn start_offset(&mut self) -> Result<i64, FetchError> {
        self.offset(OffsetAt::Earliest).await
    }

    async fn end_offset(&mut self) -> Result<i64, FetchError> {
        self.offset(OffsetAt::Latest).await
    }

    async fn offset_at(&mut self, time_ms: i64) -> Result<i64, FetchError> {
        let Some(time) = DateTime::from_timestamp_millis(time_ms) else { return self.start_offset().await };
        match self.offset(OffsetAt::Timestamp(time)).await? {
            // Kafka's word for none.
            offset if offset < 0 => self.end_offset().await,
            offset => Ok(offset),
        }
    }

    async fn fetch(&mut self, offset: i64, wait: Duration) -> Result<Fetched, FetchError> {
        if self.raw_until.is_some_and(|until| Instant::now() < until)
            && let Ok(fetched) = self.raw.fetch(offset, wait).await
        {
            return Ok(fetched);
        }
        let undecodable = match self.fetch_decoded(offset, wait).await {
            Err(FetchError::Undecodable(why)) => why,
            fetched => return fetched,
        };
        match self.raw.fetch(offset, wait).await {
            Ok(fetched) => {
                tracing::warn!(
                    topic = self.client.topic(),
                    partition = self.client.partition(),
                    offset,
                    why = undecodable,
                    "a record that rskafka cannot decode; reading batch by batch for a while",
                );
                self.raw_until = Some(Instant::now() + RAW_FOR);
                Ok(fetched)
            }
            Err(error) => Err(FetchError::Undecodable(format!("{undecodable}; batch by batch: {error}"))),
        }
    }

    async fn trim(&mut self, offset: i64) -> Result<(), FetchError> {
        match timeout(self.timeout, self.client.delete_records(offset, TRIM_TIMEOUT_MS)).await {
            Ok(answer) => answer.map_err(|error| explain::fetch_error(&error, self.deed("Delete"))),
            Err(_) => Err(FetchError::Unreachable(format!("no answer within {:?}", self.timeout))),
        }
    }
}

fn from_rskafka(partition: i32, received: RecordAndOffset) -> Received {
    let RecordAndOffset { record, offset } = received;
    Received {
        offset,
        partition,
        timestamp_ms: record.timestamp.timestamp_millis(),
        key: record.key.map(Bytes::from),
        value: record.value.map(Bytes::from),
        headers: record
            .headers
            .into_iter()
            .map(|(name, value)| (HeaderName::Owned(name), Bytes::from(value)))
            .collect(),
    }
}
