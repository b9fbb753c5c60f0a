//! Messages as bytes: tonic's framing and compression without its decoding.

use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::{Buf as _, BufMut as _, Bytes, BytesMut};
use http::{HeaderMap, HeaderName, HeaderValue};
use http_body::{Body, Frame, SizeHint};
use http_body_util::BodyExt as _;
use tonic::Status;
use tonic::codec::{
    CompressionEncoding, DecodeBuf, Decoder, EncodeBody, EncodeBuf, Encoder,
    SingleMessageCompressionOverride, Streaming,
};

use super::untaken::Waiting;

/// Below this, compression costs more than it saves.
const COMPRESS_BYTES_MIN: usize = 1_024;
/// No more is reserved for a message before its bytes have come.
const RESERVE_BYTES_MAX: usize = 64 * 1_024;
/// Compressed flag and length, in front of every gRPC message.
const PREFIX_BYTES: usize = 5;

const GRPC_STATUS: HeaderName = HeaderName::from_static("grpc-status");

/// What a request's message is read from.
pub(super) trait RequestBody:
    Body<Data = Bytes, Error: Into<Box<dyn std::error::Error + Send + Sync>>> + Send + Unpin + 'static
{
}

impl<B> RequestBody for B where
    B: Body<Data = Bytes, Error: Into<Box<dyn std::error::Error + Send + Sync>>> + Send + Unpin + 'static
{
}

/// Passes a message through as it is.
#[derive(Debug, Clone, Copy)]
struct Raw;

impl Decoder for Raw {
    type Item = Bytes;
    type Error = Status;

    fn decode(&mut self, source: &mut DecodeBuf<'_>) -> Result<Option<Bytes>, Status> {
        Ok(Some(source.copy_to_bytes(source.remaining())))
    }
}

impl Encoder for Raw {
    type Item = Bytes;
    type Error = Status;

    fn encode(&mut self, message: Bytes, target: &mut EncodeBuf<'_>) -> Result<(), Status> {
        target.put(message);
        Ok(())
    }
}

/// Reads the one message of a unary request, and makes room with `hold` for
/// what has come of it: by tonic where it is compressed,
/// else here, which costs half as much and holds no more than has arrived
/// (tonic begins with 8 KiB for each call).
pub(super) async fn read_one<B>(
    body: B,
    encoding: Option<CompressionEncoding>,
    bytes_max: usize,
    mut hold: impl FnMut(usize) -> Result<(), Status>,
) -> Result<Bytes, Status>
where
    B: RequestBody,
{
    if encoding.is_none() {
        return read_plain(body, bytes_max, hold).await;
    }
    let mut messages = Streaming::new_request(Raw, body, encoding, Some(bytes_max));
    let message = messages.message().await?.ok_or_else(no_message)?;
    hold(message.len())?;
    match messages.message().await? {
        None => Ok(message),
        Some(_) => Err(several_messages()),
    }
}

/// Copies: a frame's bytes are a part of the connection's read buffer, which a
/// message that waits would keep alive as a whole.
async fn read_plain<B>(
    mut body: B,
    bytes_max: usize,
    mut hold: impl FnMut(usize) -> Result<(), Status>,
) -> Result<Bytes, Status>
where
    B: RequestBody,
{
    let mut prefix = Prefix::default();
    let mut message: Option<BytesMut> = None;
    while let Some(frame) = body.frame().await {
        let Ok(mut data) = frame.map_err(|error| Status::from_error(error.into()))?.into_data() else {
            continue;
        };
        if message.is_none()
            && let Some(length) = prefix.take_from(&mut data, bytes_max)?
        {
            message = Some(BytesMut::with_capacity(length.min(RESERVE_BYTES_MAX)));
        }
        if let Some(message) = &mut message {
            if data.len() > prefix.length() - message.len() {
                return Err(several_messages());
            }
            hold(data.len())?;
            message.extend_from_slice(&data);
        }
    }
    match message {
        Some(message) if message.len() == prefix.length() => Ok(message.freeze()),
        None if prefix.filled == 0 => Err(no_message()),
        _ => Err(Status::internal("the request ends in the middle of its message")),
    }
}

/// The five bytes in front of a message, which may come one by one.
#[derive(Default)]
struct Prefix {
    bytes: [u8; PREFIX_BYTES],
    filled: usize,
}

impl Prefix {
    fn length(&self) -> usize {
        let [_, length @ ..] = self.bytes;
        u32::from_be_bytes(length) as usize
    }

    /// Takes from the front of `data` what is missing. The message's length,
    /// once it is known.
    fn take_from(&mut self, data: &mut Bytes, bytes_max: usize) -> Result<Option<usize>, Status> {
        let part = data.split_to(data.len().min(PREFIX_BYTES - self.filled));
        self.bytes[self.filled..self.filled + part.len()].copy_from_slice(&part);
        self.filled += part.len();
        if self.filled < PREFIX_BYTES {
            return Ok(None);
        }
        match (self.bytes[0], self.length()) {
            (0, length) if length <= bytes_max => Ok(Some(length)),
            (0, length) => Err(Status::resource_exhausted(format!(
                "the message has {length} bytes; at most {bytes_max} are allowed (grpc.message_bytes_max)"
            ))),
            (1, _) => {
                Err(Status::internal("the message is compressed, and the request has no grpc-encoding"))
            }
            (flag, _) => {
                Err(Status::internal(format!("the message begins with {flag}, which is no compressed flag")))
            }
        }
    }
}

fn no_message() -> Status {
    Status::internal("a unary call needs one message, and the request has none")
}

