//! The gRPC edge: connections in, calls to the exchange, answers out.
//!
//! ```text
//! acceptor ──► least busy shard ──► hyper HTTP/2 ──► service ─┬─ unary, streaming ──► exchange
//!                               └─► HTTP/1.1 ──► web ────┘    │
//!                                                             ├─ grpc.health.v1
//!                                                             └─ grpc.reflection.v1, v1alpha
//! ```
//!
//! Messages, compression and status come from tonic; the connection is hyper's,
//! which tonic uses too, because tonic's own server answers `grpc-timeout` by
//! dropping the call, and a call that is dropped can't tell its caller whether
//! the payment was sent.

mod account;
pub mod config;
mod connection;
mod guard;
mod health;
mod lobby;
mod message;
pub mod metadata;
mod pace;
mod service;
mod spans;
mod status;
mod streaming;
mod tls;
mod unary;
mod untaken;
mod web;

pub use account::Ear;
pub use connection::{Acceptor, Lifecycle, Seat, serve_shard};
pub use guard::Guard;
pub use health::Health;
pub use service::{Reflection, Service};
pub use tls::{Refresher, Tls, TlsError, tls};
