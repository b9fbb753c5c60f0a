//! Requests for records: append, read, find an offset, delete.

use std::sync::Arc;
use std::time::Duration;

use bytes::{BufMut, Bytes, BytesMut};
use kafka_protocol::messages::delete_records_request::{DeleteRecordsPartition, DeleteRecordsTopic};
use kafka_protocol::messages::delete_records_response::{
    DeleteRecordsPartitionResult, DeleteRecordsTopicResult,
};
use kafka_protocol::messages::fetch_request::FetchPartition;
use kafka_protocol::messages::list_offsets_request::{ListOffsetsPartition, ListOffsetsTopic};
use kafka_protocol::messages::list_offsets_response::{
    ListOffsetsPartitionResponse, ListOffsetsTopicResponse,
};
use kafka_protocol::messages::produce_request::PartitionProduceData;
use kafka_protocol::messages::produce_response::{PartitionProduceResponse, TopicProduceResponse};
use kafka_protocol::messages::{
    DeleteRecordsRequest, DeleteRecordsResponse, FetchRequest, InitProducerIdRequest, InitProducerIdResponse,
    ListOffsetsRequest, ListOffsetsResponse, ProduceRequest, ProduceResponse, ProducerId, TopicName,
};
use tokio::sync::Notify;
use tokio::time::Instant;

use super::{Context, Handle, code_of};
use crate::dev_broker::topics::Topic;
use crate::dev_broker::wire::Answer;
use crate::dev_broker::{FETCH_BYTES_MAX, FETCH_WAIT_MAX, code};

/// ListOffsets: the end, and the start, in place of a time.
pub(super) const LATEST: i64 = -1;
pub(super) const EARLIEST: i64 = -2;

impl Handle for ProduceRequest {
    type Answer = ProduceResponse;

    fn topics(&self) -> Vec<&str> {
        self.topic_data.iter().map(|topic| topic.name.as_str()).collect()
    }

    fn wants_answer(&self) -> bool {
        self.acks != 0
    }

    async fn handle(self, context: &Context<'_>) -> ProduceResponse {
        let acks_known = (-1..=1).contains(&self.acks);
        let mut responses = Vec::with_capacity(self.topic_data.len());
        for sent in self.topic_data {
            let topic = if acks_known { context.topic(&sent.name) } else { Err(code::INVALID_REQUIRED_ACKS) };
            let append = |partition: PartitionProduceData| {
                let records = partition.records.unwrap_or_default();
                append(topic.as_ref().map_err(|code| *code), partition.index, &records, context.version)
            };
            let partitions = sent.partition_data.into_iter().map(append).collect();
            responses.push(
                TopicProduceResponse::default().with_name(sent.name).with_partition_responses(partitions),
            );
        }
        ProduceResponse::default()
            .with_responses(responses)
            .with_throttle_time_ms(context.effects.throttle_ms)
    }
}

fn append(
    topic: Result<&Arc<Topic>, i16>,
    index: i32,
    records: &[u8],
    version: i16,
) -> PartitionProduceResponse {
    let appended = topic.and_then(|topic| {
        let mut log = topic.log(index).ok_or(code::UNKNOWN_TOPIC_OR_PARTITION)?;
        log.append(records).map(|base| (base, log.start()))
    });
    let answer = PartitionProduceResponse::default().with_index(index).with_log_append_time_ms(-1);
    match appended {
        Ok((base, start)) => {
            answer.with_base_offset(base).with_log_start_offset(if version >= 5 { start } else { -1 })
        }
        Err(code) => answer.with_error_code(code).with_base_offset(-1).with_log_start_offset(-1),
    }
}

/// The answer to a fetch, written straight from the log's batches, which
/// `kafka-protocol` would first want joined in one piece.
#[derive(Debug, Default)]
pub(super) struct FetchAnswer {
    throttle_ms: i32,
    error: i16,
    topics: Vec<(TopicName, Vec<FetchedPartition>)>,
    bytes: usize,
    failed: bool,
}

#[derive(Debug)]
struct FetchedPartition {
    index: i32,
    error: i16,
    end: i64,
    start: i64,
    batches: Vec<Bytes>,
}

impl Answer for FetchAnswer {
    fn payload_bytes(&self) -> usize {
        self.bytes
    }

