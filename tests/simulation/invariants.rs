//! What must hold for every seed, judged over the whole history.

use std::collections::BTreeMap;
use std::time::Duration;

use antiphon::exchange::{Answer, Failure, Outcome, Trace, Why};
use antiphon::terms::Mode;
use prost::Message as _;

use crate::callers::repeatable;
use crate::faults::Plan;
use crate::history::{CallEntry, End, History, RefusedConnect};
use crate::workers::WORKED_ON;
use crate::{aftermath, circuits, keys, messages};

/// Timers count in whole milliseconds, and round up.
const LATENESS_MAX: Duration = Duration::from_millis(5);
/// Until a reply that can be read has been read: the reader's longest pause,
/// connecting, and a few fetches that fail by chance.
pub(crate) const READING: Duration = Duration::from_secs(3);

/// Appends everything that does not hold to the history's violations.
pub(crate) fn check(history: &mut History, plan: &Plan) {
    let mut wrong = Vec::new();
    for (number, call) in history.calls.iter().enumerate() {
        let said = |what: String| format!("call {number} ({}): {what}", call.route.path);
        let checks = [
            ends_in_time(call),
            ends_no_sooner_than_it_must(history, plan, number, call),
            is_not_repeated(history, number, call),
            is_not_sent_after_its_end(history, number, call),
            is_told_the_truth(history, number, call),
            is_told_one_story(call),
            fails_for_its_own_sake(history, plan, call),
            gets_its_own_reply(history, call),
            gets_the_reply_that_is_there(history, plan, call),
        ];
        wrong.extend(checks.into_iter().filter_map(Result::err).map(said));
    }
    wrong.extend(connections_are_not_forced(history, plan));
    wrong.extend(ids_are_unique(history));
    wrong.extend(keys_keep_their_order(history));
    wrong.extend(aftermath::check(history, plan));
    wrong.extend(keys::check(history, plan));
    wrong.extend(circuits::check(history, plan));
    history.violations.extend(wrong);
}

pub(crate) type Checked = Result<(), String>;

fn ends_in_time(call: &CallEntry) -> Checked {
    match &call.ended {
        None => Err("has not ended".to_owned()),
        Some((at, _)) if *at > call.deadline + call.grace() + LATENESS_MAX => {
            Err(format!("ended at {at:?}, its deadline was {:?}", call.deadline))
        }
        Some((_, End::Failed(failure))) if call.probe => {
            Err(format!("failed although all trouble is over: {failure}"))
        }
        Some(_) => Ok(()),
    }
}

/// Nobody is told that time is up before it is. A call that has joined another
/// hears what that one has come to: when its deadline passes, or when its key's
/// window closes.
fn ends_no_sooner_than_it_must(history: &History, plan: &Plan, number: usize, call: &CallEntry) -> Checked {
    let Some((ended, End::Failed(Failure { why, .. }))) = &call.ended else { return Ok(()) };
    let its_own = matches!(**why, Why::TimedOut | Why::NotSent(_));
    if !its_own || *ended >= call.deadline {
        return Ok(());
    }
    let joined = call.idempotency_key.is_some()
        && history.calls[..number].iter().any(|first| {
            let over = match **why {
                Why::NotSent(_) => first.deadline,
                _ => first.issued + plan.idempotency.window,
            };
            first.origin == call.origin && over <= *ended
        });
    if joined { Ok(()) } else { Err(format!("ended at {ended:?}, before its deadline, with: {why}")) }
}

/// Only a method that says so may have its request in the log twice.
fn is_not_repeated(history: &History, number: usize, call: &CallEntry) -> Checked {
    // One that others repeat under its key may be sent again under another id.
    let mut times: BTreeMap<_, u32> = BTreeMap::new();
    for append in history.appends.iter().filter(|append| append.call == number) {
        *times.entry(append.id.to_bytes()).or_default() += 1;
    }
    let times = times.into_values().max().unwrap_or_default();
    if times > 1 && !repeatable(&call.route) {
        return Err(format!("appended {times} times"));
    }
    Ok(())
}

/// Nobody waits any more: what has not been sent by then stays behind. A call
/// with an idempotency key is carried on for those that may repeat it.
fn is_not_sent_after_its_end(history: &History, number: usize, call: &CallEntry) -> Checked {
    let Some((ended, _)) = call.ended else { return Ok(()) };
    if call.idempotency_key.is_some() {
        return Ok(());
    }
    let mut later = history.attempts.iter().filter(|attempt| attempt.from > ended);
    match later.find(|attempt| attempt.calls.contains(&number)) {
        Some(attempt) => Err(format!("ended at {ended:?}, and was sent at {:?}", attempt.from)),
        None => Ok(()),
    }
}

