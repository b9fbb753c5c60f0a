//! The path of a request field, `order.id`, and how its value is read straight
//! from the bytes of a message.
//!
//! What counts as absent: a field that is not there, and a string or bytes
//! field that is empty, give no value at all, and so a record without a key. A
//! number, enum or bool without presence (proto3 without `optional`) that is
//! not on the wire is 0 by definition, and 0 is a legal id: it gives `0`, as
//! long as the message it is in is there.

use std::borrow::Cow;
use std::fmt;
use std::ops::Range;
use std::sync::Arc;

use prost_reflect::{FieldDescriptor, Kind, MessageDescriptor};

use super::mistake::did_you_mean;
use super::wire::{Payload, Walk, WireError};
use crate::limits::FIELD_PATH_STEPS_MAX;

/// Path of one singular scalar field of a message.
#[derive(Clone)]
pub struct FieldPath {
    text: Arc<str>,
    /// Sub-messages to go through, outermost first.
    parents: Arc<[Step]>,
    leaf: Step,
    kind: Scalar,
    /// Whether absence is 0 rather than nothing.
    zero_when_absent: bool,
}

/// One field to look for at one depth.
#[derive(Debug, Clone)]
struct Step {
    number: u32,
    /// The other members of its oneof: any of them on the wire undoes it.
    rivals: Arc<[u32]>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Scalar {
    Bool,
    Int32,
    Int64,
    Uint32,
    Uint64,
    Sint32,
    Sint64,
    Fixed32,
    Fixed64,
    Sfixed32,
    Sfixed64,
    String,
    Bytes,
}

/// Why a path names no field whose value can be read.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum FieldPathError {
    /// No such field.
    #[error("{message} has no field {field:?}")]
    Unknown {
        /// Message in which it was looked for.
        message: String,
        /// Its name.
        field: String,
        /// A field with a name like it.
        hint: Option<String>,
    },
    /// A list or a map, at the end or on the way.
    #[error("field {field:?} of {message} is {what}")]
    Many {
        /// Message that has the field.
        message: String,
        /// Its name.
        field: String,
        /// What it is.
        what: &'static str,
    },
    /// A message, a group or a number with a fraction, at the end.
    #[error("field {field:?} of {message} is {what}, and only string, bytes, integer, bool and enum will do")]
    Leaf {
        /// Message that has the field.
        message: String,
        /// Its name.
        field: String,
        /// What it is.
        what: &'static str,
    },
    /// A field on the way that has no fields.
    #[error("field {field:?} of {message} has no fields of its own")]
    Through {
        /// Message that has the field.
        message: String,
        /// Its name.
        field: String,
    },
    /// Too many steps.
    #[error("the path has more than {FIELD_PATH_STEPS_MAX} steps")]
    TooDeep,
}

impl FieldPathError {
    /// What could have been meant.
    pub fn hint(&self) -> Option<String> {
        match self {
            Self::Unknown { hint, .. } => hint.clone(),
            _ => None,
        }
    }
}

impl FieldPath {
    /// Finds `order.id` among the fields of a message type.
    ///
    /// # Errors
    /// When the path does not lead to a singular scalar field.
    pub fn new(message: &MessageDescriptor, path: &str) -> Result<Self, FieldPathError> {
        let mut names: Vec<&str> = path.split('.').collect();
        if names.len() > FIELD_PATH_STEPS_MAX {
            return Err(FieldPathError::TooDeep);
        }
        let leaf_name = names.pop().unwrap_or_default();
        let mut message = message.clone();
        let mut parents = Vec::with_capacity(names.len());
        for name in names {
            let field = singular(&message, name)?;
            parents.push(Step::of(&field));
            message = match field.kind() {
                Kind::Message(inner) if !field.is_group() => inner,
                _ => return Err(through(&message, name)),
            };
        }
        let field = singular(&message, leaf_name)?;
        let kind = Scalar::of(&field).map_err(|what| FieldPathError::Leaf {
            message: message.full_name().to_owned(),
            field: leaf_name.to_owned(),
            what,
        })?;
        Ok(Self {
            text: path.into(),
            parents: parents.into(),
            leaf: Step::of(&field),
            kind,
            zero_when_absent: !field.supports_presence() && !kind.is_text(),
        })
    }

