//! The embedded broker: any request, through a socket as clients send it. The
//! input is one frame without its length. A panic in the broker's task ends
//! the run, since libFuzzer's hook hears of it.
#![no_main]

use std::cell::RefCell;
use std::time::Duration;

use antiphon::dev_broker::{Config, DevBroker};
use libfuzzer_sys::fuzz_target;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::runtime::{Builder, Runtime};
use tokio::time::timeout;

/// Requests that one broker gets: some of them wait, and hold their connection.
const REQUESTS_PER_BROKER: u32 = 1_000;
/// Most answers come at once; a request that waits is not waited for.
const PATIENCE: Duration = Duration::from_millis(20);
/// `ApiVersions`, version 0, without a client id.
const HELLO: [u8; 10] = [0, 18, 0, 0, 0, 0, 0, 7, 0xff, 0xff];

thread_local! {
    static RUNTIME: Runtime = Builder::new_current_thread().enable_all().build().expect("a runtime");
    static BROKER: RefCell<Option<(DevBroker, u32)>> = const { RefCell::new(None) };
}

async fn exchange(broker: &DevBroker, frames: &[&[u8]]) -> Option<Vec<u8>> {
    let mut stream = TcpStream::connect(broker.addr()).await.ok()?;
    for frame in frames {
        let length = u32::try_from(frame.len()).ok()?;
        stream.write_all(&length.to_be_bytes()).await.ok()?;
        stream.write_all(frame).await.ok()?;
    }
    stream.shutdown().await.ok()?;
    let mut answer = Vec::new();
    let _ = timeout(PATIENCE, stream.read_to_end(&mut answer)).await;
    Some(answer)
}

async fn fresh() -> DevBroker {
    let broker = DevBroker::start(Config { auto_create: true, ..Config::default() }).await.expect("a broker");
    broker.create_topic("t", 2).expect("a topic");
    broker
}

fuzz_target!(|input: &[u8]| {
    RUNTIME.with(|runtime| {
        BROKER.with_borrow_mut(|held| {
            runtime.block_on(async {
                let (broker, served) = match held.take() {
                    Some((broker, served)) if served < REQUESTS_PER_BROKER => (broker, served),
                    Some((broker, _)) => {
                        broker.stop().await;
                        (fresh().await, 0)
                    }
                    None => (fresh().await, 0),
                };
                exchange(&broker, &[input]).await;
                let hello = exchange(&broker, &[&HELLO]).await.expect("a connection");
                assert!(hello.len() > 10, "the broker does not answer any more");
                *held = Some((broker, served + 1));
            });
        });
    });
});
