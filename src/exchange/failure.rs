//! How a call can fail, and what is known of its request when it does.

use std::sync::Arc;
use std::time::Duration;

use super::trouble::Reason;
use crate::correlation::CorrelationId;
use crate::message::DecodeError;
use crate::message::format::EncodeError;
use crate::pending::{Coordinates, Progress};
use crate::route::WireError;

/// Whether the request is in Kafka's log.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// Certainly not: the call may be repeated without a thought.
    NotSent,
    /// Certainly: a worker has it or will have it.
    Sent,
    /// It may be.
    Unknown,
}

impl Outcome {
    /// As it is written in the `antiphon-outcome` trailer.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::NotSent => "not-sent",
            Self::Sent => "sent",
            Self::Unknown => "unknown",
        }
    }
}

impl From<&Progress> for Outcome {
    fn from(progress: &Progress) -> Self {
        match progress {
            Progress::Queued | Progress::NotSent(_) => Self::NotSent,
            Progress::Sending | Progress::Unknown(_) => Self::Unknown,
            Progress::Appended(_) => Self::Sent,
        }
    }
}

/// What can be told of a call's request, however the call ended.
#[derive(Debug, Clone)]
pub struct Trace {
    /// Names the call; `None` when it failed before it had an id.
    pub id: Option<CorrelationId>,
    /// Whether the request is in the log.
    pub outcome: Outcome,
    /// Request topic.
    pub topic: Arc<str>,
    /// Where the request is, as far as it is known.
    pub at: Option<Coordinates>,
    /// For a call with an idempotency key that was sent before: how it got its
    /// answer.
    pub repeat: Option<Repeat>,
    /// Of a call that has several replies: how many there were. Boxed, since
    /// all would carry it.
    pub replies: Option<Box<Tally>>,
}

/// The replies of one call, counted.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Tally {
    /// How many came, errors among them.
    pub came: u32,
    /// How many are all, where that is known.
    pub expected: Option<u32>,
    /// How many were errors that the route leaves out.
    pub skipped: u32,
    /// The deadline came before the end, and what had come is the answer.
    pub partial: bool,
}

/// How a call with a known idempotency key got its answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Repeat {
    /// It waited with the call that was in flight.
    Joined,
    /// It got the reply that was kept.
    Kept,
}

impl Repeat {
    /// As it is written in the `antiphon-idempotency` trailer.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Joined => "joined",
            Self::Kept => "kept",
        }
    }
}

impl Trace {
    /// Of a call that has sent nothing.
    pub fn nothing_sent(topic: Arc<str>) -> Self {
        Self { id: None, outcome: Outcome::NotSent, topic, at: None, repeat: None, replies: None }
    }
}

/// A call that ends without a worker's answer.
#[derive(Debug, Clone, thiserror::Error)]
#[error("{why}")]
pub struct Failure {
    /// Why.
    #[source]
    pub why: Box<Why>,
    /// What is known of its request.
    pub trace: Trace,
}

impl Failure {
    /// Puts both together.
    pub fn new(why: Why, trace: Trace) -> Self {
        Self { why: Box::new(why), trace }
    }
}

/// Why a call ends without a worker's answer.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum Why {
    /// The reply reader is not positioned, or Kafka does not answer.
    #[error("this instance is not ready: {}", not_ready(*.0))]
    NotReady(Option<Reason>),
    /// The instance is about to stop.
    #[error("this instance is draining; call another one")]
    Draining,
    /// A bound on what is held was reached.
    #[error("{what} has reached its limit of {limit}; try again in {}ms", retry_after.as_millis())]
    Overloaded {
        /// Which bound.
        what: &'static str,
        /// Its value.
        limit: u64,
        /// When another attempt makes sense.
        retry_after: Duration,
    },
    /// The topic's workers have not answered for a while.
    #[error(
        "the last calls on {topic} all timed out; trying again in {}ms (circuit.open_for)", retry_after.as_millis()
    )]
    CircuitOpen {
        /// Request topic.
        topic: Arc<str>,
        /// When another attempt makes sense.
        retry_after: Duration,
    },
    /// The idempotency key stands for another message.
    #[error("this idempotency-key was sent with another message before; a new request needs a new key")]
    KeyReused,
    /// The message is not what its type says, or its key can't be had.
    #[error("request message: {0}")]
    BadMessage(#[source] WireError),
    /// The message can't be written in the route's format.
    #[error("request message: {0}")]
    Unwritable(#[source] EncodeError),
    /// The partition that the route or the message names does not exist.
    #[error("partition {partition} of {topic} does not exist; the topic has {partitions}")]
    NoSuchPartition {
        /// What was asked for.
        partition: i64,
        /// The topic.
        topic: Arc<str>,
        /// How many partitions it has.
        partitions: i32,
    },
    /// The request topic does not exist.
    #[error("request topic {0} does not exist on the cluster")]
    NoSuchTopic(Arc<str>),
    /// Kafka could not be reached within the deadline.
    #[error("the request could not be sent within the deadline: {0}")]
    NotSent(Arc<str>),
    /// No reply within the deadline.
    #[error("no reply within the deadline")]
    TimedOut,
    /// Replies, but not the last of them within the deadline.
    #[error("the deadline passed before the last reply; {came} came")]
    Unfinished {
        /// How many came.
        came: u32,
    },
    /// Replies that the caller did not read within the deadline.
    #[error("the deadline passed before the caller had read all replies; {came} came")]
    NotRead {
        /// How many of them were on their way to it.
        came: u32,
    },
    /// More replies, or larger ones, than one call may have.
    #[error("the replies to this call are more than {what} allows, which is {limit}")]
    TooManyReplies {
        /// Which bound.
        what: &'static str,
        /// Its value.
        limit: u64,
    },
    /// A reply was lost between the worker and here.
    #[error("reply {number} to this call was lost on its way")]
    ReplyLost {
        /// Its place among them.
        number: u64,
    },
    /// An idempotency key for what can't be kept.
    #[error("this method streams its answer, which can't be kept for an idempotency-key; call it without")]
    KeyOfStream,
    /// The deadline had passed when the call arrived.
    #[error("the deadline had passed before anything was sent")]
    TooLate,
    /// The broker takes no record of this size.
    #[error("the request is larger than the broker takes (max.message.bytes)")]
    TooLarge,
    /// The broker refused the record.
    #[error("Kafka refused the request: {0}")]
    Refused(Arc<str>),
    /// A reply came that can't be understood.
    #[error("the worker's reply (offset {offset} of {topic}) cannot be understood: {source}")]
    BadReply {
        /// Reply topic.
        topic: Arc<str>,
        /// Offset of the reply.
        offset: i64,
        /// What is wrong with it.
        source: DecodeError,
    },
}

fn not_ready(reason: Option<Reason>) -> String {
    reason.map_or_else(
        || "its replies from Kafka cannot be read at the moment".to_owned(),
        |reason| reason.to_string(),
    )
}
