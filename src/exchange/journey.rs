//! What is noted of a call on its way, for whoever tells of it afterwards: the
//! access log, and a trace.
//!
//! The lane and the flight write, the edge reads when the call is over, however
//! that came: a caller that goes away drops all else that knew of the call.

use std::sync::atomic::{AtomicBool, AtomicI32, AtomicI64, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};

use bytes::Bytes;
use tokio::time::Instant;

use super::failure::Outcome;
use crate::correlation::CorrelationId;
use crate::message::TRACEPARENT;
use crate::metrics::micros;
use crate::pending::Coordinates;
use crate::transport::Received;

/// The way of one call, as far as it has come.
#[derive(Debug)]
pub struct Journey {
    began: Instant,
    id: OnceLock<CorrelationId>,
    sent: Moment,
    acknowledged: Moment,
    answered: Moment,
    request: Place,
    reply: Place,
    /// Whether the worker's trace context is wanted.
    traced: AtomicBool,
    reply_context: OnceLock<Bytes>,
}

/// When something happened, in microseconds since the call began; kept plus 1,
/// so that 0 is never.
#[derive(Debug, Default)]
struct Moment(AtomicU64);

impl Moment {
    fn note(&self, us: u64) {
        self.0.store(us.saturating_add(1), Ordering::Relaxed);
    }

    fn get(&self) -> Option<u64> {
        self.0.load(Ordering::Relaxed).checked_sub(1)
    }
}

/// Where a record is; -1 is Kafka's own word for what is not known.
#[derive(Debug)]
struct Place {
    partition: AtomicI32,
    offset: AtomicI64,
}

impl Place {
    const fn unknown() -> Self {
        Self { partition: AtomicI32::new(-1), offset: AtomicI64::new(-1) }
    }

    fn note(&self, at: Coordinates) {
        self.offset.store(at.offset.unwrap_or(-1), Ordering::Relaxed);
        self.partition.store(at.partition, Ordering::Relaxed);
    }

    fn get(&self) -> Option<Coordinates> {
        let partition = Some(self.partition.load(Ordering::Relaxed)).filter(|partition| *partition >= 0)?;
        let offset = Some(self.offset.load(Ordering::Relaxed)).filter(|offset| *offset >= 0);
        Some(Coordinates { partition, offset })
    }
}

impl Journey {
    /// Of a call that began then.
    pub fn new(began: Instant) -> Arc<Self> {
        Arc::new(Self {
            began,
            id: OnceLock::new(),
            sent: Moment::default(),
            acknowledged: Moment::default(),
            answered: Moment::default(),
            request: Place::unknown(),
            reply: Place::unknown(),
            traced: AtomicBool::new(false),
            reply_context: OnceLock::new(),
        })
    }

    /// From now on the worker's trace context is kept, too.
    pub fn trace(&self) {
        self.traced.store(true, Ordering::Relaxed);
    }

    pub(super) fn registered(&self, id: CorrelationId) {
        // A call is registered once.
        let _ = self.id.set(id);
    }

    /// The request is sent now: how long the call has waited for that, unless it
    /// was sent before. In microseconds.
    pub(super) fn sent(&self, now: Instant) -> Option<u64> {
        let waited = self.since_beginning(now);
        let first = self.sent.get().is_none();
        if first {
            self.sent.note(waited);
        }
        first.then_some(waited)
    }

    /// Kafka has acknowledged the request.
    pub(super) fn acknowledged(&self, now: Instant, at: Coordinates) {
        self.request.note(at);
        self.acknowledged.note(self.since_beginning(now));
    }

    /// A reply has come; of several the last counts.
    pub(super) fn answered(&self, reply: &Received) {
        self.reply.note(Coordinates { partition: reply.partition, offset: Some(reply.offset) });
        self.answered.note(self.since_beginning(Instant::now()));
        if self.traced.load(Ordering::Relaxed)
            && let Some(context) = reply.header(TRACEPARENT)
        {
            // The first of several will do.
            let _ = self.reply_context.set(context.clone());
        }
    }

    fn since_beginning(&self, now: Instant) -> u64 {
        micros(now.saturating_duration_since(self.began))
    }

    /// Names the call in its records.
    pub fn id(&self) -> Option<CorrelationId> {
        self.id.get().copied()
    }

    /// When the request was first sent, in microseconds since the call began.
    pub fn sent_us(&self) -> Option<u64> {
        self.sent.get()
    }

    /// When it was acknowledged, likewise.
    pub fn acknowledged_us(&self) -> Option<u64> {
        self.acknowledged.get()
    }

    /// When the reply came, likewise.
    pub fn answered_us(&self) -> Option<u64> {
        self.answered.get()
    }

    /// From sending the request to its reply.
    pub fn reply_wait_us(&self) -> Option<u64> {
        Some(self.answered_us()?.saturating_sub(self.sent_us()?))
    }

    /// Where the request is, once that is acknowledged.
    pub fn request(&self) -> Option<Coordinates> {
        self.request.get()
    }

    /// Where the reply is, of several the last.
    pub fn reply(&self) -> Option<Coordinates> {
        self.reply.get()
    }

    /// The worker's trace context, if it was wanted and there is one.
    pub fn reply_context(&self) -> Option<&Bytes> {
        self.reply_context.get()
    }

    /// What can be said of the request when nobody else is left to ask.
    pub fn outcome(&self) -> Outcome {
        match (self.sent_us(), self.acknowledged_us().or(self.answered_us())) {
            (_, Some(_)) => Outcome::Sent,
            (Some(_), None) => Outcome::Unknown,
            (None, None) => Outcome::NotSent,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn reply(headers: Vec<(crate::transport::HeaderName, Bytes)>) -> Received {
        Received { offset: 9, partition: 1, timestamp_ms: 0, key: None, value: None, headers }
    }

    #[tokio::test(start_paused = true)]
    async fn it_tells_how_far_a_call_has_come() {
        let began = Instant::now();
        let journey = Journey::new(began);
        assert_eq!((journey.outcome(), journey.request(), journey.reply()), (Outcome::NotSent, None, None));
        assert_eq!(journey.sent(began + Duration::from_micros(5)), Some(5));
        assert_eq!(journey.sent(began + Duration::from_micros(9)), None, "the first counts");
        assert_eq!((journey.outcome(), journey.sent_us()), (Outcome::Unknown, Some(5)));
        let at = Coordinates { partition: 3, offset: None };
        journey.acknowledged(began + Duration::from_micros(11), at);
        assert_eq!((journey.outcome(), journey.request()), (Outcome::Sent, Some(at)));
        tokio::time::advance(Duration::from_micros(25)).await;
        journey.answered(&reply(vec![(TRACEPARENT.into(), "00-1-2-01".into())]));
        assert_eq!(journey.reply(), Some(Coordinates { partition: 1, offset: Some(9) }));
        assert_eq!((journey.reply_wait_us(), journey.reply_context()), (Some(20), None));
        journey.trace();
        journey.answered(&reply(vec![(TRACEPARENT.into(), "00-1-2-01".into())]));
        assert_eq!(journey.reply_context().map(|context| &context[..]), Some(&b"00-1-2-01"[..]));
    }

    #[tokio::test(start_paused = true)]
    async fn a_reply_says_that_the_request_was_sent() {
        let journey = Journey::new(Instant::now());
        journey.sent(Instant::now());
        journey.answered(&reply(Vec::new()));
        assert_eq!((journey.outcome(), journey.acknowledged_us()), (Outcome::Sent, None));
    }
}
