//! Which part of the edge answers a request, by its path alone.

use std::convert::Infallible;
use std::future::Future;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use http::{Request, Response};
use hyper::body::Incoming;
use tonic::Status;
use tonic::body::Body;
use tonic_health::pb::health_server::HealthServer;
use tonic_health::server::HealthService;
use tower::ServiceExt as _;
use tower::util::BoxCloneSyncService;

use super::account::{Books, Callee, Ear, Peer};
use super::config::Config;
use super::guard::{Guard, Refused};
use super::health::Health;
use super::message::RequestBody;
use super::metadata::Allowed;
use super::streaming;
use super::unary::{Unary, is_grpc, not_grpc};
use super::untaken::Untaken;
use super::web::{Web, WebService, is_web};
use crate::access::{Claims, Names};
use crate::exchange::Exchange;
use crate::route::{Lookup, RouteTable};

/// What is kept of the path of an unknown method.
const PATH_CHARS_MAX: usize = 200;

type Mounted = BoxCloneSyncService<Request<Body>, Response<Body>, Infallible>;
pub(super) type Answering = Pin<Box<dyn Future<Output = Result<Response<Body>, Infallible>> + Send>>;

/// The reflection services, built once and shared by the shards.
#[derive(Clone)]
pub struct Reflection {
    v1: Mounted,
    v1alpha: Mounted,
}

impl Reflection {
    /// Reflection over all files of the route table, over the health protocol,
    /// and over the details of errors, which grpcurl and its like show as bytes
    /// where the server can't say what they are.
    pub fn new(routes: &RouteTable) -> Result<Self, tonic_reflection::server::Error> {
        let files = routes.descriptor_set();
        let builder = || {
            tonic_reflection::server::Builder::configure()
                .register_encoded_file_descriptor_set(&files)
                .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET)
                .register_encoded_file_descriptor_set(tonic_types::pb::FILE_DESCRIPTOR_SET)
        };
        let mut v1 = builder();
        let mut v1alpha = builder();
        for service in routes.services().chain(["grpc.health.v1.Health"]) {
            v1 = v1.with_service_name(service);
            v1alpha = v1alpha.with_service_name(service);
        }
        Ok(Self {
            v1: BoxCloneSyncService::new(v1.build_v1()?),
            v1alpha: BoxCloneSyncService::new(v1alpha.build_v1alpha()?),
        })
    }
}

/// Answers every request of one shard.
#[derive(Clone)]
pub struct Service {
    inner: Arc<Inner>,
    peer: Arc<Peer>,
}

struct Inner {
    routes: Arc<RouteTable>,
    unary: Unary,
    books: Arc<Books>,
    health: HealthServer<HealthService>,
    reflection: Option<Reflection>,
    web: Option<Web>,
    guard: Option<Arc<Guard>>,
}

impl Service {
    /// A service that hands calls to `exchange`.
    pub fn new(
        config: &Config,
        routes: Arc<RouteTable>,
        exchange: Arc<Exchange>,
        health: &Health,
        reflection: Option<Reflection>,
        guard: Option<Arc<Guard>>,
        ear: Ear,
    ) -> Self {
        let allowed =
            Allowed::new(&config.metadata_forward, &config.metadata_return, &config.trailers_return);
        let books = Books::new(Arc::clone(exchange.instance()), &routes, ear);
        let unary = Unary::new(exchange, allowed, config.message_bytes_max);
        let web = Web::new(config);
        let inner = Inner { routes, unary, books, health: health.server(), reflection, web, guard };
        Self { inner: Arc::new(inner), peer: Arc::default() }
    }

    /// The same for one connection, from this address, by whose certificate the
    /// caller has these names.
    pub(super) fn for_connection(&self, address: Option<SocketAddr>, names: Option<Names>) -> Self {
        let peer = Peer { address, names, untaken: Arc::default() };
        Self { inner: Arc::clone(&self.inner), peer: Arc::new(peer) }
    }

    /// Replies that this connection's caller has yet to take.
    pub(super) fn untaken(&self) -> Arc<Untaken> {
        Arc::clone(&self.peer.untaken)
    }

    fn answering<B: RequestBody>(&self, request: Request<B>) -> Answering {
        let Self { inner, peer } = self.clone();
        Box::pin(async move { Ok(inner.answer(&peer, request).await) })
    }

