//! Confluent's wire format for protobuf: the id of a schema in front of the
//! message. Source: "Wire format" in the documentation of Schema Registry's
//! serializers, and `MessageIndexes` of kafka-protobuf-provider.
//!
//! ```text
//! 0 | schema id, 4 bytes, most significant first | message index | message
//! ```
//!
//! The message index says which message of the schema's file it is: how many
//! steps, and each step's place among the messages at its level, all as zigzag
//! varints. A single 0 stands for the first message of the file.

use std::sync::OnceLock;

use async_trait::async_trait;
use base64::Engine as _;
use bytes::{BufMut as _, Bytes, BytesMut};
use prost::Message as _;
use prost_reflect::{FileDescriptor, MessageDescriptor};
use prost_types::{DescriptorProto, FileDescriptorProto};
use protox::file::File;

use super::EncodeError;
use crate::message::reply::DecodeError;

const MAGIC: u8 = 0;
/// Steps of a message index: messages within messages.
const STEPS_MAX: usize = 32;
/// Files of google's own, which every registry and every client has.
const WELL_KNOWN: &str = "google/protobuf/";

/// How requests of one route are framed.
#[derive(Debug)]
pub struct Framing {
    /// Subject of the request's schema.
    pub subject: String,
    /// What stands in front of each message, once the registry was asked.
    prefix: OnceLock<Bytes>,
}

/// Names a schema to the registry, and holds it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Schema {
    /// A `.proto`, or an encoded `FileDescriptorProto` in base64.
    pub text: String,
    /// The files that it imports.
    pub references: Vec<Reference>,
}

/// A schema that another one imports.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reference {
    /// As the importing file names it.
    pub name: String,
    /// Where the registry has it.
    pub subject: String,
    /// Which version of it.
    pub version: i32,
}

/// What the registry has under a subject.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Registered {
    /// The schema's id.
    pub id: i32,
    /// Its version within the subject.
    pub version: i32,
    /// The schema's text.
    pub text: String,
}

/// Why the registry did not do what was asked.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RegistryError {
    /// No answer, or none in time. May pass.
    #[error("{0}")]
    Unreachable(String),
    /// It says no.
    #[error("{0}")]
    Refused(String),
    /// It has no such subject, version or schema.
    #[error("{0}")]
    NotFound(String),
}

/// A schema registry with Confluent's API. Every method has a deadline of its
/// own.
#[async_trait]
pub trait SchemaRegistry: Send + Sync + std::fmt::Debug + 'static {
    /// Where it is, without user and password.
    fn url(&self) -> &str;

    /// Registers a schema under a subject, unless it is there; its id.
    async fn register(&self, subject: &str, schema: &Schema) -> Result<i32, RegistryError>;

    /// Which version of a subject a schema is.
    async fn version_of(&self, subject: &str, schema: &Schema) -> Result<i32, RegistryError>;

    /// The latest version of a subject.
    async fn latest(&self, subject: &str) -> Result<Registered, RegistryError>;

    /// The text of a schema.
    async fn by_id(&self, id: i32) -> Result<String, RegistryError>;
}

impl Framing {
    /// Of requests whose schema has this subject.
    pub const fn new(subject: String) -> Self {
        Self { subject, prefix: OnceLock::new() }
    }

    /// The registry has told the schema's id. `false`: it was known before.
    pub fn set_schema(&self, id: i32, index: &[usize]) -> bool {
        self.prefix.set(prefix(id, index)).is_ok()
    }

    pub(super) fn encode(&self, message: &Bytes) -> Result<Bytes, EncodeError> {
        let prefix = self.prefix.get().ok_or_else(|| EncodeError::NoSchemaId(self.subject.clone()))?;
        let mut value = BytesMut::with_capacity(prefix.len() + message.len());
        value.put_slice(prefix);
        value.put_slice(message);
        Ok(value.freeze())
    }
}

fn prefix(id: i32, index: &[usize]) -> Bytes {
    let mut prefix = BytesMut::new();
    prefix.put_u8(MAGIC);
    prefix.put_i32(id);
    if *index == [0] {
        prefix.put_u8(0);
    } else {
        put_varint(&mut prefix, index.len());
        index.iter().for_each(|step| put_varint(&mut prefix, *step));
    }
    prefix.freeze()
}

/// Zigzag: twice the number, since none is negative.
fn put_varint(into: &mut BytesMut, number: usize) {
    prost::encoding::encode_varint(number as u64 * 2, into);
}

/// What a value says of its schema.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SchemaRef {
    /// The schema's id.
    pub id: i32,
    /// The message index.
    pub index: Vec<usize>,
}

