//! The replies of one call that has several, between the reader that brings
//! them and the call that takes them.
//!
//! ```text
//! reader ── push ──► [ bounded queue ] ──► next ── call
//! ```
//!
//! The reader never waits: beyond a bound the series is over, and what waited is
//! thrown away. What is no reply to this series (a repeat, the end of another
//! worker's part) never gets in.

use std::collections::VecDeque;
use std::fmt;
use std::sync::{Mutex, MutexGuard, PoisonError};

use tokio::sync::Notify;

use super::{SendFailure, Verdict};
use crate::message::{Series, Turn};
use crate::transport::Received;

/// Room for bytes that many calls share.
pub trait Room: Send + fmt::Debug {
    /// Takes room for so many more; `false`: there is none.
    fn take(&mut self, bytes: usize) -> bool;

    /// Gives so many of them back.
    fn give_back(&mut self, bytes: usize);
}

/// What may wait in one queue.
#[derive(Debug, Clone, Copy)]
pub struct Bounds {
    /// Replies.
    pub replies_max: usize,
    /// Their bytes.
    pub bytes_max: usize,
}

/// A bound that was reached.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Bound {
    /// Of replies that wait.
    Replies(usize),
    /// Of their bytes.
    Bytes(usize),
    /// Of bytes in all calls.
    Room,
}

/// Why no more replies will come.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Closed {
    /// All are there.
    Complete,
    /// More came than could wait.
    Overflow(Bound),
    /// One was lost on its way here.
    Missing {
        /// Its number.
        expected: u64,
    },
    /// The request will never be in the log.
    Failed(SendFailure),
}

/// What comes next.
#[derive(Debug, PartialEq, Eq)]
pub enum Next {
    /// A reply.
    Reply(Received),
    /// The record that ends the series and is no reply; nothing but
    /// [`Closed::Complete`] comes after it.
    End(Received),
    /// Nothing any more.
    Closed(Closed),
}

/// The queue of one call.
#[derive(Debug)]
pub struct Replies {
    inner: Mutex<Inner>,
    /// Something has changed; one task waits.
    changed: Notify,
}

#[derive(Debug)]
struct Inner {
    series: Series,
    bounds: Bounds,
    room: Box<dyn Room>,
    waiting: VecDeque<Received>,
    /// The last one that waits is the end, and no reply.
    has_end: bool,
    bytes: usize,
    begun: bool,
    closed: Option<Closed>,
}

impl Replies {
    /// An empty queue.
    pub fn new(series: Series, bounds: Bounds, room: Box<dyn Room>) -> Self {
        let inner = Inner {
            series,
            bounds,
            room,
            waiting: VecDeque::new(),
            has_end: false,
            bytes: 0,
            begun: false,
            closed: None,
        };
        Self { inner: Mutex::new(inner), changed: Notify::new() }
    }

    /// Hands a record in; it is taken where it becomes a part of the series.
    pub(super) fn push(&self, reply: &mut Option<Received>) -> Verdict {
        let mut inner = self.lock();
        if inner.closed.is_some() {
            return Verdict::Late;
        }
        let Some(record) = reply.as_ref() else { return Verdict::Duplicate };
        inner.begun = true;
        let (closes, is_end) = match inner.series.take(record) {
            Turn::Reply { closes } => (closes, false),
            Turn::End => (true, true),
            Turn::Passed => return Verdict::Kept,
            Turn::Repeated => return Verdict::Duplicate,
            Turn::Missing { expected } => {
                inner.cut(Closed::Missing { expected });
                self.changed.notify_one();
                return Verdict::Refused;
            }
        };
        let full = inner.no_room_for(record.size());
        if let Some(bound) = full {
            inner.cut(Closed::Overflow(bound));
            self.changed.notify_one();
            return Verdict::Refused;
        }
        inner.waiting.extend(reply.take());
        inner.has_end = is_end;
        if closes {
            inner.closed = Some(Closed::Complete);
        }
        drop(inner);
        self.changed.notify_one();
        Verdict::Delivered
    }

    pub(super) fn fail(&self, failure: SendFailure) {
        self.lock().cut(Closed::Failed(failure));
        self.changed.notify_one();
    }

    /// Whether anything has come.
    pub(super) fn have_begun(&self) -> bool {
        self.lock().begun
    }

    /// What comes next, in the order in which it came. Without end: the caller
    /// sets the deadline.
    pub async fn next(&self) -> Next {
        loop {
            if let Some(next) = self.lock().pop() {
                return next;
            }
            self.changed.notified().await;
        }
    }

    /// Ends when the series has, otherwise than by being complete.
    pub async fn cut(&self) {
        while matches!(self.lock().closed, None | Some(Closed::Complete)) {
            self.changed.notified().await;
        }
    }

