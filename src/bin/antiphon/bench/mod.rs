//! `antiphon bench`: load for any gRPC server, and what to compare with.
//!
//! ```text
//! flags ── request (JSON, bytes; reflect) ──► messages, framed
//!                                               │
//! run ── crew, one a thread ── http2 ◄──────────┘
//!  │       schedule: when calls start
//!  └── process: what the server used ──► report: table, JSON
//! ```
#![allow(clippy::print_stdout, clippy::print_stderr, reason = "printing is what this command is for")]

mod crew;
mod echo_server;
mod flags;
mod floor;
mod http2;
mod process;
mod reflect;
mod report;
mod request;
mod run;
mod schedule;
mod worker;

use std::io::Write as _;
use std::net::{SocketAddr, ToSocketAddrs as _};
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use antiphon::supervisor::Supervisor;
use serde_json::json;

use crate::exit;
use crate::serve::{Stop, block_on};
pub(crate) use flags::BenchFlags;
use flags::{LoadFlags, Other};
use http2::Endpoint;
use request::RequestError;
use run::{Job, Length, Run};
use schedule::Pace;

/// One connection, until the server has told its settings.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
const IN_FLIGHT_DEFAULT: u32 = 64;
/// Calls that may wait in an open loop, unless told otherwise.
const OPEN_LOOP_IN_FLIGHT_DEFAULT: u32 = 10_000;
const OPEN_LOOP_CONNECTIONS_DEFAULT: u32 = 8;
const DURATION_DEFAULT: Duration = Duration::from_secs(10);
const WARM_UP_DEFAULT: Duration = Duration::from_secs(2);
/// Longer than any run: what --timeout may be.
const TIMEOUT_MAX: Duration = Duration::from_secs(3_600);

/// Runs what the flags say.
pub(crate) fn run(flags: &BenchFlags) -> ExitCode {
    match (&flags.other, &flags.load) {
        (Some(Other::FloorKafka(flags)), _) => block_on(floor::run(flags)),
        (Some(Other::EchoServer(flags)), _) => block_on(echo_server::run(flags)),
        (Some(Other::Worker(flags)), _) => block_on(worker::run(flags)),
        (None, Some(flags)) => load(flags),
        (None, None) => usage("an address and a method are needed; see antiphon bench --help"),
    }
}

fn usage(text: &str) -> ExitCode {
    eprintln!("antiphon: {text}");
    exit::USAGE.into()
}

fn unavailable(text: &str) -> ExitCode {
    eprintln!("antiphon: {text}");
    exit::UNAVAILABLE.into()
}

fn load(flags: &LoadFlags) -> ExitCode {
    if flags.timeout > TIMEOUT_MAX {
        return usage("--timeout is an hour at most");
    }
    let address = match resolve(&flags.address) {
        Ok(address) => address,
        Err(text) => return usage(&text),
    };
    let (service, method) = match request::split_method(&flags.method) {
        Ok(parts) => parts,
        Err(error) => return usage(&error.to_string()),
    };
    if let Some(pid) = flags.pid
        && let Err(error) = process::Usage::of(Some(pid))
    {
        return usage(&format!("--pid {pid}: {error}"));
    }
    let path = format!("/{service}/{method}");
    let headers = request::headers(&path, &flags.address, Some(flags.timeout), &flags.metadata);
    let endpoint = Endpoint::new(address, &headers, CONNECT_TIMEOUT);
    let messages = match request::messages(flags, &endpoint) {
        Ok(messages) => messages,
        Err(RequestError::Reflection(error)) => return unavailable(&format!("{}: {error}", flags.address)),
        Err(error) => return usage(&error.to_string()),
    };
    block_on(run_all(flags, &endpoint, messages))
}

/// `host:port`, perhaps with the scheme that people are used to.
fn resolve(address: &str) -> Result<SocketAddr, String> {
    if address.starts_with("https://") {
        return Err("TLS is not spoken here; use the server's plaintext port".to_owned());
    }
    let address = address.strip_prefix("http://").unwrap_or(address);
    let mut found = address.to_socket_addrs().map_err(|error| format!("{address:?}: {error}"))?;
    found.next().ok_or_else(|| format!("{address:?} has no address"))
}

async fn run_all(flags: &LoadFlags, endpoint: &Endpoint, messages: Arc<[Box<[u8]>]>) -> ExitCode {
    let mut stop = match Stop::listen() {
        Ok(stop) => stop,
        Err(error) => return unavailable(&format!("cannot listen for signals: {error}")),
    };
    let supervisor = Supervisor::new();
    let mut runs: Vec<Run> = Vec::new();
    for pace in paces(flags) {
        let job = job(flags, endpoint, &messages, pace);
        match run::run(&job, &supervisor, &mut stop).await {
            Ok(run) => runs.push(run),
            Err(error) if runs.is_empty() => return unavailable(&format!("{}: {error}", flags.address)),
            Err(error) => {
                eprintln!("antiphon: {}: {error}", flags.address);
                break;
            }
        }
        if runs.last().is_some_and(|run| run.interrupted) {
            break;
        }
    }
    let what = json!({
        "address": flags.address,
        "method": flags.method,
        "message_bytes": messages.first().map_or(0, |framed| framed.len() - request::PREFIX_BYTES),
        "messages": messages.len(),
    });
    finish(&report::print(&what, &runs, flags.json.as_deref()), &runs)
}

/// Fails when nothing succeeded, or the results could not be written.
fn finish(printed: &std::io::Result<()>, runs: &[Run]) -> ExitCode {
    let _ = std::io::stdout().flush();
    if let Err(error) = printed {
        eprintln!("antiphon: the results could not be written: {error}");
        return ExitCode::FAILURE;
    }
    match runs.iter().any(|run| run.tally.ok() > 0) {
        true => ExitCode::SUCCESS,
        false => ExitCode::FAILURE,
    }
}

fn paces(flags: &LoadFlags) -> Vec<Pace> {
    match (flags.rate, flags.in_flight.as_slice()) {
        (Some(rate), []) => vec![Pace::Rate(rate, OPEN_LOOP_IN_FLIGHT_DEFAULT)],
        (Some(rate), several) => several.iter().map(|calls| Pace::Rate(rate, *calls)).collect(),
        (None, []) => vec![Pace::InFlight(IN_FLIGHT_DEFAULT)],
        (None, several) => several.iter().map(|calls| Pace::InFlight(*calls)).collect(),
    }
}

fn job(flags: &LoadFlags, endpoint: &Endpoint, messages: &Arc<[Box<[u8]>]>, pace: Pace) -> Job {
    let (length, warm_up) = match flags.calls {
        Some(calls) => (Length::Calls(calls), Duration::ZERO),
        None => (Length::Time(flags.duration.unwrap_or(DURATION_DEFAULT)), WARM_UP_DEFAULT),
    };
    let connections = match (pace, flags.connections) {
        // Few calls wait as long as the server keeps up.
        (Pace::Rate(_, calls), None) => OPEN_LOOP_CONNECTIONS_DEFAULT.max(flags.threads).min(calls),
        _ => flags.connections_for(pace.in_flight_max()),
    };
    Job {
        endpoint: endpoint.clone(),
        messages: Arc::clone(messages),
        pace,
        connections,
        threads: flags.threads,
        warm_up: flags.warm_up.unwrap_or(warm_up),
        length,
        timeout: flags.timeout,
        pid: flags.pid,
    }
}
