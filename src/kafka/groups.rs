//! Which consumer groups read a partition, and how far they have come.
//!
//! rskafka knows nothing of groups, so this asks over connections of its own,
//! in the manner of `raw`: each broker lists the groups that it coordinates,
//! says how far each has committed, and describes those that matter.

use std::io;
use std::time::Duration;

use bytes::{Buf as _, Bytes};
use kafka_protocol::messages::describe_groups_response::DescribedGroup;
use kafka_protocol::messages::offset_fetch_request::OffsetFetchRequestTopic;
use kafka_protocol::messages::{
    ApiKey, DescribeGroupsRequest, DescribeGroupsResponse, GroupId, ListGroupsRequest, ListGroupsResponse,
    MetadataRequest, MetadataResponse, OffsetFetchRequest, OffsetFetchResponse,
};
use tokio::time::timeout;

use super::connect::Connector;
use super::raw::{METADATA_VERSION, REQUEST_TIMEOUT, Stream, ask, open, refused, topic_name};
use crate::transport::GroupProgress;

/// All questions together.
pub(super) const LIMIT: Duration = Duration::from_secs(15);
/// Groups of one broker that are asked about.
const GROUPS_MAX: usize = 500;
/// Brokers that are asked.
const BROKERS_MAX: usize = 100;
/// Versions that Apache Kafka 2.1 and later know.
const LIST_GROUPS_VERSION: i16 = 2;
const DESCRIBE_GROUPS_VERSION: i16 = 1;
const OFFSET_FETCH_VERSION: i16 = 3;
/// What a broker calls a group of which it knows nothing in the old protocol:
/// one of KIP-848, for one.
const NOT_TOLD: &str = "Dead";

/// The groups that read `partition` of `topic`.
pub(super) async fn on_partition(
    connector: &Connector,
    topic: &str,
    partition: i32,
) -> io::Result<Vec<GroupProgress>> {
    let mut found = Vec::new();
    for broker in brokers(connector).await? {
        let of_broker = of_broker(connector, &broker, topic, partition);
        let asked = timeout(REQUEST_TIMEOUT, of_broker).await;
        found.extend(asked.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))?);
    }
    found.sort_by(|a, b| a.group.cmp(&b.group));
    Ok(found)
}

/// Addresses of all brokers, from the first that answers.
async fn brokers(connector: &Connector) -> io::Result<Vec<String>> {
    let mut last = refused("no bootstrap server");
    for server in connector.bootstrap_servers() {
        let asked = async {
            let mut stream = open(connector, server).await?;
            let request = MetadataRequest::default().with_topics(Some(Vec::new()));
            let answer: MetadataResponse =
                ask(&mut *stream, ApiKey::Metadata, METADATA_VERSION, &request).await?;
            let address = |host: &str, port: i32| format!("{host}:{port}");
            Ok(answer.brokers.iter().take(BROKERS_MAX).map(|b| address(&b.host, b.port)).collect())
        };
        match timeout(REQUEST_TIMEOUT, asked).await {
            Ok(Ok(brokers)) => return Ok(brokers),
            Ok(Err(error)) => last = error,
            Err(_) => last = io::ErrorKind::TimedOut.into(),
        }
    }
    Err(last)
}

async fn of_broker(
    connector: &Connector,
    broker: &str,
    topic: &str,
    partition: i32,
) -> io::Result<Vec<GroupProgress>> {
    let mut stream = open(connector, broker).await?;
    let request = ListGroupsRequest::default();
    let listed: ListGroupsResponse =
        ask(&mut *stream, ApiKey::ListGroups, LIST_GROUPS_VERSION, &request).await?;
    no_error("ListGroups", listed.error_code)?;
    let groups: Vec<GroupId> =
        listed.groups.into_iter().take(GROUPS_MAX).map(|group| group.group_id).collect();
    if groups.is_empty() {
        return Ok(Vec::new());
    }
    let request = DescribeGroupsRequest::default().with_groups(groups.clone());
    let described: DescribeGroupsResponse =
        ask(&mut *stream, ApiKey::DescribeGroups, DESCRIBE_GROUPS_VERSION, &request).await?;
    let mut found = Vec::new();
    for group in groups {
        let committed = committed(&mut *stream, &group, topic, partition).await?;
        let description = described.groups.iter().find(|described| described.group_id == group);
        let description = description.filter(|described| described.error_code == 0);
        let holder = description.and_then(|described| holder(described, topic, partition));
        if committed.is_none() && holder.is_none() {
            continue;
        }
        let told = description.filter(|described| described.group_state.as_str() != NOT_TOLD);
        let members = told.map(|described| described.members.len());
        found.push(GroupProgress { group: group.to_string(), committed, members, holder });
    }
    Ok(found)
}

