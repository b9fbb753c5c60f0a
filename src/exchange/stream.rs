//! A call whose answer is a stream: a task that owns the call hands message
//! after message to whoever writes them to the connection.
//!
//! ```text
//! reader ──► [ queue of the call, bounded ] ──► task ──► [ a few messages ] ──► body ──► HTTP/2
//! ```
//!
//! The body is asked for more only when the caller's window has room. A caller
//! that does not read stops the task, not the reader: the queue fills up, and
//! beyond its bound the call ends. So does it with its deadline, read or not;
//! its place is free from then on, and all that is left are a few messages and
//! a status. A body that is dropped takes the task with it: the caller has gone.

use bytes::Bytes;
use tokio::sync::{mpsc, oneshot};
use tokio::time::{Instant, sleep_until};

use super::budget::Permit;
use super::failure::{Failure, Trace};
use super::flight::{Flight, Step};
use crate::limits::STREAM_HANDOVER_MESSAGES;
use crate::message::WorkerStatus;
use crate::supervisor::{Supervisor, Task};
use crate::transport::HeaderName;

type Headers = Vec<(HeaderName, Bytes)>;

/// What a stream brings.
#[derive(Debug)]
pub enum Item {
    /// A message, and headers of its reply.
    Message(Bytes, Headers),
    /// The good end.
    Complete(Headers, Trace),
    /// A worker's error, which ends the stream.
    Error(WorkerStatus, Headers, Trace),
    /// Any other end.
    Failed(Failure),
}

/// The answer to a call, message by message.
#[derive(Debug)]
pub struct ReplyStream {
    messages: mpsc::Receiver<(Bytes, Headers)>,
    end: oneshot::Receiver<Item>,
    _task: Task,
}

impl ReplyStream {
    /// Starts to read the replies of `flight`, which counts as in flight for as
    /// long as `permit` is held.
    pub(super) fn start(flight: Flight, permit: Permit, supervisor: &Supervisor) -> Self {
        let (to_body, messages) = mpsc::channel(STREAM_HANDOVER_MESSAGES);
        let (say_end, end) = oneshot::channel();
        let conducted = async move {
            let end = conduct(flight, to_body).await;
            drop(permit);
            if let Some(end) = end {
                // Nobody hears it where the caller has just gone.
                let _ = say_end.send(end);
            }
        };
        Self { messages, end, _task: supervisor.spawn("stream", conducted) }
    }

    /// The next message, or how the stream ends; `None` after that.
    pub async fn next(&mut self) -> Option<Item> {
        match self.messages.recv().await {
            Some((message, headers)) => Some(Item::Message(message, headers)),
            None => (&mut self.end).await.ok(),
        }
    }
}

/// Hands on what comes until the call is over; `None`: nobody reads it.
async fn conduct(mut flight: Flight, to_body: mpsc::Sender<(Bytes, Headers)>) -> Option<Item> {
    let limit = flight.deadline();
    loop {
        let place = tokio::select! {
            biased;
            place = to_body.reserve() => place.ok()?,
            // The step below says why.
            () = flight.cut_short() => match flight.step(limit).await {
                Step::Failed(failure) => return Some(Item::Failed(failure)),
                _ => continue,
            },
            () = sleep_until(limit) => return Some(Item::Failed(flight.not_read())),
        };
        return Some(match flight.step(limit).await {
            Step::Message(message, headers) => {
                place.send((message, headers));
                // A worker that never pauses must not outrun the deadline.
                if Instant::now() < limit {
                    continue;
                }
                out_of_time(&mut flight)
            }
            Step::Complete(headers, trace) => Item::Complete(headers, trace),
            Step::Error(status, headers, trace) => Item::Error(status, headers, trace),
            Step::Failed(failure) => Item::Failed(failure),
            Step::OutOfTime => out_of_time(&mut flight),
        });
    }
}

fn out_of_time(flight: &mut Flight) -> Item {
    match flight.partial() {
        Some(trace) => Item::Complete(Headers::new(), trace),
        None => Item::Failed(flight.give_up()),
    }
}
