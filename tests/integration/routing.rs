//! How replies find their instance: several gateways on one cluster, in each of
//! the modes.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use antiphon::app::{Config, Gateway, StartError};
use antiphon::dev_broker::{self, Api, DevBroker, Fault, Rule};
use antiphon::exchange::config::Ordinal;
use antiphon::kafka::{Connector, KafkaCluster};
use antiphon::route::{self, Sources};
use antiphon::supervisor::Supervisor;
use antiphon::terms::{Compression, ReplyRouting};
use antiphon::transport::{Cluster, Record};
use antiphon::worker::Worker;
use antiphon::worker::samples::{Samples, echo};
use prost::Message as _;
use tonic::Request;
use tonic::transport::{Channel, Endpoint};

use crate::harness::{ECHO, PATIENCE, setting, unary, until, until_async};

/// A cluster with a worker on one request topic, and names of its own.
struct Stage {
    cluster: Arc<KafkaCluster>,
    config: Config,
    topic: String,
    broker: Option<DevBroker>,
    _worker: Worker,
}

impl Stage {
    async fn new() -> Self {
        Self::on(std::env::var("ANTIPHON_TEST_BOOTSTRAP").ok()).await
    }

    /// For faults that only it can inject.
    async fn on_the_embedded_broker() -> Self {
        Self::on(None).await
    }

    async fn on(servers: Option<String>) -> Self {
        let suffix = format!("{:08x}", fastrand::u32(..));
        let mut config = Config { shards: 1, ..Config::default() };
        config.grpc.listen = ([127, 0, 0, 1], 0).into();
        config.admin.listen = ([127, 0, 0, 1], 0).into();
        config.kafka.metadata_refresh = Duration::from_millis(500);
        config.reply.replication_factor = 1;
        config.reply.fetch_wait = Duration::from_millis(100);
        config.reply.heartbeat_interval = Duration::from_millis(200);
        config.reply.lease_ttl = Duration::from_millis(1_500);
        config.reply.orphan_after = Duration::from_millis(1_500);
        config.reply.topic_prefix = format!("replies-{suffix}");
        let broker = match servers {
            Some(servers) => {
                config.kafka.bootstrap_servers = servers.split(',').map(str::to_owned).collect();
                None
            }
            None => {
                let broker = DevBroker::start(dev_broker::Config::default()).await.unwrap();
                config.kafka.bootstrap_servers = vec![broker.bootstrap()];
                Some(broker)
            }
        };
        let connector = Arc::new(Connector::new(&config.kafka).unwrap());
        let cluster = Arc::new(KafkaCluster::new(&config.kafka, connector));
        let topic = format!("echo-{suffix}");
        cluster.create_topic(&topic, 3, 1).await.unwrap();
        let worker = start_worker(&cluster, &topic).await;
        Self { cluster, config, topic, broker, _worker: worker }
    }

    /// Settings of one instance.
    fn instance(&self, routing: ReplyRouting, change: impl FnOnce(&mut Config)) -> Config {
        let mut config = self.config.clone();
        config.reply.routing = routing;
        if routing != ReplyRouting::InstanceTopic {
            config.reply.topic = Some(format!("{}.all", config.reply.topic_prefix));
        }
        change(&mut config);
        config
    }

    async fn try_start(&self, config: Config) -> Result<Gateway, StartError> {
        let proto = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("proto/echo/v1/echo.proto");
        let mut sources = Sources { protos: vec![proto], ..Sources::default() };
        sources.reply_partition = config.reply.routing == ReplyRouting::Partition;
        let overlay = sources.services.entry("echo.v1.EchoService".to_owned()).or_default();
        overlay.settings.request_topic = setting(self.topic.clone());
        let routes = route::compile(&sources).unwrap();
        tokio::time::timeout(PATIENCE, Gateway::start(config, routes))
            .await
            .expect("starts or refuses in time")
    }

    async fn start(&self, config: Config) -> Gateway {
        self.try_start(config).await.unwrap()
    }

    async fn topics(&self) -> Vec<String> {
        self.cluster.topics().await.unwrap().into_iter().map(|topic| topic.name).collect()
    }
}

async fn start_worker(cluster: &Arc<KafkaCluster>, topic: &str) -> Worker {
    for _ in 0..100 {
        let cluster: Arc<dyn Cluster> = Arc::clone(cluster) as _;
        let handler = Arc::new(Samples::default());
        match Worker::start(cluster, &[topic], handler, &Supervisor::new()).await {
            Ok(worker) => return worker,
            Err(_) => tokio::time::sleep(Duration::from_millis(50)).await,
        }
    }
    panic!("no worker on {topic}");
}