/// What the caller is told of its request is so, and no less than is known.
fn is_told_the_truth(history: &History, number: usize, call: &CallEntry) -> Checked {
    let Some((ended, end)) = &call.ended else { return Ok(()) };
    let Some(trace) = call.trace() else { return Ok(()) };
    let keyed = call.idempotency_key.is_some();
    let mut appends = history.appends.iter().filter(|append| match trace.id {
        Some(id) if keyed => append.id == id,
        // Refused, or it could not hear what the call is that it has joined.
        None if keyed => false,
        _ => append.call == number,
    });
    if let Some(append) = appends.clone().find(|append| trace.id.is_some_and(|id| id != append.id)) {
        return Err(format!("is in the log as {:?}, and was told {:?}", append.id, trace.id));
    }
    match trace.outcome {
        Outcome::NotSent if appends.next().is_some() => {
            Err("was told not-sent, and is in the log".to_owned())
        }
        Outcome::Sent
            if !appends.any(|append| is_at(trace, &append.topic, append.partition, append.offset)) =>
        {
            Err(format!("was told sent to {:?}, where it is not", trace.at))
        }
        Outcome::Unknown => {
            let replied = match end {
                End::Answered(_) => true,
                End::Failed(Failure { why, .. }) => matches!(**why, Why::BadReply { .. }),
                End::Cancelled => false,
            };
            if replied {
                return Err("has a reply, and was told unknown: who replies has read it".to_owned());
            }
            // It is not this call's business that has come to this.
            let doubtful = keyed
                || history.attempts.iter().any(|attempt| {
                    let under_way = attempt.from <= *ended && attempt.to.is_none_or(|to| to >= *ended);
                    attempt.calls.contains(&number) && (!attempt.certain || under_way)
                });
            if doubtful { Ok(()) } else { Err("was told unknown, and all is known".to_owned()) }
        }
        Outcome::NotSent | Outcome::Sent => Ok(()),
    }
}

/// The reason of a failure and the outcome beside it agree: one makes the
/// status code, the other the trailer.
fn is_told_one_story(call: &CallEntry) -> Checked {
    let Some((_, End::Failed(Failure { why, trace }))) = &call.ended else { return Ok(()) };
    let agree = match **why {
        Why::TimedOut => trace.outcome != Outcome::NotSent,
        Why::BadReply { .. } => trace.outcome == Outcome::Sent,
        _ => trace.outcome == Outcome::NotSent,
    };
    if agree { Ok(()) } else { Err(format!("was told {:?}, and that {why}", trace.outcome)) }
}

/// Nobody's call fails because another one's record was in the same batch.
fn fails_for_its_own_sake(history: &History, plan: &Plan, call: &CallEntry) -> Checked {
    let Some((ended, End::Failed(Failure { why, .. }))) = &call.ended else { return Ok(()) };
    let topic = &call.route.request_topic;
    let alone = || history.attempts.iter().any(|attempt| attempt.calls == [call.origin]);
    let mine = match **why {
        Why::TooLarge => alone(),
        Why::Refused(_) => alone() || plan.forbids(topic, call.issued, *ended),
        _ => true,
    };
    if mine { Ok(()) } else { Err(format!("was never sent alone, and failed: {why}")) }
}

/// A refused connection ends all who wait for it, so that it is not forced
/// once for each of them. Only a request that may be in the log already, and
/// was to be sent again, goes on waiting for its reply.
fn connections_are_not_forced(history: &History, plan: &Plan) -> Option<String> {
    let doubtful = |number: usize, time: &Duration| {
        let mut attempts = history.attempts.iter().filter(|attempt| attempt.to.is_some_and(|to| to <= *time));
        attempts.any(|attempt| !attempt.certain && attempt.calls.contains(&number))
    };
    let accounts_for = |refused: &RefusedConnect, number: usize, call: &CallEntry| {
        let Some((ended, _)) = &call.ended else { return false };
        let goes_on =
            ended >= refused.time.end() && repeatable(&call.route) && doubtful(number, refused.time.start());
        // One with an idempotency key is carried on where nobody sees its end.
        let carried_on = call.idempotency_key.is_some()
            && call.issued <= *refused.time.end()
            && keys::remembered_until(call, plan) >= *refused.time.start();
        *call.route.request_topic == refused.topic
            && (carried_on || (call.entered.is_some() && (refused.time.contains(ended) || goes_on)))
    };
    let forced = history.refused_connects.iter().find(|refused| {
        let mut calls = history.calls.iter().enumerate();
        let mut losses = history.losses.iter();
        !calls.any(|(number, call)| accounts_for(refused, number, call))
            && !losses.any(|loss| loss.topic == refused.topic && refused.time.contains(&loss.at))
    })?;
    Some(format!("nobody's call ended with a connection that was refused: {forced:?}"))
}

fn is_at(trace: &Trace, topic: &str, partition: i32, offset: i64) -> bool {
    let there = trace.at.is_none_or(|at| at.partition == partition && at.offset.is_none_or(|o| o == offset));
    &*trace.topic == topic && there
}

