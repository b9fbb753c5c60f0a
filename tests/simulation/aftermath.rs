//! What must be left of calls: dead letters, late replies beside them, cancel
//! records. Each once, for those that ask for it, and for nobody else.

use std::collections::{BTreeMap, BTreeSet};

use antiphon::correlation::CorrelationId;
use antiphon::exchange::{Failure, Outcome, Why};
use antiphon::message::{GRPC_METHOD, OUTCOME, VALUE_LEFT_OUT};
use antiphon::terms::DeadLetterOn;

use crate::callers::AS_GOOD_AS_TIMED_OUT;
use crate::cluster::{LETTER_TOPICS, REPLIES, header};
use crate::faults::Plan;
use crate::history::{Beside, CallEntry, End, History, Kind};
use crate::invariants::{Checked, READING};
use crate::workers::WORKED_ON;

/// Whether a record has to be there.
enum Due<T> {
    Must(T),
    /// Only the gateway knows.
    May,
    Never,
}

/// What is wrong, if anything.
pub(crate) fn check(history: &History, plan: &Plan) -> Vec<String> {
    let books = Books::open(history);
    let mut wrong = Vec::new();
    for (id, numbers) in &books.calls {
        if numbers.is_empty() {
            let said = |what| format!("a call that nobody has heard of any more: {what}");
            let kinds = [Kind::DeadLetter, Kind::LateReply];
            let checks = kinds.map(|kind| books.is_there_at_most_once((kind, *id)).map(drop));
            let checks = checks.into_iter().chain([books.is_not_there((Kind::Cancel, *id))]);
            wrong.extend(checks.filter_map(Result::err).map(said));
        }
        for (number, call) in numbers.iter().map(|number| (number, &history.calls[*number])) {
            let checks = [
                books.has_its_letter(*id, call),
                books.has_its_late_reply(*id, call, plan),
                books.has_its_cancel_record(*id, *number, call),
            ];
            let said = |what| format!("call {number} ({}): {what}", call.route.path);
            wrong.extend(checks.into_iter().filter_map(Result::err).map(said));
        }
    }
    let about = books.written.keys().chain(books.lost.keys()).chain(books.attempts.keys());
    let strays = about.filter(|(kind, id)| !books.calls.contains_key(id) && !books.is_unheard_of(*kind, *id));
    let strays = strays.collect::<BTreeSet<_>>();
    wrong.extend(strays.into_iter().map(|(kind, id)| format!("a {kind:?} is about no call: {}", shown(*id))));
    wrong
}

type Id = [u8; 16];

/// The history by kind and id.
struct Books<'a> {
    history: &'a History,
    /// Calls by the ids under which they were sent, or told to be. More than
    /// one where they share an idempotency key, none where they have all gone.
    calls: BTreeMap<Id, BTreeSet<usize>>,
    written: BTreeMap<(Kind, Id), Vec<&'a Beside>>,
    lost: BTreeMap<(Kind, Id), usize>,
    /// How many attempts, how many without a certain end, and whether one was
    /// throttled: that is not repeated, and may have come to nothing.
    attempts: BTreeMap<(Kind, Id), (usize, usize, bool)>,
}

