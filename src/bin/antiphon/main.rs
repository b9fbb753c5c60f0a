//! The command line: parses, runs, and exits with a code.

mod check;

use std::process::ExitCode;

use antiphon::config::Flags;
use clap::error::ErrorKind;
use clap::{Parser, Subcommand};

/// Exit codes of sysexits.h.
const EXIT_USAGE: u8 = 64;
const EXIT_CONFIG: u8 = 78;

/// A gRPC façade over Kafka request-reply.
#[derive(Debug, Parser)]
#[command(name = "antiphon", version, arg_required_else_help = true, after_help = EXAMPLES)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Show the routes that would be served, or what is wrong
    #[command(after_help = CHECK_EXAMPLES)]
    Check(Flags),
}

const EXAMPLES: &str = "\
Examples:
  antiphon check --proto proto/payments/v1/payments.proto
  antiphon check --config antiphon.toml

Exit codes: 64 for wrong usage, 78 for wrong configuration.";

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
        Command::Check(flags) => check::run(&flags),
    }
}

/// Help and version are no failure; anything else is wrong usage.
fn refuse(error: &clap::Error) -> ExitCode {
    // Nothing can be done about a closed pipe.
    let _ = error.print();
    match error.kind() {
        ErrorKind::DisplayHelp | ErrorKind::DisplayVersion => ExitCode::SUCCESS,
        _ => ExitCode::from(EXIT_USAGE),
    }
}
