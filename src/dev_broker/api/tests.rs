//! Every API at every advertised version: a full request is written as a
//! client writes it, read, handled, answered, and the answer read back.

use super::records::{EARLIEST, LATEST};
use super::*;

use std::sync::Mutex;
use std::sync::atomic::AtomicI64;
use std::time::Duration;

use bytes::{Buf as _, BufMut as _};
use kafka_protocol::messages::create_topics_request::CreatableTopic;
use kafka_protocol::messages::fetch_request::FetchPartition;
use kafka_protocol::messages::leave_group_request::MemberIdentity;
use kafka_protocol::protocol::{Encodable, HeaderVersion, Request};

use crate::dev_broker::faults::Faults;
use crate::dev_broker::groups::{Claim, Committed, Groups};
use crate::dev_broker::topics::Topics;
use crate::dev_broker::{Config, Fault, Rule, lock};
use tokio::time::Instant;

fn broker() -> Shared {
    let config = Config::default();
    let topics = Topics::new(config.clone());
    topics.create("there", 2, false).unwrap();
    let (groups, faults) = (Mutex::new(Groups::default()), Faults::new());
    Shared { config, topics, groups, faults, producers_made: AtomicI64::new(1) }
}

fn local() -> SocketAddr {
    SocketAddr::from(([127, 0, 0, 1], 9092))
}

/// Decodes a call's body, whatever it is; only that it returns matters.
pub(in crate::dev_broker) fn decodes(call: &Call) -> bool {
    match call.api {
        Api::Produce => call.decode::<ProduceRequest>().is_some(),
        Api::Fetch => call.decode::<FetchRequest>().is_some(),
        Api::ListOffsets => call.decode::<ListOffsetsRequest>().is_some(),
        Api::Metadata => call.decode::<MetadataRequest>().is_some(),
        Api::OffsetCommit => call.decode::<OffsetCommitRequest>().is_some(),
        Api::OffsetFetch => call.decode::<OffsetFetchRequest>().is_some(),
        Api::FindCoordinator => call.decode::<FindCoordinatorRequest>().is_some(),
        Api::JoinGroup => call.decode::<JoinGroupRequest>().is_some(),
        Api::Heartbeat => call.decode::<HeartbeatRequest>().is_some(),
        Api::LeaveGroup => call.decode::<LeaveGroupRequest>().is_some(),
        Api::SyncGroup => call.decode::<SyncGroupRequest>().is_some(),
        Api::DescribeGroups => call.decode::<DescribeGroupsRequest>().is_some(),
        Api::ListGroups => call.decode::<ListGroupsRequest>().is_some(),
        Api::ApiVersions => call.decode::<ApiVersionsRequest>().is_some(),
        Api::CreateTopics => call.decode::<CreateTopicsRequest>().is_some(),
        Api::DeleteTopics => call.decode::<DeleteTopicsRequest>().is_some(),
        Api::DeleteRecords => call.decode::<DeleteRecordsRequest>().is_some(),
        Api::InitProducerId => call.decode::<InitProducerIdRequest>().is_some(),
    }
}

/// Writes, serves and reads back one request.
async fn exchange<Q: Request>(shared: &Shared, version: i16, request: &Q) -> Q::Response {
    let mut frame = BytesMut::new();
    RequestHeader::default()
        .with_request_api_key(Q::KEY)
        .with_request_api_version(version)
        .with_correlation_id(41)
        .with_client_id(Some(text("tester")))
        .encode(&mut frame, Q::header_version(version))
        .unwrap();
    request.encode(&mut frame, version).unwrap_or_else(|e| panic!("{} v{version}: {e}", Q::KEY));
    let outcome = serve(shared, local(), frame.freeze()).await;
    let Outcome::Answer(mut answer) = outcome else { panic!("API {} v{version}: no answer", Q::KEY) };
    assert_eq!(usize::try_from(answer.get_i32()).unwrap(), answer.len());
    let header = ResponseHeader::decode(&mut answer, Q::Response::header_version(version)).unwrap();
    assert_eq!(header.correlation_id, 41);
    let body =
        Q::Response::decode(&mut answer, version).unwrap_or_else(|e| panic!("{} v{version}: {e}", Q::KEY));
    assert!(answer.is_empty(), "API {} v{version}: {} bytes too many", Q::KEY, answer.len());
    body
}

