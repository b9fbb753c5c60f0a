//! gRPC-Web: the same calls from a browser, over HTTP/1.1 or HTTP/2.
//!
//! tonic-web translates ([the protocol][spec]: trailers at the end of the body,
//! and base64 where the caller asks for text), tower-http answers the browser's
//! preflight questions ([CORS][cors]). Off unless `grpc.web_origins` names
//! somebody: a page of another origin is refused here, not only by its browser.
//!
//! [spec]: https://github.com/grpc/grpc/blob/master/doc/PROTOCOL-WEB.md
//! [cors]: https://fetch.spec.whatwg.org/#http-cors-protocol

use std::convert::Infallible;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use http::{HeaderMap, HeaderName, HeaderValue, Method, Request, Response, StatusCode, header};
use hyper::body::Incoming;
use tonic::body::Body;
use tonic_web::{GrpcWebLayer, GrpcWebService};
use tower::Layer as _;
use tower_http::cors::{AllowHeaders, AllowOrigin, Any, Cors, CorsLayer};

use super::config::Config;
use super::service::{Answering, Service};
use super::status;

/// How long a browser may remember the answer to its preflight question.
const PREFLIGHT_MAX_AGE: Duration = Duration::from_secs(2 * 60 * 60);
/// Names every origin.
const ANY: &str = "*";

/// Who may call from a browser, and what it is told.
#[derive(Debug, Clone)]
pub(super) struct Web {
    /// `None`: everybody.
    origins: Option<Arc<[HeaderValue]>>,
    cors: CorsLayer,
}

impl Web {
    /// `None` where no origin is named.
    pub(super) fn new(config: &Config) -> Option<Self> {
        if config.web_origins.is_empty() {
            return None;
        }
        let any = config.web_origins.iter().any(|origin| origin == ANY);
        // The configuration has refused what is no header value.
        let origins: Arc<[HeaderValue]> =
            config.web_origins.iter().filter_map(|origin| HeaderValue::from_str(origin).ok()).collect();
        let allow = if any { AllowOrigin::from(Any) } else { AllowOrigin::list(origins.to_vec()) };
        let returned = config.metadata_return.iter().chain(&config.trailers_return);
        let returned = returned.filter_map(|name| name.parse().ok());
        let exposed: Vec<HeaderName> = status::TRAILERS.into_iter().chain(returned).collect();
        let cors = CorsLayer::new()
            .allow_origin(allow)
            .allow_methods([Method::POST])
            // What is forwarded is decided by the allow-list, not by the browser.
            .allow_headers(AllowHeaders::mirror_request())
            .expose_headers(exposed)
            .max_age(PREFLIGHT_MAX_AGE);
        Some(Self { origins: (!any).then_some(origins), cors })
    }

    /// `service`, as a browser sees it.
    pub(super) fn around(&self, service: Service) -> WebService {
        let layered = self.cors.layer(GrpcWebLayer::new().layer(service));
        WebService { origins: self.origins.clone(), layered }
    }
}

/// Whether a request is for [`WebService`], when it comes over HTTP/2, where
/// plain gRPC comes, too.
pub(super) fn is_web(method: &Method, headers: &HeaderMap) -> bool {
    let content_type = headers.get(header::CONTENT_TYPE).map(HeaderValue::as_bytes);
    content_type.is_some_and(|value| value.starts_with(b"application/grpc-web"))
        || *method == Method::OPTIONS && headers.contains_key(header::ACCESS_CONTROL_REQUEST_METHOD)
}

/// Answers gRPC-Web and preflight questions.
#[derive(Clone)]
pub(super) struct WebService {
    origins: Option<Arc<[HeaderValue]>>,
    layered: Cors<GrpcWebService<Service>>,
}

impl WebService {
    fn is_welcome(&self, headers: &HeaderMap) -> bool {
        match (headers.get(header::ORIGIN), &self.origins) {
            (Some(origin), Some(allowed)) => allowed.contains(origin),
            // Not from a page of another origin, or all are welcome.
            _ => true,
        }
    }
}

impl tower::Service<Request<Incoming>> for WebService {
    type Response = Response<Body>;
    type Error = Infallible;
    type Future = Answering;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<Incoming>) -> Answering {
        if self.is_welcome(request.headers()) {
            return Box::pin(self.layered.call(request));
        }
        let mut refused = Response::new(Body::empty());
        *refused.status_mut() = StatusCode::FORBIDDEN;
        Box::pin(std::future::ready(Ok(refused)))
    }
}
