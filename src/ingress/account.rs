//! What is told of a call when it is over: to the metrics, to the access log, and
//! to whoever traces it.
//!
//! An [`Account`] is opened with the call and closes itself: however a call ends,
//! and be it that its caller drops it, it is counted once, and has a line or not.

use std::net::SocketAddr;
use std::sync::{Arc, OnceLock};
use std::time::{SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue};
use tonic::{Code, Status};

use super::spans::{Told, Traced};
use super::untaken::Untaken;
use crate::access::{Claims, Names};
use crate::access_log::{AccessLog, Line};
use crate::deadline::Deadline;
use crate::exchange::{Instance, Journey, Outcome, Trace};
use crate::message::{IDEMPOTENCY_KEY, TRACEPARENT, TRACESTATE};
use crate::metrics::{CallLabels, Histogram, micros};
use crate::pending::Coordinates;
use crate::route::{Route, RouteTable};
use crate::terms::STATUS_NAMES;
use crate::traces::{Context, Tracer};
use crate::transport::HeaderName as RecordHeaderName;

/// The method of calls of what is not served, as OpenTelemetry names it.
const OTHER: &str = "_OTHER";
static TRACEPARENT_NAME: HeaderName = HeaderName::from_static(TRACEPARENT);
static TRACESTATE_NAME: HeaderName = HeaderName::from_static(TRACESTATE);
static IDEMPOTENCY_NAME: HeaderName = HeaderName::from_static(IDEMPOTENCY_KEY);

/// Whoever is at the other end of a connection.
#[derive(Debug, Default)]
pub(super) struct Peer {
    /// Where it is.
    pub(super) address: Option<SocketAddr>,
    /// Names in its certificate.
    pub(super) names: Option<Names>,
    /// Replies that it has yet to take.
    pub(super) untaken: Arc<Untaken>,
}

/// Who wants to hear of calls, besides the metrics.
#[derive(Debug, Clone, Default)]
pub struct Ear {
    /// Lines of those that failed, and of a share of the others.
    pub access_log: Option<Arc<AccessLog>>,
    /// Spans of those that are sampled.
    pub tracer: Option<Arc<Tracer>>,
}

/// Where the calls of one shard are accounted for.
pub(super) struct Books {
    instance: Arc<Instance>,
    ear: Ear,
    /// By `Route::index`: where successes are counted, which is looked up once.
    succeeded: Box<[OnceLock<Arc<Histogram>>]>,
    other: Arc<str>,
}

impl Books {
    pub(super) fn new(instance: Arc<Instance>, routes: &RouteTable, ear: Ear) -> Arc<Self> {
        let succeeded = routes.routes().iter().map(|_| OnceLock::new()).collect();
        Arc::new(Self { instance, ear, succeeded, other: OTHER.into() })
    }

    /// Opens the account of a call.
    pub(super) fn open(
        self: &Arc<Self>,
        callee: Callee,
        peer: &Arc<Peer>,
        claims: Option<Arc<Claims>>,
        headers: &HeaderMap,
    ) -> Box<Account> {
        let parent = headers.get(&TRACEPARENT_NAME).and_then(|text| Context::parse(text.as_bytes()));
        let sampled = self.ear.tracer.as_ref().and_then(|tracer| tracer.sample(parent));
        // Boxed: few calls are traced, and all would have to carry it.
        let traced = sampled.map(|sampled| {
            let state = parent.and_then(|_| headers.get(&TRACESTATE_NAME).cloned());
            Box::new(Traced { sampled, state })
        });
        let context = sampled.map(|sampled| sampled.context).or(parent);
        // It goes with the call from hand to hand, and is large.
        Box::new(Account {
            books: Arc::clone(self),
            peer: Arc::clone(peer),
            callee,
            claims,
            context,
            traced,
            key: headers.get(&IDEMPOTENCY_NAME).cloned(),
            deadline: None,
            code: None,
            reason: None,
            journey: None,
            trace: None,
            bytes_in: 0,
            bytes_out: 0,
        })
    }

    fn count(&self, callee: &Callee, code: Code, took_us: u64) {
        let calls = &self.instance.metrics.calls;
        let (method, succeeded) = match callee {
            Callee::Route(route) => (&route.path, self.succeeded.get(route.index)),
            Callee::Other(_) => (&self.other, None),
        };
        let labels = || CallLabels { method: Arc::clone(method), code: code_name(code) };
        match succeeded {
            Some(succeeded) if code == Code::Ok => {
                succeeded.get_or_init(|| calls.own(&labels())).observe(took_us);
            }
            _ => calls.observe(&labels(), took_us),
        }
    }
}

