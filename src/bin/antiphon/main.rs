//! The command line: parses, runs, and exits with a code.

mod check;
#[cfg(feature = "dev-broker")]
mod demo;
mod dlq;
mod exit;
mod serve;

use std::process::ExitCode;

use antiphon::config::Flags;
use clap::error::ErrorKind;
use clap::{Parser, Subcommand};

/// Half of what rskafka costs per record is allocation, and calls allocate for
/// their headers; a faster allocator is the cheapest saving there is.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// A gRPC façade over Kafka request-reply.
#[derive(Debug, Parser)]
#[command(name = "antiphon", version, arg_required_else_help = true, after_help = EXAMPLES)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Serve the methods of .proto files, answered through Kafka
    #[command(after_help = SERVE_EXAMPLES)]
    Serve(Flags),
    /// Run broker, sample workers and gateway in one process; needs nothing
    #[cfg(feature = "dev-broker")]
    Demo(demo::DemoFlags),
    /// Show the routes that would be served, or what is wrong
    #[command(after_help = CHECK_EXAMPLES)]
    Check(Flags),
    /// List, show, replay or purge dead letters
    #[command(subcommand)]
    Dlq(dlq::DlqCommand),
}

const EXAMPLES: &str = "\
Examples:
  antiphon demo
  antiphon serve --proto proto/payments/v1/payments.proto --bootstrap-servers kafka-1:9092
  antiphon check --config antiphon.toml
  antiphon dlq list payment_request --since 10m

Exit codes: 64 for wrong usage, 69 if Kafka or a port cannot be had, 70 for a
failure, 78 for wrong configuration.";

const SERVE_EXAMPLES: &str = "\
Examples:
  antiphon serve --proto proto/payments/v1/payments.proto
  antiphon serve --config antiphon.toml --listen 0.0.0.0:50051
  ANTIPHON_KAFKA_SASL_PASSWORD_FILE=/run/secrets/kafka antiphon serve --config antiphon.toml

Prints one line on standard output when it is ready; logs go to standard error.
SIGTERM and SIGINT drain: health turns NOT_SERVING, calls in flight finish, new
ones get UNAVAILABLE. A second signal exits at once.";

const CHECK_EXAMPLES: &str = "\
Examples:
  antiphon check --proto proto/payments/v1/payments.proto
  antiphon check --proto api/shop.proto --proto-path api --proto-path third_party
  antiphon check --config antiphon.toml
  ANTIPHON_CONFIG=antiphon.toml antiphon check

Every setting has a variable ANTIPHON_<SECTION>_<NAME>. Flags win over the
environment, that over the file, and that over options in the .proto files.
Exit codes: 0 if all is well, 64 for wrong usage, 78 for wrong configuration.";

fn main() -> ExitCode {
    match Arguments::try_parse() {
        Ok(arguments) => run(arguments.command),
        Err(error) => refuse(&error),
    }
}

fn run(command: Command) -> ExitCode {
    match command {
        Command::Serve(flags) => serve::run(&flags),
        #[cfg(feature = "dev-broker")]
        Command::Demo(flags) => demo::run(&flags),
        Command::Check(flags) => check::run(&flags),
        Command::Dlq(command) => dlq::run(&command),
    }
}

/// Help and version are no failure; anything else is wrong usage.
fn refuse(error: &clap::Error) -> ExitCode {
    // Nothing can be done about a closed pipe.
    let _ = error.print();
    match error.kind() {
        ErrorKind::DisplayHelp | ErrorKind::DisplayVersion => ExitCode::SUCCESS,
        _ => exit::USAGE.into(),
    }
}
