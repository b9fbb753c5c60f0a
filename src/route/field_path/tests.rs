//! Field paths against prost-reflect, which decodes the whole message.

use proptest::prelude::*;
use prost::Message;
use prost_reflect::{DescriptorPool, DynamicMessage, ReflectMessage, Value};

use super::*;

const PROTO: &str = r#"
syntax = "proto3";
package t;
enum E { ZERO = 0; ONE = 1; MINUS = -7; }
message M {
  int32 i32 = 1; int64 i64 = 2; uint32 u32 = 3; uint64 u64 = 4; sint32 s32 = 5; sint64 s64 = 6;
  fixed32 f32 = 7; fixed64 f64 = 8; sfixed32 sf32 = 9; sfixed64 sf64 = 10; bool flag = 11; E kind = 12;
  string text = 13; bytes raw = 14;
  optional int32 maybe = 15; optional string maybe_text = 16;
  M inner = 17;
  oneof pick { string by_name = 18; uint64 by_number = 19; M by_message = 20; }
  repeated int32 many = 21; map<string, string> table = 22; double real = 23; repeated M inners = 24;
  float single = 25;
}
"#;

fn message() -> MessageDescriptor {
    let file = protox::file::File::from_source("t.proto", PROTO).unwrap();
    let mut pool = DescriptorPool::new();
    pool.add_file_descriptor_proto(file.into()).unwrap();
    pool.get_message_by_name("t.M").unwrap()
}

const LEAVES: &[&str] = &[
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
    "text",
    "raw",
    "maybe",
    "maybe_text",
    "by_name",
    "by_number",
];

/// What the path should give, by way of the decoded message.
fn expected(message: &DynamicMessage, path: &str) -> Option<Vec<u8>> {
    let (name, rest) = path.split_once('.').map_or((path, None), |(name, rest)| (name, Some(rest)));
    let field = message.descriptor().get_field_by_name(name).unwrap();
    if field.supports_presence() && !message.has_field(&field) {
        return None;
    }
    let value = message.get_field(&field);
    if let Some(rest) = rest {
        return expected(value.as_message().unwrap(), rest);
    }
    let text = match value.as_ref() {
        Value::Bool(v) => u8::from(*v).to_string(),
        Value::I32(v) | Value::EnumNumber(v) => v.to_string(),
        Value::I64(v) => v.to_string(),
        Value::U32(v) => v.to_string(),
        Value::U64(v) => v.to_string(),
        Value::String(v) => v.clone(),
        Value::Bytes(v) => return (!v.is_empty()).then(|| v.to_vec()),
        other => panic!("{other:?}"),
    };
    (!text.is_empty()).then(|| text.into_bytes())
}

/// A random value for the named field, from one seed.
fn value(name: &str, seed: u64) -> Value {
    let seed = if seed.is_multiple_of(5) { 0 } else { seed };
    let text = if seed == 0 { String::new() } else { format!("käse-{seed}") };
    match name {
        "i32" | "s32" | "sf32" | "maybe" => Value::I32(seed as i32),
        "i64" | "s64" | "sf64" => Value::I64(seed as i64),
        "u32" | "f32" => Value::U32(seed as u32),
        "u64" | "f64" | "by_number" => Value::U64(seed),
        "flag" => Value::Bool(seed % 2 == 1),
        "kind" => Value::EnumNumber([0, 1, -7, 99][(seed % 4) as usize]),
        "raw" => Value::Bytes(text.into_bytes().into()),
        _ => Value::String(text),
    }
}

/// A field to set: which, the seed of its value, or an encoded sub-message.
type Part = (usize, u64, Option<Vec<u8>>);

/// A random message: fields in order of setting, and sub-messages to a depth.
fn random(depth: u32) -> BoxedStrategy<Vec<Part>> {
    let leaf = (0..LEAVES.len(), any::<u64>()).prop_map(|(index, seed)| (index, seed, None));
    if depth == 0 {
        return prop::collection::vec(leaf, 0..6).boxed();
    }
    let parent = (0..2_usize, random(depth - 1).prop_map(|fields| encode(&fields)))
        .prop_map(|(which, bytes)| (which, 0, Some(bytes)));
    prop::collection::vec(prop_oneof![3 => leaf, 1 => parent], 0..8).boxed()
}