    fn write(&self, out: &mut BytesMut, version: i16) -> bool {
        let flexible = version >= 12;
        out.put_i32(self.throttle_ms);
        if version >= 7 {
            out.put_i16(self.error);
            // No fetch sessions: clients then name all partitions each time.
            out.put_i32(0);
        }
        put_length(out, flexible, self.topics.len());
        for (name, partitions) in &self.topics {
            if flexible {
                put_length(out, true, name.len());
            } else {
                // A name of a request of these versions had a 16-bit length.
                out.put_u16(name.len() as u16);
            }
            out.put_slice(name.as_bytes());
            put_length(out, flexible, partitions.len());
            for partition in partitions {
                partition.write(out, version);
            }
            put_no_tags(out, flexible);
        }
        put_no_tags(out, flexible);
        true
    }
}

impl FetchedPartition {
    fn write(&self, out: &mut BytesMut, version: i16) {
        let flexible = version >= 12;
        out.put_i32(self.index);
        out.put_i16(self.error);
        out.put_i64(self.end);
        out.put_i64(self.end);
        if version >= 5 {
            out.put_i64(self.start);
        }
        // No transactions, so none aborted: null.
        if flexible {
            out.put_u8(0)
        } else {
            out.put_i32(-1)
        }
        if version >= 11 {
            out.put_i32(-1);
        }
        // Empty records are empty, never null: librdkafka breaks on null.
        put_length(out, flexible, self.batches.iter().map(Bytes::len).sum());
        for batch in &self.batches {
            out.put_slice(batch);
        }
        put_no_tags(out, flexible);
    }
}

fn put_length(out: &mut BytesMut, flexible: bool, length: usize) {
    // Lengths are bounded by FETCH_BYTES_MAX, far below 32 bits.
    let mut rest = length as u32;
    if !flexible {
        return out.put_u32(rest);
    }
    rest += 1;
    while rest >= 0x80 {
        out.put_u8(rest as u8 | 0x80);
        rest >>= 7;
    }
    out.put_u8(rest as u8);
}

fn put_no_tags(out: &mut BytesMut, flexible: bool) {
    if flexible {
        out.put_u8(0);
    }
}

impl Handle for FetchRequest {
    type Answer = FetchAnswer;

    fn topics(&self) -> Vec<&str> {
        self.topics.iter().map(|topic| topic.topic.as_str()).collect()
    }

    async fn handle(self, context: &Context<'_>) -> FetchAnswer {
        if self.session_id != 0 {
            return FetchAnswer { error: code::FETCH_SESSION_ID_NOT_FOUND, ..FetchAnswer::default() };
        }
        let wait = Duration::from_millis(u64::from(self.max_wait_ms.max(0).unsigned_abs()));
        let deadline = Instant::now() + wait.min(FETCH_WAIT_MAX);
        let enough = usize::try_from(self.min_bytes).unwrap_or(0);
        let waiter = Arc::new(Notify::new());
        loop {
            let waits = Instant::now() < deadline;
            let answer = collect(&self, context, waits.then_some(&waiter));
            if answer.bytes >= enough || answer.failed || !waits {
                return answer;
            }
            // Out of time or woken: either way the next look decides.
            let _ = tokio::time::timeout_at(deadline, waiter.notified()).await;
        }
    }
}

/// What there is now; `waiter` will be woken when there is more.
fn collect(request: &FetchRequest, context: &Context<'_>, waiter: Option<&Arc<Notify>>) -> FetchAnswer {
    let error = context.error();
    let mut answer = FetchAnswer {
        throttle_ms: context.effects.throttle_ms,
        failed: error != 0,
        ..FetchAnswer::default()
    };
    if context.version >= 7 {
        answer.error = error;
    }
    for wanted in &request.topics {
        let topic = context.topic(&wanted.topic);
        let mut partitions = Vec::with_capacity(wanted.partitions.len());
        for partition in &wanted.partitions {
            let room = usize::try_from(request.max_bytes).unwrap_or(0).min(FETCH_BYTES_MAX);
            let room = room.saturating_sub(answer.bytes);
            let topic = topic.as_ref().map_err(|code| *code);
            let fetched = fetch(topic, partition, room, answer.bytes == 0, waiter);
            answer.bytes += fetched.batches.iter().map(Bytes::len).sum::<usize>();
            answer.failed |= fetched.error != code::NONE;
            partitions.push(fetched);
        }
        answer.topics.push((wanted.topic.clone(), partitions));
    }
    answer
}

