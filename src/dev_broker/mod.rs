//! A small Kafka broker inside this process, for `antiphon demo` and for tests
//! that need no other program. It knows nothing of the gateway.
//!
//! What it is not: durable (all is in memory, bounded, and gone when it is
//! dropped), replicated (one broker leads every partition), secured (no TLS,
//! no SASL, no ACLs), transactional, or fit for production. Production is
//! Apache Kafka. Topic configurations are accepted and have no effect.
//!
//! ```text
//! connection ─► wire ─► faults ─► api ─┬─► topics ─► log      (one lock per partition)
//!   (one request at a time, in order)  └─► groups             (one lock for all)
//! ```

mod api;
pub mod code;
mod faults;
mod groups;
mod log;
mod topics;
mod wire;

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::atomic::{AtomicI64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::io::{AsyncWriteExt, BufReader};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;

pub use faults::{Fault, Faults, Hits, Rule};
pub use topics::TopicError;
pub use wire::Api;

use api::Outcome;
use groups::Groups;
use topics::Topics;

/// Bytes of one request, as Kafka's `socket.request.max.bytes`.
const FRAME_BYTES_MAX: usize = 100 * 1024 * 1024;
/// Elements of all arrays of one request together.
const REQUEST_ELEMENTS_MAX: usize = 100_000;
/// Connections at a time; one more is closed at once.
const CONNECTIONS_MAX: usize = 4_096;
/// Partitions of one topic.
const PARTITIONS_PER_TOPIC_MAX: usize = 1_000;
/// Partitions of all topics together.
const PARTITIONS_TOTAL_MAX: usize = 10_000;
/// Bytes of a topic's name, as Kafka has it.
const TOPIC_NAME_BYTES_MAX: usize = 249;
/// Consumer groups that are remembered.
const GROUPS_MAX: usize = 10_000;
/// Members of one group.
const MEMBERS_PER_GROUP_MAX: usize = 1_000;
/// Ways to assign partitions that one member may offer.
const PROTOCOLS_PER_MEMBER_MAX: usize = 32;
/// Bytes of what one member says of itself when it joins.
const MEMBER_BYTES_MAX: usize = 1024 * 1024;
/// Bytes of what is committed beside an offset, as Kafka has it.
const OFFSET_METADATA_BYTES_MAX: usize = 4_096;
/// Idempotent producers that one partition remembers.
const PRODUCERS_PER_PARTITION_MAX: usize = 1_000;
/// Rules for faults at a time.
const FAULT_RULES_MAX: usize = 1_000;
/// How long a fetch may be held, whatever it asks for.
const FETCH_WAIT_MAX: Duration = Duration::from_secs(300);
/// Bytes of records that one answer may have, whatever is asked for; the
/// first batch comes all the same.
const FETCH_BYTES_MAX: usize = 64 * 1024 * 1024;
/// How long to wait after a connection could not be accepted.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// How the broker listens and what it keeps.
#[derive(Debug, Clone)]
pub struct Config {
    /// Where to listen; port 0 takes a free one. Default: `127.0.0.1:0`.
    pub listen: SocketAddr,
    /// The host that clients are told to connect to. Default: the address by
    /// which each of them came.
    pub advertised_host: Option<String>,
    /// Bytes of batches that a partition keeps; its newest batch always stays.
    /// Default: 4 MiB.
    pub retention_bytes_per_partition: usize,
    /// Bytes of the largest batch accepted, as Kafka's `message.max.bytes`.
    /// Default: 1,048,588.
    pub batch_bytes_max: usize,
    /// Whether asking for the metadata of a topic creates it. Default: no.
    pub auto_create: bool,
    /// Partitions of a topic when nobody says. Default: 1.
    pub default_partitions: i32,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            listen: SocketAddr::from((Ipv4Addr::LOCALHOST, 0)),
            advertised_host: None,
            retention_bytes_per_partition: 4 * 1024 * 1024,
            batch_bytes_max: 1_048_588,
            auto_create: false,
            default_partitions: 1,
        }
    }
}

/// Why the broker did not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The address could not be listened on.
    #[error("the embedded broker cannot listen on {addr}")]
    Bind {
        /// The address asked for.
        addr: SocketAddr,
        /// What the system said.
        #[source]
        source: std::io::Error,
    },
    /// A topic without partitions cannot be.
    #[error("default_partitions is {0}; it must be 1 to {PARTITIONS_PER_TOPIC_MAX}")]
    DefaultPartitions(i32),
}

/// What all connections share.
#[derive(Debug)]
struct Shared {
    config: Config,
    topics: Topics,
    groups: Mutex<Groups>,
    faults: Faults,
    producers_made: AtomicI64,
}

impl Shared {
    fn next_producer_id(&self) -> i64 {
        self.producers_made.fetch_add(1, Ordering::Relaxed)
    }
}

/// A running broker. Dropping it aborts all its tasks, which closes its port
/// and every connection.
#[derive(Debug)]
pub struct DevBroker {
    addr: SocketAddr,
    shared: Arc<Shared>,
    /// The one task that accepts connections and owns their tasks. Dropping
    /// the set aborts it, and with it them.
    tasks: JoinSet<()>,
}