/// The same request at every version, with and without a fault.
async fn every_version<Q: Request>(api: Api, request: impl Fn(i16) -> Q) {
    assert_eq!(api.key(), Q::KEY);
    let (min, max) = api.versions();
    for version in min..=max {
        let shared = broker();
        exchange(&shared, version, &request(version)).await;
        shared.faults.inject(Rule::new(api, Fault::Error(code::UNKNOWN_SERVER_ERROR)));
        shared.faults.inject(Rule::new(api, Fault::Throttle(Duration::from_secs(1))));
        exchange(&shared, version, &request(version)).await;
    }
}

fn name(name: &str) -> TopicName {
    TopicName(text(name))
}

#[tokio::test]
async fn records_at_every_version() {
    use delete_records_request::{DeleteRecordsPartition, DeleteRecordsTopic};
    use fetch_request::{FetchTopic, ForgottenTopic};
    use list_offsets_request::{ListOffsetsPartition, ListOffsetsTopic};
    use produce_request::{PartitionProduceData, TopicProduceData};

    every_version(Api::Produce, |_| {
        let records = Some(Bytes::from_static(b"not a batch"));
        let partitions =
            (0..3).map(|i| PartitionProduceData::default().with_index(i).with_records(records.clone()));
        let topics = ["there", "not-there"].map(|topic| {
            TopicProduceData::default()
                .with_name(name(topic))
                .with_partition_data(partitions.clone().collect())
        });
        ProduceRequest::default().with_acks(-1).with_topic_data(topics.to_vec())
    })
    .await;
    every_version(Api::Fetch, |version| {
        let partitions = (0..3).map(|i| FetchPartition::default().with_partition(i)).collect::<Vec<_>>();
        let topics = ["there", "not-there"]
            .map(|topic| FetchTopic::default().with_topic(name(topic)).with_partitions(partitions.clone()));
        let request =
            FetchRequest::default().with_max_wait_ms(5).with_min_bytes(1).with_topics(topics.to_vec());
        if version < 7 {
            return request;
        }
        let forgotten = ForgottenTopic::default().with_topic(name("old")).with_partitions(vec![1, 2]);
        request.with_forgotten_topics_data(vec![forgotten])
    })
    .await;
    every_version(Api::ListOffsets, |_| {
        let partitions = [LATEST, EARLIEST, 5, -9].map(|t| ListOffsetsPartition::default().with_timestamp(t));
        let topics = ["there", "not-there"].map(|topic| {
            ListOffsetsTopic::default().with_name(name(topic)).with_partitions(partitions.to_vec())
        });
        ListOffsetsRequest::default().with_topics(topics.to_vec())
    })
    .await;
    every_version(Api::DeleteRecords, |_| {
        let partitions = [0, 9].map(|i| DeleteRecordsPartition::default().with_partition_index(i));
        let topic =
            DeleteRecordsTopic::default().with_name(name("there")).with_partitions(partitions.to_vec());
        DeleteRecordsRequest::default().with_topics(vec![topic])
    })
    .await;
    every_version(Api::InitProducerId, |_| InitProducerIdRequest::default()).await;
}

#[tokio::test]
async fn topics_at_every_version() {
    use create_topics_request::{CreatableReplicaAssignment, CreatableTopicConfig};
    use metadata_request::MetadataRequestTopic;

    every_version(Api::ApiVersions, |_| ApiVersionsRequest::default()).await;
    every_version(Api::Metadata, |version| {
        let topics = ["there", "not-there", "not/legal"];
        let topics = topics.map(|topic| MetadataRequestTopic::default().with_name(Some(name(topic))));
        let request = MetadataRequest::default().with_topics(Some(topics.to_vec()));
        request.with_include_topic_authorized_operations(version >= 8)
    })
    .await;
    every_version(Api::CreateTopics, |_| {
        let config =
            CreatableTopicConfig::default().with_name(text("retention.ms")).with_value(Some(text("5")));
        let topic = |n| CreatableTopic::default().with_name(name(n)).with_num_partitions(-1);
        let topic = |n| topic(n).with_replication_factor(-1).with_configs(vec![config.clone()]);
        let assignment = CreatableReplicaAssignment::default().with_broker_ids(vec![NODE]);
        let topics = vec![topic("new"), topic("there"), topic("assigned").with_assignments(vec![assignment])];
        CreateTopicsRequest::default().with_topics(topics)
    })
    .await;
    every_version(Api::DeleteTopics, |_| {
        DeleteTopicsRequest::default().with_topic_names(vec![name("there"), name("not-there")])
    })
    .await;
}

