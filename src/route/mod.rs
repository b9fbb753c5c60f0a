//! From gRPC methods to topics: descriptors, options and settings in, a route
//! table out.
//!
//! ```text
//! .proto files ──┐ sources   ┌── options: what the .proto sets, and where
//! descriptor sets┴──────────►│
//! settings (TOML) ──────────►└── compile: judged, layer over layer ──► RouteTable
//! ```
//!
//! Pure: it reads the files that it is given and nothing else, and knows
//! neither gRPC servers nor Kafka clients. Of two settings for one method the
//! nearest wins: the settings' method section, their service section, the
//! method's option, the service's option, the default.

mod table;

mod compile;
mod options;
mod replies;
mod settings;
mod sources;

mod field_path;
mod wire;

mod mistake;
mod words;

pub use compile::compile;
pub use field_path::{FieldPath, FieldPathError};
pub use mistake::{Mistake, Mistakes, Origin, did_you_mean};
pub use settings::{Overlay, Settings, Sourced};
pub use sources::Sources;
pub use table::{Delivery, Idempotency, Lookup, Partitioning, Replies, Route, RouteTable};
pub use wire::{WireError, validate};
pub use words::{
    DURATION_HINT, DurationError, TOPIC_HINT, TopicError, check_topic, parse_duration, show_duration,
};

use table::Entry;

#[cfg(test)]
mod tests;
