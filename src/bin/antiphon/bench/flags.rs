//! The command line of `antiphon bench`.

use std::path::PathBuf;
use std::time::Duration;

use antiphon::route::parse_duration;

/// Calls in flight, of all connections.
const IN_FLIGHT_MAX: u32 = 1_000_000;
/// Calls on one connection, unless told otherwise: what servers commonly allow.
const CALLS_PER_CONNECTION: u32 = 100;
/// Connections, unless told otherwise.
const CONNECTIONS_DEFAULT_MAX: u32 = 64;
/// Connections that may be asked for.
const CONNECTIONS_MAX: i64 = 10_000;
/// Messages that are encoded before the run.
const KEYS_MAX: i64 = 1_000_000;

/// What is run.
#[derive(Debug, clap::Args)]
#[command(args_conflicts_with_subcommands = true, subcommand_negates_reqs = true)]
pub(crate) struct BenchFlags {
    #[command(subcommand)]
    pub(super) other: Option<Other>,
    #[command(flatten)]
    pub(super) load: Option<LoadFlags>,
}

/// What a measurement is compared with.
#[derive(Debug, clap::Subcommand)]
pub(super) enum Other {
    /// The same requests and replies on Kafka, without gRPC in front
    FloorKafka(FloorFlags),
    /// A tonic server that returns what it is sent, without Kafka behind it
    EchoServer(EchoFlags),
    /// A worker for echo.v1.EchoService
    Worker(WorkerFlags),
}

/// One or more runs against one method.
#[derive(Debug, Clone, clap::Args)]
pub(super) struct LoadFlags {
    /// Address of the server, host:port (plaintext HTTP/2)
    pub(super) address: String,
    /// The method, pkg.Service/Method
    pub(super) method: String,

    /// The request as JSON [default: an empty message]
    #[arg(long, value_name = "JSON", group = "request", help_heading = "Request")]
    pub(super) data: Option<String>,
    /// File with the request as JSON; - is standard input
    #[arg(long, value_name = "FILE", group = "request", help_heading = "Request")]
    pub(super) data_file: Option<PathBuf>,
    /// File with the request as protobuf encodes it
    #[arg(long, value_name = "FILE", group = "request", help_heading = "Request")]
    pub(super) message_file: Option<PathBuf>,
    /// .proto file that declares the method; without it and --descriptor-set the server is asked (reflection)
    #[arg(long, value_name = "FILE", help_heading = "Request")]
    pub(super) proto: Vec<PathBuf>,
    /// Folder to look for imports in
    #[arg(long, value_name = "DIR", help_heading = "Request")]
    pub(super) proto_path: Vec<PathBuf>,
    /// Encoded FileDescriptorSet that declares the method
    #[arg(long, value_name = "FILE", help_heading = "Request")]
    pub(super) descriptor_set: Vec<PathBuf>,
    /// String or integer field that differs from call to call, such as order_id or customer.id
    #[arg(long, value_name = "PATH", requires = "keys", help_heading = "Request")]
    pub(super) key_field: Option<String>,
    /// How many values --key-field takes in turn
    #[arg(long, value_name = "K", requires = "key_field", value_parser = clap::value_parser!(u32).range(1..=KEYS_MAX), help_heading = "Request")]
    pub(super) keys: Option<u32>,
    /// Metadata of every call
    #[arg(long, value_name = "KEY:VALUE", value_parser = metadata, help_heading = "Request")]
    pub(super) metadata: Vec<(String, String)>,