impl<'a> Books<'a> {
    fn open(history: &'a History) -> Self {
        let mut calls: BTreeMap<Id, BTreeSet<usize>> = BTreeMap::new();
        for (number, call) in history.calls.iter().enumerate() {
            if let Some(id) = call.trace().and_then(|trace| trace.id) {
                calls.entry(id.to_bytes()).or_default().insert(number);
            }
        }
        let mut attempts: BTreeMap<_, (usize, usize, bool)> = BTreeMap::new();
        for attempt in &history.attempts {
            for (id, call) in attempt.ids.iter().zip(&attempt.calls) {
                let told = calls.entry(id.to_bytes()).or_default();
                // The message of one with a key may be another one's.
                if history.calls[*call].idempotency_key.is_none() {
                    told.insert(*call);
                }
            }
            for (kind, id) in &attempt.beside {
                let (times, uncertain, throttled) = attempts.entry((*kind, id.to_bytes())).or_default();
                *times += 1;
                *uncertain += usize::from(!attempt.certain);
                *throttled |= attempt.throttled;
            }
        }
        let mut written: BTreeMap<_, Vec<_>> = BTreeMap::new();
        for beside in &history.beside {
            written.entry((beside.kind, beside.id.to_bytes())).or_default().push(beside);
        }
        let mut lost: BTreeMap<_, usize> = BTreeMap::new();
        for loss in &history.losses {
            if let Some(id) = CorrelationId::parse(loss.id.as_bytes()) {
                *lost.entry((loss.kind, id.to_bytes())).or_default() += 1;
            }
        }
        Self { history, calls, written, lost, attempts }
    }

    /// A call with an idempotency key whose callers have all gone, and which was
    /// refused before anything was sent: only its dead letter tells of it.
    fn is_unheard_of(&self, kind: Kind, id: Id) -> bool {
        let asks = |call: &CallEntry| {
            call.idempotency_key.is_some() && call.route.dead_letter_on.contains(&DeadLetterOn::Rejected)
        };
        kind == Kind::DeadLetter
            && self.history.calls.iter().any(asks)
            && self.is_there_once((kind, id)).is_ok()
    }

    fn has_its_letter(&self, id: Id, call: &CallEntry) -> Checked {
        let key = (Kind::DeadLetter, id);
        let class = match letter_due(call) {
            Due::Never if call.idempotency_key.is_some() => return self.is_carried_on(id, call),
            Due::Never => return self.is_not_there(key),
            Due::May if self.attempts.contains_key(&key) => None,
            Due::May => return Ok(()),
            Due::Must(class) => Some(class),
        };
        for letter in self.is_there_once(key)? {
            self.is_the_request(letter, call)?;
            let told = |name: &str, expected: &str| match header(&letter.record, name) {
                Some(value) if value == expected => Ok(()),
                found => Err(format!("its dead letter has {name}: {found:?} instead of {expected:?}")),
            };
            // With others that share its key, the letter is not about this call alone.
            if let (Some(class), None) = (class, &call.idempotency_key) {
                told("failure.class", class.as_str())?;
                told(OUTCOME, call.trace().map_or("", |trace| trace.outcome.as_str()))?;
                let at = call.trace().and_then(|trace| trace.at);
                if let Some(offset) = at.and_then(|at| at.offset) {
                    told("original.offset", &offset.to_string())?;
                }
            }
        }
        Ok(())
    }

    /// A letter may have been written of the call that this one has joined or
    /// started, at that one's deadline, or for its reply.
    fn is_carried_on(&self, id: Id, call: &CallEntry) -> Checked {
        let key = (Kind::DeadLetter, id);
        if !self.attempts.contains_key(&key) {
            return Ok(());
        }
        if call.route.dead_letter_on.is_empty() {
            return self.is_not_there(key);
        }
        let Some((ended, End::Answered(_))) = &call.ended else { return self.is_there_once(key).map(drop) };
        let others = self.history.calls.iter().filter(|other| other.origin == call.origin);
        if others.into_iter().all(|other| other.deadline > *ended) {
            return Err("was answered in time, and is a dead letter".to_owned());
        }
        self.is_there_once(key).map(drop)
    }