    /// The path as it was written.
    pub fn as_str(&self) -> &str {
        &self.text
    }

    /// Whether the value is a whole number, as a partition must be.
    pub fn is_integer(&self) -> bool {
        !self.kind.is_text() && self.kind != Scalar::Bool
    }

    /// The field's value in an encoded message: strings and bytes as they are,
    /// everything else in decimal ASCII, bools as 0 and 1. As protobuf has it,
    /// the last value wins, repeated sub-messages merge, and a later member of
    /// a oneof undoes an earlier one. `None` when the field is absent or empty.
    ///
    /// # Errors
    /// When the bytes on the way to the value are not protobuf.
    pub fn extract<'a>(&self, message: &'a [u8]) -> Result<Option<Cow<'a, [u8]>>, WireError> {
        let found = self.find(message)?;
        if self.kind.is_text() {
            return self.text_of(message, found.leaf);
        }
        Ok(self.number_of(&found).map(|(_, number)| Cow::Owned(number.to_string().into_bytes())))
    }

    /// The value of an integer field, for a partition. `None` when the field is
    /// absent, or no integer.
    ///
    /// # Errors
    /// When the bytes on the way to the value are not protobuf, or the number
    /// is above `i64::MAX`.
    pub fn extract_i64(&self, message: &[u8]) -> Result<Option<i64>, WireError> {
        if !self.is_integer() {
            return Ok(None);
        }
        let found = self.find(message)?;
        let number = self.number_of(&found);
        let narrow = |(at, number)| {
            i64::try_from(number).map_err(|_: std::num::TryFromIntError| WireError::NumberTooLarge { at })
        };
        number.map(narrow).transpose()
    }

    fn find(&self, message: &[u8]) -> Result<Found, WireError> {
        let mut found = Found { parent: self.parents.is_empty(), leaf: None };
        self.descend(message, 0..message.len(), 0, &mut found)?;
        Ok(found)
    }

    /// Recursion is bounded by the path's own length, not by the message.
    fn descend(
        &self,
        message: &[u8],
        range: Range<usize>,
        depth: usize,
        found: &mut Found,
    ) -> Result<(), WireError> {
        let parent = self.parents.get(depth);
        let step = parent.unwrap_or(&self.leaf);
        let mut walk = Walk::new(message, range);
        while let Some(field) = walk.next()? {
            if field.number != step.number {
                if step.rivals.contains(&field.number) {
                    found.leaf = None;
                    found.parent &= parent.is_none();
                }
                continue;
            }
            let wrong = WireError::WrongWireType { at: field.at, field: field.number };
            match (parent, field.payload) {
                (None, payload) if self.kind.fits(&payload) => found.leaf = Some((field.at, payload)),
                (Some(_), Payload::Bytes(inner)) => {
                    found.parent |= depth + 1 == self.parents.len();
                    self.descend(message, inner, depth + 1, found)?;
                }
                _ => return Err(wrong),
            }
        }
        Ok(())
    }

    fn text_of<'a>(
        &self,
        message: &'a [u8],
        leaf: Option<(usize, Payload)>,
    ) -> Result<Option<Cow<'a, [u8]>>, WireError> {
        let Some((_, Payload::Bytes(range))) = leaf else { return Ok(None) };
        let at = range.start;
        let text = message.get(range).unwrap_or_default();
        if self.kind == Scalar::String && std::str::from_utf8(text).is_err() {
            return Err(WireError::NotUtf8 { at });
        }
        Ok((!text.is_empty()).then_some(Cow::Borrowed(text)))
    }

    fn number_of(&self, found: &Found) -> Option<(usize, i128)> {
        match &found.leaf {
            Some((at, payload)) => Some((*at, self.kind.number(payload))),
            None => (self.zero_when_absent && found.parent).then_some((0, 0)),
        }
    }
}

impl fmt::Display for FieldPath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl fmt::Debug for FieldPath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "FieldPath({} as {:?})", self.text, self.kind)
    }
}

