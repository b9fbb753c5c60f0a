//! Letters as text and as JSON.

use std::time::{SystemTime, UNIX_EPOCH};

use antiphon::dead_letters::{Beside, Entry, LateReply, Letter};
use antiphon::route::{Lookup, RouteTable};
use antiphon::terms::STATUS_NAMES;
use antiphon::why::is_secret;
use bytes::Bytes;
use chrono::{DateTime, SecondsFormat};
use prost_reflect::{DynamicMessage, MessageDescriptor};
use serde_json::{Value, json};

/// Milliseconds since 1970.
pub(crate) fn now_ms() -> i64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(now.as_millis()).unwrap_or(i64::MAX)
}

/// RFC 3339, in UTC.
pub(crate) fn timestamp(ms: i64) -> String {
    match DateTime::from_timestamp_millis(ms) {
        Some(at) => at.to_rfc3339_opts(SecondsFormat::Millis, true),
        None => ms.to_string(),
    }
}

/// In the largest unit that fits.
pub(crate) fn age(ms: i64) -> String {
    let seconds = ms.max(0) / 1_000;
    match seconds {
        0..120 => format!("{seconds}s"),
        120..7_200 => format!("{}m", seconds / 60),
        7_200..172_800 => format!("{}h", seconds / 3_600),
        _ => format!("{}d", seconds / 86_400),
    }
}

/// The name of a late reply's status.
pub(crate) fn status_name(late: &LateReply) -> &'static str {
    match late.status {
        Ok(code) => STATUS_NAMES.get(usize::from(code)).copied().unwrap_or("UNKNOWN"),
        Err(_) => "unreadable reply",
    }
}

/// What stands beside a request, in few words.
pub(crate) fn beside(beside: &Beside) -> String {
    let late = beside.late_reply.as_ref().map(|late| {
        let word = if late.is_done() { "done" } else { "late" };
        format!("{word}: {}", status_name(late))
    });
    let replays = (beside.replays > 0).then(|| format!("replayed {}x", beside.replays));
    let both: Vec<String> = late.into_iter().chain(replays).collect();
    if both.is_empty() { "-".to_owned() } else { both.join(", ") }
}

/// Text that does nothing to a terminal.
pub(crate) fn tame(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { '\u{fffd}' } else { c }).collect()
}

/// Columns as wide as their widest cell; the last is not padded.
pub(crate) fn table(rows: &[Vec<String>]) -> String {
    let columns = rows.iter().map(Vec::len).max().unwrap_or_default();
    let width = |column: usize| {
        rows.iter()
            .filter_map(|row| row.get(column))
            .map(|cell| cell.chars().count())
            .max()
            .unwrap_or_default()
    };
    let widths: Vec<usize> = (0..columns).map(width).collect();
    let mut text = String::new();
    for row in rows {
        let cells = row.iter().zip(&widths).map(|(cell, width)| format!("{cell:width$}"));
        text.push_str(cells.collect::<Vec<_>>().join("  ").trim_end());
        text.push('\n');
    }
    text
}

/// A letter and what stands beside it, for programs.
pub(crate) fn to_json(topic: &str, Entry { letter, beside }: &Entry) -> Value {
    let original = letter
        .original()
        .map(|at| json!({ "topic": at.topic, "partition": at.partition, "offset": at.offset }));
    let late = beside.late_reply.as_ref().map(|late| {
        json!({
            "place": late.place.to_string(),
            "status": status_name(late),
            "message": late.status.as_ref().err().unwrap_or(&late.message),
            "done": late.is_done(),
        })
    });
    json!({
        "topic": topic,
        "partition": letter.place.partition,
        "offset": letter.place.offset,
        "class": letter.class().map(|class| class.as_str()),
        "failed_at": timestamp(letter.failed_at_ms()),
        "method": letter.method(),
        "key": letter.key(),
        "correlation_id": letter.correlation_id(),
        "reason": letter.reason(),
        "outcome": letter.outcome(),
        "original": original,
        "value_bytes": letter.value_bytes,
        "late_reply": late,
        "replays": beside.replays,
    })
}

