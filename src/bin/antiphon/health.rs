//! `antiphon health`: whether the gateway with these settings is ready, for
//! health checks where there is no shell and no curl, as in the container image.
#![allow(clippy::print_stderr, reason = "printing is what this command is for")]

use std::io::Write as _;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::process::ExitCode;
use std::time::Duration;

use antiphon::config::{self, Flags};
use antiphon::web_client::WebClient;
use bytes::Bytes;
use http::{Request, StatusCode};

use crate::exit;
use crate::serve::block_on;

/// Shorter than a health check's own time-out, so that it is we who say why.
const ANSWER_WITHIN: Duration = Duration::from_secs(2);

/// Asks `/ready` of the admin listener. Exits with 0 if it is, with 1 if the
/// gateway says that it is not, and with 69 if nobody answers.
pub(crate) fn run(flags: &Flags) -> ExitCode {
    match config::load(flags) {
        Ok(config) => block_on(ask(reachable(config.gateway.admin.listen))),
        Err(mistakes) => {
            eprintln!("{mistakes}");
            exit::CONFIG.into()
        }
    }
}

async fn ask(address: SocketAddr) -> ExitCode {
    let url = format!("http://{address}");
    let answer = match WebClient::new(&url, None, ANSWER_WITHIN) {
        Ok(client) => client.ask(Request::builder(), "/ready", Bytes::new()).await,
        Err(error) => Err(error.to_string()),
    };
    match answer {
        Ok((status, text)) => {
            // Nothing can be done about a closed pipe.
            let _ = std::io::stdout().write_all(&text);
            if status == StatusCode::OK { ExitCode::SUCCESS } else { exit::NOT_FOUND.into() }
        }
        Err(error) => {
            eprintln!("antiphon: {url}/ready: {error}");
            exit::UNAVAILABLE.into()
        }
    }
}

/// Who listens on all interfaces listens on loopback.
fn reachable(listen: SocketAddr) -> SocketAddr {
    let ip = match listen.ip() {
        IpAddr::V4(ip) if ip.is_unspecified() => Ipv4Addr::LOCALHOST.into(),
        IpAddr::V6(ip) if ip.is_unspecified() => Ipv6Addr::LOCALHOST.into(),
        ip => ip,
    };
    SocketAddr::new(ip, listen.port())
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    use tokio::net::TcpListener;

    use super::*;

    /// What `health` makes of an answer.
    async fn answered(answer: &'static str) -> ExitCode {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let answers = async {
            let (mut caller, _) = listener.accept().await.unwrap();
            let mut request = [0; 512];
            let read = caller.read(&mut request).await.unwrap();
            assert!(request[..read].starts_with(b"GET /ready HTTP/1.1"));
            caller.write_all(answer.as_bytes()).await.unwrap();
        };
        tokio::join!(ask(address), answers).0
    }

    #[tokio::test]
    async fn the_exit_code_says_whether_it_is_ready() {
        let ready = answered("HTTP/1.1 200 OK\r\ncontent-length: 6\r\n\r\nready\n").await;
        assert_eq!(ready, ExitCode::SUCCESS);
        let draining = answered("HTTP/1.1 503 Service Unavailable\r\ncontent-length: 0\r\n\r\n").await;
        assert_eq!(draining, ExitCode::from(exit::NOT_FOUND));
        let nobody = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
        assert_eq!(ask(nobody).await, ExitCode::from(exit::UNAVAILABLE));
    }

    #[test]
    fn all_interfaces_are_asked_on_loopback() {
        for (listen, asked) in
            [("0.0.0.0:1", "127.0.0.1:1"), ("[::]:2", "[::1]:2"), ("10.1.2.3:4", "10.1.2.3:4")]
        {
            assert_eq!(reachable(listen.parse().unwrap()), asked.parse().unwrap());
        }
    }
}
