//! The words that the configuration, the routes and the records share.

/// Names of the gRPC status codes, by number.
pub const STATUS_NAMES: [&str; 17] = [
    "OK",
    "CANCELLED",
    "UNKNOWN",
    "INVALID_ARGUMENT",
    "DEADLINE_EXCEEDED",
    "NOT_FOUND",
    "ALREADY_EXISTS",
    "PERMISSION_DENIED",
    "RESOURCE_EXHAUSTED",
    "FAILED_PRECONDITION",
    "ABORTED",
    "OUT_OF_RANGE",
    "UNIMPLEMENTED",
    "INTERNAL",
    "UNAVAILABLE",
    "DATA_LOSS",
    "UNAUTHENTICATED",
];

/// What an error says when the brokers do not believe who we say we are, and
/// how alerts know it.
pub const AUTHENTICATION_FAILED: &str = "SASL authentication failed";
/// The same of certificates: the setting that they come from.
pub const CERTIFICATE_SETTING: &str = "kafka.tls.cert_file";
/// What an error says when they do, and an ACL is missing.
pub const NOT_AUTHORIZED: &str = "not authorized";

/// Declares an enum whose values have one spelling each: in TOML, in the
/// environment, on the command line and in what we print.
macro_rules! spelled {
    ($(#[$doc:meta])* $name:ident { $($(#[$vdoc:meta])* $variant:ident = $text:literal),+ $(,)? }) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        pub enum $name { $($(#[$vdoc])* $variant),+ }

        impl $name {
            /// Every spelling, for error messages and help.
            pub const SPELLINGS: &'static [&'static str] = &[$($text),+];

            /// The spelling of this value.
            pub const fn as_str(self) -> &'static str {
                match self { $(Self::$variant => $text),+ }
            }
        }

        impl std::str::FromStr for $name {
            type Err = UnknownTerm;

            fn from_str(text: &str) -> Result<Self, UnknownTerm> {
                match text {
                    $($text => Ok(Self::$variant),)+
                    _ => Err(UnknownTerm { found: text.to_owned(), expected: Self::SPELLINGS }),
                }
            }
        }

        impl std::fmt::Display for $name {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str(self.as_str())
            }
        }
    };
}

/// A word that is none of those expected.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("unknown value {found:?}; expected one of: {}", expected.join(", "))]
pub struct UnknownTerm {
    /// What was written.
    pub found: String,
    /// What could have been.
    pub expected: &'static [&'static str],
}

spelled! {
    /// Whether a call waits for a worker's reply.
    Mode {
        /// Completes with the worker's reply.
        RequestReply = "request-reply",
        /// Completes with Kafka's acknowledgement of the request.
        OneWay = "one-way",
    }
}

spelled! {
    /// Header names and encodings of a worker framework.
    DialectName {
        /// Spring for Apache Kafka's `KafkaHeaders`.
        Spring = "spring",
        /// NestJS microservices.
        Nestjs = "nestjs",
        /// SmallRye Reactive Messaging, as in Quarkus.
        Smallrye = "smallrye",
        /// FastStream.
        Faststream = "faststream",
        /// Zilla's grpc-kafka and kafka-grpc.
        Zilla = "zilla",
        /// As the section `[custom_dialect]` says.
        Custom = "custom",
    }
}

spelled! {
    /// How a correlation id is written.
    CorrelationForm {
        /// The 36 ASCII characters of a UUID.
        Text = "text",
        /// 16 bytes, most significant first.
        Binary = "binary",
    }
}

spelled! {
    /// How the number of a reply partition is written.
    PartitionForm {
        /// Four bytes, most significant first.
        Int32 = "int32",
        /// Decimal ASCII.
        Decimal = "decimal",
    }
}

spelled! {
    /// How a message is written into a record's value.
    FormatName {
        /// The bytes of the gRPC message, untouched.
        Protobuf = "protobuf",
        /// The proto3 JSON mapping.
        Json = "json",
        /// Confluent's framing, with the id of a schema, around protobuf.
        ConfluentProtobuf = "confluent-protobuf",
    }
}

spelled! {
    /// Which names the fields have in JSON.
    JsonNames {
        /// `orderId`: lowerCamelCase, or what `json_name` says.
        LowerCamel = "lower-camel",
        /// `order_id`: as in the `.proto`.
        Proto = "proto",
    }
}

spelled! {
    /// Compression of record batches, as Kafka names it.
    Compression {
        /// No compression.
        None = "none",
        /// gzip.
        Gzip = "gzip",
        /// Snappy.
        Snappy = "snappy",
        /// LZ4.
        Lz4 = "lz4",
        /// Zstandard.
        Zstd = "zstd",
    }
}

spelled! {
    /// A reason to write a request to its dead-letter topic.
    DeadLetterOn {
        /// The deadline passed and no reply had come.
        Timeout = "timeout",
        /// The reply could not be understood.
        UndecodableReply = "undecodable-reply",
        /// Kafka refused the record.
        Rejected = "rejected",
    }
}

spelled! {
    /// What a record on a dead-letter topic is.
    DeadLetterClass {
        /// A request whose deadline passed and no reply had come.
        Timeout = "timeout",
        /// A request whose reply could not be understood.
        UndecodableReply = "undecodable-reply",
        /// A request that Kafka refused.
        Rejected = "rejected",
        /// A request that a worker's handler could not deal with.
        HandlerFailed = "handler-failed",
        /// A request at which a worker's handler panicked.
        HandlerPanicked = "handler-panicked",
        /// A request whose value is no message of its method's type.
        UndecodableRequest = "undecodable-request",
        /// A request that a worker's handler tried as often as it may.
        RetriesExhausted = "retries-exhausted",
        /// A reply that came after its call had ended.
        LateReply = "late-reply",
        /// A note that a request was sent again from here.
        Replayed = "replayed",
    }
}

spelled! {
    /// Whether callers must show a certificate.
    ClientAuth {
        /// Whoever has none is refused by the handshake.
        Required = "required",
        /// Whoever has one may show it.
        Optional = "optional",
    }
}

spelled! {
    /// How replies find the instance that waits for them.
    ReplyRouting {
        /// A reply topic of this instance's own.
        InstanceTopic = "instance-topic",
        /// A partition of a shared reply topic, leased.
        Partition = "partition",
        /// Every instance reads all of one reply topic.
        Shared = "shared",
    }
}

/// A value that never shows in logs, errors or `Debug` output.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(String);

impl Secret {
    /// Takes a secret in.
    pub fn new(value: impl Into<String>) -> Self {
        Self(value.into())
    }

    /// The value itself, for the one place that sends it.
    pub fn reveal(&self) -> &str {
        &self.0
    }
}

impl std::fmt::Debug for Secret {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("[secret]")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_spelling_reads_back() {
        for text in Compression::SPELLINGS {
            assert_eq!(text.parse::<Compression>().map(Compression::as_str), Ok(*text));
        }
        let wrong = "Gzip".parse::<Compression>();
        assert_eq!(
            wrong.map_err(|e| e.to_string()),
            Err("unknown value \"Gzip\"; expected one of: none, gzip, snappy, lz4, zstd".to_owned())
        );
    }
}
