//! The console: pages for operators, beside metrics on the admin listener.
//!
//! ```text
//! browser ──► door ──► page ── what this process knows ──► exchange, metrics, routes
//!              │         └──── what lies in Kafka ──► desk ──► dead_letters, why
//!              └ who may come in, and from where a form may
//! ```
//!
//! Rendered here, escaped by the template; styles and script are files of their
//! own in this binary, and the policy of each page allows no others. What is
//! asked of Kafka runs on a thread of its own, a few questions at a time, each
//! with a deadline: whoever looks can't harm calls.

mod calls;
mod desk;
mod door;
mod instances;
mod letters;
mod overview;
mod page;
mod rates;
mod replay;
mod routes;
mod story;

use std::sync::Arc;

use axum::Router;
use axum::extract::DefaultBodyLimit;
use axum::http::header;
use axum::middleware::from_fn_with_state;
use axum::response::{IntoResponse, Redirect, Response};
use axum::routing::get;

use crate::admin::Admin;
use crate::exchange::Instance;
use crate::route::RouteTable;
use crate::terms::{Compression, ReplyRouting};

pub use desk::{Desk, DeskWork, Kafka};
use door::Door;
pub use rates::Rates;

/// Bytes of a form that is sent here.
const FORM_BYTES_MAX: usize = 16 << 10;

/// What the console is made of.
#[derive(Debug)]
pub struct Parts {
    /// Whose pages are beside it, and who may see them.
    pub admin: Admin,
    /// Whether only this host reaches the listener.
    pub is_loopback: bool,
    /// Random bytes that no other page knows.
    pub secret: [u8; 32],
    /// The routes.
    pub routes: Arc<RouteTable>,
    /// How replies come back.
    pub routing: ReplyRouting,
    /// What the names of reply topics begin with.
    pub reply_prefix: String,
    /// How requests that are sent again are compressed.
    pub compression: Compression,
    /// Where Kafka is asked.
    pub desk: Desk,
    /// What was counted lately.
    pub rates: Arc<Rates>,
}

/// All that a page is made from.
#[derive(Debug, Clone)]
struct Console(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    admin: Admin,
    door: Door,
    routes: Arc<RouteTable>,
    routing: ReplyRouting,
    reply_prefix: String,
    compression: Compression,
    desk: Desk,
    rates: Arc<Rates>,
    /// One request is sent again at a time, so that nobody sends one twice
    /// because both looked before either had sent.
    replaying: tokio::sync::Mutex<()>,
}

impl std::ops::Deref for Console {
    type Target = Inner;

    fn deref(&self) -> &Inner {
        &self.0
    }
}

impl Inner {
    fn instance(&self) -> &Arc<Instance> {
        &self.admin.instance
    }
}

/// The pages, below `/console`.
pub fn pages(parts: Parts) -> Router {
    let Parts { admin, is_loopback, secret, routes, routing, reply_prefix, compression, desk, rates } = parts;
    let door = Door::new(admin.token.clone(), is_loopback, secret);
    let replaying = tokio::sync::Mutex::new(());
    let inner = Inner { admin, door, routes, routing, reply_prefix, compression, desk, rates, replaying };
    let console = Console(Arc::new(inner));
    let letter = "/console/letters/{topic}/{partition}/{offset}";
    Router::new()
        .route("/", get(async || Redirect::temporary("/console")))
        .route("/console", get(overview::page))
        .route("/console/routes", get(routes::page))
        .route("/console/calls", get(calls::page))
        .route("/console/instances", get(instances::page))
        .route("/console/letters", get(letters::list))
        .route(letter, get(letters::one))
        .route(&format!("{letter}/replay"), get(replay::ask).post(replay::send))
        .route("/console/why", get(story::page))
        .route("/console/login", get(door::form).post(door::sign_in))
        .route("/console/logout", axum::routing::post(door::sign_out))
        // Of these pages alone: what is no page is the admin listener's to answer.
        .route_layer(DefaultBodyLimit::max(FORM_BYTES_MAX))
        .route_layer(from_fn_with_state(console.clone(), door::guard))
        .route("/console/console.css", get(async || file("text/css", include_str!("assets/console.css"))))
        .route(
            "/console/console.js",
            get(async || file("text/javascript", include_str!("assets/console.js"))),
        )
        .route("/console/icon.svg", get(async || file("image/svg+xml", include_str!("assets/icon.svg"))))
        .route_layer(axum::middleware::from_fn(page::with_policy))
        .with_state(console)
}

/// A file of the console, which knows nothing of the instance.
fn file(kind: &'static str, text: &'static str) -> Response {
    let headers = [(header::CONTENT_TYPE, format!("{kind}; charset=utf-8"))];
    (headers, [(header::CACHE_CONTROL, "no-cache")], text).into_response()
}
