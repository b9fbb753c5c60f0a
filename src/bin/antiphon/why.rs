//! `antiphon why`: what became of one call.
#![allow(clippy::print_stdout, clippy::print_stderr, reason = "printing is what this command is for")]

mod flags;
mod print;

use std::collections::BTreeSet;
use std::io::{IsTerminal as _, Write as _};
use std::process::ExitCode;
use std::sync::Arc;

use antiphon::config::{self, Flags};
use antiphon::dead_letters::parse_when;
use antiphon::kafka::{Connector, KafkaCluster};
use antiphon::route::{self, RouteTable};
use antiphon::telemetry;
use antiphon::transport::Cluster as _;
use antiphon::why::{Error, Found, Limits, Name, Question, Scope, Searched, investigate, scope};
use indicatif::{ProgressBar, ProgressStyle};
use tokio::time::Instant;

pub(crate) use flags::WhyFlags;

use crate::dlq::print::now_ms;
use crate::exit::{self, Exit};
use crate::serve::block_on;

/// Finds the call and prints its story.
pub(crate) fn run(flags: &WhyFlags) -> ExitCode {
    match Prepared::new(flags) {
        Ok(prepared) => block_on(async { prepared.run(flags).await.unwrap_or_else(Failed::report) }),
        Err(failed) => failed.report(),
    }
}

/// Why there is no answer, and with what code.
struct Failed(String, Exit);

impl Failed {
    fn report(self) -> ExitCode {
        eprintln!("antiphon: {}", self.0);
        self.1.into()
    }
}

impl From<Error> for Failed {
    fn from(error: Error) -> Self {
        let exit = if matches!(error, Error::NoTopic(_)) { exit::USAGE } else { exit::UNAVAILABLE };
        Self(error.to_string(), exit)
    }
}

/// What is known before anything is connected.
struct Prepared {
    config: config::Config,
    connector: Arc<Connector>,
    routes: Option<RouteTable>,
}

impl Prepared {
    fn new(flags: &WhyFlags) -> Result<Self, Failed> {
        let wrong = |text: String| Failed(text, exit::CONFIG);
        let settings = Flags {
            config: flags.config.clone(),
            protos: flags.protos.clone(),
            proto_paths: flags.proto_paths.clone(),
            descriptor_sets: flags.descriptor_sets.clone(),
            bootstrap_servers: flags.bootstrap_servers.clone(),
            ..Flags::default()
        };
        let mut config = config::load(&settings).map_err(|mistakes| wrong(mistakes.to_string()))?;
        let log = telemetry::config::Config { filter: "error".to_owned(), ..config.log };
        telemetry::init(&log).map_err(|error| wrong(error.to_string()))?;
        let named = !config.routes.protos.is_empty() || !config.routes.descriptor_sets.is_empty();
        let routes = named.then(|| route::compile(&config.routes)).transpose();
        let routes = routes.map_err(|mistakes| wrong(mistakes.to_string()))?;
        let kafka = &mut config.gateway.kafka;
        kafka.connect_timeout = kafka.connect_timeout.min(flags.timeout);
        let connector = Connector::new(kafka).map_err(|error| wrong(error.to_string()))?;
        Ok(Self { config, connector: Arc::new(connector), routes })
    }

    async fn run(self, flags: &WhyFlags) -> Result<ExitCode, Failed> {
        let kafka = &self.config.gateway.kafka;
        let cluster = KafkaCluster::new(kafka, Arc::clone(&self.connector));
        let existing = cluster.topics().await.map_err(|error| {
            Failed(format!("{}: {error}", kafka.bootstrap_servers.join(",")), exit::UNAVAILABLE)
        })?;
        let existing: BTreeSet<String> = existing.into_iter().map(|topic| topic.name).collect();
        let question = self.question(flags, &existing)?;
        let bar = progress_bar();
        let mut watch = |searched: &Searched| {
            bar.set_position(searched.records);
            bar.set_message(format!("{}, {} MB", searched.at, searched.bytes >> 20));
        };
        let found = investigate(&cluster, &cluster, &question, &mut watch).await;
        bar.finish_and_clear();
        Ok(self.report(flags, &question, &found?))
    }

    fn question(&self, flags: &WhyFlags, existing: &BTreeSet<String>) -> Result<Question, Failed> {
        let now_ms = now_ms();
        let when =
            |text: &String| parse_when(text, now_ms).map_err(|error| Failed(error.to_string(), exit::USAGE));
        let record = flags.record.as_ref().map(|at| (at.topic.clone(), at.partition, at.offset));
        let reply_prefix = self.config.gateway.reply.topic_prefix.clone();
        let named: BTreeSet<String> = flags.topics.iter().cloned().collect();
        let of_record = flags.record.iter().map(|at| at.topic.clone());
        let Scope { request_topics, dead_letter_topics } =
            scope(self.routes.as_ref(), existing, &reply_prefix, named, of_record)?;
        let since_ms = when(&flags.since)?;
        Ok(Question {
            name: flags.name.as_deref().map(Name::new),
            record,
            since_ms,
            until_ms: flags.until.as_ref().map(when).transpose()?,
            request_topics,
            dead_letter_topics,
            reply_prefix,
            custom: self.config.routes.custom_dialect.clone(),
            limits: Limits { records_max: flags.records_max, bytes_max: flags.megabytes_max << 20 },
            deadline: Instant::now() + flags.timeout,
            now_ms,
        })
    }

    fn report(&self, flags: &WhyFlags, question: &Question, found: &Found) -> ExitCode {
        let page = print::Page { routes: self.routes.as_ref(), question, with_value: flags.value };
        let text = if flags.json { page.json(found) } else { page.text(found) };
        // A reader that has gone, as in `why | head`, is no failure.
        let _ = std::io::stdout().write_all(text.as_bytes());
        for why in &found.searched.unfinished {
            eprintln!("antiphon: not read to its end: {why}");
        }
        if found.stories.is_empty() { exit::NOT_FOUND.into() } else { ExitCode::SUCCESS }
    }
}

fn progress_bar() -> ProgressBar {
    if !std::io::stderr().is_terminal() {
        return ProgressBar::hidden();
    }
    let style = ProgressStyle::with_template("{spinner} {pos} records, {per_sec}, {wide_msg}");
    ProgressBar::new_spinner().with_style(style.unwrap_or_else(|_| ProgressStyle::default_spinner()))
}
