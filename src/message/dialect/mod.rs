//! Dialects: how the workers of one framework find the way back, and how they
//! say that something went wrong.
//!
//! A method has exactly one dialect, and a record never carries two: FastStream,
//! for one, decodes every header as UTF-8 and drops a message with a binary one.
//! What each framework does is told, with its source, in a file of its own.

mod custom;
mod faststream;
mod nestjs;
mod smallrye;
mod spring;
mod zilla;

use std::sync::Arc;

use bytes::Bytes;

use super::reply::{DecodeError, WorkerStatus};
use super::{IDEMPOTENCY_KEY, LAST, ReplyAddress, TRACEPARENT, TRACESTATE};
use crate::correlation::{self, CorrelationId};
use crate::terms::{CorrelationForm, DialectName};
use crate::transport::{HeaderName, Received, Record};

pub use custom::Custom;

/// A framework's headers and their encodings.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Dialect {
    /// Spring for Apache Kafka; the form of its correlation ids can be chosen.
    Spring(CorrelationForm),
    /// NestJS microservices.
    Nestjs,
    /// SmallRye Reactive Messaging.
    Smallrye,
    /// FastStream.
    Faststream,
    /// Zilla.
    Zilla,
    /// As the configuration says.
    Custom(Arc<Custom>),
}

/// What a record on the reply topic turns out to be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// The reply to this call, or the end of one that came in parts.
    Reply(CorrelationId),
    /// A message for this call, which the end of the reply is to follow.
    Part(CorrelationId),
    /// A request: it asks for a reply itself. Some frameworks copy all headers
    /// of a request into its reply; some people send requests to the wrong
    /// topic.
    Request,
    /// It names no call.
    Uncorrelated,
}

/// What a header of a dialect is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Role {
    CorrelationId,
    ReplyTopic,
}

/// Spring and NestJS share the names by which a reply is found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Family {
    Spring,
    Smallrye,
    Faststream,
    Zilla,
    Custom,
}

impl Dialect {
    /// Its name in the options.
    pub fn name(&self) -> DialectName {
        match self {
            Self::Spring(_) => DialectName::Spring,
            Self::Nestjs => DialectName::Nestjs,
            Self::Smallrye => DialectName::Smallrye,
            Self::Faststream => DialectName::Faststream,
            Self::Zilla => DialectName::Zilla,
            Self::Custom(_) => DialectName::Custom,
        }
    }

    /// Whether a request can say to which partition its reply goes.
    pub fn carries_partition(&self) -> bool {
        match self {
            Self::Spring(_) | Self::Nestjs | Self::Smallrye => true,
            Self::Faststream | Self::Zilla => false,
            Self::Custom(custom) => custom.reply_partition.is_some(),
        }
    }

    /// Writes the headers by which a worker replies.
    pub fn write_request(
        &self,
        method: &Bytes,
        id: CorrelationId,
        reply_to: Option<&ReplyAddress>,
        headers: &mut Vec<(HeaderName, Bytes)>,
    ) {
        match self {
            Self::Spring(form) => spring::write_request(*form, id, reply_to, headers),
            Self::Nestjs => nestjs::write_request(id, reply_to, headers),
            Self::Smallrye => smallrye::write_request(id, reply_to, headers),
            Self::Faststream => faststream::write_request(id, reply_to, headers),
            Self::Zilla => zilla::write_request(method, id, reply_to, headers),
            Self::Custom(custom) => custom.write_request(id, reply_to, headers),
        }
    }

    /// The key of a request whose route has none.
    pub(super) fn key_without_one(&self, id: CorrelationId) -> Option<Bytes> {
        match self {
            Self::Zilla => Some(zilla::key_without_one(id)),
            _ => None,
        }
    }

    /// Names forwarded metadata as the framework does. Tracing and idempotency
    /// headers have their names in every dialect.
    pub(super) fn rename_metadata(&self, metadata: &mut [(HeaderName, Bytes)]) {
        if *self != Self::Zilla {
            return;
        }
        for (name, _) in metadata {
            if ![TRACEPARENT, TRACESTATE, IDEMPOTENCY_KEY].contains(&&**name) {
                *name = zilla::metadata_name(name);
            }
        }
    }

    /// The record that must follow a request at once, in its own partition.
    pub fn end_of_request(&self, request: &Record) -> Option<Box<Record>> {
        match self {
            Self::Zilla => Some(Box::new(zilla::end_of_request(request))),
            _ => None,
        }
    }

    /// The error that a reply holds in the framework's own way.
    pub(super) fn error_of(&self, reply: &Received) -> Result<Option<WorkerStatus>, DecodeError> {
        match self {
            Self::Spring(_) | Self::Smallrye | Self::Faststream => Ok(None),
            Self::Nestjs => Ok(nestjs::error_of(reply)),
            Self::Zilla => zilla::error_of(reply),
            Self::Custom(custom) => custom.error_of(reply),
        }
    }

    /// Whether no reply to the same call follows this one: our own header says
    /// so in every dialect but Zilla's, besides the framework's own way.
    pub(super) fn is_last(&self, reply: &Received) -> bool {
        match self {
            Self::Zilla => !zilla::is_part(reply),
            Self::Nestjs => nestjs::is_last(reply) || says_last(reply, LAST),
            Self::Custom(custom) => says_last(reply, custom.last.as_deref().unwrap_or(LAST)),
            Self::Spring(_) | Self::Smallrye | Self::Faststream => says_last(reply, LAST),
        }
    }