    /// Nothing is left under the lock half changed.
    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Inner {
    fn pop(&mut self) -> Option<Next> {
        let Some(record) = self.waiting.pop_front() else { return self.closed.clone().map(Next::Closed) };
        let size = record.size();
        self.bytes -= size;
        self.room.give_back(size);
        let is_end = self.has_end && self.waiting.is_empty();
        Some(if is_end { Next::End(record) } else { Next::Reply(record) })
    }

    fn no_room_for(&mut self, size: usize) -> Option<Bound> {
        if self.waiting.len() >= self.bounds.replies_max {
            return Some(Bound::Replies(self.bounds.replies_max));
        }
        if self.bytes + size > self.bounds.bytes_max {
            return Some(Bound::Bytes(self.bounds.bytes_max));
        }
        if !self.room.take(size) {
            return Some(Bound::Room);
        }
        self.bytes += size;
        None
    }

    fn cut(&mut self, why: Closed) {
        if self.closed.is_some() {
            return;
        }
        self.waiting = VecDeque::new();
        self.room.give_back(std::mem::take(&mut self.bytes));
        self.closed = Some(why);
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        self.room.give_back(self.bytes);
    }
}

#[cfg(test)]
mod tests {
    use std::future::Future as _;
    use std::sync::Arc;
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::task::{Context, Poll, Waker};

    use bytes::Bytes;
    use proptest::prelude::*;

    use super::*;
    use crate::correlation::Minter;
    use crate::message::dialect::Dialect;
    use crate::pending::{About, Pending};
    use crate::terms::CorrelationForm;

    fn about() -> About {
        let now = tokio::time::Instant::now();
        About { route: 0, partition: 0, began: now, deadline: now }
    }

    #[derive(Debug)]
    struct Shared(Arc<AtomicUsize>, usize);

    impl Room for Shared {
        fn take(&mut self, bytes: usize) -> bool {
            if self.0.load(Ordering::Relaxed) + bytes > self.1 {
                return false;
            }
            self.0.fetch_add(bytes, Ordering::Relaxed);
            true
        }

        fn give_back(&mut self, bytes: usize) {
            self.0.fetch_sub(bytes, Ordering::Relaxed);
        }
    }

    const BOUNDS: Bounds = Bounds { replies_max: 4, bytes_max: 1_000 };

    fn series(count: Option<u32>) -> Series {
        Series::new(Dialect::Spring(CorrelationForm::Text), count, true, false)
    }

    fn replies(count: Option<u32>, room: &Arc<AtomicUsize>, max: usize) -> Arc<Replies> {
        Arc::new(Replies::new(series(count), BOUNDS, Box::new(Shared(Arc::clone(room), max))))
    }

    fn record(offset: i64, last: bool, bytes: usize) -> Option<Received> {
        let headers =
            if last { vec![("antiphon-last".into(), Bytes::from_static(b"true"))] } else { Vec::new() };
        Some(Received {
            offset,
            partition: 0,
            timestamp_ms: 0,
            key: None,
            value: Some(vec![0; bytes].into()),
            headers,
        })
    }

    fn poll(replies: &Replies) -> Option<Next> {
        let mut context = Context::from_waker(Waker::noop());
        match std::pin::pin!(replies.next()).poll(&mut context) {
            Poll::Ready(next) => Some(next),
            Poll::Pending => None,
        }
    }

    fn offset(next: Option<Next>) -> Option<i64> {
        match next {
            Some(Next::Reply(record) | Next::End(record)) => Some(record.offset),
            _ => None,
        }
    }

    #[test]
    fn replies_come_in_order_to_the_last_and_what_follows_is_late() {
        let room = Arc::new(AtomicUsize::new(0));
        let pending = Pending::new(9, Minter::new(0, 9, [1; 32]), 8);
        let queue = replies(None, &room, 1_000);
        let mut ticket = pending.register_for(Arc::clone(&queue), about()).unwrap();
        let id = ticket.id();
        assert_eq!(pending.resolve(id, &mut record(1, false, 3)), Verdict::Delivered);
        // As Zilla's messages come.
        assert_eq!(pending.keep_part(id, &mut record(2, false, 3)), Verdict::Delivered);
        assert_eq!(pending.resolve(id, &mut record(3, true, 3)), Verdict::Delivered);
        assert_eq!(pending.resolve(id, &mut record(4, false, 3)), Verdict::Late, "after the last");
        assert_eq!([1, 2, 3].map(|_| offset(poll(&queue)).unwrap()), [1, 2, 3]);
        assert_eq!(poll(&queue), Some(Next::Closed(Closed::Complete)));
        assert_eq!(poll(&queue), Some(Next::Closed(Closed::Complete)), "for good");
        ticket.mark_complete();
        drop(ticket);
        let mut late = record(5, false, 3);
        assert_eq!(pending.resolve(id, &mut late), Verdict::Late);
        assert!(late.is_some() && pending.in_flight() == 0);
        assert_eq!(room.load(Ordering::Relaxed), 0);
    }