/// What a walk has come across so far.
struct Found {
    /// Whether the message that the field is in is there.
    parent: bool,
    leaf: Option<(usize, Payload)>,
}

fn singular(message: &MessageDescriptor, name: &str) -> Result<FieldDescriptor, FieldPathError> {
    let full_name = || message.full_name().to_owned();
    let Some(field) = message.get_field_by_name(name) else {
        let fields: Vec<_> = message.fields().collect();
        return Err(FieldPathError::Unknown {
            message: full_name(),
            field: name.to_owned(),
            hint: did_you_mean(name, fields.iter().map(FieldDescriptor::name)),
        });
    };
    let what = match (field.is_map(), field.is_list()) {
        (true, _) => "a map",
        (_, true) => "repeated",
        _ => return Ok(field),
    };
    Err(FieldPathError::Many { message: full_name(), field: name.to_owned(), what })
}

fn through(message: &MessageDescriptor, field: &str) -> FieldPathError {
    FieldPathError::Through { message: message.full_name().to_owned(), field: field.to_owned() }
}

impl Step {
    fn of(field: &FieldDescriptor) -> Self {
        let number = field.number();
        let oneof = field.containing_oneof();
        let rivals = oneof.iter().flat_map(|oneof| oneof.fields()).map(|rival| rival.number());
        Self { number, rivals: rivals.filter(|rival| *rival != number).collect() }
    }
}

impl Scalar {
    fn of(field: &FieldDescriptor) -> Result<Self, &'static str> {
        Ok(match field.kind() {
            Kind::Bool => Self::Bool,
            Kind::Int32 | Kind::Enum(_) => Self::Int32,
            Kind::Int64 => Self::Int64,
            Kind::Uint32 => Self::Uint32,
            Kind::Uint64 => Self::Uint64,
            Kind::Sint32 => Self::Sint32,
            Kind::Sint64 => Self::Sint64,
            Kind::Fixed32 => Self::Fixed32,
            Kind::Fixed64 => Self::Fixed64,
            Kind::Sfixed32 => Self::Sfixed32,
            Kind::Sfixed64 => Self::Sfixed64,
            Kind::String => Self::String,
            Kind::Bytes => Self::Bytes,
            Kind::Float => return Err("a float"),
            Kind::Double => return Err("a double"),
            Kind::Message(_) if field.is_group() => return Err("a group"),
            Kind::Message(_) => return Err("a message"),
        })
    }

    fn is_text(self) -> bool {
        matches!(self, Self::String | Self::Bytes)
    }

    fn fits(self, payload: &Payload) -> bool {
        match self {
            Self::String | Self::Bytes => matches!(payload, Payload::Bytes(_)),
            Self::Fixed32 | Self::Sfixed32 => matches!(payload, Payload::Fixed32(_)),
            Self::Fixed64 | Self::Sfixed64 => matches!(payload, Payload::Fixed64(_)),
            _ => matches!(payload, Payload::Varint(_)),
        }
    }

    /// The number that the bits stand for. As protobuf has it, a 32-bit type
    /// takes the low half of a longer varint.
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_possible_wrap,
        reason = "the wire format's own rule"
    )]
    fn number(self, payload: &Payload) -> i128 {
        let bits = match payload {
            Payload::Varint(bits) | Payload::Fixed64(bits) => *bits,
            Payload::Fixed32(bits) => u64::from(*bits),
            Payload::Bytes(_) | Payload::Group => 0,
        };
        let low = bits as u32;
        match self {
            Self::Bool => i128::from(bits != 0),
            Self::Int32 | Self::Sfixed32 => i128::from(low as i32),
            Self::Uint32 | Self::Fixed32 => i128::from(low),
            Self::Int64 | Self::Sfixed64 => i128::from(bits as i64),
            Self::Sint32 => i128::from((low >> 1) as i32 ^ -((low & 1) as i32)),
            Self::Sint64 => i128::from((bits >> 1) as i64 ^ -((bits & 1) as i64)),
            Self::Uint64 | Self::Fixed64 | Self::String | Self::Bytes => i128::from(bits),
        }
    }
}

#[cfg(test)]
mod tests;
