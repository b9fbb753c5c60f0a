//! What must hold for calls with an idempotency key: one execution for as many
//! calls as their callers care to make.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use antiphon::exchange::{Answer, Failure, Outcome, Repeat, Why};

use crate::faults::Plan;
use crate::history::{Attempt, CallEntry, End, History};
use crate::invariants::Checked;

/// A key is remembered for so long after the deadline of the first call with
/// it, however short the window.
const BEYOND_THE_DEADLINE: Duration = Duration::from_secs(1);

/// What is wrong, if anything.
pub(crate) fn check(history: &History, plan: &Plan) -> Vec<String> {
    let mut groups: BTreeMap<_, Vec<usize>> = BTreeMap::new();
    for (number, call) in history.calls.iter().enumerate() {
        if let Some(key) = &call.idempotency_key {
            groups.entry((call.route.path.to_string(), key.clone())).or_default().push(number);
        }
    }
    let mut wrong = Vec::new();
    for (name, calls) in groups {
        let group = Group { history, calls, plan };
        let checks = [
            group.is_sent_once(),
            group.has_one_reply_for_all(),
            group.is_refused_for_cause(),
            group.is_forgotten(),
            group.is_told(),
        ];
        wrong.extend(checks.into_iter().filter_map(Result::err).map(|what| format!("key {name:?}: {what}")));
    }
    wrong.extend(travels(history).err());
    wrong
}

/// Until when the key of a call is remembered that is the first with it.
pub(crate) fn remembered_until(call: &CallEntry, plan: &Plan) -> Duration {
    (call.issued + plan.idempotency.window).max(call.deadline + BEYOND_THE_DEADLINE)
}

/// All calls of one method with one key.
struct Group<'a> {
    history: &'a History,
    calls: Vec<usize>,
    plan: &'a Plan,
}

impl Group<'_> {
    fn entries(&self) -> impl Iterator<Item = &CallEntry> {
        self.calls.iter().map(|number| &self.history.calls[*number])
    }

    /// Within its window a key stands for one request in the log, whatever
    /// messages come with it; one more for each time that a worker asks for
    /// another attempt.
    fn is_sent_once(&self) -> Checked {
        let Some(first) = self.entries().map(|call| call.issued).min() else { return Ok(()) };
        let origins: BTreeSet<usize> = self.entries().map(|call| call.origin).collect();
        let appends = self.history.appends.iter().filter(|append| origins.contains(&append.call));
        let ids: BTreeSet<[u8; 16]> = appends.map(|append| append.id.to_bytes()).collect();
        let Some(last) = ids.iter().filter_map(|id| self.begun(id)).max() else { return Ok(()) };
        let windows = last.saturating_sub(first).as_nanos() / self.plan.idempotency.window.as_nanos();
        let asked =
            self.history.replies.iter().filter(|reply| origins.contains(&reply.call) && reply.asks_again);
        let asked: BTreeSet<[u8; 16]> = asked.map(|reply| reply.id.to_bytes()).collect();
        let allowed = 1 + windows as usize + asked.len();
        if ids.len() <= allowed {
            return Ok(());
        }
        Err(format!("stands for {} requests in the log, where {allowed} may be", ids.len()))
    }

    /// Whoever joins a call gets what it has got.
    fn has_one_reply_for_all(&self) -> Checked {
        let mut replies: BTreeMap<[u8; 16], &Answer> = BTreeMap::new();
        for call in self.entries() {
            let Some((_, End::Answered(answer))) = &call.ended else { continue };
            let Some(id) = answer.trace.id else { return Err("an answer names no call".to_owned()) };
            let first = replies.entry(id.to_bytes()).or_insert(answer);
            if first.reply != answer.reply {
                return Err(format!("has two replies under {id}: {:?}, {:?}", first.reply, answer.reply));
            }
        }
        Ok(())
    }

    /// A call is refused only when its key stands for another message.
    fn is_refused_for_cause(&self) -> Checked {
        for call in self.entries() {
            let Some((at, End::Failed(Failure { why, .. }))) = &call.ended else { continue };
            let known_at = |other: &CallEntry| {
                other.origin != call.origin
                    && other.issued <= *at
                    && *at <= remembered_until(other, self.plan)
            };
            if matches!(**why, Why::KeyReused) && !self.entries().any(known_at) {
                return Err(format!("was refused at {at:?}, and stands for no other message"));
            }
        }
        Ok(())
    }

    /// After its window a key stands for nothing: who comes then is the first.
    fn is_forgotten(&self) -> Checked {
        for call in self.entries() {
            let Some(trace) = call.trace().filter(|trace| trace.repeat.is_some()) else { continue };
            let Some(id) = trace.id else { continue };
            let sent = self.begun(&id.to_bytes()).unwrap_or(call.issued);
            let stands = |first: &CallEntry| {
                first.origin == call.origin
                    && first.issued <= sent
                    && call.issued <= remembered_until(first, self.plan)
            };
            if !self.entries().any(stands) {
                return Err(format!("was known at {:?}, of a call sent at {sent:?}", call.issued));
            }
        }
        Ok(())
    }

    /// When a request was first sent under this id.
    fn begun(&self, id: &[u8; 16]) -> Option<Duration> {
        let mut attempts = self.history.attempts.iter();
        let has = |attempt: &&Attempt| attempt.ids.iter().any(|sent| sent.to_bytes() == *id);
        attempts.find(has).map(|attempt| attempt.from)
    }

    /// A verdict that leaves the caller free to try again is not kept.
    fn is_told(&self) -> Checked {
        let kept = |call: &&CallEntry| {
            call.trace().is_some_and(|t| t.repeat == Some(Repeat::Kept) && t.outcome == Outcome::NotSent)
        };
        match self.entries().find(kept) {
            Some(call) => Err(format!("has kept that nothing was sent: {:?}", call.ended)),
            None => Ok(()),
        }
    }
}

/// The key is in the record, for workers that tell repeats themselves.
fn travels(history: &History) -> Checked {
    let wrong = history.appends.iter().find(|append| {
        let key = history.calls[append.call].idempotency_key.as_deref();
        append.idempotency_key.as_deref() != key.map(str::as_bytes)
    });
    match wrong {
        Some(append) => {
            Err(format!("the record of call {} has the key {:?}", append.call, append.idempotency_key))
        }
        None => Ok(()),
    }
}