/// Splits a value into what it says of its schema and the message.
pub fn split(value: &Bytes) -> Result<(SchemaRef, Bytes), DecodeError> {
    let wrong = |what: &str| DecodeError::NotFramed(what.to_owned());
    let (magic, rest) = value.split_first().ok_or_else(|| wrong("it has no bytes"))?;
    if *magic != MAGIC {
        return Err(wrong(&format!("its first byte is {magic:#04x} and not 0x00")));
    }
    let (id, mut rest) = rest.split_at_checked(4).ok_or_else(|| wrong("its schema id is cut off"))?;
    let id = id.try_into().map(i32::from_be_bytes).map_err(|_| wrong("its schema id is cut off"))?;
    let cut_off = || wrong("its message index is cut off");
    let mut step = || {
        let number = prost::encoding::decode_varint(&mut rest).map_err(|_| cut_off())?;
        let negative = number & 1 == 1;
        usize::try_from(number / 2)
            .ok()
            .filter(|_| !negative)
            .ok_or_else(|| wrong("its message index is negative"))
    };
    let index = match step()? {
        0 => vec![0],
        steps if steps > STEPS_MAX => return Err(wrong(&format!("its message index has {steps} steps"))),
        steps => (0..steps).map(|_| step()).collect::<Result<_, _>>()?,
    };
    let message = value.slice_ref(rest);
    Ok((SchemaRef { id, index }, message))
}

/// The message index of a type within its file.
pub fn index_of(message: &MessageDescriptor) -> Vec<usize> {
    // `[4, place, 3, place, ...]`, as source positions have it.
    message.path().iter().skip(1).step_by(2).filter_map(|step| usize::try_from(*step).ok()).collect()
}

/// The messages of a schema.
#[derive(Debug, Clone, PartialEq)]
pub struct Messages {
    package: String,
    messages: Vec<DescriptorProto>,
}

impl Messages {
    /// Reads a schema as registries have it: a `.proto`, or an encoded
    /// descriptor in base64.
    pub fn read(text: &str) -> Result<Self, String> {
        let file = match File::from_source("schema.proto", text) {
            Ok(file) => file.file_descriptor_proto().clone(),
            Err(error) => decode_descriptor(text).ok_or_else(|| error.to_string())?,
        };
        Ok(Self { package: file.package().to_owned(), messages: file.message_type })
    }

    /// Full name of the message at an index.
    pub fn name_at(&self, index: &[usize]) -> Option<String> {
        let mut name = self.package.clone();
        let mut level = &self.messages;
        for step in index {
            let message = level.get(*step)?;
            if !name.is_empty() {
                name.push('.');
            }
            name.push_str(message.name());
            level = &message.nested_type;
        }
        Some(name)
    }

    /// The index of a message by its full name.
    pub fn index_of(&self, full_name: &str) -> Option<Vec<usize>> {
        let mut rest = match self.package.as_str() {
            "" => full_name,
            package => full_name.strip_prefix(package)?.strip_prefix('.')?,
        };
        let mut level = &self.messages;
        let mut index = Vec::new();
        loop {
            let (first, inner) =
                rest.split_once('.').map_or((rest, None), |(first, inner)| (first, Some(inner)));
            let place = level.iter().position(|message| message.name() == first)?;
            index.push(place);
            match inner {
                Some(inner) => (rest, level) = (inner, &level[place].nested_type),
                None => return Some(index),
            }
        }
    }
}

fn decode_descriptor(text: &str) -> Option<FileDescriptorProto> {
    let bytes = base64::engine::general_purpose::STANDARD.decode(text.trim()).ok()?;
    FileDescriptorProto::decode(&*bytes).ok()
}

/// The schema of a file, as Confluent's clients without the source text have
/// it: the descriptor in base64, without what is of no concern to a message
/// (services, extensions, source positions, imports that nothing needs).
pub fn schema_text(file: &FileDescriptor) -> String {
    let mut proto = file.file_descriptor_proto().clone();
    proto.source_code_info = None;
    proto.service.clear();
    proto.extension.clear();
    let needed: Vec<String> = imports(file).iter().map(|import| import.name().to_owned()).collect();
    proto.dependency = needed;
    proto.public_dependency.clear();
    proto.weak_dependency.clear();
    base64::engine::general_purpose::STANDARD.encode(proto.encode_to_vec())
}

