//! What is sent: encoded once, before the run.

use std::io::Read as _;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use antiphon::route::{self, Sources};
use prost::Message as _;
use prost_reflect::{DescriptorPool, DynamicMessage, Kind, MessageDescriptor, ReflectMessage as _, Value};

use super::flags::LoadFlags;
use super::http2::Endpoint;
use super::reflect;

/// Compressed flag and length, in front of every gRPC message.
pub(super) const PREFIX_BYTES: usize = 5;
/// Bytes of one message.
const MESSAGE_BYTES_MAX: u64 = 64 * 1024 * 1024;
/// Bytes of all messages that --keys makes.
const MESSAGES_BYTES_MAX: usize = 512 * 1024 * 1024;

/// What stands in the way of a request.
#[derive(Debug, thiserror::Error)]
pub(super) enum RequestError {
    #[error("{found:?} is no method; expected pkg.Service/Method")]
    Method { found: String },
    #[error("{path}: {source}")]
    File { path: String, source: std::io::Error },
    #[error("{0}")]
    Protos(route::Mistakes),
    #[error("the descriptors are not usable: {0}")]
    Descriptors(#[from] prost_reflect::DescriptorError),
    #[error(transparent)]
    Reflection(#[from] reflect::ReflectError),
    #[error("there is no service {0}")]
    NoService(String),
    #[error("{service} has no method {method}")]
    NoMethod { service: String, method: String },
    #[error("{0} takes a stream of requests; one request a call is what can be measured")]
    ClientStream(String),
    #[error("the request is no {message}: {source}")]
    Json { message: String, source: serde_json::Error },
    #[error("the request is no {message}: {source}")]
    Bytes { message: String, source: prost::DecodeError },
    #[error("--key-field: {message} has no field {name:?}")]
    NoField { message: String, name: String },
    #[error("--key-field: {0} is neither a string nor an integer")]
    FieldKind(String),
    #[error("--key-field: {0} is repeated or a map")]
    FieldList(String),
    #[error("--keys: so many messages have more than {MESSAGES_BYTES_MAX} bytes")]
    TooMuch,
}

/// The method's name in its two parts.
pub(super) fn split_method(method: &str) -> Result<(&str, &str), RequestError> {
    let path = method.strip_prefix('/').unwrap_or(method);
    let usable = |part: &str| {
        !part.is_empty() && part.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"_.".contains(&byte))
    };
    match path.split_once('/') {
        Some((service, name)) if usable(service) && usable(name) => Ok((service, name)),
        _ => Err(RequestError::Method { found: method.to_owned() }),
    }
}

/// Headers of a call, without `:method` and `:scheme`.
pub(super) fn headers(
    path: &str,
    authority: &str,
    timeout: Option<Duration>,
    metadata: &[(String, String)],
) -> Vec<(String, String)> {
    let mut headers = vec![
        (":path".to_owned(), path.to_owned()),
        (":authority".to_owned(), authority.to_owned()),
        ("te".to_owned(), "trailers".to_owned()),
        ("content-type".to_owned(), "application/grpc".to_owned()),
        ("user-agent".to_owned(), concat!("antiphon-bench/", env!("CARGO_PKG_VERSION")).to_owned()),
    ];
    headers.extend(timeout.map(|timeout| ("grpc-timeout".to_owned(), grpc_timeout(timeout))));
    headers.extend_from_slice(metadata);
    headers
}

/// At most eight digits and a unit.
fn grpc_timeout(timeout: Duration) -> String {
    match timeout.as_millis() {
        ms @ ..=99_999_999 => format!("{ms}m"),
        ms => format!("{}S", (ms / 1_000).min(99_999_999)),
    }
}

/// A message with gRPC's prefix.
pub(super) fn framed(message: &[u8]) -> Box<[u8]> {
    let mut framed = Vec::with_capacity(PREFIX_BYTES + message.len());
    framed.push(0);
    // At most `MESSAGE_BYTES_MAX`, as read.
    framed.extend_from_slice(&u32::try_from(message.len()).unwrap_or(u32::MAX).to_be_bytes());
    framed.extend_from_slice(message);
    framed.into()
}

/// The messages that calls send in turn, framed.
pub(super) fn messages(flags: &LoadFlags, endpoint: &Endpoint) -> Result<Arc<[Box<[u8]>]>, RequestError> {
    let (service, method) = split_method(&flags.method)?;
    let raw = match &flags.message_file {
        Some(path) => Some(read(path)?),
        None => None,
    };
    let json = match (&flags.data, &flags.data_file) {
        (Some(text), _) => Some(text.clone().into_bytes()),
        (None, Some(path)) => Some(read(path)?),
        (None, None) => None,
    };
    // Bytes need no descriptors, and an empty message has none.
    if let (None, None) = (&json, &flags.key_field) {
        return Ok([framed(&raw.unwrap_or_default())].into());
    }
    let input = input(&pool(flags, endpoint, service)?, service, method)?;
    let message = match (json, raw) {
        (Some(json), _) => from_json(&input, &json)?,
        (None, raw) => {
            let decoded = DynamicMessage::decode(input.clone(), &raw.unwrap_or_default()[..]);
            decoded.map_err(|source| RequestError::Bytes { message: input.full_name().to_owned(), source })?
        }
    };
    match (&flags.key_field, flags.keys) {
        (Some(path), Some(keys)) => with_keys(&message, path, keys),
        _ => Ok([framed(&message.encode_to_vec())].into()),
    }
}

fn read(path: &Path) -> Result<Vec<u8>, RequestError> {
    let read = |mut from: Box<dyn std::io::Read>| {
        let mut bytes = Vec::new();
        from.as_mut().take(MESSAGE_BYTES_MAX + 1).read_to_end(&mut bytes)?;
        match bytes.len() as u64 {
            ..=MESSAGE_BYTES_MAX => Ok(bytes),
            _ => Err(std::io::Error::other(format!("more than {MESSAGE_BYTES_MAX} bytes"))),
        }
    };
    let done = match path.to_str() {
        Some("-") => read(Box::new(std::io::stdin())),
        _ => std::fs::File::open(path).and_then(|file| read(Box::new(file))),
    };
    done.map_err(|source| RequestError::File { path: path.display().to_string(), source })
}

fn pool(flags: &LoadFlags, endpoint: &Endpoint, service: &str) -> Result<DescriptorPool, RequestError> {
    if flags.proto.is_empty() && flags.descriptor_set.is_empty() {
        let set = reflect::descriptors(endpoint, &flags.address, service)?;
        return Ok(DescriptorPool::from_file_descriptor_set(set)?);
    }
    let sources = Sources {
        protos: flags.proto.clone(),
        include_paths: flags.proto_path.clone(),
        descriptor_sets: flags.descriptor_set.clone(),
        ..Sources::default()
    };
    let table = route::compile(&sources).map_err(RequestError::Protos)?;
    Ok(DescriptorPool::decode(&table.descriptor_set()[..])?)
}

fn input(pool: &DescriptorPool, service: &str, method: &str) -> Result<MessageDescriptor, RequestError> {
    let found = pool.get_service_by_name(service);
    let found = found.ok_or_else(|| RequestError::NoService(service.to_owned()))?;
    let found = found.methods().find(|candidate| candidate.name() == method);
    match found {
        Some(found) if found.is_client_streaming() => {
            Err(RequestError::ClientStream(found.full_name().to_owned()))
        }
        Some(found) => Ok(found.input()),
        None => Err(RequestError::NoMethod { service: service.to_owned(), method: method.to_owned() }),
    }
}

fn from_json(input: &MessageDescriptor, json: &[u8]) -> Result<DynamicMessage, RequestError> {
    let refused = |source| RequestError::Json { message: input.full_name().to_owned(), source };
    let mut reader = serde_json::Deserializer::from_slice(json);
    let message = DynamicMessage::deserialize(input.clone(), &mut reader).map_err(refused)?;
    reader.end().map_err(refused)?;
    Ok(message)
}

/// The same message with another key each.
fn with_keys(message: &DynamicMessage, path: &str, keys: u32) -> Result<Arc<[Box<[u8]>]>, RequestError> {
    let names: Vec<&str> = path.split('.').collect();
    let mut bytes = 0;
    let mut all = Vec::new();
    for key in 0..keys {
        let mut copy = message.clone();
        set(&mut copy, &names, key)?;
        let framed = framed(&copy.encode_to_vec());
        bytes += framed.len();
        if bytes > MESSAGES_BYTES_MAX {
            return Err(RequestError::TooMuch);
        }
        all.push(framed);
    }
    Ok(all.into())
}

fn set(message: &mut DynamicMessage, names: &[&str], key: u32) -> Result<(), RequestError> {
    let Some((name, rest)) = names.split_first() else { return Ok(()) };
    let descriptor = message.descriptor();
    let field = descriptor.get_field_by_name(name).ok_or_else(|| RequestError::NoField {
        message: descriptor.full_name().to_owned(),
        name: (*name).to_owned(),
    })?;
    if field.is_list() || field.is_map() {
        return Err(RequestError::FieldList(field.full_name().to_owned()));
    }
    let signed = i32::try_from(key).unwrap_or(i32::MAX);
    let value = match field.kind() {
        Kind::Message(_) if !rest.is_empty() => {
            return match message.get_field_mut(&field) {
                Value::Message(inner) => set(inner, rest, key),
                _ => Err(RequestError::FieldKind(field.full_name().to_owned())),
            };
        }
        _ if !rest.is_empty() => return Err(RequestError::FieldKind(field.full_name().to_owned())),
        Kind::String => Value::String(format!("key-{key}")),
        Kind::Int32 | Kind::Sint32 | Kind::Sfixed32 => Value::I32(signed),
        Kind::Int64 | Kind::Sint64 | Kind::Sfixed64 => Value::I64(key.into()),
        Kind::Uint32 | Kind::Fixed32 => Value::U32(key),
        Kind::Uint64 | Kind::Fixed64 => Value::U64(key.into()),
        _ => return Err(RequestError::FieldKind(field.full_name().to_owned())),
    };
    message.set_field(&field, value);
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pay() -> MessageDescriptor {
        let proto = Path::new(env!("CARGO_MANIFEST_DIR")).join("proto/payments/v1/payments.proto");
        let table = route::compile(&Sources { protos: vec![proto], ..Sources::default() }).unwrap();
        let pool = DescriptorPool::decode(&table.descriptor_set()[..]).unwrap();
        input(&pool, "payments.v1.PaymentService", "Pay").unwrap()
    }

    #[test]
    fn a_method_has_two_parts() {
        assert_eq!(split_method("a.b.C/D").unwrap(), ("a.b.C", "D"));
        assert_eq!(split_method("/a.b.C/D").unwrap(), ("a.b.C", "D"));
        for wrong in ["", "a.b.C", "a.b.C/", "/D", "a/b/c", "a b/c", "a/b\n"] {
            assert!(split_method(wrong).is_err(), "{wrong:?}");
        }
    }

    #[test]
    fn json_becomes_a_message() {
        let message = from_json(&pay(), br#"{"order_id":"o","amount_minor":7}"#).unwrap();
        assert_eq!(message.encode_to_vec(), b"\x0a\x01o\x10\x07");
        assert!(from_json(&pay(), br#"{"oder_id":"o"}"#).is_err());
        assert!(from_json(&pay(), b"{} x").is_err());
    }

    #[test]
    fn keys_differ() {
        let message = from_json(&pay(), br#"{"order_id":"o","amount_minor":7}"#).unwrap();
        let messages = with_keys(&message, "order_id", 3).unwrap();
        assert_eq!(&messages[2][..], b"\0\0\0\0\x09\x0a\x05key-2\x10\x07");
        assert_eq!(messages.len(), 3);
        assert_eq!(&with_keys(&message, "amount_minor", 9).unwrap()[8][..], b"\0\0\0\0\x05\x0a\x01o\x10\x08");
        assert!(matches!(with_keys(&message, "order", 1), Err(RequestError::NoField { .. })));
        assert!(matches!(with_keys(&message, "order_id.x", 1), Err(RequestError::FieldKind(_))));
    }

    #[test]
    fn a_timeout_has_eight_digits_at_most() {
        assert_eq!(grpc_timeout(Duration::from_secs(10)), "10000m");
        assert_eq!(grpc_timeout(Duration::from_secs(1_000_000)), "1000000S");
    }
}
