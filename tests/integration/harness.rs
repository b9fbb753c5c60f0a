//! A gateway, a cluster and workers in one process.
//!
//! The cluster is the embedded broker, or the Apache Kafka that
//! `ANTIPHON_TEST_BOOTSTRAP` names: the same cases run against both. Topics
//! carry a random part, so that tests can share a cluster.

use std::collections::HashMap;
use std::future::Future;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use antiphon::app::{Config, Gateway, StartError};
use antiphon::dev_broker::{self, DevBroker};
use antiphon::kafka::{Connector, KafkaCluster};
use antiphon::message::WorkerStatus;
use antiphon::message::dialect::Custom;
use antiphon::route::{self, Origin, Overlay, Settings, Sourced, Sources};
use antiphon::supervisor::Supervisor;
use antiphon::transport::{Cluster, Record};
use antiphon::worker::{Call, Handler, Worker};
use bytes::Bytes;
use prost::Message;
use tonic::codec::{Codec, DecodeBuf, Decoder, EncodeBuf, Encoder};
use tonic::metadata::MetadataMap;
use tonic::transport::{Channel, Endpoint};
use tonic::{Request, Response, Status};

/// Every wait of a test ends.
pub const PATIENCE: Duration = Duration::from_secs(30);

pub const ECHO: &str = "/echo.v1.EchoService/Echo";
pub const PAY: &str = "/payments.v1.PaymentService/Pay";

type Answer = Option<Result<Bytes, WorkerStatus>>;

/// A handler made of a closure.
struct Answering<F>(F);

#[async_trait::async_trait]
impl<F, Fut> Handler for Answering<F>
where
    F: Fn(String, Bytes) -> Fut + Send + Sync + 'static,
    Fut: Future<Output = Answer> + Send,
{
    async fn handle(&self, call: Call<'_>) -> Answer {
        (self.0)(call.method.to_owned(), call.message).await
    }
}

pub struct TestGatewayBuilder {
    config: Config,
    protos: Vec<PathBuf>,
    services: HashMap<String, Settings>,
    methods: HashMap<String, Settings>,
    topics: HashMap<String, i32>,
    worker: Option<Arc<dyn Handler>>,
    broker: dev_broker::Config,
    own_broker: bool,
    custom_dialect: Option<Arc<Custom>>,
}

/// A gateway that is stopped by [`TestGateway::stop`]; dropping it otherwise
/// asserts that nothing is pending.
pub struct TestGateway {
    gateway: Option<Gateway>,
    pub cluster: Arc<KafkaCluster>,
    broker: Option<DevBroker>,
    bootstrap: String,
    _worker: Option<Worker>,
    pub channel: Channel,
    suffix: String,
}

impl TestGateway {
    /// The sample protos, one shard, a cluster, no worker.
    pub fn build() -> TestGatewayBuilder {
        let root = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("proto");
        let mut config = Config { shards: 1, ..Config::default() };
        config.grpc.listen = ([127, 0, 0, 1], 0).into();
        config.admin.listen = ([127, 0, 0, 1], 0).into();
        config.reply.replication_factor = 1;
        config.reply.fetch_wait = Duration::from_millis(100);
        config.kafka.metadata_refresh = Duration::from_millis(500);
        config.access_log.enabled = false;
        TestGatewayBuilder {
            config,
            protos: ["payments/v1/payments.proto", "delivery/v1/delivery.proto", "echo/v1/echo.proto"]
                .map(|file| root.join(file))
                .to_vec(),
            services: HashMap::new(),
            methods: HashMap::new(),
            topics: ["payment_request", "delivery_radius_request", "echo.v1.EchoService"]
                .map(|topic| (topic.to_owned(), 3))
                .into(),
            worker: None,
            broker: dev_broker::Config::default(),
            own_broker: false,
            custom_dialect: None,
        }
    }
}

pub fn setting<T>(value: T) -> Option<Sourced<T>> {
    Some(Sourced::new(value, Origin::default()))
}

