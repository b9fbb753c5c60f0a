//! What a worker has answered.

use base64::Engine as _;
use base64::alphabet;
use base64::engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig};
use bytes::Bytes;
use percent_encoding::AsciiSet;

use super::dialect::Dialect;
use super::{CONTENT_TYPE, TRACEPARENT, TRACESTATE};
use crate::limits;
use crate::route::WireError;
use crate::transport::{HeaderName, Received};

/// gRPC sends binary metadata without padding and accepts both.
const BASE64: GeneralPurpose = GeneralPurpose::new(
    &alphabet::STANDARD,
    GeneralPurposeConfig::new().with_decode_padding_mode(DecodePaddingMode::Indifferent),
);

const GRPC_STATUS: &str = "grpc-status";
const GRPC_MESSAGE: &str = "grpc-message";
const GRPC_STATUS_DETAILS: &str = "grpc-status-details-bin";

/// A reply, decoded as far as gRPC is concerned: the message stays bytes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reply {
    /// The message, or the status that stands in its place.
    pub result: Result<Bytes, WorkerStatus>,
    /// Headers of the reply record that are neither ours nor the dialect's;
    /// the allow-list picks from them what becomes response metadata.
    pub headers: Vec<(HeaderName, Bytes)>,
}

/// A worker's error.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WorkerStatus {
    /// gRPC status code, 1 to 16.
    pub code: u8,
    /// For people.
    pub message: String,
    /// An encoded `google.rpc.Status`, or empty.
    pub details: Bytes,
}

/// gRPC's status for an error without a code.
pub(super) const UNKNOWN: u8 = 2;

impl WorkerStatus {
    /// Cuts the message to what a trailer can hold.
    pub(super) fn new(code: u8, mut message: String, details: Bytes) -> Self {
        message.truncate(message.floor_char_boundary(limits::STATUS_MESSAGE_BYTES_MAX));
        Self { code, message, details }
    }
}

/// Why a reply can't be handed on.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum DecodeError {
    /// `grpc-status`, or the dialect's header like it, is no status code.
    #[error("its {header} header {found:?} is no status code; expected a decimal number from 0 to 16")]
    Status {
        /// Name of the header.
        header: String,
        /// What it says.
        found: String,
    },
    /// `grpc-status-details-bin` is not base64.
    #[error("its grpc-status-details-bin header is not base64")]
    Details,
    /// No value, and no status that explains it.
    #[error("it has no value (a tombstone) and no grpc-status; an empty message is a value of 0 bytes")]
    Tombstone,
    /// The reply of a dialect in which replies are streams ended before there
    /// was a message.
    #[error("it ended without a message")]
    NoMessage,
    /// Such a stream had more than one message.
    #[error(
        "it has more than one message, of which the first is at offset {first}; a unary call has one reply"
    )]
    SecondMessage {
        /// Offset of the first.
        first: i64,
    },
    /// No protobuf message.
    #[error("its value is no {message_type}: {cause}{guess}")]
    Message {
        /// Full name of the type.
        message_type: String,
        /// Why.
        cause: WireError,
        /// What it may be instead.
        guess: &'static str,
    },
    /// No JSON, or one that the method's type has no place for.
    #[error("its value is no {message_type} in JSON, at {path:?}: {cause}")]
    Json {
        /// Full name of the type.
        message_type: String,
        /// Path of the offending field, `.` for the whole.
        path: String,
        /// Why.
        cause: String,
    },
    /// 0 bytes are no JSON.
    #[error("its value has 0 bytes, which is no JSON; an empty message is {{}}")]
    EmptyJson,
    /// The value lacks the framing with the schema's id.
    #[error("its value is not framed as confluent-protobuf: {0}")]
    NotFramed(String),
    /// The schema that it names is of no use.
    #[error("its schema id {id} {cause}")]
    Schema {
        /// The id.
        id: i32,
        /// Why.
        cause: String,
    },
    /// A message larger than a gRPC client would take.
    #[error("its value has {found} bytes; at most {max} are allowed (grpc.message_bytes_max)")]
    TooLarge {
        /// Bytes of the value.
        found: usize,
        /// The bound.
        max: usize,
    },
}