    /// A reply's header as it is offered to callers; `None` for one that is the
    /// framework's own.
    pub(super) fn metadata_of(&self, name: HeaderName) -> Option<HeaderName> {
        let own = match self {
            Self::Spring(_) | Self::Nestjs => name.starts_with("kafka_"),
            Self::Smallrye => smallrye::is_own(&name),
            Self::Faststream => faststream::is_own(&name),
            Self::Zilla => return zilla::metadata_of(name),
            Self::Custom(custom) => custom.is_own(&name),
        };
        (!own).then_some(name)
    }

    /// The dialect that a reply seems to be in, for those who do not know its
    /// route.
    pub fn guess(reply: &Received) -> Self {
        if reply.header(zilla::CORRELATION_ID).is_some() { Self::Zilla } else { Self::Nestjs }
    }
}

/// Whether a record's headers name a call in one of the dialects that need no
/// configuration.
pub fn names_a_call(headers: &[(HeaderName, Bytes)]) -> bool {
    headers.iter().any(|(name, _)| matches!(role_of(name, None), Some((_, Role::CorrelationId))))
}

/// The correlation id that a record names in one of the dialects, request or
/// reply.
pub fn correlation_id_of(record: &Received, custom: Option<&Custom>) -> Option<CorrelationId> {
    let ids = record.headers.iter().filter_map(|(name, value)| match role_of(name, custom) {
        Some((_, Role::CorrelationId)) => CorrelationId::parse(value),
        _ => None,
    });
    // A framework may add an id of its own making.
    let mut ids: Vec<CorrelationId> = ids.collect();
    ids.sort_by_key(|id| !id.is_of_our_form());
    ids.first().copied()
}

/// Where a request asks its reply to be sent.
pub fn reply_topic_of<'a>(record: &'a Received, custom: Option<&Custom>) -> Option<&'a Bytes> {
    let asks = |name: &str| matches!(role_of(name, custom), Some((_, Role::ReplyTopic)));
    record.headers.iter().find(|(name, _)| asks(name)).map(|(_, value)| value)
}

/// Looks at a record in every dialect there is: which call it belongs to is not
/// known before.
pub fn classify(record: &Received, custom: Option<&Custom>) -> Kind {
    let mut found: Option<(Family, CorrelationId)> = None;
    let mut asks = [false; 5];
    for (name, value) in &record.headers {
        match role_of(name, custom) {
            Some((family, Role::ReplyTopic)) => asks[family as usize] = true,
            Some((family, Role::CorrelationId)) => {
                let Some(id) = CorrelationId::parse(value) else { continue };
                // A framework may add an id of its own making.
                let better = found.is_none_or(|(_, other)| !other.is_of_our_form() && id.is_of_our_form());
                if better {
                    found = Some((family, id));
                }
            }
            None => {}
        }
    }
    match found {
        Some((family, _)) if asks[family as usize] => Kind::Request,
        Some((Family::Zilla, id)) if zilla::is_part(record) => Kind::Part(id),
        Some((_, id)) => Kind::Reply(id),
        None if asks.contains(&true) => Kind::Request,
        None => Kind::Uncorrelated,
    }
}

/// Whether a record is certainly the reply to another instance's call, by its
/// correlation id alone.
pub fn is_foreign(record: &Received, instance: u16, custom: Option<&Custom>) -> bool {
    let mut found = false;
    for (name, value) in &record.headers {
        if let Some((_, Role::CorrelationId)) = role_of(name, custom) {
            if !correlation::is_foreign(value, instance) {
                return false;
            }
            found = true;
        }
    }
    found
}

fn role_of(name: &str, custom: Option<&Custom>) -> Option<(Family, Role)> {
    if let Some(role) = custom.and_then(|custom| custom.role_of(name)) {
        return Some((Family::Custom, role));
    }
    Some(match name {
        spring::CORRELATION_ID => (Family::Spring, Role::CorrelationId),
        spring::REPLY_TOPIC => (Family::Spring, Role::ReplyTopic),
        smallrye::CORRELATION_ID => (Family::Smallrye, Role::CorrelationId),
        smallrye::REPLY_TOPIC => (Family::Smallrye, Role::ReplyTopic),
        faststream::CORRELATION_ID => (Family::Faststream, Role::CorrelationId),
        faststream::REPLY_TO => (Family::Faststream, Role::ReplyTopic),
        zilla::CORRELATION_ID => (Family::Zilla, Role::CorrelationId),
        zilla::REPLY_TO => (Family::Zilla, Role::ReplyTopic),
        _ => return None,
    })
}

/// `true` is the word; `false` says the same as no header.
fn says_last(reply: &Received, header: &str) -> bool {
    reply.header(header).is_some_and(|value| !value.is_empty() && !value.eq_ignore_ascii_case(b"false"))
}

fn text_id(id: CorrelationId) -> Bytes {
    Bytes::copy_from_slice(&id.to_text())
}

fn int32(number: i32) -> Bytes {
    Bytes::copy_from_slice(&number.to_be_bytes())
}

#[cfg(test)]
mod tests;
