//! rskafka's errors in our words.

use rskafka::BackoffError;
use rskafka::client::error::{Error as ClientError, ProtocolError};

use crate::terms::NOT_AUTHORIZED;
use crate::transport::{ClusterError, FetchError};

/// The error that rskafka wraps when its retries, which we turn off, are over.
pub(super) fn root(error: &ClientError) -> &ClientError {
    match error {
        ClientError::RetryFailed(BackoffError::DeadlineExceded { source, .. }) => {
            source.downcast_ref::<ClientError>().map_or(error, root)
        }
        other => other,
    }
}

/// What was asked of the cluster: named where the answer is that this may not
/// be done.
#[derive(Debug, Clone, Copy)]
pub(super) struct Deed<'a> {
    /// The operation that an ACL has to allow, as Kafka calls it.
    pub(super) operation: &'static str,
    /// On which topic; empty for the cluster itself.
    pub(super) topic: &'a str,
}

impl<'a> Deed<'a> {
    pub(super) fn new(operation: &'static str, topic: &'a str) -> Self {
        Self { operation, topic }
    }

    fn denied(self) -> String {
        let Self { operation, topic } = self;
        if topic.is_empty() {
            format!("{NOT_AUTHORIZED}: an ACL must allow the gateway's user {operation} on the cluster")
        } else {
            format!("{NOT_AUTHORIZED}: an ACL must allow the gateway's user {operation} on topic {topic}")
        }
    }
}

/// One line for people. rskafka prints a cause once per layer; the innermost
/// says all.
pub(super) fn line(error: &ClientError, deed: Deed<'_>) -> String {
    let text = root(error).to_string();
    let text = text.rsplit("Source: ").next().unwrap_or(&text);
    match root(error) {
        ClientError::ServerError {
            protocol_error:
                ProtocolError::TopicAuthorizationFailed | ProtocolError::ClusterAuthorizationFailed,
            ..
        } => deed.denied(),
        ClientError::ServerError { protocol_error, error_message, .. } => match error_message {
            Some(message) => format!("{protocol_error}: {message}"),
            None => protocol_error.to_string(),
        },
        _ => hint(text),
    }
}

/// What a broker's words mean, by what is found in them first, where the words
/// alone leave it to guess.
const MEANINGS: [(&str, &str); 17] = [
    ("SaslAuthenticationFailed", SASL_REFUSED),
    // The broker's answer to a bad token is one that goes on (RFC 7628).
    ("Sasl session error", SASL_REFUSED),
    ("UnsupportedSaslMechanism", "the broker does not have this SASL mechanism enabled"),
    ("unsupported sasl mechanism", "the broker does not have this SASL mechanism enabled"),
    ("IllegalSaslState", "the broker does not expect SASL on this listener"),
    ("UnknownIssuer", "the broker's certificate is not signed by anyone whom kafka.tls.ca_file trusts"),
    ("BadSignature", "the broker's certificate is not signed by anyone whom kafka.tls.ca_file trusts"),
    ("not valid for name", "the broker's certificate is for another host name"),
    ("NotValidForName", "the broker's certificate is for another host name"),
    ("certificate expired", "the broker's certificate has expired"),
    ("CertificateRequired", CERTIFICATE_MISSING),
    ("BadCertificate", CERTIFICATE_MISSING),
    ("CertificateUnknown", "the broker does not trust the certificate in kafka.tls.cert_file"),
    ("UnknownCA", "the broker does not trust the certificate in kafka.tls.cert_file"),
    ("InvalidContentType", "the broker does not speak TLS on this port, and kafka.tls is on"),
    ("tls handshake eof", "the broker does not speak TLS on this port, and kafka.tls is on"),
    // A TLS alert, whose beginning passes for the length of an answer.
    ("too large", "is this a Kafka broker, and does it expect TLS where none is set?"),
];
const SASL_REFUSED: &str = "SASL authentication failed: the broker does not accept";
const CERTIFICATE_MISSING: &str =
    "the broker expects a client certificate that it trusts; see kafka.tls.cert_file";
const CLOSED: [&str; 6] = [
    "Cannot read framed message",
    "cannot sync versions",
    "Connection is poisoned",
    "unexpected end of file",
    "early eof",
    "Connection reset by peer",
];

