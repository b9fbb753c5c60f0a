//! The flags of `antiphon dlq`.

use std::path::PathBuf;
use std::time::Duration;

use antiphon::dead_letters::{Filter, Place, operator, parse_when};
use antiphon::route::parse_duration;
use antiphon::terms::DeadLetterClass;
use clap::{Args, Subcommand};

use super::Failed;

/// What can be done with dead letters.
#[derive(Debug, Subcommand)]
pub(crate) enum DlqCommand {
    /// List the dead letters of a topic, the newest last
    #[command(after_help = LIST_EXAMPLES)]
    List(ListFlags),
    /// Show one dead letter whole, and its late reply
    #[command(after_help = SHOW_EXAMPLES)]
    Show(ShowFlags),
    /// Send requests again, to the topic and partition that they came from
    #[command(after_help = REPLAY_EXAMPLES)]
    Replay(ReplayFlags),
    /// Throw away the dead letters before an offset or a time
    #[command(after_help = PURGE_EXAMPLES)]
    Purge(PurgeFlags),
}

const LIST_EXAMPLES: &str = "\
Examples:
  antiphon dlq list payment_request
  antiphon dlq list payment_request.DLQ --since 10m --class timeout
  antiphon dlq list payment_request --method payments.v1.PaymentService/Pay --json

BESIDE tells what else is known of a request: \"done: OK\" is a request whose
reply came late, so it was carried out although its caller was told otherwise.";

const SHOW_EXAMPLES: &str = "\
Examples:
  antiphon dlq show payment_request 2/41
  antiphon dlq show payment_request 00000102-0003-8004-8005-000000000006 --config antiphon.toml

With --config or --proto, messages are decoded.";

const REPLAY_EXAMPLES: &str = "\
Examples:
  antiphon dlq replay payment_request --since 10m --dry-run
  antiphon dlq replay payment_request 2/41 2/44 --yes
  antiphon dlq replay payment_request --all --rate 50/s --yes

Key, value, correlation id and idempotency key stay as they were. The deadline,
which has passed, goes (or is renewed by --deadline), and so does the reply
topic if it no longer exists. Requests that were carried out, or replayed
before, are left alone. Of each replay a note is written beside the letter.
Exit codes: 0 if all was sent, 65 if some was not or is in doubt, 64 for wrong
usage, 69 if Kafka cannot be had, 78 for wrong configuration.";

const PURGE_EXAMPLES: &str = "\
Examples:
  antiphon dlq purge payment_request --before 168h --dry-run
  antiphon dlq purge payment_request --before 2026-01-31T00:00:00Z --yes
  antiphon dlq purge payment_request --partition 2 --before 41 --yes
  antiphon dlq purge payment_request --before end --yes";

/// What every command needs.
#[derive(Debug, Args)]
pub(crate) struct Common {
    /// Dead-letter topic, or the request topic that it belongs to
    pub(super) topic: String,

    /// TOML file with everything that can be set [env: ANTIPHON_CONFIG]
    #[arg(long, value_name = "FILE")]
    pub(super) config: Option<PathBuf>,

    /// Kafka brokers to ask for the rest [default: 127.0.0.1:9092]
    #[arg(long, value_name = "HOST:PORT,...", value_delimiter = ',')]
    pub(super) bootstrap_servers: Vec<String>,

    /// .proto file, for decoding messages; may be given more than once
    #[arg(long = "proto", value_name = "FILE")]
    pub(super) protos: Vec<PathBuf>,

    /// Folder in which imports are looked for; may be given more than once
    #[arg(long = "proto-path", value_name = "DIR")]
    pub(super) proto_paths: Vec<PathBuf>,

    /// Encoded FileDescriptorSet, for decoding messages
    #[arg(long = "descriptor-set", value_name = "FILE")]
    pub(super) descriptor_sets: Vec<PathBuf>,

    /// How long reading may take
    #[arg(long, value_name = "TIME", default_value = "60s", value_parser = time)]
    pub(super) timeout: Duration,
}

/// Which letters are meant.
#[derive(Debug, Args)]
pub(crate) struct FilterFlags {
    /// timeout, undecodable-reply, rejected, late-reply or replayed; may be
    /// given more than once [default: requests of any class]
    #[arg(long, value_name = "CLASS")]
    class: Vec<DeadLetterClass>,

    /// Failed at this time or later: RFC 3339, or how long ago, such as 10m
    #[arg(long, value_name = "TIME")]
    since: Option<String>,

    /// Failed before this time
    #[arg(long, value_name = "TIME")]
    until: Option<String>,

    /// With this key; in hexadecimal where it is no text
    #[arg(long)]
    key: Option<String>,

    /// With this correlation id; may be given more than once
    #[arg(long, value_name = "ID")]
    correlation_id: Vec<String>,

    /// Of this method, pkg.Service/Method
    #[arg(long)]
    method: Option<String>,

    /// In this partition of the dead-letter topic
    #[arg(long, value_name = "N")]
    partition: Option<i32>,
}

