//! The admin listener: metrics, live and ready over HTTP.
//!
//! | path | answer |
//! |---|---|
//! | `/live` | 200 while the process runs |
//! | `/ready` | 200 when calls are accepted, else 503; with what stands in the way of replies |
//! | `/metrics` | OpenMetrics text |
//! | `/log` | what is logged; `PUT` changes it, `DELETE` brings back what is configured |
//!
//! `console` puts its pages beside these, and guards them itself.
//!
//! With `admin.token_file` requests must carry its token. Probes have none: for
//! them `/live` and `/ready` are answered without, and `/ready` keeps its reason
//! to itself.

pub mod config;
mod log;
mod token;

use std::borrow::Cow;
use std::sync::Arc;

use axum::Router;
use axum::extract::{DefaultBodyLimit, State};
use axum::http::{HeaderMap, StatusCode, header};
use axum::middleware::from_fn_with_state;
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use tokio::net::TcpListener;

use crate::exchange::{Instance, Phase};
use crate::ingress::Acceptor;

pub use token::Token;

/// The body of a request, in bytes.
const BODY_BYTES_MAX: usize = 16 * 1_024;

/// What the admin listener shows.
#[derive(Debug, Clone)]
pub struct Admin {
    /// The instance.
    pub instance: Arc<Instance>,
    /// Its connections.
    pub acceptor: Arc<Acceptor>,
    /// What requests must carry.
    pub token: Token,
}

impl Admin {
    /// Pages about an instance and its connections.
    pub fn new(config: &config::Config, instance: Arc<Instance>, acceptor: Arc<Acceptor>) -> Self {
        Self { instance, acceptor, token: Token::new(config.token_file.clone()) }
    }

    /// Serves these pages, and others beside them, until dropped.
    pub async fn serve(self, listener: TcpListener, beside: Router) {
        let own = Router::new()
            .route("/live", get(async || "live\n"))
            .route("/ready", get(ready))
            .route("/metrics", get(metrics))
            .route("/log", get(log::show).put(log::set).delete(log::reset))
            // Behind the token, too, and before those of other pages.
            .fallback(async || StatusCode::NOT_FOUND)
            .layer(DefaultBodyLimit::max(BODY_BYTES_MAX))
            .layer(from_fn_with_state(self.token.clone(), token::ask))
            .with_state(self);
        // What neither has is answered by ours, which asks for the token: of two
        // routers that are merged the one that is added has that word.
        let router = beside.merge(own);
        if let Err(error) = axum::serve(listener, router).await {
            tracing::error!(%error, "admin listener ended");
        }
    }
}

async fn ready(State(admin): State<Admin>, headers: HeaderMap) -> (StatusCode, Cow<'static, str>) {
    if let Some(trouble) = admin.instance.trouble()
        && admin.token.is_in(&headers)
    {
        match admin.instance.phase() {
            Phase::NotReady => {
                return (StatusCode::SERVICE_UNAVAILABLE, format!("not ready: {trouble}\n").into());
            }
            // Heartbeats came back until a moment ago.
            Phase::Ready => return (StatusCode::OK, format!("ready, but in trouble: {trouble}\n").into()),
            Phase::Leaving | Phase::Draining => {}
        }
    }
    let (code, text) = match admin.instance.phase() {
        Phase::Ready => (StatusCode::OK, "ready\n"),
        Phase::NotReady => (
            StatusCode::SERVICE_UNAVAILABLE,
            "not ready: no heartbeat has come back from the reply topic lately\n",
        ),
        Phase::Leaving => (StatusCode::SERVICE_UNAVAILABLE, "about to drain\n"),
        Phase::Draining => (StatusCode::SERVICE_UNAVAILABLE, "draining\n"),
    };
    (code, text.into())
}

async fn metrics(State(admin): State<Admin>) -> Response {
    let metrics = &admin.instance.metrics;
    admin.instance.observe();
    metrics.connections.set(i64::from(admin.acceptor.open()));
    let content_type = "application/openmetrics-text; version=1.0.0; charset=utf-8";
    ([(header::CONTENT_TYPE, content_type)], metrics.render()).into_response()
}
