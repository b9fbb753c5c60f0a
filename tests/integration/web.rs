//! gRPC-Web on the gRPC port: a browser's calls, its preflight questions, and
//! who is refused.

use std::net::SocketAddr;

use antiphon::worker::samples::Samples;
use base64::Engine as _;
use bytes::Bytes;
use http::{HeaderMap, Method, Request, Response, StatusCode};
use http_body_util::{BodyExt as _, Full};
use hyper_util::rt::TokioIo;

use crate::harness::{PAY, TestGateway};
use crate::raw::{framed, post};

const PAGE: &str = "https://shop.example.com";

async fn http1(
    address: SocketAddr,
    method: Method,
    headers: &[(&str, &str)],
    body: Bytes,
) -> (StatusCode, HeaderMap, Bytes) {
    http1_at(address, method, PAY, headers, body).await
}

async fn http1_to(address: SocketAddr, path: &str, headers: &[(&str, &str)], body: Bytes) -> Bytes {
    http1_at(address, Method::POST, path, headers, body).await.2
}

async fn http1_at(
    address: SocketAddr,
    method: Method,
    path: &str,
    headers: &[(&str, &str)],
    body: Bytes,
) -> (StatusCode, HeaderMap, Bytes) {
    let stream = tokio::net::TcpStream::connect(address).await.unwrap();
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.unwrap();
    let driver = tokio::spawn(connection);
    let mut request = Request::builder().method(method).uri(path).header("host", "gateway");
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    let response: Response<_> = sender.send_request(request.body(Full::new(body)).unwrap()).await.unwrap();
    let (head, body) = response.into_parts();
    let body = body.collect().await.unwrap().to_bytes();
    driver.abort();
    (head.status, head.headers, body)
}

async fn gateway(origins: &[&str]) -> TestGateway {
    let origins: Vec<String> = origins.iter().map(|origin| (*origin).to_owned()).collect();
    TestGateway::build()
        .config(move |config| config.grpc.web_origins = origins)
        .handler(Samples::default())
        .start()
        .await
}

/// Message and trailers, as gRPC-Web frames them.
fn parts(body: &[u8]) -> (Vec<u8>, String) {
    let (mut message, mut trailers) = (Vec::new(), String::new());
    let mut rest = body;
    while let [flag, a, b, c, d, after @ ..] = rest {
        let (part, behind) = after.split_at(u32::from_be_bytes([*a, *b, *c, *d]) as usize);
        match flag {
            0 => message.extend_from_slice(part),
            _ => trailers.push_str(std::str::from_utf8(part).unwrap()),
        }
        rest = behind;
    }
    assert!(rest.is_empty(), "{rest:?}");
    (message, trailers)
}

