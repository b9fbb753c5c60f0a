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

use super::account::Account;
use super::message::{RequestBody, stream_body};
use super::metadata::Allowed;
use super::status;
use super::unary::{GRPC, GRPC_ENCODING, Unary, deadline, encoding_name, refusal, wanted_compression};
use crate::deadline::Deadline;
use crate::exchange::{Item, ReplyStream};
use crate::route::Route;
use crate::transport::HeaderName;

/// Answers a call of a method that returns a stream.
pub(super) async fn answer<B: RequestBody>(
    unary: &Unary,
    route: &Arc<Route>,
    request: Request<B>,
    mut account: Box<Account>,
) -> Response<Body> {
    let compression = wanted_compression(request.headers());
    let opened = match deadline(route, request.headers()) {
        Ok(deadline) => {
            account.begin(deadline);
            open(unary, route, request, deadline, &mut account).await
        }
        Err(status) => Err(status),
    };
    let replies = match opened {
        Ok(replies) => replies,
        Err(status) => {
            account.ends(&status, false);
            return status.into_http();
        }
    };
    let allowed = Arc::clone(&unary.allowed);
    let mut writing = Writing { allowed, replies, first: None, trailers: HeaderMap::new(), account };
    let mut response = Response::new(Body::empty());
    match writing.read().await {
        Ok((message, headers)) => {
            *response.headers_mut() = headers;
            writing.first = Some(Ok(message));
        }
        Err(status) if status.code() == Code::Ok => writing.first = Some(Err(status)),
        Err(status) => return status.into_http(),
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
    account: &mut Account,
) -> Result<ReplyStream, Status> {
    let (call, admission) = unary.receive(route, request, deadline, account).await?;
    let opened = unary.exchange.stream_admitted(route, call, admission).await;
    opened.map_err(|failure| refusal(account, &failure))
}

/// A stream on its way to the connection.
struct Writing {
    allowed: Arc<Allowed>,
    replies: ReplyStream,
    /// What has been read to know the response's headers.
    first: Option<Result<Bytes, Status>>,
    /// What the last message's reply has for trailers.
    trailers: HeaderMap,
    account: Box<Account>,
}

impl Writing {
    /// The next message with its metadata, or the status that ends the stream,
    /// the good one included.
    async fn read(&mut self) -> Result<(Bytes, HeaderMap), Status> {
        let (status, by_worker) = match self.replies.next().await {
            Some(Item::Message(message, headers)) => {
                let returned = self.allowed.give_back(&headers);
                self.trailers = returned.trailers;
                self.account.returns(message.len());
                return Ok((message, returned.headers));
            }
            Some(Item::Complete(headers, trace)) => {
                let status = status::of_end(&trace, self.trailers(&headers));
                self.account.told(trace);
                (status, false)
            }
            Some(Item::Error(worker, headers, trace)) => {
                let status = status::of_worker(worker, &trace, self.trailers(&headers));
                self.account.told(trace);
                (status, true)
            }
            Some(Item::Failed(failure)) => (refusal(&mut self.account, &failure), false),
            // The task that reads the replies has been cut, and with it the shard.
            None => (Status::internal("the call was cut"), false),
        };
        self.account.ends(&status, by_worker);
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
