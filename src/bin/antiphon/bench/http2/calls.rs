//! The calls in flight on a connection, and how they end.

use std::collections::VecDeque;

use antiphon::terms::STATUS_NAMES;

use super::hpack::Fields;

/// The first stream of a client, and the distance to the next.
const FIRST_STREAM: u32 = 1;
const STREAM_STEP: u32 = 2;

/// A call in flight. Times are nanoseconds since the start of the run.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(in super::super) struct Call {
    /// When it should have been sent.
    pub(in super::super) intended: u64,
    /// When it was sent.
    pub(in super::super) sent: u64,
    /// Which of the messages it sends.
    pub(in super::super) message: usize,
}

/// How a call ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(in super::super) enum Outcome {
    /// With this `grpc-status`.
    Status(u8),
    /// With an HTTP status and no `grpc-status`: it was no gRPC server.
    Http(u16),
    /// The server reset the stream, with this error code.
    Reset(u32),
    /// No answer in time; the stream was reset.
    TimedOut,
    /// The connection ended before the call did.
    ConnectionLost,
    /// The answer had no status of any kind.
    NoStatus,
}

impl Outcome {
    pub(in super::super) const OK: Self = Self::Status(0);

    pub(super) fn of(fields: &Fields) -> Self {
        match (fields.grpc, fields.http) {
            (Some(status), _) => Self::Status(status),
            (None, None | Some(200)) => Self::NoStatus,
            (None, Some(status)) => Self::Http(status),
        }
    }
}

impl std::fmt::Display for Outcome {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Status(status) => match STATUS_NAMES.get(usize::from(*status)) {
                Some(name) => f.write_str(name),
                None => write!(f, "status {status}"),
            },
            Self::Http(status) => write!(f, "HTTP {status}"),
            Self::Reset(code) => write!(f, "RST_STREAM {code}"),
            Self::TimedOut => f.write_str("no answer in time"),
            Self::ConnectionLost => f.write_str("connection lost"),
            Self::NoStatus => f.write_str("no grpc-status"),
        }
    }
}

/// One stream, while its call is in flight.
#[derive(Debug)]
pub(super) struct Stream {
    pub(super) call: Call,
    /// What has come of headers.
    pub(super) fields: Fields,
    /// Bytes of the message that have been sent.
    pub(super) sent_bytes: usize,
    /// What it may still send; meaningless once all is sent.
    pub(super) window: i64,
}

/// Streams by number. Numbers are given out in order, so a queue with gaps is
/// an index; how many gaps there are is bounded by the calls' time-out.
#[derive(Debug)]
pub(super) struct Streams {
    queue: VecDeque<Option<Stream>>,
    /// Number of the first in the queue.
    first: u32,
    open: usize,
}

impl Streams {
    pub(super) fn new() -> Self {
        Self { queue: VecDeque::new(), first: FIRST_STREAM, open: 0 }
    }

    pub(super) fn open(&self) -> usize {
        self.open
    }

    /// The number that the next stream would have. `None`: there are no more.
    pub(super) fn next(&self) -> Option<u32> {
        let ahead = u32::try_from(self.queue.len()).ok()?.checked_mul(STREAM_STEP)?;
        self.first.checked_add(ahead).filter(|number| *number < 1 << 31)
    }

    /// Takes the next number.
    pub(super) fn push(&mut self, stream: Stream) {
        self.queue.push_back(Some(stream));
        self.open += 1;
    }

    pub(super) fn get_mut(&mut self, number: u32) -> Option<&mut Stream> {
        let index = self.index(number)?;
        self.queue.get_mut(index)?.as_mut()
    }

    pub(super) fn remove(&mut self, number: u32) -> Option<Stream> {
        let index = self.index(number)?;
        let stream = self.queue.get_mut(index)?.take()?;
        self.open -= 1;
        while let Some(None) = self.queue.front() {
            self.queue.pop_front();
            self.first += STREAM_STEP;
        }
        Some(stream)
    }

    /// The oldest that is open.
    pub(super) fn oldest(&self) -> Option<(u32, &Stream)> {
        Some((self.first, self.queue.front()?.as_ref()?))
    }

    /// Those with a number above `last`.
    pub(super) fn above(&self, last: u32) -> Vec<u32> {
        let numbers = (self.first..).step_by(STREAM_STEP as usize);
        let open = numbers.zip(&self.queue).filter(|(number, stream)| *number > last && stream.is_some());
        open.map(|(number, _)| number).collect()
    }

    pub(super) fn all_mut(&mut self) -> impl Iterator<Item = &mut Stream> {
        self.queue.iter_mut().flatten()
    }

    fn index(&self, number: u32) -> Option<usize> {
        let ahead = number.checked_sub(self.first)?;
        (ahead % STREAM_STEP == 0).then_some((ahead / STREAM_STEP) as usize)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stream() -> Stream {
        Stream { call: Call::default(), fields: Fields::default(), sent_bytes: 0, window: 0 }
    }

    #[test]
    fn streams_are_found_by_number_and_gaps_close() {
        let mut streams = Streams::new();
        for expected in [1, 3, 5, 7] {
            assert_eq!(streams.next(), Some(expected));
            streams.push(stream());
        }
        assert!(streams.remove(3).is_some() && streams.remove(3).is_none() && streams.remove(2).is_none());
        assert_eq!((streams.oldest().unwrap().0, streams.open(), streams.next()), (1, 3, Some(9)));
        assert_eq!(streams.above(1), [5, 7]);
        assert!(streams.remove(1).is_some());
        assert_eq!((streams.oldest().unwrap().0, streams.queue.len()), (5, 2));
        assert!(streams.get_mut(7).is_some() && streams.get_mut(9).is_none() && streams.get_mut(1).is_none());
    }

    #[test]
    fn no_grpc_status_is_not_ok() {
        let of = |http, grpc| Outcome::of(&Fields { http, grpc, message: Vec::new() });
        assert_eq!(of(Some(200), Some(0)), Outcome::OK);
        assert_eq!(of(Some(503), None).to_string(), "HTTP 503");
        assert_eq!(of(Some(200), None), Outcome::NoStatus);
        assert_eq!(of(None, Some(14)).to_string(), "UNAVAILABLE");
        assert_eq!(of(None, Some(99)).to_string(), "status 99");
    }
}
