//! Calls that wait for something to happen in Kafka: one slab a shard.
//!
//! ```text
//! exchange ── register ──► slot ◄── progress ── lane (queued, sending, appended, unknown)
//!     ▲                     │
//!     └──── ticket.wait ────┴◄── complete ──── replies (by correlation id), lane (failures, acks)
//! ```
//!
//! A [`Ticket`] stands for the place a call holds. Dropping it frees the place,
//! so reply, time-out, a caller that goes away and shutdown all end in the same
//! line of code. A freed slot remembers the id it had and how that call ended,
//! so that what arrives later can be told apart: late, or a duplicate.
//!
//! A call that has several replies waits for them beside its slot, in a queue of
//! its own ([`Replies`]), which can outlive neither its bounds nor its call.

mod oldest;
mod replies;

use std::collections::VecDeque;
use std::future::poll_fn;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Poll, Waker};

use tokio::time::Instant;

use crate::correlation::{CorrelationId, Minter, SLOT_BITS};
use crate::transport::Received;

pub use oldest::{InFlight, Oldest};
pub use replies::{Bound, Bounds, Closed, Next, Replies, Room};

/// Freed slots are taken again oldest first, and only when more than this many
/// are free: so many ended calls can still be told apart.
const ENDED_REMEMBERED: usize = 4_096;

/// What is known of a call's request record.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Progress {
    /// Waiting in its lane; nothing has been sent.
    Queued,
    /// Being sent: it may be in the log.
    Sending,
    /// Not sent so far, for this reason; the lane goes on trying.
    NotSent(Arc<str>),
    /// Acknowledged by Kafka.
    Appended(Coordinates),
    /// It may be in the log: the acknowledgement was lost.
    Unknown(Arc<str>),
}

/// Where a record is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Coordinates {
    /// Partition of the request topic.
    pub partition: i32,
    /// Offset, where the acknowledgement told it.
    pub offset: Option<i64>,
}

/// Why a request will never be in the log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum SendFailure {
    /// The topic or partition is gone.
    NoSuchTopic,
    /// Larger than the broker takes.
    TooLarge,
    /// The broker refused the record, for this reason.
    Refused(Arc<str>),
}

/// What ends a wait.
#[derive(Debug)]
pub enum Completion {
    /// The reply.
    Reply(Box<Received>),
    /// A second message, where a reply in parts may have one.
    SecondMessage {
        /// Offset of the first.
        first: i64,
        /// The second.
        second: Box<Received>,
    },
    /// Kafka's acknowledgement, for a call that waits for no more.
    Acknowledged(Coordinates),
    /// The request will never be in the log.
    Failed(SendFailure),
}

/// What a call waits for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum WaitFor {
    /// A worker's reply.
    Reply,
    /// Several replies, which go to their own queue.
    Replies,
    /// Kafka's acknowledgement.
    Acknowledgement,
}

/// What is known of a call besides, for those who look at what waits. Copied
/// into the slot, so that it costs a call next to nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct About {
    /// `Route::index` of its method.
    pub route: u32,
    /// Partition of the request topic.
    pub partition: i32,
    /// When it began.
    pub began: Instant,
    /// When its caller gives up.
    pub deadline: Instant,
}

/// How a call ended, kept for what arrives after it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ended {
    /// It got its reply.
    Answered,
    /// Its deadline passed.
    TimedOut,
    /// It had several replies and needs no more.
    Complete,
    /// Its caller went away, or it failed before a reply could come.
    GivenUp,
}

/// What became of a reply that was handed in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// A waiting call has it.
    Delivered,
    /// It is kept for a waiting call until the end of its reply comes.
    Kept,
    /// Its call had no room for it, or has missed one before it; it will end.
    Refused,
    /// Its call has had a reply already.
    Duplicate,
    /// Its call had ended without one.
    Late,
    /// It was never ours, or so long ago that nothing is known of it.
    Foreign,
}

/// All slots are taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("no slot is free; at most {slots_max} calls can wait in one shard")]
pub struct Full {
    /// The bound that was reached.
    pub slots_max: u32,
}

