//! The walk to a key through any bytes, against prost-reflect's decoder: what
//! that can decode, the walk can walk, and finds the same value. (Without a map
//! among the fields: prost-reflect takes one of any wire type, even the end of a
//! group that never began.)
#![no_main]

use std::sync::LazyLock;

use antiphon::route::{FieldPath, validate};
use libfuzzer_sys::fuzz_target;
use prost_reflect::{DescriptorPool, DynamicMessage, MessageDescriptor, ReflectMessage as _, Value};

const PROTO: &str = r#"
syntax = "proto3";
package fuzz;
message Order {
  string id = 1;
  bytes token = 2;
  int32 i32 = 3;
  int64 i64 = 4;
  uint32 u32 = 5;
  uint64 u64 = 6;
  sint32 s32 = 7;
  sint64 s64 = 8;
  fixed32 f32 = 9;
  fixed64 f64 = 10;
  sfixed32 sf32 = 11;
  sfixed64 sf64 = 12;
  bool flag = 13;
  Kind kind = 14;
  optional int32 maybe = 15;
  Inner inner = 16;
  oneof one {
    string left = 17;
    int64 right = 18;
    Inner both = 19;
  }
  repeated string many = 20;
}
message Inner {
  string id = 1;
  sint64 number = 2;
  Inner deeper = 3;
}
enum Kind {
  NONE = 0;
  SOME = 5;
}
"#;

const PATHS: [&str; 22] = [
    "id",
    "token",
    "i32",
    "i64",
    "u32",
    "u64",
    "s32",
    "s64",
    "f32",
    "f64",
    "sf32",
    "sf64",
    "flag",
    "kind",
    "maybe",
    "inner.id",
    "inner.number",
    "inner.deeper.deeper.id",
    "left",
    "right",
    "both.id",
    "both.deeper.number",
];

static ORDER: LazyLock<(MessageDescriptor, Vec<FieldPath>)> = LazyLock::new(|| {
    let folder = tempfile::tempdir().expect("a folder");
    std::fs::write(folder.path().join("order.proto"), PROTO).expect("a file");
    let files = protox::compile(["order.proto"], [folder.path()]).expect("a proto that compiles");
    let pool = DescriptorPool::from_file_descriptor_set(files).expect("whole descriptors");
    let order = pool.get_message_by_name("fuzz.Order").expect("the message");
    let paths = PATHS.map(|path| FieldPath::new(&order, path).expect("a path that leads somewhere")).to_vec();
    (order, paths)
});

/// The field's value by the book, in the form that a key has.
fn expected(message: &DynamicMessage, path: &str) -> Option<Vec<u8>> {
    let (name, rest) = path.split_once('.').unwrap_or((path, ""));
    let field = message.descriptor().get_field_by_name(name)?;
    if field.supports_presence() && !message.has_field(&field) {
        return None;
    }
    let text = match &*message.get_field(&field) {
        Value::Message(inner) => return expected(inner, rest),
        Value::String(text) => text.clone().into_bytes(),
        Value::Bytes(bytes) => bytes.to_vec(),
        Value::Bool(yes) => u8::from(*yes).to_string().into_bytes(),
        Value::I32(number) | Value::EnumNumber(number) => number.to_string().into_bytes(),
        Value::I64(number) => number.to_string().into_bytes(),
        Value::U32(number) => number.to_string().into_bytes(),
        Value::U64(number) => number.to_string().into_bytes(),
        other => panic!("no key: {other:?}"),
    };
    (!text.is_empty()).then_some(text)
}

fuzz_target!(|input: &[u8]| {
    let (order, paths) = &*ORDER;
    let valid = validate(input);
    let decoded = DynamicMessage::decode(order.clone(), input);
    if decoded.is_ok() {
        assert_eq!(valid, Ok(()), "prost decodes it");
    }
    for path in paths {
        let found = path.extract(input);
        if found.is_ok() {
            assert_eq!(valid, Ok(()), "{path} was found in it");
        }
        if path.is_integer() {
            let _ = path.extract_i64(input);
        }
        if let Ok(message) = &decoded {
            let found = found.expect("prost decodes it").map(|key| key.into_owned());
            assert_eq!(found, expected(message, path.as_str()), "{path}");
        }
    }
});