    fn is_the_request(&self, letter: &Beside, call: &CallEntry) -> Checked {
        let (route, record) = (&call.route, &letter.record);
        let partitions = LETTER_TOPICS.iter().find(|(topic, _)| *topic == &*route.dead_letter_topic);
        let Some((topic, partitions)) = partitions else {
            return Err("its route has no dead letters".to_owned());
        };
        let number =
            |name: &str| header(record, name).and_then(|v| std::str::from_utf8(v).ok()?.parse::<i32>().ok());
        let left_out =
            header(record, VALUE_LEFT_OUT).is_some_and(|bytes| *bytes == call.message.len().to_string());
        let place = number("original.partition");
        // Where the topic was not known, the first partition has to do.
        let there =
            letter.partition == 0 || place.is_some_and(|place| place % partitions == letter.partition);
        let checks = [
            letter.topic == *topic && there,
            record.value.as_ref() == Some(&call.message) || (record.value.is_none() && left_out),
            route.key.is_none() || record.key.as_deref() == Some(call.key.as_bytes()),
            header(record, "original.topic").is_some_and(|topic| *topic == *route.request_topic),
            header(record, GRPC_METHOD).is_some_and(|path| *path == *route.path),
        ];
        match checks.iter().position(|holds| !holds) {
            None => Ok(()),
            Some(n) => Err(format!("its dead letter is not its request ({n}): {letter:?}")),
        }
    }

    fn has_its_late_reply(&self, id: Id, call: &CallEntry, plan: &Plan) -> Checked {
        let key = (Kind::LateReply, id);
        let lettered = self.attempts.contains_key(&(Kind::DeadLetter, id))
            || self.lost.contains_key(&(Kind::DeadLetter, id));
        if !lettered {
            return self.is_not_there(key);
        }
        let ended = call.ended.as_ref().map_or(self.history.end, |(ended, _)| *ended);
        let mut replies = self.history.replies.iter().filter(|reply| reply.id.to_bytes() == id);
        let late = replies.any(|reply| {
            let read = plan.replies_readable(reply.at, READING) + READING;
            reply.at > ended && reply.lost.is_none() && read < self.history.end
        });
        let timed_out = matches!(letter_due(call), Due::Must(DeadLetterOn::Timeout));
        if timed_out && late {
            self.is_there_once(key)?;
        } else if self.attempts.contains_key(&key) {
            self.is_there_at_most_once(key)?;
        }
        let letters = self.written.get(&(Kind::DeadLetter, id)).map_or(&[][..], Vec::as_slice);
        for reply in self.written.get(&key).into_iter().flatten() {
            let record = &reply.record;
            let beside = letters.iter().all(|l| (&l.topic, l.partition) == (&reply.topic, reply.partition));
            // Somebody may send anything under an id that he has seen.
            let own =
                header(record, WORKED_ON).is_some_and(|by| *by == call.origin.to_string() || by == "stray");
            let found = header(record, "original.topic").is_some_and(|topic| topic == REPLIES);
            if !(beside && own && found) {
                return Err(format!("what stands beside its dead letter is not its late reply: {reply:?}"));
            }
        }
        Ok(())
    }

    fn has_its_cancel_record(&self, id: Id, number: usize, call: &CallEntry) -> Checked {
        let key = (Kind::Cancel, id);
        match self.cancel_due(number, call) {
            Due::Never => return self.is_not_there(key),
            Due::May if !self.attempts.contains_key(&key) => return Ok(()),
            Due::May | Due::Must(()) => {}
        }
        let requests =
            || self.history.appends.iter().enumerate().filter(|(_, append)| append.id.to_bytes() == id);
        for cancel in self.is_there_once(key)? {
            if cancel.record.value.is_some() || header(&cancel.record, GRPC_METHOD).is_none() {
                return Err(format!("its cancel record is none: {cancel:?}"));
            }
            if call.route.key.is_some() && cancel.record.key.as_deref() != Some(call.key.as_bytes()) {
                return Err(format!("its cancel record has another key: {cancel:?}"));
            }
            if requests()
                .any(|(_, append)| (&append.topic, append.partition) != (&cancel.topic, cancel.partition))
            {
                return Err(format!("its cancel record is elsewhere: {cancel:?}"));
            }
            // A straggler may be behind it, as it may be behind later requests.
            let behind = requests().next().filter(|(place, append)| *place >= cancel.behind && !append.late);
            if behind.is_some() {
                return Err("is in the log behind its own cancel record".to_owned());
            }
        }
        Ok(())
    }