/// The files whose types the messages of a file use.
pub fn imports(file: &FileDescriptor) -> Vec<FileDescriptor> {
    let mut found: Vec<FileDescriptor> = Vec::new();
    let mut add = |used: FileDescriptor| {
        if used != *file && !found.contains(&used) {
            found.push(used);
        }
    };
    let mut queue: Vec<MessageDescriptor> = file.messages().collect();
    while let Some(message) = queue.pop() {
        queue.extend(message.child_messages());
        for field in message.fields() {
            match field.kind() {
                prost_reflect::Kind::Message(used) => add(used.parent_file()),
                prost_reflect::Kind::Enum(used) => add(used.parent_file()),
                _ => {}
            }
        }
    }
    found.sort_by(|one, other| one.name().cmp(other.name()));
    found
}

/// Whether a file is one that every registry has.
pub fn is_well_known(file: &FileDescriptor) -> bool {
    file.name().starts_with(WELL_KNOWN)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const TEXT: &str = r#"
        syntax = "proto3"; package a.v1; import "other.proto";
        message A { string id = 1; message B { int32 n = 1; message C {} } other.O o = 2; }
        message D {}
    "#;

    #[test]
    fn golden_frames() {
        let cases: [(&[usize], &[u8]); 5] = [
            (&[0], &[0, 0, 0, 1, 2, 0]),
            (&[1], &[0, 0, 0, 1, 2, 2, 2]),
            (&[0, 0], &[0, 0, 0, 1, 2, 4, 0, 0]),
            (&[1, 0, 2], &[0, 0, 0, 1, 2, 6, 2, 0, 4]),
            (&[100], &[0, 0, 0, 1, 2, 2, 0xc8, 1]),
        ];
        for (index, expected) in cases {
            let framing = Framing::new("s".to_owned());
            assert_eq!(framing.encode(&Bytes::new()), Err(EncodeError::NoSchemaId("s".to_owned())));
            assert!(framing.set_schema(258, index));
            let value = framing.encode(&Bytes::from_static(b"m")).unwrap();
            assert_eq!(value, [expected, b"m"].concat());
            let (schema, message) = split(&value).unwrap();
            assert_eq!((schema.id, &*schema.index, &*message), (258, index, &b"m"[..]));
        }
    }

    #[test]
    fn what_is_not_framed_says_why() {
        let cases: [(&[u8], &str); 7] = [
            (b"", "it has no bytes"),
            (b"\x0a\x02hi", "its first byte is 0x0a and not 0x00"),
            (&[0, 0, 0, 1], "its schema id is cut off"),
            (&[0, 0, 0, 0, 1], "its message index is cut off"),
            (&[0, 0, 0, 0, 1, 4, 0], "its message index is cut off"),
            (&[0, 0, 0, 0, 1, 1], "its message index is negative"),
            (&[0, 0, 0, 0, 1, 0xfe, 0xff, 0x03], "its message index has 32767 steps"),
        ];
        for (value, why) in cases {
            assert_eq!(
                split(&Bytes::from(value)),
                Err(DecodeError::NotFramed(why.to_owned())),
                "{value:02x?}"
            );
        }
    }

    #[test]
    fn messages_are_found_by_index_and_by_name() {
        let file = File::from_source("a.proto", TEXT).unwrap();
        let base64 =
            base64::engine::general_purpose::STANDARD.encode(file.file_descriptor_proto().encode_to_vec());
        for text in [TEXT, &base64] {
            let messages = Messages::read(text).unwrap();
            for (name, index) in
                [("a.v1.A", &[0][..]), ("a.v1.A.B", &[0, 0]), ("a.v1.A.B.C", &[0, 0, 0]), ("a.v1.D", &[1])]
            {
                assert_eq!(messages.name_at(index).as_deref(), Some(name));
                assert_eq!(messages.index_of(name).as_deref(), Some(index));
            }
            assert_eq!((messages.name_at(&[2]), messages.name_at(&[1, 0])), (None, None));
            for name in ["a.v1.X", "a.v1", "a.v1A", "", "D", "a.v1.A.X"] {
                assert_eq!(messages.index_of(name), None, "{name}");
            }
        }
        assert!(Messages::read("not a schema").is_err());
    }

    proptest! {
        #[test]
        fn arbitrary_values_never_panic(value in proptest::collection::vec(any::<u8>(), 0..32)) {
            let _ = split(&Bytes::from(value));
        }

        #[test]
        fn an_index_reads_back(id: i32, index in proptest::collection::vec(0usize..1000, 1..STEPS_MAX)) {
            let value = prefix(id, &index);
            prop_assert_eq!(split(&value).map(|(schema, _)| schema), Ok(SchemaRef { id, index }));
        }
    }
}