/// The waiting calls of one shard.
#[derive(Debug)]
pub struct Pending {
    instance: u16,
    slots: Mutex<Slots>,
}

#[derive(Debug)]
struct Slots {
    minter: Minter,
    slots_max: u32,
    all: Vec<Slot>,
    free: VecDeque<u32>,
}

#[derive(Debug)]
struct Slot {
    id: CorrelationId,
    about: About,
    state: State,
}

#[derive(Debug)]
enum State {
    Waiting { wait_for: WaitFor, progress: Progress, waker: Option<Waker>, more: Option<Box<More>> },
    Done { completion: Option<Completion>, progress: Progress },
    Free { ended: Ended },
}

/// What the slots of few calls have besides; boxed, since all would carry it.
#[derive(Debug)]
enum More {
    /// The message of a reply whose end is still to come.
    Part(Received),
    /// Where several replies go.
    Replies(Arc<Replies>),
}

impl Pending {
    /// A slab for `slots_max` calls (cut to 2^24), whose ids come from
    /// `minter`.
    pub fn new(instance: u16, minter: Minter, slots_max: u32) -> Arc<Self> {
        let slots = Slots {
            minter,
            slots_max: slots_max.min(1 << SLOT_BITS),
            all: Vec::new(),
            free: VecDeque::new(),
        };
        Arc::new(Self { instance, slots: Mutex::new(slots) })
    }

    /// Takes a place for a call. Do this before the request is sent: a fast
    /// worker beats a slow registration.
    pub fn register(self: &Arc<Self>, wait_for: WaitFor, about: About) -> Result<Ticket, Full> {
        let id = self.lock().take(wait_for, about, None)?;
        Ok(Ticket { pending: Arc::clone(self), id, ended: Ended::GivenUp })
    }

    /// The same for a call that has several replies: they go to `replies`.
    pub fn register_for(self: &Arc<Self>, replies: Arc<Replies>, about: About) -> Result<Ticket, Full> {
        let id = self.lock().take(WaitFor::Replies, about, Some(Box::new(More::Replies(replies))))?;
        Ok(Ticket { pending: Arc::clone(self), id, ended: Ended::GivenUp })
    }

    /// The ids of calls that hold a place.
    pub fn ids(&self) -> Vec<CorrelationId> {
        let slots = self.lock();
        let live = slots.all.iter().filter(|slot| !matches!(slot.state, State::Free { .. }));
        live.map(|slot| slot.id).collect()
    }

    /// Which instance the ids name.
    pub const fn instance(&self) -> u16 {
        self.instance
    }

    /// Calls that hold a place.
    pub fn in_flight(&self) -> usize {
        let slots = self.lock();
        slots.all.len() - slots.free.len()
    }

    /// Hands a reply in; it is taken only when a waiting call gets it.
    pub fn resolve(&self, id: CorrelationId, reply: &mut Option<Received>) -> Verdict {
        let mut slots = self.lock();
        let Some(slot) = slots.all.get_mut(id.slot() as usize) else { return self.unheard_of(id) };
        if slot.id != id {
            return self.unheard_of(id);
        }
        match &mut slot.state {
            State::Waiting { wait_for: WaitFor::Reply, more, .. } => {
                let Some(mut reply) = reply.take() else { return Verdict::Duplicate };
                if let Some(more) = more.take()
                    && let More::Part(part) = *more
                {
                    join(&mut reply, part);
                }
                let waker = slot.complete(Completion::Reply(Box::new(reply)));
                drop(slots);
                wake(waker);
                Verdict::Delivered
            }
            State::Waiting { wait_for: WaitFor::Replies, more, .. } => match more.as_deref() {
                Some(More::Replies(replies)) => {
                    let replies = Arc::clone(replies);
                    drop(slots);
                    replies.push(reply)
                }
                _ => Verdict::Late,
            },
            // The call waits for the acknowledgement alone; nobody asked for a reply.
            State::Waiting { wait_for: WaitFor::Acknowledgement, .. } => Verdict::Late,
            State::Done { .. } | State::Free { ended: Ended::Answered } => Verdict::Duplicate,
            State::Free { .. } => Verdict::Late,
        }
    }

