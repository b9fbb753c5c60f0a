//! `antiphon dlq show`.

use std::io::Write as _;
use std::process::ExitCode;

use antiphon::dead_letters::{Entry, Filter, Keep, Letter, Place, collect, fetch_one};
use base64::Engine as _;
use serde_json::{Value, json};

use super::flags::ShowFlags;
use super::{Connected, Failed, print};
use crate::exit;

/// Bytes of a value that are shown.
const VALUE_BYTES_SHOWN: usize = 1_024;

/// Prints one letter, and its late reply.
pub(super) async fn run(connected: &Connected, flags: &ShowFlags) -> Result<ExitCode, Failed> {
    let Some((entry, late)) = find(connected, &flags.which).await? else {
        let what = format!("there is no dead letter {} on {}", flags.which, connected.topic.name);
        return Err(Failed(what, exit::DATA));
    };
    let text = match flags.json {
        true => format!("{}\n", as_json(connected, &entry, late.as_ref())),
        false => as_text(connected, &entry, late.as_ref()),
    };
    let _ = std::io::stdout().write_all(text.as_bytes());
    Ok(ExitCode::SUCCESS)
}

/// The letter with its value, and the late reply with its own.
async fn find(connected: &Connected, which: &str) -> Result<Option<(Entry, Option<Letter>)>, Failed> {
    let (cluster, topic) = (&connected.cluster, &connected.topic);
    let mut filter = Filter::default();
    let named = match which.parse::<Place>() {
        Ok(place) => match fetch_one(cluster, topic, place).await? {
            Some(letter) => Some(letter),
            None => return Ok(None),
        },
        Err(error) if which.contains('/') => return Err(Failed::usage(error.to_string())),
        Err(_) => None,
    };
    match &named {
        Some(letter) => {
            filter.partition = Some(letter.place.partition);
            filter.places = vec![letter.place];
            filter.classes = letter.class().filter(|_| !letter.is_request()).into_iter().collect();
        }
        None => filter.correlation_ids = vec![which.to_owned()],
    }
    let mut found = collect(cluster, topic, &filter, Keep::Oldest(1), connected.deadline).await?;
    connected.report(&found.scan);
    let entry = match (found.entries.pop(), named) {
        (Some(entry), Some(letter)) => Entry { letter, beside: entry.beside },
        (None, Some(letter)) => Entry { letter, beside: Default::default() },
        (Some(entry), None) => match fetch_one(cluster, topic, entry.letter.place).await? {
            Some(letter) => Entry { letter, beside: entry.beside },
            None => return Ok(None),
        },
        (None, None) => return Ok(None),
    };
    let late = match &entry.beside.late_reply {
        Some(late) => fetch_one(cluster, topic, late.place).await?,
        None => None,
    };
    Ok(Some((entry, late)))
}

fn as_text(connected: &Connected, entry: &Entry, late: Option<&Letter>) -> String {
    let Entry { letter, beside } = entry;
    let mut rows = Vec::new();
    let mut put = |name: &str, value: Option<String>| {
        if let Some(value) = value {
            rows.push(vec![name.to_owned(), print::tame(&value)]);
        }
    };
    let failed_at = letter.failed_at_ms();
    put("place", Some(format!("{}/{}", connected.topic.name, letter.place)));
    put(
        "failed",
        Some(format!("{} ({} ago)", print::timestamp(failed_at), print::age(connected.now_ms - failed_at))),
    );
    put("class", letter.class().map(|class| class.to_string()));
    put("reason", letter.reason().map(Into::into));
    put("outcome", letter.outcome().map(Into::into));
    put("method", letter.method().map(Into::into));
    put("key", letter.key());
    put("correlation id", letter.correlation_id());
    put(
        "original",
        letter.original().map(|at| {
            let part =
                |number: Option<i64>| number.map_or_else(|| "?".to_owned(), |number| number.to_string());
            format!("{}/{}/{}", at.topic, part(at.partition.map(i64::from)), part(at.offset))
        }),
    );
    put("beside it", Some(print::beside(beside)).filter(|text| text != "-"));
    let mut text = print::table(&rows);
    text.push_str(&content(connected, letter, letter, false));
    if let (Some(late), Some(summary)) = (late, &beside.late_reply) {
        text.push_str(&format!("\nlate reply at {}: {}", late.place, print::status_name(summary)));
        let message = summary.status.as_ref().err().unwrap_or(&summary.message);
        if !message.is_empty() {
            text.push_str(&format!(": {}", print::tame(message)));
        }
        text.push('\n');
        text.push_str(&content(connected, late, letter, true));
    }
    text
}

/// Headers and value of a record.
fn content(connected: &Connected, record: &Letter, request: &Letter, is_reply: bool) -> String {
    let mut lines = vec!["headers".to_owned()];
    for (name, value) in &record.record.headers {
        lines.push(format!("  {}: {}", print::tame(name), print::header_value(name, value)));
    }
    match &record.record.value {
        None => lines.push("no value".to_owned()),
        Some(value) => {
            lines.push(format!("value, {}", print::count(value.len() as u64, "byte")));
            lines.extend(
                print::hex_lines(value, VALUE_BYTES_SHOWN).into_iter().map(|line| format!("  {line}")),
            );
        }
    }
    if let Some((kind, decoded)) = decoded(connected, record, request, is_reply) {
        match decoded {
            Ok(json) => {
                lines.push(format!("decoded, {kind}"));
                lines.push(format!("  {json}"));
            }
            Err(error) => lines.push(format!("is no {kind}: {error}")),
        }
    }
    lines.join("\n") + "\n"
}

type Decoded = Option<(String, Result<Value, String>)>;

/// A late reply has no method; its request's is meant.
fn decoded(connected: &Connected, record: &Letter, request: &Letter, is_reply: bool) -> Decoded {
    let value = record.record.value.as_ref()?;
    let failed = is_reply && record.text("grpc-status").is_some_and(|status| status != "0");
    if failed {
        return None;
    }
    print::decode(connected.routes.as_ref(), &request.method()?, value, is_reply)
}

fn as_json(connected: &Connected, entry: &Entry, late: Option<&Letter>) -> Value {
    let mut json = print::to_json(&connected.topic.name, entry);
    json["headers"] = headers(&entry.letter);
    json["value"] = value(&entry.letter);
    if let Some((kind, Ok(message))) = decoded(connected, &entry.letter, &entry.letter, false) {
        json["message_type"] = kind.into();
        json["message"] = message;
    }
    if let Some(late) = late {
        json["late_reply"]["headers"] = headers(late);
        json["late_reply"]["value"] = value(late);
        if let Some((kind, Ok(message))) = decoded(connected, late, &entry.letter, true) {
            json["late_reply"]["message_type"] = kind.into();
            json["late_reply"]["decoded"] = message;
        }
    }
    json
}

fn headers(letter: &Letter) -> Value {
    let pairs = letter.record.headers.iter();
    pairs
        .map(|(name, value)| (name.to_string(), json!(print::header_value(name, value))))
        .collect::<serde_json::Map<_, _>>()
        .into()
}

/// In base64, as protobuf's JSON has bytes.
fn value(letter: &Letter) -> Value {
    json!(letter.record.value.as_ref().map(|value| base64::engine::general_purpose::STANDARD.encode(value)))
}
