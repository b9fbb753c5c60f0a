//! What each request means: every API decodes into a [`Handle`], meets the
//! faults that are in force, takes effect on topics and groups, and answers.
//! Versions matter here only where a field would not be understood.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::{BufMut, Bytes, BytesMut};
use kafka_protocol::messages::api_versions_response::ApiVersion;
use kafka_protocol::messages::create_topics_request::CreatableTopic;
use kafka_protocol::messages::create_topics_response::CreatableTopicResult;
use kafka_protocol::messages::delete_records_response::{
    DeleteRecordsPartitionResult, DeleteRecordsTopicResult,
};
use kafka_protocol::messages::delete_topics_response::DeletableTopicResult;
use kafka_protocol::messages::fetch_request::FetchPartition;
use kafka_protocol::messages::leave_group_request::MemberIdentity;
use kafka_protocol::messages::leave_group_response::MemberResponse;
use kafka_protocol::messages::list_offsets_response::{
    ListOffsetsPartitionResponse, ListOffsetsTopicResponse,
};
use kafka_protocol::messages::metadata_response::{
    MetadataResponseBroker, MetadataResponsePartition, MetadataResponseTopic,
};
use kafka_protocol::messages::offset_commit_response::{
    OffsetCommitResponsePartition, OffsetCommitResponseTopic,
};
use kafka_protocol::messages::offset_fetch_response::{
    OffsetFetchResponsePartition, OffsetFetchResponseTopic,
};
use kafka_protocol::messages::produce_response::{PartitionProduceResponse, TopicProduceResponse};
use kafka_protocol::messages::*;
use kafka_protocol::protocol::{Decodable, StrBytes};
use tokio::sync::Notify;
use tokio::time::Instant;

use super::faults::Effects;
use super::groups::{Claim, Committed, Step, refuse_join};
use super::topics::{Topic, TopicError};
use super::wire::{Answer, Call};
use super::{Api, FETCH_BYTES_MAX, FETCH_WAIT_MAX, Shared, code, lock};

/// The only broker there is.
const NODE: BrokerId = BrokerId(1);
/// The cluster that it is.
const CLUSTER: &str = "antiphon-dev-broker";
/// ListOffsets: the end, and the start, in place of a time.
const LATEST: i64 = -1;
const EARLIEST: i64 = -2;
/// FindCoordinator: the key is a consumer group's id.
const KEY_IS_GROUP: i8 = 0;
/// The first Produce version advertised, though not served: librdkafka before
/// 2.8 compresses only for brokers that claim it, so Apache Kafka 4 does this
/// too (KAFKA-18659).
const PRODUCE_VERSION_CLAIMED: i16 = 0;

/// What becomes of a request.
pub(super) enum Outcome {
    Answer(BytesMut),
    Nothing,
    Close,
    Silence,
}

/// What a handler may know of the request's surroundings.
struct Context<'a> {
    shared: &'a Shared,
    local: SocketAddr,
    version: i16,
    effects: Effects,
}

impl Context<'_> {
    /// Host and port that clients are told.
    fn advertised(&self) -> (StrBytes, i32) {
        let host = self.shared.config.advertised_host.clone();
        (text(&host.unwrap_or_else(|| self.local.ip().to_string())), i32::from(self.local.port()))
    }

    fn error(&self) -> i16 {
        self.effects.error().unwrap_or(code::NONE)
    }

    /// A topic as far as faults allow.
    fn topic(&self, name: &str) -> Result<Arc<Topic>, i16> {
        match self.effects.error_for(name) {
            Some(code) => Err(code),
            None => self.shared.topics.get(name).ok_or(code::UNKNOWN_TOPIC_OR_PARTITION),
        }
    }
}

/// One kind of request.
trait Handle: Decodable {
    type Answer: Answer;

    /// The topics it names, for faults.
    fn topics(&self) -> Vec<&str> {
        Vec::new()
    }

    /// Whether the client waits for an answer.
    fn wants_answer(&self) -> bool {
        true
    }