impl Reply {
    /// Decodes a reply record. `null_is_empty` says that the method returns
    /// `google.protobuf.Empty`, for which a null value is as good as none.
    pub fn decode(
        record: Received,
        dialect: &Dialect,
        null_is_empty: bool,
        message_bytes_max: usize,
    ) -> Result<Self, DecodeError> {
        // Error headers first: a null value with an error is no tombstone.
        let code = status_code(GRPC_STATUS, record.header(GRPC_STATUS))?;
        let error = match code {
            Some(0) => None,
            Some(code) => Some(worker_status(code, &record)?),
            None => dialect.error_of(&record)?,
        };
        let result = match (error, record.value.as_ref()) {
            (Some(error), _) => Err(error),
            (None, Some(value)) if value.len() > message_bytes_max => {
                return Err(DecodeError::TooLarge { found: value.len(), max: message_bytes_max });
            }
            (None, Some(value)) => Ok(value.clone()),
            (None, None) if null_is_empty || code == Some(0) => Ok(Bytes::new()),
            (None, None) if *dialect == Dialect::Zilla => return Err(DecodeError::NoMessage),
            (None, None) => return Err(DecodeError::Tombstone),
        };
        let mut headers = record.headers;
        headers.retain_mut(|(name, _)| {
            if is_reserved(name) {
                return false;
            }
            let offered = dialect.metadata_of(std::mem::take(name));
            offered.map(|offered| *name = offered).is_some()
        });
        Ok(Self { result, headers })
    }
}

/// Whether [`Reply::decode`] would find an error in it, or a status that is none.
pub(super) fn is_error(record: &Received, dialect: &Dialect) -> bool {
    match status_code(GRPC_STATUS, record.header(GRPC_STATUS)) {
        Ok(Some(code)) => code > 0,
        Err(_) => true,
        Ok(None) => !matches!(dialect.error_of(record), Ok(None)),
    }
}

/// The headers by which a worker answers with an error.
pub fn reply_headers(status: &WorkerStatus) -> Vec<(HeaderName, Bytes)> {
    let message = percent_encoding::utf8_percent_encode(&status.message, GRPC_MESSAGE_ESCAPES).to_string();
    let mut headers = vec![
        (HeaderName::Borrowed(GRPC_STATUS), Bytes::from(status.code.to_string())),
        (HeaderName::Borrowed(GRPC_MESSAGE), Bytes::from(message)),
    ];
    if !status.details.is_empty() {
        headers
            .push((HeaderName::Borrowed(GRPC_STATUS_DETAILS), Bytes::from(BASE64.encode(&status.details))));
    }
    headers
}

/// What the gRPC wire format has escaped in `grpc-message`: everything outside
/// of printable ASCII, and the percent sign.
const GRPC_MESSAGE_ESCAPES: &AsciiSet = &percent_encoding::CONTROLS.add(b'%');

fn is_reserved(name: &str) -> bool {
    [GRPC_STATUS, GRPC_MESSAGE, GRPC_STATUS_DETAILS, CONTENT_TYPE, TRACEPARENT, TRACESTATE].contains(&name)
}

/// Reads a status code in decimal from the header `name`.
pub(super) fn status_code(name: &str, header: Option<&Bytes>) -> Result<Option<u8>, DecodeError> {
    let Some(value) = header else { return Ok(None) };
    let refused = || DecodeError::Status {
        header: name.to_owned(),
        found: String::from_utf8_lossy(&value[..value.len().min(64)]).into_owned(),
    };
    if value.is_empty() || value.len() > 2 || !value.iter().all(u8::is_ascii_digit) {
        return Err(refused());
    }
    let code = value.iter().fold(0u8, |code, digit| code * 10 + (digit - b'0'));
    if code > 16 { Err(refused()) } else { Ok(Some(code)) }
}

/// Text that is percent-encoded, as gRPC has it.
pub(super) fn percent_decoded(header: Option<&Bytes>) -> String {
    let text = header.map_or(&[][..], |value| value);
    percent_encoding::percent_decode(text).decode_utf8_lossy().into_owned()
}

