//! Requests of consumer groups: find the coordinator, join, sync, stay alive,
//! leave, commit.

use kafka_protocol::messages::leave_group_request::MemberIdentity;
use kafka_protocol::messages::leave_group_response::MemberResponse;
use kafka_protocol::messages::list_groups_response::ListedGroup;
use kafka_protocol::messages::offset_commit_request::{
    OffsetCommitRequestPartition, OffsetCommitRequestTopic,
};
use kafka_protocol::messages::offset_commit_response::{
    OffsetCommitResponsePartition, OffsetCommitResponseTopic,
};
use kafka_protocol::messages::offset_fetch_response::{
    OffsetFetchResponsePartition, OffsetFetchResponseTopic,
};
use kafka_protocol::messages::{
    BrokerId, DescribeGroupsRequest, DescribeGroupsResponse, FindCoordinatorRequest, FindCoordinatorResponse,
    GroupId, HeartbeatRequest, HeartbeatResponse, JoinGroupRequest, JoinGroupResponse, LeaveGroupRequest,
    LeaveGroupResponse, ListGroupsRequest, ListGroupsResponse, OffsetCommitRequest, OffsetCommitResponse,
    OffsetFetchRequest, OffsetFetchResponse, SyncGroupRequest, SyncGroupResponse, TopicName,
};
use kafka_protocol::protocol::StrBytes;
use tokio::time::Instant;

use super::{Context, Handle, NODE, code_of, text};
use crate::dev_broker::groups::{Claim, Committed, Step, refuse_join};
use crate::dev_broker::{code, lock};

/// FindCoordinator: the key is a consumer group's id.
const KEY_IS_GROUP: i8 = 0;

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
        let answer = |sent: OffsetCommitRequestTopic| {
            let topic = context.topic(&sent.name);
            let commit = |partition: OffsetCommitRequestPartition| {
                let index = partition.partition_index;
                let committed = Committed {
                    offset: partition.committed_offset,
                    leader_epoch: partition.committed_leader_epoch,
                    metadata: text(&partition.committed_metadata.unwrap_or_default()),
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

impl Handle for ListGroupsRequest {
    type Answer = ListGroupsResponse;

    async fn handle(self, context: &Context<'_>) -> ListGroupsResponse {
        let groups = lock(&context.shared.groups).list();
        let listed = |(group, kind): (String, StrBytes)| {
            ListedGroup::default().with_group_id(GroupId(text(&group))).with_protocol_type(kind)
        };
        let groups = match context.error() {
            code::NONE => groups.into_iter().map(listed).collect(),
            _ => Vec::new(),
        };
        ListGroupsResponse::default().with_groups(groups).with_error_code(context.error())
    }
}

impl Handle for DescribeGroupsRequest {
    type Answer = DescribeGroupsResponse;

    async fn handle(self, context: &Context<'_>) -> DescribeGroupsResponse {
        let mut groups = lock(&context.shared.groups);
        let now = Instant::now();
        let describe = |id: GroupId| {
            let described = groups.describe(now, &id, context.version).with_group_id(id);
            match context.error() {
                code::NONE => described,
                error => described.with_error_code(error),
            }
        };
        DescribeGroupsResponse::default().with_groups(self.groups.into_iter().map(describe).collect())
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