fn encode(fields: &[Part]) -> Vec<u8> {
    let mut message = DynamicMessage::new(message());
    for (index, seed, nested) in fields {
        match nested {
            Some(bytes) => {
                let nested = DynamicMessage::decode(self::message(), bytes.as_slice()).unwrap();
                message.set_field_by_name(["inner", "by_message"][*index], Value::Message(nested));
            }
            None => message.set_field_by_name(LEAVES[*index], value(LEAVES[*index], *seed)),
        }
    }
    message.set_field_by_name("many", Value::List(vec![Value::I32(1), Value::I32(2)]));
    message.encode_to_vec()
}

/// Every leaf at depths 0 to 2, through `inner` and through the oneof.
fn all_paths() -> Vec<String> {
    let prefixes = ["", "inner.", "by_message.", "inner.inner.", "inner.by_message.", "by_message.inner."];
    prefixes.iter().flat_map(|prefix| LEAVES.iter().map(move |leaf| format!("{prefix}{leaf}"))).collect()
}

fn agrees_on_every_path(bytes: &[u8]) {
    let decoded = DynamicMessage::decode(message(), bytes).unwrap();
    for path in all_paths() {
        let field = FieldPath::new(&message(), &path).unwrap();
        let found = field.extract(bytes).unwrap().map(Cow::into_owned);
        assert_eq!(found, expected(&decoded, &path), "{path} of {bytes:02x?}");
        if field.is_integer() {
            let number = found.map(|text| String::from_utf8(text).unwrap().parse::<i128>().unwrap());
            let narrow = number.map(i64::try_from).transpose().ok();
            assert_eq!(field.extract_i64(bytes).ok(), narrow, "{path}");
        }
    }
    assert_eq!(crate::route::validate(bytes), Ok(()));
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn agrees_with_the_decoded_message(fields in random(2)) {
        agrees_on_every_path(&encode(&fields));
    }

    #[test]
    fn concatenation_merges(parts in prop::collection::vec(random(2), 1..4)) {
        let bytes: Vec<u8> = parts.iter().flat_map(|fields| encode(fields)).collect();
        agrees_on_every_path(&bytes);
    }

    #[test]
    fn truncation_is_refused_or_read_as_the_shorter_message(fields in random(1), cut in any::<prop::sample::Index>()) {
        let bytes = encode(&fields);
        let bytes = &bytes[..cut.index(bytes.len() + 1)];
        match DynamicMessage::decode(message(), bytes) {
            Ok(_) => agrees_on_every_path(bytes),
            Err(_) => assert!(crate::route::validate(bytes).is_err(), "{bytes:02x?}"),
        }
    }

    #[test]
    fn arbitrary_bytes_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
        let valid = crate::route::validate(&bytes);
        for path in ["text", "inner.text", "by_message.inner.u64", "flag"] {
            let field = FieldPath::new(&message(), path).unwrap();
            let found = field.extract(&bytes);
            let _ = field.extract_i64(&bytes);
            prop_assert!(valid.is_ok() || found.is_err());
        }
        if let Ok(decoded) = DynamicMessage::decode(message(), bytes.as_slice()) {
            for path in ["text", "inner.text", "inner.by_name", "flag", "s64"] {
                let field = FieldPath::new(&message(), path).unwrap();
                prop_assert_eq!(field.extract(&bytes).unwrap().map(Cow::into_owned), expected(&decoded, path));
            }
        }
    }
}

#[test]
fn strings_are_borrowed() {
    let bytes = encode(&[(12, 7, None)]);
    let found = FieldPath::new(&message(), "text").unwrap().extract(&bytes).unwrap();
    assert!(matches!(found, Some(Cow::Borrowed(b"k\xc3\xa4se-7"))), "{found:?}");
}

