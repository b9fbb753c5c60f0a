//! How long a call may take: `grpc-timeout`, the route's settings, and the
//! moment that both come to.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use tokio::time::Instant;

/// A caller that goes away with less than this left has met its deadline.
const CANCEL_IS_TIMEOUT: Duration = Duration::from_millis(50);

/// The moment at which a call ends, whatever has come of it.
///
/// Kept twice: as a point of this process's monotonic clock, which its own
/// waits use and which no clock change moves, and as Unix time for the worker
/// in another process, who must compare it with a clock of its own. Two clocks
/// differ; a worker should allow for the skew its fleet really has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Deadline {
    began: Instant,
    at: Instant,
    unix_ms: u64,
}

impl Deadline {
    /// `after` from now.
    pub fn after(after: Duration) -> Self {
        let unix = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default() + after;
        let began = Instant::now();
        Self { began, at: began + after, unix_ms: u64::try_from(unix.as_millis()).unwrap_or(u64::MAX) }
    }

    /// For a call that asked for `asked` on a route with these settings.
    pub fn for_call(asked: Option<Duration>, default: Duration, max: Duration) -> Self {
        Self::after(asked.unwrap_or(default).min(max))
    }

    /// When the call began.
    pub const fn began(self) -> Instant {
        self.began
    }

    /// The moment, for waits.
    pub const fn at(self) -> Instant {
        self.at
    }

    /// The moment in milliseconds since 1970, for the `grpc-deadline` header.
    pub const fn unix_ms(self) -> u64 {
        self.unix_ms
    }

    /// Time left; zero when it has passed.
    pub fn left(self) -> Duration {
        self.at.saturating_duration_since(Instant::now())
    }

    /// Whether a caller that goes away now does so because of its deadline: a
    /// client resets the stream at about the moment in which ours passes.
    pub fn is_about_to_pass(self) -> bool {
        self.left() <= CANCEL_IS_TIMEOUT
    }

    /// Whether it has passed.
    pub fn has_passed(self) -> bool {
        self.left().is_zero()
    }
}

/// A `grpc-timeout` that does not follow the [gRPC wire format][spec].
///
/// [spec]: https://github.com/grpc/grpc/blob/master/doc/PROTOCOL-HTTP2.md
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TimeoutError {
    /// No digits before the unit.
    #[error("grpc-timeout has no digits; expected 1 to 8 digits and one of H M S m u n")]
    NoDigits,
    /// More than eight digits.
    #[error("grpc-timeout has more than 8 digits")]
    TooManyDigits,
    /// Something other than a digit in front of the unit.
    #[error("grpc-timeout is not a whole number")]
    NotANumber,
    /// No unit, or one that is not defined.
    #[error("grpc-timeout ends in no known unit; expected one of H M S m u n")]
    UnknownUnit,
}

/// Reads a `grpc-timeout` value: 1 to 8 digits and a unit.
///
/// Zero is read as zero, although the specification asks for a positive value:
/// clients send it when their own deadline has just passed.
pub fn parse_grpc_timeout(value: &[u8]) -> Result<Duration, TimeoutError> {
    let (unit, digits) = value.split_last().ok_or(TimeoutError::NoDigits)?;
    let scale: fn(u64) -> Duration = match unit {
        b'H' => |n| Duration::from_secs(n * 3600),
        b'M' => |n| Duration::from_secs(n * 60),
        b'S' => Duration::from_secs,
        b'm' => Duration::from_millis,
        b'u' => Duration::from_micros,
        b'n' => Duration::from_nanos,
        _ => return Err(TimeoutError::UnknownUnit),
    };
    match digits.len() {
        0 => return Err(TimeoutError::NoDigits),
        1..=8 => {}
        _ => return Err(TimeoutError::TooManyDigits),
    }
    let mut number = 0u64;
    for digit in digits {
        if !digit.is_ascii_digit() {
            return Err(TimeoutError::NotANumber);
        }
        number = number * 10 + u64::from(digit - b'0');
    }
    Ok(scale(number))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn each_unit_has_its_length() {
        let table = [
            ("0n", Duration::ZERO),
            ("1n", Duration::from_nanos(1)),
            ("250u", Duration::from_micros(250)),
            ("20m", Duration::from_millis(20)),
            ("99999999S", Duration::from_secs(99_999_999)),
            ("2M", Duration::from_secs(120)),
            ("99999999H", Duration::from_secs(99_999_999 * 3600)),
        ];
        for (text, expected) in table {
            assert_eq!(parse_grpc_timeout(text.as_bytes()), Ok(expected), "{text}");
        }
    }

    #[test]
    fn what_the_wire_format_forbids_is_refused() {
        let table = [
            ("", TimeoutError::NoDigits),
            ("S", TimeoutError::NoDigits),
            ("99999999999S", TimeoutError::TooManyDigits),
            ("123456789m", TimeoutError::TooManyDigits),
            ("1", TimeoutError::UnknownUnit),
            ("1s", TimeoutError::UnknownUnit),
            ("1 S", TimeoutError::NotANumber),
            ("-1S", TimeoutError::NotANumber),
            ("+1S", TimeoutError::NotANumber),
            ("1.5S", TimeoutError::NotANumber),
        ];
        for (text, expected) in table {
            assert_eq!(parse_grpc_timeout(text.as_bytes()), Err(expected), "{text:?}");
        }
    }

    proptest! {
        #[test]
        fn arbitrary_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..16)) {
            let parsed = parse_grpc_timeout(&bytes);
            let legal = (2..=9).contains(&bytes.len())
                && b"HMSmun".contains(&bytes[bytes.len() - 1])
                && bytes[..bytes.len() - 1].iter().all(u8::is_ascii_digit);
            prop_assert_eq!(parsed.is_ok(), legal);
        }
    }

    #[tokio::test(start_paused = true)]
    async fn the_route_caps_what_a_caller_asks_for() {
        let (default, max) = (Duration::from_secs(10), Duration::from_secs(60));
        let left = |asked| Deadline::for_call(asked, default, max).left();
        assert_eq!(left(None), default);
        assert_eq!(left(Some(Duration::from_secs(1))), Duration::from_secs(1));
        assert_eq!(left(Some(Duration::from_secs(600))), max);
        assert!(Deadline::after(Duration::ZERO).has_passed());
    }
}