    /// The same for browsers, where they may come.
    pub(super) fn web(&self) -> Option<WebService> {
        self.inner.web.as_ref().map(|web| web.around(self.clone()))
    }
}

impl tower::Service<Request<Incoming>> for Service {
    type Response = Response<Body>;
    type Error = Infallible;
    type Future = Answering;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<Incoming>) -> Answering {
        if let Some(web) = &self.inner.web
            && is_web(request.method(), request.headers())
        {
            return web.around(self.clone()).call(request);
        }
        self.answering(request)
    }
}

/// What gRPC-Web has been translated into.
impl tower::Service<Request<Body>> for Service {
    type Response = Response<Body>;
    type Error = Infallible;
    type Future = Answering;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<Body>) -> Answering {
        self.answering(request)
    }
}

impl Inner {
    async fn answer<B: RequestBody>(&self, peer: &Arc<Peer>, request: Request<B>) -> Response<Body> {
        let found = self.routes.lookup(request.uri().path());
        let claims = match self.admit(peer, &request) {
            Ok(claims) => claims,
            Err(Refused { status, claims }) => return self.turn_away(&status, &request, peer, claims),
        };
        match found {
            Lookup::Route(_) if !is_grpc(request.headers()) => not_grpc(),
            Lookup::Route(route) => {
                let callee = Callee::Route(Arc::clone(route));
                let account = self.books.open(callee, peer, claims, request.headers());
                if route.is_stream() {
                    // Boxed: else every call would have to carry it.
                    Box::pin(streaming::answer(&self.unary, route, request, account)).await
                } else {
                    self.unary.answer(route, request, account).await
                }
            }
            Lookup::Streaming { server } => self.turn_away(&not_served(server), &request, peer, claims),
            Lookup::UnknownMethod | Lookup::UnknownService => self.other(request, peer, claims).await,
        }
    }

    fn admit<B>(&self, peer: &Peer, request: &Request<B>) -> Result<Option<Arc<Claims>>, Refused> {
        match &self.guard {
            Some(guard) => guard.admit(peer.names.as_ref(), request.uri().path(), request.headers()),
            None => Ok(None),
        }
    }

    /// Ends a call that reaches no exchange.
    fn turn_away<B>(
        &self,
        status: &Status,
        request: &Request<B>,
        peer: &Arc<Peer>,
        claims: Option<Arc<Claims>>,
    ) -> Response<Body> {
        let path = request.uri().path();
        let callee = match self.routes.lookup(path) {
            Lookup::Route(route) => Callee::Route(Arc::clone(route)),
            _ => Callee::Other(path.chars().take(PATH_CHARS_MAX).collect()),
        };
        self.books.open(callee, peer, claims, request.headers()).ends(status, false);
        status.clone().into_http()
    }

    /// Not in the route table: one of our own services, or nothing.
    async fn other<B: RequestBody>(
        &self,
        request: Request<B>,
        peer: &Arc<Peer>,
        claims: Option<Arc<Claims>>,
    ) -> Response<Body> {
        let path = request.uri().path();
        let mounted = match (path.split('/').nth(1), &self.reflection) {
            (Some("grpc.health.v1.Health"), _) => BoxCloneSyncService::new(self.health.clone()),
            (Some("grpc.reflection.v1.ServerReflection"), Some(reflection)) => reflection.v1.clone(),
            (Some("grpc.reflection.v1alpha.ServerReflection"), Some(reflection)) => {
                reflection.v1alpha.clone()
            }
            _ if !is_grpc(request.headers()) => return not_grpc(),
            _ => return self.turn_away(&unknown(&self.routes, path), &request, peer, claims),
        };
        match mounted.oneshot(request.map(Body::new)).await {
            Ok(response) => response,
            Err(never) => match never {},
        }
    }
}

fn unknown(routes: &RouteTable, path: &str) -> Status {
    let path: String = path.chars().take(PATH_CHARS_MAX).collect();
    let message = match routes.lookup(&path) {
        Lookup::UnknownMethod => format!("{path}: the service has no such method"),
        _ => format!("{path}: no such service here"),
    };
    Status::unimplemented(message)
}

fn not_served(server: bool) -> Status {
    let kind = if server { "bidirectional streaming" } else { "client streaming" };
    Status::unimplemented(format!("{kind} methods are not served: a request is one record"))
}
