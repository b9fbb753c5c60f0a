//! From what was found to one sentence: what became of the call.

use std::fmt;

use super::story::ReplyLog;
use crate::terms::DeadLetterClass;

/// A reply is written down by the worker's clock, before it is on its way; what
/// is closer to the deadline may have missed it.
const CLOSE_MS: i64 = 500;

/// What is known of a call.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Facts {
    /// What time it is; milliseconds since 1970, as all times here.
    pub now_ms: i64,
    /// Whether all was read that was asked for.
    pub complete: bool,
    /// Its request in the log.
    pub request: Option<Appended>,
    /// When the caller gave up.
    pub deadline_ms: Option<i64>,
    /// Whether an answer was asked for at all.
    pub wants_reply: bool,
    /// Replies, in order of time.
    pub answers: Vec<Answered>,
    /// When the worker was told that nobody waits any more.
    pub cancelled_ms: Option<i64>,
    /// Its dead letter.
    pub letter: Option<DeadLetter>,
    /// How often it was sent again from the dead letters.
    pub replays: Option<Replays>,
    /// What is left of the reply topic.
    pub reply_log: ReplyLog,
    /// Whether a worker has had the request in its hands.
    pub hands: Hands,
}

/// A request in the log.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Appended {
    /// When it was sent.
    pub at_ms: i64,
    /// How often it is there besides.
    pub repeats: usize,
}

/// A reply.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Answered {
    /// When it was written, or recorded as late.
    pub at_ms: i64,
    /// Its status, 0 for OK, or why it can't be understood.
    pub status: Result<u8, String>,
    /// What the status says.
    pub message: String,
}

/// A dead letter.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DeadLetter {
    /// Why; `None` when another program has written it.
    pub class: Option<DeadLetterClass>,
    /// For people.
    pub reason: String,
    /// Whether the request was in the log.
    pub outcome: String,
}

/// What operators have done.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Replays {
    /// How often.
    pub count: usize,
    /// When last.
    pub last_ms: i64,
}

/// Whether a worker has had the request in its hands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Hands {
    /// Nobody has ever read the partition as a consumer group.
    NoGroup {
        /// `topic/partition`.
        on: String,
    },
    /// The group stands before it.
    NotReached {
        /// Its id.
        group: String,
        /// Records that it has to read before this one is done.
        records: Option<i64>,
        /// Records until the end of the partition.
        behind: Option<i64>,
        /// Whether anybody is in the group, where that is known.
        has_members: Option<bool>,
        /// Who has the partition.
        holder: Option<String>,
    },
    /// The group has committed past it.
    Passed {
        /// Its id.
        group: String,
    },
    /// The brokers do not tell.
    Unknown(String),
}

/// What became of a call, in one word.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Cause {
    /// Kafka has nothing of it.
    NotFound {
        /// Whether all was read that was asked for.
        complete: bool,
    },
    /// Its request never came into the log.
    NotSent {
        /// Why.
        reason: String,
    },
    /// Nobody waits for an answer.
    OneWay(Hands),
    /// In time.
    Answered {
        /// From the request to the reply.
        took_ms: Option<i64>,
        /// From the reply to the deadline, where it was so close that the reply may
        /// have come to the caller too late.
        left_ms: Option<i64>,
        /// The worker's status.
        status: u8,
        /// What it says.
        message: String,
    },
    /// After the caller's deadline.
    AnsweredLate {
        /// By so much.
        late_ms: i64,
        /// From the request to the reply.
        took_ms: Option<i64>,
        /// The worker's status.
        status: Option<u8>,
    },
    /// A reply that can't be understood.
    Unreadable {
        /// What is wrong with it.
        reason: String,
    },
    /// Kafka took the request in no form.
    Rejected {
        /// Why.
        reason: String,
    },
    /// The caller went away first.
    Cancelled {
        /// So long after the request.
        after_ms: Option<i64>,
    },
    /// The deadline is still to come.
    Waiting {
        /// In so much.
        left_ms: i64,
        /// Where the request is.
        hands: Hands,
    },
    /// No reply in time, and none since.
    Unanswered(Hands),
    /// No reply, but it may have been dropped since.
    NothingLeft {
        /// Where it would have been.
        reply_log: ReplyLog,
        /// Where the request is.
        hands: Hands,
    },
}

