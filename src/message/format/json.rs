//! The proto3 JSON mapping, both ways, by the descriptors of the route. Source:
//! <https://protobuf.dev/programming-guides/json/>.
//!
//! Writing can be told which names fields have and whether fields without a
//! value are written. Reading takes either name, and refuses what the type has
//! no place for: a reply that does not fit is a worker's mistake, which is
//! better seen than half lost.

use bytes::Bytes;
use prost::Message as _;
use prost_reflect::{DeserializeOptions, DynamicMessage, MessageDescriptor, SerializeOptions};

use super::EncodeError;
use crate::message::reply::DecodeError;

/// A method that returns this has nothing to say, in whatever way.
const EMPTY: &str = "google.protobuf.Empty";

/// How messages are written.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct JsonOptions {
    /// `order_id`, as in the `.proto`, and not `orderId`.
    pub proto_names: bool,
    /// Fields without presence are written even if they have their default.
    pub defaults: bool,
}

pub(super) fn encode(
    options: JsonOptions,
    input: &MessageDescriptor,
    message: Bytes,
) -> Result<Bytes, EncodeError> {
    let decoded = DynamicMessage::decode(input.clone(), message).map_err(|error| {
        EncodeError::NotItsType { message_type: input.full_name().to_owned(), cause: error.to_string() }
    })?;
    let form = SerializeOptions::new()
        .use_proto_field_name(options.proto_names)
        .skip_default_fields(!options.defaults);
    let mut serializer = serde_json::Serializer::new(Vec::new());
    decoded
        .serialize_with_options(&mut serializer, &form)
        .map_err(|error| EncodeError::NoJson(error.to_string()))?;
    Ok(Bytes::from(serializer.into_inner()))
}

pub(super) fn decode(output: &MessageDescriptor, value: &Bytes) -> Result<Bytes, DecodeError> {
    if output.full_name() == EMPTY && matches!(&**value, b"" | b"null") {
        return Ok(Bytes::new());
    }
    if value.is_empty() {
        return Err(DecodeError::EmptyJson);
    }
    let wrong = |path: String, cause: serde_json::Error| DecodeError::Json {
        message_type: output.full_name().to_owned(),
        path,
        cause: cause.to_string(),
    };
    let mut json = serde_json::Deserializer::from_slice(value);
    let mut track = serde_path_to_error::Track::new();
    let tracked = serde_path_to_error::Deserializer::new(&mut json, &mut track);
    let form = DeserializeOptions::new().deny_unknown_fields(true);
    let message = DynamicMessage::deserialize_with_options(output.clone(), tracked, &form);
    let message = message.map_err(|cause| wrong(track.path().to_string(), cause))?;
    json.end().map_err(|cause| wrong(".".to_owned(), cause))?;
    Ok(Bytes::from(message.encode_to_vec()))
}

#[cfg(test)]
mod tests {
    use std::sync::LazyLock;

    use proptest::prelude::*;
    use prost_reflect::DescriptorPool;

    use super::*;

    const PROTO: &str = r#"
        syntax = "proto3";
        package t.v1;
        import "google/protobuf/empty.proto";
        import "google/protobuf/timestamp.proto";
        message Order {
            string order_id = 1;
            int64 amount_minor = 2;
            repeated Line lines = 3;
            State state = 4;
            google.protobuf.Timestamp at = 5;
            optional bool gift = 6;
            bytes token = 7;
            map<string, Line> by_name = 8;
        }
        message Line { string sku = 1; uint32 count = 2; }
        enum State { STATE_UNSPECIFIED = 0; STATE_PAID = 1; }
    "#;

