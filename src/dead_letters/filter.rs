//! Which dead letters are meant.

use std::time::Duration;

use chrono::DateTime;

use super::letter::{Letter, Place};
use crate::route::parse_duration;
use crate::terms::DeadLetterClass;

/// What must hold of a letter; what is not set always does.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Filter {
    /// One of these classes. None: requests of every class.
    pub classes: Vec<DeadLetterClass>,
    /// Became a dead letter at this time or later; milliseconds since 1970.
    pub since_ms: Option<i64>,
    /// Became a dead letter before this time.
    pub until_ms: Option<i64>,
    /// Its key, as text or in hexadecimal.
    pub key: Option<String>,
    /// Path of the method, with or without the slash in front.
    pub method: Option<String>,
    /// In this partition.
    pub partition: Option<i32>,
    /// One of these places or correlation ids. None: any.
    pub places: Vec<Place>,
    /// See `places`.
    pub correlation_ids: Vec<String>,
}

impl Filter {
    /// Whether anything at all is asked for.
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }

    /// Whether the letter is meant.
    pub fn takes(&self, letter: &Letter) -> bool {
        let class = match letter.class() {
            Some(class) if !self.classes.is_empty() => self.classes.contains(&class),
            _ => self.classes.is_empty() && letter.is_request(),
        };
        let at = letter.failed_at_ms();
        class
            && self.since_ms.is_none_or(|since| at >= since)
            && self.until_ms.is_none_or(|until| at < until)
            && self.key.as_ref().is_none_or(|key| letter.key().as_ref() == Some(key))
            && self.partition.is_none_or(|partition| letter.place.partition == partition)
            && self
                .method
                .as_ref()
                .is_none_or(|method| letter.method().is_some_and(|found| bare(&found) == bare(method)))
            && self.is_named(letter)
    }

    fn is_named(&self, letter: &Letter) -> bool {
        if self.places.is_empty() && self.correlation_ids.is_empty() {
            return true;
        }
        let id = letter.correlation_id();
        self.places.contains(&letter.place)
            || id.is_some_and(|id| self.correlation_ids.iter().any(|wanted| wanted.eq_ignore_ascii_case(&id)))
    }
}

fn bare(method: &str) -> &str {
    method.strip_prefix('/').unwrap_or(method)
}

/// What is no point in time.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is no time; expected RFC 3339, such as 2026-01-31T09:30:00Z, or how long ago, such as 10m")]
pub struct WhenError(String);

/// Reads a point in time, RFC 3339 or how long before `now_ms` (`10m`), as
/// milliseconds since 1970.
pub fn parse_when(text: &str, now_ms: i64) -> Result<i64, WhenError> {
    if let Ok(at) = DateTime::parse_from_rfc3339(text) {
        return Ok(at.timestamp_millis());
    }
    let ago = text.strip_suffix(" ago").unwrap_or(text);
    let ago: Duration = parse_duration(ago).map_err(|_| WhenError(text.to_owned()))?;
    Ok(now_ms.saturating_sub(i64::try_from(ago.as_millis()).unwrap_or(i64::MAX)))
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;
    use crate::transport::Received;

    fn letter() -> Letter {
        let headers = [
            ("failure.class", "timeout"),
            ("failure.timestamp", "1000"),
            ("grpc-method", "/p.S/M"),
            ("kafka_correlationId", "00000102-0003-8004-8005-00000000000a"),
        ];
        let headers = headers.map(|(n, v)| (n.into(), Bytes::from_static(v.as_bytes()))).to_vec();
        let key = Some(Bytes::from_static(b"o-1"));
        Letter::new(2, Received { offset: 41, partition: 0, timestamp_ms: 7, key, value: None, headers })
    }

    #[test]
    fn everything_that_is_asked_for_must_hold() {
        type Change = fn(&mut Filter);
        let cases: [(Change, bool); 14] = [
            (|_| {}, true),
            (|f| f.classes = vec![DeadLetterClass::Timeout, DeadLetterClass::Rejected], true),
            (|f| f.classes = vec![DeadLetterClass::LateReply], false),
            (|f| f.since_ms = Some(1000), true),
            (|f| f.since_ms = Some(1001), false),
            (|f| f.until_ms = Some(1000), false),
            (|f| f.key = Some("o-1".to_owned()), true),
            (|f| f.key = Some("o-2".to_owned()), false),
            (|f| f.method = Some("p.S/M".to_owned()), true),
            (|f| f.method = Some("/p.S/N".to_owned()), false),
            (|f| f.partition = Some(1), false),
            (|f| f.places = vec![Place { partition: 2, offset: 41 }], true),
            (|f| f.correlation_ids = vec!["00000102-0003-8004-8005-00000000000A".to_owned()], true),
            (|f| f.correlation_ids = vec!["other".to_owned()], false),
        ];
        for (n, (change, expected)) in cases.into_iter().enumerate() {
            let mut filter = Filter::default();
            change(&mut filter);
            assert_eq!(filter.takes(&letter()), expected, "case {n}");
            assert_eq!(filter.is_empty(), n == 0);
        }
    }

    #[test]
    fn times_are_points_or_distances() {
        let now = 1_000_000_000;
        assert_eq!(parse_when("1970-01-12T13:46:40Z", now), Ok(now));
        assert_eq!(parse_when("1970-01-12T14:46:40+01:00", now), Ok(now));
        assert_eq!(parse_when("10m", now), Ok(now - 600_000));
        assert_eq!(parse_when("10m ago", now), Ok(now - 600_000));
        for wrong in ["", "yesterday", "10", "2026-01-31", "-5m"] {
            assert_eq!(parse_when(wrong, now), Err(WhenError(wrong.to_owned())));
        }
    }
}
