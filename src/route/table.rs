//! The routes, ready to be looked up by a call.

use std::collections::{HashMap, HashSet};
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use prost_reflect::MessageDescriptor;

use super::compile::distinct_topics;
use super::field_path::FieldPath;
use crate::message::dialect::{Custom, Dialect};
use crate::message::format::Format;
use crate::terms::{Compression, DeadLetterOn, Mode};

/// Every method that is declared, and the routes of those that are served.
#[derive(Clone, Default)]
pub struct RouteTable {
    pub(super) routes: Vec<Arc<Route>>,
    pub(super) entries: HashMap<Arc<str>, Entry>,
    /// In the order of their declaration.
    pub(super) services: Vec<Arc<str>>,
    pub(super) service_names: HashSet<Arc<str>>,
    pub(super) descriptor_set: Vec<u8>,
    pub(super) custom_dialect: Option<Arc<Custom>>,
}

/// What a path leads to.
#[derive(Debug, Clone)]
pub(super) enum Entry {
    Route(Arc<Route>),
    /// The caller streams, so it is not served.
    Streaming {
        server: bool,
    },
}

/// What a look-up found.
#[derive(Debug, Clone, Copy)]
pub enum Lookup<'a> {
    /// A method that is served.
    Route(&'a Arc<Route>),
    /// A method that is declared, and not served because its caller sends a
    /// stream.
    Streaming {
        /// The answer is a stream, too.
        server: bool,
    },
    /// A service that is served, without this method.
    UnknownMethod,
    /// No service that is served.
    UnknownService,
}

impl RouteTable {
    /// Finds a method by its path, `/pkg.Service/Method`.
    pub fn lookup(&self, path: &str) -> Lookup<'_> {
        match self.entries.get(path) {
            Some(Entry::Route(route)) => Lookup::Route(route),
            Some(Entry::Streaming { server }) => Lookup::Streaming { server: *server },
            None => {
                let service = path.strip_prefix('/').and_then(|path| path.split('/').next());
                match service.is_some_and(|service| self.service_names.contains(service)) {
                    true => Lookup::UnknownMethod,
                    false => Lookup::UnknownService,
                }
            }
        }
    }

    /// Every route, in the order of `Route::index`.
    pub fn routes(&self) -> &[Arc<Route>] {
        &self.routes
    }

    /// Paths of the methods that are not served because their callers stream,
    /// in order.
    pub fn not_served(&self) -> Vec<&str> {
        let streaming = self.entries.iter().filter(|(_, entry)| matches!(entry, Entry::Streaming { .. }));
        let mut paths: Vec<&str> = streaming.map(|(path, _)| &**path).collect();
        paths.sort_unstable();
        paths
    }

    /// Full names of the services that are served.
    pub fn services(&self) -> impl Iterator<Item = &str> {
        self.services.iter().map(|name| &**name)
    }

    /// An encoded `FileDescriptorSet` of all files, imports included, without
    /// source information: what reflection answers from.
    pub fn descriptor_set(&self) -> Vec<u8> {
        self.descriptor_set.clone()
    }

    /// The headers that the configuration names, for the dialect `custom`.
    pub fn custom_dialect(&self) -> Option<&Arc<Custom>> {
        self.custom_dialect.as_ref()
    }

    /// The request topics, each once, in the order of the routes.
    pub fn request_topics(&self) -> Vec<Arc<str>> {
        distinct_topics(&self.routes)
    }
}

impl fmt::Debug for RouteTable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.routes.iter().map(|route| &route.path)).finish()
    }
}

/// How one method's calls travel.
#[derive(Debug, Clone)]
pub struct Route {
    /// Its place in `RouteTable::routes`.
    pub index: usize,
    /// `/pkg.Service/Method`.
    pub path: Arc<str>,
    /// The same as records have it.
    pub path_bytes: Bytes,
    /// Full name of the service.
    pub service: Arc<str>,
    /// Name of the method.
    pub method: Arc<str>,
    /// Topic that requests are produced to.
    pub request_topic: Arc<str>,
    /// Field that becomes the record's key.
    pub key: Option<FieldPath>,
    /// What chooses the partition.
    pub partitioning: Partitioning,
    /// Time that a call may take when the caller sets none.
    pub timeout: Duration,
    /// Longest time that a caller may ask for; at least `timeout`.
    pub timeout_max: Duration,
    /// Whether a reply is waited for.
    pub mode: Mode,
    /// Headers of the worker's framework.
    pub dialect: Dialect,
    /// How the message becomes the record's value.
    pub format: Format,
    /// Compression of the request batches, where it is not the cluster's.
    pub compression: Option<Compression>,
    /// Whether a request may be sent twice.
    pub idempotency: Idempotency,
    /// What sends a request to the dead-letter topic.
    pub dead_letter_on: Vec<DeadLetterOn>,
    /// Dead-letter topic.
    pub dead_letter_topic: Arc<str>,
    /// Whether the worker is told when a caller gives up.
    pub cancel_record: bool,
    /// Calls that may be in flight at once.
    pub in_flight_max: Option<u32>,
    /// How several replies answer a call; `None` where there is one.
    pub replies: Option<Replies>,
    /// Type of the request.
    pub input: MessageDescriptor,
    /// Type of the response.
    pub output: MessageDescriptor,
}

impl Route {
    /// Type of the message in one reply.
    pub fn reply_type(&self) -> &MessageDescriptor {
        match &self.replies {
            Some(Replies { delivery: Delivery::Field { element, .. }, .. }) => element,
            _ => &self.output,
        }
    }

    /// Whether the answer is a stream.
    pub fn is_stream(&self) -> bool {
        matches!(&self.replies, Some(Replies { delivery: Delivery::Stream, .. }))
    }
}

/// How several replies answer one call.
#[derive(Debug, Clone)]
pub struct Replies {
    /// So many are all.
    pub count: Option<u32>,
    /// One that says it is the last is the last.
    pub until_last: bool,
    /// What has come by the deadline is the answer, unless nothing has.
    pub partial_on_timeout: bool,
    /// Errors are left out instead of ending the call.
    pub skip_errors: bool,
    /// Replies of one call that may be held.
    pub held_max: u32,
    /// What the caller gets.
    pub delivery: Delivery,
}

/// How the caller gets several replies.
#[derive(Debug, Clone)]
pub enum Delivery {
    /// In a repeated field of one message.
    Field {
        /// Number of the field.
        number: u32,
        /// Type of its elements.
        element: MessageDescriptor,
    },
    /// Each as a message of a stream.
    Stream,
}

/// What chooses a record's partition.
#[derive(Debug, Clone)]
pub enum Partitioning {
    /// The key.
    ByKey,
    /// The same for all.
    Fixed(i32),
    /// An integer field of the request.
    ByField(FieldPath),
    /// None: records are spread.
    Spread,
}

/// The standard option `idempotency_level`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Idempotency {
    /// Nothing is known; a request is never sent twice.
    Unknown,
    /// Changes nothing.
    NoSideEffects,
    /// Twice is as good as once.
    Idempotent,
}

impl Idempotency {
    /// As the route table is printed.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Unknown => "unknown",
            Self::NoSideEffects => "no-side-effects",
            Self::Idempotent => "idempotent",
        }
    }
}
