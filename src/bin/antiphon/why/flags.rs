//! The flags of `antiphon why`.

use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use antiphon::dead_letters::Place;
use clap::Args;

use crate::dlq::time;

/// Which call, and where to look for it.
#[derive(Debug, Args)]
pub(crate) struct WhyFlags {
    /// Correlation id, idempotency key or trace id of the call
    #[arg(required_unless_present = "record", value_parser = name)]
    pub(super) name: Option<String>,

    /// Where its request is, as the trailer antiphon-record says it
    #[arg(long, value_name = "TOPIC/PARTITION/OFFSET")]
    pub(super) record: Option<At>,

    /// Made at this time or later: RFC 3339, or how long ago, such as 10m
    #[arg(long, value_name = "TIME", default_value = "1h")]
    pub(super) since: String,

    /// Made before this time
    #[arg(long, value_name = "TIME")]
    pub(super) until: Option<String>,

    /// Only this request topic and its dead letters; may be given more than once
    #[arg(long = "topic", value_name = "TOPIC")]
    pub(super) topics: Vec<String>,

    /// TOML file with everything that can be set [env: ANTIPHON_CONFIG]
    #[arg(long, value_name = "FILE")]
    pub(super) config: Option<PathBuf>,

    /// Kafka brokers to ask for the rest [default: 127.0.0.1:9092]
    #[arg(long, value_name = "HOST:PORT,...", value_delimiter = ',')]
    pub(super) bootstrap_servers: Vec<String>,

    /// .proto file with the routes; may be given more than once
    #[arg(long = "proto", value_name = "FILE")]
    pub(super) protos: Vec<PathBuf>,

    /// Folder in which imports are looked for; may be given more than once
    #[arg(long = "proto-path", value_name = "DIR")]
    pub(super) proto_paths: Vec<PathBuf>,

    /// Encoded FileDescriptorSet with the routes
    #[arg(long = "descriptor-set", value_name = "FILE")]
    pub(super) descriptor_sets: Vec<PathBuf>,

    /// Show the first bytes of the values, and messages where the routes are known
    #[arg(long)]
    pub(super) value: bool,

    /// One JSON object a call
    #[arg(long)]
    pub(super) json: bool,

    /// How long the search may take
    #[arg(long, value_name = "TIME", default_value = "60s", value_parser = time)]
    pub(super) timeout: Duration,

    /// Records that the search may read
    #[arg(long, value_name = "N", default_value_t = 5_000_000, value_parser = clap::value_parser!(u64).range(1..))]
    pub(super) records_max: u64,

    /// Megabytes that the search may read
    #[arg(long, value_name = "N", default_value_t = 4_096, value_parser = clap::value_parser!(u64).range(1..=1 << 30))]
    pub(super) megabytes_max: u64,
}

/// A record's place in the cluster.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct At {
    pub(super) topic: String,
    pub(super) partition: i32,
    pub(super) offset: i64,
}

impl FromStr for At {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong =
            || format!("{text:?} is no place; expected TOPIC/PARTITION/OFFSET, such as payment_request/4/1");
        let (topic, place) = text.split_once('/').filter(|(topic, _)| !topic.is_empty()).ok_or_else(wrong)?;
        let Place { partition, offset } = place.parse().map_err(|_| wrong())?;
        Ok(Self { topic: topic.to_owned(), partition, offset })
    }
}

fn name(text: &str) -> Result<String, String> {
    match text.trim() {
        "" => Err("must not be empty".to_owned()),
        name => Ok(name.to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_place_is_what_the_trailer_says() {
        let at = At { topic: "payment_request".to_owned(), partition: 4, offset: 1 };
        assert_eq!("payment_request/4/1".parse(), Ok(at));
        for wrong in ["", "payment_request", "payment_request/4", "/4/1", "payment_request/-1/1", "t/4/x"] {
            assert!(wrong.parse::<At>().is_err(), "{wrong}");
        }
    }
}
