//! One request, from its turn to the acknowledgement of its reply.

use std::future::Future;
use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use futures_util::FutureExt as _;
use tokio::time::Instant;

use super::answers::{Found, KeptAnswer, RequestId, StoreError};
use super::context::Context;
use super::driver::{Destination, Outbox, OutboxError};
use super::error::{Code, Kind, WorkerError};
use super::kit::{Attempt, Kit, Method, Serve};
use super::metrics::{DeadLetterLabels, HandledLabels};
use crate::backoff::Backoff;
use crate::message::{CONTENT_TYPE, OUTCOME, PROTOBUF, reply_headers, trace_context_of};
use crate::terms::DeadLetterClass;
use crate::transport::{HeaderName, Record};

/// A method without a handler, as metrics name it.
const UNKNOWN_METHOD: &str = "unknown";
/// The code of what is no error, as metrics name it.
pub(super) const OK: &str = "OK";

/// What came of a request.
pub(super) struct Outcome {
    pub(super) result: Result<Bytes, WorkerError>,
    pub(super) class: Option<DeadLetterClass>,
}

impl Outcome {
    /// An error that leaves no dead letter.
    pub(super) fn of(error: WorkerError) -> Self {
        Self { result: Err(error), class: None }
    }
}

/// What a worker's requests share.
pub(super) struct Shared {
    pub(super) kit: Kit,
    pub(super) outbox: Arc<dyn Outbox>,
}

impl Shared {
    /// Deals with a request. Calls `release` once the next one of its key may
    /// start, and ends when the reply is acknowledged.
    pub(super) async fn execute(&self, call: &Context, release: impl FnOnce() + Send) {
        if call.is_cancelled() {
            self.skip(call, "cancelled");
            return release();
        }
        if call.has_expired() {
            self.skip(call, "expired");
            return release();
        }
        // A tombstone asks for nothing.
        let Some(message) = call.record().value.clone() else {
            self.skip(call, "no-value");
            return release();
        };
        let known = self.kit.methods.get_key_value(call.method());
        let method = known.map_or_else(|| Arc::from(UNKNOWN_METHOD), |(path, _)| Arc::clone(path));
        let id =
            call.idempotency_key().map(|key| RequestId { method: Arc::clone(&method), key: key.clone() });
        if let Some((_, Method::Many(serve))) = known {
            let code = self.series(call, serve, message, release).await;
            return self.count_handled(call, method, code);
        }
        let serve = match known {
            Some((_, Method::One(serve))) => Some(serve),
            _ => None,
        };
        let (answer, code) = match self.kept(id.as_ref(), &message).await {
            Some(kept) => kept,
            None => self.fresh(call, serve, id.as_ref(), &message).await,
        };
        self.count_handled(call, method, code);
        self.reply(call, answer, release).await;
    }

    fn count_handled(&self, call: &Context, method: Arc<str>, code: &'static str) {
        self.kit.metrics.handled.get_or_create(&HandledLabels { method, code }).inc();
        let place = call.partition();
        tracing::debug!(topic = %place.topic, partition = place.partition, offset = call.record().offset, code, "handled");
    }

    fn skip(&self, call: &Context, reason: &'static str) {
        self.kit.metrics.skip(reason);
        let place = call.partition();
        tracing::info!(topic = %place.topic, partition = place.partition, offset = call.record().offset, reason, "skipped");
    }

    /// The answer without an execution: a repeat's, or that of a store that
    /// can't be asked.
    async fn kept(&self, id: Option<&RequestId>, message: &Bytes) -> Option<(KeptAnswer, &'static str)> {
        match contained(self.kit.answers.find(id?, message)).await {
            Ok(Found::New) => None,
            Ok(Found::Kept(answer)) => {
                self.kit.metrics.deduplicated.inc();
                let code = answer.code.map_or(OK, Code::as_str);
                Some((answer, code))
            }
            Ok(Found::Conflict) => {
                let text = "this idempotency-key was sent with another message before";
                Some(error_answer(&WorkerError::rejected(Code::InvalidArgument, text)))
            }
            Err(error) => {
                self.kit.metrics.store_errors.inc();
                tracing::error!(%error, "the store of answers cannot be asked; the request is not executed");
                Some(error_answer(&WorkerError::transient("the store of answers cannot be asked")))
            }
        }
    }

