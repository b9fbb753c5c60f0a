//! The story of one call, from Kafka itself: what became of its request.
//!
//! Nothing but the log is asked, so that it works when the gateway that served
//! the call is gone, and for every caller and worker in the same way.
//!
//! ```text
//! name: correlation id, idempotency key or trace id ── or the place of the record
//!   │
//!   ▼ search: dead-letter topics, then request topics from a time on
//! request ──► what names the same call: repeats, cancel record, replays,
//!   │         replies on its reply topic, dead letter and late reply
//!   ▼
//! facts ──► verdict: one sentence, by a pure function
//! ```

mod name;
mod scope;
mod search;
pub mod show;
mod story;
mod verdict;

use std::sync::Arc;

use tokio::time::Instant;

use crate::message::dialect::Custom;
use crate::transport::{Cluster, ClusterError, FetchError, Groups};

pub use name::Name;
pub use scope::{Scope, scope};
pub use search::{Limits, Searched};
pub use story::{Asked, ReplyLog, Sighting, Story};
pub use verdict::{Answered, Appended, Cause, DeadLetter, Facts, Hands, Replays, Verdict, judge, span};

/// How many calls one trace id or idempotency key may stand for.
pub const STORIES_MAX: usize = 20;
/// How far the clocks of gateways, workers and brokers may be apart: what
/// belongs to a call is looked for from so long before its request.
const CLOCKS_APART_MS: i64 = 60_000;

/// What is asked.
#[derive(Debug, Clone)]
pub struct Question {
    /// The call, by one of its names; `None` when its record is.
    pub name: Option<Name>,
    /// Where its request is, where that is known.
    pub record: Option<(String, i32, i64)>,
    /// From this time on; milliseconds since 1970.
    pub since_ms: i64,
    /// Requests before this time.
    pub until_ms: Option<i64>,
    /// Topics with requests.
    pub request_topics: Vec<String>,
    /// Topics with dead letters.
    pub dead_letter_topics: Vec<String>,
    /// What the names of reply topics begin with.
    pub reply_prefix: String,
    /// Headers that the configuration names.
    pub custom: Option<Arc<Custom>>,
    /// Bounds of the search.
    pub limits: Limits,
    /// When to stop.
    pub deadline: Instant,
    /// What time it is; milliseconds since 1970.
    pub now_ms: i64,
}

/// What was found.
#[derive(Debug)]
pub struct Found {
    /// The calls, the oldest first.
    pub stories: Vec<Story>,
    /// Calls that were left out because there are so many.
    pub more: usize,
    /// What was read for it.
    pub searched: Searched,
}

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The cluster did not answer.
    #[error(transparent)]
    Cluster(#[from] ClusterError),
    /// A partition can't be read.
    #[error("{topic}/{partition}: {source}")]
    Fetch {
        /// The topic.
        topic: String,
        /// The partition.
        partition: i32,
        /// Why.
        source: FetchError,
    },
    /// A topic that was named does not exist.
    #[error("there is no topic {0} on the cluster")]
    NoTopic(String),
}

/// Looks for the call and for all that belongs to it.
pub async fn investigate(
    cluster: &dyn Cluster,
    groups: &dyn Groups,
    question: &Question,
    watch: &mut (dyn FnMut(&Searched) + Send),
) -> Result<Found, Error> {
    let mut search = search::Search::begin(cluster, question, watch).await?;
    let mut stories = search.find_calls().await?;
    stories.sort_by_key(Story::began_ms);
    let more = stories.len().saturating_sub(STORIES_MAX);
    stories.truncate(STORIES_MAX);
    search.complete(&mut stories).await?;
    let searched = search.end();
    for story in &mut stories {
        story.ask_groups(cluster, groups).await;
    }
    Ok(Found { stories, more, searched })
}
