//! A dialect whose names and encodings are in the configuration, section
//! `[custom_dialect]`, for workers that have a convention of their own.
//!
//! | setting | what it names or says |
//! |---|---|
//! | `correlation_id`, `correlation_form` | header of both for the id, as `text` or `binary` |
//! | `reply_topic` | header of a request for the reply topic, UTF-8 |
//! | `reply_partition`, `reply_partition_form` | header of a request for the reply partition, as `int32` or `decimal`; none by default |
//! | `error_code` | header of a reply: a gRPC status in decimal, absent or `0` for OK |
//! | `last` | header of a reply: no other one follows; `antiphon-last` by default |
//! | `error_message` | header of a reply: text for people, UTF-8; where no `error_code` is named, its presence is the error, UNKNOWN |

use bytes::Bytes;

use super::{ReplyAddress, Role, int32, text_id};
use crate::correlation::CorrelationId;
use crate::message::reply::{DecodeError, UNKNOWN, WorkerStatus, status_code};
use crate::terms::{CorrelationForm, PartitionForm};
use crate::transport::{HeaderName, Received};

/// Names and encodings of the headers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Custom {
    /// Header of both: the correlation id.
    pub correlation_id: String,
    /// How the id is written.
    pub correlation_form: CorrelationForm,
    /// Header of a request: where the reply goes.
    pub reply_topic: String,
    /// Header of a request: the partition that the reply goes to.
    pub reply_partition: Option<String>,
    /// How the partition is written.
    pub reply_partition_form: PartitionForm,
    /// Header of a reply: status code.
    pub error_code: Option<String>,
    /// Header of a reply: what went wrong.
    pub error_message: Option<String>,
    /// Header of a reply: no other one follows.
    pub last: Option<String>,
}

impl Custom {
    pub(super) fn write_request(
        &self,
        id: CorrelationId,
        reply_to: Option<&ReplyAddress>,
        headers: &mut Vec<(HeaderName, Bytes)>,
    ) {
        let id = match self.correlation_form {
            CorrelationForm::Text => text_id(id),
            CorrelationForm::Binary => Bytes::copy_from_slice(&id.to_bytes()),
        };
        headers.push((HeaderName::Owned(self.correlation_id.clone()), id));
        let Some(address) = reply_to else { return };
        headers.push((HeaderName::Owned(self.reply_topic.clone()), address.topic.clone()));
        if let (Some(name), Some(partition)) = (&self.reply_partition, address.partition) {
            let partition = match self.reply_partition_form {
                PartitionForm::Int32 => int32(partition),
                PartitionForm::Decimal => Bytes::from(partition.to_string()),
            };
            headers.push((HeaderName::Owned(name.clone()), partition));
        }
    }

    pub(super) fn role_of(&self, name: &str) -> Option<Role> {
        match name {
            _ if name == self.correlation_id => Some(Role::CorrelationId),
            _ if name == self.reply_topic => Some(Role::ReplyTopic),
            _ => None,
        }
    }

    pub(super) fn error_of(&self, reply: &Received) -> Result<Option<WorkerStatus>, DecodeError> {
        let header = |name: &Option<String>| name.as_deref().and_then(|name| reply.header(name));
        let message = header(&self.error_message);
        let code = match &self.error_code {
            Some(name) => status_code(name, reply.header(name))?.filter(|code| *code > 0),
            None => message.map(|_| UNKNOWN),
        };
        let text = || message.map_or_else(String::new, |text| String::from_utf8_lossy(text).into_owned());
        Ok(code.map(|code| WorkerStatus::new(code, text(), Bytes::new())))
    }

    pub(super) fn is_own(&self, name: &str) -> bool {
        let names = [&self.reply_partition, &self.error_code, &self.error_message, &self.last];
        name == self.correlation_id
            || name == self.reply_topic
            || names.into_iter().any(|own| own.as_deref() == Some(name))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::message::dialect::tests::{ADDRESS, ID, ID_BYTES, assert_headers, custom, reply};

    #[test]
    fn golden_bytes_of_a_request() {
        let mut headers = Vec::new();
        custom().write_request(ID(), Some(&ADDRESS()), &mut headers);
        assert_headers(
            &headers,
            &[("x-call", b"00000102-0003-8004-8005-000000000006"), ("x-answer-to", b"replies.a")],
        );

        let whole = Custom {
            correlation_form: CorrelationForm::Binary,
            reply_partition: Some("x-answer-part".to_owned()),
            reply_partition_form: PartitionForm::Decimal,
            ..custom()
        };
        let mut headers = Vec::new();
        whole.write_request(ID(), Some(&ADDRESS()), &mut headers);
        assert_headers(
            &headers,
            &[("x-call", &ID_BYTES), ("x-answer-to", b"replies.a"), ("x-answer-part", b"258")],
        );

        let int32 = Custom { reply_partition_form: PartitionForm::Int32, ..whole };
        let mut headers = Vec::new();
        int32.write_request(ID(), Some(&ADDRESS()), &mut headers);
        assert_eq!(headers[2].1, &[0, 0, 1, 2][..]);
    }

    #[test]
    fn golden_errors() {
        let both = Custom {
            error_code: Some("x-code".to_owned()),
            error_message: Some("x-error".to_owned()),
            ..custom()
        };
        let error = |custom: &Custom, headers: &[(&'static str, &'static [u8])]| {
            let found = custom.error_of(&reply(None, headers));
            found.map(|status| status.map(|status| (status.code, status.message)))
        };
        assert_eq!(error(&both, &[]), Ok(None));
        assert_eq!(error(&both, &[("x-code", b"0"), ("x-error", b"none")]), Ok(None));
        assert_eq!(error(&both, &[("x-error", b"no funds")]), Ok(None));
        let found = error(&both, &[("x-code", b"9"), ("x-error", "없음".as_bytes())]);
        assert_eq!(found, Ok(Some((9, "없음".to_owned()))));
        assert!(error(&both, &[("x-code", b"99")]).is_err());

        let message_alone = Custom { error_code: None, ..both };
        let found = error(&message_alone, &[("x-error", b"no funds")]);
        assert_eq!(found, Ok(Some((2, "no funds".to_owned()))));
    }
}
