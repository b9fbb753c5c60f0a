//! One run: a gateway's exchanges on a cluster in memory, from start to
//! readiness, through all trouble, to the calls that must succeed after it.

use std::collections::BTreeMap;
use std::hash::{DefaultHasher, Hash as _, Hasher as _};
use std::path::Path;
use std::sync::{Arc, Mutex, OnceLock};
use std::time::Duration;

use antiphon::correlation::Minter;
use antiphon::exchange::budget::Budget;
use antiphon::exchange::config::{LimitsConfig, ReplyConfig};
use antiphon::exchange::{Exchange, Instance, Parts, Phase, Settings};
use antiphon::pending::Pending;
use antiphon::route::{RouteTable, Sources, compile};
use antiphon::supervisor::Supervisor;
use antiphon::terms::Compression;
use antiphon::transport::Cluster;
use fastrand::Rng;
use futures_util::FutureExt as _;
use tokio::sync::{Semaphore, oneshot};
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};

use crate::callers::{Callers, Plea};
use crate::census::{self, Census};
use crate::cluster::{REPLIES, REQUEST_TOPICS, SimCluster, topics};
use crate::faults::Plan;
use crate::history::History;
use crate::losses;
use crate::workers::Worker;

const REVIEW_INTERVAL: Duration = Duration::from_millis(100);
const METADATA_REFRESH: Duration = Duration::from_secs(10);
const HEARTBEAT_AGE_MAX: Duration = Duration::from_secs(15);
/// Start and calm: nothing is in the way of getting ready.
const READY_WITHIN: Duration = Duration::from_secs(2);
/// After the plan's end: the last batch under way lands, the last pause ends.
const SETTLE: Duration = Duration::from_secs(40);
/// The longest that a produce, a pause or an old view of the topics goes on
/// after the last chance of a fault.
const CALM: Duration = Duration::from_secs(15);
const PROBE_TIMEOUT: Duration = Duration::from_secs(5);
/// Longest run in simulated time.
const RUN_MAX: Duration = Duration::from_secs(600);

/// What a run has shown.
#[derive(Debug)]
pub(crate) struct Report {
    pub(crate) seed: u64,
    pub(crate) violations: Vec<String>,
    pub(crate) calls: usize,
    /// How often what has happened.
    pub(crate) census: Census,
    /// Equal for equal histories.
    pub(crate) digest: u64,
    pub(crate) plan: Plan,
}

/// Runs the simulation of `seed`, on this thread and a clock of its own.
pub(crate) fn run(seed: u64) -> Report {
    // Routes are compiled outside of the run: files have no place in it.
    let routes = routes();
    // Jitter and round robin of the code under test.
    fastrand::seed(seed);
    let mut rng = Rng::with_seed(seed);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build();
    let Ok(runtime) = runtime else { panic!("no runtime could be had") };
    let plan = Plan::new(&mut rng);
    let history = runtime.block_on(async {
        losses::listen();
        let stage = Stage::new(&mut rng, &plan, routes);
        let cluster = stage.cluster.clone();
        if timeout(RUN_MAX, stage.play(rng, plan.clone())).await.is_err() {
            cluster.state().history.violated(format!("the run has not ended within {RUN_MAX:?}"));
        }
        let mut state = cluster.state();
        state.history.losses = losses::heard();
        state.judge();
        std::mem::take(&mut state.history)
    });
    report(seed, plan, &history)
}

fn report(seed: u64, plan: Plan, history: &History) -> Report {
    let mut hasher = DefaultHasher::new();
    let ends = history.calls.iter().map(|call| (call.issued, call.entered, &call.ended));
    format!("{:?} {:?}", ends.collect::<Vec<_>>(), history.appends).hash(&mut hasher);
    let beside = history.beside.iter().map(|b| (b.kind, b.id, &b.topic, b.partition, b.behind));
    format!("{:?} {:?} {:?}", beside.collect::<Vec<_>>(), history.losses, history.passages).hash(&mut hasher);
    Report {
        seed,
        violations: history.violations.clone(),
        calls: history.calls.len(),
        census: census::of(history),
        digest: hasher.finish(),
        plan,
    }
}

