//! `antiphon bench echo-server`: tonic, with messages left as bytes and
//! nothing behind it, on one thread. What gRPC itself costs.

use std::convert::Infallible;
use std::future::{Ready, ready};
use std::process::ExitCode;
use std::time::Duration;

use antiphon::supervisor::{StreamExecutor, Supervisor, Task};
use bytes::{Buf as _, BufMut as _, Bytes};
use http::{Request, Response};
use hyper::body::Incoming;
use hyper::server::conn::http2;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use tokio::net::{TcpListener, TcpStream};
use tonic::Status;
use tonic::body::Body;
use tonic::codec::{Codec, DecodeBuf, Decoder, EncodeBuf, Encoder};
use tonic::server::Grpc;

use super::flags::EchoFlags;
use super::unavailable;
use crate::serve::Stop;

/// Calls on one connection, as the gateway has it.
const STREAMS_MAX: u32 = antiphon::limits::STREAMS_PER_CONNECTION_MAX;
/// Connections; more are closed at once.
const CONNECTIONS_MAX: usize = antiphon::limits::CONNECTIONS_MAX as usize;

pub(super) async fn run(flags: &EchoFlags) -> ExitCode {
    let listener = match TcpListener::bind(flags.listen).await {
        Ok(listener) => listener,
        Err(error) => return unavailable(&format!("cannot listen on {}: {error}", flags.listen)),
    };
    let mut stop = match Stop::listen() {
        Ok(stop) => stop,
        Err(error) => return unavailable(&format!("cannot listen for signals: {error}")),
    };
    let address = listener.local_addr().unwrap_or(flags.listen);
    println!("antiphon bench echo-server ready grpc={address}");
    tokio::select! {
        () = serve(listener, flags.delay) => ExitCode::SUCCESS,
        () = stop.requested() => ExitCode::SUCCESS,
    }
}

/// Every method of every service.
async fn serve(listener: TcpListener, delay: Duration) {
    let supervisor = Supervisor::new();
    let mut connections: Vec<Task> = Vec::new();
    loop {
        let Ok((stream, _)) = listener.accept().await else {
            // Out of descriptors, most likely.
            tokio::time::sleep(Duration::from_millis(50)).await;
            continue;
        };
        connections.retain(|connection| !connection.is_finished());
        if connections.len() < CONNECTIONS_MAX {
            connections.push(supervisor.spawn("connection", serve_connection(stream, delay)));
        }
    }
}

async fn serve_connection(stream: TcpStream, delay: Duration) {
    // Without it calls are slower, not wrong.
    let _ = stream.set_nodelay(true);
    let echo = tower::service_fn(move |request: Request<Incoming>| async move {
        if !delay.is_zero() {
            tokio::time::sleep(delay).await;
        }
        let response: Response<Body> = Grpc::new(Raw).unary(Echo, request).await;
        Ok::<_, Infallible>(response)
    });
    let served = http2::Builder::new(StreamExecutor)
        .timer(TokioTimer::new())
        .max_concurrent_streams(STREAMS_MAX)
        .serve_connection(TokioIo::new(stream), TowerToHyperService::new(echo));
    // Clients end their connections as they like.
    let _ = served.await;
}

struct Echo;

impl tower::Service<tonic::Request<Bytes>> for Echo {
    type Response = tonic::Response<Bytes>;
    type Error = Status;
    type Future = Ready<Result<Self::Response, Status>>;

    fn poll_ready(&mut self, _: &mut std::task::Context<'_>) -> std::task::Poll<Result<(), Status>> {
        std::task::Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: tonic::Request<Bytes>) -> Self::Future {
        ready(Ok(tonic::Response::new(request.into_inner())))
    }
}

/// Passes a message through as it is.
#[derive(Debug, Clone, Copy)]
struct Raw;

impl Codec for Raw {
    type Encode = Bytes;
    type Decode = Bytes;
    type Encoder = Self;
    type Decoder = Self;

    fn encoder(&mut self) -> Self {
        *self
    }

    fn decoder(&mut self) -> Self {
        *self
    }
}

impl Decoder for Raw {
    type Item = Bytes;
    type Error = Status;

    fn decode(&mut self, source: &mut DecodeBuf<'_>) -> Result<Option<Bytes>, Status> {
        Ok(Some(source.copy_to_bytes(source.remaining())))
    }
}

impl Encoder for Raw {
    type Item = Bytes;
    type Error = Status;

    fn encode(&mut self, message: Bytes, target: &mut EncodeBuf<'_>) -> Result<(), Status> {
        target.put(message);
        Ok(())
    }
}
