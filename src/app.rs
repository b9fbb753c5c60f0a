//! The composition: a gateway from its settings, its shards, its end.
//!
//! ```text
//! control thread: acceptor, admin, health, topic directory, review of readiness
//! shard threads:  one current_thread runtime each, with its own connections,
//!                 pending calls, Kafka clients, lanes and reply partition
//! ```

mod console;
mod house;
mod keys;
mod observers;
mod reply_path;

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

use tokio::net::TcpListener;
use tokio::sync::{mpsc, watch};
use tokio::time::{Instant, sleep, timeout};

use crate::admin::Admin;
use crate::backoff::Backoff;
use crate::exchange::config::ReplyConfig;
use crate::exchange::{Exchange, Instance, Phase, PrepareError, Schemas, Settings};
use crate::ingress::{self, Acceptor, Guard, Health, Lifecycle, Reflection, Refresher, Seat, Tls, TlsError};
use crate::kafka::{ConnectError, Connector, KafkaCluster};
use crate::limits;
use crate::registry::{HttpRegistry, SettingsError};
use crate::route::RouteTable;
use crate::supervisor::{Supervisor, Task};
use crate::telemetry;
use crate::terms::ReplyRouting;
use crate::transport::{Cluster, ClusterError};
use reply_path::Traces;

use keys::KeyKeeper;
pub use keys::KeysUnavailable;
use observers::Observers;

/// How often readiness is looked at.
const REVIEW_INTERVAL: Duration = Duration::from_millis(100);
/// How often a drain looks whether calls are still in flight.
const DRAIN_POLL: Duration = Duration::from_millis(10);
/// How long shard threads may take to end.
const SHARDS_STOP_TIMEOUT: Duration = Duration::from_secs(5);

/// Everything a gateway is told.
#[derive(Debug, Clone)]
pub struct Config {
    /// The cluster.
    pub kafka: crate::kafka::config::Config,
    /// The gRPC listener.
    pub grpc: ingress::config::Config,
    /// The admin listener.
    pub admin: crate::admin::config::Config,
    /// Bounds.
    pub limits: crate::exchange::config::LimitsConfig,
    /// How replies come back.
    pub reply: ReplyConfig,
    /// Failing fast.
    pub circuit: crate::exchange::config::CircuitConfig,
    /// Calls with an idempotency key.
    pub idempotency: crate::exchange::config::IdempotencyConfig,
    /// Schemas of messages.
    pub schema_registry: Option<crate::registry::config::Config>,
    /// Lines about calls.
    pub access_log: crate::access_log::config::Config,
    /// Spans of calls; `None` where there are none.
    pub traces: Option<crate::traces::config::Config>,
    /// The end.
    pub drain: DrainConfig,
    /// `shards` (`ANTIPHON_SHARDS`): threads that serve calls, 1 to 256.
    /// Default: one a core.
    pub shards: usize,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            kafka: Default::default(),
            grpc: Default::default(),
            admin: Default::default(),
            limits: Default::default(),
            reply: Default::default(),
            circuit: Default::default(),
            idempotency: Default::default(),
            schema_registry: None,
            access_log: Default::default(),
            traces: None,
            drain: DrainConfig::default(),
            shards: std::thread::available_parallelism().map_or(1, usize::from).min(limits::SHARDS_MAX),
        }
    }
}

/// How the gateway stops. TOML section `[drain]`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DrainConfig {
    /// `notice` (`ANTIPHON_DRAIN_NOTICE`): between turning NOT_SERVING and
    /// refusing new calls; time for balancers to notice. Default: 0s.
    pub notice: Duration,
    /// `timeout` (`ANTIPHON_DRAIN_TIMEOUT`): how long calls in flight may go on
    /// after SIGTERM. Default: 30s.
    pub timeout: Duration,
}

impl Default for DrainConfig {
    fn default() -> Self {
        Self {
            notice: Duration::from_millis(limits::DRAIN_NOTICE_MS),
            timeout: Duration::from_millis(limits::DRAIN_TIMEOUT_MS),
        }
    }
}