impl Cause {
    /// For programs.
    pub const fn as_str(&self) -> &'static str {
        match self {
            Self::NotFound { .. } => "not-found",
            Self::NotSent { .. } => "not-sent",
            Self::OneWay(_) => "one-way",
            Self::Answered { .. } => "answered",
            Self::AnsweredLate { .. } => "answered-late",
            Self::Unreadable { .. } => "unreadable-reply",
            Self::Rejected { .. } => "rejected",
            Self::Cancelled { .. } => "cancelled",
            Self::Waiting { .. } => "waiting",
            Self::Unanswered(_) => "unanswered",
            Self::NothingLeft { .. } => "nothing-left",
        }
    }
}

/// What became of a call.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Verdict {
    /// The thing itself.
    pub cause: Cause,
    /// How often the request is in the log besides.
    pub repeats: usize,
    /// Replies after the first.
    pub more_answers: usize,
    /// What operators have done since.
    pub replays: Option<Replays>,
}

/// Weighs the facts.
pub fn judge(facts: &Facts) -> Verdict {
    Verdict {
        cause: cause(facts),
        repeats: facts.request.map_or(0, |request| request.repeats),
        more_answers: facts.answers.len().saturating_sub(1),
        replays: facts.replays,
    }
}

fn cause(facts: &Facts) -> Cause {
    let hands = || facts.hands.clone();
    let after = |at_ms: i64| facts.request.map(|request| at_ms - request.at_ms);
    if facts.request.is_none() && facts.letter.is_none() && facts.answers.is_empty() {
        return Cause::NotFound { complete: facts.complete };
    }
    let of_class = |class| facts.letter.as_ref().filter(|letter| letter.class == Some(class));
    if let Some(letter) = of_class(DeadLetterClass::UndecodableReply) {
        return Cause::Unreadable { reason: letter.reason.clone() };
    }
    if let Some(answer) = facts.answers.first() {
        return cause_of_answer(facts, answer);
    }
    match of_class(DeadLetterClass::Rejected) {
        Some(letter) if letter.outcome == "not-sent" => {
            return Cause::NotSent { reason: letter.reason.clone() };
        }
        Some(letter) => return Cause::Rejected { reason: letter.reason.clone() },
        None => {}
    }
    if let Some(cancelled_ms) = facts.cancelled_ms {
        return Cause::Cancelled { after_ms: after(cancelled_ms) };
    }
    if !facts.wants_reply {
        return Cause::OneWay(hands());
    }
    match facts.deadline_ms {
        Some(deadline) if deadline > facts.now_ms && facts.letter.is_none() => {
            // What was read by its gateway is gone within seconds.
            Cause::Waiting { left_ms: deadline - facts.now_ms, hands: hands() }
        }
        // A time-out was noted, so that there was no reply until then; and a
        // later one would stand beside it.
        _ if facts.letter.is_some() => Cause::Unanswered(hands()),
        _ if matches!(facts.reply_log, ReplyLog::Gone | ReplyLog::Trimmed) => {
            Cause::NothingLeft { reply_log: facts.reply_log, hands: hands() }
        }
        _ => Cause::Unanswered(hands()),
    }
}

fn cause_of_answer(facts: &Facts, answer: &Answered) -> Cause {
    let took_ms = facts.request.map(|request| answer.at_ms - request.at_ms);
    // The gateway's own word counts for more than two clocks.
    let timed_out =
        facts.letter.as_ref().is_some_and(|letter| letter.class == Some(DeadLetterClass::Timeout));
    let late_ms = facts.deadline_ms.map(|deadline| answer.at_ms - deadline);
    match (&answer.status, late_ms) {
        (status, Some(late_ms)) if late_ms > 0 || timed_out => {
            Cause::AnsweredLate { late_ms: late_ms.max(0), took_ms, status: status.as_ref().ok().copied() }
        }
        (Err(reason), _) => Cause::Unreadable { reason: reason.clone() },
        (Ok(status), late_ms) => Cause::Answered {
            took_ms,
            left_ms: late_ms.map(|late_ms| -late_ms).filter(|left_ms| *left_ms < CLOSE_MS),
            status: *status,
            message: answer.message.clone(),
        },
    }
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.cause)?;
        if self.repeats > 0 {
            write!(f, "; the request is in the log {} times", self.repeats + 1)?;
        }
        if self.more_answers > 0 {
            write!(f, "; there are {} replies, of which the first counts", self.more_answers + 1)?;
        }
        match self.replays {
            Some(Replays { count: 1, last_ms }) => write!(f, "; it was replayed at {}", time(last_ms)),
            Some(Replays { count, last_ms }) => {
                write!(f, "; it was replayed {count} times, last at {}", time(last_ms))
            }
            None => Ok(()),
        }
    }
}

