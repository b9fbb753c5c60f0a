//! The gateway from the outside: gRPC clients, a Kafka cluster, workers.

mod calls;
mod harness;
