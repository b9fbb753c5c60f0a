//! Traces: the context that travels with calls.

mod context;

pub use context::Context;
