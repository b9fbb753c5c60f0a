//! Calls that carry an `idempotency-key`: one execution for as many calls as
//! the caller cares to make.
//!
//! The first call with a key sends the request and is carried on by a task of
//! its own, so that it does not end with its caller. Further calls with the
//! same key and message join it, or get the reply that was kept. A call that
//! timed out is not forgotten: its late reply is waited for until the window
//! closes, and a repeated call gets it; the request is not sent again. Only
//! when it certainly was not sent, or a worker answered that another attempt
//! may help (UNAVAILABLE, ABORTED, RESOURCE_EXHAUSTED), does a repeated call
//! send it anew.
//!
//! A key belongs to a method. What is remembered is bounded in number, bytes
//! and age, and lost with the process; the key travels in the record, so that
//! a worker can tell repeats across restarts and instances.

use std::collections::hash_map::RandomState;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::hash::{BuildHasher as _, Hash as _, Hasher as _};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::watch;
use tokio::time::{Instant, timeout_at};

use super::budget::BytesHeld;
use super::config::IdempotencyConfig;
use super::failure::{Failure, Outcome, Repeat, Trace, Why};
use super::flight::Flight;
use super::{Answer, Exchange, Request};
use crate::correlation::CorrelationId;
use crate::deadline::Deadline;
use crate::message::{IDEMPOTENCY_KEY, TRACEPARENT, TRACESTATE};
use crate::metrics::IdempotentLabels;
use crate::pending::Coordinates;
use crate::pending::Progress;
use crate::route::Route;
use crate::supervisor::Task;

/// Worker statuses after which the same request may be sent again: ABORTED,
/// RESOURCE_EXHAUSTED and UNAVAILABLE.
const WORTH_ANOTHER_TRY: [u8; 3] = [8, 10, 14];
/// When a caller should come back that found no room for its key.
const RETRY_AFTER: Duration = Duration::from_secs(1);
/// The first call ends by its own deadline; who has the same should hear its
/// verdict, which is the only one that may be `not-sent`.
const VERDICT_GRACE: Duration = Duration::from_millis(20);
/// A kept reply's overhead, in bytes, beside its message and headers.
const KEPT_OVERHEAD: usize = 256;

type Key = (usize, Bytes);
/// When an entry expires, and its number.
type Place = (Instant, u64);

/// Calls by method and key.
#[derive(Debug)]
pub(super) struct KeyStore {
    config: IdempotencyConfig,
    /// Two hashes with random keys make a fingerprint that can't be forged.
    hashers: [RandomState; 2],
    inner: Mutex<Inner>,
}

#[derive(Debug, Default)]
struct Inner {
    entries: HashMap<Key, Arc<Entry>>,
    /// The same entries in the order in which they expire, which is not that
    /// of their first calls: their deadlines differ.
    order: BTreeMap<Place, (Key, Arc<Entry>)>,
    /// Those of them that have ended and are kept.
    ended: BTreeSet<Place>,
    entered: u64,
    kept_bytes: usize,
}

#[derive(Debug)]
struct Entry {
    number: u64,
    fingerprint: [u64; 2],
    expires: Instant,
    stage: watch::Sender<Stage>,
    /// Carries the call on; aborted when the entry is forgotten.
    task: Mutex<Option<Task>>,
}

impl Entry {
    const fn place(&self) -> Place {
        (self.expires, self.number)
    }
}

/// How far the first call is.
#[derive(Debug, Clone)]
enum Stage {
    /// On its way; from when it is registered, its shard and id.
    Running(Option<(usize, CorrelationId)>),
    /// Done. Both kinds end every call that waits.
    Ended(Result<Answer, Failure>),
}

enum Entered {
    First(Arc<Entry>),
    Known(Arc<Entry>),
    OtherMessage,
    Full,
}

impl KeyStore {
    pub(super) fn new(config: IdempotencyConfig) -> Self {
        Self { config, hashers: [RandomState::new(), RandomState::new()], inner: Mutex::default() }
    }