/// Adds what the bare text leaves to guess.
fn hint(text: &str) -> String {
    let meaning = MEANINGS.iter().find(|(words, _)| text.contains(words)).map(|(_, meaning)| *meaning);
    match meaning {
        Some(meaning) => format!("{meaning} ({text})"),
        None if CLOSED.iter().any(|words| text.contains(words)) => {
            format!("{text} (is this a Kafka broker, and does it expect TLS or SASL where none is set?)")
        }
        None => text.to_owned(),
    }
}

/// Says of an authentication that failed whose it was.
pub(super) fn name_user(text: &str, user: impl FnOnce() -> String) -> String {
    match text.split_once(SASL_REFUSED) {
        Some((before, after)) => format!("{before}{SASL_REFUSED} {}{after}", user()),
        None => text.to_owned(),
    }
}

pub(super) fn cluster_error(error: &ClientError, deed: Deed<'_>) -> ClusterError {
    let topic = deed.topic;
    match root(error) {
        ClientError::ServerError { protocol_error, .. } => match protocol_error {
            ProtocolError::UnknownTopicOrPartition | ProtocolError::UnknownTopicId => {
                ClusterError::NoSuchTopic(topic.to_owned())
            }
            ProtocolError::LeaderNotAvailable
            | ProtocolError::NotLeaderOrFollower
            | ProtocolError::BrokerNotAvailable
            | ProtocolError::NotController
            | ProtocolError::RequestTimedOut
            | ProtocolError::NetworkException
            | ProtocolError::UnknownServerError
            | ProtocolError::ThrottlingQuotaExceeded
            // What a broker says of a replication factor while others start.
            | ProtocolError::InvalidReplicationFactor => ClusterError::Unreachable(line(error, deed)),
            _ => ClusterError::Refused(line(error, deed)),
        },
        // The topic is known, but not with this partition.
        ClientError::InvalidResponse(text) if text.starts_with("Could not find metadata for partition") => {
            ClusterError::NoSuchTopic(topic.to_owned())
        }
        _ => ClusterError::Unreachable(line(error, deed)),
    }
}

pub(super) fn fetch_error(error: &ClientError, deed: Deed<'_>) -> FetchError {
    match root(error) {
        ClientError::ServerError { protocol_error, .. } => match protocol_error {
            ProtocolError::OffsetOutOfRange => FetchError::OffsetOutOfRange,
            ProtocolError::UnknownTopicOrPartition | ProtocolError::UnknownTopicId => FetchError::NoSuchTopic,
            ProtocolError::TopicAuthorizationFailed | ProtocolError::ClusterAuthorizationFailed => {
                FetchError::Refused(line(error, deed))
            }
            ProtocolError::CorruptMessage => FetchError::Undecodable(line(error, deed)),
            _ => FetchError::Unreachable(line(error, deed)),
        },
        ClientError::Request(request) if is_undecodable(request) => {
            FetchError::Undecodable(line(error, deed))
        }
        ClientError::InvalidResponse(text) if text.contains("imestamp") => {
            FetchError::Undecodable(line(error, deed))
        }
        _ => FetchError::Unreachable(line(error, deed)),
    }
}

/// A whole answer came, and its body can't be read: it will not change.
fn is_undecodable(error: &rskafka::client::error::RequestError) -> bool {
    use rskafka::client::error::RequestError as E;
    matches!(error, E::ReadError(_) | E::ReadVersionedError(_) | E::TooMuchData { .. })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_broker_says_is_explained() {
        let refused = hint("Sasl handshake failed: API error: SaslAuthenticationFailed");
        let named = name_user(&refused, || "user \"a\" with PLAIN".to_owned());
        assert!(
            named.starts_with("SASL authentication failed: the broker does not accept user \"a\" with PLAIN"),
            "{named}"
        );
        assert!(hint("invalid peer certificate: UnknownIssuer").contains("kafka.tls.ca_file"));
        assert!(hint("cannot sync versions: early eof").contains("does it expect TLS or SASL"));
        assert_eq!(hint("something else"), "something else");
        assert_eq!(name_user("something else", || unreachable!()), "something else");
        let denied = Deed::new("Write", "orders").denied();
        assert!(denied.contains("Write on topic orders"), "{denied}");
        // The words by which alerts know what it is.
        assert!(SASL_REFUSED.starts_with(crate::terms::AUTHENTICATION_FAILED));
        for text in ["received fatal alert: CertificateRequired", "received fatal alert: UnknownCA"] {
            assert!(hint(text).contains(crate::terms::CERTIFICATE_SETTING), "{text}");
        }
    }
}
