//! A worker that answers `payments.v1.PaymentService` over Kafka.

mod payments;

use std::env::var;
use std::error::Error;
use std::io::IsTerminal as _;

use antiphon::worker::rdkafka::{Config, RdKafkaDriver};
use antiphon::worker::{DeadLetters, Kit, Order};
use tokio::signal::unix::{SignalKind, signal};
use tracing_subscriber::EnvFilter;

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let setting = |name: &str, default: &str| var(name).unwrap_or_else(|_| default.to_owned());
    tracing_subscriber::fmt()
        .with_env_filter(EnvFilter::new(setting("RUST_LOG", "info,antiphon::worker=debug")))
        .with_writer(std::io::stderr)
        .with_ansi(std::io::stderr().is_terminal())
        .init();
    let order = match setting("ORDER", "key").as_str() {
        "key" => Order::Key,
        "partition" => Order::Partition,
        other => return Err(format!("ORDER is {other:?}; expected key or partition").into()),
    };
    let dead_letters = setting("DEAD_LETTERS", "false").parse::<bool>()?;
    let topic = setting("KAFKA_TOPIC", "payment_request");
    let config = Config::new(
        setting("KAFKA_BOOTSTRAP", "127.0.0.1:9092"),
        setting("KAFKA_GROUP", "payments"),
        &[&topic],
    );

    let (mut terminate, mut interrupt) =
        (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
    let stop = async move {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
    };
    // ANCHOR: kit
    let kit = Kit::new()
        .settings(|settings| {
            settings.order = order;
            settings.dead_letters = dead_letters.then(DeadLetters::default);
        })
        .handle("/payments.v1.PaymentService/Pay", payments::pay)
        .handle("/payments.v1.PaymentService/Refund", payments::refund);
    // ANCHOR_END: kit
    let metrics = kit.metrics().clone();
    let ended = kit.run(RdKafkaDriver::start(&config)?, stop).await?;
    tracing::info!(
        cut = ended.cut,
        expired = metrics.skipped_for("expired"),
        deduplicated = metrics.deduplicated.get(),
        retried = metrics.retried.get(),
        panics = metrics.panics.get(),
        replies_lost = metrics.replies_lost.get(),
        "stopped"
    );
    Ok(())
}