impl DevBroker {
    /// Listens and serves on the current runtime.
    pub async fn start(config: Config) -> Result<Self, StartError> {
        let partitions = usize::try_from(config.default_partitions).unwrap_or(0);
        if !(1..=PARTITIONS_PER_TOPIC_MAX).contains(&partitions) {
            return Err(StartError::DefaultPartitions(config.default_partitions));
        }
        let bind = |source| StartError::Bind { addr: config.listen, source };
        let listener = TcpListener::bind(config.listen).await.map_err(bind)?;
        let addr = listener.local_addr().map_err(bind)?;
        let shared = Arc::new(Shared {
            topics: Topics::new(config.clone()),
            config,
            groups: Mutex::new(Groups::default()),
            faults: Faults::new(),
            producers_made: AtomicI64::new(1),
        });
        let mut tasks = JoinSet::new();
        tasks.spawn(accept(listener, Arc::clone(&shared)));
        Ok(Self { addr, shared, tasks })
    }

    /// Stops and returns when the port and every connection are closed.
    pub async fn stop(mut self) {
        self.tasks.shutdown().await;
    }

    /// The address listened on, with the port taken.
    pub fn addr(&self) -> SocketAddr {
        self.addr
    }

    /// The address as clients want it: `host:port`.
    pub fn bootstrap(&self) -> String {
        match &self.shared.config.advertised_host {
            Some(host) => format!("{host}:{}", self.addr.port()),
            None => self.addr.to_string(),
        }
    }

    /// Creates a topic of so many partitions; -1 takes the default.
    pub fn create_topic(&self, name: &str, partitions: i32) -> Result<(), TopicError> {
        self.shared.topics.create(name, partitions, false).map(drop)
    }

    /// The names of all topics, in order.
    pub fn topics(&self) -> Vec<String> {
        self.shared.topics.all().into_iter().map(|(name, _)| name).collect()
    }

    /// The partitions of a topic. `None`: there is no such topic.
    pub fn partitions(&self, topic: &str) -> Option<i32> {
        self.shared.topics.get(topic).map(|topic| topic.partition_count())
    }

    /// The first offset that a partition still has.
    pub fn partition_start(&self, topic: &str, partition: i32) -> Option<i64> {
        Some(self.shared.topics.get(topic)?.log(partition)?.start())
    }

    /// The offset that a partition's next record will get.
    pub fn partition_end(&self, topic: &str, partition: i32) -> Option<i64> {
        Some(self.shared.topics.get(topic)?.log(partition)?.end())
    }

    /// The offset that a group has committed.
    pub fn committed(&self, group: &str, topic: &str, partition: i32) -> Option<i64> {
        lock(&self.shared.groups).committed(group, topic, partition).map(|committed| committed.offset)
    }

    /// The faults, for tests.
    pub fn faults(&self) -> &Faults {
        &self.shared.faults
    }
}

/// Accepts connections and owns their tasks: they end with it.
async fn accept(listener: TcpListener, shared: Arc<Shared>) {
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            accepted = listener.accept() => match accepted {
                Ok((stream, _)) if connections.len() < CONNECTIONS_MAX => {
                    connections.spawn(connection(stream, Arc::clone(&shared)));
                }
                Ok(_) => tracing::warn!(max = CONNECTIONS_MAX, "embedded broker: too many connections, one closed"),
                Err(error) => {
                    tracing::warn!(%error, "embedded broker: a connection could not be accepted");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                }
            },
            Some(ended) = connections.join_next() => {
                if let Err(error) = ended {
                    tracing::error!(%error, "embedded broker: a connection's task panicked");
                }
            }
        }
    }
}

/// Serves one connection until it ends or is cut.
async fn connection(stream: TcpStream, shared: Arc<Shared>) {
    let mut cuts = shared.faults.watch_cuts();
    tokio::select! {
        () = serve(stream, &shared) => {}
        _ = cuts.changed() => {}
    }
}

/// One request after the other, as Kafka does.
async fn serve(mut stream: TcpStream, shared: &Shared) {
    // Without it small answers wait; if it cannot be had they are only late.
    let _ = stream.set_nodelay(true);
    let Ok(local) = stream.local_addr() else { return };
    let (reader, mut writer) = stream.split();
    let mut reader = BufReader::new(reader);
    while let Some(frame) = wire::read_frame(&mut reader).await {
        shared.faults.while_paused().await;
        let outcome = api::serve(shared, local, frame).await;
        shared.faults.while_paused().await;
        match outcome {
            Outcome::Answer(answer) => {
                if writer.write_all(&answer).await.is_err() {
                    return;
                }
            }
            Outcome::Nothing => {}
            Outcome::Close => return,
            Outcome::Silence => {
                // Until the peer goes away; what it sends is read for nothing.
                let _ = tokio::io::copy(&mut reader, &mut tokio::io::sink()).await;
                return;
            }
        }
    }
}

/// Locks, whether or not someone panicked in between: every change under these
/// locks leaves things usable at each step.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
