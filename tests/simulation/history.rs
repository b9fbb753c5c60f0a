//! What has happened in one run, told by those who did it: callers write down
//! how their calls ended, the cluster what has been appended.

use std::collections::BTreeMap;
use std::ops::RangeInclusive;
use std::sync::Arc;
use std::time::Duration;

use antiphon::correlation::CorrelationId;
use antiphon::exchange::{Answer, Failure};
use antiphon::route::Route;
use antiphon::transport::Record;
use bytes::Bytes;

/// All that happened; times count from the start of the run.
#[derive(Debug, Default)]
pub(crate) struct History {
    pub(crate) calls: Vec<CallEntry>,
    /// Requests in the log, in the order of their appending over all partitions.
    pub(crate) appends: Vec<Append>,
    /// Replies in the log, proper or not.
    pub(crate) replies: Vec<ReplyEntry>,
    pub(crate) attempts: Vec<Attempt>,
    pub(crate) violations: Vec<String>,
    /// Connections for requests that the broker refused for good.
    pub(crate) refused_connects: Vec<RefusedConnect>,
    /// What the reply readers made of what they read.
    pub(crate) reply_kinds: BTreeMap<&'static str, u64>,
    /// Calls that have entered a lane.
    pub(crate) entered: u64,
    /// Records in the log that are no requests: dead letters and the like.
    pub(crate) beside: Vec<Beside>,
    /// What the lanes have given up, by their own account.
    pub(crate) losses: Vec<Loss>,
    /// What circuits get to see, in the order in which they see it.
    pub(crate) passages: Vec<Passage>,
    /// When all was over.
    pub(crate) end: Duration,
}

/// One call, from its caller's side.
#[derive(Debug)]
pub(crate) struct CallEntry {
    pub(crate) route: Arc<Route>,
    pub(crate) shard: usize,
    pub(crate) key: String,
    pub(crate) message: Bytes,
    /// The call whose message it carries: itself, unless it repeats another.
    pub(crate) origin: usize,
    pub(crate) idempotency_key: Option<String>,
    pub(crate) issued: Duration,
    pub(crate) deadline: Duration,
    /// Its place among all calls that entered a lane.
    pub(crate) entered: Option<u64>,
    pub(crate) ended: Option<(Duration, End)>,
    /// Issued after all trouble: it must succeed.
    pub(crate) probe: bool,
}

/// How a call ended.
#[derive(Debug)]
pub(crate) enum End {
    Answered(Answer),
    Failed(Failure),
    /// Its caller dropped it.
    Cancelled,
}

/// One request in the log.
#[derive(Debug)]
pub(crate) struct Append {
    pub(crate) call: usize,
    pub(crate) id: CorrelationId,
    pub(crate) topic: String,
    pub(crate) partition: i32,
    pub(crate) offset: i64,
    /// The writer had reported the outcome as unknown before.
    pub(crate) late: bool,
    pub(crate) idempotency_key: Option<Bytes>,
}

/// What a record is that is no request.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Kind {
    DeadLetter,
    LateReply,
    Cancel,
}

/// One record in the log that is left of a call.
#[derive(Debug)]
pub(crate) struct Beside {
    pub(crate) kind: Kind,
    pub(crate) id: CorrelationId,
    pub(crate) topic: String,
    pub(crate) partition: i32,
    pub(crate) record: Record,
    /// So many requests were in the log before it.
    pub(crate) behind: usize,
    /// As an append's.
    pub(crate) late: bool,
}

/// One record that was given up, as the log tells it.
#[derive(Debug, Clone)]
pub(crate) struct Loss {
    pub(crate) kind: Kind,
    pub(crate) id: String,
    pub(crate) topic: String,
    pub(crate) at: Duration,
}

/// A call at its topic's circuit.
#[derive(Debug)]
pub(crate) struct Passage {
    pub(crate) call: usize,
    pub(crate) at: Duration,
    pub(crate) ends: bool,
}

/// One produce.
#[derive(Debug)]
pub(crate) struct Attempt {
    /// Calls whose requests it has.
    pub(crate) calls: Vec<usize>,
    /// The same by their ids.
    pub(crate) ids: Vec<CorrelationId>,
    /// What else it has.
    pub(crate) beside: Vec<(Kind, CorrelationId)>,
    pub(crate) from: Duration,
    pub(crate) to: Option<Duration>,
    /// Whether the writer could tell what came of it.
    pub(crate) certain: bool,
    /// The broker said that it throttles, and not what has become of the batch.
    pub(crate) throttled: bool,
}

/// One attempt to connect that the broker refused for good.
#[derive(Debug)]
pub(crate) struct RefusedConnect {
    pub(crate) topic: String,
    pub(crate) time: RangeInclusive<Duration>,
}

/// One record on the reply topic that ends a call, if it is read.
#[derive(Debug)]
pub(crate) struct ReplyEntry {
    pub(crate) call: usize,
    pub(crate) id: CorrelationId,
    /// The worker says that another attempt may help.
    pub(crate) asks_again: bool,
    pub(crate) at: Duration,
    pub(crate) incarnation: u64,
    pub(crate) partition: i32,
    pub(crate) offset: i64,
    /// When it was lost: deleted with its topic, or by retention.
    pub(crate) lost: Option<Duration>,
}

impl History {
    pub(crate) fn violated(&mut self, what: impl Into<String>) {
        self.violations.push(what.into());
    }

    /// Whether the call still waits.
    pub(crate) fn is_live(&self, call: usize) -> bool {
        self.calls.get(call).is_some_and(|call| call.ended.is_none())
    }
}

impl CallEntry {
    /// One with an idempotency key waits a little longer, for the verdict on
    /// the call that it has joined.
    pub(crate) fn grace(&self) -> Duration {
        const VERDICT_GRACE: Duration = Duration::from_millis(20);
        if self.idempotency_key.is_some() { VERDICT_GRACE } else { Duration::ZERO }
    }

    /// What the caller was told, where it was told something.
    pub(crate) const fn trace(&self) -> Option<&antiphon::exchange::Trace> {
        match &self.ended {
            Some((_, End::Answered(answer))) => Some(&answer.trace),
            Some((_, End::Failed(failure))) => Some(&failure.trace),
            Some((_, End::Cancelled)) | None => None,
        }
    }
}
