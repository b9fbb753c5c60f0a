//! Calls that have several replies: each as it comes, and all of them in one
//! message.
//!
//! A message with a repeated field is, on the wire, its elements one behind the
//! other, each with a tag and its length in front. So replies become an answer
//! without any of them being decoded.

use std::sync::Arc;

use bytes::{Buf as _, Bytes, BytesMut};
use tokio::time::{Instant, timeout_at};

use super::Flight;
use crate::exchange::circuit::Ending;
use crate::exchange::failure::{Failure, Tally, Trace, Why};
use crate::exchange::{Answer, Exchange};
use crate::limits;
use crate::message::{Reply, Series, WorkerStatus};
use crate::metrics::MethodLabels;
use crate::pending::{Bound, Bounds, Closed, Next, Replies};
use crate::route::{Delivery, Route};
use crate::terms::DeadLetterOn;
use crate::transport::{HeaderName, Received};

/// Protobuf's wire type of what has a length in front.
const LENGTH_DELIMITED: u32 = 2;

type Headers = Vec<(HeaderName, Bytes)>;

/// What a call with several replies has besides.
pub(in crate::exchange) struct Collecting {
    replies: Arc<Replies>,
    pub(super) tally: Tally,
    /// Headers of the record that ended the replies and was none.
    end: Headers,
    answer: Assembled,
}

/// One step of the replies to a call.
pub(in crate::exchange) enum Step {
    /// One more message.
    Message(Bytes, Headers),
    /// All are there; the headers of a record that said so and no more.
    Complete(Headers, Trace),
    /// One that is an error.
    Error(WorkerStatus, Headers, Trace),
    /// There will be no more, and not because they are all there.
    Failed(Failure),
    /// The limit has passed.
    OutOfTime,
}

impl Collecting {
    pub(super) fn new(exchange: &Exchange, route: &Route) -> Self {
        let plan = route.replies.as_ref();
        let count = plan.and_then(|plan| plan.count);
        let until_last = plan.is_some_and(|plan| plan.until_last);
        let skip_errors = plan.is_some_and(|plan| plan.skip_errors);
        let held_max = plan.map_or(limits::REPLIES_PER_CALL_MAX, |plan| plan.held_max);
        let series = Series::new(route.dialect.clone(), count, until_last, skip_errors);
        let bounds = Bounds {
            replies_max: usize::try_from(held_max).unwrap_or(usize::MAX),
            // The largest message has room, with its headers.
            bytes_max: limits::REPLY_BYTES_PER_CALL_MAX.max(exchange.message_bytes_max().saturating_mul(2)),
        };
        let room = Box::new(exchange.instance().budget.no_bytes());
        Self {
            replies: Arc::new(Replies::new(series, bounds, room)),
            tally: Tally { expected: count, ..Tally::default() },
            end: Vec::new(),
            answer: Assembled::default(),
        }
    }

    /// Where the replies come.
    pub(in crate::exchange) fn replies(&self) -> Arc<Replies> {
        Arc::clone(&self.replies)
    }
}

impl Flight {
    /// Waits for all replies, at most until `limit`, and makes one answer.
    pub(super) async fn collect(&mut self, limit: Instant) -> Option<Result<Answer, Failure>> {
        let field = match self.route.replies.as_ref().map(|plan| &plan.delivery) {
            Some(Delivery::Field { number, .. }) => *number,
            _ => 0,
        };
        loop {
            match self.step(limit).await {
                Step::Message(message, headers) => {
                    if let Err(why) = self.assemble(field, &message, headers) {
                        return Some(Err(self.stop_short(why)));
                    }
                }
                Step::Complete(end, trace) => return Some(Ok(self.assembled(end, trace))),
                Step::Error(status, headers, trace) => {
                    return Some(Ok(Answer { reply: Reply { result: Err(status), headers }, trace }));
                }
                Step::Failed(failure) => return Some(Err(failure)),
                Step::OutOfTime => {
                    let trace = self.partial()?;
                    return Some(Ok(self.assembled(Vec::new(), trace)));
                }
            }
        }
    }

    /// The next message, or what there is instead, at most until `limit`.
    pub(in crate::exchange) async fn step(&mut self, limit: Instant) -> Step {
        let Some(replies) = self.collecting.as_ref().map(|collecting| collecting.replies()) else {
            return Step::OutOfTime;
        };
        loop {
            let Ok(next) = timeout_at(limit, replies.next()).await else { return Step::OutOfTime };
            let record = match next {
                Next::Reply(record) => record,
                Next::End(record) => {
                    self.hear_from_worker(&record);
                    self.keep_end(record);
                    continue;
                }
                Next::Closed(Closed::Complete) => return self.complete(),
                Next::Closed(closed) => return Step::Failed(self.cut(closed)),
            };
            self.hear_from_worker(&record);
            if let Some(step) = self.take(record, limit).await {
                return step;
            }
        }
    }

