//! A walk over the protobuf wire format that looks at fields without decoding
//! the message and allocates nothing. It knows nothing of descriptors.

use std::ops::Range;

use crate::limits::GROUP_DEPTH_MAX;

/// Why bytes are not the protobuf message that they should be. Every place is
/// counted in bytes from the start of the message.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum WireError {
    /// The message ends within a field.
    #[error("byte {at}: the message ends within a field")]
    Truncated {
        /// Where the part begins that is cut off.
        at: usize,
    },
    /// A varint of more than 64 bits.
    #[error("byte {at}: a varint of more than 64 bits")]
    VarintTooLong {
        /// Where the varint begins.
        at: usize,
    },
    /// Field number 0, or one that is above protobuf's range.
    #[error("byte {at}: a field number outside 1 to 536870911")]
    FieldNumber {
        /// Where the tag begins.
        at: usize,
    },
    /// Wire type 6 or 7, which protobuf has not.
    #[error("byte {at}: unknown wire type {wire_type}")]
    UnknownWireType {
        /// Where the tag begins.
        at: usize,
        /// What it says.
        wire_type: u8,
    },
    /// A known field whose wire type is not the one of its declared type.
    #[error("byte {at}: field {field} has the wrong wire type")]
    WrongWireType {
        /// Where the field begins.
        at: usize,
        /// Its number.
        field: u32,
    },
    /// A group that ends before it begins, or as another.
    #[error("byte {at}: a group's end without its start")]
    GroupEnd {
        /// Where the tag begins.
        at: usize,
    },
    /// Groups nested too deep.
    #[error("byte {at}: groups nested more than {GROUP_DEPTH_MAX} deep")]
    TooDeep {
        /// Where the tag begins.
        at: usize,
    },
    /// A string that is not UTF-8.
    #[error("byte {at}: a string that is not UTF-8")]
    NotUtf8 {
        /// Where the string begins.
        at: usize,
    },
    /// An integer that does not fit into 64 bits with a sign.
    #[error("byte {at}: the number is too large")]
    NumberTooLarge {
        /// Where the field begins.
        at: usize,
    },
}

/// What one field holds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Payload {
    Varint(u64),
    Fixed64(u64),
    Fixed32(u32),
    /// Where the bytes of a string, a sub-message or a packed list are.
    Bytes(Range<usize>),
    /// A group; what is in it has been skipped.
    Group,
}

/// One field of a message.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Field {
    pub(super) at: usize,
    pub(super) number: u32,
    pub(super) payload: Payload,
}

/// Goes from field to field through `bytes[at..end]`.
pub(super) struct Walk<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl<'a> Walk<'a> {
    /// Walks the part of a message that `range` marks. Places in errors are
    /// counted from the start of the whole.
    pub(super) fn new(message: &'a [u8], range: Range<usize>) -> Self {
        Self { bytes: message.get(..range.end).unwrap_or(message), at: range.start }
    }

    /// The next field, or `None` at the end.
    pub(super) fn next(&mut self) -> Result<Option<Field>, WireError> {
        if self.at >= self.bytes.len() {
            return Ok(None);
        }
        let at = self.at;
        let (number, wire_type) = self.tag()?;
        let payload = match wire_type {
            3 => self.skip_group(number)?,
            4 => return Err(WireError::GroupEnd { at }),
            _ => self.payload(at, wire_type)?,
        };
        Ok(Some(Field { at, number, payload }))
    }

    fn tag(&mut self) -> Result<(u32, u8), WireError> {
        let at = self.at;
        let tag = u32::try_from(self.varint()?).map_err(|_| WireError::FieldNumber { at })?;
        match tag >> 3 {
            0 => Err(WireError::FieldNumber { at }),
            number => Ok((number, (tag & 7) as u8)),
        }
    }

    fn payload(&mut self, at: usize, wire_type: u8) -> Result<Payload, WireError> {
        Ok(match wire_type {
            0 => Payload::Varint(self.varint()?),
            1 => Payload::Fixed64(u64::from_le_bytes(self.fixed()?)),
            2 => {
                let length = self.varint()?;
                let start = self.at;
                let rest = self.bytes.len() - start;
                let length = usize::try_from(length).ok().filter(|l| *l <= rest);
                self.at = start + length.ok_or(WireError::Truncated { at: start })?;
                Payload::Bytes(start..self.at)
            }
            5 => Payload::Fixed32(u32::from_le_bytes(self.fixed()?)),
            _ => return Err(WireError::UnknownWireType { at, wire_type }),
        })
    }

