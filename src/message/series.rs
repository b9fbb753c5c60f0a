//! Several replies to one call: which of them is one more, which is the last.
//!
//! | what ends the series | where |
//! |---|---|
//! | so many replies | `replies` of the route |
//! | a reply that says it is the last, or a record without a value that says so | `until_last`; how it is said is the dialect's |
//! | an error | always, unless the route skips errors |
//!
//! A worker may number its replies in `antiphon-sequence`. Then one that comes
//! twice, as from a request that is handled again after a crash, is told from
//! the next, and one that is lost is missed. Numbers count only where one worker
//! ends the series: of several that answer one request, each counts from 1.

use super::SEQUENCE;
use super::dialect::Dialect;
use super::reply::is_error;
use crate::transport::Received;

/// The replies to one call, as they come.
#[derive(Debug)]
pub struct Series {
    dialect: Dialect,
    count: Option<u32>,
    until_last: bool,
    skip_errors: bool,
    came: u32,
    number: u64,
}

/// What a reply is to its series.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Turn {
    /// One more, and whether it is the last.
    Reply {
        /// Nothing is waited for after it.
        closes: bool,
    },
    /// The end, and no reply.
    End,
    /// The end of what one of several workers has to say; it ends nothing.
    Passed,
    /// It has come before.
    Repeated,
    /// One before it has not come, and never will.
    Missing {
        /// The first that is missing.
        expected: u64,
    },
}

impl Series {
    /// A series of which nothing has come.
    pub const fn new(dialect: Dialect, count: Option<u32>, until_last: bool, skip_errors: bool) -> Self {
        Self { dialect, count, until_last, skip_errors, came: 0, number: 0 }
    }

    /// The next record. Nothing may be asked after the series has ended.
    pub fn take(&mut self, record: &Received) -> Turn {
        if let Some(number) = self.number_of(record) {
            if number <= self.number {
                return Turn::Repeated;
            }
            if number > self.number + 1 {
                return Turn::Missing { expected: self.number + 1 };
            }
            self.number = number;
        }
        let last = self.dialect.is_last(record);
        let error = is_error(record, &self.dialect);
        if last && !error && record.value.is_none() {
            return if self.until_last { Turn::End } else { Turn::Passed };
        }
        self.came = self.came.saturating_add(1);
        let enough = self.count.is_some_and(|count| self.came >= count);
        Turn::Reply { closes: enough || (last && self.until_last) || (error && !self.skip_errors) }
    }