#[tokio::test]
async fn groups_at_every_version() {
    use join_group_request::JoinGroupRequestProtocol;
    use offset_commit_request::{OffsetCommitRequestPartition, OffsetCommitRequestTopic};
    use offset_fetch_request::OffsetFetchRequestTopic;
    use sync_group_request::SyncGroupRequestAssignment;

    let group = || GroupId(text("g"));
    every_version(Api::FindCoordinator, |_| FindCoordinatorRequest::default().with_key(text("g"))).await;
    every_version(Api::JoinGroup, |version| {
        let protocol =
            JoinGroupRequestProtocol::default().with_name(text("range")).with_metadata(Bytes::from("m"));
        let instance = (version >= 5).then(|| text("static"));
        JoinGroupRequest::default()
            .with_group_id(group())
            .with_session_timeout_ms(10_000)
            .with_group_instance_id(instance)
            .with_protocol_type(text("consumer"))
            .with_protocols(vec![protocol.clone(), protocol])
    })
    .await;
    every_version(Api::SyncGroup, |version| {
        let assignment = SyncGroupRequestAssignment::default().with_assignment(Bytes::from("a"));
        SyncGroupRequest::default()
            .with_group_id(group())
            .with_group_instance_id((version >= 3).then(|| text("static")))
            .with_assignments(vec![assignment.clone(), assignment])
    })
    .await;
    every_version(Api::Heartbeat, |_| HeartbeatRequest::default().with_group_id(group())).await;
    every_version(Api::LeaveGroup, |version| {
        let request = LeaveGroupRequest::default().with_group_id(group());
        match version {
            ..=2 => request.with_member_id(text("m")),
            _ => request.with_members(vec![MemberIdentity::default().with_member_id(text("m")); 2]),
        }
    })
    .await;
    every_version(Api::OffsetCommit, |_| {
        let partition = OffsetCommitRequestPartition::default().with_committed_metadata(Some(text("x")));
        let topics = ["there", "not-there"].map(|topic| {
            OffsetCommitRequestTopic::default()
                .with_name(name(topic))
                .with_partitions(vec![partition.clone(); 2])
        });
        let request = OffsetCommitRequest::default().with_group_id(group()).with_topics(topics.to_vec());
        request.with_generation_id_or_member_epoch(-1)
    })
    .await;
    every_version(Api::DescribeGroups, |_| {
        DescribeGroupsRequest::default().with_groups(vec![group(), GroupId(text("not-there"))])
    })
    .await;
    every_version(Api::ListGroups, |_| ListGroupsRequest::default()).await;
    every_version(Api::OffsetFetch, |_| {
        let topic =
            OffsetFetchRequestTopic::default().with_name(name("there")).with_partition_indexes(vec![0, 1]);
        OffsetFetchRequest::default().with_group_id(group()).with_topics(Some(vec![topic]))
    })
    .await;
}