async fn channel(gateway: &Gateway) -> Channel {
    let endpoint = Endpoint::try_from(format!("http://{}", gateway.grpc_address())).unwrap();
    endpoint.connect().await.unwrap()
}

/// So many calls, each with a message of its own, which must come back.
async fn call(channel: &Channel, calls: usize) {
    for _ in 0..calls {
        let payload = bytes::Bytes::from(fastrand::u128(..).to_be_bytes().to_vec());
        let message = echo::EchoRequest { payload: payload.clone() }.encode_to_vec();
        let answer = unary(channel.clone(), ECHO, Request::new(message.into())).await.unwrap();
        let answer = echo::EchoReply::decode(answer.into_inner()).unwrap();
        assert_eq!(answer.payload, payload, "another call's reply");
    }
}

/// The same at two instances at once.
async fn both(one: &Gateway, other: &Gateway, calls: usize) {
    let (one, other) = (channel(one).await, channel(other).await);
    tokio::join!(call(&one, calls), call(&other, calls));
}

fn replies(gateway: &Gateway, kind: &'static str) -> u64 {
    gateway.instance().metrics.replies_of(kind)
}

/// What kill -9 leaves: nothing is given back, nothing removed.
fn crash(gateway: Gateway) {
    drop(gateway);
}

#[tokio::test]
async fn two_instances_with_topics_of_their_own_answer_their_calls() {
    let stage = Stage::new().await;
    let config = stage.instance(ReplyRouting::InstanceTopic, |config| {
        config.shards = 2;
        config.reply.partitions = Some(5);
    });
    let (one, other) = (stage.start(config.clone()).await, stage.start(config).await);
    let partitions = stage.cluster.topics().await.unwrap();
    let topic = one.instance().reply_topic().to_string();
    let partitions = partitions.into_iter().find(|found| found.name == topic).map(|found| found.partitions);
    assert_eq!(partitions, Some(5));
    both(&one, &other, 20).await;

    // Wherever a worker writes, somebody reads.
    let mut writer = stage.cluster.writer(&topic, 4).await.unwrap();
    let stray = Record { value: Some(bytes::Bytes::new()), ..Record::default() };
    writer.produce(&[stray], Compression::None).await.unwrap();
    until("the fifth partition is read", || replies(&one, "uncorrelated") == 1).await;
    for gateway in [&one, &other] {
        assert_eq!((replies(gateway, "delivered"), replies(gateway, "foreign")), (20, 0));
    }
    one.stop().await.unwrap();
    other.stop().await.unwrap();
    until_async("both topics are gone", async || {
        !stage.topics().await.iter().any(|name| name.starts_with(&stage.config.reply.topic_prefix))
    })
    .await;
}

#[tokio::test]
async fn an_orphan_is_removed_and_nothing_else() {
    let stage = Stage::new().await;
    let prefix = stage.config.reply.topic_prefix.clone();
    let strangers = format!("{prefix}.somebody-elses");
    stage.cluster.create_topic(&strangers, 2, 1).await.unwrap();
    let config = stage.instance(ReplyRouting::InstanceTopic, |_| {});
    let slow = stage.instance(ReplyRouting::InstanceTopic, |config| {
        config.reply.heartbeat_interval = Duration::from_millis(1_000);
    });
    let living =
        [stage.start(config.clone()).await, stage.start(slow).await, stage.start(config.clone()).await];
    let dead = [stage.start(config.clone()).await, stage.start(config).await];
    let orphans = dead.each_ref().map(|gateway| gateway.instance().reply_topic().to_string());
    for gateway in dead {
        crash(gateway);
    }
    until_async("both orphans are gone", async || {
        !stage.topics().await.iter().any(|name| orphans.contains(name))
    })
    .await;
    // Several limits later all else is still there.
    tokio::time::sleep(stage.config.reply.orphan_after * 3).await;
    let topics = stage.topics().await;
    assert!(topics.contains(&strangers), "a topic without heartbeats was removed");
    let removed: u64 = living.iter().map(|gateway| gateway.instance().metrics.orphans_removed.get()).sum();
    assert!((2..=4).contains(&removed), "{removed}");
    for gateway in living {
        let topic = gateway.instance().reply_topic().to_string();
        assert!(topics.contains(&topic), "a living instance's topic was removed");
        call(&channel(&gateway).await, 3).await;
        gateway.stop().await.unwrap();
    }
    stage.cluster.delete_topic(&strangers).await.unwrap();
}