fn routes() -> &'static RouteTable {
    static ROUTES: OnceLock<RouteTable> = OnceLock::new();
    ROUTES.get_or_init(|| {
        let proto = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/simulation/simulation.proto");
        match compile(&Sources { protos: vec![proto], ..Sources::default() }) {
            Ok(routes) => routes,
            Err(mistakes) => panic!("{mistakes}"),
        }
    })
}

/// Everything that is there before the first call.
struct Stage {
    cluster: SimCluster,
    instance: Arc<Instance>,
    supervisor: Supervisor,
    shards: usize,
    lane_queue_max: usize,
    routes: &'static RouteTable,
}

impl Stage {
    fn new(rng: &mut Rng, plan: &Plan, routes: &'static RouteTable) -> Self {
        let shards = rng.usize(1..=2);
        let limits = LimitsConfig {
            in_flight_max: if rng.u8(..4) == 0 { rng.u32(5..40) } else { 1_000 },
            bytes_held_max: if rng.u8(..4) == 0 { rng.u64(5_000..60_000) } else { 1 << 30 },
            lane_queue_max: if rng.u8(..4) == 0 { rng.usize(1..10) } else { 1_000 },
        };
        let tag = rng.u16(..);
        let pendings = (0..shards).map(|shard| {
            let seed = std::array::from_fn(|_| rng.u8(..));
            Pending::new(tag, Minter::new(shard as u8, tag, seed), limits.in_flight_max)
        });
        let pendings = pendings.collect();
        let cluster = SimCluster::new(Plan::calm(), rng.fork());
        let budget = Budget::new(&limits, routes);
        let instance = Instance::new(Parts {
            name: "sim".to_owned(),
            reply_topic: REPLIES.into(),
            heartbeat_age_max: HEARTBEAT_AGE_MAX,
            pendings,
            budget,
            circuit: plan.circuit.clone(),
            idempotency: plan.idempotency.clone(),
        });
        let lane_queue_max = limits.lane_queue_max;
        Self { cluster, instance, supervisor: Supervisor::new(), shards, lane_queue_max, routes }
    }

    async fn play(self, mut rng: Rng, plan: Plan) {
        let exchanges = self.open().await;
        let mut background = JoinSet::new();
        self.start_background(&mut background, &mut rng);
        self.await_ready("at the start", READY_WITHIN).await;

        // Calm until here; windows begin now, at whatever time that is.
        let plan = plan_from(plan, self.cluster.now());
        for window in plan.windows.clone() {
            let partitions = topics().find(|(topic, _)| *topic == window.topic);
            let partitions = partitions.map_or(self.shards as i32, |(_, partitions)| partitions);
            background.spawn(self.cluster.clone().afflict(window, partitions));
        }
        self.cluster.follow(plan);

        let routes = self.routes.routes().iter().map(|route| (route.path.to_string(), Arc::clone(route)));
        let routes: BTreeMap<_, _> = routes.collect();
        let cluster = self.cluster.clone();
        let (lookup, keyed) = (Semaphore::new(1), Mutex::default());
        let callers = Arc::new(Callers { cluster, routes, shards: exchanges, lookup, keyed });
        self.run_callers(&callers, &mut rng).await;

        sleep((Plan::HORIZON + SETTLE).saturating_sub(self.cluster.now())).await;
        self.cluster.calm_down();
        for (topic, partitions) in topics() {
            self.cluster.create(topic, partitions);
        }
        sleep(CALM).await;
        self.await_ready("after all trouble", REVIEW_INTERVAL).await;
        self.probe(&callers).await;
        // A worker may be faster than the acknowledgement, and until that comes
        // the lane holds the request.
        sleep(CALM).await;
        self.expect_nothing_left();
    }

    /// As the composition does it, before the shards start.
    async fn open(&self) -> Vec<Arc<Exchange>> {
        let settings = Settings {
            compression: Compression::None,
            message_bytes_max: 1 << 20,
            lane_queue_max: self.lane_queue_max,
            reply: ReplyConfig::default(),
            reply_partition: None,
            keep: Duration::ZERO,
            custom_dialect: None,
            schemas: None,
        };
        let opened = self.instance.directory.refresh(&self.cluster).await;
        let created = self.cluster.create_topic(REPLIES, self.shards as i32, -1).await;
        if let Err(error) = opened.and(created) {
            self.cluster.state().history.violated(format!("a calm cluster has failed: {error}"));
        }
        let start = |shard| {
            let cluster = Arc::new(self.cluster.clone());
            let (instance, settings) = (Arc::clone(&self.instance), settings.clone());
            Arc::new(Exchange::start(shard, instance, cluster, &self.supervisor, settings))
        };
        (0..self.shards).map(start).collect()
    }

