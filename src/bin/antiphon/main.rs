//! The command line: parses, runs, and exits with a code.

mod bench;
mod check;
#[cfg(feature = "dev-broker")]
mod demo;
mod dlq;
mod exit;
mod health;
mod serve;
mod shell;
mod why;

use std::process::ExitCode;

use antiphon::config::Flags;
use clap::error::ErrorKind;
use clap::{CommandFactory as _, Parser, Subcommand};

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
    /// Tell what became of one call, from Kafka itself
    #[command(after_help = WHY_EXAMPLES)]
    Why(Box<why::WhyFlags>),
    /// Measure a gRPC server: calls a second, latency, CPU time
    #[command(after_help = BENCH_EXAMPLES)]
    Bench(Box<bench::BenchFlags>),
    /// Ask a running gateway whether it is ready, for health checks
    #[command(after_help = HEALTH_EXAMPLES)]
    Health(Flags),
    /// Print what completes the command line, for bash, zsh, fish and others
    #[command(after_help = COMPLETIONS_EXAMPLES)]
    Completions(shell::CompletionsFlags),
    /// Print a manual page, or write all of them
    #[command(after_help = MAN_EXAMPLES)]
    Man(shell::ManFlags),
}

const EXAMPLES: &str = "\
Examples:
  antiphon demo
  antiphon serve --proto proto/payments/v1/payments.proto --bootstrap-servers kafka-1:9092
  antiphon check --config antiphon.toml
  antiphon dlq list payment_request --since 10m
  antiphon why 00000100-7b9a-8559-ae2f-c66489e1df8c --config antiphon.toml

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

const WHY_EXAMPLES: &str = "\
Examples:
  antiphon why 00000100-7b9a-8559-ae2f-c66489e1df8c --config antiphon.toml
  antiphon why order-4711-attempt-1 --topic payment_request --since 2h
  antiphon why 4bf92f3577b34da6a3ce929d0e0e4736 --proto proto/payments/v1/payments.proto
  antiphon why --record payment_request/4/1 --value

The name is what the trailer antiphon-correlation-id says, or the caller's
idempotency-key, or a trace id; --record takes the trailer antiphon-record and
spares the search. Request topics are those of the routes (--config, --proto) and
of --topic; without either every topic is looked at. Values are shown with
--value only, headers that hold credentials never.
Exit codes: 0 if the call was found, 1 if not, 64 for wrong usage, 69 if Kafka
cannot be had, 78 for wrong configuration.";

const BENCH_EXAMPLES: &str = "\
Examples:
  antiphon bench 127.0.0.1:50051 echo.v1.EchoService/Echo --data '{\"payload\":\"aGVsbG8=\"}'
  antiphon bench 127.0.0.1:50051 echo.v1.EchoService/Echo --in-flight 1,64,512 --pid 4711
  antiphon bench 127.0.0.1:50051 payments.v1.PaymentService/Pay --rate 2000 --duration 30s \\
      --data '{\"amount_minor\":100}' --key-field order_id --keys 1000 --json -

With --in-flight a call starts when another ends (closed loop). With --rate it
starts when it is due, and its time runs from then even if it is sent late, so
that a server which stalls cannot hide the calls that it has kept waiting; the
line \"from sending\" is what the clock of a closed loop would have shown.
All calls count, those that fail too. Ctrl-C ends early with what was measured.
Exit codes: 0 if any call succeeded, 1 if none did, 64 for wrong usage, 69 if
the server cannot be reached.";

const HEALTH_EXAMPLES: &str = "\
Examples:
  antiphon health
  antiphon health --config antiphon.toml
  antiphon health --admin-listen 0.0.0.0:9464

Asks /ready of the admin listener, which is found as `antiphon serve` finds it:
by the same flags, environment and file. Says what it says.
Exit codes: 0 if the gateway is ready, 1 if it is not, 69 if nobody answers, 64
for wrong usage, 78 for wrong configuration.";

const COMPLETIONS_EXAMPLES: &str = "\
Examples:
  antiphon completions bash > /etc/bash_completion.d/antiphon
  antiphon completions zsh > \"${fpath[1]}/_antiphon\"
  antiphon completions fish > ~/.config/fish/completions/antiphon.fish";

const MAN_EXAMPLES: &str = "\
Examples:
  antiphon man serve | man -l -
  antiphon man dlq list | man -l -
  antiphon man --out /usr/local/share/man/man1";

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
        Command::Why(flags) => why::run(&flags),
        Command::Bench(flags) => bench::run(&flags),
        Command::Health(flags) => health::run(&flags),
        Command::Completions(flags) => shell::completions(&flags, Arguments::command()),
        Command::Man(flags) => shell::man(&flags, Arguments::command()),
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