    #[test]
    fn an_end_without_a_message_is_told_from_a_reply() {
        let room = Arc::default();
        let queue = replies(None, &room, 1_000);
        assert_eq!(queue.push(&mut record(1, false, 3)), Verdict::Delivered);
        let mut end = record(2, true, 0);
        end.as_mut().unwrap().value = None;
        assert_eq!(queue.push(&mut end), Verdict::Delivered);
        assert!(matches!(poll(&queue), Some(Next::Reply(record)) if record.offset == 1));
        assert!(matches!(poll(&queue), Some(Next::End(record)) if record.offset == 2));
        assert_eq!(poll(&queue), Some(Next::Closed(Closed::Complete)));
    }

    #[test]
    fn each_bound_ends_the_series_and_frees_what_waited() {
        let overflow = |room_max: usize, sizes: &[usize]| {
            let room = Arc::new(AtomicUsize::new(0));
            let queue = replies(None, &room, room_max);
            let verdicts: Vec<Verdict> =
                sizes.iter().map(|size| queue.push(&mut record(0, false, *size))).collect();
            let (refused, before) = verdicts.split_last().unwrap();
            assert!(before.iter().all(|verdict| *verdict == Verdict::Delivered), "{verdicts:?}");
            assert_eq!((*refused, room.load(Ordering::Relaxed)), (Verdict::Refused, 0));
            assert_eq!(queue.push(&mut record(9, false, 1)), Verdict::Late);
            poll(&queue)
        };
        let closed = |bound| Some(Next::Closed(Closed::Overflow(bound)));
        assert_eq!(overflow(10_000, &[1, 1, 1, 1, 1]), closed(Bound::Replies(4)));
        assert_eq!(overflow(10_000, &[500, 500]), closed(Bound::Bytes(1_000)));
        assert_eq!(overflow(100, &[50, 50]), closed(Bound::Room));
    }

    #[tokio::test]
    async fn a_request_that_is_never_sent_and_a_gap_are_heard_of() {
        let room = Arc::default();
        let pending = Pending::new(9, Minter::new(0, 9, [1; 32]), 8);
        let queue = replies(None, &room, 1_000);
        let ticket = pending.register_for(Arc::clone(&queue), about()).unwrap();
        let waiting = tokio::spawn({
            let queue = Arc::clone(&queue);
            async move { (queue.next().await, queue.cut().await).0 }
        });
        tokio::task::yield_now().await;
        pending.fail(ticket.id(), SendFailure::TooLarge);
        let next = tokio::time::timeout(std::time::Duration::from_secs(5), waiting).await.unwrap().unwrap();
        assert_eq!(next, Next::Closed(Closed::Failed(SendFailure::TooLarge)));

        let queue = replies(None, &room, 1_000);
        let mut third = record(1, false, 1);
        third.as_mut().unwrap().headers.push(("antiphon-sequence".into(), Bytes::from_static(b"3")));
        assert_eq!(queue.push(&mut third), Verdict::Refused);
        assert_eq!(poll(&queue), Some(Next::Closed(Closed::Missing { expected: 1 })));
    }

    proptest! {
        /// Against a plain list: what was delivered comes out, in that order,
        /// each once; the bounds hold at each step; all room comes back.
        #[test]
        fn what_goes_in_comes_out_in_order_within_the_bounds(
            steps in proptest::collection::vec((any::<bool>(), 0usize..400, 0u8..12), 0..60),
            count in proptest::option::of(1u32..12),
        ) {
            let room = Arc::new(AtomicUsize::new(0));
            let queue = replies(count, &room, 700);
            let (mut expected, mut taken, mut offered) = (VecDeque::new(), Vec::new(), Vec::new());
            let mut open = true;
            for (number, (push, bytes, last)) in steps.into_iter().enumerate() {
                if push {
                    let number = number as i64;
                    match queue.push(&mut record(number, last == 0, bytes)) {
                        Verdict::Delivered => {
                            prop_assert!(open);
                            expected.push_back(number);
                            offered.push(number);
                            open = last != 0 && count.is_none_or(|count| offered.len() < count as usize);
                        }
                        Verdict::Refused => { prop_assert!(open); expected.clear(); open = false; }
                        verdict => { prop_assert_eq!(verdict, Verdict::Late); prop_assert!(!open); }
                    }
                } else {
                    let found = poll(&queue);
                    match expected.pop_front() {
                        Some(number) => { prop_assert_eq!(offset(found), Some(number)); taken.push(number); }
                        None if open => prop_assert_eq!(found, None),
                        None => prop_assert!(matches!(found, Some(Next::Closed(_))), "{:?}", found),
                    }
                }
                prop_assert!(expected.len() <= BOUNDS.replies_max);
                prop_assert!(room.load(Ordering::Relaxed) <= 700);
                prop_assert!(taken.is_sorted());
            }
            drop(queue);
            prop_assert_eq!(room.load(Ordering::Relaxed), 0);
        }
    }
}
