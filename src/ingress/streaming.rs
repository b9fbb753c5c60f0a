//! One call whose answer is a stream, from HTTP request to HTTP response.
//!
//! The response's headers are sent with the first message, since metadata comes
//! from its reply; a call that ends before it is answered with trailers only.

use std::sync::Arc;

use bytes::Bytes;
use futures_util::Stream;
use http::{HeaderMap, Request, Response, header};
use tonic::body::Body;
use tonic::{Code, Status};

use super::message::{RequestBody, stream_body};
use super::metadata::Allowed;
use super::status;
use super::unary::{
    GRPC, GRPC_ENCODING, Unary, code_name, deadline, encoding_name, ended_with, is_grpc, not_grpc, refusal,
    wanted_compression,
};
use crate::deadline::Deadline;
use crate::exchange::{Exchange, Item, ReplyStream};
use crate::metrics::{CallLabels, micros};
use crate::route::Route;
use crate::transport::HeaderName;

/// Answers a call of a method that returns a stream.
pub(super) async fn answer<B: RequestBody>(
    unary: &Unary,
    route: &Arc<Route>,
    request: Request<B>,
) -> Response<Body> {
    if !is_grpc(request.headers()) {
        return not_grpc();
    }
    let deadline = deadline(route, request.headers());
    let mut end = CountOnDrop {
        exchange: Arc::clone(&unary.exchange),
        route: Arc::clone(route),
        deadline: deadline.as_ref().ok().copied(),
        code: None,
    };
    let compression = wanted_compression(request.headers());
    let opened = match deadline {
        Ok(deadline) => open(unary, route, request, deadline).await,
        Err(status) => Err(status),
    };
    let replies = match opened {
        Ok(replies) => replies,
        Err(status) => return refuse(&status, &mut end),
    };
    let allowed = Arc::clone(&unary.allowed);
    let mut writing = Writing { allowed, replies, first: None, trailers: HeaderMap::new(), end };
    let mut response = Response::new(Body::empty());
    match writing.read().await {
        Ok((message, headers)) => {
            *response.headers_mut() = headers;
            writing.first = Some(Ok(message));
        }
        Err(status) if status.code() == Code::Ok => writing.first = Some(Err(status)),
        Err(status) => return refuse(&status, &mut writing.end),
    }
    response.headers_mut().insert(header::CONTENT_TYPE, GRPC);
    if let Some(encoding) = compression {
        response.headers_mut().insert(&GRPC_ENCODING, encoding_name(encoding));
    }
    *response.body_mut() = stream_body(writing.into_messages(), compression);
    response
}

async fn open<B: RequestBody>(
    unary: &Unary,
    route: &Arc<Route>,
    request: Request<B>,
    deadline: Deadline,
) -> Result<ReplyStream, Status> {
    let (call, admission) = unary.receive(route, request, deadline).await?;
    let opened = unary.exchange.stream_admitted(route, call, admission).await;
    opened.map_err(|failure| refusal(route, &failure))
}

fn refuse(status: &Status, end: &mut CountOnDrop) -> Response<Body> {
    end.code = Some(status.code());
    status.clone().into_http()
}

/// A stream on its way to the connection.
struct Writing {
    allowed: Arc<Allowed>,
    replies: ReplyStream,
    /// What has been read to know the response's headers.
    first: Option<Result<Bytes, Status>>,
    /// What the last message's reply has for trailers.
    trailers: HeaderMap,
    end: CountOnDrop,
}

impl Writing {
    /// The next message with its metadata, or the status that ends the stream,
    /// the good one included.
    async fn read(&mut self) -> Result<(Bytes, HeaderMap), Status> {
        let status = match self.replies.next().await {
            Some(Item::Message(message, headers)) => {
                let returned = self.allowed.give_back(&headers);
                self.trailers = returned.trailers;
                return Ok((message, returned.headers));
            }
            Some(Item::Complete(headers, trace)) => status::of_end(&trace, self.trailers(&headers)),
            Some(Item::Error(worker, headers, trace)) => {
                status::of_worker(worker, &trace, self.trailers(&headers))
            }
            Some(Item::Failed(failure)) => refusal(&self.end.route, &failure),
            // The task that reads the replies has been cut, and with it the shard.
            None => Status::internal("the call was cut"),
        };
        self.end.code = Some(status.code());
        Err(status)
    }

    /// Behind the messages there is no place for headers but here.
    fn trailers(&mut self, headers: &[(HeaderName, Bytes)]) -> HeaderMap {
        let returned = self.allowed.give_back(headers);
        let mut trailers = std::mem::take(&mut self.trailers);
        trailers.extend(returned.headers);
        trailers.extend(returned.trailers);
        trailers
    }

    fn into_messages(self) -> impl Stream<Item = Result<Bytes, Status>> + Send + 'static {
        futures_util::stream::unfold(self, |mut writing| async {
            let next = match writing.first.take() {
                Some(first) => first,
                None => writing.read().await.map(|(message, _)| message),
            };
            Some((next, writing))
        })
    }
}

/// Counts the call when its last byte has gone, or its caller has.
struct CountOnDrop {
    exchange: Arc<Exchange>,
    route: Arc<Route>,
    deadline: Option<Deadline>,
    code: Option<Code>,
}

impl Drop for CountOnDrop {
    fn drop(&mut self) {
        let code = ended_with(self.code, self.deadline);
        let labels = CallLabels { method: Arc::clone(&self.route.path), code: code_name(code) };
        let took = self.deadline.map_or(0, |deadline| micros(deadline.began().elapsed()));
        self.exchange.metrics().calls.observe(&labels, took);
    }
}
