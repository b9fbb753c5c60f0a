//! Letters in words: what the command line and the console say of them.

use std::time::{SystemTime, UNIX_EPOCH};

use chrono::{DateTime, SecondsFormat};

use super::letter::{Beside, LateReply, Letter};
use crate::terms::STATUS_NAMES;

/// Milliseconds since 1970.
pub fn now_ms() -> i64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(now.as_millis()).unwrap_or(i64::MAX)
}

/// RFC 3339, in UTC.
pub fn timestamp(ms: i64) -> String {
    match DateTime::from_timestamp_millis(ms) {
        Some(at) => at.to_rfc3339_opts(SecondsFormat::Millis, true),
        None => ms.to_string(),
    }
}

/// In the largest unit that fits.
pub fn age(ms: i64) -> String {
    let seconds = ms.max(0) / 1_000;
    match seconds {
        0..120 => format!("{seconds}s"),
        120..7_200 => format!("{}m", seconds / 60),
        7_200..172_800 => format!("{}h", seconds / 3_600),
        _ => format!("{}d", seconds / 86_400),
    }
}

/// The name of a late reply's status.
pub fn status_name(late: &LateReply) -> &'static str {
    match late.status {
        Ok(code) => STATUS_NAMES.get(usize::from(code)).copied().unwrap_or("UNKNOWN"),
        Err(_) => "unreadable reply",
    }
}

/// What stands beside a request, in few words.
pub fn beside(beside: &Beside) -> String {
    let late = beside.late_reply.as_ref().map(|late| {
        let word = if late.is_done() { "done" } else { "late" };
        format!("{word}: {}", status_name(late))
    });
    let replays = (beside.replays > 0).then(|| format!("replayed {}x", beside.replays));
    let both: Vec<String> = late.into_iter().chain(replays).collect();
    if both.is_empty() { "-".to_owned() } else { both.join(", ") }
}

/// In place of what must not be shown.
const HIDDEN: &str = "(hidden)";

/// A header's value: text where it is, hexadecimal where it is not; nothing of
/// credentials that were forwarded to the worker.
pub fn header_value(name: &str, value: &[u8]) -> String {
    if is_secret(name) {
        return HIDDEN.to_owned();
    }
    match std::str::from_utf8(value) {
        Ok(text) if !text.chars().any(char::is_control) => text.to_owned(),
        _ => format!("0x{}", value.iter().map(|byte| format!("{byte:02x}")).collect::<String>()),
    }
}

/// `1 letter`, `2 letters`.
pub fn count(number: u64, what: &str) -> String {
    format!("{number} {what}{}", if number == 1 { "" } else { "s" })
}

/// The letter's method, or a dash.
pub fn method_of(letter: &Letter) -> String {
    letter.method().map_or_else(|| "-".to_owned(), |method| method.trim_start_matches('/').to_owned())
}

/// Whether a header, by its name, holds what must not be shown: credentials
/// that were forwarded to the worker.
pub fn is_secret(header: &str) -> bool {
    let name = header.to_ascii_lowercase();
    let name = name.strip_prefix("meta:").unwrap_or(&name);
    ["authorization", "cookie", "token", "secret", "password", "passwd", "api-key", "apikey", "credential"]
        .iter()
        .any(|word| name.contains(word))
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
        assert_eq!(
            (header_value("x", b"a b"), header_value("x", b"\x00\x01")),
            ("a b".to_owned(), "0x0001".to_owned())
        );
    }

    #[test]
    fn what_a_caller_signs_in_with_is_a_secret() {
        for secret in ["authorization", "Proxy-Authorization", "x-api-key", "meta:cookie", "x-csrf-token"] {
            assert!(is_secret(secret), "{secret}");
        }
        for open in ["x-tenant", "grpc-method", "kafka_correlationId", "idempotency-key", "traceparent"] {
            assert!(!is_secret(open), "{open}");
        }
    }
}
