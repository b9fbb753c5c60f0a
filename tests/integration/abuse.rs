//! Callers who mean harm; `just security` has more of them, beside a bystander.

use std::time::Duration;

use bytes::{BufMut as _, Bytes, BytesMut};
use http_body_util::Full;
use hyper::client::conn::http2;
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::time::timeout;
use tonic::transport::Endpoint;
use tonic::{Code, Request};

use crate::harness::{ECHO, PATIENCE, TestGateway, unary, until_async};

const REPLY_BYTES: usize = 200 * 1_024;

/// An EchoRequest in gRPC's frame.
fn echo_request() -> Bytes {
    let mut message = BytesMut::new();
    prost::encoding::bytes::encode(1, &Bytes::from(vec![7; REPLY_BYTES]), &mut message);
    let mut framed = BytesMut::new();
    framed.put_u8(0);
    framed.put_u32(u32::try_from(message.len()).unwrap());
    framed.extend_from_slice(&message);
    framed.freeze()
}

fn request() -> http::Request<Full<Bytes>> {
    http::Request::post(format!("http://localhost{ECHO}"))
        .header("content-type", "application/grpc")
        .header("te", "trailers")
        .body(Full::new(echo_request()))
        .unwrap()
}

#[tokio::test]
async fn replies_that_nobody_takes_are_counted_and_their_connection_is_closed() {
    let gateway = TestGateway::build()
        .config(|config| config.grpc.keep_alive_timeout = Duration::from_secs(1))
        .worker(|_, message| async move { Some(Ok(message)) })
        .start()
        .await;
    let stream = TcpStream::connect(gateway.gateway().grpc_address()).await.unwrap();
    let shut = http2::Builder::new(TokioExecutor::new()).initial_stream_window_size(0).clone();
    let (mut sender, connection) = shut.handshake(TokioIo::new(stream)).await.unwrap();
    let connection = tokio::spawn(connection);
    let mut answers = Vec::new();
    for _ in 0..5 {
        let answer = timeout(PATIENCE, sender.send_request(request())).await.unwrap().unwrap();
        assert_eq!(answer.status(), 200);
        answers.push(answer);
    }
    let budget = &gateway.gateway().instance().budget;
    assert!(budget.bytes() >= 5 * REPLY_BYTES as u64, "{} bytes are held", budget.bytes());
    assert!(timeout(PATIENCE, connection).await.is_ok(), "the connection is closed");
    gateway.until("nothing is held", || budget.bytes() == 0).await;
    gateway.stop().await;
}

#[tokio::test]
async fn connections_that_do_not_begin_make_room() {
    let gateway = TestGateway::build()
        .config(|config| config.grpc.connections_max = 64)
        .worker(|_, message| async move { Some(Ok(message)) })
        .start()
        .await;
    let address = gateway.gateway().grpc_address();
    let mut first = None;
    let mut silent = Vec::new();
    for _ in 0..200 {
        let mut stream = TcpStream::connect(address).await.unwrap();
        // It may have been closed already.
        let _ = stream.write_all(b"PRI * HT").await;
        match first {
            None => first = Some(stream),
            Some(_) => silent.push(stream),
        }
    }
    // The server may have said hello before it closed.
    let mut first = first.unwrap();
    let mut said = Vec::new();
    let closed = timeout(PATIENCE, first.read_to_end(&mut said)).await;
    assert!(closed.is_ok(), "the one that came first has gone: {said:?}");
    let endpoint = Endpoint::try_from(format!("http://{address}")).unwrap();
    until_async("a newcomer is answered", async || match endpoint.connect().await {
        Ok(channel) => {
            let answered = unary(channel, ECHO, Request::new(Bytes::new())).await;
            answered.map_or_else(|status| status.code(), |_| Code::Ok) == Code::Ok
        }
        Err(_) => false,
    })
    .await;
    gateway.stop().await;
}