/// What is called.
pub(super) enum Callee {
    /// A method that is served.
    Route(Arc<Route>),
    /// Any other path.
    Other(Box<str>),
}

/// Tells of one call when it is dropped. A caller that goes away drops the call,
/// and this with it, before there is a code.
pub(super) struct Account {
    books: Arc<Books>,
    peer: Arc<Peer>,
    callee: Callee,
    claims: Option<Arc<Claims>>,
    /// Of the trace that it is part of.
    context: Option<Context>,
    traced: Option<Box<Traced>>,
    key: Option<HeaderValue>,
    deadline: Option<Deadline>,
    code: Option<Code>,
    /// Why it failed, where that is ours to say.
    reason: Option<Box<str>>,
    journey: Option<Arc<Journey>>,
    trace: Option<Trace>,
    bytes_in: u64,
    bytes_out: u64,
}

impl Account {
    /// Who calls.
    pub(super) fn peer(&self) -> &Arc<Peer> {
        &self.peer
    }

    /// Its deadline, from which its time is counted, too.
    pub(super) fn begin(&mut self, deadline: Deadline) {
        self.deadline = Some(deadline);
    }

    /// Puts the span that sends the request into what its record carries. Where
    /// the call is not traced, that is what its caller has sent.
    pub(super) fn inject(&self, metadata: &mut Vec<(RecordHeaderName, Bytes)>) {
        let Some(traced) = &self.traced else { return };
        let context = Context { span_id: traced.sampled.producer, ..traced.sampled.context };
        let text = Bytes::from(context.to_string());
        match metadata.iter_mut().find(|(name, _)| name == TRACEPARENT) {
            Some((_, value)) => *value = text,
            None => metadata.push((RecordHeaderName::Borrowed(TRACEPARENT), text)),
        }
    }

    /// It has been let in: where it is noted how far it comes.
    pub(super) fn follow(&mut self, journey: Option<&Arc<Journey>>) {
        if let Some(journey) = journey.filter(|_| self.traced.is_some()) {
            journey.trace();
        }
        self.journey = journey.cloned();
    }

    /// Its message has been read.
    pub(super) fn received(&mut self, bytes: usize) {
        self.bytes_in += bytes as u64;
    }

    /// A message goes to its caller.
    pub(super) fn returns(&mut self, bytes: usize) {
        self.bytes_out += bytes as u64;
    }

    /// What its caller is told of its request.
    pub(super) fn told(&mut self, trace: Trace) {
        self.trace = Some(trace);
    }

    /// It has ended well.
    pub(super) fn ends_well(&mut self) {
        self.code = Some(Code::Ok);
    }

    /// It ends with this status, for which a worker is to blame, or we are.
    pub(super) fn ends(&mut self, status: &Status, by_worker: bool) {
        self.code = Some(status.code());
        if !by_worker && status.code() != Code::Ok {
            self.reason = Some(status.message().into());
        }
    }

    /// The same for good calls on all instances that see the trace.
    fn seed(&self) -> u64 {
        match (self.context, self.id()) {
            (Some(context), _) => context.trace_id as u64,
            (None, Some(id)) => id.random_bits(),
            (None, None) => fastrand::u64(..),
        }
    }

    fn id(&self) -> Option<crate::correlation::CorrelationId> {
        let told = self.trace.as_ref().and_then(|trace| trace.id);
        told.or_else(|| self.journey.as_ref()?.id())
    }

    fn outcome(&self) -> Outcome {
        let told = self.trace.as_ref().map(|trace| trace.outcome);
        let noted = || self.journey.as_ref().map(|journey| journey.outcome());
        // One that was not let in has sent nothing.
        told.or_else(noted).unwrap_or(Outcome::NotSent)
    }

    #[cold]
    fn export(&self, tracer: &Tracer, traced: &Traced, code: Code, took_us: u64) {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let (path, request_topic) = match &self.callee {
            Callee::Route(route) => (&*route.path, Some(&*route.request_topic)),
            Callee::Other(_) => (OTHER, None),
        };
        let told = Told {
            traced,
            path,
            request_topic,
            reply_topic: self.books.instance.reply_topic(),
            peer: self.peer.address,
            code,
            reason: self.reason.as_deref().unwrap_or_default(),
            outcome: self.outcome(),
            id: self.id().map(|id| id.to_string()),
            journey: self.journey.as_deref(),
            end_ns: u64::try_from(now.as_nanos()).unwrap_or(u64::MAX),
            took_us,
        };
        tracer.export(told.spans());
    }