    static POOL: LazyLock<DescriptorPool> = LazyLock::new(|| {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("t.proto"), PROTO).unwrap();
        let mut compiler = protox::Compiler::new([folder.path()]).unwrap();
        compiler.include_imports(true).open_file("t.proto").unwrap();
        compiler.descriptor_pool()
    });

    fn order() -> MessageDescriptor {
        POOL.get_message_by_name("t.v1.Order").unwrap()
    }

    /// order_id "o-1", amount_minor 5, lines [{sku "a", count 2}], state PAID.
    const ORDER: &[u8] = b"\x0a\x03o-1\x10\x05\x1a\x05\x0a\x01a\x10\x02\x20\x01";

    fn written(options: JsonOptions, message: &'static [u8]) -> String {
        let json = encode(options, &order(), Bytes::from_static(message)).unwrap();
        String::from_utf8(json.to_vec()).unwrap()
    }

    #[test]
    fn golden_json() {
        let plain = JsonOptions::default();
        assert_eq!(
            written(plain, ORDER),
            r#"{"orderId":"o-1","amountMinor":"5","lines":[{"sku":"a","count":2}],"state":"STATE_PAID"}"#
        );
        let proto = JsonOptions { proto_names: true, ..plain };
        assert_eq!(
            written(proto, ORDER),
            r#"{"order_id":"o-1","amount_minor":"5","lines":[{"sku":"a","count":2}],"state":"STATE_PAID"}"#
        );
        let defaults = JsonOptions { proto_names: true, defaults: true };
        assert_eq!(
            written(defaults, b""),
            r#"{"order_id":"","amount_minor":"0","lines":[],"state":"STATE_UNSPECIFIED","token":"","by_name":{}}"#
        );
        assert_eq!(written(plain, b""), "{}");
    }

    #[test]
    fn both_names_are_read_and_numbers_in_either_form() {
        for json in [
            r#"{"orderId":"o-1","amountMinor":"5","lines":[{"sku":"a","count":2}],"state":"STATE_PAID"}"#,
            r#" {"order_id":"o-1","amount_minor":5,"lines":[{"count":2,"sku":"a"}],"state":1,"gift":null} "#,
        ] {
            assert_eq!(decode(&order(), &Bytes::from(json)).unwrap(), ORDER, "{json}");
        }
    }

    #[test]
    fn what_does_not_fit_is_named_by_its_path() {
        let cases = [
            (r#"{"orderId":7}"#, "orderId", "invalid type: integer `7`, expected a string"),
            (
                r#"{"lines":[{"sku":"a"},{"count":-1}]}"#,
                "lines[1].count",
                "out of range integral type conversion",
            ),
            (r#"{"byName":{"x":{"sku":true}}}"#, "byName.x.sku", "invalid type: boolean `true`"),
            (r#"{"lines":{}}"#, "lines", "invalid type: map"),
            (r#"{"at":"yesterday"}"#, "at", "invalid rfc3339 timestamp"),
            (r#"{"token":"*"}"#, "token", "invalid base64"),
            (r#"{"state":"STATE_LOST"}"#, "state", "unrecognized enum value 'STATE_LOST'"),
            (r#"{"lines":[{"price":1}]}"#, "lines[0]", "unrecognized field name 'price'"),
            (r#"{"orderId":"o-1"} x"#, ".", "trailing characters"),
            ("not json", ".", "expected ident"),
            ("{\"orderId\":\"o", "orderId", "EOF while parsing a string"),
            ("\"text\"", ".", "invalid type: string \"text\""),
            ("null", ".", "invalid type: null"),
        ];
        for (json, at, why) in cases {
            match decode(&order(), &Bytes::from(json)) {
                Err(DecodeError::Json { path, cause, message_type }) => {
                    assert_eq!((path.as_str(), message_type.as_str()), (at, "t.v1.Order"), "{json}: {cause}");
                    assert!(cause.contains(why), "{json}: {cause}");
                }
                other => panic!("{json}: {other:?}"),
            }
        }
        assert_eq!(decode(&order(), &Bytes::new()), Err(DecodeError::EmptyJson));
        assert!(decode(&order(), &Bytes::from_static(b"\xff\xfe")).is_err());
        let deep = "[".repeat(100_000);
        assert!(decode(&order(), &Bytes::from(deep)).is_err());
    }

    #[test]
    fn nothing_is_an_empty_message_where_it_can_only_be_that() {
        let empty = POOL.get_message_by_name("google.protobuf.Empty").unwrap();
        for json in ["", "null", "{}"] {
            assert_eq!(decode(&empty, &Bytes::from(json)).unwrap(), "", "{json:?}");
        }
        assert!(decode(&empty, &Bytes::from(r#"{"x":1}"#)).is_err());
    }

    #[test]
    fn a_message_that_is_not_its_type_is_refused() {
        // order_id is not UTF-8.
        let refused = encode(JsonOptions::default(), &order(), Bytes::from_static(b"\x0a\x01\xff"));
        assert!(matches!(refused, Err(EncodeError::NotItsType { .. })), "{refused:?}");
        // A time out of range has no JSON.
        let refused = encode(
            JsonOptions::default(),
            &order(),
            Bytes::from_static(b"\x2a\x0a\x08\xff\xff\xff\xff\xff\xff\xff\xff\x7f"),
        );
        assert!(matches!(refused, Err(EncodeError::NoJson(_))), "{refused:?}");
    }

    proptest! {
        #[test]
        fn any_message_survives_the_way_there_and_back(
            id: String, amount: i64, skus in proptest::collection::vec((any::<String>(), any::<u32>()), 0..4),
            proto_names: bool, defaults: bool,
        ) {
            let mut message = DynamicMessage::new(order());
            message.set_field_by_name("order_id", prost_reflect::Value::String(id));
            message.set_field_by_name("amount_minor", prost_reflect::Value::I64(amount));
            let line = POOL.get_message_by_name("t.v1.Line").unwrap();
            let lines = skus.into_iter().map(|(sku, count)| {
                let mut message = DynamicMessage::new(line.clone());
                message.set_field_by_name("sku", prost_reflect::Value::String(sku));
                message.set_field_by_name("count", prost_reflect::Value::U32(count));
                prost_reflect::Value::Message(message)
            });
            message.set_field_by_name("lines", prost_reflect::Value::List(lines.collect()));
            let bytes = Bytes::from(message.encode_to_vec());
            let json = encode(JsonOptions { proto_names, defaults }, &order(), bytes.clone()).unwrap();
            let back = DynamicMessage::decode(order(), decode(&order(), &json).unwrap()).unwrap();
            // Encoded again, since a field that has its default may have been set.
            let plain = DynamicMessage::decode(order(), bytes).unwrap();
            prop_assert_eq!(back.encode_to_vec(), plain.encode_to_vec());
        }

        #[test]
        fn arbitrary_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..64)) {
            let _ = decode(&order(), &Bytes::from(bytes.clone()));
            let _ = encode(JsonOptions::default(), &order(), Bytes::from(bytes));
        }
    }
}