    /// Executes the request and keeps its answer.
    async fn fresh(
        &self,
        call: &Context,
        serve: Option<&Arc<Serve>>,
        id: Option<&RequestId>,
        message: &Bytes,
    ) -> (KeptAnswer, &'static str) {
        let outcome = match serve {
            Some(serve) => self.attempts(call, serve, message).await,
            None => {
                let text = format!("this worker does not serve {:?}", call.method());
                Outcome { result: Err(WorkerError::rejected(Code::Unimplemented, text)), class: None }
            }
        };
        if let (Some(class), Err(error)) = (outcome.class, &outcome.result) {
            self.dead_letter(call, class, error).await;
        }
        let repeatable = outcome.result.as_ref().is_err_and(|error| error.code().asks_for_another_try());
        let (mut answer, code) = match outcome.result {
            Ok(value) => (KeptAnswer { code: None, value, headers: Vec::new() }, OK),
            Err(error) => error_answer(&error),
        };
        answer.headers.extend(call.take_reply_headers());
        if let Some(id) = id
            && !repeatable
            && let Err(error) = contained(self.kit.answers.keep(id, message, &answer)).await
        {
            self.kit.metrics.store_errors.inc();
            tracing::error!(%error, "an answer could not be kept; a repeat of its request will be executed");
        }
        (answer, code)
    }

    /// Calls the handler until it has an answer, or there is no time for
    /// another attempt.
    async fn attempts(&self, call: &Context, serve: &Arc<Serve>, message: &Bytes) -> Outcome {
        let retries = &self.kit.settings.retries;
        let mut backoff = Backoff::new(retries.first_pause, retries.pause_max);
        loop {
            call.begin_attempt();
            let outcome = self.attempt(call, serve(call.clone(), message.clone())).await;
            let Err(error) = &outcome.result else { return outcome };
            if error.kind() != Kind::Transient {
                return outcome;
            }
            let pause = backoff.next_pause();
            let late = call.deadline().is_some_and(|deadline| Instant::now() + pause >= deadline);
            if late || call.attempt() >= retries.attempts_max || call.is_cancelled() {
                return Outcome { class: Some(DeadLetterClass::RetriesExhausted), ..outcome };
            }
            tracing::debug!(%error, ?pause, attempt = call.attempt(), "tried again");
            tokio::time::sleep(pause).await;
            self.kit.metrics.retried.inc();
        }
    }

    /// One call of the handler; a panic ends here.
    pub(super) async fn attempt(
        &self,
        call: &Context,
        handled: impl Future<Output = Attempt> + Send,
    ) -> Outcome {
        let limit = self.kit.settings.handler_limit;
        let attempt = AssertUnwindSafe(handled).catch_unwind();
        let (error, class) = match tokio::time::timeout(limit, attempt).await {
            Ok(Ok(Attempt::Reply(value))) => return Outcome { result: Ok(value), class: None },
            Ok(Ok(Attempt::Undecodable(error))) => (error, Some(DeadLetterClass::UndecodableRequest)),
            Ok(Ok(Attempt::Error(error))) => {
                let class = (error.kind() == Kind::Failed).then_some(DeadLetterClass::HandlerFailed);
                (error, class)
            }
            Ok(Err(panic)) => (self.panicked(call, &*panic), Some(DeadLetterClass::HandlerPanicked)),
            Err(_) => {
                let text = format!("the handler took longer than {limit:?}");
                (WorkerError::failed(text), Some(DeadLetterClass::HandlerFailed))
            }
        };
        Outcome { result: Err(error), class }
    }

    fn panicked(&self, call: &Context, panic: &(dyn std::any::Any + Send)) -> WorkerError {
        self.kit.metrics.panics.inc();
        let text = (panic.downcast_ref::<&str>().copied())
            .or_else(|| panic.downcast_ref::<String>().map(String::as_str))
            .unwrap_or("without a text");
        tracing::error!(place = %call.partition(), offset = call.record().offset, text, "a handler panicked");
        if self.kit.settings.tell_panics {
            WorkerError::failed(format!("the handler panicked: {text}"))
        } else {
            WorkerError::failed("the handler panicked")
        }
    }