impl TestGatewayBuilder {
    pub fn config(mut self, change: impl FnOnce(&mut Config)) -> Self {
        change(&mut self.config);
        self
    }

    pub fn broker(mut self, change: impl FnOnce(&mut dev_broker::Config)) -> Self {
        change(&mut self.broker);
        self
    }

    /// Always the embedded broker: for faults that only it can inject.
    pub fn on_the_embedded_broker(mut self) -> Self {
        self.own_broker = true;
        self
    }

    pub fn proto(mut self, text: &str) -> Self {
        let folder = tempfile::tempdir().unwrap().keep();
        let file = folder.join("test.proto");
        std::fs::write(&file, text).unwrap();
        self.protos.push(file);
        self
    }

    /// Headers of the dialect `custom`.
    pub fn custom_dialect(mut self, custom: Custom) -> Self {
        self.custom_dialect = Some(Arc::new(custom));
        self
    }

    pub fn method(mut self, name: &str, settings: Settings) -> Self {
        self.methods.insert(name.to_owned(), settings);
        self
    }

    /// How many partitions a request topic has; 0: it does not exist.
    pub fn topic(mut self, name: &str, partitions: i32) -> Self {
        self.topics.insert(name.to_owned(), partitions);
        self
    }

    /// A worker on all request topics, made of a closure over path and message.
    pub fn worker<F, Fut>(mut self, answer: F) -> Self
    where
        F: Fn(String, Bytes) -> Fut + Send + Sync + 'static,
        Fut: Future<Output = Answer> + Send + 'static,
    {
        self.worker = Some(Arc::new(Answering(answer)));
        self
    }

    pub fn handler(mut self, handler: impl Handler) -> Self {
        self.worker = Some(Arc::new(handler));
        self
    }

    pub async fn start(self) -> TestGateway {
        self.try_start().await.unwrap()
    }

    pub async fn try_start(mut self) -> Result<TestGateway, StartError> {
        let suffix = format!("{:08x}", fastrand::u32(..));
        let real = std::env::var("ANTIPHON_TEST_BOOTSTRAP").ok().filter(|_| !self.own_broker);
        let broker = match &real {
            Some(servers) => {
                self.config.kafka.bootstrap_servers = servers.split(',').map(str::to_owned).collect();
                None
            }
            None => {
                let broker = DevBroker::start(self.broker.clone()).await.unwrap();
                self.config.kafka.bootstrap_servers = vec![broker.bootstrap()];
                Some(broker)
            }
        };
        let bootstrap = self.config.kafka.bootstrap_servers[0].clone();
        let connector = Arc::new(Connector::new(&self.config.kafka).unwrap());
        let cluster = Arc::new(KafkaCluster::new(&self.config.kafka, connector));
        let routes = route::compile(&self.sources(&suffix)).unwrap();
        for (topic, partitions) in &self.topics {
            if *partitions > 0 {
                let name = format!("{topic}-{suffix}");
                cluster.create_topic(&name, *partitions, 1).await.unwrap();
            }
        }
        let supervisor = Supervisor::new();
        let worker = match &self.worker {
            Some(handler) => {
                let names: Vec<String> = self
                    .topics
                    .iter()
                    .filter(|(_, partitions)| **partitions > 0)
                    .map(|(topic, _)| format!("{topic}-{suffix}"))
                    .collect();
                let names: Vec<&str> = names.iter().map(String::as_str).collect();
                let cluster: Arc<dyn Cluster> = Arc::clone(&cluster) as _;
                Some(start_worker(&cluster, &names, handler, &supervisor).await)
            }
            None => None,
        };
        let speaks_tls = self.config.grpc.tls.is_some();
        let gateway = Gateway::start(self.config, routes).await?;
        let endpoint = Endpoint::try_from(format!("http://{}", gateway.grpc_address())).unwrap();
        let channel = match speaks_tls {
            // The test makes channels of its own.
            true => endpoint.connect_lazy(),
            false => endpoint.connect().await.unwrap(),
        };
        Ok(TestGateway {
            gateway: Some(gateway),
            cluster,
            broker,
            bootstrap,
            _worker: worker,
            channel,
            suffix,
        })
    }

