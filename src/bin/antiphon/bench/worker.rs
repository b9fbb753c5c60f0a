//! `antiphon bench worker`: answers `echo.v1.EchoService` on a Kafka cluster.

use std::process::ExitCode;
use std::sync::Arc;

use antiphon::kafka::{Connector, KafkaCluster, config};
use antiphon::supervisor::Supervisor;
use antiphon::transport::{Cluster, ClusterError};
use antiphon::worker::Worker;
use antiphon::worker::samples::Samples;

use super::flags::{KafkaFlags, WorkerFlags};
use super::unavailable;
use crate::serve::Stop;

/// The cluster's own default.
const REPLICATION_DEFAULT: i16 = -1;

pub(super) async fn run(flags: &WorkerFlags) -> ExitCode {
    match start(flags).await {
        Ok((_worker, mut stop)) => {
            println!("antiphon bench worker ready topic={}", flags.kafka.topic);
            stop.requested().await;
            ExitCode::SUCCESS
        }
        Err(text) => unavailable(&text),
    }
}

async fn start(flags: &WorkerFlags) -> Result<(Worker, Stop), String> {
    let stop = Stop::listen().map_err(|error| format!("cannot listen for signals: {error}"))?;
    let cluster = cluster(&flags.kafka)?;
    make_topic(&*cluster, &flags.kafka.topic, flags.partitions).await.map_err(|error| error.to_string())?;
    let topics = [flags.kafka.topic.as_str()];
    let worker = Worker::start(cluster, &topics, Arc::new(Samples::default()), &Supervisor::new()).await;
    Ok((worker.map_err(|error| error.to_string())?, stop))
}

pub(super) fn cluster(flags: &KafkaFlags) -> Result<Arc<dyn Cluster>, String> {
    let config = config::Config { bootstrap_servers: flags.bootstrap_servers.clone(), ..Default::default() };
    let connector = Connector::new(&config).map_err(|error| error.to_string())?;
    Ok(Arc::new(KafkaCluster::new(&config, Arc::new(connector))))
}

/// Creates the topic unless it is there, and waits until it is seen.
pub(super) async fn make_topic(
    cluster: &dyn Cluster,
    topic: &str,
    partitions: i32,
) -> Result<i32, ClusterError> {
    const LOOKS_MAX: u32 = 50;
    const PAUSE: std::time::Duration = std::time::Duration::from_millis(100);
    match cluster.create_topic(topic, partitions, REPLICATION_DEFAULT).await {
        Ok(()) | Err(ClusterError::TopicExists(_)) => {}
        Err(error) => return Err(error),
    }
    for _ in 0..LOOKS_MAX {
        let found = cluster.topics().await?.into_iter().find(|candidate| candidate.name == topic);
        // A leader may not know its partitions right after they were made.
        if let Some(found) = found
            && cluster.reader(topic, found.partitions - 1).await?.end_offset().await.is_ok()
        {
            return Ok(found.partitions);
        }
        tokio::time::sleep(PAUSE).await;
    }
    Err(ClusterError::NoSuchTopic(topic.to_owned()))
}