fn several_messages() -> Status {
    Status::internal("a unary call needs one message, and the request has several")
}

/// The body of a unary answer: one message and its trailers. `hold` counts its
/// bytes until the caller has taken them, or says that there are too many.
pub(super) fn unary_body(
    message: Bytes,
    trailers: HeaderMap,
    compression: Option<CompressionEncoding>,
    hold: impl FnOnce(Bytes) -> Result<Waiting, Status>,
) -> Result<tonic::body::Body, Status> {
    Ok(match compression {
        Some(encoding) if message.len() >= COMPRESS_BYTES_MIN => {
            let held = hold(message.clone())?;
            let source = tokio_stream::once(Ok(message));
            let compressed = EncodeBody::new_server(
                Raw,
                source,
                Some(encoding),
                SingleMessageCompressionOverride::default(),
                None,
            );
            tonic::body::Body::new(WithTrailers { body: Box::pin(compressed), more: trailers, held })
        }
        _ => tonic::body::Body::new(Plain { message: hold(frame(&message))?, trailers: Some(trailers) }),
    })
}

/// The body of an answer that is a stream: messages, and a status that ends
/// them. What is ready goes into one frame. `bytes_max` is checked before.
pub(super) fn stream_body<S>(messages: S, compression: Option<CompressionEncoding>) -> tonic::body::Body
where
    S: futures_util::Stream<Item = Result<Bytes, Status>> + Send + 'static,
{
    let once = SingleMessageCompressionOverride::default();
    tonic::body::Body::new(EncodeBody::new_server(Raw, messages, compression, once, None))
}

fn frame(message: &Bytes) -> Bytes {
    let mut framed = BytesMut::with_capacity(PREFIX_BYTES + message.len());
    framed.put_u8(0);
    // Bounded by `message_bytes_max`, far below 4 GiB.
    framed.put_u32(u32::try_from(message.len()).unwrap_or(u32::MAX));
    framed.put_slice(message);
    framed.freeze()
}

/// An uncompressed message, in one piece unless it is large.
struct Plain {
    message: Waiting,
    trailers: Option<HeaderMap>,
}

impl Body for Plain {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        if let Some(piece) = self.message.next() {
            return Poll::Ready(Some(Ok(Frame::data(piece))));
        }
        match self.trailers.take() {
            Some(mut trailers) => {
                trailers.insert(GRPC_STATUS, HeaderValue::from_static("0"));
                Poll::Ready(Some(Ok(Frame::trailers(trailers))))
            }
            None => Poll::Ready(None),
        }
    }

    fn is_end_stream(&self) -> bool {
        self.message.is_empty() && self.trailers.is_none()
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::default()
    }
}

/// Adds trailers to those that tonic's encoder makes.
struct WithTrailers<B> {
    body: B,
    more: HeaderMap,
    /// The message before it was compressed, which is its most.
    held: Waiting,
}

impl<B: Body<Data = Bytes, Error = Status> + Unpin> Body for WithTrailers<B> {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        let polled = Pin::new(&mut self.body).poll_frame(context);
        polled.map_ok(|frame| {
            let mut frame = frame.map_data(|data| self.held.cover(data));
            if let Some(trailers) = frame.trailers_mut() {
                trailers.extend(std::mem::take(&mut self.more));
            }
            frame
        })
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }
}

#[cfg(test)]
mod tests {
    use std::convert::Infallible;

    use http_body_util::StreamBody;
    use proptest::prelude::*;
    use tonic::Code;

    use super::*;

    fn read(chunks: Vec<Bytes>, bytes_max: usize) -> Result<Bytes, Status> {
        let frames = chunks.into_iter().map(|chunk| Ok::<_, Infallible>(Frame::data(chunk)));
        let reading = read_one(StreamBody::new(tokio_stream::iter(frames)), None, bytes_max, |_| Ok(()));
        tokio::runtime::Builder::new_current_thread().build().unwrap().block_on(reading)
    }

    fn cut(whole: &Bytes, cuts: &[usize]) -> Vec<Bytes> {
        let mut rest = whole.clone();
        let mut chunks: Vec<Bytes> = cuts.iter().map(|at| rest.split_to((*at).min(rest.len()))).collect();
        chunks.push(rest);
        chunks
    }

    proptest! {
        #[test]
        fn a_message_is_the_same_however_it_is_cut(
            message in proptest::collection::vec(any::<u8>(), 0..300),
            cuts in proptest::collection::vec(0usize..60, 0..12),
            missing in 1usize..20,
        ) {
            let message = Bytes::from(message);
            let whole = frame(&message);
            prop_assert_eq!(read(cut(&whole, &cuts), 300).unwrap(), &message);

            let short = whole.slice(..whole.len().saturating_sub(missing));
            prop_assert_eq!(read(cut(&short, &cuts), 300).unwrap_err().code(), Code::Internal);

            let twice = Bytes::from([&whole[..], &whole[..]].concat());
            prop_assert_eq!(read(cut(&twice, &cuts), 300).unwrap_err().code(), Code::Internal);

            if let Some(max) = message.len().checked_sub(1) {
                prop_assert_eq!(read(cut(&whole, &cuts), max).unwrap_err().code(), Code::ResourceExhausted);
            }
        }
    }

    #[test]
    fn a_flag_that_nobody_announced_is_refused() {
        for flag in [1, 7] {
            let refused = read(vec![Bytes::from(vec![flag, 0, 0, 0, 0])], 10).unwrap_err();
            assert_eq!(refused.code(), Code::Internal, "{flag}");
        }
    }
}
