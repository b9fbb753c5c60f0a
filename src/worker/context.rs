//! A request as its handler sees it, beside the message.

use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use tokio::sync::watch;
use tokio::time::Instant;

use super::driver::{Destination, PartitionId};
use crate::message::{GRPC_DEADLINE, GRPC_METHOD, IDEMPOTENCY_KEY};
use crate::transport::{HeaderName, Received};

const CORRELATION_ID: &str = "kafka_correlationId";
const REPLY_TOPIC: &str = "kafka_replyTopic";
const REPLY_PARTITION: &str = "kafka_replyPartition";

/// One request. Cloning it is cheap.
#[derive(Debug, Clone)]
pub struct Context(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    partition: PartitionId,
    record: Received,
    deadline: Option<Instant>,
    cancelled: watch::Sender<bool>,
    attempt: AtomicU32,
    reply_headers: Mutex<Vec<(HeaderName, Bytes)>>,
}

impl Context {
    /// A deadline is a moment of the caller's clock; `skew` is added to it.
    pub(super) fn new(partition: PartitionId, record: Received, skew: Duration) -> Self {
        let deadline = record.header(GRPC_DEADLINE).and_then(|value| moment(value, skew));
        Self(Arc::new(Inner {
            partition,
            record,
            deadline,
            cancelled: watch::Sender::new(false),
            attempt: AtomicU32::new(0),
            reply_headers: Mutex::default(),
        }))
    }

    /// Path of the method; empty where the request does not say.
    pub fn method(&self) -> &str {
        self.text(GRPC_METHOD).unwrap_or_default()
    }

    /// Where the request was read.
    pub fn partition(&self) -> &PartitionId {
        &self.0.partition
    }

    /// The request's record, with all its headers.
    pub fn record(&self) -> &Received {
        &self.0.record
    }

    /// A header of the request, such as metadata that the gateway forwards.
    pub fn header(&self, name: &str) -> Option<&Bytes> {
        self.0.record.header(name)
    }

    /// The caller's key for one logical request.
    pub fn idempotency_key(&self) -> Option<&Bytes> {
        self.header(IDEMPOTENCY_KEY)
    }

    /// Which attempt this is, from 1 on.
    pub fn attempt(&self) -> u32 {
        self.0.attempt.load(Ordering::Relaxed)
    }

    /// When the caller gives up; `None` when it does not say.
    pub fn deadline(&self) -> Option<Instant> {
        self.0.deadline
    }

    /// Time until the caller gives up; `None` when it does not say.
    pub fn time_left(&self) -> Option<Duration> {
        self.0.deadline.map(|deadline| deadline.saturating_duration_since(Instant::now()))
    }

    /// Whether the caller's time is over.
    pub fn has_expired(&self) -> bool {
        self.time_left().is_some_and(|left| left.is_zero())
    }

    /// Whether the caller has said that it waits no more. The gateway says so
    /// where the route has `cancel_record`.
    pub fn is_cancelled(&self) -> bool {
        *self.0.cancelled.borrow()
    }

    /// Ends when the call does: the caller has gone or its time is over.
    pub async fn ended(&self) {
        let mut cancelled = self.0.cancelled.subscribe();
        let deadline = async {
            match self.0.deadline {
                Some(deadline) => tokio::time::sleep_until(deadline).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            _ = cancelled.wait_for(|cancelled| *cancelled) => {}
            () = deadline => {}
        }
    }

    /// Adds a header to the reply; the gateway makes metadata of those that its
    /// `metadata_return` names.
    pub fn reply_header(&self, name: impl Into<HeaderName>, value: impl Into<Bytes>) {
        self.reply_headers_mut(|headers| headers.push((name.into(), value.into())));
    }

    pub(super) fn begin_attempt(&self) {
        self.0.attempt.fetch_add(1, Ordering::Relaxed);
        self.reply_headers_mut(Vec::clear);
    }

    pub(super) fn take_reply_headers(&self) -> Vec<(HeaderName, Bytes)> {
        self.reply_headers_mut(std::mem::take)
    }

    fn reply_headers_mut<R>(&self, change: impl FnOnce(&mut Vec<(HeaderName, Bytes)>) -> R) -> R {
        change(&mut self.0.reply_headers.lock().unwrap_or_else(PoisonError::into_inner))
    }

    pub(super) fn cancel(&self) {
        self.0.cancelled.send_replace(true);
    }

    pub(super) fn correlation_id(&self) -> Option<&Bytes> {
        self.header(CORRELATION_ID)
    }

    /// Where the reply goes; `None` when nobody waits for one.
    pub(super) fn reply_to(&self) -> Option<(Destination, (HeaderName, Bytes))> {
        let id = self.correlation_id()?.clone();
        let topic = Arc::from(self.text(REPLY_TOPIC)?);
        let partition = self
            .header(REPLY_PARTITION)
            .and_then(|value| <[u8; 4]>::try_from(&value[..]).ok())
            .map(i32::from_be_bytes);
        Some((Destination { topic, partition }, (HeaderName::Borrowed(CORRELATION_ID), id)))
    }

    fn text(&self, name: &str) -> Option<&str> {
        self.header(name).and_then(|value| std::str::from_utf8(value).ok())
    }
}

/// Names a call in one partition, for its cancel record.
pub(super) fn correlation_of(record: &Received) -> Option<&Bytes> {
    record.header(CORRELATION_ID)
}

fn moment(unix_ms: &[u8], skew: Duration) -> Option<Instant> {
    let unix_ms: u64 = std::str::from_utf8(unix_ms).ok()?.parse().ok()?;
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    let left = (Duration::from_millis(unix_ms) + skew).saturating_sub(now);
    // A deadline further off than the clock can say is none.
    Instant::now().checked_add(left)
}