    async fn handle(self, context: &Context<'_>) -> Self::Answer;
}

/// Serves one request.
pub(super) async fn serve(shared: &Shared, local: SocketAddr, frame: Bytes) -> Outcome {
    let Some(call) = Call::parse(frame) else { return Outcome::Close };
    if !call.version_known() {
        return refuse_version(call);
    }
    match call.api {
        Api::Produce => run::<ProduceRequest>(shared, local, call).await,
        Api::Fetch => run::<FetchRequest>(shared, local, call).await,
        Api::ListOffsets => run::<ListOffsetsRequest>(shared, local, call).await,
        Api::Metadata => run::<MetadataRequest>(shared, local, call).await,
        Api::OffsetCommit => run::<OffsetCommitRequest>(shared, local, call).await,
        Api::OffsetFetch => run::<OffsetFetchRequest>(shared, local, call).await,
        Api::FindCoordinator => run::<FindCoordinatorRequest>(shared, local, call).await,
        Api::JoinGroup => run::<JoinGroupRequest>(shared, local, call).await,
        Api::Heartbeat => run::<HeartbeatRequest>(shared, local, call).await,
        Api::LeaveGroup => run::<LeaveGroupRequest>(shared, local, call).await,
        Api::SyncGroup => run::<SyncGroupRequest>(shared, local, call).await,
        Api::ApiVersions => run::<ApiVersionsRequest>(shared, local, call).await,
        Api::CreateTopics => run::<CreateTopicsRequest>(shared, local, call).await,
        Api::DeleteTopics => run::<DeleteTopicsRequest>(shared, local, call).await,
        Api::DeleteRecords => run::<DeleteRecordsRequest>(shared, local, call).await,
        Api::InitProducerId => run::<InitProducerIdRequest>(shared, local, call).await,
    }
}

/// Decodes, lets the faults act, handles, encodes.
async fn run<Q: Handle>(shared: &Shared, local: SocketAddr, call: Call) -> Outcome {
    let Some(request) = call.decode::<Q>() else {
        tracing::debug!(?call.api, call.version, "embedded broker: a request is malformed");
        return Outcome::Close;
    };
    let effects = shared.faults.meet(call.api, || request.topics());
    if let Some(delay) = effects.delay {
        tokio::time::sleep(delay).await;
    }
    if effects.silence {
        return Outcome::Silence;
    }
    if effects.cut_before {
        return Outcome::Close;
    }
    let context = Context { shared, local, version: call.version, effects };
    let wants_answer = request.wants_answer();
    let answer = request.handle(&context).await;
    if let Some(delay) = context.effects.delay_answer {
        tokio::time::sleep(delay).await;
    }
    if context.effects.cut_after {
        return Outcome::Close;
    }
    if wants_answer { encode(&call, &answer) } else { Outcome::Nothing }
}

fn encode<A: Answer>(call: &Call, answer: &A) -> Outcome {
    call.encode(answer).map_or_else(
        || {
            tracing::error!(?call.api, call.version, "embedded broker: an answer cannot be encoded");
            Outcome::Close
        },
        Outcome::Answer,
    )
}

/// ApiVersions is how clients learn what there is, so it alone is answered in
/// an unknown version: in version 0, which everyone understands.
fn refuse_version(mut call: Call) -> Outcome {
    if call.api != Api::ApiVersions {
        return Outcome::Close;
    }
    call.version = 0;
    encode(&call, &api_versions().with_error_code(code::UNSUPPORTED_VERSION))
}

fn api_versions() -> ApiVersionsResponse {
    let version = |api: &Api| {
        let (min, max) = api.versions();
        let min = if *api == Api::Produce { PRODUCE_VERSION_CLAIMED } else { min };
        ApiVersion::default().with_api_key(api.key()).with_min_version(min).with_max_version(max)
    };
    ApiVersionsResponse::default().with_api_keys(Api::ALL.iter().map(version).collect())
}

impl Handle for ApiVersionsRequest {
    type Answer = ApiVersionsResponse;

    async fn handle(self, context: &Context<'_>) -> ApiVersionsResponse {
        api_versions().with_error_code(context.error())
    }
}

impl Handle for MetadataRequest {
    type Answer = MetadataResponse;

    fn topics(&self) -> Vec<&str> {
        let topics = self.topics.iter().flatten();
        topics.filter_map(|topic| topic.name.as_ref()).map(|name| name.as_str()).collect()
    }

