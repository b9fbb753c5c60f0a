//! What a handler says when it has no reply: a gRPC status, and whether another
//! attempt may help.

use std::fmt;

use bytes::Bytes;
use prost::{Message, Name};
use prost_types::Any;

use crate::message::WorkerStatus;

/// gRPC's status codes, without OK.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[repr(u8)]
#[allow(missing_docs, reason = "gRPC's own")]
pub enum Code {
    Cancelled = 1,
    Unknown = 2,
    InvalidArgument = 3,
    DeadlineExceeded = 4,
    NotFound = 5,
    AlreadyExists = 6,
    PermissionDenied = 7,
    ResourceExhausted = 8,
    FailedPrecondition = 9,
    Aborted = 10,
    OutOfRange = 11,
    Unimplemented = 12,
    Internal = 13,
    Unavailable = 14,
    DataLoss = 15,
    Unauthenticated = 16,
}

impl Code {
    /// Its name, as gRPC writes it.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Cancelled => "CANCELLED",
            Self::Unknown => "UNKNOWN",
            Self::InvalidArgument => "INVALID_ARGUMENT",
            Self::DeadlineExceeded => "DEADLINE_EXCEEDED",
            Self::NotFound => "NOT_FOUND",
            Self::AlreadyExists => "ALREADY_EXISTS",
            Self::PermissionDenied => "PERMISSION_DENIED",
            Self::ResourceExhausted => "RESOURCE_EXHAUSTED",
            Self::FailedPrecondition => "FAILED_PRECONDITION",
            Self::Aborted => "ABORTED",
            Self::OutOfRange => "OUT_OF_RANGE",
            Self::Unimplemented => "UNIMPLEMENTED",
            Self::Internal => "INTERNAL",
            Self::Unavailable => "UNAVAILABLE",
            Self::DataLoss => "DATA_LOSS",
            Self::Unauthenticated => "UNAUTHENTICATED",
        }
    }

    /// Whether the same request may be sent again as it is: such an answer is
    /// not kept for its idempotency key.
    pub(super) const fn asks_for_another_try(self) -> bool {
        use Code::{Aborted, Cancelled, DeadlineExceeded, ResourceExhausted, Unavailable};
        matches!(self, Aborted | Cancelled | DeadlineExceeded | ResourceExhausted | Unavailable)
    }
}

/// What is to be done about an error.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// The answer is no: wrong input, or a rule of the business. It is replied;
    /// never retried, never a dead letter.
    Rejected,
    /// It may work in a moment: tried again within the caller's deadline.
    Transient,
    /// The handler could not do it, and would not the next time: replied, and a
    /// dead letter where these are on.
    Failed,
}

/// Why there is no reply.
#[derive(Debug, Clone)]
pub struct WorkerError {
    kind: Kind,
    code: Code,
    message: String,
    details: Vec<Any>,
}

impl WorkerError {
    /// The answer is no.
    pub fn rejected(code: Code, message: impl Into<String>) -> Self {
        Self { kind: Kind::Rejected, code, message: message.into(), details: Vec::new() }
    }

    /// `INVALID_ARGUMENT` that names the field, as `google.rpc.BadRequest`.
    pub fn invalid(field: &str, description: &str) -> Self {
        let violation = FieldViolation { field: field.to_owned(), description: description.to_owned() };
        let request = BadRequest { field_violations: vec![violation] };
        Self::rejected(Code::InvalidArgument, format!("{field}: {description}")).with_detail(&request)
    }

    /// It may work in a moment. What the caller sees, should it not:
    /// `UNAVAILABLE`.
    pub fn transient(message: impl fmt::Display) -> Self {
        let message = message.to_string();
        Self { kind: Kind::Transient, code: Code::Unavailable, message, details: Vec::new() }
    }

    /// The handler could not do it: `INTERNAL`.
    pub fn failed(message: impl fmt::Display) -> Self {
        let message = message.to_string();
        Self { kind: Kind::Failed, code: Code::Internal, message, details: Vec::new() }
    }