    #[cold]
    fn write(&self, log: &AccessLog, code: Code, took_us: u64) {
        let mut line = log.line();
        line.text("instance", self.books.instance.name());
        line.text(
            "method",
            match &self.callee {
                Callee::Route(route) => &route.path,
                Callee::Other(path) => path,
            },
        );
        line.text("code", code_name(code));
        self.write_what_is_known(&mut line);
        self.write_phases(&mut line, took_us);
        if let Some(address) = self.peer.address {
            line.text("peer", &address.to_string());
        }
        let subject = || self.claims.as_ref()?.get("sub")?.as_str();
        if let Some(caller) = self.peer.names.as_ref().and_then(Names::first).or_else(subject) {
            line.text("caller", caller);
        }
        line.number("bytes_in", self.bytes_in);
        line.number("bytes_out", self.bytes_out);
        if let Some(reason) = &self.reason {
            line.text("reason", reason);
        }
        log.write(line);
    }

    fn write_what_is_known(&self, line: &mut Line) {
        let (trace, journey) = (self.trace.as_ref(), self.journey.as_ref());
        line.text("outcome", self.outcome().as_str());
        if let Some(id) = self.id() {
            line.text("correlation_id", &id.to_string());
        }
        if let Some(key) = &self.key {
            line.bytes("idempotency_key", key.as_bytes());
        }
        if let Some(repeat) = trace.and_then(|trace| trace.repeat) {
            line.text("idempotency", repeat.as_str());
        }
        if let Some(context) = self.context {
            line.text("trace_id", &format!("{:032x}", context.trace_id));
        }
        let at = trace.and_then(|trace| trace.at).or_else(|| journey?.request());
        if let (Callee::Route(route), Some(at)) = (&self.callee, at) {
            write_place(
                line,
                ["request_topic", "request_partition", "request_offset"],
                &route.request_topic,
                at,
            );
        }
        if let Some(at) = journey.and_then(|journey| journey.reply()) {
            let topic = self.books.instance.reply_topic();
            write_place(line, ["reply_topic", "reply_partition", "reply_offset"], topic, at);
        }
        if let Some(tally) = trace.and_then(|trace| trace.replies.as_ref()) {
            line.number("replies", tally.came);
        }
    }

    /// Each from the end of the one before.
    fn write_phases(&self, line: &mut Line, took_us: u64) {
        if let Some(journey) = &self.journey {
            if let Some(sent) = journey.sent_us() {
                line.millis("lane_wait_ms", sent);
                if let Some(acknowledged) = journey.acknowledged_us() {
                    line.millis("acknowledge_ms", acknowledged.saturating_sub(sent));
                }
            }
            if let Some(waited) = journey.reply_wait_us() {
                line.millis("reply_wait_ms", waited);
            }
        }
        line.millis("total_ms", took_us);
    }
}

fn write_place(line: &mut Line, names: [&str; 3], topic: &str, at: Coordinates) {
    line.text(names[0], topic);
    line.number(names[1], at.partition);
    if let Some(offset) = at.offset {
        line.number(names[2], offset);
    }
}

impl Drop for Account {
    fn drop(&mut self) {
        let code = ended_with(self.code, self.deadline);
        // Without a deadline it failed at once: it was not let in, or its
        // grpc-timeout is malformed.
        let took_us = self.deadline.map_or(0, |deadline| micros(deadline.began().elapsed()));
        self.books.count(&self.callee, code, took_us);
        if let (Some(traced), Some(tracer)) = (&self.traced, &self.books.ear.tracer) {
            self.export(tracer, traced, code, took_us);
        }
        if let Some(log) = &self.books.ear.access_log
            && (code != Code::Ok || log.wants_good(self.seed()))
        {
            self.write(log, code, took_us);
        }
    }
}

pub(super) fn code_name(code: Code) -> &'static str {
    STATUS_NAMES[code as usize]
}

/// How a call has ended; one without a code was dropped, by its caller or at
/// its deadline.
fn ended_with(code: Option<Code>, deadline: Option<Deadline>) -> Code {
    match (code, deadline) {
        (Some(code), _) => code,
        (None, Some(deadline)) if deadline.is_about_to_pass() => Code::DeadlineExceeded,
        (None, _) => Code::Cancelled,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_code_has_its_name() {
        for (number, name) in STATUS_NAMES.iter().enumerate() {
            assert_eq!(code_name(Code::from(number as i32)), *name);
        }
        assert_eq!(code_name(Code::Unauthenticated), "UNAUTHENTICATED");
    }
}
