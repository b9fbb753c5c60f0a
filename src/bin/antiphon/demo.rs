//! `antiphon demo`: broker, workers and gateway in one process, with nothing
//! to install.
#![allow(clippy::print_stderr, reason = "printing is what this command is for")]

use std::io::Write as _;
use std::net::SocketAddr;
use std::process::ExitCode;
use std::sync::Arc;

use antiphon::app::{Config, Gateway};
use antiphon::dev_broker::{self, DevBroker};
use antiphon::kafka::{Connector, KafkaCluster};
use antiphon::route::{self, RouteTable, Sources};
use antiphon::supervisor::Supervisor;
use antiphon::telemetry;
use antiphon::transport::Cluster;
use antiphon::worker::Worker;
use antiphon::worker::samples::{Samples, TOPICS};
use tokio::net::TcpListener;

use crate::exit;
use crate::serve::{Stop, announce, block_on, could_not_start, until_stopped};

/// The flags of `antiphon demo`.
#[derive(Debug, clap::Args)]
pub(crate) struct DemoFlags {
    /// Address of the gRPC listener [default: 127.0.0.1:50051, or a free port]
    #[arg(long, value_name = "ADDR")]
    listen: Option<SocketAddr>,
}

/// Partitions of each request topic.
const PARTITIONS: i32 = 6;

/// The sample protos, as they were when this was compiled.
const PROTOS: [(&str, &str); 3] = [
    ("payments/v1/payments.proto", include_str!("../../../proto/payments/v1/payments.proto")),
    ("delivery/v1/delivery.proto", include_str!("../../../proto/delivery/v1/delivery.proto")),
    ("echo/v1/echo.proto", include_str!("../../../proto/echo/v1/echo.proto")),
];

/// Starts all three and serves until a signal.
pub(crate) fn run(flags: &DemoFlags) -> ExitCode {
    let log = telemetry::config::Config { filter: "warn".to_owned(), ..Default::default() };
    if let Err(error) = telemetry::init(&log) {
        eprintln!("antiphon: {error}");
        return exit::OS.into();
    }
    let routes = match sample_routes() {
        Ok(routes) => routes,
        Err(error) => {
            eprintln!("antiphon: the sample protos could not be loaded: {error}");
            return exit::SOFTWARE.into();
        }
    };
    block_on(demo(flags.listen, routes))
}

/// Compiled from a temporary folder, just as a user's own files are.
fn sample_routes() -> Result<RouteTable, Box<dyn std::error::Error>> {
    let folder = tempfile::tempdir()?;
    let mut sources = Sources { include_paths: vec![folder.path().to_owned()], ..Sources::default() };
    for (name, text) in PROTOS {
        let path = folder.path().join(name);
        if let Some(parent) = path.parent() {
            std::fs::create_dir_all(parent)?;
        }
        std::fs::write(&path, text)?;
        sources.protos.push(path);
    }
    Ok(route::compile(&sources)?)
}

async fn demo(listen: Option<SocketAddr>, routes: RouteTable) -> ExitCode {
    match start(listen, routes).await {
        Ok((gateway, stop, _parts)) => {
            announce(&gateway);
            invite(&gateway);
            until_stopped(gateway, stop).await
        }
        Err(code) => code,
    }
}

/// What the demo needs alive beside its gateway.
type Parts = (DevBroker, Worker);

async fn start(listen: Option<SocketAddr>, routes: RouteTable) -> Result<(Gateway, Stop, Parts), ExitCode> {
    let failed = |what: &str, error: &dyn std::fmt::Display| {
        eprintln!("antiphon: {what}: {error}");
        ExitCode::from(exit::UNAVAILABLE)
    };
    let stop = Stop::listen().map_err(|error| failed("cannot listen for signals", &error))?;
    let broker = DevBroker::start(dev_broker::Config {
        listen: free_or([127, 0, 0, 1].into(), 9092).await,
        default_partitions: PARTITIONS,
        auto_create: true,
        ..dev_broker::Config::default()
    });
    let broker = broker.await.map_err(|error| failed("the embedded broker could not start", &error))?;
    for topic in TOPICS {
        broker.create_topic(topic, PARTITIONS).map_err(|error| failed("no topic", &error))?;
    }

    let mut config = Config::default();
    config.kafka.bootstrap_servers = vec![broker.bootstrap()];
    config.grpc.listen = match listen {
        Some(address) => address,
        None => free_or([127, 0, 0, 1].into(), 50051).await,
    };
    config.admin.listen = free_or([127, 0, 0, 1].into(), 9464).await;

    let connector = Connector::new(&config.kafka).map_err(|error| failed("Kafka settings", &error))?;
    let cluster: Arc<dyn Cluster> = Arc::new(KafkaCluster::new(&config.kafka, Arc::new(connector)));
    let supervisor = Supervisor::new();
    let worker = Worker::start(cluster, &TOPICS, Arc::new(Samples::default()), &supervisor);
    let worker = worker.await.map_err(|error| failed("the sample workers could not start", &error))?;
    let gateway = Gateway::start(config, routes).await.map_err(|error| could_not_start(&error))?;
    Ok((gateway, stop, (broker, worker)))
}

/// The usual port, or any that is free.
async fn free_or(host: std::net::IpAddr, port: u16) -> SocketAddr {
    let usual = SocketAddr::new(host, port);
    match TcpListener::bind(usual).await {
        Ok(_) => usual,
        Err(_) => SocketAddr::new(host, 0),
    }
}

fn invite(gateway: &Gateway) {
    let address = gateway.grpc_address();
    // A reader that has gone is no failure.
    let _ = writeln!(
        std::io::stdout(),
        r#"
Try it with grpcurl, in another terminal; no proto is needed, the gateway reflects:

  grpcurl -plaintext {address} list
  grpcurl -plaintext -d '{{"order_id":"order-1","amount_minor":1250,"currency":"EUR"}}' {address} payments.v1.PaymentService/Pay
  grpcurl -plaintext -d '{{"order_id":"order-1","amount_minor":0}}' {address} payments.v1.PaymentService/Pay
  grpcurl -plaintext -d '{{"shop_id":7,"radius_m":1000,"trigger":"TRIGGER_OUTAGE"}}' {address} delivery.v1.DeliveryRadiusService/SetRadius

Metrics: http://{}/metrics   Ctrl-C stops it."#,
        gateway.admin_address(),
    );
}