#[tokio::test]
async fn a_page_calls_and_plain_grpc_goes_on() {
    let gateway = gateway(&[PAGE]).await;
    let address = gateway.gateway().grpc_address();
    let pay = framed(b"\x0a\x03o-1\x10\x01\x1a\x03EUR");

    let headers = [("content-type", "application/grpc-web+proto"), ("origin", PAGE), ("grpc-timeout", "5S")];
    let (status, headers, body) = http1(address, Method::POST, &headers, pay.clone()).await;
    assert_eq!(status, StatusCode::OK);
    assert_eq!(headers["access-control-allow-origin"], PAGE);
    assert!(
        headers["access-control-expose-headers"].to_str().unwrap().contains("grpc-status"),
        "{headers:?}"
    );
    let (message, trailers) = parts(&body);
    assert!(message.starts_with(b"\x0a\x03o-1"), "{message:?}");
    assert!(trailers.contains("grpc-status:0\r\n"), "{trailers}");
    assert!(trailers.contains("antiphon-outcome:sent\r\n"), "{trailers}");

    // The same as text.
    let base64 = base64::engine::general_purpose::STANDARD;
    let headers = [("content-type", "application/grpc-web-text"), ("accept", "application/grpc-web-text")];
    let text = Bytes::from(base64.encode(&pay));
    let (_, _, body) = http1(address, Method::POST, &headers, text).await;
    // Each chunk is padded by itself.
    let decoded: Vec<u8> = body.chunks(4).flat_map(|four| base64.decode(four).unwrap()).collect();
    assert!(parts(&decoded).1.contains("grpc-status:0\r\n"));

    // Each message of a stream, and then the trailers.
    let headers = [("content-type", "application/grpc-web+proto"), ("origin", PAGE)];
    let body = http1_to(address, "/echo.v1.EchoService/EchoMany", &headers, framed(b"\x0a\x02hi")).await;
    let (message, trailers) = parts(&body);
    assert_eq!(message, b"\x0a\x02hi".repeat(3));
    assert!(
        trailers.contains("grpc-status:0\r\n") && trailers.contains("antiphon-replies:3\r\n"),
        "{trailers}"
    );

    // A mistake is told in trailers, too.
    let headers = [("content-type", "application/grpc-web+proto")];
    let (_, headers, body) = http1(address, Method::POST, &headers, framed(b"\x0a\x7f")).await;
    let told = headers.get("grpc-status").map(|v| v.to_str().unwrap().to_owned());
    assert_eq!(
        told.unwrap_or_else(|| parts(&body).1.chars().filter(char::is_ascii_digit).take(1).collect()),
        "3"
    );

    assert_eq!(post(address, PAY, &[], pay).await.code(), tonic::Code::Ok);
    gateway.settled().await;
    gateway.stop().await;
}

#[tokio::test]
async fn preflight_is_answered_and_strangers_are_refused() {
    let gateway = gateway(&[PAGE]).await;
    let address = gateway.gateway().grpc_address();
    let ask = |origin| {
        [
            ("origin", origin),
            ("access-control-request-method", "POST"),
            ("access-control-request-headers", "content-type,x-grpc-web,grpc-timeout"),
        ]
    };
    let (status, headers, _) = http1(address, Method::OPTIONS, &ask(PAGE), Bytes::new()).await;
    assert_eq!(status, StatusCode::OK);
    assert_eq!(headers["access-control-allow-origin"], PAGE);
    assert_eq!(headers["access-control-allow-methods"], "POST");
    assert_eq!(headers["access-control-allow-headers"], "content-type,x-grpc-web,grpc-timeout");
    assert_eq!(headers["access-control-max-age"], "7200");

    let stranger = "https://elsewhere.example.com";
    let (status, headers, _) = http1(address, Method::OPTIONS, &ask(stranger), Bytes::new()).await;
    assert_eq!(status, StatusCode::FORBIDDEN);
    assert!(!headers.contains_key("access-control-allow-origin"));
    let headers = [("content-type", "application/grpc-web+proto"), ("origin", stranger)];
    let (status, ..) = http1(address, Method::POST, &headers, framed(b"")).await;
    assert_eq!(status, StatusCode::FORBIDDEN);
    // HTTP/1.1 is there for gRPC-Web alone.
    let (status, ..) = http1(address, Method::GET, &[], Bytes::new()).await;
    assert_eq!(status, StatusCode::BAD_REQUEST);
    gateway.stop().await;
}

#[tokio::test]
async fn where_nobody_is_named_it_is_off() {
    let gateway = gateway(&[]).await;
    let address = gateway.gateway().grpc_address();
    let headers = [("content-type", "application/grpc-web+proto")];
    assert_eq!(post(address, PAY, &headers, framed(b"")).await.http, StatusCode::UNSUPPORTED_MEDIA_TYPE);
    let stream = tokio::net::TcpStream::connect(address).await.unwrap();
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.unwrap();
    let driver = tokio::spawn(connection);
    let request = Request::post(PAY).header("host", "gateway").body(Full::new(Bytes::new())).unwrap();
    assert!(sender.send_request(request).await.is_err());
    driver.abort();
    gateway.stop().await;
}
