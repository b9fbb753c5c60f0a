//! Connections: accepted in one place, served on the shard that has the least
//! to do.
//!
//! A service mesh keeps few, long connections, so hashing them over
//! `SO_REUSEPORT` sockets would leave shards idle; counting does not.

use std::future::Future;
use std::io;
use std::net::TcpStream as StdTcpStream;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use hyper::server::conn::{http1, http2};
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{mpsc, watch};
use tokio::time::{Instant, sleep, timeout};

use super::config::Config;
use super::lobby::{Beginning, Lobby, Place};
use super::service::Service;
use super::tls::{self, Tls};
use crate::backoff::Backoff;
use crate::limits;
use crate::supervisor::{StreamExecutor, Supervisor, Task};

/// Accepted connections that wait for their shard to take them.
const HANDOVER_QUEUE: usize = 256;
/// How long a connection may take to end its streams once the process closes.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(2);
/// How long a new connection may take until its first HTTP/2 frame, TLS
/// included, and the head of each HTTP/1.1 request.
const BEGIN_TIMEOUT: Duration = Duration::from_millis(limits::BEGIN_TIMEOUT_MS);
/// A first byte that came alone is looked at again after this.
const PEEK_AGAIN: Duration = Duration::from_millis(5);
/// Head of an HTTP/1.1 request, and what of its body is read at once.
const HTTP1_BUFFER_BYTES_MAX: usize = 64 * 1_024;
/// Ended connections are swept when this many are listed, or twice those alive.
const SWEEP_AT: usize = 64;

/// How far the process is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Lifecycle {
    /// Connections are served.
    Serving,
    /// Connections that exist are told to go elsewhere (GOAWAY); new ones are
    /// still taken, so that probes see NOT_SERVING.
    Draining,
    /// All connections end.
    Closing,
}

/// A shard's end of the handover.
#[derive(Debug)]
pub struct Seat {
    connections: mpsc::Receiver<StdTcpStream>,
    open: Arc<AtomicU32>,
    /// How many seats there are.
    shards_of: u32,
}

/// Accepts connections for all shards.
#[derive(Debug)]
pub struct Acceptor {
    shards: Vec<(mpsc::Sender<StdTcpStream>, Arc<AtomicU32>)>,
    connections_max: u32,
}

impl Acceptor {
    /// An acceptor for as many shards, and a seat for each.
    pub fn new(shards: usize, connections_max: u32) -> (Self, Vec<Seat>) {
        let shards_of = u32::try_from(shards).unwrap_or(u32::MAX).max(1);
        let (senders, seats) = (0..shards)
            .map(|_| {
                let (sender, connections) = mpsc::channel(HANDOVER_QUEUE);
                let open = Arc::new(AtomicU32::new(0));
                ((sender, Arc::clone(&open)), Seat { connections, open, shards_of })
            })
            .unzip();
        (Self { shards: senders, connections_max }, seats)
    }

    /// Connections that are open or about to be.
    pub fn open(&self) -> u32 {
        self.shards.iter().map(|(_, open)| open.load(Ordering::Relaxed)).sum()
    }

    /// Never ends.
    pub async fn run(self: Arc<Self>, listener: TcpListener) {
        let mut backoff = Backoff::default();
        loop {
            match listener.accept().await {
                Ok((stream, peer)) => {
                    backoff.reset();
                    if let Err(error) = self.hand_over(stream) {
                        tracing::warn!(%peer, %error, "connection refused");
                    }
                }
                // Out of descriptors, most likely: it passes when some close.
                Err(error) => {
                    tracing::error!(%error, "cannot accept connections");
                    backoff.pause().await;
                }
            }
        }
    }

