//! Workers: what reads request topics and replies.
//!
//! [`Kit`] is for services in production: a typed handler for each method,
//! order by key, deadlines, retries, dead letters, consumer groups. [`Worker`]
//! is for the demo, tests and benchmarks: bytes in, bytes out, no group.
//!
//! ```text
//! Kit      handlers by method, and how they are run
//!  └ engine    one task: takes records, starts handlers, commits
//!     ├ board      keyed queues, and how far each partition may be committed
//!     ├ execute    one request: deadline, repeat, attempts, dead letter, reply
//!     ├ series     one request with several replies
//!     └ Driver     where records come from and replies go
//!        ├ TransportDriver   over `transport`; every partition, no group
//!        └ rdkafka           consumer groups; feature `worker-rdkafka`
//! ```

mod answers;
mod board;
mod context;
mod driver;
mod engine;
mod error;
mod execute;
mod kit;
mod metrics;
mod outbox;
mod plain;
#[cfg(feature = "worker-rdkafka")]
pub mod rdkafka;
pub mod samples;
mod series;
mod transport_driver;
mod watermark;

pub use answers::{AnswerStore, Found, KeptAnswer, MemoryAnswers, RequestId, StoreError};
pub use context::Context;
pub use driver::{
    Destination, Driver, DriverError, Event, Inbound, Outbox, OutboxError, PartitionId, Revocation,
};
pub use engine::Ended;
pub use error::{BadRequest, Code, ErrorInfo, FieldViolation, Kind, WorkerError};
pub use kit::{DeadLetters, Handle, HandleStream, Kit, Order, Retries, Settings};
pub use metrics::{HandledLabels, Metrics, SkippedLabels};
pub use plain::{Call, Handler, Worker};
pub use series::{NobodyWaits, Replies};
pub use transport_driver::{From, TransportDriver};

#[cfg(test)]
mod tests;