impl FilterFlags {
    /// The filter, with what was named besides: places and correlation ids.
    pub(super) fn filter(&self, named: &[String], now_ms: i64) -> Result<Filter, Failed> {
        let when = |text: &Option<String>| {
            let parse = |text: &String| parse_when(text, now_ms);
            text.as_ref().map(parse).transpose().map_err(|error| Failed::usage(error.to_string()))
        };
        let mut filter = Filter {
            classes: self.class.clone(),
            since_ms: when(&self.since)?,
            until_ms: when(&self.until)?,
            key: self.key.clone(),
            method: self.method.clone(),
            partition: self.partition,
            places: Vec::new(),
            correlation_ids: self.correlation_id.clone(),
        };
        for name in named {
            match name.parse::<Place>() {
                Ok(place) => filter.places.push(place),
                Err(_) if name.contains('/') => return Err(Failed::usage(format!("{name:?} is no place"))),
                Err(_) => filter.correlation_ids.push(name.clone()),
            }
        }
        Ok(filter)
    }
}

/// The flags of `antiphon dlq list`.
#[derive(Debug, Args)]
pub(crate) struct ListFlags {
    #[command(flatten)]
    common: Common,
    #[command(flatten)]
    pub(super) filter: FilterFlags,

    /// The newest so many
    #[arg(long, value_name = "N", default_value_t = 100, value_parser = clap::value_parser!(u32).range(1..=100_000))]
    pub(super) limit: u32,

    /// One JSON object a line
    #[arg(long)]
    pub(super) json: bool,
}

/// The flags of `antiphon dlq show`.
#[derive(Debug, Args)]
pub(crate) struct ShowFlags {
    #[command(flatten)]
    common: Common,

    /// PARTITION/OFFSET in the dead-letter topic, or a correlation id
    #[arg(value_name = "PLACE|ID")]
    pub(super) which: String,

    /// One JSON object
    #[arg(long)]
    pub(super) json: bool,
}

/// The flags of `antiphon dlq replay`.
#[derive(Debug, Args)]
pub(crate) struct ReplayFlags {
    #[command(flatten)]
    common: Common,

    /// PARTITION/OFFSET in the dead-letter topic, or a correlation id
    #[arg(value_name = "PLACE|ID")]
    pub(super) which: Vec<String>,

    #[command(flatten)]
    pub(super) filter: FilterFlags,

    /// Every request there is; needed where nothing else says which
    #[arg(long)]
    pub(super) all: bool,

    /// Say what would be sent, and send nothing
    #[arg(long)]
    pub(super) dry_run: bool,

    /// Send without asking; needed for more than one request, and on a terminal
    #[arg(long)]
    pub(super) yes: bool,

    /// Also what a worker has answered already
    #[arg(long)]
    pub(super) even_if_done: bool,

    /// Also what was replayed before
    #[arg(long)]
    pub(super) again: bool,

    /// Give each request a new deadline, so long after it is sent
    #[arg(long, value_name = "TIME", value_parser = time)]
    pub(super) deadline: Option<Duration>,

    /// Who does it: goes into each request and into the note beside its letter
    #[arg(long, value_name = "NAME", value_parser = operator)]
    pub(super) by: Option<String>,

    /// No faster than this, such as 50/s or 100/m
    #[arg(long, value_name = "N/s", value_parser = pause)]
    pub(super) rate: Option<Duration>,

    /// The oldest so many
    #[arg(long, value_name = "N", default_value_t = 10_000, value_parser = clap::value_parser!(u32).range(1..=100_000))]
    pub(super) limit: u32,

    /// One JSON object a line
    #[arg(long)]
    pub(super) json: bool,
}

/// The flags of `antiphon dlq purge`.
#[derive(Debug, Args)]
pub(crate) struct PurgeFlags {
    #[command(flatten)]
    common: Common,

    /// An offset, a time (RFC 3339, or how long ago, such as 12h), or "end"
    #[arg(long, value_name = "OFFSET|TIME|end")]
    pub(super) before: String,

    /// Only this partition
    #[arg(long, value_name = "N")]
    pub(super) partition: Option<i32>,

    /// Say what would go, and throw nothing away
    #[arg(long)]
    pub(super) dry_run: bool,

    /// Throw it away
    #[arg(long)]
    pub(super) yes: bool,

    /// Also of a topic that is not known to hold dead letters
    #[arg(long)]
    pub(super) any_topic: bool,
}

impl DlqCommand {
    /// What every command has.
    pub(super) fn common(&self) -> &Common {
        match self {
            Self::List(flags) => &flags.common,
            Self::Show(flags) => &flags.common,
            Self::Replay(flags) => &flags.common,
            Self::Purge(flags) => &flags.common,
        }
    }
}

pub(crate) fn time(text: &str) -> Result<Duration, String> {
    match parse_duration(text) {
        Ok(Duration::ZERO) => Err("must be more than zero".to_owned()),
        parsed => parsed.map_err(|error| error.to_string()),
    }
}

/// The pause between two, from a rate.
fn pause(text: &str) -> Result<Duration, String> {
    let (number, unit) = text.split_once('/').unwrap_or((text, "s"));
    let per = match unit {
        "s" => Duration::from_secs(1),
        "m" => Duration::from_secs(60),
        _ => return Err("expected a number a second or a minute, such as 50/s".to_owned()),
    };
    match number.parse::<u32>() {
        Ok(number) if number > 0 => Ok(per / number),
        _ => Err("expected a whole number above zero, such as 50/s".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rate_is_a_pause() {
        assert_eq!(pause("50/s"), Ok(Duration::from_millis(20)));
        assert_eq!(pause("50"), Ok(Duration::from_millis(20)));
        assert_eq!(pause("60/m"), Ok(Duration::from_secs(1)));
        for wrong in ["", "0/s", "x/s", "5/h", "-1"] {
            assert!(pause(wrong).is_err(), "{wrong}");
        }
    }
}
