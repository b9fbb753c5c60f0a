//! Callers: in a hurry, with hot keys, with messages too large, gone before
//! the answer.

use std::collections::BTreeMap;
use std::future::poll_fn;
use std::pin::pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use antiphon::deadline::Deadline;
use antiphon::exchange::{Exchange, Request};
use antiphon::message::IDEMPOTENCY_KEY;
use antiphon::route::{Idempotency, Route};
use antiphon::transport::HeaderName;
use bytes::Bytes;
use fastrand::Rng;
use prost::Message as _;
use tokio::sync::{Semaphore, oneshot};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, timeout_at};

use crate::cluster::{FORBIDDEN_KEY, SimCluster};
use crate::faults::Plan;
use crate::history::{CallEntry, End, Passage};
use crate::messages;

/// A caller that goes away with so little left has timed out.
pub(crate) const AS_GOOD_AS_TIMED_OUT: Duration = Duration::from_millis(50);
/// A call that has not ended so long after its deadline never will.
const HOPELESS: Duration = Duration::from_secs(60);

/// What all callers share.
pub(crate) struct Callers {
    pub(crate) cluster: SimCluster,
    pub(crate) routes: BTreeMap<String, Arc<Route>>,
    pub(crate) shards: Vec<Arc<Exchange>>,
    /// What stands for a key: the first call with it, and what it has sent.
    pub(crate) keyed: Mutex<BTreeMap<Again, Sent>>,
    /// One call at a time may wait for an unknown topic: tokio wakes several in
    /// an order that no seed decides.
    pub(crate) lookup: Semaphore,
}

