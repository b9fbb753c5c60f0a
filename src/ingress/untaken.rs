//! Replies that wait for their caller to take them.
//!
//! When a reply is taken is in the caller's hands: HTTP/2 lets it keep its
//! windows shut for as long as it likes, while its pings are answered. So the
//! bytes of replies count in `limits.bytes_held_max` until they have been
//! written, a connection may have so many and no more, and one on which none of
//! them moves is closed.
//!
//! A small reply is not counted: the number of streams bounds those.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use tokio::time::sleep;

use crate::exchange::budget::BytesHeld;
use crate::limits;

/// From here on a reply is counted.
const COUNTED_BYTES_MIN: usize = limits::REPLY_COUNTED_BYTES_MIN;
/// A reply is written in pieces, so that one that moves slowly is seen to move.
const PIECE_BYTES: usize = 64 * 1_024;

/// What one connection's caller has not taken.
#[derive(Debug, Default)]
pub(super) struct Untaken {
    bytes: AtomicU64,
    /// Pieces that are gone, however: when it grows, something moves.
    gone: AtomicU64,
}

impl Untaken {
    /// Counts a reply; `Err` with how much waits already where that is too much
    /// for another.
    pub(super) fn hold(
        self: &Arc<Self>,
        reply: Bytes,
        room: impl FnOnce() -> BytesHeld,
    ) -> Result<Waiting, u64> {
        if reply.len() < COUNTED_BYTES_MIN {
            return Ok(Waiting { rest: reply, held: None });
        }
        let waiting = self.bytes.load(Ordering::Relaxed);
        if waiting >= limits::REPLIES_UNTAKEN_BYTES_MAX {
            return Err(waiting);
        }
        let (mut room, bytes) = (room(), reply.len() as u64);
        room.count(bytes);
        self.bytes.fetch_add(bytes, Ordering::Relaxed);
        Ok(Waiting { rest: reply, held: Some(Held { untaken: Arc::clone(self), bytes, room }) })
    }

    /// Ends when something has waited for `patience` and nothing has moved.
    pub(super) async fn stuck(&self, patience: Duration) {
        loop {
            let (waits, gone) = (self.waits(), self.gone.load(Ordering::Relaxed));
            sleep(patience).await;
            if waits && self.waits() && self.gone.load(Ordering::Relaxed) == gone {
                return;
            }
        }
    }

    fn waits(&self) -> bool {
        self.bytes.load(Ordering::Relaxed) > 0
    }
}

/// What is left of a reply.
#[derive(Debug, Default)]
pub(super) struct Waiting {
    rest: Bytes,
    held: Option<Held>,
}

impl Waiting {
    /// The next piece, whose bytes count until it is dropped.
    pub(super) fn next(&mut self) -> Option<Bytes> {
        if self.rest.is_empty() {
            return None;
        }
        let Some(held) = &mut self.held else { return Some(std::mem::take(&mut self.rest)) };
        let bytes = self.rest.split_to(self.rest.len().min(PIECE_BYTES));
        let held = held.split(bytes.len() as u64);
        Some(Bytes::from_owner(Piece { bytes, _held: held }))
    }

    /// Other bytes in place of these, which count as these did.
    pub(super) fn cover(&mut self, bytes: Bytes) -> Bytes {
        self.rest = Bytes::new();
        match self.held.take() {
            Some(held) => Bytes::from_owner(Piece { bytes, _held: held }),
            None => bytes,
        }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.rest.is_empty()
    }
}

/// Bytes that count until this is dropped.
#[derive(Debug)]
struct Held {
    untaken: Arc<Untaken>,
    bytes: u64,
    room: BytesHeld,
}

impl Held {
    fn split(&mut self, bytes: u64) -> Self {
        let bytes = bytes.min(self.bytes);
        self.bytes -= bytes;
        Self { untaken: Arc::clone(&self.untaken), bytes, room: self.room.split(bytes) }
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        self.untaken.bytes.fetch_sub(self.bytes, Ordering::Relaxed);
        self.untaken.gone.fetch_add(1, Ordering::Relaxed);
    }
}