    fn hand_over(&self, stream: TcpStream) -> io::Result<()> {
        if self.open() >= self.connections_max {
            let text = format!("grpc.connections_max of {} reached", self.connections_max);
            return Err(io::Error::other(text));
        }
        stream.set_nodelay(true)?;
        let stream = stream.into_std()?;
        let idlest = self.shards.iter().min_by_key(|(_, open)| open.load(Ordering::Relaxed));
        let Some((shard, open)) = idlest else { return Err(io::Error::other("no shard")) };
        open.fetch_add(1, Ordering::Relaxed);
        shard.try_send(stream).map_err(|_| {
            open.fetch_sub(1, Ordering::Relaxed);
            io::Error::other("the shard takes no more connections")
        })
    }
}

/// Serves a shard's connections until the process closes, then ends them.
pub async fn serve_shard(
    mut seat: Seat,
    service: Service,
    tls: Option<Tls>,
    config: Config,
    supervisor: Supervisor,
    lifecycle: watch::Receiver<Lifecycle>,
) {
    let beginning_max = config.connections_max / limits::CONNECTIONS_BEGINNING_SHARE / seat.shards_of;
    let lobby = Lobby::new(beginning_max as usize, BEGIN_TIMEOUT);
    let host = Host { service, tls, config, lobby, lifecycle: lifecycle.clone() };
    let mut connections: Vec<Task> = Vec::new();
    let mut sweep_at = SWEEP_AT;
    let mut closing = lifecycle.clone();
    loop {
        let stream = tokio::select! {
            stream = seat.connections.recv() => stream,
            () = past(&mut closing, Lifecycle::Draining) => None,
        };
        let Some(stream) = stream else { break };
        if connections.len() >= sweep_at {
            connections.retain(|connection| !connection.is_finished());
            sweep_at = SWEEP_AT.max(connections.len() * 2);
        }
        let open = CloseOnDrop { open: Arc::clone(&seat.open) };
        connections.push(supervisor.spawn("connection", host.clone().serve(stream, open)));
    }
    let all_ended = async {
        for connection in connections {
            connection.join().await;
        }
    };
    let _ = timeout(CLOSE_TIMEOUT, all_ended).await;
}

/// Counts a connection as closed when its task ends, however it ends.
struct CloseOnDrop {
    open: Arc<AtomicU32>,
}

impl Drop for CloseOnDrop {
    fn drop(&mut self) {
        self.open.fetch_sub(1, Ordering::Relaxed);
    }
}

/// What every connection of a shard is served with.
#[derive(Clone)]
struct Host {
    service: Service,
    tls: Option<Tls>,
    config: Config,
    lobby: Arc<Lobby>,
    lifecycle: watch::Receiver<Lifecycle>,
}

impl Host {
    async fn serve(self, stream: StdTcpStream, _open: CloseOnDrop) {
        let stream = match TcpStream::from_std(stream) {
            Ok(stream) => stream,
            Err(error) => return tracing::warn!(%error, "connection lost before it was served"),
        };
        // HTTP/2 keep-alive begins with the first frame; who never sends one must
        // not hold a place for good.
        let (place, exit) = self.lobby.enter();
        tokio::select! {
            reason = exit.reason() => tracing::debug!("connection closed: {reason}"),
            served = self.serve_caller(stream, place) => match served {
                Ok(()) => {}
                Err(error) => tracing::debug!(%error, "connection ended"),
            },
        }
    }

    async fn serve_caller(self, stream: TcpStream, place: Place) -> hyper::Result<()> {
        let address = stream.peer_addr().ok();
        match &self.tls {
            None => {
                let http1 = self.service.web().is_some() && !is_http2(&stream).await;
                let host = Self { service: self.service.for_connection(address, None), ..self };
                host.speak(stream, http1, place).await
            }
            Some(tls) => {
                let Some(stream) = tls.accept(stream).await else { return Ok(()) };
                let http1 = tls::wants_http1(&stream);
                let service = self.service.for_connection(address, tls::names(&stream));
                let host = Self { service, ..self };
                host.speak(stream, http1, place).await
            }
        }
    }

