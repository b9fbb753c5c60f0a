//! What was answered under an idempotency key, so that a repeat is answered
//! and not executed.

use std::collections::{HashMap, VecDeque};
use std::hash::{BuildHasher, RandomState};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use tokio::time::Instant;

use super::error::Code;
use crate::transport::HeaderName;

/// Names one logical request.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct RequestId {
    /// Path of the method.
    pub method: Arc<str>,
    /// The caller's `idempotency-key`.
    pub key: Bytes,
}

/// An answer that is given again.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KeptAnswer {
    /// The status; `None` is OK.
    pub code: Option<Code>,
    /// The reply's message; empty for an error.
    pub value: Bytes,
    /// The reply's headers, without the correlation id.
    pub headers: Vec<(HeaderName, Bytes)>,
}

/// What is known of a request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Found {
    /// Nothing: it is to be executed.
    New,
    /// It was executed.
    Kept(KeptAnswer),
    /// The key was used with another message.
    Conflict,
}

/// The store could not be asked; the request is answered with `UNAVAILABLE`.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct StoreError(pub String);

/// Keeps answers. One in memory forgets with its process: a worker that must
/// not execute twice, ever, keeps the answer in the transaction of what it did,
/// and says so through this trait.
#[async_trait]
pub trait AnswerStore: Send + Sync + 'static {
    /// What is known of `id` with this message.
    async fn find(&self, id: &RequestId, message: &Bytes) -> Result<Found, StoreError>;

    /// Remembers what was answered.
    async fn keep(&self, id: &RequestId, message: &Bytes, answer: &KeptAnswer) -> Result<(), StoreError>;
}

/// Answers in memory, bounded by number, bytes and age.
#[derive(Debug)]
pub struct MemoryAnswers {
    answers_max: usize,
    bytes_max: usize,
    age_max: Duration,
    hashers: [RandomState; 2],
    kept: Mutex<Kept>,
}

#[derive(Debug, Default)]
struct Kept {
    by_id: HashMap<RequestId, Entry>,
    /// Oldest first.
    order: VecDeque<(Instant, RequestId)>,
    bytes: usize,
}

#[derive(Debug)]
struct Entry {
    message: [u64; 2],
    answer: KeptAnswer,
    until: Instant,
    bytes: usize,
}

impl Default for MemoryAnswers {
    /// 100,000 answers, 64 MiB, an hour.
    fn default() -> Self {
        Self::new(100_000, 64 << 20, Duration::from_secs(3600))
    }
}

impl MemoryAnswers {
    /// Keeps at most so many answers of so many bytes together, each so long.
    pub fn new(answers_max: usize, bytes_max: usize, age_max: Duration) -> Self {
        let hashers = [RandomState::new(), RandomState::new()];
        Self { answers_max, bytes_max, age_max, hashers, kept: Mutex::default() }
    }

    /// Two keyed hashes: 128 bits that no caller can aim at.
    fn digest(&self, message: &Bytes) -> [u64; 2] {
        self.hashers.each_ref().map(|hasher| hasher.hash_one(message))
    }
}

#[async_trait]
impl AnswerStore for MemoryAnswers {
    async fn find(&self, id: &RequestId, message: &Bytes) -> Result<Found, StoreError> {
        let kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(entry) = kept.by_id.get(id).filter(|entry| entry.until > Instant::now()) else {
            return Ok(Found::New);
        };
        if entry.message != self.digest(message) {
            return Ok(Found::Conflict);
        }
        Ok(Found::Kept(entry.answer.clone()))
    }

    async fn keep(&self, id: &RequestId, message: &Bytes, answer: &KeptAnswer) -> Result<(), StoreError> {
        let headers: usize = answer.headers.iter().map(|(name, value)| name.len() + value.len()).sum();
        let bytes = id.method.len() + id.key.len() + answer.value.len() + headers;
        let until = Instant::now() + self.age_max;
        let entry = Entry { message: self.digest(message), answer: answer.clone(), until, bytes };
        let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        kept.bytes += bytes;
        if let Some(old) = kept.by_id.insert(id.clone(), entry) {
            kept.bytes -= old.bytes;
        }
        kept.order.push_back((until, id.clone()));
        let now = Instant::now();
        while let Some((until, _)) = kept.order.front() {
            let over = kept.order.len() > self.answers_max || kept.bytes > self.bytes_max;
            if !over && *until > now {
                break;
            }
            let Some((until, id)) = kept.order.pop_front() else { break };
            // It may have been kept anew since.
            if kept.by_id.get(&id).is_some_and(|entry| entry.until == until)
                && let Some(old) = kept.by_id.remove(&id)
            {
                kept.bytes -= old.bytes;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id(key: &'static str) -> RequestId {
        RequestId { method: Arc::from("/a.B/C"), key: Bytes::from_static(key.as_bytes()) }
    }

    fn answer(value: &'static str) -> KeptAnswer {
        KeptAnswer { code: None, value: Bytes::from_static(value.as_bytes()), headers: Vec::new() }
    }

    #[tokio::test(start_paused = true)]
    async fn answers_are_bounded_in_number_bytes_and_age() {
        let message = Bytes::from_static(b"pay");
        let store = MemoryAnswers::new(2, 100, Duration::from_secs(60));
        for key in ["a", "b", "c"] {
            store.keep(&id(key), &message, &answer("yes")).await.unwrap();
        }
        assert_eq!(store.find(&id("a"), &message).await, Ok(Found::New), "the oldest goes first");
        assert_eq!(store.find(&id("c"), &message).await, Ok(Found::Kept(answer("yes"))));
        assert_eq!(store.find(&id("c"), &Bytes::from_static(b"other")).await, Ok(Found::Conflict));
        let large = KeptAnswer { code: None, value: Bytes::from(vec![0; 90]), headers: Vec::new() };
        store.keep(&id("d"), &message, &large).await.unwrap();
        assert_eq!(store.find(&id("c"), &message).await, Ok(Found::New), "no room beside 90 bytes");
        assert_eq!(store.find(&id("d"), &message).await, Ok(Found::Kept(large)));
        tokio::time::advance(Duration::from_secs(61)).await;
        assert_eq!(store.find(&id("d"), &message).await, Ok(Found::New), "too old");
        store.keep(&id("e"), &message, &answer("yes")).await.unwrap();
        let kept = store.kept.lock().unwrap();
        assert_eq!((kept.by_id.len(), kept.order.len(), kept.bytes), (1, 1, 10), "nothing is left behind");
    }
}
