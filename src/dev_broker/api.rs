//! What each request means: every API decodes into a [`Handle`], meets the
//! faults that are in force, takes effect on topics and groups, and answers.
//! Versions matter here only where a field would not be understood.

mod groups;
mod records;
mod topics;

use std::net::SocketAddr;
use std::sync::Arc;

use bytes::{Bytes, BytesMut};
use kafka_protocol::messages::api_versions_response::ApiVersion;
use kafka_protocol::messages::*;
use kafka_protocol::protocol::{Decodable, StrBytes};

use super::faults::Effects;
use super::topics::Topic;
use super::wire::{Answer, Call};
use super::{Api, Shared, code};

/// The only broker there is.
const NODE: BrokerId = BrokerId(1);
/// The first Produce version advertised, though not served: some versions of
/// librdkafka compress only for brokers that claim it, so Apache Kafka 4 does
/// this too (KAFKA-18659).
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
        Api::DescribeGroups => run::<DescribeGroupsRequest>(shared, local, call).await,
        Api::ListGroups => run::<ListGroupsRequest>(shared, local, call).await,
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