/// Why a gateway could not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// A listener's address can't be had.
    #[error("cannot listen on {address} ({name}): {source}")]
    Bind {
        /// Which listener.
        name: &'static str,
        /// Its address.
        address: SocketAddr,
        /// Why.
        source: io::Error,
    },
    /// Settings for Kafka that can't be used.
    #[error(transparent)]
    Settings(#[from] ConnectError),
    /// Kafka did not answer in time, or said no.
    #[error("Kafka at {servers}: {source}")]
    Kafka {
        /// The bootstrap servers.
        servers: String,
        /// Why.
        source: ClusterError,
    },
    /// Settings for the schema registry that can't be used.
    #[error("schema registry: {0}")]
    RegistrySettings(#[source] SettingsError),
    /// The schema registry did not answer in time, or said no.
    #[error(transparent)]
    Registry(PrepareError),
    /// Certificates that can't be used.
    #[error(transparent)]
    Tls(#[from] TlsError),
    /// The keys of tokens can't be had.
    #[error("keys of tokens: {0}")]
    Keys(#[from] KeysUnavailable),
    /// The access log can't be written.
    #[error(transparent)]
    AccessLog(#[from] crate::access_log::Error),
    /// Traces can't be exported.
    #[error("traces: {0}")]
    Traces(#[source] crate::web_client::WebClientError),
    /// No heartbeat came back in time.
    #[error(
        "no heartbeat came back through reply topic {topic} within {waited:?}: {}",
        trouble.as_deref().unwrap_or("no error is known; see the log")
    )]
    NotReady {
        /// The reply topic.
        topic: Arc<str>,
        /// How long was waited.
        waited: Duration,
        /// What stood in the way last.
        trouble: Option<Arc<str>>,
    },
    /// Every partition of the reply topic is held by others.
    #[error(
        "reply topic {topic} has {partitions} partitions, and within {waited:?} only {leased} of the {shards} \
         that this process needs could be leased (one a shard); others hold {holders}; add partitions, \
         stop an instance, or use another reply.routing"
    )]
    NoLease {
        /// The reply topic.
        topic: Arc<str>,
        /// How many it has.
        partitions: i32,
        /// How many are needed.
        shards: usize,
        /// How many were had.
        leased: usize,
        /// Partitions and who holds them.
        holders: String,
        /// How long was waited.
        waited: Duration,
    },
    /// `reply.ordinal` is the host's, which has none.
    #[error("reply.ordinal is hostname, and the host's name {host:?} does not end in a number")]
    NoOrdinal {
        /// The host's name.
        host: String,
    },
    /// The descriptors can't be reflected upon.
    #[error("reflection: {0}")]
    Reflection(#[from] tonic_reflection::server::Error),
    /// A thread could not be started.
    #[error("cannot start a thread: {0}")]
    Thread(#[source] io::Error),
    /// The operating system gives no random bytes.
    #[error("no random bytes from the operating system: {0}")]
    Random(String),
}

/// Why a gateway stopped otherwise than it was asked to.
#[derive(Debug, thiserror::Error)]
pub enum StopError {
    /// A defect.
    #[error("task {0} has panicked")]
    Panicked(&'static str),
    /// Calls were still in flight at the end of `drain.timeout`.
    #[error("{0} calls were still in flight when drain.timeout had passed")]
    CallsCut(usize),
}

/// A gateway that runs.
#[derive(Debug)]
pub struct Gateway {
    grpc: SocketAddr,
    admin: SocketAddr,
    routes: Arc<RouteTable>,
    instance: Arc<Instance>,
    cluster: Arc<dyn ClusterDebug>,
    drain: DrainConfig,
    routing: ReplyRouting,
    owns_reply_topic: bool,
    supervisor: Supervisor,
    observers: Observers,
    lifecycle: watch::Sender<Lifecycle>,
    shards: Vec<JoinHandle<()>>,
    shards_alive: mpsc::Receiver<()>,
    health: Health,
    _tasks: Vec<Task>,
    started_in: Duration,
}

/// `Cluster` that can be shown, so that a [`Gateway`] can.
trait ClusterDebug: Cluster + std::fmt::Debug {}
impl<C: Cluster + std::fmt::Debug> ClusterDebug for C {}

impl Gateway {
    /// Binds, connects, makes the reply topic, starts the shards, and returns
    /// once a heartbeat has come back through each shard's reply path.
    ///
    /// Must be called on a `current_thread` runtime, which then is the control
    /// thread.
    pub async fn start(config: Config, routes: RouteTable) -> Result<Self, StartError> {
        Box::pin(Self::start_leaving(config, routes, Traces::default())).await
    }

    /// The same, unless `stop` ends first: then nothing is left behind, and
    /// there is no gateway.
    pub async fn start_unless(
        config: Config,
        routes: RouteTable,
        stop: impl Future<Output = ()>,
    ) -> Result<Option<Self>, StartError> {
        let traces = Traces::default();
        tokio::select! {
            started = Box::pin(Self::start_leaving(config, routes, traces.clone())) => return started.map(Some),
            () = stop => {}
        }
        traces.clear().await;
        Ok(None)
    }

    async fn start_leaving(config: Config, routes: RouteTable, traces: Traces) -> Result<Self, StartError> {
        let began = Instant::now();
        let (grpc, grpc_address) = bind("grpc.listen", config.grpc.listen).await?;
        let (admin, admin_address) = bind("admin.listen", config.admin.listen).await?;
        let connector = Arc::new(Connector::new(&config.kafka)?);
        let reflection = if config.grpc.reflection { Some(Reflection::new(&routes)?) } else { None };
        let routes = Arc::new(routes);
        let instance = reply_path::new_instance(&config, &routes)?;
        let supervisor = Supervisor::new();
        let observers = Observers::open(&config, &instance, &supervisor)?;
        let door = Door::open(&config, &instance, began).await?;
        let cluster = Arc::new(reply_path::control_cluster(&config, &connector));
        traces.begin(&instance, &cluster, &config.reply);
        reply_path::open(&config, &instance, &cluster, began).await?;

        let schemas = open_schemas(&config, &routes, began).await?;
        let health = Health::new();
        health.set(&routes, Phase::NotReady).await;
        let (acceptor, seats) = Acceptor::new(config.shards, config.grpc.connections_max);
        let acceptor = Arc::new(acceptor);
        let lifecycle = watch::Sender::new(Lifecycle::Serving);
        let (alive, shards_alive) = mpsc::channel(1);

        let plan = ShardPlan {
            first_partition: reply_path::first_partition(&config)?,
            keep: reply_path::longest_call(&config, &routes),
            config: config.clone(),
            routes: Arc::clone(&routes),
            instance: Arc::clone(&instance),
            schemas: schemas.clone(),
            connector: Arc::clone(&connector),
            health: health.clone(),
            reflection: reflection.clone(),
            entrance: door.entrance.clone(),
            supervisor: supervisor.clone(),
            observers: observers.clone(),
            lifecycle: lifecycle.subscribe(),
            _alive: alive,
        };
        let page = Admin::new(&config.admin, Arc::clone(&instance), Arc::clone(&acceptor));
        let console = console::open(&plan, &page, admin_address)?;
        let shards = start_shards(plan, seats, &supervisor)?;

        let control = Control {
            config: &config,
            routes: &routes,
            instance: &instance,
            cluster: &cluster,
            supervisor: &supervisor,
        };
        let tasks = control.spawn(door, &health, page.serve(admin, console.pages));
        let mut gateway = Self {
            grpc: grpc_address,
            admin: admin_address,
            routes,
            instance,
            cluster,
            drain: config.drain.clone(),
            routing: config.reply.routing,
            owns_reply_topic: config.reply.instance.is_none(),
            supervisor,
            observers,
            lifecycle,
            shards: shards.into_iter().chain(console.thread).collect(),
            shards_alive,
            health,
            _tasks: tasks.into_iter().chain(console.task).collect(),
            started_in: Duration::ZERO,
        };
        gateway.await_ready(config.reply.start_timeout.saturating_sub(began.elapsed())).await?;
        // Connections were queued by the kernel until now.
        gateway._tasks.push(gateway.supervisor.spawn("acceptor", acceptor.run(grpc)));
        gateway.welcome(config.reply.replication_factor, began).await;
        Ok(gateway)
    }

    /// What need not be done before the first call.
    async fn welcome(&mut self, replication_factor: i16, began: Instant) {
        self.warn_of_missing_topics();
        self.make_dead_letter_topics(replication_factor).await;
        self.started_in = began.elapsed();
    }

    /// Where gRPC is served.
    pub const fn grpc_address(&self) -> SocketAddr {
        self.grpc
    }

    /// Where the admin listener is.
    pub const fn admin_address(&self) -> SocketAddr {
        self.admin
    }

    /// The routes that are served.
    pub fn routes(&self) -> &RouteTable {
        &self.routes
    }

    /// The instance behind it.
    pub const fn instance(&self) -> &Arc<Instance> {
        &self.instance
    }

    /// From the call of [`Gateway::start`] to READY.
    pub const fn started_in(&self) -> Duration {
        self.started_in
    }

    /// Serves until `shutdown`, then drains and stops.
    pub async fn run_until(self, shutdown: impl Future<Output = ()>) -> Result<(), StopError> {
        let panicked = tokio::select! {
            () = shutdown => None,
            name = self.supervisor.failed() => Some(name),
        };
        let stopped = self.stop().await;
        match panicked {
            Some(name) => Err(StopError::Panicked(name)),
            None => stopped,
        }
    }

    /// Turns NOT_SERVING, lets calls in flight finish, removes the reply topic
    /// and ends every task and thread.
    pub async fn stop(mut self) -> Result<(), StopError> {
        // Told here and not by the follower, so that it is certainly said
        // before any call is refused.
        self.instance.leave();
        self.health.set(&self.routes, Phase::Leaving).await;
        self.lifecycle.send_replace(Lifecycle::Draining);
        if !self.drain.notice.is_zero() {
            sleep(self.drain.notice).await;
        }
        self.instance.drain();

        let left = self.drain_calls().await;
        self.lifecycle.send_replace(Lifecycle::Closing);
        // Ends when the last shard has dropped its end.
        if timeout(SHARDS_STOP_TIMEOUT, self.shards_alive.recv()).await.is_err() {
            tracing::error!("shards did not end in time");
        } else {
            for shard in self.shards.drain(..) {
                // A panic has been reported by the supervisor.
                let _ = shard.join();
            }
        }
        self.observers.flush().await;
        reply_path::close(&self.instance, &*self.cluster, self.routing).await;
        if left == 0 { Ok(()) } else { Err(StopError::CallsCut(left)) }
    }

    /// Waits for the calls in flight, and then for what they left to write.
    async fn drain_calls(&self) -> usize {
        let deadline = Instant::now() + self.drain.timeout;
        loop {
            let calls = self.instance.budget.calls() as usize;
            if calls + self.instance.aftermath() == 0 || Instant::now() >= deadline {
                return calls;
            }
            sleep(DRAIN_POLL).await;
        }
    }

    /// Dead letters should not be lost because nobody has made their topics:
    /// each has as many partitions as its request topic.
    async fn make_dead_letter_topics(&self, replication_factor: i16) {
        let known = self.instance.directory.snapshot();
        for route in self.routes.routes() {
            let topic = &route.dead_letter_topic;
            if route.dead_letter_on.is_empty() || known.contains_key(&**topic) {
                continue;
            }
            let partitions = known.get(&*route.request_topic).copied().unwrap_or(1);
            match self.cluster.create_topic(topic, partitions, replication_factor).await {
                Ok(()) | Err(ClusterError::TopicExists(_)) => self.instance.directory.look_again(),
                Err(error) => tracing::error!(%topic, %error, "dead-letter topic could not be created"),
            }
        }
    }

    async fn await_ready(&self, limit: Duration) -> Result<(), StartError> {
        let mut phase = self.instance.watch_phase();
        let ready = timeout(limit, phase.wait_for(|now| *now == Phase::Ready)).await;
        if ready.is_ok() {
            return Ok(());
        }
        self.lifecycle.send_replace(Lifecycle::Closing);
        let no_lease = reply_path::explain_no_lease(&self.instance, limit);
        // A topic with a fixed name may be somebody else's too.
        if self.owns_reply_topic || self.routing != ReplyRouting::InstanceTopic {
            reply_path::close(&self.instance, &*self.cluster, self.routing).await;
        }
        let topic = Arc::clone(self.instance.reply_topic());
        let trouble = self.instance.trouble();
        Err(no_lease.unwrap_or(StartError::NotReady { topic, waited: limit, trouble }))
    }

    fn warn_of_missing_topics(&self) {
        for method in self.routes.not_served() {
            tracing::warn!(
                method,
                "not served: its caller sends a stream, and a request is one record; calls of it are UNIMPLEMENTED"
            );
        }
        for topic in self.routes.request_topics() {
            if self.instance.directory.partitions(&topic).is_none() {
                tracing::warn!(%topic, "request topic does not exist yet, or an ACL hides it; its calls are UNAVAILABLE until that changes");
            }
        }
    }
}

/// What the tasks of the control thread are about.
struct Control<'a> {
    config: &'a Config,
    routes: &'a Arc<RouteTable>,
    instance: &'a Arc<Instance>,
    cluster: &'a Arc<KafkaCluster>,
    supervisor: &'a Supervisor,
}

impl Control<'_> {
    fn spawn(
        &self,
        door: Door,
        health: &Health,
        pages: impl Future<Output = ()> + Send + 'static,
    ) -> Vec<Task> {
        let Self { config, supervisor, .. } = *self;
        let mut tasks = door.keep_fresh(supervisor);
        let follow = health.clone().follow(Arc::clone(self.routes), Arc::clone(self.instance));
        tasks.extend([
            supervisor.spawn("admin", pages),
            supervisor.spawn("health", follow),
            supervisor.spawn("readiness", review(Arc::clone(self.instance))),
        ]);
        tasks.extend(telemetry::filter().map(|filter| supervisor.spawn("log filter", filter.keep_time())));
        tasks.extend(house::keep(config, self.routes, self.instance, self.cluster, supervisor));
        tasks
    }
}

/// What stands between callers and the service.
#[derive(Clone)]
struct Entrance {
    tls: Option<Tls>,
    guard: Option<Arc<Guard>>,
}

/// The same, with what keeps it fresh.
struct Door {
    entrance: Entrance,
    refresher: Option<Refresher>,
    keeper: Option<KeyKeeper>,
}

impl Door {
    async fn open(config: &Config, instance: &Instance, began: Instant) -> Result<Self, StartError> {
        let web = !config.grpc.web_origins.is_empty();
        let tls = config.grpc.tls.as_ref().map(|tls| ingress::tls(tls, web, Arc::clone(&instance.metrics)));
        let (tls, refresher) = tls.transpose()?.unzip();
        let access = config.grpc.access.as_ref();
        let keeper = KeyKeeper::open(access, began + config.reply.start_timeout).await?;
        let tokens = keeper.as_ref().map(|keeper| Arc::clone(keeper.tokens()));
        let guard = access.map(|access| Arc::new(Guard::new(access, tokens)));
        Ok(Self { entrance: Entrance { tls, guard }, refresher, keeper })
    }

    fn keep_fresh(self, supervisor: &Supervisor) -> Vec<Task> {
        let refresher = self.refresher.map(|refresher| supervisor.spawn("certificates", refresher.run()));
        let keeper = self.keeper.map(|keeper| supervisor.spawn("keys", keeper.run()));
        refresher.into_iter().chain(keeper).collect()
    }
}

/// The plan is dropped with the last shard.
fn start_shards(
    plan: ShardPlan,
    seats: Vec<Seat>,
    supervisor: &Supervisor,
) -> Result<Vec<JoinHandle<()>>, StartError> {
    let start = |(shard, seat)| {
        let plan = plan.clone();
        supervisor.spawn_thread("shard", move || plan.run(shard, seat))
    };
    seats.into_iter().enumerate().map(start).collect::<io::Result<_>>().map_err(StartError::Thread)
}

async fn bind(name: &'static str, address: SocketAddr) -> Result<(TcpListener, SocketAddr), StartError> {
    let bound = TcpListener::bind(address).await;
    let listener = bound.map_err(|source| StartError::Bind { name, address, source })?;
    let address = listener.local_addr().unwrap_or(address);
    Ok((listener, address))
}

/// Learns the schema ids of all routes that need one, again and again until the
/// registry answers or the start has taken too long.
async fn open_schemas(
    config: &Config,
    routes: &RouteTable,
    began: Instant,
) -> Result<Option<Arc<Schemas>>, StartError> {
    let Some(settings) = &config.schema_registry else { return Ok(None) };
    let registry = Arc::new(HttpRegistry::new(settings).map_err(StartError::RegistrySettings)?);
    let schemas = Arc::new(Schemas::new(registry, settings.register));
    let deadline = began + config.reply.start_timeout;
    let mut backoff = Backoff::default();
    loop {
        let error = match schemas.prepare(routes).await {
            Ok(()) => return Ok(Some(schemas)),
            Err(error) => error,
        };
        let pause = backoff.next_pause();
        if !error.may_pass() || Instant::now() + pause >= deadline {
            return Err(StartError::Registry(error));
        }
        tracing::warn!(%error, "the schema registry is not ready; trying again");
        sleep(pause).await;
    }
}

async fn review(instance: Arc<Instance>) {
    loop {
        instance.review();
        let quick = instance.phase() == Phase::NotReady;
        sleep(if quick { REVIEW_INTERVAL / 10 } else { REVIEW_INTERVAL }).await;
    }
}

/// All that a shard's thread needs.
#[derive(Clone)]
struct ShardPlan {
    /// Where the first shard's replies come, if that is laid down.
    first_partition: Option<i32>,
    keep: Duration,
    config: Config,
    routes: Arc<RouteTable>,
    instance: Arc<Instance>,
    schemas: Option<Arc<Schemas>>,
    connector: Arc<Connector>,
    health: Health,
    reflection: Option<Reflection>,
    entrance: Entrance,
    supervisor: Supervisor,
    observers: Observers,
    lifecycle: watch::Receiver<Lifecycle>,
    /// Dropped last; the control thread waits for it.
    _alive: mpsc::Sender<()>,
}

impl ShardPlan {
    fn run(self, shard: usize, seat: Seat) {
        let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
            Ok(runtime) => runtime,
            Err(error) => return tracing::error!(%error, "a shard could not start"),
        };
        runtime.block_on(self.serve(shard, seat));
        runtime.shutdown_timeout(Duration::from_secs(1));
    }

    async fn serve(self, shard: usize, seat: Seat) {
        let cluster = Arc::new(KafkaCluster::new(&self.config.kafka, self.connector));
        let offset = i32::try_from(shard).unwrap_or(i32::MAX);
        let settings = Settings {
            compression: self.config.kafka.compression,
            message_bytes_max: self.config.grpc.message_bytes_max,
            lane_queue_max: self.config.limits.lane_queue_max,
            reply: self.config.reply,
            reply_partition: self.first_partition.map(|first| first.saturating_add(offset)),
            keep: self.keep,
            custom_dialect: self.routes.custom_dialect().cloned(),
            schemas: self.schemas,
        };
        let exchange = Arc::new(Exchange::start(shard, self.instance, cluster, &self.supervisor, settings));
        let Entrance { tls, guard } = self.entrance;
        let grpc = self.config.grpc;
        let ear = self.observers.ear;
        let service =
            ingress::Service::new(&grpc, self.routes, exchange, &self.health, self.reflection, guard, ear);
        ingress::serve_shard(seat, service, tls, grpc, self.supervisor, self.lifecycle).await;
    }
}