#[tokio::test]
async fn a_committed_offset_is_fetched_with_what_the_version_has() {
    let shared = broker();
    let committed = Committed { offset: 7, leader_epoch: 3, metadata: text("note") };
    let claim = Claim { group: "g", member: "", instance: None, generation: -1 };
    lock(&shared.groups).may_commit(Instant::now(), claim).unwrap();
    lock(&shared.groups).commit("g", "there", 1, committed).unwrap();
    let (min, max) = Api::OffsetFetch.versions();
    for version in min..=max {
        let topic = offset_fetch_request::OffsetFetchRequestTopic::default();
        let topic = topic.with_name(name("there")).with_partition_indexes(vec![0, 1]);
        let wanted = if version >= 2 { None } else { Some(vec![topic]) };
        let request = OffsetFetchRequest::default().with_group_id(GroupId(text("g"))).with_topics(wanted);
        let answer = exchange(&shared, version, &request).await;
        let partition = answer.topics[0].partitions.last().unwrap();
        assert_eq!((partition.partition_index, partition.committed_offset), (1, 7));
        assert_eq!(partition.metadata.as_deref(), Some("note"));
    }
}

#[tokio::test]
async fn creating_topics_is_refused_for_the_right_reasons() {
    let shared = broker();
    let topic = |n: &str, partitions, replicas| {
        let topic = CreatableTopic::default().with_name(name(n));
        topic.with_num_partitions(partitions).with_replication_factor(replicas)
    };
    let topics = vec![
        topic("fine", -1, -1),
        topic("there", 1, 1),
        topic("no/good", 1, 1),
        topic("none", 0, 1),
        topic("copies", 1, 3),
        topic("twice", 1, 1),
        topic("twice", 1, 1),
    ];
    let answer = exchange(&shared, 5, &CreateTopicsRequest::default().with_topics(topics)).await;
    let codes: Vec<_> = answer.topics.iter().map(|topic| topic.error_code).collect();
    let expected = [
        code::NONE,
        code::TOPIC_ALREADY_EXISTS,
        code::INVALID_TOPIC_EXCEPTION,
        code::INVALID_PARTITIONS,
        code::INVALID_REPLICATION_FACTOR,
        code::INVALID_REQUEST,
    ];
    assert_eq!(codes, expected);
    assert_eq!((answer.topics[0].num_partitions, answer.topics[0].replication_factor), (1, 1));
}

#[tokio::test]
async fn an_unknown_version_of_api_versions_is_answered_in_version_0() {
    let shared = broker();
    let frame = |key: i16, version: i16| {
        let mut frame = BytesMut::new();
        frame.put_i16(key);
        frame.put_i16(version);
        frame.put_i32(9);
        frame.put_slice(b"whatever a later version has");
        frame.freeze()
    };
    let outcome = serve(&shared, local(), frame(Api::ApiVersions.key(), 99)).await;
    let Outcome::Answer(mut answer) = outcome else { panic!("no answer") };
    answer.advance(4);
    assert_eq!(answer.get_i32(), 9);
    let answer = ApiVersionsResponse::decode(&mut answer, 0).unwrap();
    assert_eq!(answer.error_code, code::UNSUPPORTED_VERSION);
    assert_eq!(answer.api_keys.len(), Api::ALL.len());
    for (key, version) in [(Api::Fetch.key(), 13), (Api::Produce.key(), 2), (999, 0)] {
        assert!(matches!(serve(&shared, local(), frame(key, version)).await, Outcome::Close));
    }
}

#[tokio::test]
async fn metadata_creates_topics_only_where_both_sides_want_it() {
    let mut shared = broker();
    let topic = metadata_request::MetadataRequestTopic::default().with_name(Some(name("auto")));
    let request = MetadataRequest::default().with_topics(Some(vec![topic]));
    let code_of = async |shared: &Shared, request: &MetadataRequest| {
        exchange(shared, 5, request).await.topics[0].error_code
    };
    assert_eq!(code_of(&shared, &request).await, code::UNKNOWN_TOPIC_OR_PARTITION);
    shared.config.auto_create = true;
    let unwilling = request.clone().with_allow_auto_topic_creation(false);
    assert_eq!(code_of(&shared, &unwilling).await, code::UNKNOWN_TOPIC_OR_PARTITION);
    assert_eq!(code_of(&shared, &request).await, code::NONE);
    // Version 0 says "all topics" with an empty list.
    let all = MetadataRequest::default().with_topics(Some(Vec::new()));
    assert_eq!(exchange(&shared, 0, &all).await.topics.len(), 2);
    assert_eq!(exchange(&shared, 1, &all).await.topics.len(), 0);
}