#[tokio::test]
async fn more_instances_than_allowed_are_refused() {
    let stage = Stage::new().await;
    let config = stage.instance(ReplyRouting::InstanceTopic, |config| config.reply.instances_max = 1);
    let one = stage.start(config.clone()).await;
    let error = stage.try_start(config).await.unwrap_err().to_string();
    assert!(error.contains("reply.instances_max") && error.contains("1 reply topics"), "{error}");
    one.stop().await.unwrap();
}

#[tokio::test]
async fn a_start_that_is_broken_off_leaves_nothing() {
    let stage = Stage::on_the_embedded_broker().await;
    let config = stage.instance(ReplyRouting::InstanceTopic, |config| {
        config.reply.instance = Some("short-lived".to_owned());
    });
    // No heartbeat comes as far as the log, so it does not get ready.
    let broker = stage.broker.as_ref().unwrap();
    broker.faults().inject(Rule::new(Api::Produce, Fault::Silence));
    let proto = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("proto/echo/v1/echo.proto");
    let routes = route::compile(&Sources { protos: vec![proto], ..Sources::default() }).unwrap();
    let topic = format!("{}.short-lived", config.reply.topic_prefix);
    let made = until_async("its topic is there", async || stage.topics().await.contains(&topic));
    let started = tokio::time::timeout(PATIENCE, Gateway::start_unless(config, routes, made)).await.unwrap();
    assert!(started.unwrap().is_none());
    until_async("its topic is gone", async || !stage.topics().await.contains(&topic)).await;
}

#[tokio::test]
async fn leased_partitions_answer_are_given_back_and_run_out() {
    let stage = Stage::new().await;
    let config = stage.instance(ReplyRouting::Partition, |config| config.reply.partitions = Some(2));
    let (one, other) = tokio::join!(stage.start(config.clone()), stage.start(config.clone()));
    let held = |gateway: &Gateway| gateway.instance().leased_partitions();
    let mut all = [held(&one), held(&other)].concat();
    all.sort_unstable();
    assert_eq!(all, [0, 1]);
    both(&one, &other, 20).await;
    for gateway in [&one, &other] {
        assert_eq!((replies(gateway, "delivered"), replies(gateway, "foreign")), (20, 0));
    }

    // There is no third partition, and who has the two is said.
    let late = Config { reply: config.reply.clone(), ..config.clone() };
    let mut refused = late.clone();
    refused.reply.start_timeout = Duration::from_secs(4);
    let error = stage.try_start(refused).await.unwrap_err().to_string();
    for expected in ["2 partitions", one.instance().name(), other.instance().name()] {
        assert!(error.contains(expected), "{error}");
    }

    // One that stops gives its partition back, and nobody has to wait for it.
    let given_back = held(&one);
    one.stop().await.unwrap();
    let next = stage.start(late.clone()).await;
    assert_eq!(held(&next), given_back);
    assert!(next.started_in() < stage.config.reply.lease_ttl, "{:?}", next.started_in());

    // One that is killed does not; its lease runs out.
    let left = held(&other);
    crash(other);
    let heir = stage.start(late).await;
    assert_eq!(held(&heir), left);
    both(&next, &heir, 10).await;
    assert_eq!(replies(&heir, "foreign") + replies(&heir, "delivered"), 10);
    next.stop().await.unwrap();
    heir.stop().await.unwrap();
    let topic = stage.instance(ReplyRouting::Partition, |_| {}).reply.topic.unwrap();
    assert!(stage.topics().await.contains(&topic), "a shared topic was removed");
    stage.cluster.delete_topic(&topic).await.unwrap();
}

