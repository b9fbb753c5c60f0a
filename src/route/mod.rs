//! From gRPC methods to topics: descriptors, options and settings in, a route
//! table out.
//!
//! Pure: it reads the files that it is given and nothing else, and knows
//! neither gRPC servers nor Kafka clients.

mod field_path;
mod mistake;
mod wire;
mod words;

pub use field_path::{FieldPath, FieldPathError};
pub use mistake::{Mistake, Mistakes, Origin, did_you_mean};
pub use wire::{WireError, validate};
pub use words::{
    DURATION_HINT, DurationError, TOPIC_HINT, TopicError, check_topic, parse_duration, show_duration,
};
