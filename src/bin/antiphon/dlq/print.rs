//! Letters as text and as JSON.

use antiphon::dead_letters::Entry;
pub(crate) use antiphon::dead_letters::show::{
    age, beside, count, header_value, method_of, now_ms, status_name, timestamp,
};
use antiphon::route::{Lookup, RouteTable};
use bytes::Bytes;
use prost_reflect::{DynamicMessage, MessageDescriptor};
use serde_json::{Value, json};

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

#[cfg(test)]
mod tests {
    use super::*;

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
        assert_eq!(tame("a\x1b[2J"), "a\u{fffd}[2J");
    }
}
