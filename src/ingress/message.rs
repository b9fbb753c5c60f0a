//! Messages as bytes: tonic's framing and compression without its decoding.

use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::{Buf as _, BufMut as _, Bytes, BytesMut};
use http::{HeaderMap, HeaderValue};
use http_body::{Body, Frame, SizeHint};
use tonic::Status;
use tonic::codec::{
    CompressionEncoding, DecodeBuf, Decoder, EncodeBody, EncodeBuf, Encoder,
    SingleMessageCompressionOverride, Streaming,
};

/// Below this, compression costs more than it saves.
const COMPRESS_BYTES_MIN: usize = 1_024;
/// Compressed flag and length, in front of every gRPC message.
const PREFIX_BYTES: usize = 5;

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

/// Reads the one message of a unary request.
pub(super) async fn read_one<B>(
    body: B,
    encoding: Option<CompressionEncoding>,
    bytes_max: usize,
) -> Result<Bytes, Status>
where
    B: Body + Send + 'static,
    B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
{
    let mut messages = Streaming::new_request(Raw, body, encoding, Some(bytes_max));
    let Some(message) = messages.message().await? else {
        return Err(Status::internal("a unary call needs one message, and the request has none"));
    };
    match messages.message().await? {
        None => Ok(message),
        Some(_) => Err(Status::internal("a unary call needs one message, and the request has several")),
    }
}

/// The body of a unary answer: one message and its trailers.
pub(super) fn unary_body(
    message: Bytes,
    trailers: HeaderMap,
    compression: Option<CompressionEncoding>,
) -> tonic::body::Body {
    match compression {
        Some(encoding) if message.len() >= COMPRESS_BYTES_MIN => {
            let source = tokio_stream::once(Ok(message));
            let compressed = EncodeBody::new_server(
                Raw,
                source,
                Some(encoding),
                SingleMessageCompressionOverride::default(),
                None,
            );
            tonic::body::Body::new(WithTrailers { body: Box::pin(compressed), more: trailers })
        }
        _ => tonic::body::Body::new(Plain { message: Some(frame(&message)), trailers: Some(trailers) }),
    }
}

fn frame(message: &Bytes) -> Bytes {
    let mut framed = BytesMut::with_capacity(PREFIX_BYTES + message.len());
    framed.put_u8(0);
    // Bounded by `message_bytes_max`, far below 4 GiB.
    framed.put_u32(u32::try_from(message.len()).unwrap_or(u32::MAX));
    framed.put_slice(message);
    framed.freeze()
}

/// An uncompressed message in one data frame.
struct Plain {
    message: Option<Bytes>,
    trailers: Option<HeaderMap>,
}

impl Body for Plain {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        if let Some(message) = self.message.take() {
            return Poll::Ready(Some(Ok(Frame::data(message))));
        }
        match self.trailers.take() {
            Some(mut trailers) => {
                trailers.insert("grpc-status", HeaderValue::from_static("0"));
                Poll::Ready(Some(Ok(Frame::trailers(trailers))))
            }
            None => Poll::Ready(None),
        }
    }

    fn is_end_stream(&self) -> bool {
        self.message.is_none() && self.trailers.is_none()
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::default()
    }
}

/// Adds trailers to those that tonic's encoder makes.
struct WithTrailers<B> {
    body: B,
    more: HeaderMap,
}

impl<B: Body<Data = Bytes, Error = Status> + Unpin> Body for WithTrailers<B> {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        let polled = Pin::new(&mut self.body).poll_frame(context);
        polled.map_ok(|mut frame| {
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