    /// Every request topic gets the test's suffix.
    fn sources(&self, suffix: &str) -> Sources {
        let plain = route::compile(&Sources {
            protos: self.protos.clone(),
            custom_dialect: self.custom_dialect.clone(),
            schema_registry: self.config.schema_registry.is_some(),
            ..Sources::default()
        })
        .unwrap();
        let mut sources = Sources {
            protos: self.protos.clone(),
            custom_dialect: self.custom_dialect.clone(),
            schema_registry: self.config.schema_registry.is_some(),
            ..Sources::default()
        };
        for (name, settings) in &self.methods {
            let overlay = Overlay { settings: settings.clone(), ..Overlay::default() };
            sources.methods.insert(name.clone(), overlay);
        }
        for route in plain.routes() {
            let topic = format!("{}-{suffix}", route.request_topic);
            let overlay = sources.services.entry(route.service.to_string()).or_default();
            overlay.settings = self.services.get(&*route.service).cloned().unwrap_or_default();
            overlay.settings.request_topic = setting(topic);
        }
        sources
    }
}

/// Leaders may not know a topic yet that was created a moment ago.
async fn start_worker(
    cluster: &Arc<dyn Cluster>,
    topics: &[&str],
    handler: &Arc<dyn Handler>,
    supervisor: &Supervisor,
) -> Worker {
    for _ in 0..100 {
        match Worker::start(Arc::clone(cluster), topics, Arc::clone(handler), supervisor).await {
            Ok(worker) => return worker,
            Err(_) => tokio::time::sleep(Duration::from_millis(50)).await,
        }
    }
    panic!("no worker on {topics:?}");
}

impl TestGateway {
    pub fn gateway(&self) -> &Gateway {
        self.gateway.as_ref().unwrap()
    }

    pub fn take_gateway(&mut self) -> Gateway {
        self.gateway.take().unwrap()
    }

    /// A broker's address.
    pub fn bootstrap(&self) -> &str {
        &self.bootstrap
    }

    pub fn broker(&self) -> &DevBroker {
        self.broker.as_ref().unwrap()
    }

    pub fn take_broker(&mut self) -> DevBroker {
        self.broker.take().unwrap()
    }

    /// The topic's name in this test's cluster.
    pub fn topic(&self, name: &str) -> String {
        format!("{name}-{}", self.suffix)
    }

    pub async fn cluster_topics(&self) -> Vec<String> {
        self.cluster.topics().await.unwrap().into_iter().map(|topic| topic.name).collect()
    }

    pub fn replies_of(&self, kind: &'static str) -> u64 {
        self.gateway().instance().metrics.replies_of(kind)
    }

    pub async fn call<Q: Message, R: Message + Default>(
        &self,
        path: &'static str,
        message: Q,
    ) -> Result<Response<R>, Status> {
        self.send(path, Request::new(message)).await
    }

    pub async fn send<Q: Message, R: Message + Default>(
        &self,
        path: &'static str,
        request: Request<Q>,
    ) -> Result<Response<R>, Status> {
        let answered =
            unary(self.channel.clone(), path, request.map(|m| Bytes::from(m.encode_to_vec()))).await?;
        let (metadata, message, extensions) = answered.into_parts();
        let message = R::decode(message).expect("a message of the method's type");
        Ok(Response::from_parts(metadata, message, extensions))
    }

    pub async fn raw(
        &self,
        path: &'static str,
        message: impl Into<Bytes>,
    ) -> Result<Response<Bytes>, Status> {
        unary(self.channel.clone(), path, Request::new(message.into())).await
    }

    /// Waits until nothing is pending.
    pub async fn settled(&self) {
        self.until("nothing is pending", || self.gateway().instance().pending_calls() == 0).await;
    }

    pub async fn until(&self, what: &str, holds: impl Fn() -> bool) {
        until(what, holds).await;
    }

