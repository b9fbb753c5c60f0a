//! A partition of a reply topic that this instance reads, as far as others must
//! know of it: its reader fills it in, heart and readiness look at it.

use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU64, Ordering};

/// One partition that is read.
#[derive(Debug)]
pub(super) struct Place {
    partition: i32,
    /// Its reader stands where the next reply will be.
    positioned: AtomicBool,
    /// When the newest heartbeat that came back was written; milliseconds since
    /// the instance's start, plus 1.
    heartbeat_ms: AtomicU64,
    /// Where that heartbeat is, -1 for nowhere.
    heartbeat_offset: AtomicI64,
    /// Everything before it has been read.
    next_offset: AtomicI64,
}

impl Place {
    pub(super) const fn new(partition: i32) -> Self {
        Self {
            partition,
            positioned: AtomicBool::new(false),
            heartbeat_ms: AtomicU64::new(0),
            heartbeat_offset: AtomicI64::new(-1),
            next_offset: AtomicI64::new(0),
        }
    }

    pub(super) const fn partition(&self) -> i32 {
        self.partition
    }

    /// The reader stands, or stands no more, where it can read the next reply.
    pub(super) fn set_positioned(&self, positioned: bool) {
        self.positioned.store(positioned, Ordering::Release);
        if !positioned {
            // Offsets of a topic that is gone mean nothing.
            self.heartbeat_offset.store(-1, Ordering::Release);
        }
    }

    pub(super) fn is_positioned(&self) -> bool {
        self.positioned.load(Ordering::Acquire)
    }

    /// A heartbeat of ours has come back.
    pub(super) fn heartbeat(&self, offset: i64, written_ms: u64) {
        self.heartbeat_ms.fetch_max(written_ms, Ordering::AcqRel);
        self.heartbeat_offset.store(offset, Ordering::Release);
    }

    /// When the newest one was written; 0 when none ever came.
    pub(super) fn heartbeat_ms(&self) -> u64 {
        self.heartbeat_ms.load(Ordering::Acquire)
    }

    pub(super) fn set_next_offset(&self, offset: i64) {
        self.next_offset.store(offset, Ordering::Release);
    }

    pub(super) fn next_offset(&self) -> i64 {
        self.next_offset.load(Ordering::Acquire)
    }

    /// How far a topic of this instance's own may be trimmed: all that has been
    /// read, but for the last heartbeat. By it a janitor knows the topic for one
    /// of ours when the instance is dead.
    pub(super) fn dispensable(&self) -> Option<i64> {
        let (heartbeat, next) = (self.heartbeat_offset.load(Ordering::Acquire), self.next_offset());
        (self.is_positioned() && heartbeat >= 0).then(|| heartbeat.min(next))
    }
}