    /// Hands in the message of a reply whose end is still to come. A second one
    /// ends the wait: a call has one reply.
    pub fn keep_part(&self, id: CorrelationId, part: &mut Option<Received>) -> Verdict {
        let mut slots = self.lock();
        let kept = match slots.live(id) {
            Some(Slot { state: State::Waiting { wait_for: WaitFor::Reply, more, .. }, .. }) => more,
            // Told apart as any reply is; none of these takes it.
            _ => {
                drop(slots);
                return self.resolve(id, part);
            }
        };
        let Some(part) = part.take() else { return Verdict::Duplicate };
        let Some(More::Part(Received { offset: first, .. })) = kept.as_deref() else {
            *kept = Some(Box::new(More::Part(part)));
            return Verdict::Kept;
        };
        let first = *first;
        let completion = Completion::SecondMessage { first, second: Box::new(part) };
        let waker = slots.live(id).and_then(|slot| slot.complete(completion));
        drop(slots);
        wake(waker);
        Verdict::Delivered
    }

    /// Marks a call's request as being sent. `false`: the call has ended, and
    /// its request must not be sent any more.
    pub fn begin_send(&self, id: CorrelationId) -> bool {
        self.progress(id, Progress::Sending)
    }

    /// Notes what is known of a call's request. `false`: the call has ended.
    pub fn progress(&self, id: CorrelationId, now: Progress) -> bool {
        match self.lock().live(id) {
            Some(Slot { state: State::Waiting { progress, .. } | State::Done { progress, .. }, .. }) => {
                *progress = now;
                true
            }
            _ => false,
        }
    }

    /// Notes that Kafka has acknowledged a call's request; ends the wait of a
    /// call that waits for no more.
    pub fn appended(&self, id: CorrelationId, at: Coordinates) {
        let mut slots = self.lock();
        let Some(slot) = slots.live(id) else { return };
        let waker = match &mut slot.state {
            State::Waiting { wait_for, progress, .. } => {
                *progress = Progress::Appended(at);
                match wait_for {
                    WaitFor::Reply | WaitFor::Replies => None,
                    WaitFor::Acknowledgement => slot.complete(Completion::Acknowledged(at)),
                }
            }
            State::Done { progress, .. } => {
                *progress = Progress::Appended(at);
                None
            }
            State::Free { .. } => None,
        };
        drop(slots);
        wake(waker);
    }

    /// Ends a call whose request will never be in the log.
    pub fn fail(&self, id: CorrelationId, failure: SendFailure) {
        let mut slots = self.lock();
        let Some(slot) = slots.live(id) else { return };
        if let State::Waiting { progress, more, .. } = &mut slot.state {
            *progress = Progress::NotSent("it never will be".into());
            if let Some(More::Replies(replies)) = more.as_deref() {
                let replies = Arc::clone(replies);
                drop(slots);
                return replies.fail(failure);
            }
            let waker = slot.complete(Completion::Failed(failure));
            drop(slots);
            wake(waker);
        }
    }

    /// What is known of a call's request by now; `None` when it has ended.
    pub fn progress_of(&self, id: CorrelationId) -> Option<Progress> {
        match self.lock().live(id) {
            Some(Slot { state: State::Waiting { progress, .. } | State::Done { progress, .. }, .. }) => {
                Some(progress.clone())
            }
            _ => None,
        }
    }

    /// Whether `id` leads to a call that still waits, and of whose replies none
    /// has come: its request may be sent again, if it may at all.
    pub fn is_waiting(&self, id: CorrelationId) -> bool {
        match self.lock().live(id) {
            Some(Slot { state: State::Waiting { more: None, .. }, .. }) => true,
            Some(Slot { state: State::Waiting { more: Some(more), .. }, .. }) => match &**more {
                More::Part(_) => true,
                More::Replies(replies) => !replies.have_begun(),
            },
            _ => false,
        }
    }

