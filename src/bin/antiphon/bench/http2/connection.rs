//! One connection: buffers, flow control, and the calls in flight on it.

use std::collections::VecDeque;
use std::io::{self, Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::calls::{Call, Outcome, Stream, Streams};
use super::frame::{self, Head};
use super::hpack::{Decoder, Fields, Template};

/// Room for what one read brings; more than one frame, so that there is always
/// room for the rest of one.
const INPUT_BYTES: usize = 128 * 1024;
/// What a server may send on one stream, and on the connection before we say
/// more. Answers are not kept, so only the count is bounded.
const RECEIVE_WINDOW: u32 = 1 << 30;
/// Bytes that may wait to be written before no more calls are started.
const OUTPUT_BYTES_MAX: usize = 1024 * 1024;
/// Bytes of one header block.
const BLOCK_BYTES_MAX: usize = 64 * 1024;

/// Why a connection is of no more use.
#[derive(Debug, thiserror::Error)]
pub(in super::super) enum Broken {
    /// The socket failed.
    #[error("{0}")]
    Io(#[from] io::Error),
    /// The server has closed it.
    #[error("the server has closed the connection")]
    Closed,
    /// The server does not keep to HTTP/2.
    #[error("this is not HTTP/2: {0}")]
    Protocol(&'static str),
    /// The server has sent GOAWAY and all calls have ended.
    #[error("the server has asked to go away")]
    GoneAway,
}

const SHORT: Broken = Broken::Protocol("a frame that is too short");

/// A call that has ended.
#[derive(Debug)]
pub(in super::super) struct Done {
    pub(in super::super) call: Call,
    pub(in super::super) outcome: Outcome,
    /// `grpc-message`, as it came.
    pub(in super::super) message: Vec<u8>,
}

/// Where calls go and what all of them have in common.
#[derive(Debug, Clone)]
pub(in super::super) struct Endpoint {
    address: SocketAddr,
    template: Arc<Template>,
    connect_timeout: Duration,
}

impl Endpoint {
    /// `headers` are all but `:method` and `:scheme`.
    pub(in super::super) fn new(
        address: SocketAddr,
        headers: &[(String, String)],
        connect_timeout: Duration,
    ) -> Self {
        Self { address, template: Arc::new(Template::new(headers)), connect_timeout }
    }

    pub(in super::super) fn address(&self) -> SocketAddr {
        self.address
    }
}

/// What the server has told of itself.
#[derive(Debug)]
struct Peer {
    streams_max: u32,
    stream_window: i64,
    payload_max: usize,
    table_bytes: u32,
}

/// A connection of a client.
#[derive(Debug)]
pub(in super::super) struct Connection {
    socket: TcpStream,
    input: Box<[u8]>,
    read: std::ops::Range<usize>,
    output: Vec<u8>,
    written: usize,
    template: Arc<Template>,
    decoder: Decoder,
    /// A header block that goes on in CONTINUATION, its stream, and whether it
    /// ends the stream.
    block: Option<(Vec<u8>, u32, bool)>,
    streams: Streams,
    /// Streams with more to send than their window or the connection's allowed.
    blocked: VecDeque<u32>,
    send_window: i64,
    received: u32,
    peer: Peer,
    settled: bool,
    primed: bool,
    leaving: bool,
    /// Where the content of answers goes, when somebody wants it.
    answers: Option<Vec<u8>>,
}

impl Connection {
    /// Connects, and waits for the server's settings.
    pub(in super::super) fn open(endpoint: &Endpoint) -> Result<Self, Broken> {
        let until = Instant::now() + endpoint.connect_timeout;
        let socket = TcpStream::connect_timeout(&endpoint.address, endpoint.connect_timeout)?;
        socket.set_nodelay(true)?;
        let mut connection = Self::new(socket, Arc::clone(&endpoint.template));
        let mut done = Vec::new();
        while !connection.settled {
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Err(io::Error::from(io::ErrorKind::TimedOut).into());
            }
            connection.flush()?;
            connection.socket.set_read_timeout(Some(left))?;
            connection.receive(&[], &mut done)?;
        }
        connection.socket.set_nonblocking(true)?;
        connection.flush()?;
        Ok(connection)
    }

    fn new(socket: TcpStream, template: Arc<Template>) -> Self {
        let mut output = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec();
        let settings = [(frame::SETTING_ENABLE_PUSH, 0), (frame::SETTING_WINDOW, RECEIVE_WINDOW)];
        frame::put_settings(&mut output, &settings);
        frame::put_window_update(&mut output, 0, RECEIVE_WINDOW - frame::WINDOW_DEFAULT);
        Self {
            socket,
            input: vec![0; INPUT_BYTES].into(),
            read: 0..0,
            output,
            written: 0,
            template,
            decoder: Decoder::new(),
            block: None,
            streams: Streams::new(),
            blocked: VecDeque::new(),
            send_window: frame::WINDOW_DEFAULT.into(),
            received: 0,
            peer: Peer {
                streams_max: u32::MAX,
                stream_window: frame::WINDOW_DEFAULT.into(),
                payload_max: frame::PAYLOAD_BYTES_MAX,
                table_bytes: frame::TABLE_BYTES_DEFAULT,
            },
            settled: false,
            primed: false,
            leaving: false,
            answers: None,
        }
    }

    pub(in super::super) fn socket(&self) -> &TcpStream {
        &self.socket
    }

    /// From now on, what answers contain is kept for [`Connection::take_answers`].
    pub(in super::super) fn keep_answers(&mut self) {
        self.answers = Some(Vec::new());
    }

    /// What answers have contained, gRPC's prefixes included.
    pub(in super::super) fn take_answers(&mut self) -> Vec<u8> {
        self.answers.take().unwrap_or_default()
    }

    /// Calls in flight.
    pub(in super::super) fn open_calls(&self) -> usize {
        self.streams.open()
    }

    /// Most calls that the server allows at a time.
    pub(in super::super) fn calls_max(&self) -> u32 {
        self.peer.streams_max
    }

    /// Whether something waits to be written.
    pub(in super::super) fn has_output(&self) -> bool {
        self.written < self.output.len()
    }

    /// Whether another call may be started now.
    pub(in super::super) fn has_room(&self) -> bool {
        !self.leaving
            && self.streams.open() < self.peer.streams_max as usize
            && self.output.len() - self.written < OUTPUT_BYTES_MAX
            && self.blocked.is_empty()
            && self.streams.next().is_some()
    }

    /// Starts a call; [`Connection::flush`] sends it. `messages` are framed
    /// as gRPC has it.
    pub(in super::super) fn start(&mut self, call: Call, messages: &[Box<[u8]>]) {
        let Some(number) = self.streams.next() else { return };
        let block = match (self.peer.table_bytes < frame::TABLE_BYTES_DEFAULT, self.primed) {
            (true, _) => &self.template.plain,
            (false, false) => &self.template.first,
            (false, true) => &self.template.again,
        };
        self.primed = true;
        put_block(&mut self.output, block, number);
        let window = self.peer.stream_window;
        self.streams.push(Stream { call, fields: Fields::default(), sent_bytes: 0, window });
        self.send_message(number, messages);
    }

    /// Sends what windows allow of a stream's message.
    fn send_message(&mut self, number: u32, messages: &[Box<[u8]>]) {
        let Some(stream) = self.streams.get_mut(number) else { return };
        let Some(message) = messages.get(stream.call.message) else { return };
        loop {
            let rest = &message[stream.sent_bytes..];
            let window = stream.window.min(self.send_window).max(0);
            let length = rest.len().min(self.peer.payload_max).min(usize::try_from(window).unwrap_or(0));
            if length == 0 && !rest.is_empty() {
                return self.blocked.push_back(number);
            }
            let last = length == rest.len();
            let flags = if last { frame::END_STREAM } else { 0 };
            frame::put_head(&mut self.output, length, frame::DATA, flags, number);
            self.output.extend_from_slice(&rest[..length]);
            stream.sent_bytes += length;
            let spent = i64::try_from(length).unwrap_or(i64::MAX);
            stream.window -= spent;
            self.send_window -= spent;
            if last {
                return;
            }
        }
    }

    /// Sends what waited for a window.
    fn resume(&mut self, messages: &[Box<[u8]>]) {
        for _ in 0..self.blocked.len() {
            if self.send_window <= 0 {
                return;
            }
            if let Some(number) = self.blocked.pop_front() {
                self.send_message(number, messages);
            }
        }
    }

    /// Writes as much as the socket takes.
    pub(in super::super) fn flush(&mut self) -> Result<(), Broken> {
        while self.written < self.output.len() {
            match self.socket.write(&self.output[self.written..]) {
                Ok(0) => return Err(Broken::Closed),
                Ok(bytes) => self.written += bytes,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(()),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error.into()),
            }
        }
        self.output.clear();
        self.written = 0;
        Ok(())
    }

    /// Reads once, and works off the frames that came.
    pub(in super::super) fn receive(
        &mut self,
        messages: &[Box<[u8]>],
        done: &mut Vec<Done>,
    ) -> Result<(), Broken> {
        if self.read.end > INPUT_BYTES / 2 {
            self.input.copy_within(self.read.clone(), 0);
            self.read = 0..self.read.len();
        }
        match self.socket.read(&mut self.input[self.read.end..]) {
            Ok(0) => return Err(Broken::Closed),
            Ok(bytes) => self.read.end += bytes,
            Err(error) if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted) => {
                return Ok(());
            }
            Err(error) => return Err(error.into()),
        }
        // Frames are read in place, so the buffer is lent out meanwhile.
        let input = std::mem::take(&mut self.input);
        let worked = self.work_off(&input, messages, done);
        self.input = input;
        worked?;
        if self.read.is_empty() {
            self.read = 0..0;
        }
        if self.received > RECEIVE_WINDOW / 2 {
            frame::put_window_update(&mut self.output, 0, self.received);
            self.received = 0;
        }
        if self.leaving && self.streams.open() == 0 { Err(Broken::GoneAway) } else { Ok(()) }
    }

    fn work_off(&mut self, input: &[u8], messages: &[Box<[u8]>], done: &mut Vec<Done>) -> Result<(), Broken> {
        loop {
            let unread = &input[self.read.clone()];
            let Some(head) = Head::parse(unread) else { return Ok(()) };
            if head.length > frame::PAYLOAD_BYTES_MAX {
                return Err(Broken::Protocol("a frame that is too long"));
            }
            if !self.settled && head.kind != frame::SETTINGS {
                return Err(Broken::Protocol("the first frame is not SETTINGS"));
            }
            let all = frame::HEAD_BYTES + head.length;
            let Some(payload) = unread.get(frame::HEAD_BYTES..all) else { return Ok(()) };
            self.read.start += all;
            self.take(head, payload, messages, done)?;
        }
    }

    fn take(
        &mut self,
        head: Head,
        payload: &[u8],
        messages: &[Box<[u8]>],
        done: &mut Vec<Done>,
    ) -> Result<(), Broken> {
        match head.kind {
            frame::DATA => {
                // At most 16 KiB.
                self.received += u32::try_from(head.length).unwrap_or(u32::MAX);
                let content = head.content(payload).ok_or(SHORT)?;
                if let Some(answers) = &mut self.answers {
                    answers.extend_from_slice(content);
                }
                if head.has(frame::END_STREAM) {
                    self.end(head.stream, done);
                }
            }
            frame::HEADERS | frame::CONTINUATION => self.take_block(head, payload, done)?,
            frame::RST_STREAM => {
                let code = frame::number(payload).ok_or(SHORT)?;
                self.finish(head.stream, Some(Outcome::Reset(code)), done);
            }
            frame::SETTINGS if !head.has(frame::ACK) => {
                self.take_settings(payload);
                frame::put_head(&mut self.output, 0, frame::SETTINGS, frame::ACK, 0);
                self.resume(messages);
            }
            frame::PING if !head.has(frame::ACK) => {
                frame::put_head(&mut self.output, payload.len(), frame::PING, frame::ACK, 0);
                self.output.extend_from_slice(payload);
            }
            frame::GOAWAY => {
                let last = frame::number(payload).ok_or(SHORT)? & !(1 << 31);
                self.leaving = true;
                for stream in self.streams.above(last) {
                    self.finish(stream, Some(Outcome::ConnectionLost), done);
                }
            }
            frame::WINDOW_UPDATE => {
                let more = i64::from(frame::number(payload).ok_or(SHORT)?);
                match head.stream {
                    0 => self.send_window += more,
                    stream => {
                        if let Some(stream) = self.streams.get_mut(stream) {
                            stream.window += more;
                        }
                    }
                }
                self.resume(messages);
            }
            frame::PUSH_PROMISE => return Err(Broken::Protocol("PUSH_PROMISE, which we have ruled out")),
            _ => {}
        }
        Ok(())
    }

    /// A header block, or a part of one.
    fn take_block(&mut self, head: Head, payload: &[u8], done: &mut Vec<Done>) -> Result<(), Broken> {
        let (block, stream, ends) = match (head.kind, self.block.take()) {
            (frame::HEADERS, None) => {
                let content = head.content(payload).ok_or(SHORT)?;
                let ends = head.has(frame::END_STREAM);
                if head.has(frame::END_HEADERS) {
                    return self.headers(content, head.stream, ends, done);
                }
                (content.to_vec(), head.stream, ends)
            }
            (frame::CONTINUATION, Some((mut block, stream, ends))) if stream == head.stream => {
                block.extend_from_slice(payload);
                (block, stream, ends)
            }
            _ => return Err(Broken::Protocol("headers out of order")),
        };
        if head.has(frame::END_HEADERS) {
            return self.headers(&block, stream, ends, done);
        }
        if block.len() > BLOCK_BYTES_MAX {
            return Err(Broken::Protocol("headers without end"));
        }
        self.block = Some((block, stream, ends));
        Ok(())
    }

    fn headers(&mut self, block: &[u8], stream: u32, ends: bool, done: &mut Vec<Done>) -> Result<(), Broken> {
        // Of a stream that is gone, too: the table is the connection's.
        let mut nobodys = Fields::default();
        let fields = self.streams.get_mut(stream).map_or(&mut nobodys, |stream| &mut stream.fields);
        let decoded = self.decoder.decode(block, fields);
        decoded.map_err(|_| Broken::Protocol("headers that cannot be decoded"))?;
        if ends {
            self.end(stream, done);
        }
        Ok(())
    }

    fn take_settings(&mut self, payload: &[u8]) {
        for (name, value) in frame::settings(payload) {
            match name {
                frame::SETTING_TABLE_BYTES => self.peer.table_bytes = value,
                frame::SETTING_STREAMS_MAX => self.peer.streams_max = value,
                frame::SETTING_WINDOW => {
                    let difference = i64::from(value) - self.peer.stream_window;
                    self.peer.stream_window = value.into();
                    for stream in self.streams.all_mut() {
                        stream.window += difference;
                    }
                }
                frame::SETTING_PAYLOAD_MAX => self.peer.payload_max = value as usize,
                _ => {}
            }
        }
        self.settled = true;
    }

    fn end(&mut self, stream: u32, done: &mut Vec<Done>) {
        self.finish(stream, None, done);
    }

    /// Ends a call, with what its headers say unless something else is known.
    fn finish(&mut self, stream: u32, outcome: Option<Outcome>, done: &mut Vec<Done>) {
        let Some(Stream { call, fields, .. }) = self.streams.remove(stream) else { return };
        if let Some(place) = self.blocked.iter().position(|blocked| *blocked == stream) {
            // An answer to half a message: the other half is not wanted.
            self.blocked.remove(place);
            frame::put_reset(&mut self.output, stream, frame::CANCEL);
        }
        let outcome = outcome.unwrap_or_else(|| Outcome::of(&fields));
        done.push(Done { call, outcome, message: fields.message });
    }

    /// Gives up the calls that were sent before `sent_before`.
    pub(in super::super) fn expire(&mut self, sent_before: u64, done: &mut Vec<Done>) {
        while let Some((number, stream)) = self.streams.oldest()
            && stream.call.sent < sent_before
        {
            self.blocked.retain(|blocked| *blocked != number);
            frame::put_reset(&mut self.output, number, frame::CANCEL);
            self.finish(number, Some(Outcome::TimedOut), done);
        }
    }

    /// When the oldest call in flight was sent.
    pub(in super::super) fn oldest_sent(&self) -> Option<u64> {
        self.streams.oldest().map(|(_, stream)| stream.call.sent)
    }

    /// Ends all calls, because the connection has.
    pub(in super::super) fn abandon(&mut self, done: &mut Vec<Done>) {
        for stream in self.streams.above(0) {
            self.finish(stream, Some(Outcome::ConnectionLost), done);
        }
    }
}

/// HEADERS, and CONTINUATION where the block needs it.
fn put_block(out: &mut Vec<u8>, block: &[u8], stream: u32) {
    let mut kind = frame::HEADERS;
    let mut chunks = block.chunks(frame::PAYLOAD_BYTES_MAX).peekable();
    while let Some(chunk) = chunks.next() {
        let flags = if chunks.peek().is_none() { frame::END_HEADERS } else { 0 };
        frame::put_head(out, chunk.len(), kind, flags, stream);
        out.extend_from_slice(chunk);
        kind = frame::CONTINUATION;
    }
}
