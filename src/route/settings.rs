//! Settings of a method, as they were written and before they are judged. The
//! options in a `.proto` and the sections of the TOML file both become these.

use super::mistake::{Mistake, Origin};

/// A value and where it was written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Sourced<T> {
    /// The value as written.
    pub value: T,
    /// Its place.
    pub origin: Origin,
}

impl<T> Sourced<T> {
    /// Puts a value and its place together.
    pub fn new(value: T, origin: Origin) -> Self {
        Self { value, origin }
    }

    /// A mistake at this value's place.
    pub fn mistake(&self, what: impl Into<String>) -> Mistake {
        self.origin.mistake(what)
    }
}

/// What may be set for a method, or for a service as its methods' default; the
/// names are those of `antiphon.v1.KafkaOptions`. Words are spelled as in TOML.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Settings {
    /// Topic that requests are produced to.
    pub request_topic: Option<Sourced<String>>,
    /// Path of the field that becomes the record key; empty for no key.
    pub key: Option<Sourced<String>>,
    /// A fixed partition.
    pub partition: Option<Sourced<i64>>,
    /// Time that a call may take when the caller sets none.
    pub timeout: Option<Sourced<String>>,
    /// Longest time that a caller may ask for.
    pub timeout_max: Option<Sourced<String>>,
    /// `request-reply` or `one-way`.
    pub mode: Option<Sourced<String>>,
    /// Headers of the worker's framework.
    pub dialect: Option<Sourced<String>>,
    /// How the dialect writes the correlation id.
    pub correlation_form: Option<Sourced<String>>,
    /// How the message becomes the record's value.
    pub format: Option<Sourced<String>>,
    /// Names of the fields in JSON.
    pub json_names: Option<Sourced<String>>,
    /// Whether JSON has fields that have their default.
    pub json_defaults: Option<Sourced<bool>>,
    /// Subject of the request's schema in the schema registry.
    pub schema_subject: Option<Sourced<String>>,
    /// Compression of the request batches.
    pub compression: Option<Sourced<String>>,
    /// Path of the field that names the partition; empty for none.
    pub partition_field: Option<Sourced<String>>,
    /// What sends a request to the dead-letter topic.
    pub dead_letter_on: Option<Sourced<Vec<String>>>,
    /// Dead-letter topic.
    pub dead_letter_topic: Option<Sourced<String>>,
    /// Whether the worker is told when a caller gives up.
    pub cancel_record: Option<Sourced<bool>>,
    /// Calls of the method that may be in flight at once.
    pub in_flight_max: Option<Sourced<i64>>,
    /// How many replies answer a call.
    pub replies: Option<Sourced<i64>>,
    /// Whether a reply that says it is the last ends the wait.
    pub until_last: Option<Sourced<bool>>,
    /// Whether what has come by the deadline is the answer.
    pub partial_on_timeout: Option<Sourced<bool>>,
    /// The repeated field of the response that the replies are put in.
    pub replies_field: Option<Sourced<String>>,
    /// Whether replies that are errors are left out.
    pub skip_errors: Option<Sourced<bool>>,
    /// Replies of one call that may be held.
    pub replies_max: Option<Sourced<i64>>,
}

impl Settings {
    /// Every name, for hints.
    pub const NAMES: &'static [&'static str] = &[
        "request_topic",
        "key",
        "partition",
        "timeout",
        "timeout_max",
        "mode",
        "dialect",
        "correlation_form",
        "format",
        "json_names",
        "json_defaults",
        "schema_subject",
        "compression",
        "partition_field",
        "dead_letter_on",
        "dead_letter_topic",
        "cancel_record",
        "in_flight_max",
        "replies",
        "until_last",
        "partial_on_timeout",
        "replies_field",
        "skip_errors",
        "replies_max",
    ];
}

/// Settings for a service or a method from outside its `.proto`.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Overlay {
    /// Where the section begins.
    pub origin: Origin,
    /// What it sets.
    pub settings: Settings,
}

/// The settings that bear on one method, nearest first.
pub(super) struct Layers<'a>(pub(super) Vec<&'a Settings>);

impl<'a> Layers<'a> {
    /// The nearest layer's value.
    pub(super) fn pick<T>(
        &self,
        get: impl Fn(&'a Settings) -> &'a Option<Sourced<T>>,
    ) -> Option<&'a Sourced<T>> {
        self.0.iter().find_map(|settings| get(settings).as_ref())
    }
}