    async fn speak<S>(self, stream: S, http1: bool, place: Place) -> hyper::Result<()>
    where
        S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let (untaken, patience) = (self.service.untaken(), self.config.keep_alive_timeout);
        let stuck = async move {
            untaken.stuck(patience).await;
            tracing::info!("connection closed: its caller takes no replies");
        };
        let (lifecycle, age_max) = (self.lifecycle, self.config.connection_age_max);
        let serving = async {
            match self.service.web() {
                Some(web) if http1 => {
                    // The head of a request has a time limit of its own.
                    drop(place);
                    let service = TowerToHyperService::new(web);
                    let connection = http1_settings().serve_connection(TokioIo::new(stream), service);
                    serve_until(connection, http1::Connection::graceful_shutdown, lifecycle, age_max).await
                }
                _ => {
                    let service = TowerToHyperService::new(self.service);
                    let stream = TokioIo::new(Beginning::new(stream, place));
                    let connection = http2_settings(&self.config).serve_connection(stream, service);
                    serve_until(connection, http2::Connection::graceful_shutdown, lifecycle, age_max).await
                }
            }
        };
        tokio::select! {
            served = serving => served,
            () = stuck => Ok(()),
        }
    }
}

/// Whether the connection begins as HTTP/2 does (`PRI * HTTP/2.0`). What is in
/// the way of seeing that is for the HTTP/2 server to find, too.
async fn is_http2(stream: &TcpStream) -> bool {
    let mut beginning = [0; 2];
    let until = Instant::now() + BEGIN_TIMEOUT;
    while let Ok(1) = stream.peek(&mut beginning).await
        && Instant::now() < until
    {
        sleep(PEEK_AGAIN).await;
    }
    beginning == *b"PR"
}

/// Serves a connection to its end; once the process is further than it is now,
/// or the connection has reached its age, tells the other side to go.
async fn serve_until<C>(
    connection: C,
    go_away: fn(Pin<&mut C>),
    mut lifecycle: watch::Receiver<Lifecycle>,
    age_max: Option<Duration>,
) -> hyper::Result<()>
where
    C: Future<Output = hyper::Result<()>>,
{
    let born_in = *lifecycle.borrow();
    let mut connection = std::pin::pin!(connection);
    let mut close = lifecycle.clone();
    let time_to_go = async {
        tokio::select! {
            () = past(&mut lifecycle, born_in) => {}
            () = aged(age_max) => {}
        }
    };
    tokio::select! {
        served = connection.as_mut() => served,
        () = time_to_go => {
            go_away(connection.as_mut());
            tokio::select! {
                served = connection.as_mut() => served,
                () = closed(&mut close) => Ok(()),
            }
        }
    }
}

/// Waits for a connection's age, give or take a tenth: connections that came
/// together should not all go together.
async fn aged(age_max: Option<Duration>) {
    match age_max {
        Some(age) => sleep(age.mul_f64(0.9 + 0.2 * fastrand::f64())).await,
        None => std::future::pending().await,
    }
}

/// Waits until the process is further than `phase`, or its owner is gone.
async fn past(lifecycle: &mut watch::Receiver<Lifecycle>, phase: Lifecycle) {
    let _ = lifecycle.wait_for(|now| *now > phase).await;
}

/// Ends some time after everything else should have.
async fn closed(lifecycle: &mut watch::Receiver<Lifecycle>) {
    past(lifecycle, Lifecycle::Draining).await;
    sleep(CLOSE_TIMEOUT / 2).await;
}

fn http1_settings() -> http1::Builder {
    let mut settings = http1::Builder::new();
    settings.timer(TokioTimer::new()).header_read_timeout(BEGIN_TIMEOUT).max_buf_size(HTTP1_BUFFER_BYTES_MAX);
    settings
}

fn http2_settings(config: &Config) -> http2::Builder<StreamExecutor> {
    let mut settings = http2::Builder::new(StreamExecutor);
    settings
        .timer(TokioTimer::new())
        .max_concurrent_streams(config.streams_per_connection_max)
        .max_header_list_size(limits::HEADER_LIST_BYTES_MAX)
        .keep_alive_interval(config.keep_alive_interval)
        .keep_alive_timeout(config.keep_alive_timeout);
    settings
}
