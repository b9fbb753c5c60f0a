//! Runs the embedded broker until its standard input ends or ctrl-c comes:
//! `cargo run --example dev_broker -- 9092`. In memory only, one broker, not
//! for production; it is there to run clients against.

#![allow(clippy::print_stdout, reason = "the address is this program's output")]

use std::net::SocketAddr;

use antiphon::dev_broker::{Config, DevBroker};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let port = std::env::args().nth(1).map_or(Ok(0), |port| port.parse::<u16>())?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(serve(port))?;
    // Reading standard input occupies a thread that cannot be interrupted.
    runtime.shutdown_background();
    Ok(())
}

async fn serve(port: u16) -> Result<(), Box<dyn std::error::Error>> {
    let listen = SocketAddr::from(([127, 0, 0, 1], port));
    let broker = DevBroker::start(Config { listen, ..Config::default() }).await?;
    println!("bootstrap {}", broker.bootstrap());
    tokio::select! {
        interrupted = tokio::signal::ctrl_c() => interrupted?,
        () = standard_input_ends() => {}
    }
    broker.stop().await;
    Ok(())
}

async fn standard_input_ends() {
    // `tokio::io::stdin` needs more of tokio than this crate uses.
    let read = || std::io::copy(&mut std::io::stdin().lock(), &mut std::io::sink());
    let _ = tokio::task::spawn_blocking(read).await;
}