    async fn handle(self, context: &Context<'_>) -> MetadataResponse {
        let everything = |topics: &Vec<_>| context.version == 0 && topics.is_empty();
        let topics = match self.topics.filter(|topics| !everything(topics)) {
            None => {
                let all = context.shared.topics.all();
                all.iter().map(|(name, topic)| describe(context, name, Ok(topic))).collect()
            }
            Some(topics) => {
                let names: BTreeSet<_> = topics.into_iter().filter_map(|topic| topic.name).collect();
                let create = self.allow_auto_topic_creation && context.shared.config.auto_create;
                names.iter().map(|name| look_up(context, name.as_str(), create)).collect()
            }
        };
        let (host, port) = context.advertised();
        let broker = MetadataResponseBroker::default().with_node_id(NODE).with_host(host).with_port(port);
        MetadataResponse::default()
            .with_brokers(vec![broker])
            .with_cluster_id((context.version >= 2).then(|| StrBytes::from_static_str(CLUSTER)))
            .with_controller_id(NODE)
            .with_topics(topics)
    }
}

fn look_up(context: &Context<'_>, name: &str, create: bool) -> MetadataResponseTopic {
    let topics = &context.shared.topics;
    let found = topics.get(name).ok_or_else(|| match topics.create(name, -1, !create) {
        Err(error) if create || error == TopicError::Name => error,
        _ => TopicError::Unknown,
    });
    match found.or_else(|error| topics.get(name).ok_or(error)) {
        Ok(topic) => describe(context, name, Ok(&topic)),
        Err(error) => describe(context, name, Err(error)),
    }
}

fn describe(
    context: &Context<'_>,
    name: &str,
    topic: Result<&Arc<Topic>, TopicError>,
) -> MetadataResponseTopic {
    let answer = MetadataResponseTopic::default().with_name(Some(TopicName(text(name))));
    let fault = context.effects.error_for(name);
    match (fault, topic) {
        (Some(code), _) => answer.with_error_code(code),
        (None, Err(error)) => answer.with_error_code(error.code()),
        (None, Ok(topic)) => {
            let partition = |index| {
                MetadataResponsePartition::default()
                    .with_partition_index(index)
                    .with_leader_id(NODE)
                    .with_leader_epoch(0)
                    .with_replica_nodes(vec![NODE])
                    .with_isr_nodes(vec![NODE])
            };
            answer.with_partitions((0..topic.partition_count()).map(partition).collect())
        }
    }
}

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
            let append = |partition: produce_request::PartitionProduceData| {
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
        let answer = |asked: list_offsets_request::ListOffsetsTopic| {
            let topic = context.topic(&asked.name);
            let offset = |partition: &list_offsets_request::ListOffsetsPartition| {
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

impl Handle for CreateTopicsRequest {
    type Answer = CreateTopicsResponse;

    fn topics(&self) -> Vec<&str> {
        self.topics.iter().map(|topic| topic.name.as_str()).collect()
    }

    async fn handle(self, context: &Context<'_>) -> CreateTopicsResponse {
        let named = |name: &TopicName| self.topics.iter().filter(|topic| topic.name == *name).count();
        let mut answers = Vec::with_capacity(self.topics.len());
        let mut seen = BTreeSet::new();
        for topic in self.topics.iter().filter(|topic| seen.insert(topic.name.clone())) {
            let mut answer = CreatableTopicResult::default().with_name(topic.name.clone());
            let created = match context.effects.error_for(&topic.name) {
                Some(code) => Err((code, "a fault was injected".to_owned())),
                None if named(&topic.name) > 1 => Err(explain(TopicError::Request)),
                None => create(context, topic, self.validate_only).map_err(explain),
            };
            match created {
                Ok(partitions) if context.version >= 5 => {
                    answer = answer.with_num_partitions(partitions).with_replication_factor(1);
                }
                Ok(_) => {}
                Err((code, message)) => {
                    answer = answer.with_error_code(code).with_error_message(Some(text(&message)));
                }
            }
            answers.push(answer);
        }
        CreateTopicsResponse::default().with_topics(answers)
    }
}

fn explain(error: TopicError) -> (i16, String) {
    (error.code(), error.to_string())
}

fn create(context: &Context<'_>, topic: &CreatableTopic, only_check: bool) -> Result<i32, TopicError> {
    let mut partitions = topic.num_partitions;
    if !topic.assignments.is_empty() {
        let indexes: BTreeSet<_> = topic.assignments.iter().map(|a| a.partition_index).collect();
        partitions = i32::try_from(topic.assignments.len()).unwrap_or(i32::MAX);
        let ours = topic.assignments.iter().all(|a| a.broker_ids == [NODE]);
        let counted = topic.num_partitions != -1 || topic.replication_factor != -1;
        if counted || !ours || !indexes.into_iter().eq(0..partitions) {
            return Err(TopicError::Request);
        }
    }
    if !matches!(topic.replication_factor, -1 | 1) {
        return Err(TopicError::Replication);
    }
    context.shared.topics.create(&topic.name, partitions, only_check)
}

impl Handle for DeleteTopicsRequest {
    type Answer = DeleteTopicsResponse;

    fn topics(&self) -> Vec<&str> {
        self.topic_names.iter().map(|name| name.as_str()).collect()
    }

    async fn handle(self, context: &Context<'_>) -> DeleteTopicsResponse {
        let delete = |name: TopicName| {
            let deleted = match context.effects.error_for(&name) {
                Some(code) => Err(code),
                None => context.shared.topics.delete(&name).map_err(TopicError::code),
            };
            if deleted.is_ok() {
                lock(&context.shared.groups).forget_topic(&name);
            }
            DeletableTopicResult::default().with_name(Some(name)).with_error_code(code_of(deleted))
        };
        DeleteTopicsResponse::default().with_responses(self.topic_names.into_iter().map(delete).collect())
    }
}

impl Handle for DeleteRecordsRequest {
    type Answer = DeleteRecordsResponse;

    fn topics(&self) -> Vec<&str> {
        self.topics.iter().map(|topic| topic.name.as_str()).collect()
    }

    async fn handle(self, context: &Context<'_>) -> DeleteRecordsResponse {
        let answer = |asked: delete_records_request::DeleteRecordsTopic| {
            let topic = context.topic(&asked.name);
            let delete = |partition: &delete_records_request::DeleteRecordsPartition| {
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

impl Handle for FindCoordinatorRequest {
    type Answer = FindCoordinatorResponse;

    async fn handle(self, context: &Context<'_>) -> FindCoordinatorResponse {
        let error = match self.key_type {
            KEY_IS_GROUP => context.error(),
            _ => code::TRANSACTIONAL_ID_AUTHORIZATION_FAILED,
        };
        let answer = FindCoordinatorResponse::default().with_error_code(error);
        if error != code::NONE {
            return answer.with_node_id(BrokerId(-1)).with_port(-1);
        }
        let (host, port) = context.advertised();
        answer.with_node_id(NODE).with_host(host).with_port(port)
    }
}

impl Handle for JoinGroupRequest {
    type Answer = JoinGroupResponse;

    async fn handle(self, context: &Context<'_>) -> JoinGroupResponse {
        let refused = |code, member: &str| refuse_join(code, member, context.version);
        if let Some(code) = context.effects.error() {
            return refused(code, &self.member_id);
        }
        let groups = &context.shared.groups;
        let joining = match lock(groups).join(Instant::now(), &self, context.version) {
            Ok(joining) => joining,
            Err((code, member)) => return refused(code, &member),
        };
        until_ready(|now| lock(groups).joined(now, &joining, context.version)).await
    }
}

impl Handle for SyncGroupRequest {
    type Answer = SyncGroupResponse;

    async fn handle(self, context: &Context<'_>) -> SyncGroupResponse {
        let groups = &context.shared.groups;
        let accepted = match context.effects.error() {
            Some(code) => Err(code),
            None => lock(groups).sync(Instant::now(), &self),
        };
        let synced = match accepted {
            Ok(syncing) => until_ready(|now| lock(groups).synced(now, &syncing)).await,
            Err(code) => Err(code),
        };
        match synced {
            Ok((kind, name, assignment)) => {
                let answer = SyncGroupResponse::default().with_assignment(assignment);
                let named = context.version >= 5;
                answer.with_protocol_type(named.then_some(kind)).with_protocol_name(named.then_some(name))
            }
            Err(code) => SyncGroupResponse::default().with_error_code(code),
        }
    }
}

/// Asks until there is an answer, whenever something changed or is due.
async fn until_ready<T>(mut ask: impl FnMut(Instant) -> Step<T>) -> T {
    loop {
        match ask(Instant::now()) {
            Step::Ready(answer) => return answer,
            Step::Wait(mut changed, due) => {
                let _ = tokio::time::timeout_at(due, changed.changed()).await;
            }
        }
    }
}

impl Handle for HeartbeatRequest {
    type Answer = HeartbeatResponse;

    async fn handle(self, context: &Context<'_>) -> HeartbeatResponse {
        let claim = Claim {
            group: &self.group_id,
            member: &self.member_id,
            instance: self.group_instance_id.as_deref(),
            generation: self.generation_id,
        };
        let code = match context.effects.error() {
            Some(code) => code,
            None => code_of(lock(&context.shared.groups).heartbeat(Instant::now(), claim)),
        };
        HeartbeatResponse::default().with_error_code(code)
    }
}

impl Handle for LeaveGroupRequest {
    type Answer = LeaveGroupResponse;

    async fn handle(self, context: &Context<'_>) -> LeaveGroupResponse {
        if let Some(code) = context.effects.error() {
            return LeaveGroupResponse::default().with_error_code(code);
        }
        let leave = |who: &MemberIdentity| {
            code_of(lock(&context.shared.groups).leave(Instant::now(), &self.group_id, who))
        };
        if context.version <= 2 {
            let who = MemberIdentity::default().with_member_id(self.member_id.clone());
            return LeaveGroupResponse::default().with_error_code(leave(&who));
        }
        let answer = |who: &MemberIdentity| {
            MemberResponse::default()
                .with_member_id(who.member_id.clone())
                .with_group_instance_id(who.group_instance_id.clone())
                .with_error_code(leave(who))
        };
        LeaveGroupResponse::default().with_members(self.members.iter().map(answer).collect())
    }
}

impl Handle for OffsetCommitRequest {
    type Answer = OffsetCommitResponse;

    fn topics(&self) -> Vec<&str> {
        self.topics.iter().map(|topic| topic.name.as_str()).collect()
    }

    async fn handle(self, context: &Context<'_>) -> OffsetCommitResponse {
        let group = self.group_id.as_str();
        let claim = Claim {
            group,
            member: &self.member_id,
            instance: self.group_instance_id.as_deref(),
            generation: self.generation_id_or_member_epoch,
        };
        let allowed = lock(&context.shared.groups).may_commit(Instant::now(), claim);
        let answer = |sent: offset_commit_request::OffsetCommitRequestTopic| {
            let topic = context.topic(&sent.name);
            let commit = |partition: offset_commit_request::OffsetCommitRequestPartition| {
                let index = partition.partition_index;
                let committed = Committed {
                    offset: partition.committed_offset,
                    leader_epoch: partition.committed_leader_epoch,
                    metadata: partition.committed_metadata.unwrap_or_default(),
                };
                let done = allowed.and(topic.as_ref().map_err(|code| *code)).and_then(|topic| {
                    drop(topic.log(index).ok_or(code::UNKNOWN_TOPIC_OR_PARTITION)?);
                    lock(&context.shared.groups).commit(group, &sent.name, index, committed)
                });
                OffsetCommitResponsePartition::default()
                    .with_partition_index(index)
                    .with_error_code(code_of(done))
            };
            let partitions = sent.partitions.into_iter().map(commit).collect();
            OffsetCommitResponseTopic::default().with_name(sent.name).with_partitions(partitions)
        };
        OffsetCommitResponse::default().with_topics(self.topics.into_iter().map(answer).collect())
    }
}

impl Handle for OffsetFetchRequest {
    type Answer = OffsetFetchResponse;

    fn topics(&self) -> Vec<&str> {
        self.topics.iter().flatten().map(|topic| topic.name.as_str()).collect()
    }

    async fn handle(self, context: &Context<'_>) -> OffsetFetchResponse {
        let groups = lock(&context.shared.groups);
        let wanted: Vec<(StrBytes, Vec<i32>)> = match self.topics {
            Some(topics) => topics.into_iter().map(|topic| (topic.name.0, topic.partition_indexes)).collect(),
            None => {
                let all = groups.committed_partitions(&self.group_id);
                all.into_iter().map(|(name, partitions)| (text(&name), partitions)).collect()
            }
        };
        let answer = |(name, partitions): (StrBytes, Vec<i32>)| {
            let error = context.effects.error_for(&name).unwrap_or(code::NONE);
            let offset = |index: i32| {
                let committed =
                    groups.committed(&self.group_id, &name, index).filter(|_| error == code::NONE);
                offset_fetched(index, committed, context.version).with_error_code(error)
            };
            let partitions = partitions.into_iter().map(offset).collect();
            OffsetFetchResponseTopic::default().with_name(TopicName(name.clone())).with_partitions(partitions)
        };
        let topics = wanted.into_iter().map(answer).collect();
        let error = if context.version >= 2 { context.error() } else { code::NONE };
        OffsetFetchResponse::default().with_topics(topics).with_error_code(error)
    }
}

fn offset_fetched(index: i32, committed: Option<Committed>, version: i16) -> OffsetFetchResponsePartition {
    let answer = OffsetFetchResponsePartition::default().with_partition_index(index);
    match committed {
        Some(committed) => answer
            .with_committed_offset(committed.offset)
            .with_committed_leader_epoch(if version >= 5 { committed.leader_epoch } else { -1 })
            .with_metadata(Some(committed.metadata)),
        None => answer.with_committed_offset(-1).with_metadata(Some(StrBytes::new())),
    }
}

fn code_of<T>(result: Result<T, i16>) -> i16 {
    result.err().unwrap_or(code::NONE)
}

fn text(text: &str) -> StrBytes {
    StrBytes::from_string(text.to_owned())
}

#[cfg(test)]
mod tests;
#[cfg(test)]
pub(super) use tests::decodes;