    fn cancel_due(&self, number: usize, call: &CallEntry) -> Due<()> {
        let Some((ended, End::Cancelled)) = &call.ended else { return Due::Never };
        // One with a key is carried on without its caller.
        if !call.route.cancel_record || call.idempotency_key.is_some() {
            return Due::Never;
        }
        let mine = || self.history.attempts.iter().filter(|attempt| attempt.calls.contains(&number));
        if mine().all(|attempt| attempt.from > *ended) {
            return Due::Never;
        }
        let acknowledged =
            |to| to < *ended && self.history.appends.iter().any(|append| append.call == number);
        let mut certain = mine().filter(|attempt| attempt.certain);
        match certain.any(|attempt| attempt.to.is_some_and(acknowledged)) {
            _ if call.deadline.saturating_sub(*ended) <= AS_GOOD_AS_TIMED_OUT => Due::May,
            // Nothing comes after an acknowledgement, and nothing was refused.
            true if mine().count() == 1 => Due::Must(()),
            _ => Due::May,
        }
    }

    fn is_not_there(&self, key: (Kind, Id)) -> Checked {
        if self.attempts.contains_key(&key) || self.lost.contains_key(&key) {
            return Err(format!("has a {:?}, and should have none: {:?}", key.0, self.written.get(&key)));
        }
        Ok(())
    }

    fn is_there_once(&self, key: (Kind, Id)) -> Result<&[&Beside], String> {
        let throttled = self.attempts.get(&key).is_some_and(|(.., throttled)| *throttled);
        if !self.written.contains_key(&key) && !self.lost.contains_key(&key) && !throttled {
            return Err(format!("its {:?} is nowhere, and was not counted as lost", key.0));
        }
        self.is_there_at_most_once(key)
    }

    fn is_there_at_most_once(&self, key: (Kind, Id)) -> Result<&[&Beside], String> {
        let written = self.written.get(&key).map_or(&[][..], Vec::as_slice);
        let (_, uncertain, _) = self.attempts.get(&key).copied().unwrap_or_default();
        let lost = self.lost.get(&key).copied().unwrap_or_default();
        // Twice does no harm, so it is sent again when nobody knows.
        if written.len() + lost > 1 + uncertain || lost > 1 {
            return Err(format!("its {:?} is there {} times, and lost {lost} times", key.0, written.len()));
        }
        Ok(written)
    }
}

/// Whether there is a dead letter of the call, as its caller was told.
fn letter_due(call: &CallEntry) -> Due<DeadLetterOn> {
    let asks = |class| call.route.dead_letter_on.contains(&class);
    match &call.ended {
        Some((_, End::Failed(Failure { why, trace }))) if trace.id.is_some() => {
            let class = match **why {
                Why::TimedOut if trace.outcome != Outcome::NotSent => DeadLetterOn::Timeout,
                Why::BadReply { .. } => DeadLetterOn::UndecodableReply,
                Why::TooLarge | Why::Refused(_) | Why::NoSuchTopic(_) => DeadLetterOn::Rejected,
                _ => return Due::Never,
            };
            match asks(class) {
                false => Due::Never,
                // Who joins may be gone before the deadline of the call that he has joined.
                true if trace.repeat.is_some() => Due::May,
                true => Due::Must(class),
            }
        }
        Some((ended, End::Cancelled))
            if asks(DeadLetterOn::Timeout)
                && call.deadline.saturating_sub(*ended) <= AS_GOOD_AS_TIMED_OUT =>
        {
            Due::May
        }
        _ => Due::Never,
    }
}

fn shown(id: Id) -> String {
    CorrelationId::parse(&id).map_or_else(|| format!("{id:?}"), |id| id.to_string())
}