    fn unheard_of(&self, id: CorrelationId) -> Verdict {
        if id.instance() == self.instance { Verdict::Late } else { Verdict::Foreign }
    }

    /// A poisoned lock holds a slab that is still whole: no code between lock
    /// and unlock leaves it half changed.
    fn lock(&self) -> MutexGuard<'_, Slots> {
        self.slots.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Slots {
    fn take(
        &mut self,
        wait_for: WaitFor,
        about: About,
        more: Option<Box<More>>,
    ) -> Result<CorrelationId, Full> {
        let may_grow = self.all.len() < self.slots_max as usize;
        let reusable =
            if self.free.len() > ENDED_REMEMBERED || !may_grow { self.free.pop_front() } else { None };
        let index = match reusable {
            Some(index) => index,
            None if may_grow => u32::try_from(self.all.len()).unwrap_or(u32::MAX),
            None => return Err(Full { slots_max: self.slots_max }),
        };
        let id = self.minter.mint(index);
        let state = State::Waiting { wait_for, progress: Progress::Queued, waker: None, more };
        let slot = Slot { id, about, state };
        match self.all.get_mut(index as usize) {
            Some(place) => *place = slot,
            None => self.all.push(slot),
        }
        Ok(id)
    }

    /// The slot of a call that has not ended.
    fn live(&mut self, id: CorrelationId) -> Option<&mut Slot> {
        self.all
            .get_mut(id.slot() as usize)
            .filter(|slot| slot.id == id && !matches!(slot.state, State::Free { .. }))
    }
}

impl Slot {
    fn complete(&mut self, completion: Completion) -> Option<Waker> {
        let State::Waiting { progress, waker, .. } = &mut self.state else { return None };
        let waker = waker.take();
        let progress = std::mem::replace(progress, Progress::Queued);
        self.state = State::Done { completion: Some(completion), progress };
        waker
    }
}

/// Puts the message in front of the end of its reply, which has the status.
fn join(end: &mut Received, part: Received) {
    end.value = end.value.take().or(part.value);
    for (name, value) in part.headers {
        if end.header(&name).is_none() {
            end.headers.push((name, value));
        }
    }
}

fn wake(waker: Option<Waker>) {
    if let Some(waker) = waker {
        waker.wake();
    }
}

/// The place of one call; dropping it frees the place.
#[derive(Debug)]
pub struct Ticket {
    pending: Arc<Pending>,
    id: CorrelationId,
    ended: Ended,
}

impl Ticket {
    /// The call's correlation id.
    pub const fn id(&self) -> CorrelationId {
        self.id
    }

    /// Waits until the call is over. Without end: the caller sets the
    /// deadline. A completion is handed out once.
    pub async fn wait(&mut self) -> Completion {
        let completion = poll_fn(|context| match self.pending.lock().live(self.id) {
            Some(Slot { state: State::Waiting { waker, .. }, .. }) => {
                match waker {
                    Some(known) if known.will_wake(context.waker()) => {}
                    _ => *waker = Some(context.waker().clone()),
                }
                Poll::Pending
            }
            Some(Slot { state: State::Done { completion, .. }, .. }) => match completion.take() {
                Some(completion) => Poll::Ready(completion),
                None => Poll::Pending,
            },
            // Only dropping the ticket frees its slot.
            Some(Slot { state: State::Free { .. }, .. }) | None => Poll::Pending,
        })
        .await;
        if !matches!(completion, Completion::Failed(_)) {
            self.ended = Ended::Answered;
        }
        completion
    }

    /// What is known of the request by now.
    pub fn progress(&self) -> Progress {
        self.pending.progress_of(self.id).unwrap_or(Progress::Queued)
    }

    /// The call, which had several replies, needs no more of them.
    pub fn mark_complete(&mut self) {
        self.ended = Ended::Complete;
    }

