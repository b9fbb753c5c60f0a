//! Payload formats: how a message is written into a record's value, and read
//! out of one. gRPC's side is always protobuf.
//!
//! | format | value | `content-type` |
//! |---|---|---|
//! | `protobuf` | the bytes of the gRPC message, untouched | `application/protobuf` |
//! | `json` | the proto3 JSON mapping | `application/json` |
//! | `confluent-protobuf` | magic byte, schema id, message index, and the bytes of the message | `application/vnd.confluent.protobuf` |

pub mod confluent;
mod json;

use std::sync::Arc;

use bytes::Bytes;
use prost_reflect::MessageDescriptor;

use super::PROTOBUF;
use super::reply::DecodeError;
use crate::route;
use crate::terms::FormatName;

pub use confluent::Framing;
pub use json::JsonOptions;

/// A route's payload format.
#[derive(Debug, Clone)]
pub enum Format {
    /// The bytes of the gRPC message, untouched.
    Protobuf,
    /// The proto3 JSON mapping.
    Json(JsonOptions),
    /// Confluent's framing around the bytes of the message.
    ConfluentProtobuf(Arc<Framing>),
}

/// Why a message can't be written in a route's format.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum EncodeError {
    /// It is not what its type says.
    #[error("it is no {message_type}: {cause}")]
    NotItsType {
        /// Full name of the type.
        message_type: String,
        /// Why.
        cause: String,
    },
    /// JSON has no form for it.
    #[error("it can't be written as JSON: {0}")]
    NoJson(String),
    /// The schema's id was never found out; a defect of ours.
    #[error("the schema id of subject {0} is not known")]
    NoSchemaId(String),
}

impl Format {
    /// Its name in the options.
    pub const fn name(&self) -> FormatName {
        match self {
            Self::Protobuf => FormatName::Protobuf,
            Self::Json(_) => FormatName::Json,
            Self::ConfluentProtobuf(_) => FormatName::ConfluentProtobuf,
        }
    }

    /// Media type of the value.
    pub const fn content_type(&self) -> &'static str {
        match self {
            Self::Protobuf => PROTOBUF,
            Self::Json(_) => "application/json",
            Self::ConfluentProtobuf(_) => "application/vnd.confluent.protobuf",
        }
    }

    /// A message as the value of a request.
    pub fn encode(&self, input: &MessageDescriptor, message: Bytes) -> Result<Bytes, EncodeError> {
        match self {
            Self::Protobuf => Ok(message),
            Self::Json(options) => json::encode(*options, input, message),
            Self::ConfluentProtobuf(framing) => framing.encode(&message),
        }
    }

    /// The message in the value of a reply. Whether the schema that it names is
    /// the right one is not looked at here.
    pub fn decode(&self, output: &MessageDescriptor, value: Bytes) -> Result<Bytes, DecodeError> {
        match self {
            Self::Protobuf => proved(output, value),
            Self::Json(_) => json::decode(output, &value),
            Self::ConfluentProtobuf(_) => {
                confluent::split(&value).and_then(|(_, message)| proved(output, message))
            }
        }
    }
}

/// A reply that is no message at all, such as an error page, is the worker's
/// fault and is told as such; its caller could only say that it can't be parsed.
fn proved(output: &MessageDescriptor, value: Bytes) -> Result<Bytes, DecodeError> {
    match route::validate(&value) {
        Ok(()) => Ok(value),
        Err(cause) => Err(DecodeError::Message {
            message_type: output.full_name().to_owned(),
            cause,
            guess: guess(&value),
        }),
    }
}

/// What it may be instead. The value itself is not for logs.
fn guess(value: &[u8]) -> &'static str {
    match value.first() {
        Some(b'{' | b'[') => "; it looks like JSON",
        Some(b'<') => "; it looks like HTML or XML",
        _ => "",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reply_that_is_no_message_is_told_as_such() {
        let pool = prost_reflect::DescriptorPool::global();
        let output = pool.get_message_by_name("google.protobuf.Timestamp").unwrap();
        for good in [&b""[..], b"\x08\x01"] {
            let value = Bytes::copy_from_slice(good);
            assert_eq!(Format::Protobuf.decode(&output, value.clone()), Ok(value));
        }
        let garbage =
            [("<html>502</html>", "HTML or XML"), ("{\"error\":1}", "JSON"), ("\u{8}", "Truncated")];
        for (garbage, looks) in garbage {
            let error = Format::Protobuf.decode(&output, Bytes::from(garbage)).unwrap_err();
            let text = format!("{error} {error:?}");
            assert!(text.starts_with("its value is no google.protobuf.Timestamp: "), "{text}");
            assert!(text.contains(looks), "{text}");
        }
    }
}