/// A method, the key of a call that may be repeated, and whether a caller has
/// taken it by mistake for another message.
type Again = (&'static str, u8, bool);

/// A call's message, to be sent once more.
#[derive(Clone)]
pub(crate) struct Sent {
    call: usize,
    key: String,
    message: Bytes,
}

/// One call to make.
pub(crate) struct Plea {
    pub(crate) method: &'static str,
    pub(crate) shard: usize,
    pub(crate) key: String,
    pub(crate) partition: i32,
    pub(crate) padding: usize,
    pub(crate) timeout: Duration,
    pub(crate) cancelled_after: Option<Duration>,
    /// Number of its idempotency key, and whether that stands for another message.
    pub(crate) again: Option<(u8, bool)>,
    pub(crate) probe: bool,
}

impl Plea {
    fn random(rng: &mut Rng, shards: usize, plan: &Plan) -> Self {
        const METHODS: [&str; 22] = [
            "/sim.Keyed/Pay",
            "/sim.Keyed/Pay",
            "/sim.Keyed/Pay",
            "/sim.Keyed/Pay",
            "/sim.Keyed/Put",
            "/sim.Keyed/Put",
            "/sim.Keyed/Look",
            "/sim.Keyed/Erase",
            "/sim.Keyed/Tell",
            "/sim.Keyed/Tell",
            "/sim.Keyed/Shout",
            "/sim.Keyed/Shout",
            "/sim.Keyed/Owe",
            "/sim.Keyed/Owe",
            "/sim.Keyed/Stop",
            "/sim.Keyed/Pinned",
            "/sim.Spread/Pay",
            "/sim.Spread/Pay",
            "/sim.Spread/Owe",
            "/sim.Spread/Few",
            "/sim.Spread/Put",
            "/sim.Spread/Pinned",
        ];
        let key = match rng.u8(..100) {
            0 => String::from_utf8_lossy(FORBIDDEN_KEY).into_owned(),
            1..=50 => "hot".to_owned(),
            _ => format!("key-{}", rng.u8(..8)),
        };
        let timeout_ms = match rng.u8(..10) {
            0 => rng.u64(..30),
            1..=6 => rng.u64(200..4_000),
            _ => rng.u64(4_000..15_000),
        };
        let timeout = Duration::from_millis(timeout_ms);
        let cancelled_after =
            (rng.u8(..100) < plan.noise.cancels).then(|| Duration::from_millis(rng.u64(..2_000)));
        // A caller that goes away as its deadline passes counts as one that has
        // timed out if its request was sent, and that only the gateway knows.
        let cancelled_after = cancelled_after
            .filter(|after| plan.circuit.timeouts_max == 0 || *after + AS_GOOD_AS_TIMED_OUT < timeout);
        let again = (rng.u8(..100) < plan.noise.keys).then(|| (rng.u8(..6), rng.u8(..8) == 0));
        let method = METHODS[rng.usize(..METHODS.len())];
        Self {
            // What comes after a call's deadline matters most where both meet.
            method: if again.is_some() && rng.u8(..3) == 0 { "/sim.Keyed/Owe" } else { method },
            shard: rng.usize(..shards),
            key,
            partition: rng.i32(..4),
            padding: if rng.u8(..20) == 0 { rng.usize(..25_000) } else { rng.usize(..200) },
            timeout,
            cancelled_after,
            again,
            probe: false,
        }
    }
}

impl Callers {
    /// One caller's calls, each sent when the one before it has entered its
    /// lane; ends when the last has ended.
    pub(crate) async fn one(self: Arc<Self>, mut rng: Rng, calls: usize, pause_ms_max: u64) {
        let plan = self.cluster.state().plan().clone();
        let mut under_way = JoinSet::new();
        for _ in 0..calls {
            // Bursts, so that batches form.
            if rng.u8(..3) == 0 {
                sleep(Duration::from_millis(rng.u64(1..=pause_ms_max))).await;
            }
            let plea = Plea::random(&mut rng, self.shards.len(), &plan);
            let (entered, has_entered) = oneshot::channel();
            under_way.spawn(Arc::clone(&self).call(plea, entered));
            // A call that never enters drops the sender when it ends.
            let _ = has_entered.await;
        }
        while let Some(ended) = under_way.join_next().await {
            if let Err(panicked) = ended {
                self.cluster.state().history.violated(format!("a call has panicked: {panicked}"));
            }
        }
    }

    /// One call, to whatever end.
    pub(crate) async fn call(self: Arc<Self>, plea: Plea, entered: oneshot::Sender<()>) {
        let Some(route) = self.routes.get(plea.method) else {
            return self.cluster.state().history.violated(format!("{} has no route", plea.method));
        };
        let exchange = &self.shards[plea.shard];
        let directory = &exchange.instance().directory;
        let _alone = match directory.partitions(&route.request_topic) {
            Some(_) => None,
            None => self.lookup.acquire().await.ok(),
        };

        let deadline = Deadline::after(plea.timeout);
        let (number, message) = self.note(&plea, route);
        let key = self.cluster.state().history.calls[number].idempotency_key.clone();
        let key = key.map(|key| (HeaderName::Borrowed(IDEMPOTENCY_KEY), Bytes::from(key)));
        let request = Request { message, metadata: key.into_iter().collect(), deadline };
        let patience = plea.cancelled_after.unwrap_or(plea.timeout + HOPELESS);
        let until = Instant::now() + patience;
        let answer = {
            let call = exchange.call(route, request);
            timeout_at(until, self.watched(number, plea.shard, call, entered)).await
        };

        let end = match answer {
            Ok(Ok(answer)) => End::Answered(answer),
            Ok(Err(failure)) => End::Failed(failure),
            Err(_) => End::Cancelled,
        };
        let mut state = self.cluster.state();
        if matches!(end, End::Cancelled) && plea.cancelled_after.is_none() {
            state.history.violated(format!("call {number} has not ended {HOPELESS:?} after its deadline"));
        }
        let now = state.now();
        state.history.calls[number].ended = Some((now, end));
        // Those with keys have no circuit, and wake in an order that no seed decides.
        if plea.again.is_none() {
            state.history.passages.push(Passage { call: number, at: now, ends: true });
        }
    }

    fn note(&self, plea: &Plea, route: &Arc<Route>) -> (usize, Bytes) {
        let mut state = self.cluster.state();
        let number = state.history.calls.len();
        let fresh = || {
            let request = messages::Request {
                call: number as u64,
                key: plea.key.clone(),
                partition: plea.partition,
                padding: vec![b'x'; plea.padding].into(),
            };
            Sent { call: number, key: plea.key.clone(), message: Bytes::from(request.encode_to_vec()) }
        };
        let sent = match plea.again {
            None => fresh(),
            Some((key, other)) => {
                let mut keyed = self.keyed.lock().unwrap_or_else(PoisonError::into_inner);
                keyed.entry((plea.method, key, other)).or_insert_with(fresh).clone()
            }
        };
        let issued = state.now();
        state.history.calls.push(CallEntry {
            route: Arc::clone(route),
            shard: plea.shard,
            key: sent.key,
            message: sent.message.clone(),
            origin: sent.call,
            idempotency_key: plea.again.map(|(key, _)| format!("again-{key}")),
            issued,
            deadline: issued + plea.timeout,
            entered: None,
            ended: None,
            probe: plea.probe,
        });
        (number, sent.message)
    }

    /// Notes when the call enters its lane: registering and queueing happen in
    /// one poll, after which one more call holds a place. A call with an
    /// idempotency key does so elsewhere, if at all; nobody waits for that.
    async fn watched<T>(
        &self,
        number: usize,
        shard: usize,
        call: impl Future<Output = T>,
        entered: oneshot::Sender<()>,
    ) -> T {
        let pending = &self.shards[shard].instance().shards()[shard].pending;
        let keyed = self.cluster.state().history.calls[number].idempotency_key.is_some();
        let (mut call, mut entered) = (pin!(call), Some(entered).filter(|_| !keyed));
        poll_fn(|context| {
            let before = pending.in_flight();
            let polled = call.as_mut().poll(context);
            if entered.is_some() && pending.in_flight() > before {
                let mut state = self.cluster.state();
                let place = state.history.entered;
                state.history.entered += 1;
                state.history.calls[number].entered = Some(place);
                let at = state.now();
                state.history.passages.push(Passage { call: number, at, ends: false });
                entered.take().map(|entered| entered.send(()));
            }
            polled
        })
        .await
    }
}

/// Whether the method's requests may be sent twice.
pub(crate) fn repeatable(route: &Route) -> bool {
    route.idempotency != Idempotency::Unknown
}
