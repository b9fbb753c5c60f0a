//! Stories in words: what the command line and the console say of them.

use super::{Asked, ReplyLog, Sighting, Story, span};
use crate::dead_letters::LateReply;
use crate::dead_letters::show::{count, status_name};
use crate::transport::GroupProgress;

/// Something that happened to a call.
#[derive(Debug, Clone, Copy)]
pub struct Event<'a> {
    /// When; milliseconds since 1970.
    pub at_ms: i64,
    /// What.
    pub what: &'static str,
    /// The record; none for the caller's deadline.
    pub seen: Option<&'a Sighting>,
    began_ms: i64,
}

impl Event<'_> {
    /// How long after the request.
    pub fn after(&self) -> String {
        match self.at_ms - self.began_ms {
            before if before < 0 => span(before),
            after => format!("+{}", span(after)),
        }
    }

    /// `topic/partition/offset` of the record.
    pub fn place(&self) -> Option<String> {
        self.seen.map(|seen| format!("{}/{}", seen.topic, seen.letter.place))
    }

    /// What the record says besides.
    pub fn note(&self) -> String {
        self.seen.map(|seen| note(self.what, seen)).unwrap_or_default()
    }
}

/// What happened, by time.
pub fn events(story: &Story) -> Vec<Event<'_>> {
    let began_ms = story.requests.first().map_or(story.began_ms(), |seen| seen.letter.record.timestamp_ms);
    let seen = ordered(story).into_iter().map(|(what, seen)| {
        let at_ms = seen.letter.record.timestamp_ms;
        Event { at_ms, what, seen: Some(seen), began_ms }
    });
    let mut events: Vec<Event<'_>> = seen.collect();
    let deadline = story.deadline_ms();
    events.extend(deadline.map(|at_ms| Event {
        at_ms,
        what: "deadline of the caller",
        seen: None,
        began_ms,
    }));
    events.sort_by_key(|event| event.at_ms);
    events
}

/// All records by time.
pub fn ordered(story: &Story) -> Vec<(&'static str, &Sighting)> {
    let mut all: Vec<_> = story.sightings().collect();
    all.sort_by_key(|(_, seen)| seen.letter.record.timestamp_ms);
    all
}

/// What a record says besides.
pub fn note(what: &str, seen: &Sighting) -> String {
    let letter = &seen.letter;
    match what {
        "reply" | "late reply" => {
            let reply = LateReply::of(letter);
            let message = reply.status.as_ref().err().unwrap_or(&reply.message);
            let colon = if message.is_empty() { "" } else { ": " };
            format!("{}{colon}{message}", status_name(&reply))
        }
        "dead letter" => {
            let class = letter.class().map_or("of another program", |class| class.as_str());
            format!("{class}: {}", letter.reason().unwrap_or_default())
        }
        _ => letter.value_bytes.map_or_else(String::new, |bytes| count(bytes as u64, "byte")),
    }
}

/// What of the reply topic is missing, where anything is.
pub fn log_text(log: ReplyLog) -> &'static str {
    match log {
        ReplyLog::NotNamed | ReplyLog::Whole => "",
        ReplyLog::Trimmed => " (what its gateway has read is dropped)",
        ReplyLog::Gone => " (gone: its instance has stopped)",
    }
}

/// Who reads the partition of the request.
pub fn groups_text(groups: &Asked) -> Option<String> {
    match groups {
        Asked::No => None,
        Asked::Failed(why) => Some(format!("not known: {why}")),
        Asked::Groups(groups, _) if groups.is_empty() => Some("no consumer group".to_owned()),
        Asked::Groups(groups, end) => {
            let one = |group: &GroupProgress| {
                let at =
                    group.committed.map_or("nothing committed".to_owned(), |at| format!("at {at} of {end}"));
                let members = group.members.map(|members| format!(", {}", count(members as u64, "member")));
                format!("{} ({at}{})", group.group, members.unwrap_or_default())
            };
            Some(groups.iter().map(one).collect::<Vec<_>>().join(", "))
        }
    }
}
