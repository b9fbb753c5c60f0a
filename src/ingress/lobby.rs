//! Where connections are until they have begun to speak.
//!
//! Whoever can reach the port can open connections, say nothing, or half of a
//! handshake. Such a connection is closed after a while, and it makes room for
//! another before that: a quarter of all places is for those who have not said
//! anything yet, and the one that came first has to go when another comes. A
//! caller that means to speak does so within milliseconds.

use std::collections::BTreeMap;
use std::io;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::sync::oneshot;
use tokio::time::timeout;

/// HTTP/2's preface and the head of the frame that has to follow it.
const BEGINNING_BYTES: usize = 24 + 9;

/// Those of one shard that have not begun.
#[derive(Debug)]
pub(super) struct Lobby {
    places: usize,
    patience: Duration,
    waiting: Mutex<Waiting>,
}

#[derive(Debug, Default)]
struct Waiting {
    next: u64,
    /// In the order in which they came.
    out: BTreeMap<u64, oneshot::Sender<()>>,
}

impl Lobby {
    pub(super) fn new(places: usize, patience: Duration) -> Arc<Self> {
        Arc::new(Self { places: places.max(1), patience, waiting: Mutex::default() })
    }

    /// Lets a connection in, and the one that came first out where there is no
    /// place left.
    pub(super) fn enter(self: &Arc<Self>) -> (Place, Exit) {
        let (out, shown_out) = oneshot::channel();
        let mut waiting = self.waiting.lock().unwrap_or_else(PoisonError::into_inner);
        while waiting.out.len() >= self.places
            && let Some((_, first)) = waiting.out.pop_first()
        {
            let _ = first.send(());
        }
        let number = waiting.next;
        waiting.next += 1;
        waiting.out.insert(number, out);
        drop(waiting);
        let place = Place { lobby: Arc::clone(self), number };
        (place, Exit { shown_out, patience: self.patience })
    }
}

/// A connection's place; with it goes all haste.
#[derive(Debug)]
pub(super) struct Place {
    lobby: Arc<Lobby>,
    number: u64,
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut waiting = self.lobby.waiting.lock().unwrap_or_else(PoisonError::into_inner);
        waiting.out.remove(&self.number);
    }
}

/// Tells a connection that it has to go.
#[derive(Debug)]
pub(super) struct Exit {
    shown_out: oneshot::Receiver<()>,
    patience: Duration,
}

impl Exit {
    /// Why it has to go; never ends for one that has left its place.
    pub(super) async fn reason(self) -> &'static str {
        match timeout(self.patience, self.shown_out).await {
            Err(_) => "it did not begin in time",
            Ok(Ok(())) => "it had not begun, and others came",
            Ok(Err(_)) => std::future::pending().await,
        }
    }
}

/// A stream that leaves the lobby with HTTP/2's beginning.
pub(super) struct Beginning<S> {
    stream: S,
    missing: usize,
    place: Option<Place>,
}

impl<S> Beginning<S> {
    pub(super) fn new(stream: S, place: Place) -> Self {
        Self { stream, missing: BEGINNING_BYTES, place: Some(place) }
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Beginning<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buffer.filled().len();
        let polled = Pin::new(&mut self.stream).poll_read(context, buffer);
        if self.place.is_some() {
            self.missing = self.missing.saturating_sub(buffer.filled().len() - before);
            if self.missing == 0 {
                self.place = None;
            }
        }
        polled
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Beginning<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(context, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(context, bytes)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

    use super::*;

    const PATIENCE: Duration = Duration::from_secs(10);

    #[tokio::test(start_paused = true)]
    async fn who_came_first_makes_room() {
        let lobby = Lobby::new(2, PATIENCE);
        let (_first, first) = lobby.enter();
        let (second_place, second) = lobby.enter();
        let (_third, third) = lobby.enter();
        assert_eq!(first.reason().await, "it had not begun, and others came");
        drop(second_place);
        let (_fourth, fourth) = lobby.enter();
        assert!(timeout(PATIENCE * 2, second.reason()).await.is_err(), "it has left in time");
        assert_eq!(third.reason().await, "it did not begin in time");
        assert_eq!(fourth.reason().await, "it did not begin in time");
    }

    #[tokio::test(start_paused = true)]
    async fn a_connection_has_begun_with_its_first_frame() {
        let lobby = Lobby::new(8, PATIENCE);
        let (place, exit) = lobby.enter();
        let (mut caller, stream) = tokio::io::duplex(64);
        let mut stream = Beginning::new(stream, place);
        let mut buffer = [0; BEGINNING_BYTES];
        caller.write_all(&buffer[1..]).await.unwrap();
        stream.read_exact(&mut buffer[1..]).await.unwrap();
        assert!(stream.place.is_some());
        caller.write_all(b"x").await.unwrap();
        stream.read_exact(&mut buffer[..1]).await.unwrap();
        assert!(stream.place.is_none());
        assert!(timeout(PATIENCE * 2, exit.reason()).await.is_err());
    }
}
