//! The gateway from the outside: gRPC clients, a Kafka cluster, workers.
#![allow(clippy::unwrap_used, clippy::expect_used, unreachable_pub, reason = "a test fails by panicking")]

mod abuse;
mod access_log;
mod aggregate;
mod bad_input;
mod bench;
mod calls;
mod circuit;
mod console;
mod dead_letters;
mod dialects;
mod dlq;
mod formats;
mod harness;
mod idempotency;
mod kit;
#[cfg(feature = "worker-rdkafka")]
mod kit_groups;
mod lifecycle;
mod outcomes;
mod poison;
mod raw;
mod records;
#[cfg(feature = "registry-tests")]
mod registry;
mod routing;
mod security;
mod several;
mod streams;
mod traces;
mod web;
mod why;
