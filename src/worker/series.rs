//! Requests that have several replies: each is written as the handler sends it,
//! numbered, and what ends them says so.
//!
//! The handler is ahead of the broker's acknowledgements by a bounded number of
//! replies, and then waits. It is never tried again: what it has sent can't be
//! taken back.

use std::fmt;
use std::marker::PhantomData;
use std::sync::Arc;

use bytes::Bytes;
use futures_util::StreamExt as _;
use futures_util::future::BoxFuture;
use futures_util::stream::FuturesUnordered;
use prost::Message;
use tokio::sync::mpsc;

use super::context::Context;
use super::driver::{Destination, OutboxError};
use super::error::{Code, WorkerError};
use super::execute::{OK, Outcome, Shared, error_answer};
use super::kit::Attempt;
use crate::message::{CONTENT_TYPE, LAST, PROTOBUF, SEQUENCE, trace_context_of};
use crate::transport::{HeaderName, Record};

/// Replies that a handler may be ahead of their writing.
const BUFFERED_MAX: usize = 16;
/// Replies on their way to the broker, of one request.
const UNACKNOWLEDGED_MAX: usize = 64;

/// Sends replies to one request, in order.
///
/// The end is said for the handler when it returns: with `Ok` that the replies
/// are complete, with an error that they are not.
pub struct Replies<R> {
    call: Context,
    messages: Messages,
    reply: PhantomData<fn(R)>,
}

impl<R> fmt::Debug for Replies<R> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Replies").field("call", &self.call).finish_non_exhaustive()
    }
}

/// Nobody waits for further replies: the caller has gone, or its time is over.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("nobody waits for further replies")]
pub struct NobodyWaits;

impl From<NobodyWaits> for WorkerError {
    fn from(nobody: NobodyWaits) -> Self {
        Self::rejected(Code::Cancelled, nobody.to_string())
    }
}

impl<R: Message> Replies<R> {
    /// Sends one more, with the headers that [`Context::reply_header`] has added
    /// since the last. Waits while too many are on their way.
    ///
    /// # Errors
    /// Nobody waits for it; stop.
    pub async fn send(&self, reply: &R) -> Result<(), NobodyWaits> {
        if self.call.is_cancelled() || self.call.has_expired() {
            return Err(NobodyWaits);
        }
        // Those that were added for this reply, and not for one that the handler is ahead with.
        let headers = self.call.take_reply_headers();
        self.messages.send((Bytes::from(reply.encode_to_vec()), headers)).await.map_err(|_| NobodyWaits)
    }
}

/// One attempt of a handler that sends its replies itself.
pub(super) type ServeMany = dyn Fn(Context, Bytes, Messages) -> BoxFuture<'static, Attempt> + Send + Sync;

/// Where such a handler's messages go.
pub(super) type Messages = mpsc::Sender<(Bytes, Headers)>;

type Headers = Vec<(HeaderName, Bytes)>;

impl<R> Replies<R> {
    pub(super) fn new(call: Context, messages: Messages) -> Self {
        Self { call, messages, reply: PhantomData }
    }
}

/// What has been sent of the replies to one request.
struct Sent {
    to: Destination,
    number: u64,
    on_the_way: FuturesUnordered<BoxFuture<'static, Result<(), OutboxError>>>,
}

impl Sent {
    /// The number of the next one, as a header.
    fn number(&mut self) -> Headers {
        self.number += 1;
        vec![(HeaderName::Borrowed(SEQUENCE), Bytes::from(self.number.to_string()))]
    }
}

