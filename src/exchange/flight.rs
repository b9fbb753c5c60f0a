//! A call whose request is on its way.

mod collect;

use std::borrow::Cow;
use std::sync::Arc;

use bytes::Bytes;
use tokio::time::{Instant, timeout_at};

use super::budget::BytesHeld;
use super::circuit::{Ending, Pass};
use super::failure::{Failure, Outcome, Trace, Why};
use super::journey::Journey;
use super::load::Waiting;
use super::{Answer, Exchange, Request};
use crate::correlation::CorrelationId;
use crate::deadline::Deadline;
use crate::message::format::{Format, confluent};
use crate::message::{self, DecodeError, Reply};
use crate::pending::{About, Completion, Progress, SendFailure, Ticket};
use crate::route::Route;
use crate::terms::DeadLetterOn;
use crate::transport::{Received, Record};

pub(super) use collect::{Collecting, Step};

/// A method that returns this has nothing to say, so a null value says it.
const EMPTY: &str = "google.protobuf.Empty";

/// From the moment that a call's request is in its lane until it is over. One
/// that is dropped before has lost its caller.
pub(super) struct Flight {
    exchange: Arc<Exchange>,
    route: Arc<Route>,
    ticket: Ticket,
    deadline: Deadline,
    partition: i32,
    key: Option<Bytes>,
    journey: Option<Arc<Journey>>,
    /// The request again, where the route may want it as a dead letter.
    request: Option<(Record, Arc<BytesHeld>)>,
    pass: Option<Pass>,
    /// Where the replies come, for a call that has several; boxed, since all
    /// would carry it.
    collecting: Option<Box<Collecting>>,
    /// Counts on its partition for as long as it is in the air.
    _waiting: Option<Waiting>,
    landed: bool,
}

impl Flight {
    /// Chooses the partition, registers the call and hands the request to its
    /// lane.
    pub(super) async fn depart(
        exchange: &Arc<Exchange>,
        route: &Arc<Route>,
        mut request: Request,
        held: Arc<BytesHeld>,
    ) -> Result<Self, Failure> {
        let unsent = |why| Failure::new(why, Trace::nothing_sent(Arc::clone(&route.request_topic)));
        let deadline = request.deadline;
        let key = find_key(route, &request.message).map_err(unsent)?;
        let partition = exchange.choose_partition(route, &request, key.as_ref()).await.map_err(unsent)?;
        request.message =
            route.format.encode(&route.input, request.message).map_err(Why::Unwritable).map_err(unsent)?;
        let pass = exchange.pass_circuit(&route.request_topic).map_err(unsent)?;

        // Registered before anything is sent: a fast worker beats a slow registration.
        let collecting = route.replies.as_ref().map(|_| Box::new(Collecting::new(exchange, route)));
        let about = About {
            route: u32::try_from(route.index).unwrap_or(u32::MAX),
            partition,
            began: deadline.began(),
            deadline: deadline.at(),
        };
        let ticket = exchange.register(route, about, collecting.as_deref()).map_err(|why| {
            exchange.settle_circuit(&route.request_topic, pass, Ending::Neither);
            unsent(why)
        })?;
        let journey = held.journey().cloned();
        if let Some(journey) = &journey {
            journey.registered(ticket.id());
        }
        let parcel = exchange.pack(route, request, key.clone(), &ticket, Arc::clone(&held));
        let keep = !route.dead_letter_on.is_empty();
        let mut flight = Self {
            exchange: Arc::clone(exchange),
            route: Arc::clone(route),
            ticket,
            deadline,
            partition,
            // Copied: a part of the message would keep all of it alive.
            key: key.filter(|_| route.cancel_record).as_deref().map(Bytes::copy_from_slice),
            journey,
            request: keep.then(|| (parcel.record.clone(), held)),
            pass: Some(pass),
            collecting,
            _waiting: None,
            landed: false,
        };
        match exchange.dispatch(route, partition, parcel) {
            Ok(waiting) => {
                flight._waiting = Some(waiting);
                Ok(flight)
            }
            Err(why) => Err(unsent(why)),
        }
    }

    /// The call's correlation id.
    pub(super) fn id(&self) -> CorrelationId {
        self.ticket.id()
    }

    /// When its caller gives up.
    pub(super) fn deadline(&self) -> Instant {
        self.deadline.at()
    }

    /// Waits for the end, at most until the deadline.
    pub(super) async fn land(mut self) -> Result<Answer, Failure> {
        match self.arrive_by(self.deadline.at()).await {
            Some(result) => result,
            None => Err(self.give_up()),
        }
    }