    /// The call has been cancelled, or its time is over: nobody waits.
    pub fn ended() -> Self {
        Self::rejected(Code::Cancelled, "the call has ended")
    }

    /// With another code.
    #[must_use]
    pub fn with_code(mut self, code: Code) -> Self {
        self.code = code;
        self
    }

    /// With a message for programs, such as [`ErrorInfo`], in the status's
    /// details.
    #[must_use]
    pub fn with_detail<M: Message + Name>(mut self, detail: &M) -> Self {
        let type_url = format!("type.googleapis.com/{}", M::full_name());
        self.details.push(Any { type_url, value: detail.encode_to_vec() });
        self
    }

    /// What is to be done about it.
    pub fn kind(&self) -> Kind {
        self.kind
    }

    /// Its status code.
    pub fn code(&self) -> Code {
        self.code
    }

    /// For people.
    pub fn message(&self) -> &str {
        &self.message
    }

    /// As it goes into the reply's headers.
    pub(super) fn status(&self) -> WorkerStatus {
        let mut details = Bytes::new();
        if !self.details.is_empty() {
            let (code, message) = (self.code as i32, self.message.clone());
            details = Bytes::from(Status { code, message, details: self.details.clone() }.encode_to_vec());
        }
        WorkerStatus { code: self.code as u8, message: self.message.clone(), details }
    }
}

impl fmt::Display for WorkerError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.code.as_str(), self.message)
    }
}

impl std::error::Error for WorkerError {}

/// `google.rpc.Status`.
#[derive(Clone, PartialEq, Message)]
struct Status {
    #[prost(int32, tag = "1")]
    code: i32,
    #[prost(string, tag = "2")]
    message: String,
    #[prost(message, repeated, tag = "3")]
    details: Vec<Any>,
}

/// `google.rpc.ErrorInfo`: a reason that programs can tell from others.
#[derive(Clone, PartialEq, Message)]
pub struct ErrorInfo {
    /// Such as `CURRENCY_NOT_SUPPORTED`; unique within the domain.
    #[prost(string, tag = "1")]
    pub reason: String,
    /// Who says so, such as `payments.example`.
    #[prost(string, tag = "2")]
    pub domain: String,
    /// More about it.
    #[prost(map = "string, string", tag = "3")]
    pub metadata: std::collections::HashMap<String, String>,
}

/// `google.rpc.BadRequest`: which fields are wrong.
#[derive(Clone, PartialEq, Message)]
pub struct BadRequest {
    /// One by one.
    #[prost(message, repeated, tag = "1")]
    pub field_violations: Vec<FieldViolation>,
}

/// `google.rpc.BadRequest.FieldViolation`.
#[derive(Clone, PartialEq, Message)]
pub struct FieldViolation {
    /// Path of the field.
    #[prost(string, tag = "1")]
    pub field: String,
    /// What is wrong with it.
    #[prost(string, tag = "2")]
    pub description: String,
}

impl Name for ErrorInfo {
    const NAME: &'static str = "ErrorInfo";
    const PACKAGE: &'static str = "google.rpc";
}

impl Name for BadRequest {
    const NAME: &'static str = "BadRequest";
    const PACKAGE: &'static str = "google.rpc";
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn details_travel_as_a_status() {
        let error = WorkerError::invalid("amount_minor", "must be above zero").with_detail(&ErrorInfo {
            reason: "FIELD_INVALID".to_owned(),
            domain: "payments.example".to_owned(),
            metadata: [("field".to_owned(), "amount_minor".to_owned())].into(),
        });
        let status = error.status();
        assert_eq!((status.code, &*status.message), (3, "amount_minor: must be above zero"));
        let decoded = Status::decode(status.details).unwrap();
        assert_eq!((decoded.code, decoded.details.len()), (3, 2));
        assert_eq!(decoded.details[0].type_url, "type.googleapis.com/google.rpc.BadRequest");
        let info = ErrorInfo::decode(&decoded.details[1].value[..]).unwrap();
        assert_eq!(info.metadata["field"], "amount_minor");
        assert!(WorkerError::transient("the database is away").status().details.is_empty());
    }
}