    /// Calls in flight, each started when another ends; several are run one after another [default: 64]
    #[arg(long, value_name = "N", value_delimiter = ',', value_parser = clap::value_parser!(u32).range(1..=i64::from(IN_FLIGHT_MAX)), help_heading = "Load")]
    pub(super) in_flight: Vec<u32>,
    /// Calls a second, however slow the server is; --in-flight is then the most that may wait [default for it: 10000]
    #[arg(long, value_name = "R", value_parser = rate, help_heading = "Load")]
    pub(super) rate: Option<f64>,
    /// Connections [default: one for each 100 calls in flight, at most 64; with --rate 8]
    #[arg(long, value_name = "C", value_parser = clap::value_parser!(u32).range(1..=CONNECTIONS_MAX), help_heading = "Load")]
    pub(super) connections: Option<u32>,
    /// Threads that make calls; connections are shared out among them
    #[arg(long, value_name = "T", default_value = "1", value_parser = clap::value_parser!(u32).range(1..=256), help_heading = "Load")]
    pub(super) threads: u32,
    /// How long to measure [default: 10s]
    #[arg(long, value_name = "TIME", value_parser = duration, conflicts_with = "calls", help_heading = "Load")]
    pub(super) duration: Option<Duration>,
    /// How many calls to measure
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..), help_heading = "Load")]
    pub(super) calls: Option<u64>,
    /// Load before measuring begins [default: 2s, with --calls 0s]
    #[arg(long, value_name = "TIME", value_parser = duration_or_zero, help_heading = "Load")]
    pub(super) warm_up: Option<Duration>,
    /// Deadline of a call, sent as grpc-timeout; half a second later it is given up
    #[arg(long, value_name = "TIME", default_value = "10s", value_parser = duration, help_heading = "Load")]
    pub(super) timeout: Duration,

    /// Also write the results as JSON; - is standard output, and the table then goes to standard error
    #[arg(long, value_name = "FILE", help_heading = "Results")]
    pub(super) json: Option<PathBuf>,
    /// Process of the server on this machine: measure its CPU time and memory
    #[arg(long, value_name = "PID", help_heading = "Results")]
    pub(super) pid: Option<u32>,
}

/// The floor on Kafka.
#[derive(Debug, clap::Args)]
pub(super) struct FloorFlags {
    #[command(flatten)]
    pub(super) kafka: KafkaFlags,
    /// Requests in flight; several are run one after another
    #[arg(long, value_name = "N", value_delimiter = ',', default_value = "64", value_parser = clap::value_parser!(u32).range(1..=i64::from(IN_FLIGHT_MAX)))]
    pub(super) in_flight: Vec<u32>,
    /// Bytes of the echoed payload
    #[arg(long, value_name = "BYTES", default_value = "100", value_parser = clap::value_parser!(u32).range(0..=900_000))]
    pub(super) payload_bytes: u32,
    /// How long to measure
    #[arg(long, value_name = "TIME", default_value = "10s", value_parser = duration)]
    pub(super) duration: Duration,
    /// Load before measuring begins
    #[arg(long, value_name = "TIME", default_value = "2s", value_parser = duration_or_zero)]
    pub(super) warm_up: Duration,
    /// How long a reply is waited for
    #[arg(long, value_name = "TIME", default_value = "10s", value_parser = duration)]
    pub(super) timeout: Duration,
    /// Also write the results as JSON; - is standard output, and the table then goes to standard error
    #[arg(long, value_name = "FILE")]
    pub(super) json: Option<PathBuf>,
}

/// A cluster and a request topic.
#[derive(Debug, clap::Args)]
pub(super) struct KafkaFlags {
    /// Brokers to ask for the rest
    #[arg(long, value_name = "HOST:PORT,...", value_delimiter = ',', default_value = "127.0.0.1:9092")]
    pub(super) bootstrap_servers: Vec<String>,
    /// The request topic
    #[arg(long, value_name = "TOPIC", default_value = "echo.v1.EchoService")]
    pub(super) topic: String,
}

/// The echo server.
#[derive(Debug, clap::Args)]
pub(super) struct EchoFlags {
    /// Address to listen on; port 0 takes a free one
    #[arg(long, value_name = "ADDR", default_value = "127.0.0.1:50052")]
    pub(super) listen: std::net::SocketAddr,

    /// Answer after this long, as a server that has something behind it
    #[arg(long, value_name = "TIME", default_value = "0s", value_parser = duration_or_zero)]
    pub(super) delay: Duration,
}

/// The echo worker.
#[derive(Debug, clap::Args)]
pub(super) struct WorkerFlags {
    #[command(flatten)]
    pub(super) kafka: KafkaFlags,
    /// Partitions of the topic, where it has to be created
    #[arg(long, value_name = "N", default_value = "6", value_parser = clap::value_parser!(i32).range(1..=10_000))]
    pub(super) partitions: i32,
}

impl LoadFlags {
    /// Connections for so many calls in flight.
    pub(super) fn connections_for(&self, in_flight: u32) -> u32 {
        let usual = in_flight.div_ceil(CALLS_PER_CONNECTION).min(CONNECTIONS_DEFAULT_MAX);
        // A closed loop has no use for a connection without a call.
        self.connections.unwrap_or(usual).min(in_flight).max(1)
    }
}

