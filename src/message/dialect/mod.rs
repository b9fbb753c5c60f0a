//! Dialects: how the workers of one framework find the way back.
//!
//! A method has exactly one dialect, and a record never carries two: FastStream,
//! for one, decodes every header as UTF-8 and drops a message with a binary one.

mod spring;

use bytes::Bytes;

use super::ReplyAddress;
use crate::correlation::CorrelationId;
use crate::terms::Dialect;
use crate::transport::{HeaderName, Received};

/// What a record on the reply topic turns out to be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// The reply to this call.
    Reply(CorrelationId),
    /// A request: it asks for a reply itself. Some frameworks copy all headers
    /// of a request into its reply; some people send requests to the wrong
    /// topic.
    Request,
    /// It names no call.
    Uncorrelated,
}

/// Writes the headers by which a worker replies.
pub fn write_request(
    dialect: Dialect,
    id: CorrelationId,
    reply_to: Option<&ReplyAddress>,
    headers: &mut Vec<(HeaderName, Bytes)>,
) {
    match dialect {
        Dialect::Spring => spring::write_request(id, reply_to, headers),
    }
}

/// Looks at a record's headers alone, in every dialect there is: which call it
/// belongs to is not known before.
pub fn classify(record: &Received) -> Kind {
    spring::classify(record)
}
