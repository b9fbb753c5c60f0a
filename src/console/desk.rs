//! Where Kafka is asked on behalf of whoever looks: a thread with connections
//! of its own, few questions at a time, and no question once nobody waits for
//! its answer.

use std::fmt;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use futures_util::StreamExt as _;
use futures_util::stream::FuturesUnordered;
use tokio::sync::{mpsc, oneshot};
use tokio::time::timeout;

use crate::transport::{Cluster, Groups};

/// Questions that are worked on at once.
const AT_ONCE_MAX: usize = 2;
/// Questions that wait for their turn.
const WAITING_MAX: usize = 4;
/// How long an answer is waited for, its turn included.
const ANSWER_WAIT_MAX: Duration = Duration::from_secs(60);
/// How long a stop waits for a request that is being sent again.
const CLOSING_WAIT_MAX: Duration = Duration::from_secs(3);
/// Where there is no processor to spare, calls go first.
const NICE: i32 = 10;

/// The cluster, as the console sees it.
pub trait Kafka: Cluster + Groups {}
impl<K: Cluster + Groups> Kafka for K {}

/// A piece of work that ends.
type Work = Pin<Box<dyn Future<Output = ()> + Send>>;
type Job = Box<dyn FnOnce(Arc<dyn Kafka>) -> Work + Send>;

/// There is no answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(super) enum NoAnswer {
    #[error("other questions to Kafka are being worked on; try again in a moment")]
    Busy,
    #[error("Kafka did not answer within {}", crate::why::span(ANSWER_WAIT_MAX.as_millis() as i64))]
    TooLate,
    #[error("this instance is stopping")]
    Closed,
}

/// Where questions are handed in.
#[derive(Clone)]
pub struct Desk {
    jobs: mpsc::Sender<Job>,
}

impl fmt::Debug for Desk {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Desk").finish_non_exhaustive()
    }
}

/// What the thread behind the desk does.
pub struct DeskWork {
    jobs: mpsc::Receiver<Job>,
}

impl fmt::Debug for DeskWork {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("DeskWork").finish_non_exhaustive()
    }
}

impl Desk {
    /// A desk, and its work, which somebody has to run.
    pub fn new() -> (Self, DeskWork) {
        let (sender, jobs) = mpsc::channel(WAITING_MAX);
        (Self { jobs: sender }, DeskWork { jobs })
    }

    /// Asks, and waits for the answer. A question whose asker goes away is
    /// dropped where it is.
    pub(super) async fn ask<T, F>(
        &self,
        question: impl FnOnce(Arc<dyn Kafka>) -> F + Send + 'static,
    ) -> Result<T, NoAnswer>
    where
        T: Send + 'static,
        F: Future<Output = T> + Send + 'static,
    {
        self.hand_in(question, true).await
    }

    /// The same for what must not stop halfway: it goes on when its asker is
    /// gone.
    pub(super) async fn order<T, F>(
        &self,
        work: impl FnOnce(Arc<dyn Kafka>) -> F + Send + 'static,
    ) -> Result<T, NoAnswer>
    where
        T: Send + 'static,
        F: Future<Output = T> + Send + 'static,
    {
        self.hand_in(work, false).await
    }

    async fn hand_in<T, F>(
        &self,
        work: impl FnOnce(Arc<dyn Kafka>) -> F + Send + 'static,
        may_stop: bool,
    ) -> Result<T, NoAnswer>
    where
        T: Send + 'static,
        F: Future<Output = T> + Send + 'static,
    {
        let (mut answer, answered) = oneshot::channel();
        let job: Job = Box::new(move |kafka| {
            Box::pin(async move {
                let work = work(kafka);
                if !may_stop {
                    let _ = answer.send(work.await);
                    return;
                }
                let done = tokio::select! {
                    biased;
                    () = answer.closed() => return,
                    done = work => done,
                };
                let _ = answer.send(done);
            })
        });
        self.jobs.try_send(job).map_err(|full| match full {
            mpsc::error::TrySendError::Full(_) => NoAnswer::Busy,
            mpsc::error::TrySendError::Closed(_) => NoAnswer::Closed,
        })?;
        match timeout(ANSWER_WAIT_MAX, answered).await {
            Ok(answer) => answer.map_err(|_| NoAnswer::Closed),
            Err(_) => Err(NoAnswer::TooLate),
        }
    }
}

impl DeskWork {
    /// Works until `closing` ends. To be run on a thread of its own.
    pub async fn run(mut self, kafka: Arc<dyn Kafka>, closing: impl Future<Output = ()>) {
        // Of this thread only, on Linux.
        if let Err(error) = rustix::process::setpriority_process(None, NICE) {
            tracing::debug!(%error, "the console's thread keeps its priority");
        }
        let mut closing = std::pin::pin!(closing);
        let mut open = FuturesUnordered::new();
        loop {
            tokio::select! {
                () = &mut closing => break,
                job = self.jobs.recv(), if open.len() < AT_ONCE_MAX => match job {
                    Some(job) => open.push(job(Arc::clone(&kafka))),
                    None => break,
                },
                Some(()) = open.next(), if !open.is_empty() => {}
            }
        }
        drop(self.jobs);
        let _ = timeout(CLOSING_WAIT_MAX, async { while open.next().await.is_some() {} }).await;
    }
}