fn rate(text: &str) -> Result<f64, String> {
    match text.parse::<f64>() {
        Ok(rate) if (0.001..=10_000_000.0).contains(&rate) => Ok(rate),
        _ => Err("expected calls a second, from 0.001 to 10000000".to_owned()),
    }
}

fn duration(text: &str) -> Result<Duration, String> {
    match duration_or_zero(text)? {
        Duration::ZERO => Err("must be above zero".to_owned()),
        duration => Ok(duration),
    }
}

fn duration_or_zero(text: &str) -> Result<Duration, String> {
    if text == "0" || text == "0s" {
        return Ok(Duration::ZERO);
    }
    parse_duration(text).map_err(|error| error.to_string())
}

fn metadata(text: &str) -> Result<(String, String), String> {
    let (name, value) = text.split_once(':').ok_or("expected KEY:VALUE")?;
    let name = name.trim().to_ascii_lowercase();
    let value = value.trim();
    let of_name = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || b"-_.".contains(&byte);
    if name.is_empty() || !name.bytes().all(of_name) {
        return Err(format!("{name:?} is no metadata key: letters, digits, -, _ and . are allowed"));
    }
    if name.starts_with("grpc-") {
        return Err("keys that begin with grpc- belong to the protocol".to_owned());
    }
    if !value.bytes().all(|byte| (0x20..0x7f).contains(&byte)) {
        return Err("a value is printable ASCII; that of a -bin key is base64".to_owned());
    }
    Ok((name, value.to_owned()))
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Debug, Parser)]
    struct Line {
        #[command(flatten)]
        flags: BenchFlags,
    }

    fn parse(line: &str) -> Result<BenchFlags, String> {
        let words = std::iter::once("bench").chain(line.split_whitespace());
        Line::try_parse_from(words).map(|line| line.flags).map_err(|error| error.to_string())
    }

    fn load(line: &str) -> LoadFlags {
        parse(&format!("127.0.0.1:1 a.B/C {line}")).unwrap().load.unwrap()
    }

    #[test]
    fn a_line_with_everything() {
        let flags = load(
            "--in-flight 1,64,512 --rate 2.5 --calls 7 --metadata X-A:b:c --timeout 250ms --key-field id --keys 9",
        );
        assert_eq!(flags.in_flight, [1, 64, 512]);
        assert_eq!((flags.rate, flags.calls, flags.keys), (Some(2.5), Some(7), Some(9)));
        assert_eq!(flags.metadata, [("x-a".to_owned(), "b:c".to_owned())]);
        assert_eq!(flags.timeout, Duration::from_millis(250));
    }

    #[test]
    fn connections_follow_the_calls_in_flight() {
        let of = |line: &str, n| load(line).connections_for(n);
        assert_eq!([1, 64, 512, 5_000, 1_000_000].map(|n| of("", n)), [1, 1, 6, 50, 64]);
        assert_eq!([1, 64].map(|n| of("--connections 16", n)), [1, 16]);
    }

    #[test]
    fn what_is_wrong_is_refused() {
        for line in [
            "",
            "127.0.0.1:1",
            "127.0.0.1:1 a.B/C --in-flight 0",
            "127.0.0.1:1 a.B/C --rate 0",
            "127.0.0.1:1 a.B/C --rate fast",
            "127.0.0.1:1 a.B/C --duration 0s",
            "127.0.0.1:1 a.B/C --duration 1s --calls 3",
            "127.0.0.1:1 a.B/C --data {} --message-file x",
            "127.0.0.1:1 a.B/C --keys 3",
            "127.0.0.1:1 a.B/C --metadata novalue",
            "127.0.0.1:1 a.B/C --metadata grpc-timeout:1S",
            "127.0.0.1:1 a.B/C --metadata a:\u{e9}",
        ] {
            assert!(parse(line).is_err(), "{line:?}");
        }
    }

    #[test]
    fn the_others_need_no_method() {
        assert!(matches!(parse("echo-server").unwrap().other, Some(Other::EchoServer(_))));
        assert!(matches!(parse("floor-kafka --in-flight 1,2").unwrap().other, Some(Other::FloorKafka(_))));
        assert!(matches!(parse("worker").unwrap().other, Some(Other::Worker(_))));
    }
}
