//! The gateway from the outside: gRPC clients, a Kafka cluster, workers.

mod bad_input;
mod calls;
mod harness;
mod lifecycle;
mod poison;
mod raw;