/// The offset that a group has committed, from its coordinator.
async fn committed(
    stream: &mut dyn Stream,
    group: &GroupId,
    topic: &str,
    partition: i32,
) -> io::Result<Option<i64>> {
    let wanted = OffsetFetchRequestTopic::default()
        .with_name(topic_name(topic))
        .with_partition_indexes(vec![partition]);
    let request = OffsetFetchRequest::default().with_group_id(group.clone()).with_topics(Some(vec![wanted]));
    let answer: OffsetFetchResponse =
        ask(stream, ApiKey::OffsetFetch, OFFSET_FETCH_VERSION, &request).await?;
    no_error("OffsetFetch", answer.error_code)?;
    let partition = answer.topics.first().and_then(|topic| topic.partitions.first());
    Ok(partition.filter(|p| p.error_code == 0).map(|p| p.committed_offset).filter(|offset| *offset >= 0))
}

/// Client id of the member that has the partition.
fn holder(group: &DescribedGroup, topic: &str, partition: i32) -> Option<String> {
    let has = |assignment: &Bytes| is_assigned(assignment.clone(), topic, partition).unwrap_or_default();
    let member = group.members.iter().find(|member| has(&member.member_assignment))?;
    Some(member.client_id.to_string())
}

/// Looks into what a consumer has written as its assignment: version, then
/// topics with their partitions. By hand, since a consumer can write anything
/// and `kafka-protocol` makes room for whatever it claims.
fn is_assigned(mut assignment: Bytes, topic: &str, partition: i32) -> Option<bool> {
    assignment.try_get_i16().ok()?;
    for _ in 0..assignment.try_get_i32().ok()? {
        let length = usize::try_from(assignment.try_get_i16().ok()?).ok()?;
        if length > assignment.len() {
            return None;
        }
        let name = assignment.split_to(length);
        for _ in 0..assignment.try_get_i32().ok()? {
            if assignment.try_get_i32().ok()? == partition && name == topic.as_bytes() {
                return Some(true);
            }
        }
    }
    Some(false)
}

fn no_error(api: &str, code: i16) -> io::Result<()> {
    match code {
        0 => Ok(()),
        29 | 30 => Err(refused(&format!("{api}: not authorised (error code {code})"))),
        code => Err(refused(&format!("{api}: error code {code}"))),
    }
}

#[cfg(test)]
mod tests {
    use bytes::{BufMut as _, BytesMut};

    use super::*;

    #[test]
    fn an_assignment_of_any_content_is_read_or_left() {
        let mut bytes = BytesMut::new();
        bytes.put_i16(1);
        bytes.put_i32(2);
        for (topic, partitions) in [("other", [2, 3]), ("pay", [0, 1])] {
            bytes.put_i16(i16::try_from(topic.len()).unwrap());
            bytes.put_slice(topic.as_bytes());
            bytes.put_i32(2);
            partitions.iter().for_each(|partition| bytes.put_i32(*partition));
        }
        let bytes = bytes.freeze();
        for (partition, expected) in [(0, true), (1, true), (2, false)] {
            assert_eq!(is_assigned(bytes.clone(), "pay", partition), Some(expected), "{partition}");
        }
        for end in 0..bytes.len() {
            assert_ne!(is_assigned(bytes.slice(..end), "pay", 9), Some(true));
        }
        assert_eq!(is_assigned(Bytes::from_static(&[0, 1, 0x7f, 0xff, 0xff, 0xff]), "pay", 0), None);
    }
}