/// A message of the letter's method, decoded: its type's name and itself.
pub(crate) fn decode(
    routes: Option<&RouteTable>,
    method: &str,
    value: &Bytes,
    is_reply: bool,
) -> Option<(String, Result<Value, String>)> {
    let Lookup::Route(route) = routes?.lookup(method) else { return None };
    let kind: &MessageDescriptor = if is_reply { route.reply_type() } else { &route.input };
    // JSON and framed values, too, through the form that gRPC has.
    let message = route.format.decode(kind, value.clone()).map_err(|error| error.to_string());
    let decoded = message
        .and_then(|message| DynamicMessage::decode(kind.clone(), message).map_err(|error| error.to_string()));
    let json = decoded.and_then(|message| serde_json::to_value(&message).map_err(|error| error.to_string()));
    Some((kind.full_name().to_owned(), json))
}

/// As `hexdump -C` shows it.
pub(crate) fn hex_lines(bytes: &[u8], bytes_max: usize) -> Vec<String> {
    let shown = &bytes[..bytes.len().min(bytes_max)];
    let line = |(n, part): (usize, &[u8])| {
        let hex: Vec<String> = part.iter().map(|byte| format!("{byte:02x}")).collect();
        let text: String = part
            .iter()
            .map(|byte| if byte.is_ascii_graphic() || *byte == b' ' { *byte as char } else { '.' })
            .collect();
        format!("{:08x}  {:47}  |{text}|", n * 16, hex.join(" "))
    };
    let mut lines: Vec<String> = shown.chunks(16).enumerate().map(line).collect();
    if bytes.len() > shown.len() {
        lines.push(format!("and {} bytes more", bytes.len() - shown.len()));
    }
    lines
}

/// In place of what must not be shown.
const HIDDEN: &str = "(hidden)";

/// A header's value: text where it is, hexadecimal where it is not; nothing of
/// credentials that were forwarded to the worker.
pub(crate) fn header_value(name: &str, value: &[u8]) -> String {
    if is_secret(name) {
        return HIDDEN.to_owned();
    }
    match std::str::from_utf8(value) {
        Ok(text) if !text.chars().any(char::is_control) => text.to_owned(),
        _ => format!("0x{}", value.iter().map(|byte| format!("{byte:02x}")).collect::<String>()),
    }
}

/// `1 letter`, `2 letters`.
pub(crate) fn count(number: u64, what: &str) -> String {
    format!("{number} {what}{}", if number == 1 { "" } else { "s" })
}

/// The letter's method, or a dash.
pub(crate) fn method_of(letter: &Letter) -> String {
    letter.method().map_or_else(|| "-".to_owned(), |method| method.trim_start_matches('/').to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ages_have_one_unit() {
        for (ms, expected) in
            [(-5, "0s"), (119_999, "119s"), (120_000, "2m"), (7_200_000, "2h"), (172_800_000, "2d")]
        {
            assert_eq!(age(ms), expected);
        }
        assert_eq!(timestamp(1_500), "1970-01-01T00:00:01.500Z");
    }

    #[test]
    fn bytes_are_shown_as_hexdump_shows_them() {
        let lines = hex_lines(b"0123456789abcdef\x00!!", 18);
        assert_eq!(
            lines,
            [
                "00000000  30 31 32 33 34 35 36 37 38 39 61 62 63 64 65 66  |0123456789abcdef|",
                "00000010  00 21                                            |.!|",
                "and 1 bytes more",
            ]
        );
        assert_eq!(
            (header_value("x", b"a b"), header_value("x", b"\x00\x01")),
            ("a b".to_owned(), "0x0001".to_owned())
        );
        assert_eq!(tame("a\x1b[2J"), "a\u{fffd}[2J");
    }
}
