//! One unary call, from HTTP request to HTTP response; and of any call the
//! request.

use std::sync::Arc;

use http::{HeaderMap, HeaderName, HeaderValue, Request, Response, header};
use tokio::time::timeout_at;
use tonic::body::Body;
use tonic::codec::CompressionEncoding;
use tonic::{Code, Status};

use super::account::Account;
use super::message::{RequestBody, read_one, unary_body};
use super::metadata::Allowed;
use super::pace::Pace;
use super::status;
use crate::deadline::{Deadline, parse_grpc_timeout};
use crate::exchange::{Admission, Answer, Exchange, Failure, Request as Call, Trace, Why};
use crate::route::Route;

static GRPC_TIMEOUT: HeaderName = HeaderName::from_static("grpc-timeout");
pub(super) static GRPC_ENCODING: HeaderName = HeaderName::from_static("grpc-encoding");
static GRPC_ACCEPT_ENCODING: HeaderName = HeaderName::from_static("grpc-accept-encoding");
const ACCEPTED: HeaderValue = HeaderValue::from_static("identity,gzip,zstd");
pub(super) const GRPC: HeaderValue = HeaderValue::from_static("application/grpc");

/// Answers unary calls of one shard.
pub(super) struct Unary {
    pub(super) exchange: Arc<Exchange>,
    pub(super) allowed: Arc<Allowed>,
    pub(super) message_bytes_max: usize,
    pace: Pace,
}

impl Unary {
    pub(super) fn new(exchange: Arc<Exchange>, allowed: Allowed, message_bytes_max: usize) -> Self {
        Self { exchange, allowed: Arc::new(allowed), message_bytes_max, pace: Pace::new() }
    }

    pub(super) async fn answer<B: RequestBody>(
        &self,
        route: &Arc<Route>,
        request: Request<B>,
        mut account: Box<Account>,
    ) -> Response<Body> {
        let compression = wanted_compression(request.headers());
        let answered = match deadline(route, request.headers()) {
            Ok(deadline) => {
                account.begin(deadline);
                self.call(route, request, deadline, &mut account).await
            }
            Err(status) => Err(status),
        };
        match answered {
            Ok(answer) => self.respond(answer, compression, account),
            Err(status) => refuse(status, account),
        }
    }

    async fn call<B: RequestBody>(
        &self,
        route: &Arc<Route>,
        request: Request<B>,
        deadline: Deadline,
        account: &mut Account,
    ) -> Result<Answer, Status> {
        let (call, admission) = self.receive(route, request, deadline, account).await?;
        let answered = self.exchange.call_admitted(route, call, admission).await;
        answered.map_err(|failure| refusal(account, &failure))
    }

    /// Lets a call in and reads its message.
    pub(super) async fn receive<B: RequestBody>(
        &self,
        route: &Arc<Route>,
        request: Request<B>,
        deadline: Deadline,
        account: &mut Account,
    ) -> Result<(Call, Admission), Status> {
        let (head, body) = request.into_parts();
        let encoding = request_encoding(&head.headers)?;
        let mut metadata = self.allowed.forward(&head.headers)?;
        account.inject(&mut metadata);
        // Before its message: what is refused need not be read, and what is read is counted.
        let mut admission = match self.exchange.admit(route, deadline) {
            Ok(admission) => admission,
            Err(failure) => {
                if matches!(*failure.why, Why::Overloaded { .. }) {
                    self.pace.turn(deadline.at()).await;
                }
                return Err(refusal(account, &failure));
            }
        };
        account.follow(admission.journey());
        let hold = |bytes| admission.hold(bytes).map_err(|f| refusal(account, &f));
        // A caller that never finishes its message meets the same deadline.
        let read = timeout_at(deadline.at(), read_one(body, encoding, self.message_bytes_max, hold)).await;
        let message = match read {
            Ok(message) => message.map_err(status::of_unread_message)?,
            Err(_) => {
                let trace = Trace::nothing_sent(Arc::clone(&route.request_topic));
                return Err(refusal(account, &Failure::new(Why::TooLate, trace)));
            }
        };
        account.received(message.len());
        Ok((Call { message, metadata, deadline }, admission))
    }

    fn respond(
        &self,
        answer: Answer,
        compression: Option<CompressionEncoding>,
        mut account: Box<Account>,
    ) -> Response<Body> {
        let returned = self.allowed.give_back(&answer.reply.headers);
        match answer.reply.result {
            Ok(message) => {
                let mut trailers = status::of_trace(&answer.trace);
                if !returned.trailers.is_empty() {
                    // Over whatever a worker says under our names.
                    let ours = std::mem::replace(&mut trailers, returned.trailers);
                    trailers.extend(ours);
                }
                let hold = |reply| {
                    let room = || self.exchange.instance().budget.no_bytes();
                    let held = account.peer().untaken.hold(reply, room);
                    held.map_err(|waiting| status::of_untaken(waiting, &answer.trace))
                };
                let bytes = message.len();
                let body = match unary_body(message, trailers, compression, hold) {
                    Ok(body) => body,
                    Err(status) => {
                        account.told(answer.trace);
                        return refuse(status, account);
                    }
                };
                account.told(answer.trace);
                account.returns(bytes);
                account.ends_well();
                let mut response = Response::new(body);
                *response.headers_mut() = returned.headers;
                response.headers_mut().insert(header::CONTENT_TYPE, GRPC);
                if let Some(encoding) = compression {
                    response.headers_mut().insert(&GRPC_ENCODING, encoding_name(encoding));
                }
                response
            }
            Err(worker) => {
                // An error has trailers only.
                let mut metadata = returned.headers;
                metadata.extend(returned.trailers);
                let status = status::of_worker(worker, &answer.trace, metadata);
                account.told(answer.trace);
                account.ends(&status, true);
                into_http(status)
            }
        }
    }
}

