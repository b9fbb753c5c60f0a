//! Handlers by method, and the settings of their worker.

use std::collections::HashMap;
use std::fmt;
use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::future::BoxFuture;
use prost::Message;

use super::answers::{AnswerStore, MemoryAnswers};
use super::context::Context;
use super::driver::{Driver, DriverError};
use super::engine::{Ended, Engine};
use super::error::{Code, WorkerError};
use super::metrics::Metrics;
use super::series::{Replies, ServeMany};

/// What must be handled one after the other.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Order {
    /// Requests of one key. Those without a key wait for nothing, but for
    /// others with the same idempotency key.
    #[default]
    Key,
    /// Requests of one partition, as simple consumers have it.
    Partition,
}

/// Attempts at a request whose handler says that it may work in a moment.
#[derive(Debug, Clone)]
pub struct Retries {
    /// Attempts in all; 1 is no retry.
    pub attempts_max: u32,
    /// Before the second attempt; doubled each time, with jitter down to half.
    pub first_pause: Duration,
    /// The longest pause.
    pub pause_max: Duration,
}

impl Default for Retries {
    fn default() -> Self {
        Self { attempts_max: 5, first_pause: Duration::from_millis(50), pause_max: Duration::from_secs(2) }
    }
}

/// Which requests become dead letters, and where.
#[derive(Debug, Clone)]
pub struct DeadLetters {
    /// What the request topic's name is followed by.
    pub suffix: String,
    /// Of [`Kind::Failed`](super::Kind::Failed): `handler-failed`.
    pub failed: bool,
    /// Handlers that panicked: `handler-panicked`.
    pub panicked: bool,
    /// Values that do not decode: `undecodable-request`.
    pub undecodable: bool,
    /// Transient errors to the last attempt: `retries-exhausted`.
    pub exhausted: bool,
}

impl Default for DeadLetters {
    /// All of them, to `<topic>.DLQ`.
    fn default() -> Self {
        Self { suffix: ".DLQ".to_owned(), failed: true, panicked: true, undecodable: true, exhausted: true }
    }
}

/// How requests are run. Every bound is here.
#[derive(Debug, Clone)]
pub struct Settings {
    /// What is handled one after the other.
    pub order: Order,
    /// Handlers at work at once.
    pub concurrency: usize,
    /// Requests in hand: queued, at work, or waiting for the acknowledgement of
    /// their reply.
    pub held_max: usize,
    /// Bytes of keys, values and headers of requests in hand. The last one taken
    /// may go beyond it.
    pub held_bytes_max: usize,
    /// Requests that are done but behind one that is not, together with those
    /// in hand.
    pub uncommitted_max: usize,
    /// Attempts at transient failures.
    pub retries: Retries,
    /// How long one attempt may take; then its future is dropped and the caller
    /// gets `INTERNAL`.
    pub handler_limit: Duration,
    /// By how much the callers' clocks may be behind: added to each deadline.
    pub clock_skew: Duration,
    /// Between commits.
    pub commit_interval: Duration,
    /// How long requests in hand may take once the worker is to stop.
    pub drain_limit: Duration,
    /// Dead letters; without it there are none.
    pub dead_letters: Option<DeadLetters>,
    /// Whether callers see the text of a panic.
    pub tell_panics: bool,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            order: Order::Key,
            concurrency: 64,
            held_max: 1_000,
            held_bytes_max: 64 << 20,
            uncommitted_max: 10_000,
            retries: Retries::default(),
            handler_limit: Duration::from_secs(300),
            clock_skew: Duration::ZERO,
            commit_interval: Duration::from_millis(500),
            drain_limit: Duration::from_secs(30),
            dead_letters: None,
            tell_panics: true,
        }
    }
}

/// A handler: a function of a [`Context`] and the request that ends in a reply
/// or a [`WorkerError`].
pub trait Handle<Q, R>: Fn(Context, Q) -> <Self as Handle<Q, R>>::Answer + Send + Sync + 'static {
    /// What it returns.
    type Answer: Future<Output = Result<R, WorkerError>> + Send + 'static;
}

impl<F, Fut, Q, R> Handle<Q, R> for F
where
    F: Fn(Context, Q) -> Fut + Send + Sync + 'static,
    Fut: Future<Output = Result<R, WorkerError>> + Send + 'static,
{
    type Answer = Fut;
}

/// A handler that sends its replies itself, with [`Replies::send`], and ends
/// when the last is sent.
pub trait HandleStream<Q, R>:
    Fn(Context, Q, Replies<R>) -> <Self as HandleStream<Q, R>>::Answer + Send + Sync + 'static
{
    /// What it returns.
    type Answer: Future<Output = Result<(), WorkerError>> + Send + 'static;
}

impl<F, Fut, Q, R> HandleStream<Q, R> for F
where
    F: Fn(Context, Q, Replies<R>) -> Fut + Send + Sync + 'static,
    Fut: Future<Output = Result<(), WorkerError>> + Send + 'static,
{
    type Answer = Fut;
}

/// How a method is served.
#[derive(Clone)]
pub(super) enum Method {
    One(Arc<Serve>),
    Many(Arc<ServeMany>),
}

/// One attempt: the message of the reply.
pub(super) type Serve = dyn Fn(Context, Bytes) -> BoxFuture<'static, Attempt> + Send + Sync;

/// What came of an attempt.
#[derive(Debug)]
pub(super) enum Attempt {
    Reply(Bytes),
    Error(WorkerError),
    /// The request is no message of the method's type.
    Undecodable(WorkerError),
}