    pub(super) async fn dead_letter(&self, call: &Context, class: DeadLetterClass, error: &WorkerError) {
        let Some(settings) = &self.kit.settings.dead_letters else { return };
        let wanted = match class {
            DeadLetterClass::HandlerFailed => settings.failed,
            DeadLetterClass::HandlerPanicked => settings.panicked,
            DeadLetterClass::UndecodableRequest => settings.undecodable,
            DeadLetterClass::RetriesExhausted => settings.exhausted,
            _ => false,
        };
        if !wanted {
            return;
        }
        let place = call.partition();
        let topic = Arc::from(format!("{}{}", place.topic, settings.suffix));
        let letter = letter(call, class, &error.to_string());
        match self.outbox.send(Destination { topic, partition: None }, letter).await {
            Ok(()) => {
                let class = class.as_str();
                self.kit.metrics.dead_letters.get_or_create(&DeadLetterLabels { class }).inc();
            }
            Err(error) => {
                self.kit.metrics.dead_letters_lost.inc();
                tracing::error!(%place, offset = call.record().offset, %error, "dead letter lost");
            }
        }
    }

    async fn reply(&self, call: &Context, answer: KeptAnswer, release: impl FnOnce() + Send) {
        let Some((destination, _)) = call.reply_to() else { return release() };
        let mut sending = std::pin::pin!(self.send(call, destination, answer));
        // Polled once, it has its place before what the next one of its key replies.
        let at_once = tokio::select! {
            biased;
            sent = &mut sending => Some(sent),
            () = std::future::ready(()) => None,
        };
        release();
        let sent = match at_once {
            Some(sent) => sent,
            None => sending.await,
        };
        if let Err(error) = sent {
            self.reply_lost(call, &error);
        }
    }

    /// To do the work again would be worse than a reply that is lost.
    pub(super) fn reply_lost(&self, call: &Context, error: &OutboxError) {
        self.kit.metrics.replies_lost.inc();
        let (place, reply_to) = (call.partition(), call.reply_to());
        let topic = reply_to.map_or_else(|| Arc::from(""), |(to, _)| to.topic);
        tracing::error!(%place, offset = call.record().offset, reply_topic = %topic, %error, "reply lost");
    }

    /// Writes the reply; should it be too large, an error that says so.
    async fn send(&self, call: &Context, to: Destination, answer: KeptAnswer) -> Result<(), OutboxError> {
        let sent = self.outbox.send(to.clone(), reply_record(call, answer)).await;
        let Err(too_large @ OutboxError::TooLarge(_)) = sent else { return sent };
        let error = WorkerError::rejected(Code::ResourceExhausted, format!("the reply is {too_large}"));
        self.outbox.send(to, reply_record(call, error_answer(&error).0)).await
    }
}

fn reply_record(call: &Context, answer: KeptAnswer) -> Record {
    let mut headers = vec![(HeaderName::Borrowed(CONTENT_TYPE), Bytes::from_static(PROTOBUF.as_bytes()))];
    headers.extend(call.reply_to().map(|(_, id)| id));
    // Unless the handler has said another.
    let said = |name: &str| answer.headers.iter().any(|(said, _)| said == name);
    headers.extend(trace_context_of(call.record()).filter(|(name, _)| !said(name)));
    headers.extend(answer.headers);
    Record { key: call.record().key.clone(), value: Some(answer.value), headers }
}

/// A store that panics is one that can't be asked.
async fn contained<T>(asked: impl Future<Output = Result<T, StoreError>>) -> Result<T, StoreError> {
    let panicked = |_| Err(StoreError("the store panicked".to_owned()));
    AssertUnwindSafe(asked).catch_unwind().await.unwrap_or_else(panicked)
}

pub(super) fn error_answer(error: &WorkerError) -> (KeptAnswer, &'static str) {
    // An error's value is empty, not null: null is a tombstone.
    let answer =
        KeptAnswer { code: Some(error.code()), value: Bytes::new(), headers: reply_headers(&error.status()) };
    (answer, error.code().as_str())
}

/// The request as it came, and why it is here: headers as `exchange` has them.
fn letter(call: &Context, class: DeadLetterClass, reason: &str) -> Record {
    let now: Duration = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    let request = call.record();
    let mut headers = request.headers.clone();
    // One that was sent again from a dead letter is a new one.
    headers.retain(|(name, _)| {
        !name.starts_with("original.") && !name.starts_with("failure.") && name != OUTCOME
    });
    let said = [
        ("original.topic", call.partition().topic.to_string()),
        ("original.partition", call.partition().partition.to_string()),
        ("original.offset", request.offset.to_string()),
        ("failure.class", class.as_str().to_owned()),
        ("failure.reason", reason.to_owned()),
        ("failure.timestamp", now.as_millis().to_string()),
        (OUTCOME, "sent".to_owned()),
    ];
    headers.extend(said.map(|(name, value)| (HeaderName::Borrowed(name), Bytes::from(value))));
    Record { key: request.key.clone(), value: request.value.clone(), headers }
}