fn fetch(
    topic: Result<&Arc<Topic>, i16>,
    wanted: &FetchPartition,
    room: usize,
    first: bool,
    waiter: Option<&Arc<Notify>>,
) -> FetchedPartition {
    let index = wanted.partition;
    let read = topic.and_then(|topic| {
        let mut log = topic.log(index).ok_or(code::UNKNOWN_TOPIC_OR_PARTITION)?;
        let room = room.min(usize::try_from(wanted.partition_max_bytes).unwrap_or(0));
        let slice = log.read(wanted.fetch_offset, room, first)?;
        if let Some(waiter) = waiter {
            log.wake_me(waiter);
        }
        Ok((slice, log.end(), log.start()))
    });
    match read {
        Ok((slice, end, start)) => {
            FetchedPartition { index, error: code::NONE, end, start, batches: slice.batches }
        }
        Err(error) => FetchedPartition { index, error, end: -1, start: -1, batches: Vec::new() },
    }
}

impl Handle for ListOffsetsRequest {
    type Answer = ListOffsetsResponse;

    fn topics(&self) -> Vec<&str> {
        self.topics.iter().map(|topic| topic.name.as_str()).collect()
    }

    async fn handle(self, context: &Context<'_>) -> ListOffsetsResponse {
        let answer = |asked: ListOffsetsTopic| {
            let topic = context.topic(&asked.name);
            let offset = |partition: &ListOffsetsPartition| {
                let topic = topic.as_ref().map_err(|code| *code);
                let answer = ListOffsetsPartitionResponse::default()
                    .with_partition_index(partition.partition_index)
                    .with_timestamp(-1)
                    .with_offset(-1);
                match offset_at(topic, partition.partition_index, partition.timestamp) {
                    Ok((offset, timestamp)) => answer
                        .with_offset(offset)
                        .with_timestamp(timestamp)
                        .with_leader_epoch(if context.version >= 4 { 0 } else { -1 }),
                    Err(code) => answer.with_error_code(code),
                }
            };
            let partitions = asked.partitions.iter().map(offset).collect();
            ListOffsetsTopicResponse::default().with_name(asked.name).with_partitions(partitions)
        };
        ListOffsetsResponse::default().with_topics(self.topics.into_iter().map(answer).collect())
    }
}

fn offset_at(topic: Result<&Arc<Topic>, i16>, index: i32, timestamp: i64) -> Result<(i64, i64), i16> {
    let log = topic?.log(index).ok_or(code::UNKNOWN_TOPIC_OR_PARTITION)?;
    match timestamp {
        LATEST => Ok((log.end(), -1)),
        EARLIEST => Ok((log.start(), -1)),
        time if time >= 0 => Ok(log.offset_at(time).unwrap_or((-1, -1))),
        _ => Err(code::INVALID_REQUEST),
    }
}

impl Handle for DeleteRecordsRequest {
    type Answer = DeleteRecordsResponse;

    fn topics(&self) -> Vec<&str> {
        self.topics.iter().map(|topic| topic.name.as_str()).collect()
    }

    async fn handle(self, context: &Context<'_>) -> DeleteRecordsResponse {
        let answer = |asked: DeleteRecordsTopic| {
            let topic = context.topic(&asked.name);
            let delete = |partition: &DeleteRecordsPartition| {
                let start = topic.as_ref().map_err(|code| *code).and_then(|topic| {
                    let log = topic.log(partition.partition_index);
                    log.ok_or(code::UNKNOWN_TOPIC_OR_PARTITION)?.delete_before(partition.offset)
                });
                DeleteRecordsPartitionResult::default()
                    .with_partition_index(partition.partition_index)
                    .with_low_watermark(start.unwrap_or(-1))
                    .with_error_code(code_of(start))
            };
            let partitions = asked.partitions.iter().map(delete).collect();
            DeleteRecordsTopicResult::default().with_name(asked.name).with_partitions(partitions)
        };
        DeleteRecordsResponse::default().with_topics(self.topics.into_iter().map(answer).collect())
    }
}

impl Handle for InitProducerIdRequest {
    type Answer = InitProducerIdResponse;

    async fn handle(self, context: &Context<'_>) -> InitProducerIdResponse {
        let error = match self.transactional_id {
            // Transactions there are none; this code clients do not retry.
            Some(_) => code::TRANSACTIONAL_ID_AUTHORIZATION_FAILED,
            None => context.error(),
        };
        let answer = InitProducerIdResponse::default().with_error_code(error);
        match error {
            code::NONE => answer.with_producer_id(ProducerId(context.shared.next_producer_id())),
            _ => answer.with_producer_id(ProducerId(-1)).with_producer_epoch(-1),
        }
    }
}
