//! `antiphon serve`: a gateway until SIGTERM or SIGINT.
#![allow(clippy::print_stderr, reason = "printing is what this command is for")]

use std::io::Write as _;
use std::process::ExitCode;

use antiphon::app::{self, Gateway, KeysUnavailable, StartError};
use antiphon::config::{self, Flags};
use antiphon::route::RouteTable;
use antiphon::telemetry;
use tokio::signal::unix::{Signal, SignalKind, signal};

use crate::exit;

/// Loads, starts, serves, drains.
pub(crate) fn run(flags: &Flags) -> ExitCode {
    let (config, routes) = match config::load_with_routes(flags) {
        Ok(loaded) => loaded,
        Err(mistakes) => {
            eprintln!("{mistakes}");
            return exit::CONFIG.into();
        }
    };
    if let Err(error) = telemetry::init(&config.log) {
        eprintln!("antiphon: {error}");
        return exit::CONFIG.into();
    }
    block_on(serve(config.gateway, routes))
}

/// Runs the control thread.
pub(crate) fn block_on(work: impl Future<Output = ExitCode>) -> ExitCode {
    match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime.block_on(work),
        Err(error) => {
            eprintln!("antiphon: cannot start: {error}");
            exit::OS.into()
        }
    }
}

async fn serve(config: app::Config, routes: RouteTable) -> ExitCode {
    let mut stop = match Stop::listen() {
        Ok(stop) => stop,
        Err(error) => {
            eprintln!("antiphon: cannot listen for signals: {error}");
            return exit::OS.into();
        }
    };
    let gateway = match Gateway::start_unless(config, routes, stop.requested()).await {
        Ok(Some(gateway)) => gateway,
        Ok(None) => return ExitCode::SUCCESS,
        Err(error) => return could_not_start(&error),
    };
    announce(&gateway);
    until_stopped(gateway, stop).await
}

/// Serves until a signal; a second one exits at once.
pub(crate) async fn until_stopped(gateway: Gateway, mut stop: Stop) -> ExitCode {
    let (requested, request) = tokio::sync::oneshot::channel();
    let signals = async move {
        stop.requested().await;
        tracing::info!("draining; a second signal exits at once");
        let _ = requested.send(());
        stop.requested().await;
    };
    tokio::select! {
        stopped = gateway.run_until(async { let _ = request.await; }) => match stopped {
            Ok(()) => ExitCode::SUCCESS,
            Err(error) => {
                tracing::error!(%error, "stopped");
                exit::SOFTWARE.into()
            }
        },
        () = signals => {
            tracing::warn!("second signal: exiting at once");
            std::process::exit(exit::SECOND_SIGNAL.number())
        }
    }
}

/// Says why, for people, and picks the exit code.
pub(crate) fn could_not_start(error: &StartError) -> ExitCode {
    eprintln!("antiphon: {error}");
    let exit = match error {
        StartError::Bind { .. }
        | StartError::Kafka { .. }
        | StartError::Registry(_)
        | StartError::NoLease { .. }
        | StartError::NotReady { .. } => exit::UNAVAILABLE,
        StartError::NoOrdinal { .. }
        | StartError::Settings(_)
        | StartError::RegistrySettings(_)
        | StartError::Tls(_)
        | StartError::AccessLog(_)
        | StartError::Traces(_)
        | StartError::Reflection(_) => exit::CONFIG,
        StartError::Keys(KeysUnavailable::File { .. } | KeysUnavailable::Url { .. }) => exit::UNAVAILABLE,
        StartError::Keys(_) => exit::CONFIG,
        StartError::Thread(_) | StartError::Random(_) => exit::OS,
    };
    exit.into()
}

/// One line that programs can read: what was started, where.
pub(crate) fn announce(gateway: &Gateway) {
    // A reader that has gone, as in `serve | head -1`, is no failure.
    let mut out = std::io::stdout();
    let _ = writeln!(
        out,
        "antiphon ready grpc={} admin={} routes={} reply_topic={} ready_ms={}",
        gateway.grpc_address(),
        gateway.admin_address(),
        gateway.routes().routes().len(),
        gateway.instance().reply_topic(),
        gateway.started_in().as_millis(),
    );
    // A pipe is not flushed line by line.
    let _ = out.flush();
}

/// SIGTERM and SIGINT.
pub(crate) struct Stop {
    terminate: Signal,
    interrupt: Signal,
}

impl Stop {
    /// From now on the signals do not kill the process.
    pub(crate) fn listen() -> std::io::Result<Self> {
        Ok(Self { terminate: signal(SignalKind::terminate())?, interrupt: signal(SignalKind::interrupt())? })
    }

    /// The next signal.
    pub(crate) async fn requested(&mut self) {
        tokio::select! {
            _ = self.terminate.recv() => {}
            _ = self.interrupt.recv() => {}
        }
    }
}
