//! Words with rules of their own: durations as people write them, and Kafka's
//! topic names.

use std::time::Duration;

use crate::limits::TOPIC_NAME_CHARS_MAX;

/// Why a word is not a duration.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum DurationError {
    /// Not a number with a unit.
    #[error("{found:?} is not a duration")]
    Form {
        /// What was written.
        found: String,
    },
    /// More than can be counted.
    #[error("{found:?} is too long")]
    TooLong {
        /// What was written.
        found: String,
    },
}

/// How a duration is written, for hints.
pub const DURATION_HINT: &str = "a whole number with a unit of ms, s, m or h, such as \"10s\"";

/// Reads `500ms`, `10s`, `2m` or `1h`.
///
/// # Errors
/// When it is anything else.
pub fn parse_duration(text: &str) -> Result<Duration, DurationError> {
    let form = || DurationError::Form { found: text.to_owned() };
    let digits = text.bytes().take_while(u8::is_ascii_digit).count();
    let (number, unit) = text.split_at(digits);
    let ms_each: u64 = match unit {
        "ms" => 1,
        "s" => 1_000,
        "m" => 60_000,
        "h" => 3_600_000,
        _ => return Err(form()),
    };
    if number.is_empty() {
        return Err(form());
    }
    let ms = number.parse::<u64>().ok().and_then(|count| count.checked_mul(ms_each));
    ms.map(Duration::from_millis).ok_or_else(|| DurationError::TooLong { found: text.to_owned() })
}

/// Writes a duration in the largest unit that leaves no remainder.
pub fn show_duration(duration: Duration) -> String {
    let ms = duration.as_millis();
    for (ms_each, unit) in [(3_600_000, "h"), (60_000, "m"), (1_000, "s")] {
        if ms > 0 && ms.is_multiple_of(ms_each) {
            return format!("{}{unit}", ms / ms_each);
        }
    }
    format!("{ms}ms")
}

/// Why a word can't name a topic.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TopicError {
    /// Nothing there.
    #[error("a topic name must not be empty")]
    Empty,
    /// `.` or `..`.
    #[error("{found:?} can't name a topic")]
    Dots {
        /// What was written.
        found: String,
    },
    /// Too many characters.
    #[error("{found:?} has {chars} characters, and a topic name at most {TOPIC_NAME_CHARS_MAX}")]
    TooLong {
        /// What was written.
        found: String,
        /// Its length.
        chars: usize,
    },
    /// A character that Kafka doesn't allow.
    #[error("{found:?} can't name a topic: {character:?} is not allowed")]
    Character {
        /// What was written.
        found: String,
        /// The first that is wrong.
        character: char,
    },
}

/// What a topic name looks like, for hints.
pub const TOPIC_HINT: &str = "Kafka allows 1 to 249 of a-z, A-Z, 0-9, '.', '_' and '-'";

/// Checks a topic name by Kafka's rules.
///
/// # Errors
/// When Kafka would refuse it.
pub fn check_topic(name: &str) -> Result<(), TopicError> {
    if name.is_empty() {
        return Err(TopicError::Empty);
    }
    let found = || name.to_owned();
    if let Some(character) = name.chars().find(|c| !c.is_ascii_alphanumeric() && !"._-".contains(*c)) {
        return Err(TopicError::Character { found: found(), character });
    }
    if matches!(name, "." | "..") {
        return Err(TopicError::Dots { found: found() });
    }
    if name.len() > TOPIC_NAME_CHARS_MAX {
        return Err(TopicError::TooLong { found: found(), chars: name.len() });
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_read_and_write() {
        for (text, ms) in [("500ms", 500), ("10s", 10_000), ("2m", 120_000), ("1h", 3_600_000), ("0s", 0)] {
            assert_eq!(parse_duration(text), Ok(Duration::from_millis(ms)), "{text}");
        }
        for text in ["500ms", "10s", "2m", "1h", "90s", "1500ms", "0ms"] {
            assert_eq!(show_duration(parse_duration(text).unwrap()), text);
        }
        for text in ["", "10", "s", "10 s", "1.5s", "-1s", "10S", "1m30s", "10sec", "+1s", "１s"] {
            assert!(matches!(parse_duration(text), Err(DurationError::Form { .. })), "{text}");
        }
        let long = parse_duration("99999999999999999h");
        assert!(matches!(long, Err(DurationError::TooLong { .. })), "{long:?}");
    }

    #[test]
    fn topics_follow_kafkas_rules() {
        let longest = "t".repeat(249);
        for name in ["a", "payments.v1.Pay_ment-S", "...", longest.as_str()] {
            assert_eq!(check_topic(name), Ok(()), "{name}");
        }
        let too_long = "t".repeat(250);
        for name in ["", ".", "..", "a b", "a/b", "é", "a\n", too_long.as_str()] {
            assert!(check_topic(name).is_err(), "{name:?}");
        }
    }
}