    /// Waits for the end, at most until `limit`.
    pub(super) async fn arrive_by(&mut self, limit: Instant) -> Option<Result<Answer, Failure>> {
        if self.collecting.is_some() {
            // Boxed: few calls have several replies, and all would have to carry it.
            return Box::pin(self.collect(limit)).await;
        }
        match timeout_at(limit, self.ticket.wait()).await {
            Ok(completion) => Some(self.conclude(completion, limit).await),
            Err(_) => None,
        }
    }

    async fn conclude(&mut self, completion: Completion, limit: Instant) -> Result<Answer, Failure> {
        let was_given_up = std::mem::replace(&mut self.landed, true);
        let trace = self.trace();
        match completion {
            Completion::Reply(record) => {
                self.note_reply(&record);
                self.settle(Ending::Answered);
                // A fast worker beats the acknowledgement; its reply says as much.
                let trace = Trace { outcome: Outcome::Sent, ..trace };
                if was_given_up {
                    self.exchange.scribe().late_reply(
                        self.id(),
                        self.exchange.reply_partition(),
                        (*record).clone(),
                    );
                }
                self.read_reply(*record, trace, limit).await
            }
            Completion::SecondMessage { first, second } => {
                self.note_reply(&second);
                self.settle(Ending::Answered);
                let trace = Trace { outcome: Outcome::Sent, ..trace };
                Err(self.bad_reply(second.offset, DecodeError::SecondMessage { first }, trace))
            }
            Completion::Acknowledged(at) => {
                self.settle(Ending::Answered);
                let output = self.route.output.full_name();
                let message = message::acknowledgement(output, &trace.topic, at.partition, at.offset);
                Ok(Answer { reply: Reply { result: Ok(message), headers: Vec::new() }, trace })
            }
            Completion::Failed(failure) => {
                self.settle(Ending::Neither);
                let why = self.explain(failure);
                self.dead_letter(DeadLetterOn::Rejected, &why, &trace);
                Err(Failure::new(why, trace))
            }
        }
    }

    fn note_reply(&self, record: &Received) {
        if let Some(journey) = &self.journey {
            journey.answered(record);
        }
    }

    async fn read_reply(
        &mut self,
        record: Received,
        trace: Trace,
        limit: Instant,
    ) -> Result<Answer, Failure> {
        let offset = record.offset;
        let named = match (&self.route.format, &record.value) {
            (Format::ConfluentProtobuf(_), Some(value)) => Some(value.clone()),
            _ => None,
        };
        let read = match self.decode(record) {
            // Boxed: few calls have to ask, and all would have to carry it.
            Ok(Answered { reply, has_message: true }) if let Some(value) = named => {
                Box::pin(self.check_schema(&value, limit)).await.map(|()| reply)
            }
            Ok(Answered { reply, .. }) => Ok(reply),
            Err(source) => Err(source),
        };
        match read {
            Ok(reply) => Ok(Answer { reply, trace }),
            Err(source) => Err(self.bad_reply(offset, source, trace)),
        }
    }

    /// The record as a reply, its message in the format of gRPC.
    fn decode(&self, record: Received) -> Result<Answered, DecodeError> {
        let replied = self.route.reply_type();
        let null_is_empty = replied.full_name() == EMPTY;
        let max = self.exchange.message_bytes_max();
        let (format, has_value) = (&self.route.format, record.value.is_some());
        if matches!(format, Format::Protobuf) {
            let mut reply = Reply::decode(record, &self.route.dialect, null_is_empty, max)?;
            if let Ok(value) = &mut reply.result {
                *value = format.decode(replied, std::mem::take(value))?;
            }
            return Ok(Answered { reply, has_message: false });
        }
        let mut reply = Reply::decode(record, &self.route.dialect, null_is_empty, usize::MAX)?;
        let has_message = has_value && reply.result.is_ok();
        // Without a value there is nothing to convert: an empty message was meant.
        if has_message && let Ok(value) = &mut reply.result {
            let message = format.decode(replied, std::mem::take(value))?;
            if message.len() > max {
                return Err(DecodeError::TooLarge { found: message.len(), max });
            }
            *value = message;
        }
        Ok(Answered { reply, has_message })
    }

    async fn check_schema(&self, value: &Bytes, limit: Instant) -> Result<(), DecodeError> {
        let (schema, _) = confluent::split(value)?;
        let Some(schemas) = self.exchange.schemas() else { return Ok(()) };
        schemas.check(&schema, self.route.reply_type().full_name(), limit).await
    }