impl fmt::Display for Cause {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NotFound { complete: true } => write!(
                f,
                "Kafka has no such request where it was looked for: it was never sent, or retention or \
                 another time than --since has it"
            ),
            Self::NotFound { complete: false } => {
                write!(
                    f,
                    "not found, but not all was read: narrow the search with --since, --topic or --record"
                )
            }
            Self::NotSent { reason } => write!(f, "never sent: {reason}"),
            Self::OneWay(hands) => write!(f, "one-way, so that no answer is waited for; {hands}"),
            Self::Answered { took_ms, left_ms, status, message } => {
                match left_ms {
                    None => write!(f, "answered {} in time", name_of(*status))?,
                    Some(left_ms) => write!(
                        f,
                        "answered {} {} before the caller's deadline, which may have been too late to reach it",
                        name_of(*status),
                        span(*left_ms)
                    )?,
                }
                if !message.is_empty() {
                    write!(f, " ({message})")?;
                }
                took(f, *took_ms)
            }
            Self::AnsweredLate { late_ms, took_ms, status } => {
                let status = status.map_or("with an unreadable reply", name_of);
                write!(f, "answered {status} {} after the caller's deadline", span(*late_ms))?;
                took(f, *took_ms)
            }
            // The gateway's own words, from the dead letter.
            Self::Unreadable { reason } if reason.starts_with("the worker's reply") => f.write_str(reason),
            Self::Unreadable { reason } => write!(f, "the worker's reply could not be understood: {reason}"),
            Self::Rejected { reason } => write!(f, "rejected: {reason}"),
            Self::Cancelled { after_ms: Some(after) } => {
                write!(f, "the caller went away {} after the request, and no reply was seen", span(*after))
            }
            Self::Cancelled { after_ms: None } => write!(f, "the caller went away, and no reply was seen"),
            Self::Waiting { left_ms, hands } => {
                write!(f, "no reply yet, {} before the caller's deadline; {hands}", span(*left_ms))
            }
            Self::Unanswered(hands) => write!(f, "no worker has answered it; {hands}"),
            Self::NothingLeft { reply_log: ReplyLog::Gone, hands } => {
                write!(f, "its reply topic is gone, and with it any reply; there is no dead letter; {hands}")
            }
            Self::NothingLeft { hands, .. } => write!(
                f,
                "its reply, if there was one, has been read and dropped; there is no dead letter; {hands}"
            ),
        }
    }
}

impl fmt::Display for Hands {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoGroup { on } => write!(f, "no consumer group has read {on}"),
            Self::NotReached { group, records, behind, has_members, holder } => {
                match has_members {
                    Some(false) => write!(f, "group {group} has no members")?,
                    _ => write!(f, "group {group} has not come past it")?,
                }
                if let Some(records) = records {
                    write!(f, ": it has {} to do up to this one", count(*records))?;
                }
                if let Some(behind) = behind {
                    write!(f, ", {} in all", count(*behind))?;
                }
                match (has_members, holder) {
                    (Some(true), Some(holder)) => write!(f, "; {holder} has the partition"),
                    (Some(true), None) => write!(f, "; no member has the partition"),
                    _ => Ok(()),
                }
            }
            Self::Passed { group } => write!(f, "group {group} has come past it, so a worker has had it"),
            Self::Unknown(why) => write!(f, "how far the workers are is not known ({why})"),
        }
    }
}

fn took(f: &mut fmt::Formatter<'_>, took_ms: Option<i64>) -> fmt::Result {
    match took_ms {
        Some(took) if took >= 0 => write!(f, "; the worker took {}", span(took)),
        Some(took) => {
            write!(f, "; by the clocks the reply is {} older than the request, so they differ", span(-took))
        }
        None => Ok(()),
    }
}

fn count(records: i64) -> String {
    format!("{records} record{}", if records == 1 { "" } else { "s" })
}

