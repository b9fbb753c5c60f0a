//! rskafka's errors in our words.

use rskafka::BackoffError;
use rskafka::client::error::{Error as ClientError, ProtocolError};

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

/// One line for people. rskafka prints a cause once per layer; the innermost
/// says all.
pub(super) fn line(error: &ClientError) -> String {
    let text = root(error).to_string();
    let text = text.rsplit("Source: ").next().unwrap_or(&text);
    match root(error) {
        ClientError::ServerError { protocol_error, error_message, .. } => match error_message {
            Some(message) => format!("{protocol_error}: {message}"),
            None => protocol_error.to_string(),
        },
        _ => hint(text),
    }
}

/// Adds what the bare text leaves to guess.
fn hint(text: &str) -> String {
    let advice = if text.contains("Cannot read framed message")
        || text.contains("cannot sync versions")
        || text.contains("Connection is poisoned")
    {
        " (is this a Kafka broker, and does it expect TLS or SASL where none is set?)"
    } else {
        ""
    };
    format!("{text}{advice}")
}

pub(super) fn cluster_error(error: &ClientError, topic: &str) -> ClusterError {
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
            | ProtocolError::InvalidReplicationFactor => ClusterError::Unreachable(line(error)),
            _ => ClusterError::Refused(line(error)),
        },
        // The topic is known, but not with this partition.
        ClientError::InvalidResponse(text) if text.starts_with("Could not find metadata for partition") => {
            ClusterError::NoSuchTopic(topic.to_owned())
        }
        _ => ClusterError::Unreachable(line(error)),
    }
}

pub(super) fn fetch_error(error: &ClientError) -> FetchError {
    match root(error) {
        ClientError::ServerError { protocol_error, .. } => match protocol_error {
            ProtocolError::OffsetOutOfRange => FetchError::OffsetOutOfRange,
            ProtocolError::UnknownTopicOrPartition | ProtocolError::UnknownTopicId => FetchError::NoSuchTopic,
            ProtocolError::TopicAuthorizationFailed | ProtocolError::ClusterAuthorizationFailed => {
                FetchError::Refused(line(error))
            }
            ProtocolError::CorruptMessage => FetchError::Undecodable(line(error)),
            _ => FetchError::Unreachable(line(error)),
        },
        ClientError::Request(request) if is_undecodable(request) => FetchError::Undecodable(line(error)),
        ClientError::InvalidResponse(text) if text.contains("imestamp") => {
            FetchError::Undecodable(line(error))
        }
        _ => FetchError::Unreachable(line(error)),
    }
}

/// A whole answer came, and its body can't be read: it will not change.
fn is_undecodable(error: &rskafka::client::error::RequestError) -> bool {
    use rskafka::client::error::RequestError as E;
    matches!(error, E::ReadError(_) | E::ReadVersionedError(_) | E::TooMuchData { .. })
}