struct Piece {
    bytes: Bytes,
    _held: Held,
}

impl AsRef<[u8]> for Piece {
    fn as_ref(&self) -> &[u8] {
        &self.bytes
    }
}

#[cfg(test)]
mod tests {
    use tokio::time::timeout;

    use super::*;
    use crate::exchange::budget::Budget;
    use crate::exchange::config::LimitsConfig;
    use crate::route::RouteTable;

    const LARGE: usize = PIECE_BYTES * 2 + 10;

    fn budget() -> Arc<Budget> {
        Budget::new(&LimitsConfig::default(), &RouteTable::default())
    }

    #[test]
    fn a_reply_counts_until_its_pieces_are_gone() {
        let (budget, untaken) = (budget(), Arc::new(Untaken::default()));
        let reply = Bytes::from(vec![7; LARGE]);
        let mut waiting = untaken.hold(reply.clone(), || budget.no_bytes()).unwrap();
        assert_eq!(budget.bytes(), LARGE as u64);
        let mut pieces = Vec::new();
        while let Some(piece) = waiting.next() {
            pieces.push(piece);
        }
        assert_eq!((pieces.concat(), pieces.len()), (reply.to_vec(), 3));
        drop(waiting);
        assert_eq!(budget.bytes(), LARGE as u64);
        // A part that somebody still has keeps its whole piece.
        let part = pieces[0].slice(..1);
        drop(pieces);
        assert_eq!(budget.bytes(), PIECE_BYTES as u64);
        drop(part);
        assert_eq!((budget.bytes(), untaken.waits()), (0, false));
        // Compressed, it counts as it was.
        let mut waiting = untaken.hold(reply.clone(), || budget.no_bytes()).unwrap();
        let compressed = waiting.cover(Bytes::from_static(b"small"));
        drop(waiting);
        assert_eq!((budget.bytes(), &compressed[..]), (LARGE as u64, &b"small"[..]));
        drop(compressed);
        // One that is never written, too.
        drop(untaken.hold(reply, || budget.no_bytes()).unwrap());
        assert_eq!((budget.bytes(), untaken.waits()), (0, false));
    }

    #[test]
    fn small_ones_are_not_counted_and_too_many_are_refused() {
        let (budget, untaken) = (budget(), Arc::new(Untaken::default()));
        let mut small = untaken.hold(Bytes::from_static(b"small"), || budget.no_bytes()).unwrap();
        assert_eq!((small.next().unwrap(), small.next(), budget.bytes()), ("small".into(), None, 0));
        let reply = Bytes::from(vec![7; 16 * 1_024 * 1_024]);
        let mut held = Vec::new();
        let refused = loop {
            match untaken.hold(reply.clone(), || budget.no_bytes()) {
                Ok(waiting) => held.push(waiting),
                Err(waiting) => break waiting,
            }
            assert!(held.len() < 100);
        };
        assert!(refused >= limits::REPLIES_UNTAKEN_BYTES_MAX);
        assert_eq!(budget.bytes(), refused);
    }

    #[tokio::test(start_paused = true)]
    async fn only_what_does_not_move_is_stuck() {
        let (budget, untaken) = (budget(), Arc::new(Untaken::default()));
        let patience = Duration::from_secs(20);
        assert!(timeout(patience * 10, untaken.stuck(patience)).await.is_err(), "nothing waits");
        let mut waiting = untaken.hold(Bytes::from(vec![7; PIECE_BYTES * 8]), || budget.no_bytes()).unwrap();
        let moving = async {
            while waiting.next().is_some() {
                sleep(patience * 3 / 4).await;
            }
        };
        tokio::select! {
            () = untaken.stuck(patience) => panic!("it moves"),
            () = moving => {}
        }
        let _waiting = untaken.hold(Bytes::from(vec![7; PIECE_BYTES]), || budget.no_bytes()).unwrap();
        assert!(timeout(patience * 3, untaken.stuck(patience)).await.is_ok());
    }
}
