//! The flags of `antiphon serve` and `antiphon check`.

use std::path::PathBuf;

/// What can be set on the command line; it wins over the environment, and that
/// over the file.
#[derive(Debug, Clone, Default, PartialEq, Eq, clap::Args)]
pub struct Flags {
    /// TOML file with everything that can be set [env: ANTIPHON_CONFIG]
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,

    /// .proto file whose services are served; may be given more than once
    #[arg(long = "proto", value_name = "FILE")]
    pub protos: Vec<PathBuf>,

    /// Folder in which imports are looked for; may be given more than once
    #[arg(long = "proto-path", value_name = "DIR")]
    pub proto_paths: Vec<PathBuf>,

    /// Encoded FileDescriptorSet whose services are served, instead of .proto
    /// files or beside them
    #[arg(long = "descriptor-set", value_name = "FILE")]
    pub descriptor_sets: Vec<PathBuf>,

    /// Kafka brokers to ask for the rest [default: 127.0.0.1:9092]
    #[arg(long, value_name = "HOST:PORT,...", value_delimiter = ',')]
    pub bootstrap_servers: Vec<String>,

    /// Address of the gRPC listener [default: 0.0.0.0:50051]
    #[arg(long, value_name = "ADDR")]
    pub listen: Option<String>,

    /// Address of the admin listener [default: 127.0.0.1:9464]
    #[arg(long, value_name = "ADDR")]
    pub admin_listen: Option<String>,

    /// Threads that serve, each with connections of its own [default: one per
    /// core]
    #[arg(long, value_name = "N")]
    pub shards: Option<usize>,

    /// Shape of log lines [default: text]
    #[arg(long, value_name = "FORMAT", value_parser = ["text", "json"])]
    pub log_format: Option<String>,
}