/// A rival's claim that is valid by the log: the holder moves to another
/// partition, and the call that waits on the old one is answered all the same.
#[tokio::test]
async fn a_holder_that_is_deposed_moves_and_its_calls_are_answered() {
    let stage = Stage::new().await;
    let config = stage.instance(ReplyRouting::Partition, |config| config.reply.partitions = Some(3));
    let topic = config.reply.topic.clone().unwrap();
    let gateway = stage.start(config).await;
    let channel = channel(&gateway).await;
    call(&channel, 1).await;
    let [before] = gateway.instance().leased_partitions()[..] else { panic!("one lease") };

    // As one would who has read all there is, at a moment when the holder had
    // not been heard of for long; it has to be repeated when a heartbeat comes
    // in between.
    let mut reader = stage.cluster.reader(&topic, before).await.unwrap();
    let mut writer = stage.cluster.writer(&topic, before).await.unwrap();
    let lost = || gateway.instance().metrics.leases_of("lost") > 0;
    // New calls may be refused while there is no lease; none may go unanswered.
    let calls = async || {
        while !lost() {
            let payload = bytes::Bytes::from(fastrand::u128(..).to_be_bytes().to_vec());
            let message = echo::EchoRequest { payload: payload.clone() }.encode_to_vec();
            match unary(channel.clone(), ECHO, Request::new(message.into())).await {
                Ok(answer) => {
                    let answer = echo::EchoReply::decode(answer.into_inner()).unwrap();
                    assert_eq!(answer.payload, payload, "another call's reply");
                }
                Err(status) => assert_eq!(status.code(), tonic::Code::Unavailable, "{status}"),
            }
        }
    };
    let rival = async {
        while !lost() {
            let seen = reader.end_offset().await.unwrap() - 1;
            let claim = Record {
                value: Some(format!("claim {:016x}/0 {seen}", 7).into()),
                headers: vec![("antiphon-lease".into(), bytes::Bytes::from_static(b"rival"))],
                ..Record::default()
            };
            writer.produce(&[claim], Compression::None).await.unwrap();
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    let all = async { tokio::join!(calls(), calls(), calls(), calls(), rival) };
    tokio::time::timeout(PATIENCE, all).await.expect("the claim is seen");
    until("it has another partition", || {
        let now = gateway.instance().leased_partitions();
        now.len() == 1 && now[0] != before && gateway.instance().phase() == antiphon::exchange::Phase::Ready
    })
    .await;
    call(&channel, 10).await;
    assert_eq!(gateway.instance().metrics.leases_of("lost"), 1);
    gateway.stop().await.unwrap();
    stage.cluster.delete_topic(&topic).await.unwrap();
}

#[tokio::test]
async fn ordinals_need_no_leases_and_rivals_are_noticed() {
    let stage = Stage::new().await;
    let with = |number| {
        stage.instance(ReplyRouting::Partition, |config| {
            config.shards = 2;
            config.reply.partitions = Some(4);
            config.reply.ordinal = Some(Ordinal::Number(number));
        })
    };
    let (one, other) = (stage.start(with(0)).await, stage.start(with(1)).await);
    both(&one, &other, 20).await;
    for gateway in [&one, &other] {
        assert_eq!((replies(gateway, "delivered"), replies(gateway, "foreign")), (20, 0));
        assert!(!gateway.instance().has_rival());
    }
    let error = stage.try_start(with(2)).await.unwrap_err().to_string();
    assert!(error.contains("has 4 partitions") && error.contains("needs 6"), "{error}");

    let rival = stage.start(with(1)).await;
    until("both see the rival", || other.instance().has_rival() && rival.instance().has_rival()).await;
    assert!(!one.instance().has_rival());
    let topic = one.instance().reply_topic().to_string();
    for gateway in [one, other, rival] {
        gateway.stop().await.unwrap();
    }
    stage.cluster.delete_topic(&topic).await.unwrap();
}

#[tokio::test]
async fn a_shared_topic_is_read_by_all_and_kept() {
    let stage = Stage::new().await;
    let config = stage.instance(ReplyRouting::Shared, |config| {
        config.shards = 2;
        config.reply.partitions = Some(3);
    });
    let topic = config.reply.topic.clone().unwrap();
    let (one, other) = tokio::join!(stage.start(config.clone()), stage.start(config));
    both(&one, &other, 20).await;
    for gateway in [&one, &other] {
        until("the other's replies are passed over", || replies(gateway, "foreign") == 20).await;
        assert_eq!(replies(gateway, "delivered"), 20);
    }
    one.stop().await.unwrap();
    call(&channel(&other).await, 5).await;
    other.stop().await.unwrap();
    assert!(stage.topics().await.contains(&topic), "a shared topic was removed");
    let mut reader = stage.cluster.reader(&topic, 0).await.unwrap();
    assert_eq!(reader.start_offset().await.unwrap(), 0, "nothing is trimmed");
    stage.cluster.delete_topic(&topic).await.unwrap();
}
