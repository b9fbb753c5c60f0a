//! `antiphon dlq`: dead letters listed, shown, sent again, thrown away.
#![allow(clippy::print_stdout, clippy::print_stderr, reason = "printing is what this command is for")]

mod flags;
mod list;
pub(crate) mod print;
mod purge;
mod replay;
mod show;

use std::collections::HashMap;
use std::process::ExitCode;
use std::sync::Arc;

use antiphon::config::{self, Flags};
use antiphon::dead_letters::{self, DeadLetterTopic, Error, Scan};
use antiphon::kafka::{Connector, KafkaCluster};
use antiphon::route::{self, RouteTable};
use antiphon::telemetry;
use antiphon::terms::Compression;
use tokio::time::Instant;

use flags::Common;
pub(crate) use flags::{DlqCommand, time};

use crate::exit::{self, Exit};
use crate::serve::block_on;

/// Runs one of the commands.
pub(crate) fn run(command: &DlqCommand) -> ExitCode {
    let common = command.common();
    match Connected::prepare(common) {
        Ok(prepared) => block_on(async {
            let ended = match Connected::open(prepared, common).await {
                Ok(connected) => connected.run(command).await,
                Err(failure) => Err(failure),
            };
            match ended {
                Ok(code) => code,
                Err(failure) => failure.report(),
            }
        }),
        Err(failure) => failure.report(),
    }
}

/// Why a command has failed, and with what code.
pub(crate) struct Failed(String, Exit);

impl Failed {
    fn usage(what: impl Into<String>) -> Self {
        Self(what.into(), exit::USAGE)
    }

    fn report(self) -> ExitCode {
        eprintln!("antiphon: {}", self.0);
        self.1.into()
    }
}

impl From<Error> for Failed {
    fn from(error: Error) -> Self {
        let exit = match error {
            Error::Cluster(_) | Error::Fetch { .. } => exit::UNAVAILABLE,
            Error::NoTopic(_) | Error::NoPartition { .. } | Error::WhichPartition { .. } => exit::USAGE,
        };
        Self(error.to_string(), exit)
    }
}

/// What is known before anything is connected.
struct Prepared {
    connector: Arc<Connector>,
    kafka: antiphon::kafka::config::Config,
    routes: Option<RouteTable>,
}

/// A cluster and the topic that a command is about.
pub(crate) struct Connected {
    cluster: KafkaCluster,
    topics: HashMap<String, i32>,
    topic: DeadLetterTopic,
    routes: Option<RouteTable>,
    compression: Compression,
    deadline: Instant,
    now_ms: i64,
}

impl Connected {
    fn prepare(common: &Common) -> Result<Prepared, Failed> {
        let wrong = |text: String| Failed(text, exit::CONFIG);
        let flags = Flags {
            config: common.config.clone(),
            protos: common.protos.clone(),
            proto_paths: common.proto_paths.clone(),
            descriptor_sets: common.descriptor_sets.clone(),
            bootstrap_servers: common.bootstrap_servers.clone(),
            ..Flags::default()
        };
        let config = config::load(&flags).map_err(|mistakes| wrong(mistakes.to_string()))?;
        let log = telemetry::config::Config { filter: "warn".to_owned(), ..config.log };
        telemetry::init(&log).map_err(|error| wrong(error.to_string()))?;
        let named = !config.routes.protos.is_empty() || !config.routes.descriptor_sets.is_empty();
        let routes = named.then(|| route::compile(&config.routes)).transpose();
        let mut kafka = config.gateway.kafka;
        kafka.connect_timeout = kafka.connect_timeout.min(common.timeout);
        let connector = Connector::new(&kafka).map_err(|error| wrong(error.to_string()))?;
        let routes = routes.map_err(|mistakes| wrong(mistakes.to_string()))?;
        Ok(Prepared { connector: Arc::new(connector), kafka, routes })
    }

    async fn open(prepared: Prepared, common: &Common) -> Result<Self, Failed> {
        let Prepared { connector, kafka, routes } = prepared;
        let cluster = KafkaCluster::new(&kafka, connector);
        let topics = dead_letters::topics(&cluster).await.map_err(|error| {
            Failed(format!("{}: {error}", kafka.bootstrap_servers.join(",")), exit::UNAVAILABLE)
        })?;
        let named = dead_letter_topic_of(routes.as_ref(), &topics, &common.topic);
        let topic = DeadLetterTopic::find(&topics, &named)?;
        Ok(Self {
            cluster,
            topics,
            topic,
            routes,
            compression: kafka.compression,
            deadline: Instant::now() + common.timeout,
            now_ms: print::now_ms(),
        })
    }

    async fn run(self, command: &DlqCommand) -> Result<ExitCode, Failed> {
        match command {
            DlqCommand::List(flags) => list::run(&self, flags).await,
            DlqCommand::Show(flags) => show::run(&self, flags).await,
            DlqCommand::Replay(flags) => replay::run(&self, flags).await,
            DlqCommand::Purge(flags) => purge::run(&self, flags).await,
        }
    }

    /// Says on standard error what could not be read. `false`: not all was.
    fn report(&self, scan: &Scan) -> bool {
        for (place, why) in &scan.undecodable_places {
            eprintln!("antiphon: {}/{place} cannot be decoded and was stepped over: {why}", self.topic.name);
        }
        if scan.undecodable > scan.undecodable_places.len() as u64 {
            eprintln!("antiphon: {} records in all cannot be decoded", scan.undecodable);
        }
        for (partition, why) in &scan.unfinished {
            eprintln!("antiphon: {}/{partition} was not read to its end: {why}", self.topic.name);
        }
        scan.unfinished.is_empty()
    }

    /// Whether the topic is one for dead letters, by its name or by the routes.
    fn is_for_dead_letters(&self) -> bool {
        let of_route = |table: &RouteTable| {
            table.routes().iter().any(|route| *route.dead_letter_topic == self.topic.name)
        };
        self.topic.is_named_as_one() || self.routes.as_ref().is_some_and(of_route)
    }
}

/// What the routes say of a request topic's dead letters, where they do.
fn dead_letter_topic_of(routes: Option<&RouteTable>, topics: &HashMap<String, i32>, named: &str) -> String {
    let routes = routes.map(RouteTable::routes).unwrap_or_default();
    let of_topic = routes.iter().filter(|route| *route.request_topic == *named);
    let mut theirs =
        of_topic.map(|route| &route.dead_letter_topic).filter(|topic| topics.contains_key(&***topic));
    theirs.next().map_or_else(|| named.to_owned(), |topic| topic.to_string())
}