    /// Ends when no more will come and the replies are not complete, whatever
    /// still waits.
    pub(in crate::exchange) async fn cut_short(&self) {
        match &self.collecting {
            Some(collecting) => collecting.replies.cut().await,
            None => std::future::pending().await,
        }
    }

    /// What has come is the answer, if the route says so: the trace of the call.
    pub(in crate::exchange) fn partial(&mut self) -> Option<Trace> {
        let plan = self.route.replies.as_ref()?;
        let (wanted, has_an_end) = (plan.partial_on_timeout, plan.until_last || plan.count.is_some());
        let collecting = self.collecting.as_mut().filter(|collecting| wanted && collecting.tally.came > 0)?;
        // Where the deadline is the only end there is, it cuts nothing short.
        collecting.tally.partial = has_an_end;
        Some(self.finish())
    }

    /// The caller does not read what has come.
    pub(in crate::exchange) fn not_read(&mut self) -> Failure {
        let trace = self.finish();
        let came = trace.replies.as_ref().map_or(0, |tally| tally.came);
        self.call_off();
        Failure::new(Why::NotRead { came }, trace)
    }

    /// `None`: an error that the route leaves out.
    async fn take(&mut self, record: Received, limit: Instant) -> Option<Step> {
        let skip_errors = self.route.replies.as_ref().is_some_and(|plan| plan.skip_errors);
        if let Some(collecting) = &mut self.collecting {
            collecting.tally.came += 1;
        }
        let trace = self.trace();
        match self.read_reply(record, trace, limit).await {
            Ok(Answer { reply: Reply { result: Ok(message), headers }, .. }) => {
                Some(Step::Message(message, headers))
            }
            Ok(_) if skip_errors => {
                if let Some(collecting) = &mut self.collecting {
                    collecting.tally.skipped += 1;
                }
                None
            }
            Ok(Answer { reply: Reply { result: Err(status), headers }, .. }) => {
                Some(Step::Error(status, headers, self.finish()))
            }
            Err(failure) => {
                self.finish();
                self.call_off();
                Some(Step::Failed(failure))
            }
        }
    }

    /// A worker is alive, whatever it says; and what it says to a call that was
    /// given up is kept beside the dead letter.
    fn hear_from_worker(&mut self, record: &Received) {
        self.note_reply(record);
        self.settle(Ending::Answered);
        if self.landed {
            let partition = self.exchange.reply_partition();
            self.exchange.scribe().late_reply(self.id(), partition, record.clone());
        }
    }

    fn keep_end(&mut self, record: Received) {
        // It has no message, which is an error but for those who return nothing.
        let read = Reply::decode(record, &self.route.dialect, true, usize::MAX);
        if let (Ok(reply), Some(collecting)) = (read, &mut self.collecting) {
            collecting.end = reply.headers;
        }
    }

    fn complete(&mut self) -> Step {
        let end = self.collecting.as_mut().map(|collecting| std::mem::take(&mut collecting.end));
        let mut trace = self.finish();
        // One that has said its last word has the request.
        trace.outcome = super::Outcome::Sent;
        Step::Complete(end.unwrap_or_default(), trace)
    }

    fn cut(&mut self, closed: Closed) -> Failure {
        let budget = &self.exchange.instance().budget;
        let why = match closed {
            Closed::Overflow(Bound::Replies(limit)) => {
                Why::TooManyReplies { what: "replies_max (replies held for one call)", limit: limit as u64 }
            }
            Closed::Overflow(Bound::Bytes(limit)) => {
                let what = "REPLY_BYTES_PER_CALL_MAX (bytes of replies held for one call)";
                Why::TooManyReplies { what, limit: limit as u64 }
            }
            Closed::Overflow(Bound::Room) => {
                let what = "limits.bytes_held_max (bytes held for calls in flight)";
                Why::TooManyReplies { what, limit: budget.bytes_max() }
            }
            Closed::Missing { expected } => Why::ReplyLost { number: expected },
            Closed::Failed(failure) => {
                self.settle(Ending::Neither);
                let why = self.explain(failure);
                let trace = self.finish();
                self.dead_letter(DeadLetterOn::Rejected, &why, &trace);
                return Failure::new(why, trace);
            }
            // No cut, and never handed here.
            Closed::Complete => Why::TimedOut,
        };
        self.stop_short(why)
    }

    /// Ends a call whose worker may have more to say.
    fn stop_short(&mut self, why: Why) -> Failure {
        self.settle(Ending::Answered);
        let mut trace = self.finish();
        trace.outcome = super::Outcome::Sent;
        self.call_off();
        Failure::new(why, trace)
    }

