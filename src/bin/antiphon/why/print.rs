//! Stories as text and as JSON.

use antiphon::dead_letters::LateReply;
use antiphon::dead_letters::show::{count, header_value, timestamp};
use antiphon::route::RouteTable;
use antiphon::why::show::{Event, events, groups_text, log_text, note, ordered};
use antiphon::why::{Asked, Found, Name, Question, ReplyLog, Searched, Sighting, Story, judge};
use serde_json::{Value, json};

use crate::dlq::print::{decode, hex_lines, table, tame};

/// Bytes of a value that are shown.
const VALUE_BYTES_SHOWN: usize = 1_024;

/// What printing needs to know.
pub(super) struct Page<'a> {
    pub(super) routes: Option<&'a RouteTable>,
    pub(super) question: &'a Question,
    pub(super) with_value: bool,
}

impl Page<'_> {
    /// For people.
    pub(super) fn text(&self, found: &Found) -> String {
        let mut parts: Vec<String> = found.stories.iter().map(|story| self.story(story, found)).collect();
        if found.stories.is_empty() {
            let facts = Story::default().facts(self.question.now_ms, found.searched.is_complete());
            let name = self.question.name.as_ref().map_or("the record", Name::text);
            parts.push(format!("{}: {}\n", tame(name), judge(&facts)));
        }
        if found.more > 0 {
            parts.push(format!("{} have the same name\n", count(found.more as u64, "more call")));
        }
        parts.push(self.searched(&found.searched));
        parts.join("\n")
    }

    fn story(&self, story: &Story, found: &Found) -> String {
        let verdict = judge(&story.facts(self.question.now_ms, found.searched.is_complete()));
        let mut rows = Vec::new();
        let mut put = |name: &str, value: Option<String>| {
            rows.extend(value.map(|value| vec![name.to_owned(), tame(&value)]));
        };
        put("call", story.id.clone());
        put("verdict", Some(verdict.to_string()));
        let request = story.request().map(|seen| &seen.letter);
        put(
            "method",
            request.and_then(|letter| letter.method()).map(|m| m.trim_start_matches('/').to_owned()),
        );
        put("key", request.and_then(|letter| letter.key()));
        put("idempotency key", request.and_then(|letter| letter.text("idempotency-key")).map(Into::into));
        put("instance", story.instance(&self.question.reply_prefix).map(str::to_owned));
        put(
            "reply topic",
            story.reply_topic.as_ref().map(|topic| format!("{topic}{}", log_text(story.reply_log))),
        );
        put("read by", groups_text(&story.groups));
        let mut text = table(&rows);
        text.push('\n');
        text.push_str(&timeline(story));
        if let Some(request) = story.request() {
            text.push_str("\nheaders of the request\n");
            for (name, value) in &request.letter.record.headers {
                text.push_str(&format!("  {}: {}\n", tame(name), header_value(name, value)));
            }
        }
        if self.with_value {
            for (what, seen) in story.sightings() {
                text.push_str(&self.value(story, what, seen));
            }
        }
        text
    }

    /// The first bytes of a value, and the message where its type is known.
    fn value(&self, story: &Story, what: &str, seen: &Sighting) -> String {
        let Some(value) = &seen.letter.record.value else { return String::new() };
        let size = count(value.len() as u64, "byte");
        let mut text = format!("\n{what} {}/{}, {size}\n", seen.topic, seen.letter.place);
        for line in hex_lines(value, VALUE_BYTES_SHOWN) {
            text.push_str(&format!("  {line}\n"));
        }
        match self.decoded(story, what, seen) {
            Some((kind, Ok(json))) => text.push_str(&format!("  {kind} {json}\n")),
            Some((kind, Err(error))) => text.push_str(&format!("  is no {kind}: {error}\n")),
            None => {}
        }
        text
    }

    fn decoded(&self, story: &Story, what: &str, seen: &Sighting) -> Option<(String, Result<Value, String>)> {
        let is_reply = matches!(what, "reply" | "late reply");
        if is_reply && LateReply::of(&seen.letter).status != Ok(0) {
            return None;
        }
        let method = story.request()?.letter.method()?;
        decode(self.routes, &method, seen.letter.record.value.as_ref()?, is_reply)
    }

    fn searched(&self, searched: &Searched) -> String {
        let mut text = format!(
            "read {} in {} ({} MB)",
            count(searched.records, "record"),
            count(searched.partitions, "partition"),
            searched.bytes >> 20
        );
        if self.question.record.is_none() {
            text.push_str(&format!(", from {} on", timestamp(self.question.since_ms)));
        }
        if searched.undecodable > 0 {
            text.push_str(&format!("; {} cannot be decoded", count(searched.undecodable, "record")));
        }
        text + "\n"
    }

    /// For programs: one object a call, or one that says that there is none.
    pub(super) fn json(&self, found: &Found) -> String {
        let complete = found.searched.is_complete();
        let mut lines: Vec<Value> =
            found.stories.iter().map(|story| self.story_json(story, complete)).collect();
        if lines.is_empty() {
            let verdict = judge(&Story::default().facts(self.question.now_ms, complete));
            lines.push(json!({ "verdict": verdict.cause.as_str(), "sentence": verdict.to_string() }));
        }
        for line in &mut lines {
            line["searched"] = json!({
                "partitions": found.searched.partitions,
                "records": found.searched.records,
                "bytes": found.searched.bytes,
                "undecodable": found.searched.undecodable,
                "complete": complete,
            });
        }
        lines.into_iter().map(|line| format!("{line}\n")).collect()
    }

    fn story_json(&self, story: &Story, complete: bool) -> Value {
        let verdict = judge(&story.facts(self.question.now_ms, complete));
        let request = story.request().map(|seen| &seen.letter);
        let records: Vec<Value> =
            ordered(story).into_iter().map(|(what, seen)| self.record_json(story, what, seen)).collect();
        json!({
            "correlation_id": story.id,
            "verdict": verdict.cause.as_str(),
            "sentence": verdict.to_string(),
            "method": request.and_then(|letter| letter.method()),
            "key": request.and_then(|letter| letter.key()),
            "idempotency_key": request.and_then(|letter| letter.text("idempotency-key")),
            "instance": story.instance(&self.question.reply_prefix),
            "reply_topic": story.reply_topic,
            "reply_log": match story.reply_log {
                ReplyLog::NotNamed => "not-named",
                ReplyLog::Whole => "whole",
                ReplyLog::Trimmed => "trimmed",
                ReplyLog::Gone => "gone",
            },
            "requested_at": request.map(|letter| timestamp(letter.record.timestamp_ms)),
            "deadline": story.deadline_ms().map(timestamp),
            "groups": groups_json(&story.groups),
            "records": records,
        })
    }

    fn record_json(&self, story: &Story, what: &str, seen: &Sighting) -> Value {
        let letter = &seen.letter;
        let headers = letter.record.headers.iter();
        let headers: serde_json::Map<String, Value> =
            headers.map(|(name, value)| (name.to_string(), json!(header_value(name, value)))).collect();
        let mut record = json!({
            "what": what,
            "topic": seen.topic,
            "partition": letter.place.partition,
            "offset": letter.place.offset,
            "at": timestamp(letter.record.timestamp_ms),
            "after_ms": letter.record.timestamp_ms - story.began_ms(),
            "note": note(what, seen),
            "headers": headers,
            "value_bytes": letter.value_bytes,
        });
        if self.with_value
            && let Some(value) = &letter.record.value
        {
            let shown = &value[..value.len().min(VALUE_BYTES_SHOWN)];
            record["value_hex"] = shown.iter().map(|byte| format!("{byte:02x}")).collect::<String>().into();
            if let Some((kind, Ok(message))) = self.decoded(story, what, seen) {
                record["message_type"] = kind.into();
                record["message"] = message;
            }
        }
        record
    }
}

/// What happened when, each with its distance from the request.
fn timeline(story: &Story) -> String {
    let row = |event: Event<'_>| {
        let place = event.place().unwrap_or_default();
        vec![event.after(), timestamp(event.at_ms), event.what.to_owned(), tame(&place), tame(&event.note())]
    };
    table(&events(story).into_iter().map(row).collect::<Vec<_>>())
}

fn groups_json(groups: &Asked) -> Value {
    match groups {
        Asked::No => Value::Null,
        Asked::Failed(why) => json!({ "error": why }),
        Asked::Groups(groups, end) => groups
            .iter()
            .map(|group| {
                json!({
                    "group": group.group,
                    "committed": group.committed,
                    "end": end,
                    "members": group.members,
                    "holder": group.holder,
                })
            })
            .collect(),
    }
}