    fn start_background(&self, background: &mut JoinSet<()>, rng: &mut Rng) {
        for (topic, partitions) in REQUEST_TOPICS {
            for partition in 0..partitions {
                let foreign = Minter::new(0, rng.u16(..), std::array::from_fn(|_| rng.u8(..)));
                let (cluster, shards, rng) = (self.cluster.clone(), self.shards, rng.fork());
                background.spawn(Worker { cluster, topic, partition, shards, rng, foreign }.run());
            }
        }
        let instance = Arc::clone(&self.instance);
        background.spawn(async move {
            loop {
                instance.review();
                sleep(REVIEW_INTERVAL).await;
            }
        });
        let (instance, cluster) = (Arc::clone(&self.instance), self.cluster.clone());
        background.spawn(async move { instance.directory.keep_fresh(&cluster, METADATA_REFRESH).await });
    }

    async fn run_callers(&self, callers: &Arc<Callers>, rng: &mut Rng) {
        let pause_ms_max = rng.u64(20..800);
        let mut under_way = JoinSet::new();
        for _ in 0..rng.usize(2..9) {
            under_way.spawn(Arc::clone(callers).one(rng.fork(), rng.usize(10..50), pause_ms_max));
        }
        while let Some(ended) = under_way.join_next().await {
            if let Err(panicked) = ended {
                self.cluster.state().history.violated(format!("a caller has panicked: {panicked}"));
            }
        }
    }

    async fn await_ready(&self, when: &str, limit: Duration) {
        let ready = async {
            while self.instance.phase() != Phase::Ready {
                sleep(REVIEW_INTERVAL).await;
            }
        };
        if timeout(limit, ready).await.is_err() {
            self.cluster.state().history.violated(format!("not ready within {limit:?} {when}"));
        }
    }

    /// A fresh call to every partition from every shard: no lane is stuck.
    async fn probe(&self, callers: &Arc<Callers>) {
        for (method, (_, partitions)) in
            ["/sim.Keyed/Pinned", "/sim.Spread/Pinned"].iter().zip(REQUEST_TOPICS)
        {
            for (partition, shard) in (0..partitions).flat_map(|p| (0..self.shards).map(move |s| (p, s))) {
                let plea = Plea {
                    method,
                    shard,
                    key: "probe".to_owned(),
                    partition,
                    padding: 0,
                    timeout: PROBE_TIMEOUT,
                    cancelled_after: None,
                    again: None,
                    probe: true,
                };
                // One by one: some runs allow but few in flight.
                Arc::clone(callers).call(plea, oneshot::channel().0).await;
            }
        }
    }

    fn expect_nothing_left(&self) {
        let (budget, pending) = (&self.instance.budget, self.instance.pending_calls());
        let left = (pending, budget.calls(), budget.bytes(), self.instance.aftermath());
        let mut state = self.cluster.state();
        for kind in census::REPLY_KINDS {
            state.history.reply_kinds.insert(kind, self.instance.metrics.replies_of(kind));
        }
        if left != (0, 0, 0, 0) {
            state.history.violated(format!("left over (places, calls, bytes, records besides): {left:?}"));
        }
        let (told, counted) = (losses::heard().len() as u64, self.instance.metrics.aftermath_lost.get());
        if told != counted {
            state
                .history
                .violated(format!("{told} records were lost, by the log, and {counted} were counted"));
        }
        if let Some(task) = self.supervisor.failed().now_or_never() {
            state.history.violated(format!("task {task} has panicked"));
        }
    }
}

fn plan_from(mut plan: Plan, now: Duration) -> Plan {
    for window in &mut plan.windows {
        window.time = window.time.start + now..window.time.end + now;
    }
    plan
}
