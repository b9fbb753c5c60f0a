//! Requests about topics: describe, create, delete.

use std::collections::BTreeSet;
use std::sync::Arc;

use kafka_protocol::messages::create_topics_request::CreatableTopic;
use kafka_protocol::messages::create_topics_response::CreatableTopicResult;
use kafka_protocol::messages::delete_topics_response::DeletableTopicResult;
use kafka_protocol::messages::metadata_response::{
    MetadataResponseBroker, MetadataResponsePartition, MetadataResponseTopic,
};
use kafka_protocol::messages::{
    CreateTopicsRequest, CreateTopicsResponse, DeleteTopicsRequest, DeleteTopicsResponse, MetadataRequest,
    MetadataResponse, TopicName,
};
use kafka_protocol::protocol::StrBytes;

use super::{Context, Handle, NODE, code_of, text};
use crate::dev_broker::lock;
use crate::dev_broker::topics::{Topic, TopicError};

/// The cluster that it is.
const CLUSTER: &str = "antiphon-dev-broker";

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