    fn number_of(&self, record: &Received) -> Option<u64> {
        let text = record.header(SEQUENCE).filter(|_| self.until_last)?;
        std::str::from_utf8(text).ok()?.parse().ok().filter(|number| *number > 0)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use bytes::Bytes;
    use proptest::prelude::*;

    use super::*;
    use crate::message::Reply;
    use crate::message::dialect::Custom;
    use crate::terms::{CorrelationForm, PartitionForm};

    const MORE: Turn = Turn::Reply { closes: false };
    const CLOSES: Turn = Turn::Reply { closes: true };

    type Headers<'a> = &'a [(&'static str, &'a str)];

    fn record(value: Option<&'static str>, headers: Headers<'_>) -> Received {
        Received {
            offset: 0,
            partition: 0,
            timestamp_ms: 0,
            key: None,
            value: value.map(|value| Bytes::from_static(value.as_bytes())),
            headers: headers.iter().map(|(n, v)| ((*n).into(), Bytes::from((*v).to_owned()))).collect(),
        }
    }

    fn custom(last: Option<&str>) -> Dialect {
        Dialect::Custom(Arc::new(Custom {
            correlation_id: "x-call".to_owned(),
            correlation_form: CorrelationForm::Text,
            reply_topic: "x-answer-to".to_owned(),
            reply_partition: None,
            reply_partition_form: PartitionForm::Int32,
            error_code: None,
            error_message: Some("x-error".to_owned()),
            last: last.map(str::to_owned),
        }))
    }

    const SPRING: Dialect = Dialect::Spring(CorrelationForm::Text);

    /// What each framework's last reply, its end and its error look like.
    #[test]
    fn every_dialect_has_an_end() {
        let cases: [(Dialect, Headers<'_>, Headers<'_>); 7] = [
            (SPRING, &[("antiphon-last", "true")], &[("grpc-status", "5")]),
            (Dialect::Smallrye, &[("antiphon-last", "1")], &[("grpc-status", "5")]),
            (Dialect::Faststream, &[("antiphon-last", "true")], &[("grpc-status", "99")]),
            (Dialect::Nestjs, &[("kafka_nest-is-disposed", "\0")], &[("kafka_nest-err", "broken")]),
            (Dialect::Zilla, &[("zilla:status", "0")], &[("zilla:status", "5")]),
            (custom(None), &[("antiphon-last", "true")], &[("x-error", "broken")]),
            (custom(Some("x-last")), &[("x-last", "yes")], &[("x-error", "broken")]),
        ];
        for (dialect, last, error) in cases {
            let series = |until_last, skip| Series::new(dialect.clone(), None, until_last, skip);
            let mut until_last = series(true, false);
            assert_eq!(until_last.take(&record(Some("m"), &[])), MORE, "{dialect:?}");
            assert_eq!(until_last.take(&record(Some("m"), last)), CLOSES, "{dialect:?}");
            assert_eq!(series(true, false).take(&record(None, last)), Turn::End, "{dialect:?}");
            assert_eq!(series(false, false).take(&record(None, last)), Turn::Passed, "{dialect:?}");
            assert_eq!(series(false, false).take(&record(Some("m"), last)), MORE, "{dialect:?}");
            assert_eq!(series(true, false).take(&record(None, error)), CLOSES, "{dialect:?}");
            assert_eq!(series(false, true).take(&record(None, error)), MORE, "{dialect:?}");
        }
        let mut zilla = Series::new(Dialect::Zilla, None, true, false);
        assert_eq!(zilla.take(&record(None, &[])), Turn::End);
        let mut other = Series::new(custom(Some("x-last")), None, true, false);
        assert_eq!(other.take(&record(Some("m"), &[("antiphon-last", "true")])), MORE);
        let mut not_last = Series::new(SPRING, None, true, false);
        assert_eq!(not_last.take(&record(Some("m"), &[("antiphon-last", "False")])), MORE);
        // A tombstone is a reply, which can't be understood; it is no end.
        assert_eq!(not_last.take(&record(None, &[])), MORE);
    }

    #[test]
    fn so_many_are_enough_and_errors_count() {
        let mut series = Series::new(SPRING, Some(2), false, true);
        assert_eq!(series.take(&record(None, &[("grpc-status", "5")])), MORE);
        assert_eq!(series.take(&record(None, &[("antiphon-last", "true")])), Turn::Passed);
        assert_eq!(series.take(&record(Some("m"), &[])), CLOSES);
    }

    #[test]
    fn numbers_tell_repeats_and_gaps_where_one_worker_ends_the_series() {
        let numbered = |number: &str| record(Some("m"), &[("antiphon-sequence", number)]);
        let mut series = Series::new(SPRING, None, true, false);
        assert_eq!(series.take(&numbered("1")), MORE);
        assert_eq!(series.take(&numbered("2")), MORE);
        assert_eq!(series.take(&numbered("1")), Turn::Repeated);
        assert_eq!(series.take(&numbered("2")), Turn::Repeated);
        assert_eq!(series.take(&numbered("zero")), MORE, "no number says nothing");
        assert_eq!(series.take(&numbered("4")), Turn::Missing { expected: 3 });
        let end = record(None, &[("antiphon-sequence", "3"), ("antiphon-last", "true")]);
        assert_eq!(series.take(&end), Turn::End);

        let mut several = Series::new(SPRING, Some(3), false, false);
        assert_eq!(several.take(&numbered("1")), MORE);
        assert_eq!(several.take(&numbered("1")), MORE);
        assert_eq!(several.take(&numbered("9")), CLOSES);
    }

    proptest! {
        /// What closes a series as an error is decoded as one, and what does not
        /// is not: else a call would wait behind an error, or end without one.
        #[test]
        fn errors_are_those_of_the_decoder(
            picks in proptest::collection::vec((0usize..6, "[0-9a-z]{0,2}"), 0..4),
            value: bool,
        ) {
            const NAMES: [&str; 6] =
                ["grpc-status", "kafka_nest-err", "zilla:status", "x-error", "grpc-message", "antiphon-last"];
            let headers: Vec<_> = picks.iter().map(|(n, v)| (NAMES[*n], v.as_str())).collect();
            let record = record(value.then_some("m"), &headers);
            for dialect in [SPRING, Dialect::Nestjs, Dialect::Zilla, custom(None)] {
                let decoded = Reply::decode(record.clone(), &dialect, true, 16);
                let found = match &decoded {
                    Ok(reply) => reply.result.is_err(),
                    Err(_) => true,
                };
                prop_assert_eq!(is_error(&record, &dialect), found, "{:?}", decoded);
            }
        }
    }
}