/// A worker for gRPC methods over Kafka: handlers, and how they are run.
///
/// ```no_run
/// use antiphon::worker::samples::payments::{PayReply, PayRequest, PaymentState};
/// use antiphon::worker::{Code, Driver, Kit, WorkerError};
///
/// # async fn example(driver: impl Driver) -> Result<(), Box<dyn std::error::Error>> {
/// let stop = async { drop(tokio::signal::ctrl_c().await) };
/// Kit::new()
///     .handle::<PayRequest, PayReply>("/payments.v1.PaymentService/Pay", |call, request| async move {
///         if request.amount_minor <= 0 {
///             return Err(WorkerError::invalid("amount_minor", "must be above zero"));
///         }
///         if request.currency == "ZZZ" {
///             return Err(WorkerError::rejected(Code::FailedPrecondition, "no such currency"));
///         }
///         let payment_id = charge(&request).await.map_err(WorkerError::transient)?;
///         tracing::info!(left = ?call.time_left(), "paid");
///         Ok(PayReply { order_id: request.order_id, payment_id, state: PaymentState::Approved.into() })
///     })
///     .run(driver, stop)
///     .await?;
/// # Ok(())
/// # }
/// # async fn charge(_: &PayRequest) -> Result<String, std::io::Error> { Ok(String::new()) }
/// ```
pub struct Kit {
    pub(super) methods: HashMap<Arc<str>, Method>,
    pub(super) settings: Settings,
    pub(super) answers: Arc<dyn AnswerStore>,
    pub(super) metrics: Metrics,
}

impl fmt::Debug for Kit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let methods: Vec<_> = self.methods.keys().collect();
        f.debug_struct("Kit").field("methods", &methods).field("settings", &self.settings).finish()
    }
}

impl Default for Kit {
    fn default() -> Self {
        Self::new()
    }
}

impl Kit {
    /// No handlers; answers to idempotency keys are kept in memory.
    pub fn new() -> Self {
        Self {
            methods: HashMap::new(),
            settings: Settings::default(),
            answers: Arc::new(MemoryAnswers::default()),
            metrics: Metrics::default(),
        }
    }

    /// Handles the method of this path, `/pkg.Service/Method`. A handler that
    /// blocks its thread holds up others: use `tokio::task::spawn_blocking`.
    #[must_use]
    pub fn handle<Q, R>(mut self, path: &str, handler: impl Handle<Q, R>) -> Self
    where
        Q: Message + Default + 'static,
        R: Message + 'static,
    {
        let handler = Arc::new(handler);
        let serve = move |context: Context, message: Bytes| {
            let handler = Arc::clone(&handler);
            let attempt = async move {
                let request = match decode::<Q>(message) {
                    Ok(request) => request,
                    Err(undecodable) => return undecodable,
                };
                match (*handler)(context, request).await {
                    Ok(reply) => Attempt::Reply(Bytes::from(reply.encode_to_vec())),
                    Err(error) => Attempt::Error(error),
                }
            };
            Box::pin(attempt) as BoxFuture<'static, Attempt>
        };
        self.methods.insert(Arc::from(path), Method::One(Arc::new(serve)));
        self
    }

    /// Handles a method whose calls have several replies: one that returns a
    /// stream, or one that the gateway collects them for. They are written in
    /// the order in which they are sent, each with its number.
    #[must_use]
    pub fn handle_stream<Q, R>(mut self, path: &str, handler: impl HandleStream<Q, R>) -> Self
    where
        Q: Message + Default + 'static,
        R: Message + 'static,
    {
        let handler = Arc::new(handler);
        let serve = move |context: Context, message: Bytes, messages| {
            let handler = Arc::clone(&handler);
            let attempt = async move {
                let request = match decode::<Q>(message) {
                    Ok(request) => request,
                    Err(undecodable) => return undecodable,
                };
                let replies = Replies::new(context.clone(), messages);
                match (*handler)(context, request, replies).await {
                    Ok(()) => Attempt::Reply(Bytes::new()),
                    Err(error) => Attempt::Error(error),
                }
            };
            Box::pin(attempt) as BoxFuture<'static, Attempt>
        };
        self.methods.insert(Arc::from(path), Method::Many(Arc::new(serve)));
        self
    }

    /// Changes the settings.
    #[must_use]
    pub fn settings(mut self, change: impl FnOnce(&mut Settings)) -> Self {
        change(&mut self.settings);
        self
    }

    /// Keeps answers to idempotency keys elsewhere.
    #[must_use]
    pub fn answers(mut self, store: impl AnswerStore) -> Self {
        self.answers = Arc::new(store);
        self
    }

    /// What this worker counts.
    pub fn metrics(&self) -> &Metrics {
        &self.metrics
    }

    /// Serves until `stop` ends, then finishes what is in hand, commits and
    /// leaves. Must be called within a Tokio runtime; handlers are tasks of it.
    pub async fn run(
        self,
        driver: impl Driver,
        stop: impl Future<Output = ()> + Send,
    ) -> Result<Ended, DriverError> {
        Engine::new(self, Box::new(driver))?.run(stop).await
    }
}

fn decode<Q: Message + Default>(message: Bytes) -> Result<Q, Attempt> {
    Q::decode(message).map_err(|error| {
        let text = format!("the request does not decode: {error}");
        Attempt::Undecodable(WorkerError::rejected(Code::InvalidArgument, text))
    })
}