fn gets_its_own_reply(history: &History, call: &CallEntry) -> Checked {
    match &call.ended {
        Some((_, End::Answered(answer))) if call.route.mode == Mode::OneWay => acknowledges(answer, call),
        Some((_, End::Answered(answer))) => {
            let worked_on = answer.reply.headers.iter().find(|(name, _)| name == WORKED_ON);
            if worked_on.is_none_or(|(_, value)| *value != call.origin.to_string()) {
                return Err(format!("has a stranger's reply: {:?}", answer.reply));
            }
            match &answer.reply.result {
                Ok(message) if *message != call.message && !message.is_empty() => {
                    Err("its message is not what the worker has sent".to_owned())
                }
                _ => Ok(()),
            }
        }
        Some((_, End::Failed(Failure { why, .. }))) => {
            let Why::BadReply { offset, .. } = **why else { return Ok(()) };
            let mut own = history.replies.iter().filter(|reply| reply.call == call.origin);
            if own.any(|reply| reply.offset == offset) {
                return Ok(());
            }
            Err(format!("was told that offset {offset} has its reply, which is not so"))
        }
        _ => Ok(()),
    }
}

fn acknowledges(answer: &Answer, call: &CallEntry) -> Checked {
    let told = answer.reply.result.clone().map_err(|status| format!("one-way, and failed: {status:?}"))?;
    let ack = messages::Ack::decode(told).map_err(|error| error.to_string())?;
    let at = answer.trace.at.ok_or("acknowledged, and it is not told where")?;
    let expected = messages::Ack {
        topic: call.route.request_topic.to_string(),
        partition: at.partition,
        offset: at.offset.unwrap_or(-1),
    };
    if ack == expected { Ok(()) } else { Err(format!("acknowledged {ack:?} instead of {expected:?}")) }
}

/// A reply that was in the log in good time, and could be read, ends its call.
fn gets_the_reply_that_is_there(history: &History, plan: &Plan, call: &CallEntry) -> Checked {
    let Some((ended, _)) = &call.ended else { return Ok(()) };
    if call.route.mode == Mode::OneWay {
        return Ok(());
    }
    // What it has joined may have been another attempt.
    let its_own =
        |id| call.idempotency_key.is_none() || call.trace().is_some_and(|trace| trace.id == Some(id));
    let mut replies = history.replies.iter();
    for reply in replies.by_ref().filter(|reply| reply.call == call.origin && its_own(reply.id)) {
        let readable = plan.replies_readable(reply.at, READING).max(call.issued);
        let was_lost = reply.lost.is_some_and(|lost| lost <= readable + READING);
        if !was_lost && *ended > readable + READING {
            return Err(format!(
                "went on until {ended:?}, and its reply was at offset {} of partition {} since {:?}",
                reply.offset, reply.partition, reply.at,
            ));
        }
    }
    Ok(())
}

fn ids_are_unique(history: &History) -> Vec<String> {
    let mut calls = BTreeMap::new();
    let mut wrong = Vec::new();
    for append in &history.appends {
        let first = *calls.entry(append.id.to_bytes()).or_insert(append.call);
        if first != append.call {
            wrong.push(format!("calls {first} and {} have one id, {}", append.call, append.id));
        }
    }
    wrong
}

/// Calls of one key in one shard come to the log in the order in which they
/// entered the lane, by their first appends, with one exception: a request
/// whose outcome was reported as unknown, and which was appended after that
/// report, may come behind calls that entered later.
///
/// The exception can't be closed. The lane goes on after an unknown outcome,
/// since it must not wait for what may never come; Kafka drops such a straggler
/// only for an idempotent producer, by its sequence number, and rskafka has
/// none. It is as narrow as it looks: only the straggler itself may be out of
/// order, and only backwards. All others keep theirs, also among those that
/// were sent with it and then again.
fn keys_keep_their_order(history: &History) -> Vec<String> {
    let mut first: BTreeMap<usize, (usize, bool)> = BTreeMap::new();
    for (place, append) in history.appends.iter().enumerate() {
        first.entry(append.call).or_insert((place, append.late));
    }
    let mut lanes: BTreeMap<_, Vec<(u64, usize)>> = BTreeMap::new();
    for (number, call) in history.calls.iter().enumerate() {
        let Some(entered) = call.entered.filter(|_| call.route.key.is_some()) else { continue };
        let partitioned = std::mem::discriminant(&call.route.partitioning);
        let lane = (call.shard, call.route.request_topic.to_string(), call.key.clone());
        // A method that names its partition does not go by the key.
        if partitioned == std::mem::discriminant(&antiphon::route::Partitioning::ByKey) {
            lanes.entry(lane).or_default().push((entered, number));
        }
    }
    let mut wrong = Vec::new();
    for (lane, mut calls) in lanes {
        calls.sort_unstable();
        // The first append of all that entered later.
        let mut later: Option<(usize, usize)> = None;
        for (_, number) in calls.into_iter().rev() {
            let Some(&(place, late)) = first.get(&number) else { continue };
            match later {
                Some((other, earlier)) if earlier < place && !late => {
                    wrong.push(format!("call {number} came to the log behind call {other} of {lane:?}"));
                }
                _ => {}
            }
            if later.is_none_or(|(_, earlier)| place < earlier) {
                later = Some((number, place));
            }
        }
    }
    wrong
}