#[test]
fn absence_is_decided_by_presence() {
    let extract = |path: &str, bytes: &[u8]| {
        let found = FieldPath::new(&message(), path).unwrap().extract(bytes).unwrap();
        found.map(|value| String::from_utf8(value.into_owned()).unwrap())
    };
    assert_eq!(extract("i32", b"").as_deref(), Some("0"));
    assert_eq!(extract("kind", b"").as_deref(), Some("0"));
    assert_eq!(extract("flag", b"").as_deref(), Some("0"));
    assert_eq!(extract("text", b""), None);
    assert_eq!(extract("maybe", b""), None);
    assert_eq!(extract("by_number", b""), None);
    assert_eq!(extract("inner.i32", b""), None, "nor is a number of a message that is not there");
    assert_eq!(extract("inner.i32", &[0x8a, 0x01, 0x00]).as_deref(), Some("0"));
    assert_eq!(extract("maybe_text", &[0x82, 0x01, 0x00]), None, "empty is absent");
    assert_eq!(extract("maybe", &[0x78, 0x00]).as_deref(), Some("0"));
}

#[test]
fn a_later_member_undoes_an_earlier_one() {
    let by_name = [0x92, 0x01, 0x01, b'a'];
    let by_number = [0x98, 0x01, 0x05];
    let path = FieldPath::new(&message(), "by_name").unwrap();
    assert_eq!(path.extract(&[&by_name[..], &by_number].concat()), Ok(None));
    assert_eq!(path.extract(&[&by_number[..], &by_name].concat()), Ok(Some(Cow::Borrowed(&b"a"[..]))));
}

#[test]
fn wrong_bytes_are_refused_with_their_place() {
    let table: &[(&str, &[u8], &str)] = &[
        ("text", &[0x08, 0x01, 0x68, 0x01], "byte 2: field 13 has the wrong wire type"),
        ("i32", &[0x0a, 0x01, 0x01], "byte 0: field 1 has the wrong wire type"),
        ("inner.text", &[0x88, 0x01, 0x01], "byte 0: field 17 has the wrong wire type"),
        ("inner.text", &[0x8b, 0x01, 0x8c, 0x01], "byte 0: field 17 has the wrong wire type"),
        ("text", &[0x6a, 0x02, 0xff, 0xfe], "byte 2: a string that is not UTF-8"),
        ("inner.text", &[0x8a, 0x01, 0x02, 0x6a, 0x05], "byte 5: the message ends within a field"),
    ];
    for (path, bytes, expected) in table {
        let error = FieldPath::new(&message(), path).unwrap().extract(bytes).unwrap_err();
        assert_eq!(error.to_string(), *expected, "{path}");
    }
    let large = FieldPath::new(&message(), "u64").unwrap();
    let bytes = [&[0x20][..], &[0xff; 9], &[0x01]].concat();
    assert_eq!(large.extract_i64(&bytes).unwrap_err().to_string(), "byte 0: the number is too large");
    assert_eq!(large.extract(&bytes).unwrap().as_deref(), Some(&b"18446744073709551615"[..]));
}

#[test]
fn paths_that_lead_nowhere_are_refused() {
    let table = [
        ("txet", "t.M has no field \"txet\"", Some("did you mean \"text\"?")),
        ("", "t.M has no field \"\"", None),
        ("inner.", "t.M has no field \"\"", None),
        ("inner.nonesuch", "t.M has no field \"nonesuch\"", None),
        ("many", "field \"many\" of t.M is repeated", None),
        ("table", "field \"table\" of t.M is a map", None),
        ("inners.text", "field \"inners\" of t.M is repeated", None),
        ("table.key", "field \"table\" of t.M is a map", None),
        ("text.length", "field \"text\" of t.M has no fields of its own", None),
    ];
    for (path, expected, hint) in table {
        let error = FieldPath::new(&message(), path).unwrap_err();
        assert_eq!((error.to_string().as_str(), error.hint().as_deref()), (expected, hint), "{path}");
    }
    for (path, what) in [("real", "a double"), ("single", "a float"), ("inner", "a message")] {
        let error = FieldPath::new(&message(), path).unwrap_err().to_string();
        let rest = "and only string, bytes, integer, bool and enum will do";
        assert_eq!(error, format!("field {path:?} of t.M is {what}, {rest}"));
    }
    let deep = FieldPath::new(&message(), &"inner.".repeat(40));
    assert_eq!(deep.unwrap_err(), FieldPathError::TooDeep);
}
