//! What stands in the way of the reply path: a sentence for people, and a word
//! for metrics, alerts and callers.

use std::fmt;
use std::sync::Arc;

use crate::terms::{AUTHENTICATION_FAILED, CERTIFICATE_SETTING, NOT_AUTHORIZED};

/// In one word.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Reason {
    /// Kafka does not believe who we say we are.
    Credentials,
    /// It does, and an ACL is missing.
    Denied,
    /// The reply topic is gone and could not be made again.
    ReplyTopicGone,
    /// Brokers do not answer, or can't do what they should.
    Unreachable,
}

impl Reason {
    /// All there are, the weightiest first.
    pub const ALL: [Self; 4] = [Self::Credentials, Self::Denied, Self::ReplyTopicGone, Self::Unreachable];

    /// As it is written in the label of `antiphon_reply_path_trouble`.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Credentials => "credentials",
            Self::Denied => "denied",
            Self::ReplyTopicGone => "reply-topic-gone",
            Self::Unreachable => "unreachable",
        }
    }

    /// By what a broker's refusal became on its way here.
    fn of(text: &str) -> Self {
        if text.contains(AUTHENTICATION_FAILED) || text.contains(CERTIFICATE_SETTING) {
            Self::Credentials
        } else if text.contains(NOT_AUTHORIZED) {
            Self::Denied
        } else {
            Self::Unreachable
        }
    }
}

/// For callers, who must not learn where Kafka is and as whom it is spoken to.
impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Credentials => "Kafka does not accept its credentials",
            Self::Denied => "Kafka does not let it do what it must (an ACL is missing)",
            Self::ReplyTopicGone => "its reply topic is gone and could not be created again",
            Self::Unreachable => "it cannot reach Kafka, or Kafka cannot take or give records",
        })
    }
}

/// Which half of the reply path has met it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Half {
    /// The one that replies depend on.
    Reader,
    /// Heartbeats; their word counts where the reader has none.
    Heart,
}

/// What stands in the way.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Trouble {
    half: Half,
    /// In one word.
    pub(super) reason: Reason,
    /// For operators.
    pub(super) text: Arc<str>,
}

impl Trouble {
    /// As the error's text tells.
    pub(super) fn new(half: Half, text: String) -> Self {
        Self { half, reason: Reason::of(&text), text: text.into() }
    }

    /// The reply topic is gone.
    pub(super) fn topic_gone(text: String) -> Self {
        Self { half: Half::Reader, reason: Reason::ReplyTopicGone, text: text.into() }
    }

    /// Whether this is to be told from now on, and not `known`.
    pub(super) fn outweighs(&self, known: &Self) -> bool {
        self.half == Half::Reader || known.half == Half::Heart
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_reason_is_in_the_words() {
        let reason = |text: &str| Trouble::new(Half::Heart, text.to_owned()).reason;
        assert_eq!(
            reason("cannot read: SASL authentication failed: the broker does not accept user \"a\""),
            Reason::Credentials
        );
        assert_eq!(
            reason("the broker does not trust the certificate in kafka.tls.cert_file (x)"),
            Reason::Credentials
        );
        assert_eq!(
            reason("not authorized: an ACL must allow the gateway's user Read on topic a"),
            Reason::Denied
        );
        assert_eq!(reason("not sent: no answer within 5s"), Reason::Unreachable);
        let words: std::collections::BTreeSet<_> = Reason::ALL.map(Reason::as_str).into();
        assert_eq!(words.len(), Reason::ALL.len());
    }

    #[test]
    fn the_reader_knows_better() {
        let heart = Trouble::new(Half::Heart, "not sent: no such topic or partition".to_owned());
        let gone = Trouble::topic_gone("it is gone".to_owned());
        assert!(gone.outweighs(&heart) && gone.outweighs(&gone) && heart.outweighs(&heart));
        assert!(!heart.outweighs(&gone));
    }
}
