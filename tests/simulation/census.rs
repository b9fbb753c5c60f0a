//! How often what has happened: a simulation that never meets a late batch
//! proves nothing about late batches.

use std::collections::BTreeMap;

use antiphon::exchange::{Failure, Outcome, Why};

use crate::callers::repeatable;
use crate::history::{CallEntry, End, History};

/// Counts by name.
pub(crate) type Census = BTreeMap<&'static str, u64>;

/// What a reader can make of a record on the reply topic.
pub(crate) const REPLY_KINDS: [&str; 8] =
    ["delivered", "duplicate", "late", "foreign", "request", "heartbeat", "uncorrelated", "undecodable"];

/// What must have been met in an ordinary test run.
pub(crate) const EXPECTED: [&str; 26] = [
    "acknowledged without an offset",
    "answered",
    "answered by an error",
    "appended late",
    "appended twice",
    "bad reply",
    "cancelled",
    "delivered",
    "duplicate",
    "foreign",
    "heartbeat",
    "late",
    "no such partition",
    "no such topic",
    "not ready",
    "not sent in time",
    "overloaded",
    "refused",
    "request",
    "several in one batch",
    "timed out, outcome sent",
    "timed out, outcome unknown",
    "too large",
    "too late",
    "uncorrelated",
    "undecodable",
];

/// Counts what has happened in one run.
pub(crate) fn of(history: &History) -> Census {
    let mut census: Census = history.reply_kinds.clone();
    let mut count = |what| *census.entry(what).or_default() += 1;
    history.calls.iter().filter_map(end).for_each(&mut count);
    let mut appends: BTreeMap<usize, u32> = BTreeMap::new();
    for append in &history.appends {
        let times = appends.entry(append.call).or_default();
        *times += 1;
        if append.late {
            count("appended late");
        }
        if *times == 2 && repeatable(&history.calls[append.call].route) {
            count("appended twice");
        }
    }
    let batches = history.attempts.iter().filter(|attempt| attempt.calls.len() > 1);
    batches.for_each(|_| count("several in one batch"));
    census
}

fn end(call: &CallEntry) -> Option<&'static str> {
    let (_, end) = call.ended.as_ref()?;
    Some(match end {
        End::Cancelled => "cancelled",
        End::Answered(answer) if answer.reply.result.is_err() => "answered by an error",
        End::Answered(answer) if answer.trace.at.is_some_and(|at| at.offset.is_none()) => {
            "acknowledged without an offset"
        }
        End::Answered(_) => "answered",
        End::Failed(Failure { why, trace }) => match (&**why, trace.outcome) {
            (Why::NotReady, _) => "not ready",
            (Why::Draining, _) => "draining",
            (Why::Overloaded { .. }, _) => "overloaded",
            (Why::BadMessage(_) | Why::Unwritable(_), _) => "bad message",
            (Why::NoSuchPartition { .. }, _) => "no such partition",
            (Why::NoSuchTopic(_), _) => "no such topic",
            (Why::NotSent(_), _) => "not sent in time",
            (Why::TimedOut, Outcome::Sent) => "timed out, outcome sent",
            (Why::TimedOut, _) => "timed out, outcome unknown",
            (Why::TooLate, _) => "too late",
            (Why::TooLarge, _) => "too large",
            (Why::Refused(_), _) => "refused",
            (Why::BadReply { .. }, _) => "bad reply",
            (Why::CircuitOpen { .. }, _) => "circuit open",
            (Why::KeyReused, _) => "key reused",
        },
    })
}
