//! How far a partition may be committed while its records are finished in any
//! order. Knows nothing of Kafka but offsets.

use std::collections::VecDeque;

/// The offsets of one partition that were taken and not yet committed.
///
/// The commit point is the offset of the first record that is not finished:
/// what lies before it is done, and a worker that takes over begins there.
#[derive(Debug, Default)]
pub(super) struct Watermark {
    /// By offset; `true` once finished. Its first is never finished.
    taken: VecDeque<(i64, bool)>,
    /// Behind the last record that was taken.
    end: Option<i64>,
}

impl Watermark {
    /// Takes a record; `false` when it is in hand already.
    pub(super) fn take(&mut self, offset: i64) -> bool {
        match self.taken.binary_search_by_key(&offset, |(offset, _)| *offset) {
            Ok(_) => return false,
            // Offsets go up, but for a log that was cut and read again.
            Err(at) => self.taken.insert(at, (offset, false)),
        }
        self.end = self.end.max(Some(offset + 1));
        true
    }

    /// A record is done with, whatever came of it.
    pub(super) fn finish(&mut self, offset: i64) {
        if let Ok(at) = self.taken.binary_search_by_key(&offset, |(offset, _)| *offset) {
            self.taken[at].1 = true;
        }
        while self.taken.front().is_some_and(|(_, finished)| *finished) {
            self.taken.pop_front();
        }
    }

    /// What to commit: the offset to go on from. `None` before any record.
    pub(super) fn point(&self) -> Option<i64> {
        self.taken.front().map(|(offset, _)| *offset).or(self.end)
    }

    /// Records that are not finished, and those finished behind them.
    pub(super) fn len(&self) -> usize {
        self.taken.len()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        /// Whatever the gaps and the order of completion, nothing unfinished is
        /// ever committed, and everything before it is.
        #[test]
        fn no_order_of_completion_commits_past_an_unfinished_record(
            gaps in proptest::collection::vec(1i64..4, 1..60),
            order in proptest::collection::vec(any::<proptest::sample::Index>(), 0..60),
        ) {
            let mut watermark = Watermark::default();
            let mut unfinished: Vec<i64> = Vec::new();
            let mut offset = -1;
            for gap in gaps {
                offset += gap;
                prop_assert!(watermark.take(offset));
                unfinished.push(offset);
            }
            let end = offset + 1;
            for index in order {
                if unfinished.is_empty() {
                    break;
                }
                let done = unfinished.remove(index.index(unfinished.len()));
                watermark.finish(done);
                let expected = unfinished.first().copied().unwrap_or(end);
                prop_assert_eq!(watermark.point(), Some(expected));
            }
        }
    }

    #[test]
    fn a_log_that_is_read_again_moves_the_point_back() {
        let mut watermark = Watermark::default();
        assert_eq!(watermark.point(), None);
        assert!(watermark.take(7));
        assert!(!watermark.take(7), "in hand");
        watermark.finish(7);
        assert_eq!((watermark.point(), watermark.len()), (Some(8), 0));
        assert!(watermark.take(3));
        assert_eq!(watermark.point(), Some(3));
        watermark.finish(3);
        assert_eq!(watermark.point(), Some(8));
    }
}