    fn bad_reply(&mut self, offset: i64, source: DecodeError, trace: Trace) -> Failure {
        let topic = Arc::clone(self.exchange.instance().reply_topic());
        let why = Why::BadReply { topic, offset, source };
        self.dead_letter(DeadLetterOn::UndecodableReply, &why, &trace);
        Failure::new(why, trace)
    }

    fn explain(&self, failure: SendFailure) -> Why {
        match failure {
            SendFailure::NoSuchTopic => Why::NoSuchTopic(Arc::clone(&self.route.request_topic)),
            SendFailure::TooLarge => Why::TooLarge,
            SendFailure::Refused(cause) => Why::Refused(cause),
        }
    }

    /// The deadline has passed. The call may still be waited for, with
    /// [`Flight::arrive_by`]; its caller is gone either way.
    pub(super) fn give_up(&mut self) -> Failure {
        self.count_replies();
        self.landed = true;
        self.ticket.mark_timed_out();
        let trace = self.trace();
        let why = match &trace.replies {
            Some(tally) if tally.came > 0 => Why::Unfinished { came: tally.came },
            _ => why_not_in_time(self.ticket.progress()),
        };
        if trace.outcome == Outcome::NotSent {
            self.settle(Ending::Neither);
        } else {
            self.settle(Ending::TimedOut);
            self.dead_letter(DeadLetterOn::Timeout, &why, &trace);
        }
        Failure::new(why, trace)
    }

    fn dead_letter(&mut self, class: DeadLetterOn, why: &Why, trace: &Trace) {
        if !self.route.dead_letter_on.contains(&class) {
            return;
        }
        // Once: a reply that is both late and of no use has its letter already.
        if let Some((request, held)) = self.request.take() {
            let scribe = self.exchange.scribe();
            scribe.dead_letter(&self.route, class, &why.to_string(), trace, self.partition, (request, held));
        }
    }

    /// Tells the worker, where the route wants it told, that nobody waits.
    fn call_off(&mut self) {
        let sent = !matches!(self.ticket.progress(), Progress::Queued | Progress::NotSent(_));
        if self.route.cancel_record && sent {
            self.exchange.scribe().cancel(&self.route, self.id(), self.partition, self.key.take());
        }
    }

    fn settle(&mut self, ending: Ending) {
        if let Some(pass) = self.pass.take() {
            self.exchange.settle_circuit(&self.route.request_topic, pass, ending);
        }
    }

    fn trace(&self) -> Trace {
        let progress = self.ticket.progress();
        let at = match &progress {
            Progress::Appended(at) => Some(*at),
            _ => None,
        };
        let topic = Arc::clone(&self.route.request_topic);
        let replies = self.collecting.as_ref().map(|collecting| Box::new(collecting.tally));
        // A fast worker beats the acknowledgement; its reply says as much.
        let outcome = match &replies {
            Some(tally) if tally.came > 0 => Outcome::Sent,
            _ => Outcome::from(&progress),
        };
        Trace { id: Some(self.id()), outcome, topic, at, repeat: None, replies }
    }
}

impl Drop for Flight {
    /// The caller has gone away: the place is freed by the ticket, and a
    /// worker that wants to know is told.
    fn drop(&mut self) {
        if self.landed {
            return;
        }
        // A client whose own deadline passes resets the stream at about the
        // moment in which ours does. That is a time-out, not a change of mind.
        if self.deadline.is_about_to_pass() {
            self.give_up();
            return;
        }
        self.settle(Ending::Neither);
        self.call_off();
    }
}

/// A reply, and whether its message was in the record's value.
struct Answered {
    reply: Reply,
    has_message: bool,
}

/// What a call is told whose deadline passes when its request is so far.
pub(super) fn why_not_in_time(progress: Progress) -> Why {
    match progress {
        Progress::NotSent(cause) => Why::NotSent(cause),
        Progress::Queued => Why::NotSent("the requests before it were not acknowledged in time".into()),
        _ => Why::TimedOut,
    }
}

/// The key, where the route has one. Walking to the key checks the message as
/// a whole; without a key it is checked all the same.
fn find_key(route: &Route, message: &Bytes) -> Result<Option<Bytes>, Why> {
    let Some(path) = &route.key else {
        crate::route::validate(message).map_err(Why::BadMessage)?;
        return Ok(None);
    };
    let found = path.extract(message).map_err(Why::BadMessage)?;
    Ok(found.map(|key| match key {
        Cow::Borrowed(part) => message.slice_ref(part),
        Cow::Owned(text) => Bytes::from(text),
    }))
}