/// A time between two records, for people.
pub fn span(ms: i64) -> String {
    match ms.abs() {
        0..1_000 => format!("{ms} ms"),
        1_000..120_000 => format!("{}.{} s", ms / 1_000, (ms.abs() % 1_000) / 100),
        120_000..7_200_000 => format!("{} min", ms / 60_000),
        _ => format!("{} h", ms / 3_600_000),
    }
}

fn time(ms: i64) -> String {
    chrono::DateTime::from_timestamp_millis(ms)
        .map_or_else(|| ms.to_string(), |at| at.to_rfc3339_opts(chrono::SecondsFormat::Millis, true))
}

/// The name of a gRPC status.
fn name_of(status: u8) -> &'static str {
    crate::terms::STATUS_NAMES.get(usize::from(status)).copied().unwrap_or("UNKNOWN")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sent() -> Facts {
        Facts {
            now_ms: 1_000_000,
            complete: true,
            request: Some(Appended { at_ms: 100_000, repeats: 0 }),
            deadline_ms: Some(110_000),
            wants_reply: true,
            answers: Vec::new(),
            cancelled_ms: None,
            letter: None,
            replays: None,
            reply_log: ReplyLog::Whole,
            hands: Hands::Passed { group: "payments".to_owned() },
        }
    }

    fn ok(at_ms: i64) -> Answered {
        Answered { at_ms, status: Ok(0), message: String::new() }
    }

    fn letter(class: DeadLetterClass, outcome: &str) -> Option<DeadLetter> {
        Some(DeadLetter { class: Some(class), reason: "the reason".to_owned(), outcome: outcome.to_owned() })
    }

    fn not_reached() -> Hands {
        Hands::NotReached {
            group: "payments".to_owned(),
            records: Some(1_200),
            behind: Some(1_300),
            has_members: Some(true),
            holder: Some("worker-2".to_owned()),
        }
    }

    /// Each verdict, with the facts that lead to it.
    #[test]
    fn facts_lead_to_one_sentence() {
        type Change = fn(&mut Facts);
        let cases: &[(Change, &str, &str)] = &[
            (
                |f| (f.request, f.complete) = (None, true),
                "not-found",
                "Kafka has no such request where it was looked for: it was never sent, or retention or another time than --since has it",
            ),
            (
                |f| (f.request, f.complete) = (None, false),
                "not-found",
                "not found, but not all was read: narrow the search with --since, --topic or --record",
            ),
            (|f| f.answers = vec![ok(100_250)], "answered", "answered OK in time; the worker took 250 ms"),
            (
                |f| f.answers = vec![ok(109_700)],
                "answered",
                "answered OK 300 ms before the caller's deadline, which may have been too late to reach it; the worker took 9.7 s",
            ),
            (
                |f| {
                    f.answers =
                        vec![Answered { at_ms: 101_500, status: Ok(9), message: "no funds".to_owned() }]
                },
                "answered",
                "answered FAILED_PRECONDITION in time (no funds); the worker took 1.5 s",
            ),
            (
                |f| f.answers = vec![ok(112_100)],
                "answered-late",
                "answered OK 2.1 s after the caller's deadline; the worker took 12.1 s",
            ),
            (
                |f| (f.answers, f.letter) = (vec![ok(109_999)], letter(DeadLetterClass::Timeout, "sent")),
                "answered-late",
                "answered OK 0 ms after the caller's deadline; the worker took 9.9 s",
            ),
            (
                |f| f.answers = vec![ok(99_000)],
                "answered",
                "answered OK in time; by the clocks the reply is 1.0 s older than the request, so they differ",
            ),
            (
                |f| f.answers = vec![ok(100_250), ok(100_300)],
                "answered",
                "answered OK in time; the worker took 250 ms; there are 2 replies, of which the first counts",
            ),
            (
                |f| f.letter = letter(DeadLetterClass::UndecodableReply, "sent"),
                "unreadable-reply",
                "the worker's reply could not be understood: the reason",
            ),
            (
                |f| {
                    let reason = "the worker's reply (offset 7 of r) cannot be understood: x".to_owned();
                    f.letter = Some(DeadLetter {
                        reason,
                        class: Some(DeadLetterClass::UndecodableReply),
                        outcome: "sent".to_owned(),
                    });
                },
                "unreadable-reply",
                "the worker's reply (offset 7 of r) cannot be understood: x",
            ),
            (
                |f| {
                    f.answers = vec![Answered {
                        at_ms: 100_250,
                        status: Err("a tombstone".to_owned()),
                        message: String::new(),
                    }]
                },
                "unreadable-reply",
                "the worker's reply could not be understood: a tombstone",
            ),
            (
                |f| (f.request, f.letter) = (None, letter(DeadLetterClass::Rejected, "not-sent")),
                "not-sent",
                "never sent: the reason",
            ),
            (|f| f.letter = letter(DeadLetterClass::Rejected, "unknown"), "rejected", "rejected: the reason"),
            (
                |f| f.cancelled_ms = Some(103_000),
                "cancelled",
                "the caller went away 3.0 s after the request, and no reply was seen",
            ),
            (
                |f| f.wants_reply = false,
                "one-way",
                "one-way, so that no answer is waited for; group payments has come past it, so a worker has had it",
            ),
            (
                |f| (f.now_ms, f.hands) = (104_000, not_reached()),
                "waiting",
                "no reply yet, 6.0 s before the caller's deadline; group payments has not come past it: it has 1200 records to do up to this one, 1300 records in all; worker-2 has the partition",
            ),
            (
                |f| f.hands = Hands::NoGroup { on: "pay/3".to_owned() },
                "unanswered",
                "no worker has answered it; no consumer group has read pay/3",
            ),
            (
                |f| {
                    f.hands = Hands::NotReached {
                        group: "payments".to_owned(),
                        records: Some(1),
                        behind: Some(1),
                        has_members: Some(false),
                        holder: None,
                    }
                },
                "unanswered",
                "no worker has answered it; group payments has no members: it has 1 record to do up to this one, 1 record in all",
            ),
            (
                |f| f.hands = Hands::Unknown("SCRAM".to_owned()),
                "unanswered",
                "no worker has answered it; how far the workers are is not known (SCRAM)",
            ),
            (
                |f| (f.letter, f.reply_log) = (letter(DeadLetterClass::Timeout, "sent"), ReplyLog::Gone),
                "unanswered",
                "no worker has answered it; group payments has come past it, so a worker has had it",
            ),
            (
                |f| f.reply_log = ReplyLog::Trimmed,
                "nothing-left",
                "its reply, if there was one, has been read and dropped; there is no dead letter; group payments has come past it, so a worker has had it",
            ),
            (
                |f| f.reply_log = ReplyLog::Gone,
                "nothing-left",
                "its reply topic is gone, and with it any reply; there is no dead letter; group payments has come past it, so a worker has had it",
            ),
            (
                |f| {
                    (f.letter, f.replays) = (
                        letter(DeadLetterClass::Timeout, "sent"),
                        Some(Replays { count: 1, last_ms: 500_000 }),
                    )
                },
                "unanswered",
                "no worker has answered it; group payments has come past it, so a worker has had it; it was replayed at 1970-01-01T00:08:20.000Z",
            ),
            (
                |f| {
                    (f.letter, f.replays) = (
                        letter(DeadLetterClass::Timeout, "sent"),
                        Some(Replays { count: 3, last_ms: 500_000 }),
                    )
                },
                "unanswered",
                "no worker has answered it; group payments has come past it, so a worker has had it; it was replayed 3 times, last at 1970-01-01T00:08:20.000Z",
            ),
            (
                |f| f.request = Some(Appended { at_ms: 100_000, repeats: 1 }),
                "unanswered",
                "no worker has answered it; group payments has come past it, so a worker has had it; the request is in the log 2 times",
            ),
        ];
        for (change, word, sentence) in cases {
            let mut facts = sent();
            change(&mut facts);
            let verdict = judge(&facts);
            assert_eq!(
                (verdict.cause.as_str(), verdict.to_string().as_str()),
                (*word, *sentence),
                "{facts:?}"
            );
        }
    }

    #[test]
    fn spans_have_one_unit() {
        for (ms, expected) in [
            (0, "0 ms"),
            (999, "999 ms"),
            (2_149, "2.1 s"),
            (119_999, "119.9 s"),
            (120_000, "2 min"),
            (7_200_000, "2 h"),
        ] {
            assert_eq!(span(ms), expected);
        }
    }
}
