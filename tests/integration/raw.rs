//! HTTP/2 by hand: requests that no gRPC client would send, and answers with
//! nothing hidden.

use std::convert::Infallible;
use std::net::SocketAddr;

use bytes::{BufMut as _, Bytes, BytesMut};
use http::{HeaderMap, Request, StatusCode};
use http_body::Frame;
use http_body_util::{BodyExt as _, Full, StreamBody};
use hyper_util::rt::{TokioExecutor, TokioIo};
use tonic::{Code, Status};

pub struct RawAnswer {
    pub http: StatusCode,
    pub headers: HeaderMap,
    pub body: Bytes,
    pub trailers: HeaderMap,
}

impl RawAnswer {
    /// The gRPC status, from trailers or, in an answer of trailers only, from
    /// the headers.
    pub fn status(&self) -> Status {
        let from = if self.headers.contains_key("grpc-status") { &self.headers } else { &self.trailers };
        Status::from_header_map(from).expect("a grpc-status")
    }

    pub fn code(&self) -> Code {
        self.status().code()
    }
}

/// A message in gRPC's frame.
pub fn framed(message: &[u8]) -> Bytes {
    let mut frame = BytesMut::new();
    frame.put_u8(0);
    frame.put_u32(message.len() as u32);
    frame.put_slice(message);
    frame.freeze()
}

pub async fn post(address: SocketAddr, path: &str, headers: &[(&str, &str)], body: Bytes) -> RawAnswer {
    let stream = tokio::net::TcpStream::connect(address).await.unwrap();
    let (mut sender, connection) =
        hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(stream)).await.unwrap();
    let driver = tokio::spawn(connection);
    let mut request = Request::post(format!("http://{address}{path}"));
    if !headers.iter().any(|(name, _)| *name == "content-type") {
        request = request.header("content-type", "application/grpc");
    }
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    let response = sender.send_request(request.body(Full::new(body)).unwrap()).await.unwrap();
    let (head, body) = response.into_parts();
    let collected = body.collect().await.unwrap();
    let trailers = collected.trailers().cloned().unwrap_or_default();
    driver.abort();
    RawAnswer { http: head.status, headers: head.headers, body: collected.to_bytes(), trailers }
}

/// An answer of which nothing has been read but its headers, if it has any yet.
pub struct Unread {
    answer: tokio::task::JoinHandle<http::Response<hyper::body::Incoming>>,
    driver: tokio::task::JoinHandle<()>,
}

impl Unread {
    /// Reads it to its end.
    pub async fn read(&mut self) -> RawAnswer {
        let (head, body) = (&mut self.answer).await.unwrap().into_parts();
        let collected = body.collect().await.unwrap();
        let trailers = collected.trailers().cloned().unwrap_or_default();
        RawAnswer { http: head.status, headers: head.headers, body: collected.to_bytes(), trailers }
    }
}

impl Drop for Unread {
    fn drop(&mut self) {
        self.driver.abort();
    }
}

/// Sends a request, with a window of 64 KiB for the answer.
pub async fn open(address: SocketAddr, path: &str, headers: &[(&str, &str)], body: Bytes) -> Unread {
    let stream = tokio::net::TcpStream::connect(address).await.unwrap();
    let mut client = hyper::client::conn::http2::Builder::new(TokioExecutor::new());
    client.initial_stream_window_size(65_535);
    let (mut sender, connection) = client.handshake(TokioIo::new(stream)).await.unwrap();
    let driver = tokio::spawn(async move { drop(connection.await) });
    let mut request =
        Request::post(format!("http://{address}{path}")).header("content-type", "application/grpc");
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    let answer = sender.send_request(request.body(Full::new(body)).unwrap());
    Unread { answer: tokio::spawn(async move { answer.await.unwrap() }), driver }
}

/// A call whose message has begun and does not go on, until it is dropped.
pub struct Unfinished {
    /// The rest of the message would go in here.
    _body: tokio::sync::mpsc::Sender<Result<Frame<Bytes>, Infallible>>,
    _answer: tokio::task::JoinHandle<()>,
    driver: tokio::task::JoinHandle<()>,
}

impl Drop for Unfinished {
    fn drop(&mut self) {
        self.driver.abort();
    }
}

/// Sends headers and the beginning of a message.
pub async fn begin(address: SocketAddr, path: &str, beginning: Bytes) -> Unfinished {
    let stream = tokio::net::TcpStream::connect(address).await.unwrap();
    let (mut sender, connection) =
        hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(stream)).await.unwrap();
    let driver = tokio::spawn(async move { drop(connection.await) });
    let (body, frames) = tokio::sync::mpsc::channel(1);
    body.send(Ok(Frame::data(beginning))).await.unwrap();
    let frames = StreamBody::new(tokio_stream::wrappers::ReceiverStream::new(frames));
    let request = Request::post(format!("http://{address}{path}"))
        .header("content-type", "application/grpc")
        .body(frames);
    let answer = sender.send_request(request.unwrap());
    let answer = tokio::spawn(async move { drop(answer.await) });
    Unfinished { _body: body, _answer: answer, driver }
}