    /// Writes a record to the instance's reply topic.
    pub async fn write_reply(&self, record: Record) {
        let topic = self.gateway().instance().reply_topic().to_string();
        let mut writer = self.cluster.writer(&topic, 0).await.unwrap();
        writer.produce(&[record], antiphon::terms::Compression::None).await.unwrap();
    }

    /// Stops the gateway in good order and asserts that it leaves nothing.
    pub async fn stop(mut self) {
        let gateway = self.take_gateway();
        let instance = Arc::clone(gateway.instance());
        tokio::time::timeout(PATIENCE, gateway.stop())
            .await
            .expect("stops in time")
            .expect("stops in good order");
        assert_eq!(instance.pending_calls(), 0, "calls are left pending");
        let reply_topic = instance.reply_topic();
        // A deletion that is done may not have come round to every broker yet.
        let deadline = tokio::time::Instant::now() + PATIENCE;
        while self.cluster_topics().await.iter().any(|topic| **topic == **reply_topic) {
            assert!(tokio::time::Instant::now() < deadline, "{reply_topic} is left behind");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }
}

impl Drop for TestGateway {
    fn drop(&mut self) {
        if let Some(gateway) = &self.gateway
            && !std::thread::panicking()
        {
            assert_eq!(gateway.instance().pending_calls(), 0, "calls are left pending");
        }
    }
}

pub async fn until(what: &str, holds: impl Fn() -> bool) {
    let deadline = tokio::time::Instant::now() + PATIENCE;
    while !holds() {
        assert!(tokio::time::Instant::now() < deadline, "not within {PATIENCE:?}: {what}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

pub async fn until_async(what: &str, holds: impl AsyncFn() -> bool) {
    let deadline = tokio::time::Instant::now() + PATIENCE;
    while !holds().await {
        assert!(tokio::time::Instant::now() < deadline, "not within {PATIENCE:?}: {what}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// A unary call with bytes both ways.
pub async fn unary(
    channel: Channel,
    path: &'static str,
    request: Request<Bytes>,
) -> Result<Response<Bytes>, Status> {
    let mut client = tonic::client::Grpc::new(channel).max_decoding_message_size(64 << 20);
    client.ready().await.map_err(|error| Status::unavailable(error.to_string()))?;
    client.unary(request, http::uri::PathAndQuery::from_static(path), RawCodec).await
}

/// A call whose answer is a stream, with bytes both ways.
pub async fn streaming(
    channel: Channel,
    path: &'static str,
    request: Request<Bytes>,
) -> Result<Response<tonic::Streaming<Bytes>>, Status> {
    let mut client = tonic::client::Grpc::new(channel)
        .accept_compressed(tonic::codec::CompressionEncoding::Gzip)
        .max_decoding_message_size(64 << 20);
    client.ready().await.map_err(|error| Status::unavailable(error.to_string()))?;
    client.server_streaming(request, http::uri::PathAndQuery::from_static(path), RawCodec).await
}

pub fn trailer(metadata: &MetadataMap, name: &str) -> Option<String> {
    metadata.get(name).and_then(|value| value.to_str().ok()).map(str::to_owned)
}

struct RawCodec;

impl Codec for RawCodec {
    type Encode = Bytes;
    type Decode = Bytes;
    type Encoder = Self;
    type Decoder = Self;

    fn encoder(&mut self) -> Self {
        Self
    }

    fn decoder(&mut self) -> Self {
        Self
    }
}

impl Encoder for RawCodec {
    type Item = Bytes;
    type Error = Status;

    fn encode(&mut self, item: Bytes, target: &mut EncodeBuf<'_>) -> Result<(), Status> {
        bytes::BufMut::put(target, item);
        Ok(())
    }
}

impl Decoder for RawCodec {
    type Item = Bytes;
    type Error = Status;

    fn decode(&mut self, source: &mut DecodeBuf<'_>) -> Result<Option<Bytes>, Status> {
        let length = bytes::Buf::remaining(source);
        Ok(Some(bytes::Buf::copy_to_bytes(source, length)))
    }
}