    /// Skips to the end of a group whose start tag has just been read, without
    /// recursion, so that hostile nesting costs no stack.
    fn skip_group(&mut self, number: u32) -> Result<Payload, WireError> {
        let mut open = [0_u32; GROUP_DEPTH_MAX];
        open[0] = number;
        let mut depth = 1;
        while depth > 0 {
            let at = self.at;
            if at >= self.bytes.len() {
                return Err(WireError::Truncated { at });
            }
            match self.tag()? {
                (number, 3) => {
                    *open.get_mut(depth).ok_or(WireError::TooDeep { at })? = number;
                    depth += 1;
                }
                (number, 4) if open[depth - 1] == number => depth -= 1,
                (_, 4) => return Err(WireError::GroupEnd { at }),
                (_, wire_type) => {
                    self.payload(at, wire_type)?;
                }
            }
        }
        Ok(Payload::Group)
    }

    fn varint(&mut self) -> Result<u64, WireError> {
        let start = self.at;
        let mut value = 0_u64;
        for place in 0..10 {
            let byte = *self.bytes.get(self.at).ok_or(WireError::Truncated { at: start })?;
            self.at += 1;
            if place == 9 && byte > 1 {
                break;
            }
            value |= u64::from(byte & 0x7f) << (7 * place);
            if byte < 0x80 {
                return Ok(value);
            }
        }
        Err(WireError::VarintTooLong { at: start })
    }

    fn fixed<const N: usize>(&mut self) -> Result<[u8; N], WireError> {
        let start = self.at;
        let end = start + N;
        let bytes = self.bytes.get(start..end).and_then(|bytes| bytes.try_into().ok());
        self.at = end;
        bytes.ok_or(WireError::Truncated { at: start })
    }
}

/// Refuses bytes that can't be a protobuf message, by walking its outermost
/// fields; what is inside of sub-messages is not looked at.
///
/// # Errors
/// The first place at which the bytes make no sense.
pub fn validate(message: &[u8]) -> Result<(), WireError> {
    let mut walk = Walk::new(message, 0..message.len());
    while walk.next()?.is_some() {}
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_no_message_is_refused_with_its_place() {
        let groups = |n: usize, close: bool| {
            let mut bytes = vec![0x0b; n];
            bytes.extend(vec![0x0c; if close { n } else { 0 }]);
            bytes
        };
        let too_long = [&[0x08][..], &[0xff; 9], &[0x02]].concat();
        let table: Vec<(Vec<u8>, Result<(), WireError>)> = vec![
            (vec![], Ok(())),
            (vec![0x08, 0x01], Ok(())),
            (vec![0x08], Err(WireError::Truncated { at: 1 })),
            (vec![0x08, 0x80], Err(WireError::Truncated { at: 1 })),
            (vec![0x0a, 0x02, 0x01], Err(WireError::Truncated { at: 2 })),
            (vec![0x0d, 0, 0, 0], Err(WireError::Truncated { at: 1 })),
            (vec![0x09, 0, 0, 0, 0, 0, 0, 0], Err(WireError::Truncated { at: 1 })),
            (vec![0x00, 0x01], Err(WireError::FieldNumber { at: 0 })),
            (vec![0x80, 0x80, 0x80, 0x80, 0x10, 0], Err(WireError::FieldNumber { at: 0 })),
            (vec![0x0e, 0x01], Err(WireError::UnknownWireType { at: 0, wire_type: 6 })),
            (vec![0x08, 0x01, 0x0c], Err(WireError::GroupEnd { at: 2 })),
            (vec![0x0b, 0x14], Err(WireError::GroupEnd { at: 1 })),
            (vec![0x0b, 0x08, 0x01], Err(WireError::Truncated { at: 3 })),
            (vec![0x0b, 0x08, 0x01, 0x0c], Ok(())),
            (groups(100, true), Ok(())),
            (groups(101, true), Err(WireError::TooDeep { at: 100 })),
            (groups(100, false), Err(WireError::Truncated { at: 100 })),
            (too_long, Err(WireError::VarintTooLong { at: 1 })),
            ([&[0x08][..], &[0xff; 9], &[0x01]].concat(), Ok(())),
            ([&[0x0a][..], &[0xff; 9], &[0x01]].concat(), Err(WireError::Truncated { at: 11 })),
        ];
        for (bytes, expected) in table {
            assert_eq!(validate(&bytes), expected, "{bytes:02x?}");
        }
    }
}