    /// The call is over for its caller; what comes from now on is late.
    fn finish(&mut self) -> Trace {
        self.count_replies();
        self.landed = true;
        self.ticket.mark_complete();
        self.trace()
    }

    /// Once, when the call is over for its caller.
    pub(super) fn count_replies(&self) {
        if let Some(collecting) = self.collecting.as_ref().filter(|_| !self.landed) {
            let labels = MethodLabels { method: Arc::clone(&self.route.path) };
            let counter = self.exchange.metrics().collected_replies.get_or_create_owned(&labels);
            counter.inc_by(collecting.tally.came.into());
        }
    }

    fn assemble(&mut self, field: u32, message: &Bytes, headers: Headers) -> Result<(), Why> {
        let max = self.exchange.message_bytes_max();
        let held_max = self.route.replies.as_ref().map_or(u32::MAX, |plan| plan.held_max);
        let Some(collecting) = &mut self.collecting else { return Ok(()) };
        if collecting.tally.came > held_max {
            let what = "replies_max (replies held for one call)";
            return Err(Why::TooManyReplies { what, limit: held_max.into() });
        }
        if !collecting.answer.add(field, message, max) {
            let what = "grpc.message_bytes_max (bytes of one message)";
            return Err(Why::TooManyReplies { what, limit: max as u64 });
        }
        collecting.answer.headers.extend(headers);
        Ok(())
    }

    fn assembled(&mut self, end: Headers, trace: Trace) -> Answer {
        let answer = self.collecting.as_mut().map(|collecting| std::mem::take(&mut collecting.answer));
        let Assembled { bytes, mut headers } = answer.unwrap_or_default();
        headers.extend(end);
        Answer { reply: Reply { result: Ok(bytes.freeze()), headers }, trace }
    }
}

/// A message that is made of its elements.
#[derive(Debug, Default)]
struct Assembled {
    bytes: BytesMut,
    /// Of all replies, in their order.
    headers: Headers,
}

impl Assembled {
    /// Puts an element behind the others. `false`: there is no room for it in a
    /// message of at most `bytes_max`.
    fn add(&mut self, field: u32, element: &Bytes, bytes_max: usize) -> bool {
        let mut front = [0; 16];
        let left = {
            let mut free = &mut front[..];
            prost::encoding::encode_varint(u64::from(field << 3 | LENGTH_DELIMITED), &mut free);
            prost::encoding::encode_varint(element.len() as u64, &mut free);
            free.len()
        };
        let front = &front[..front.len() - left];
        if self.bytes.len() + front.len() + element.remaining() > bytes_max {
            return false;
        }
        self.bytes.extend_from_slice(front);
        self.bytes.extend_from_slice(element);
        true
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use prost::Message as _;

    use super::*;

    #[derive(Clone, PartialEq, prost::Message)]
    struct Element {
        #[prost(string, tag = "1")]
        name: String,
        #[prost(bytes = "vec", tag = "2")]
        bytes: Vec<u8>,
    }

    #[derive(Clone, PartialEq, prost::Message)]
    struct Low {
        #[prost(message, repeated, tag = "1")]
        all: Vec<Element>,
    }

    #[derive(Clone, PartialEq, prost::Message)]
    struct High {
        #[prost(message, repeated, tag = "536870911")]
        all: Vec<Element>,
    }

    proptest! {
        /// What a protobuf library reads from it are the elements, in order; and
        /// it is, byte for byte, what that library would have written.
        #[test]
        fn a_message_is_its_elements(
            elements in proptest::collection::vec(
                ("[a-z]{0,9}", proptest::collection::vec(any::<u8>(), 0..300)), 0..20,
            )
        ) {
            let all: Vec<Element> =
                elements.into_iter().map(|(name, bytes)| Element { name, bytes }).collect();
            let assemble = |field| {
                let mut assembled = Assembled::default();
                for element in &all {
                    assert!(assembled.add(field, &element.encode_to_vec().into(), usize::MAX));
                }
                assembled.bytes.freeze()
            };
            let low = assemble(1);
            prop_assert_eq!(&low, &Low { all: all.clone() }.encode_to_vec());
            prop_assert_eq!(Low::decode(low).unwrap().all, all.clone());
            prop_assert_eq!(High::decode(assemble(536_870_911)).unwrap().all, all);
        }

        #[test]
        fn it_never_grows_beyond_its_bound(
            sizes in proptest::collection::vec(0usize..200, 0..20), max in 0usize..1_000,
        ) {
            let mut assembled = Assembled::default();
            for size in sizes {
                let before = assembled.bytes.len();
                let added = assembled.add(1, &vec![0; size].into(), max);
                prop_assert!(assembled.bytes.len() <= max);
                let front = if size < 128 { 2 } else { 3 };
                prop_assert_eq!(added, before + front + size <= max);
                prop_assert_eq!(assembled.bytes.len() > before, added);
            }
        }
    }
}
