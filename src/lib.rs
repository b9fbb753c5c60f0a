//! Antiphon: a gRPC façade over Kafka request-reply.
//!
//! The rooms by layer, from the ground up; a room imports only rooms of layers
//! above its own in this list (`tests/tidy.rs` sees to that). ARCHITECTURE.md tells
//! the way of one call through them.

// Words.
pub mod access_log;
pub mod backoff;
pub mod correlation;
pub mod deadline;
pub mod limits;
pub mod metrics;
pub mod pem;
pub mod supervisor;
pub mod terms;
pub mod traces;
pub mod web_client;

// Pure.
pub mod access;
pub mod message;
pub mod route;
pub mod transport;

// State.
pub mod pending;

// Flow.
pub mod dead_letters;
pub mod exchange;
pub mod why;
pub mod worker;

// Edges.
pub mod admin;
pub mod console;
#[cfg(feature = "dev-broker")]
pub mod dev_broker;
pub mod ingress;
pub mod kafka;
pub mod registry;
pub mod telemetry;

// Composition.
pub mod app;
pub mod config;
