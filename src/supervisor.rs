//! Tasks and threads, each with an owner.
//!
//! Nothing else in this crate spawns. A [`Task`] is owned: dropping it aborts
//! the task, so whoever holds the owner decides how long its work lives. A
//! panic in an owned task is a defect that may leave a lane or a reader dead
//! while everything looks alive, so it stops the process: the [`Supervisor`]
//! remembers it and [`Supervisor::failed`] ends.

use std::future::Future;
use std::sync::Arc;

use tokio::sync::watch;
use tokio::task::JoinHandle;

/// Hands out tasks and hears of their panics.
#[derive(Debug, Clone)]
pub struct Supervisor {
    failure: Arc<watch::Sender<Option<&'static str>>>,
}

impl Default for Supervisor {
    fn default() -> Self {
        Self::new()
    }
}

impl Supervisor {
    /// A supervisor that has seen nothing yet.
    pub fn new() -> Self {
        Self { failure: Arc::new(watch::Sender::new(None)) }
    }

    /// Runs `work` on the current runtime until it ends or its owner drops the
    /// [`Task`].
    pub fn spawn(&self, name: &'static str, work: impl Future<Output = ()> + Send + 'static) -> Task {
        let guard = ReportPanicOnDrop { name, failure: Arc::clone(&self.failure) };
        let handle = tokio::spawn(async move {
            let _guard = guard;
            work.await;
        });
        Task { name, handle: Some(handle) }
    }

    /// Runs `work` on a thread of its own.
    pub fn spawn_thread(
        &self,
        name: &'static str,
        work: impl FnOnce() + Send + 'static,
    ) -> std::io::Result<std::thread::JoinHandle<()>> {
        let guard = ReportPanicOnDrop { name, failure: Arc::clone(&self.failure) };
        std::thread::Builder::new().name(name.to_owned()).spawn(move || {
            let _guard = guard;
            work();
        })
    }

    /// Ends when an owned task or thread has panicked, with its name.
    pub async fn failed(&self) -> &'static str {
        let mut failure = self.failure.subscribe();
        let name = failure.wait_for(Option::is_some).await.map(|name| name.unwrap_or("unknown")).ok();
        match name {
            Some(name) => name,
            // The sender lives as long as `self`.
            None => std::future::pending().await,
        }
    }
}

/// A task that is aborted when this is dropped.
#[derive(Debug)]
#[must_use = "dropping a task aborts it"]
pub struct Task {
    name: &'static str,
    handle: Option<JoinHandle<()>>,
}

impl Task {
    /// What the task does.
    pub const fn name(&self) -> &'static str {
        self.name
    }

    /// Whether the task has ended.
    pub fn is_finished(&self) -> bool {
        self.handle.as_ref().is_none_or(JoinHandle::is_finished)
    }

    /// Lets the task end by itself; nobody owns it any more. For a task that is
    /// about to.
    pub fn detach(mut self) {
        self.handle = None;
    }

    /// Waits for the task to end by itself.
    pub async fn join(mut self) {
        if let Some(handle) = self.handle.take() {
            // A panic has been reported by the task's guard.
            let _ = handle.await;
        }
    }
}

impl Drop for Task {
    fn drop(&mut self) {
        if let Some(handle) = &self.handle {
            handle.abort();
        }
    }
}

struct ReportPanicOnDrop {
    name: &'static str,
    failure: Arc<watch::Sender<Option<&'static str>>>,
}

impl Drop for ReportPanicOnDrop {
    fn drop(&mut self) {
        if std::thread::panicking() {
            tracing::error!(task = self.name, "a task has panicked; the instance stops");
            self.failure.send_replace(Some(self.name));
        }
    }
}

/// Lets hyper run each HTTP/2 stream as a task. Such a task ends with its
/// connection, which owns the stream; a panic in it resets that stream alone.
#[derive(Debug, Clone, Copy)]
pub struct StreamExecutor;

impl<F> hyper::rt::Executor<F> for StreamExecutor
where
    F: Future + Send + 'static,
    F::Output: Send,
{
    fn execute(&self, stream: F) {
        drop(tokio::spawn(stream));
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[tokio::test]
    async fn a_dropped_task_is_aborted() {
        let (sender, receiver) = tokio::sync::oneshot::channel::<()>();
        let task = Supervisor::new().spawn("holds a sender", async move {
            let _sender = sender;
            std::future::pending::<()>().await;
        });
        drop(task);
        let dropped = tokio::time::timeout(Duration::from_secs(5), receiver).await;
        assert!(dropped.unwrap().is_err());
    }

    #[tokio::test]
    async fn a_panic_is_heard_of() {
        let supervisor = Supervisor::new();
        let task = supervisor.spawn("panics", async { panic!("on purpose") });
        task.join().await;
        let name = tokio::time::timeout(Duration::from_secs(5), supervisor.failed()).await;
        assert_eq!(name.unwrap(), "panics");
    }
}