fn worker_status(code: u8, record: &Received) -> Result<WorkerStatus, DecodeError> {
    let message = percent_decoded(record.header(GRPC_MESSAGE));
    let details = match record.header(GRPC_STATUS_DETAILS) {
        Some(encoded) => Bytes::from(BASE64.decode(encoded).map_err(|_| DecodeError::Details)?),
        None => Bytes::new(),
    };
    Ok(WorkerStatus::new(code, message, details))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::terms::CorrelationForm;

    const SPRING: Dialect = Dialect::Spring(CorrelationForm::Text);

    fn record(value: Option<&'static [u8]>, headers: &[(&'static str, &'static str)]) -> Received {
        Received {
            offset: 1,
            partition: 0,
            timestamp_ms: 0,
            key: None,
            value: value.map(Bytes::from_static),
            headers: headers
                .iter()
                .map(|(n, v)| (HeaderName::Borrowed(*n), Bytes::from_static(v.as_bytes())))
                .collect(),
        }
    }

    fn decode(record: Received) -> Result<Result<Bytes, WorkerStatus>, DecodeError> {
        Reply::decode(record, &SPRING, false, 16).map(|reply| reply.result)
    }

    #[test]
    fn a_value_is_the_message() {
        assert_eq!(decode(record(Some(b"hi"), &[])), Ok(Ok(Bytes::from_static(b"hi"))));
        assert_eq!(decode(record(Some(b""), &[("grpc-status", "0")])), Ok(Ok(Bytes::new())));
    }

    #[test]
    fn an_error_keeps_code_message_and_details() {
        let headers = [
            ("grpc-status", "9"),
            ("grpc-message", "no%20funds%3A %E2%82%AC5"),
            ("grpc-status-details-bin", "CAk"),
        ];
        let expected = WorkerStatus {
            code: 9,
            message: "no funds: €5".to_owned(),
            details: Bytes::from_static(&[8, 9]),
        };
        assert_eq!(decode(record(None, &headers)), Ok(Err(expected)));
    }

    #[test]
    fn what_can_not_be_understood_says_why() {
        for bad in ["", "17", "abc", "-1", "001", " 5"] {
            let headers: &'static [(&'static str, &'static str)] = vec![("grpc-status", bad)].leak();
            assert_eq!(
                decode(record(Some(b""), headers)),
                Err(DecodeError::Status { header: GRPC_STATUS.to_owned(), found: bad.to_owned() }),
                "{bad:?}"
            );
        }
        assert_eq!(decode(record(None, &[])), Err(DecodeError::Tombstone));
        assert_eq!(
            decode(record(None, &[("grpc-status", "5"), ("grpc-status-details-bin", "*")])),
            Err(DecodeError::Details)
        );
        assert_eq!(
            decode(record(Some(b"0123456789abcdefg"), &[])),
            Err(DecodeError::TooLarge { found: 17, max: 16 })
        );
    }

    #[test]
    fn null_is_an_empty_message_where_it_can_only_be_that() {
        assert_eq!(decode(record(None, &[("grpc-status", "0")])), Ok(Ok(Bytes::new())));
        let reply = Reply::decode(record(None, &[]), &SPRING, true, 16);
        assert_eq!(reply.map(|r| r.result), Ok(Ok(Bytes::new())));
    }

    #[test]
    fn protocol_headers_are_not_offered_as_metadata() {
        let headers = [("grpc-status", "0"), ("kafka_correlationId", "x"), ("x-shop", "7")];
        let reply = Reply::decode(record(Some(b""), &headers), &SPRING, false, 16).unwrap();
        assert_eq!(reply.headers, [(HeaderName::Borrowed("x-shop"), Bytes::from_static(b"7"))]);
    }

    #[test]
    fn an_error_survives_the_way_there_and_back() {
        let status = WorkerStatus {
            code: 5,
            message: "100 % of nothing: 없음\n".to_owned(),
            details: Bytes::from_static(b"\x01\xff"),
        };
        let headers = reply_headers(&status);
        let record = Received { offset: 0, partition: 0, timestamp_ms: 0, key: None, value: None, headers };
        assert_eq!(decode(record), Ok(Err(status)));
    }

    proptest! {
        #[test]
        fn arbitrary_headers_never_panic(
            value in proptest::option::of(proptest::collection::vec(any::<u8>(), 0..32)),
            status in proptest::collection::vec(any::<u8>(), 0..6),
            message in proptest::collection::vec(any::<u8>(), 0..64),
            details in proptest::collection::vec(any::<u8>(), 0..64),
        ) {
            let headers = vec![
                (HeaderName::Borrowed(GRPC_STATUS), Bytes::from(status)),
                (HeaderName::Borrowed(GRPC_MESSAGE), Bytes::from(message)),
                (HeaderName::Borrowed(GRPC_STATUS_DETAILS), Bytes::from(details)),
            ];
            let record = Received { offset: 0, partition: 0, timestamp_ms: 0, key: None, value: value.map(Bytes::from), headers };
            if let Ok(Reply { result: Err(status), .. }) = Reply::decode(record, &SPRING, false, 16) {
                prop_assert!((1..=16).contains(&status.code));
            }
        }
    }
}