    /// The call's deadline has passed; whenever it ends now, it has timed out.
    pub fn mark_timed_out(&mut self) {
        self.ended = Ended::TimedOut;
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        let mut slots = self.pending.lock();
        let freed = match slots.live(self.id) {
            Some(slot) => Some(std::mem::replace(&mut slot.state, State::Free { ended: self.ended })),
            None => None,
        };
        if freed.is_some() {
            slots.free.push_back(self.id.slot());
        }
        drop(slots);
        // A reply that was never taken is large; it is dropped outside the lock.
        drop(freed);
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use proptest::prelude::*;

    use super::*;

    fn pending(slots_max: u32) -> Arc<Pending> {
        Pending::new(9, Minter::new(0, 9, [1; 32]), slots_max)
    }

    fn about() -> About {
        let now = Instant::now();
        About { route: 0, partition: 0, began: now, deadline: now }
    }

    fn reply(offset: i64) -> Option<Received> {
        Some(Received { offset, partition: 0, timestamp_ms: 0, key: None, value: None, headers: Vec::new() })
    }

    #[tokio::test]
    async fn a_reply_ends_the_wait_and_a_second_one_is_a_duplicate() {
        let pending = pending(8);
        let mut ticket = pending.register(WaitFor::Reply, about()).unwrap();
        let id = ticket.id();
        assert_eq!(pending.resolve(id, &mut reply(1)), Verdict::Delivered);
        assert_eq!(pending.resolve(id, &mut reply(2)), Verdict::Duplicate);
        assert!(matches!(ticket.wait().await, Completion::Reply(r) if r.offset == 1));
        drop(ticket);
        assert_eq!(pending.resolve(id, &mut reply(3)), Verdict::Duplicate);
        assert_eq!(pending.in_flight(), 0);
    }

    #[tokio::test]
    async fn what_comes_after_the_end_is_late() {
        let pending = pending(8);
        let mut ticket = pending.register(WaitFor::Reply, about()).unwrap();
        let timed_out = ticket.id();
        ticket.mark_timed_out();
        drop(ticket);
        let given_up = pending.register(WaitFor::Reply, about()).unwrap().id();
        assert_eq!(pending.resolve(timed_out, &mut reply(0)), Verdict::Late);
        assert_eq!(pending.resolve(given_up, &mut reply(0)), Verdict::Late);
        assert!(!pending.begin_send(timed_out));

        let foreign = Minter::new(0, 10, [2; 32]).mint(0);
        assert_eq!(pending.resolve(foreign, &mut reply(0)), Verdict::Foreign);
    }

    #[tokio::test]
    async fn a_one_way_call_ends_with_the_acknowledgement() {
        let pending = pending(8);
        let mut ticket = pending.register(WaitFor::Acknowledgement, about()).unwrap();
        let at = Coordinates { partition: 2, offset: Some(7) };
        pending.appended(ticket.id(), at);
        assert!(matches!(ticket.wait().await, Completion::Acknowledged(a) if a == at));
    }

    #[tokio::test]
    async fn the_waiting_task_is_woken() {
        let pending = pending(8);
        let mut ticket = pending.register(WaitFor::Reply, about()).unwrap();
        let id = ticket.id();
        let waiting = tokio::spawn(async move { ticket.wait().await });
        tokio::task::yield_now().await;
        pending.fail(id, SendFailure::TooLarge);
        let ended = tokio::time::timeout(Duration::from_secs(5), waiting).await.unwrap().unwrap();
        assert!(matches!(ended, Completion::Failed(SendFailure::TooLarge)));
    }

    #[test]
    fn the_bound_holds_and_places_come_back() {
        let pending = pending(2);
        let first = pending.register(WaitFor::Reply, about()).unwrap();
        let _second = pending.register(WaitFor::Reply, about()).unwrap();
        assert_eq!(pending.register(WaitFor::Reply, about()).unwrap_err(), Full { slots_max: 2 });
        drop(first);
        assert!(pending.register(WaitFor::Reply, about()).is_ok());
    }

    #[tokio::test]
    async fn a_reply_in_parts_is_one_once_its_end_has_come() {
        let pending = pending(8);
        let with = |offset: i64, value: Option<&'static [u8]>, header: &'static str| {
            let headers = vec![(header.into(), bytes::Bytes::from(offset.to_string()))];
            let value = value.map(bytes::Bytes::from_static);
            Some(Received { offset, partition: 0, timestamp_ms: 0, key: None, value, headers })
        };
        let mut ticket = pending.register(WaitFor::Reply, about()).unwrap();
        assert_eq!(pending.keep_part(ticket.id(), &mut with(1, Some(b"m"), "meta")), Verdict::Kept);
        assert!(pending.is_waiting(ticket.id()));
        assert_eq!(pending.resolve(ticket.id(), &mut with(2, None, "status")), Verdict::Delivered);
        let Completion::Reply(whole) = ticket.wait().await else { panic!("no reply") };
        assert_eq!((whole.offset, whole.value.as_deref()), (2, Some(&b"m"[..])));
        assert_eq!(whole.header("status").map(|v| &v[..]), Some(&b"2"[..]));
        assert_eq!(whole.header("meta").map(|v| &v[..]), Some(&b"1"[..]));
        assert_eq!(pending.keep_part(ticket.id(), &mut with(3, Some(b"m"), "meta")), Verdict::Duplicate);

        let mut ticket = pending.register(WaitFor::Reply, about()).unwrap();
        assert_eq!(pending.keep_part(ticket.id(), &mut with(4, Some(b"m"), "meta")), Verdict::Kept);
        assert_eq!(pending.keep_part(ticket.id(), &mut with(5, Some(b"m"), "meta")), Verdict::Delivered);
        let completion = ticket.wait().await;
        assert!(matches!(completion, Completion::SecondMessage { first: 4, second } if second.offset == 5));

        let id = pending.register(WaitFor::Reply, about()).unwrap().id();
        let mut late = with(6, Some(b"m"), "meta");
        assert_eq!(pending.keep_part(id, &mut late), Verdict::Late);
        assert!(late.is_some());
    }

    #[derive(Debug, Clone)]
    enum Step {
        Register,
        Resolve(usize),
        Drop(usize),
    }

    proptest! {
        /// Against a model that is a plain map: a reply reaches the call with
        /// its id, once, and nothing else.
        #[test]
        fn no_reply_reaches_a_call_that_is_not_its_own(
            steps in proptest::collection::vec(
                prop_oneof![Just(Step::Register), (0usize..40).prop_map(Step::Resolve), (0usize..40).prop_map(Step::Drop)],
                0..200,
            )
        ) {
            let pending = pending(16);
            let mut tickets: Vec<(CorrelationId, Option<Ticket>, bool)> = Vec::new();
            for step in steps {
                match step {
                    Step::Register => match pending.register(WaitFor::Reply, about()) {
                        Ok(ticket) => tickets.push((ticket.id(), Some(ticket), false)),
                        Err(_) => prop_assert_eq!(tickets.iter().filter(|t| t.1.is_some()).count(), 16),
                    },
                    Step::Resolve(n) if n < tickets.len() => {
                        let (id, ticket, answered) = &mut tickets[n];
                        let verdict = pending.resolve(*id, &mut reply(n as i64));
                        prop_assert_eq!(verdict == Verdict::Delivered, ticket.is_some() && !*answered);
                        *answered |= verdict == Verdict::Delivered;
                    }
                    Step::Drop(n) if n < tickets.len() => tickets[n].1 = None,
                    Step::Resolve(_) | Step::Drop(_) => {}
                }
                prop_assert_eq!(pending.in_flight(), tickets.iter().filter(|t| t.1.is_some()).count());
            }
            for (n, (_, ticket, answered)) in tickets.iter_mut().enumerate() {
                let Some(ticket) = ticket else { continue };
                let mut context = std::task::Context::from_waker(Waker::noop());
                let polled = std::pin::pin!(ticket.wait()).poll(&mut context);
                match polled {
                    Poll::Ready(Completion::Reply(reply)) => prop_assert!(*answered && reply.offset == n as i64),
                    Poll::Ready(other) => prop_assert!(false, "{other:?}"),
                    Poll::Pending => prop_assert!(!*answered),
                }
            }
        }
    }
}