impl Shared {
    /// Runs the handler and writes what it sends; the code that it ends with.
    /// Calls `release` once the next request of the key may start.
    pub(super) async fn series(
        &self,
        call: &Context,
        serve: &Arc<ServeMany>,
        message: Bytes,
        release: impl FnOnce() + Send,
    ) -> &'static str {
        let Some((to, _)) = call.reply_to() else {
            release();
            return self.unheard(call, serve, message).await;
        };
        let mut sent = Sent { to, number: 0, on_the_way: FuturesUnordered::new() };
        let outcome = self.write_replies(call, serve, message, &mut sent).await;
        if let (Some(class), Err(error)) = (outcome.class, &outcome.result) {
            self.dead_letter(call, class, error).await;
        }
        let (mut end, code) = match outcome.result {
            Ok(_) => (Record { headers: sent.number(), ..Record::default() }, OK),
            // Without a number: it counts whatever was lost before it.
            Err(error) => {
                let (answer, code) = error_answer(&error);
                (Record { value: Some(answer.value), headers: answer.headers, ..Record::default() }, code)
            }
        };
        end.headers.push((HeaderName::Borrowed(LAST), Bytes::from_static(b"true")));
        end.headers.extend(call.take_reply_headers());
        let mut written = self.begin(call, &mut sent, end).await;
        release();
        while let Some(earlier) = sent.on_the_way.next().await {
            written = written.and(earlier);
        }
        if let Err(error) = written {
            self.reply_lost(call, &error);
        }
        code
    }

    /// Nobody has asked for replies; the work is done all the same.
    async fn unheard(&self, call: &Context, serve: &Arc<ServeMany>, message: Bytes) -> &'static str {
        let (messages, mut unwanted) = mpsc::channel(BUFFERED_MAX);
        call.begin_attempt();
        let handled = self.attempt(call, serve(call.clone(), message, messages));
        let discard = async { while unwanted.recv().await.is_some() {} };
        let (outcome, ()) = tokio::join!(handled, discard);
        match outcome.result {
            Ok(_) => OK,
            Err(error) => error.code().as_str(),
        }
    }

    async fn write_replies(
        &self,
        call: &Context,
        serve: &Arc<ServeMany>,
        message: Bytes,
        sent: &mut Sent,
    ) -> Outcome {
        let (messages, mut replies) = mpsc::channel(BUFFERED_MAX);
        call.begin_attempt();
        let mut handling = std::pin::pin!(self.attempt(call, serve(call.clone(), message, messages)));
        let mut outcome: Option<Outcome> = None;
        loop {
            // What a handler has left to others when it returned counts no more. That all
            // went well is said only when all is written.
            let whole = |outcome: &mut Outcome| outcome.result.is_err() || sent.on_the_way.is_empty();
            if replies.is_empty()
                && let Some(outcome) = outcome.take_if(whole)
            {
                return outcome;
            }
            let written = tokio::select! {
                biased;
                Some(written) = sent.on_the_way.next() => written,
                Some((value, mut headers)) = replies.recv(), if sent.on_the_way.len() < UNACKNOWLEDGED_MAX => {
                    headers.extend(sent.number());
                    self.begin(call, sent, Record { value: Some(value), headers, ..Record::default() }).await
                }
                ended = &mut handling, if outcome.is_none() => {
                    outcome = Some(ended);
                    Ok(())
                }
            };
            if let Err(error) = written {
                return Outcome::of(not_written(&error));
            }
        }
    }

    /// Gives a record its place in the producer's queue.
    async fn begin(&self, call: &Context, sent: &mut Sent, mut record: Record) -> Result<(), OutboxError> {
        record.key = call.record().key.clone();
        record.headers.extend(call.reply_to().map(|(_, id)| id));
        for (name, value) in trace_context_of(call.record()) {
            // Unless the handler has said another.
            if !record.headers.iter().any(|(said, _)| *said == name) {
                record.headers.push((name, value));
            }
        }
        record.headers.push((HeaderName::Borrowed(CONTENT_TYPE), Bytes::from_static(PROTOBUF.as_bytes())));
        let (outbox, to) = (Arc::clone(&self.outbox), sent.to.clone());
        let mut sending: BoxFuture<'static, _> = Box::pin(async move { outbox.send(to, record).await });
        // Polled once, it has its place before what is sent next.
        let at_once = tokio::select! {
            biased;
            written = &mut sending => Some(written),
            () = std::future::ready(()) => None,
        };
        match at_once {
            Some(written) => written,
            None => {
                sent.on_the_way.push(sending);
                Ok(())
            }
        }
    }
}

fn not_written(error: &OutboxError) -> WorkerError {
    match error {
        OutboxError::TooLarge(_) => {
            WorkerError::rejected(Code::ResourceExhausted, format!("a reply is {error}"))
        }
        OutboxError::Failed(_) => WorkerError::transient(format!("a reply could not be written: {error}")),
    }
}