/// A failure of the call as its caller hears of it.
pub(super) fn refusal(account: &mut Account, failure: &Failure) -> Status {
    account.told(failure.trace.clone());
    status::of_failure(failure)
}

fn refuse(status: Status, mut account: Box<Account>) -> Response<Body> {
    account.ends(&status, false);
    into_http(status)
}

fn into_http(status: Status) -> Response<Body> {
    let code = status.code();
    let mut response = status.into_http();
    if code == Code::Unimplemented {
        response.headers_mut().insert(&GRPC_ACCEPT_ENCODING, ACCEPTED);
    }
    response
}

pub(super) fn is_grpc(headers: &HeaderMap) -> bool {
    let content_type = headers.get(header::CONTENT_TYPE).map_or(&[][..], HeaderValue::as_bytes);
    match content_type.strip_prefix(b"application/grpc") {
        Some(rest) => rest.is_empty() || matches!(rest[0], b'+' | b';'),
        None => false,
    }
}

/// As the gRPC specification has it for anything but `application/grpc`.
pub(super) fn not_grpc() -> Response<Body> {
    let mut response = Response::new(Body::empty());
    *response.status_mut() = http::StatusCode::UNSUPPORTED_MEDIA_TYPE;
    response
}

pub(super) fn deadline(route: &Route, headers: &HeaderMap) -> Result<Deadline, Status> {
    let asked = match headers.get(&GRPC_TIMEOUT) {
        Some(value) => Some(parse_grpc_timeout(value.as_bytes()).map_err(|e| status::of_timeout_error(&e))?),
        None => None,
    };
    Ok(Deadline::for_call(asked, route.timeout, route.timeout_max))
}

fn request_encoding(headers: &HeaderMap) -> Result<Option<CompressionEncoding>, Status> {
    match headers.get(&GRPC_ENCODING).map(HeaderValue::as_bytes) {
        None | Some(b"identity") => Ok(None),
        Some(b"gzip") => Ok(Some(CompressionEncoding::Gzip)),
        Some(b"zstd") => Ok(Some(CompressionEncoding::Zstd)),
        Some(other) => Err(Status::unimplemented(format!(
            "grpc-encoding {:?} is not supported; send identity, gzip or zstd",
            String::from_utf8_lossy(&other[..other.len().min(32)])
        ))),
    }
}

/// Replies are compressed for callers who compress themselves. Many clients
/// accept gzip without anybody having asked for it, and compressing costs more
/// than all else that is done for a call.
pub(super) fn wanted_compression(headers: &HeaderMap) -> Option<CompressionEncoding> {
    let compresses = headers.get(&GRPC_ENCODING).is_some_and(|encoding| encoding != "identity");
    if compresses { accepted_compression(headers) } else { None }
}

/// The first of the caller's encodings that we can write.
fn accepted_compression(headers: &HeaderMap) -> Option<CompressionEncoding> {
    let accepted = headers.get(&GRPC_ACCEPT_ENCODING)?.to_str().ok()?;
    accepted.split(',').find_map(|name| match name.trim() {
        "gzip" => Some(CompressionEncoding::Gzip),
        "zstd" => Some(CompressionEncoding::Zstd),
        _ => None,
    })
}

pub(super) fn encoding_name(encoding: CompressionEncoding) -> HeaderValue {
    match encoding {
        CompressionEncoding::Gzip => HeaderValue::from_static("gzip"),
        _ => HeaderValue::from_static("zstd"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn with(name: &'static str, value: &'static str) -> HeaderMap {
        HeaderMap::from_iter([(HeaderName::from_static(name), HeaderValue::from_static(value))])
    }

    #[test]
    fn grpc_is_told_from_anything_else() {
        for yes in ["application/grpc", "application/grpc+proto", "application/grpc;charset=utf-8"] {
            assert!(is_grpc(&with("content-type", yes)), "{yes}");
        }
        for no in ["application/json", "application/grpc-web", "application/grpcfoo", ""] {
            assert!(!is_grpc(&with("content-type", no)), "{no}");
        }
    }

    #[test]
    fn the_first_usable_encoding_is_taken() {
        let pick = |value| accepted_compression(&with("grpc-accept-encoding", value));
        assert_eq!(pick("identity,deflate, zstd ,gzip"), Some(CompressionEncoding::Zstd));
        assert_eq!(pick("identity"), None);
        let refused = request_encoding(&with("grpc-encoding", "snappy")).unwrap_err();
        assert_eq!(refused.code(), Code::Unimplemented);
    }
}
