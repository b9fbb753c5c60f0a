//! HTTP/2 by hand: requests that no gRPC client would send, and answers with
//! nothing hidden.

use std::net::SocketAddr;

use bytes::{BufMut as _, Bytes, BytesMut};
use http::{HeaderMap, Request, StatusCode};
use http_body_util::{BodyExt as _, Full};
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