    fn enter(&self, key: Key, request: &Request) -> Entered {
        let fingerprint = self.hashers.each_ref().map(|hasher| fingerprint(hasher, request));
        let mut inner = self.lock();
        inner.forget_expired();
        if let Some(entry) = inner.entries.get(&key) {
            return if entry.fingerprint == fingerprint {
                Entered::Known(Arc::clone(entry))
            } else {
                Entered::OtherMessage
            };
        }
        if inner.entries.len() >= self.config.keys_max && !inner.forget_oldest_ended() {
            return Entered::Full;
        }
        inner.entered += 1;
        let entry = Arc::new(Entry {
            number: inner.entered,
            fingerprint,
            // Never while its own first caller may still wait.
            expires: (Instant::now() + self.config.window).max(request.deadline.at() + RETRY_AFTER),
            stage: watch::Sender::new(Stage::Running(None)),
            task: Mutex::default(),
        });
        inner.entries.insert(key.clone(), Arc::clone(&entry));
        inner.order.insert(entry.place(), (key, Arc::clone(&entry)));
        Entered::First(entry)
    }

    /// Ends the first call: everybody who waits hears of it, and what may be
    /// kept is kept.
    fn end(&self, key: &Key, entry: &Arc<Entry>, result: Result<Answer, Failure>) {
        let kept = is_final(&result).then(|| size_of_kept(&result));
        entry.stage.send_replace(Stage::Ended(result));
        // The task ends by itself; its handle would keep all of it allocated.
        if let Some(task) = entry.task.lock().unwrap_or_else(PoisonError::into_inner).take() {
            task.detach();
        }
        let mut inner = self.lock();
        match kept {
            // It may have been forgotten in the meantime.
            Some(size) if inner.order.contains_key(&entry.place()) => {
                inner.ended.insert(entry.place());
                inner.kept_bytes += size;
                while inner.kept_bytes > self.config.bytes_max && inner.forget_oldest_ended() {}
            }
            Some(_) => {}
            None => inner.forget(key, entry),
        }
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Inner {
    fn forget_expired(&mut self) {
        let now = Instant::now();
        while let Some((_, (key, entry))) = self.order.first_key_value()
            && entry.expires <= now
        {
            let (key, entry) = (key.clone(), Arc::clone(entry));
            self.forget(&key, &entry);
        }
    }

    /// Makes room, but never by forgetting a call that is on its way.
    fn forget_oldest_ended(&mut self) -> bool {
        let Some(oldest) = self.ended.first().and_then(|place| self.order.get(place)) else { return false };
        let (key, entry) = oldest.clone();
        self.forget(&key, &entry);
        true
    }

    fn forget(&mut self, key: &Key, entry: &Arc<Entry>) {
        if self.order.remove(&entry.place()).is_none() {
            return;
        }
        self.entries.remove(key);
        if self.ended.remove(&entry.place())
            && let Stage::Ended(result) = &*entry.stage.borrow()
        {
            self.kept_bytes = self.kept_bytes.saturating_sub(size_of_kept(result));
        }
    }
}

/// Of the message and of the metadata that the worker sees: an answer that
/// depends on the caller's tenant must not reach another tenant, who happens
/// to use the same key. Traces differ with every attempt and do not count.
fn fingerprint(hasher: &RandomState, request: &Request) -> u64 {
    let mut state = hasher.build_hasher();
    request.message.hash(&mut state);
    for (name, value) in &request.metadata {
        if ![TRACEPARENT, TRACESTATE, IDEMPOTENCY_KEY].contains(&&**name) {
            (name, value).hash(&mut state);
        }
    }
    state.finish()
}

fn is_final(result: &Result<Answer, Failure>) -> bool {
    match result {
        Ok(answer) => match &answer.reply.result {
            Ok(_) => true,
            Err(status) => !WORTH_ANOTHER_TRY.contains(&status.code),
        },
        Err(failure) => failure.trace.outcome != Outcome::NotSent,
    }
}

fn size_of_kept(result: &Result<Answer, Failure>) -> usize {
    let bytes = match result {
        Ok(answer) => {
            let headers: usize = answer.reply.headers.iter().map(|(n, v)| n.len() + v.len()).sum();
            headers + answer.reply.result.as_ref().map_or(0, Bytes::len)
        }
        Err(_) => 0,
    };
    KEPT_OVERHEAD + bytes
}

/// One call with a key.
pub(super) async fn call(
    exchange: &Arc<Exchange>,
    route: &Arc<Route>,
    key: Bytes,
    request: Request,
    held: Arc<BytesHeld>,
) -> Result<Answer, Failure> {
    let key = (route.index, key);
    let deadline = request.deadline;
    let keys = &exchange.instance().keys;
    let unsent = |why| Failure::new(why, Trace::nothing_sent(Arc::clone(&route.request_topic)));
    let (entry, kind, repeat) = match keys.enter(key.clone(), &request) {
        Entered::First(entry) => {
            let carried =
                carry(Arc::clone(exchange), Arc::clone(route), key, (request, held), Arc::clone(&entry));
            let task = exchange.supervisor().spawn("call with a key", carried);
            *entry.task.lock().unwrap_or_else(PoisonError::into_inner) = Some(task);
            (entry, "first", None)
        }
        Entered::Known(entry) => {
            let ended = matches!(*entry.stage.borrow(), Stage::Ended(_));
            let (kind, repeat) = if ended { ("kept", Repeat::Kept) } else { ("joined", Repeat::Joined) };
            (entry, kind, Some(repeat))
        }
        Entered::OtherMessage => {
            count(exchange, "conflict");
            return Err(unsent(Why::KeyReused));
        }
        Entered::Full => {
            count(exchange, "full");
            let what = "idempotency.keys_max (keys of calls in flight)";
            return Err(unsent(Why::Overloaded {
                what,
                limit: keys.config.keys_max as u64,
                retry_after: RETRY_AFTER,
            }));
        }
    };
    count(exchange, kind);
    let mut result = follow(exchange, route, &entry, deadline).await;
    match &mut result {
        Ok(answer) => answer.trace.repeat = repeat,
        Err(failure) => failure.trace.repeat = repeat,
    }
    result
}

fn count(exchange: &Exchange, kind: &'static str) {
    exchange.metrics().idempotent.get_or_create(&IdempotentLabels { kind }).inc();
}

/// Waits with the first call, each within a deadline of its own.
async fn follow(
    exchange: &Exchange,
    route: &Route,
    entry: &Entry,
    deadline: Deadline,
) -> Result<Answer, Failure> {
    let mut stage = entry.stage.subscribe();
    let ended =
        timeout_at(deadline.at() + VERDICT_GRACE, stage.wait_for(|stage| matches!(stage, Stage::Ended(_))))
            .await;
    if let Ok(Ok(stage)) = ended
        && let Stage::Ended(result) = &*stage
    {
        return result.clone();
    }
    let stage = entry.stage.borrow().clone();
    Err(timed_out(exchange, route, &stage))
}

/// What can be said of a call that another one carries on.
fn timed_out(exchange: &Exchange, route: &Route, stage: &Stage) -> Failure {
    let topic = Arc::clone(&route.request_topic);
    let unknown = || Progress::Unknown("the first call with this key may still send it".into());
    let Stage::Running(Some((shard, id))) = stage else {
        let trace = Trace { outcome: Outcome::Unknown, ..Trace::nothing_sent(topic) };
        return Failure::new(Why::TimedOut, trace);
    };
    let progress = exchange.instance().shards().get(*shard).and_then(|shard| shard.pending.progress_of(*id));
    let progress = match progress {
        Some(Progress::Queued | Progress::NotSent(_)) | None => unknown(),
        Some(known) => known,
    };
    let at: Option<Coordinates> = match &progress {
        Progress::Appended(at) => Some(*at),
        _ => None,
    };
    let trace =
        Trace { id: Some(*id), outcome: Outcome::from(&progress), topic, at, repeat: None, replies: None };
    Failure::new(Why::TimedOut, trace)
}

/// The first call: to its deadline, and then on to the end of the window, in
/// case the reply is only late.
async fn carry(
    exchange: Arc<Exchange>,
    route: Arc<Route>,
    key: Key,
    (request, held): (Request, Arc<BytesHeld>),
    entry: Arc<Entry>,
) {
    let deadline = request.deadline;
    let result = match Flight::depart(&exchange, &route, request, held).await {
        Ok(mut flight) => {
            entry.stage.send_replace(Stage::Running(Some((exchange.shard(), flight.id()))));
            match flight.arrive_by(deadline.at()).await {
                Some(result) => result,
                None => {
                    let failure = flight.give_up();
                    if failure.trace.outcome == Outcome::NotSent {
                        Err(failure)
                    } else {
                        flight.arrive_by(entry.expires).await.unwrap_or(Err(failure))
                    }
                }
            }
        }
        Err(failure) => Err(failure),
    };
    exchange.instance().keys.end(&key, &entry, result);
}
