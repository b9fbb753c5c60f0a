//! How often what has happened: a simulation that never meets a late batch
//! proves nothing about late batches.

use std::collections::BTreeMap;

use antiphon::exchange::{Failure, Outcome, Repeat, Why};

use crate::callers::repeatable;
use crate::circuits;
use crate::history::{CallEntry, End, History, Kind};

/// Counts by name.
pub(crate) type Census = BTreeMap<&'static str, u64>;

/// What a reader can make of a record on the reply topic.
pub(crate) const REPLY_KINDS: [&str; 8] =
    ["delivered", "duplicate", "late", "foreign", "request", "heartbeat", "uncorrelated", "undecodable"];

/// What must have been met in an ordinary test run.
pub(crate) const EXPECTED: [&str; 40] = [
    "acknowledged without an offset",
    "answered",
    "answered by an error",
    "appended late",
    "appended twice",
    "bad reply",
    "cancel record",
    "cancelled",
    "circuit open",
    "circuit tried",
    "dead letter",
    "dead letter without its value",
    "dead letter, late",
    "delivered",
    "duplicate",
    "foreign",
    "heartbeat",
    "key reused",
    "late",
    "late reply",
    "lost: cancel record",
    "lost: dead letter",
    "lost: late reply",
    "no such partition",
    "no such topic",
    "not ready",
    "not sent in time",
    "overloaded",
    "refused",
    "repeat joined",
    "repeat kept",
    "request",
    "several in one batch",
    "timed out, outcome sent",
    "timed out, outcome unknown",
    "too large",
    "too late",
    "uncertain, then certainly not sent",
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
    for record in &history.beside {
        count(match record.kind {
            Kind::DeadLetter if record.late => "dead letter, late",
            Kind::DeadLetter if record.record.value.is_none() => "dead letter without its value",
            Kind::DeadLetter => "dead letter",
            Kind::LateReply => "late reply",
            Kind::Cancel => "cancel record",
        });
    }
    for loss in &history.losses {
        count(match loss.kind {
            Kind::DeadLetter => "lost: dead letter",
            Kind::LateReply => "lost: late reply",
            Kind::Cancel => "lost: cancel record",
        });
    }
    for repeat in history.calls.iter().filter_map(|call| call.trace()?.repeat) {
        count(match repeat {
            Repeat::Joined => "repeat joined",
            Repeat::Kept => "repeat kept",
        });
    }
    for _ in 0..doubts_that_stay(history) {
        count("uncertain, then certainly not sent");
    }
    for _ in 0..circuits::tries(history) {
        count("circuit tried");
    }
    census
}

/// Calls in the log whose last attempt before the end came to nothing for
/// certain: who looks at that one alone tells a lie.
fn doubts_that_stay(history: &History) -> usize {
    let stays = |(number, call): &(usize, &CallEntry)| {
        let told_unknown = call.trace().is_some_and(|trace| trace.outcome == Outcome::Unknown);
        let Some((ended, _)) = call.ended.as_ref().filter(|_| told_unknown && repeatable(&call.route)) else {
            return false;
        };
        let over = history.attempts.iter().filter(|attempt| attempt.to.is_some_and(|to| to < *ended));
        let mut mine = over.filter(|attempt| attempt.calls.contains(number));
        mine.next_back().is_some_and(|last| last.certain) && history.appends.iter().any(|a| a.call == *number)
    };
    history.calls.iter().enumerate().filter(stays).count()
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
            (Why::NotReady(_), _) => "not ready",
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
            (Why::Unfinished { .. }, _) => "timed out among its replies",
            (Why::ReplyLost { .. }, _) => "a reply among several lost",
            (Why::NotRead { .. } | Why::TooManyReplies { .. } | Why::KeyOfStream, _) => {
                "no such call is made"
            }
        },
    })
}
