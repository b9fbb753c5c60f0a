//! Judges the settings of every method and makes the routes.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use prost_reflect::{MessageDescriptor, MethodDescriptor, ServiceDescriptor};
use prost_types::method_options::IdempotencyLevel;

use super::field_path::FieldPath;
use super::mistake::{Mistake, Mistakes, Origin, did_you_mean};
use super::options;
use super::settings::{Layers, Overlay, Settings, Sourced};
use super::sources::{self, Opened, Sources};
use super::words::{DURATION_HINT, TOPIC_HINT, check_topic, parse_duration, show_duration};
use super::{Entry, Idempotency, Partitioning, Route, RouteTable};
use crate::limits;
use crate::message::dialect::{Custom, Dialect};
use crate::message::format::{Format, Framing, JsonOptions};
use crate::terms::{CorrelationForm, DeadLetterOn, DialectName, FormatName, JsonNames, Mode, UnknownTerm};

/// What a one-way method may return.
const ONE_WAY_OUTPUTS: &[&str] = &["google.protobuf.Empty", "antiphon.v1.Ack"];

/// What is said of methods whose callers send streams.
const NOT_SERVED: &str = "is not served: its caller sends a stream, and a request is one record";

/// Makes a route table.
///
/// # Errors
/// Everything that is wrong with the sources.
pub fn compile(sources: &Sources) -> Result<RouteTable, Mistakes> {
    compile_within(sources, limits::ROUTES_MAX)
}

pub(super) fn compile_within(sources: &Sources, routes_max: usize) -> Result<RouteTable, Mistakes> {
    let mut mistakes = Mistakes::default();
    let opened = sources::open(sources, &mut mistakes);
    let complete = mistakes.is_empty();
    if complete {
        check_served(&opened, routes_max, &mut mistakes);
        check_overlays(sources, &opened, &mut mistakes);
    }
    let services: Vec<Arc<str>> = opened.served.iter().map(|service| service.full_name().into()).collect();
    let mut table = RouteTable {
        routes: Vec::new(),
        entries: HashMap::new(),
        service_names: services.iter().cloned().collect(),
        services,
        descriptor_set: Vec::new(),
        custom_dialect: sources.custom_dialect.clone(),
    };
    for service in &opened.served {
        add_service(service, sources, &opened, &mut table, &mut mistakes);
    }
    table.descriptor_set = opened.descriptor_set;
    mistakes.or(table)
}

fn check_served(opened: &Opened, routes_max: usize, mistakes: &mut Mistakes) {
    let methods = || opened.served.iter().flat_map(ServiceDescriptor::methods);
    let served = methods().filter(|method| !method.is_client_streaming()).count();
    if opened.served.is_empty() {
        let what = "there is no service to serve";
        mistakes.push(Mistake::new(what).hint("name a .proto file that has one, with --proto FILE"));
    } else if served == 0 {
        let what = "there is no method to serve; those whose callers stream are not served";
        mistakes.push(Mistake::new(what));
    } else if served > routes_max {
        let what = format!("{served} methods are more than {routes_max}, the most in one table");
        mistakes.push(Mistake::new(what));
    }
}

/// Settings for what does not exist, or is not served.
fn check_overlays(sources: &Sources, opened: &Opened, mistakes: &mut Mistakes) {
    let services: Vec<&str> = opened.served.iter().map(ServiceDescriptor::full_name).collect();
    for (name, overlay) in &sources.services {
        if !services.contains(&name.as_str()) {
            let hint = did_you_mean(name, services.iter().copied());
            let what = format!("there is no service {name:?} to serve");
            mistakes.push(overlay.origin.mistake(what).maybe_hint(hint));
        }
    }
    let methods: Vec<MethodDescriptor> = opened.served.iter().flat_map(ServiceDescriptor::methods).collect();
    let methods: BTreeMap<String, bool> =
        methods.iter().map(|method| (path_of(method), method.is_client_streaming())).collect();
    for (name, overlay) in &sources.methods {
        match methods.get(name.strip_prefix('/').unwrap_or(name)) {
            Some(false) => {}
            Some(true) => mistakes.push(overlay.origin.mistake(format!("{name:?} {NOT_SERVED}"))),
            None => {
                let dotted = name.rsplit_once('.').map(|(service, method)| format!("{service}/{method}"));
                let slash = dotted.filter(|name| methods.contains_key(name));
                let hint = slash.map(|name| format!("did you mean {name:?}?"));
                let hint = hint.or_else(|| did_you_mean(name, methods.keys().map(String::as_str)));
                let what = format!("there is no method {name:?} to serve");
                mistakes.push(overlay.origin.mistake(what).maybe_hint(hint));
            }
        }
    }
}

pub(super) fn path_of(method: &MethodDescriptor) -> String {
    format!("{}/{}", method.parent_service().full_name(), method.name())
}

fn add_service(
    service: &ServiceDescriptor,
    sources: &Sources,
    opened: &Opened,
    table: &mut RouteTable,
    mistakes: &mut Mistakes,
) {
    let nothing = Settings::default();
    let outer = sources.services.get(service.full_name()).map_or(&nothing, overlay_settings);
    let inner = options::of_service(service, &opened.texts, mistakes);
    for method in service.methods() {
        let own = options::of_method(&method, &opened.texts, mistakes);
        let path: Arc<str> = format!("/{}", path_of(&method)).into();
        if method.is_client_streaming() {
            if own != nothing {
                let what = format!("{} {NOT_SERVED}", path_of(&method));
                let origin = options::origin_of_method(&method, &opened.texts);
                mistakes.push(origin.mistake(what).hint("take its (antiphon.v1.kafka) option away"));
            }
            table.entries.insert(path, Entry::Streaming { server: method.is_server_streaming() });
            continue;
        }
        let overlay = sources.methods.get(&path[1..]).or_else(|| sources.methods.get(&*path));
        let layers = Layers(vec![overlay.map_or(&nothing, overlay_settings), outer, &own, &inner]);
        let origin = options::origin_of_method(&method, &opened.texts);
        let custom = sources.custom_dialect.as_ref();
        let mut judge = Judge {
            layers,
            origin,
            method: &method,
            custom,
            registry: sources.schema_registry,
            reply_partition: sources.reply_partition,
            mistakes,
        };
        let route = Arc::new(judge.route(table.routes.len(), Arc::clone(&path)));
        table.entries.insert(path, Entry::Route(Arc::clone(&route)));
        table.routes.push(route);
    }
}

fn overlay_settings(overlay: &Overlay) -> &Settings {
    &overlay.settings
}

/// Makes one route. Where a setting is wrong it notes the mistake and goes on
/// with the default; a table with mistakes is never handed out.
pub(super) struct Judge<'a> {
    pub(super) layers: Layers<'a>,
    pub(super) origin: Origin,
    pub(super) method: &'a MethodDescriptor,
    custom: Option<&'a Arc<Custom>>,
    registry: bool,
    pub(super) reply_partition: bool,
    pub(super) mistakes: &'a mut Mistakes,
}

impl<'a> Judge<'a> {
    fn route(&mut self, index: usize, path: Arc<str>) -> Route {
        let service = self.method.parent_service();
        let (input, output) = (self.method.input(), self.method.output());
        let request_topic = self.request_topic(service.full_name());
        let (timeout, timeout_max) = self.timeouts();
        let key = self.key(&input);
        let dead_letter_on = self.dead_letter_on();
        let partitioning = self.partitioning(&input, key.is_some());
        let (mode, dialect) = (self.mode(&output), self.dialect());
        self.check_reply_partition(mode, &dialect);
        Route {
            index,
            path_bytes: Bytes::copy_from_slice(path.as_bytes()),
            path,
            service: service.full_name().into(),
            method: self.method.name().into(),
            partitioning,
            key,
            timeout,
            timeout_max,
            mode,
            replies: self.replies(&output, mode, &dialect),
            dialect,
            format: self.format(&request_topic),
            compression: self.word("compression", |s| &s.compression),
            idempotency: idempotency(self.method),
            dead_letter_topic: self.dead_letter_topic(&request_topic, !dead_letter_on.is_empty()),
            dead_letter_on,
            request_topic,
            cancel_record: self.cancel_record(),
            in_flight_max: self.in_flight_max(),
            input,
            output,
        }
    }

    fn request_topic(&mut self, service: &str) -> Arc<str> {
        let written = self.layers.pick(|s| &s.request_topic);
        let (name, origin) =
            written.map_or((service, &self.origin), |topic| (topic.value.as_str(), &topic.origin));
        if let Err(error) = check_topic(name) {
            let mistake = origin.mistake(format!("request_topic: {error}"));
            self.mistakes.push(mistake.hint(TOPIC_HINT));
        }
        name.into()
    }

    fn dead_letter_topic(&mut self, request_topic: &str, used: bool) -> Arc<str> {
        let written = self.layers.pick(|s| &s.dead_letter_topic);
        let name = written.map_or_else(|| format!("{request_topic}.DLQ"), |topic| topic.value.clone());
        let origin = written.map_or(&self.origin, |topic| &topic.origin);
        if name == request_topic {
            let what = format!("dead_letter_topic: {name:?} is the request topic itself");
            self.mistakes.push(origin.mistake(what));
        } else if let Err(error) = check_topic(&name)
            && (written.is_some() || (used && check_topic(request_topic).is_ok()))
        {
            self.mistakes.push(origin.mistake(format!("dead_letter_topic: {error}")).hint(TOPIC_HINT));
        }
        name.into()
    }

    /// A time-out that is not set gives way to the one that is, so that
    /// setting one of them is always enough.
    fn timeouts(&mut self) -> (Duration, Duration) {
        let timeout = self.duration("timeout", |s| &s.timeout);
        let timeout_max = self.duration("timeout_max", |s| &s.timeout_max);
        let default = Duration::from_millis(limits::CALL_TIMEOUT_MS);
        let default_max = Duration::from_millis(limits::CALL_TIMEOUT_MAX_MS);
        match (timeout, timeout_max) {
            (Some((timeout, written)), Some((max, _))) => {
                if timeout > max {
                    let (timeout, max) = (show_duration(timeout), show_duration(max));
                    let what = format!("timeout: {timeout} is longer than timeout_max, {max}");
                    self.mistakes.push(written.mistake(what));
                }
                (timeout, max)
            }
            (Some((timeout, _)), None) => (timeout, default_max.max(timeout)),
            (None, Some((max, _))) => (default.min(max), max),
            (None, None) => (default, default_max),
        }
    }

    fn duration(
        &mut self,
        name: &str,
        get: impl Fn(&Settings) -> &Option<Sourced<String>>,
    ) -> Option<(Duration, &'a Sourced<String>)> {
        let written = self.layers.pick(get)?;
        match check_duration(&written.value) {
            Ok(duration) => Some((duration, written)),
            Err(mistake) => {
                self.mistakes
                    .push(written.mistake(format!("{name}: {}", mistake.what)).maybe_hint(mistake.hint));
                None
            }
        }
    }

    fn key(&mut self, input: &MessageDescriptor) -> Option<FieldPath> {
        let written = self.layers.pick(|s| &s.key).filter(|key| !key.value.is_empty())?;
        self.field("key", written, input)
    }

    fn field(
        &mut self,
        name: &str,
        written: &Sourced<String>,
        input: &MessageDescriptor,
    ) -> Option<FieldPath> {
        match FieldPath::new(input, &written.value) {
            Ok(path) => Some(path),
            Err(error) => {
                let what = format!("{name} {:?} of {}: {error}", written.value, path_of(self.method));
                self.mistakes.push(written.mistake(what).maybe_hint(error.hint()));
                None
            }
        }
    }

    /// `partition` and `partition_field` are one choice: the nearest layer
    /// that makes it decides, and no layer may make both.
    fn partitioning(&mut self, input: &MessageDescriptor, has_key: bool) -> Partitioning {
        let by_key = if has_key { Partitioning::ByKey } else { Partitioning::Spread };
        let chosen = self.layers.0.iter().find(|s| s.partition.is_some() || s.partition_field.is_some());
        let Some(chosen) = chosen else { return by_key };
        match (&chosen.partition, &chosen.partition_field) {
            (Some(partition), Some(field)) if !field.value.is_empty() => {
                let later = if field.origin > partition.origin { &field.origin } else { &partition.origin };
                self.mistakes.push(later.mistake("partition and partition_field exclude each other"));
                by_key
            }
            (Some(partition), _) => self.fixed(partition).unwrap_or(by_key),
            (None, Some(field)) if !field.value.is_empty() => self.by_field(field, input).unwrap_or(by_key),
            _ => by_key,
        }
    }

    fn fixed(&mut self, written: &Sourced<i64>) -> Option<Partitioning> {
        let partition = i32::try_from(written.value).ok();
        let partition = partition.filter(|partition| (0..limits::PARTITIONS_MAX).contains(partition));
        if partition.is_none() {
            let what =
                format!("partition: {} is not within 0 to {}", written.value, limits::PARTITIONS_MAX - 1);
            self.mistakes.push(written.mistake(what));
        }
        partition.map(Partitioning::Fixed)
    }

    fn by_field(&mut self, written: &Sourced<String>, input: &MessageDescriptor) -> Option<Partitioning> {
        let path = self.field("partition_field", written, input)?;
        if !path.is_integer() {
            let method = path_of(self.method);
            let what =
                format!("partition_field {path:?} of {method} is not an integer", path = path.as_str());
            self.mistakes.push(written.mistake(what));
        }
        Some(Partitioning::ByField(path))
    }

    fn mode(&mut self, output: &MessageDescriptor) -> Mode {
        let mode = self.word("mode", |s| &s.mode).unwrap_or(Mode::RequestReply);
        if mode == Mode::OneWay && !ONE_WAY_OUTPUTS.contains(&output.full_name()) {
            let method = path_of(self.method);
            let what = format!("mode: {method} is one-way, and yet returns {}", output.full_name());
            let written = self.layers.pick(|s| &s.mode);
            let mistake = written.map_or(&self.origin, |mode| &mode.origin).mistake(what);
            self.mistakes.push(mistake.hint(format!("return {}", ONE_WAY_OUTPUTS.join(" or "))));
        }
        mode
    }

    fn dialect(&mut self) -> Dialect {
        let name = self.word("dialect", |s| &s.dialect).unwrap_or(DialectName::Spring);
        let form = self.word("correlation_form", |s| &s.correlation_form).unwrap_or(CorrelationForm::Text);
        if form == CorrelationForm::Binary
            && name != DialectName::Spring
            && let Some(written) = self.layers.pick(|s| &s.correlation_form)
        {
            let what = format!("correlation_form: the dialect {name} has no form to choose");
            let hint = (name == DialectName::Custom).then(|| "set it in [custom_dialect]".to_owned());
            self.mistakes.push(written.mistake(what).maybe_hint(hint));
        }
        match name {
            DialectName::Spring => Dialect::Spring(form),
            DialectName::Nestjs => Dialect::Nestjs,
            DialectName::Smallrye => Dialect::Smallrye,
            DialectName::Faststream => Dialect::Faststream,
            DialectName::Zilla => Dialect::Zilla,
            DialectName::Custom => match self.custom {
                Some(custom) => Dialect::Custom(Arc::clone(custom)),
                None => {
                    let origin =
                        self.layers.pick(|s| &s.dialect).map_or(&self.origin, |written| &written.origin);
                    let mistake = origin.mistake("dialect: \"custom\" needs the section [custom_dialect]");
                    self.mistakes
                        .push(mistake.hint("at least correlation_id and reply_topic, the names of headers"));
                    Dialect::Spring(form)
                }
            },
        }
    }

    /// With the routing `partition` a reply to another partition is one that the
    /// waiting instance does not read.
    fn check_reply_partition(&mut self, mode: Mode, dialect: &Dialect) {
        if !self.reply_partition || mode == Mode::OneWay || dialect.carries_partition() {
            return;
        }
        let origin = self.layers.pick(|s| &s.dialect).map_or(&self.origin, |written| &written.origin);
        let (path, name) = (path_of(self.method), dialect.name());
        let what = format!(
            "dialect: requests of {path} can't name the partition that their replies go to in the dialect \
             {name}, and reply.routing is partition"
        );
        let hint = match dialect {
            Dialect::Custom(_) => "set reply_partition in [custom_dialect], or another reply.routing",
            _ => "set reply.routing to instance-topic or shared, or the dialect spring, nestjs or smallrye",
        };
        self.mistakes.push(origin.mistake(what).hint(hint));
    }

    fn format(&mut self, request_topic: &str) -> Format {
        let name = self.word("format", |s| &s.format).unwrap_or(FormatName::Protobuf);
        let names = self.word("json_names", |s| &s.json_names).unwrap_or(JsonNames::LowerCamel);
        let defaults = self.layers.pick(|s| &s.json_defaults).is_some_and(|yes| yes.value);
        let subject = self.layers.pick(|s| &s.schema_subject);
        if let Some(written) = subject.filter(|subject| subject.value.is_empty()) {
            self.mistakes.push(written.mistake("schema_subject: must not be empty"));
        }
        match name {
            FormatName::Protobuf => Format::Protobuf,
            FormatName::Json => {
                Format::Json(JsonOptions { proto_names: names == JsonNames::Proto, defaults })
            }
            FormatName::ConfluentProtobuf => {
                if !self.registry {
                    let origin =
                        self.layers.pick(|s| &s.format).map_or(&self.origin, |written| &written.origin);
                    let mistake = origin.mistake("format: confluent-protobuf needs a schema registry");
                    self.mistakes.push(mistake.hint("set url in the section [schema_registry]"));
                }
                // As Confluent's TopicNameStrategy has it.
                let subject = subject.map_or_else(|| format!("{request_topic}-value"), |s| s.value.clone());
                Format::ConfluentProtobuf(Arc::new(Framing::new(subject)))
            }
        }
    }

    fn cancel_record(&mut self) -> bool {
        let Some(written) = self.layers.pick(|s| &s.cancel_record).filter(|written| written.value) else {
            return false;
        };
        let zilla =
            self.layers.pick(|s| &s.dialect).is_some_and(|name| name.value == DialectName::Zilla.as_str());
        if zilla {
            let what = "cancel_record: a record without a value is the end of a request in the dialect zilla, \
                        which has no way to cancel one";
            self.mistakes.push(written.mistake(what));
        }
        true
    }

    fn word<T: FromStr<Err = UnknownTerm>>(
        &mut self,
        name: &str,
        get: impl Fn(&Settings) -> &Option<Sourced<String>>,
    ) -> Option<T> {
        let written = self.layers.pick(get)?;
        let read = read_word(&written.value);
        self.note(name, &written.origin, read)
    }

    fn dead_letter_on(&mut self) -> Vec<DeadLetterOn> {
        let Some(written) = self.layers.pick(|s| &s.dead_letter_on) else { return Vec::new() };
        let mut reasons = Vec::new();
        for word in &written.value {
            let reason = self.note("dead_letter_on", &written.origin, read_word(word));
            reasons.extend(reason.filter(|reason| !reasons.contains(reason)));
        }
        reasons
    }

    fn in_flight_max(&mut self) -> Option<u32> {
        let written = self.layers.pick(|s| &s.in_flight_max)?;
        let max = u32::try_from(written.value).ok();
        let max = max.filter(|max| (1..=limits::IN_FLIGHT_CEILING).contains(max));
        if max.is_none() {
            let (found, ceiling) = (written.value, limits::IN_FLIGHT_CEILING);
            let what = format!("in_flight_max: {found} is not within 1 to {ceiling}");
            self.mistakes.push(written.mistake(what));
        }
        max
    }

    fn note<T>(&mut self, name: &str, origin: &Origin, read: Result<T, Mistake>) -> Option<T> {
        read.map_err(|mistake| {
            self.mistakes.push(origin.mistake(format!("{name}: {}", mistake.what)).maybe_hint(mistake.hint));
        })
        .ok()
    }
}

fn check_duration(text: &str) -> Result<Duration, Mistake> {
    let ceiling = limits::CALL_TIMEOUT_CEILING;
    let duration =
        parse_duration(text).map_err(|error| Mistake::new(error.to_string()).hint(DURATION_HINT))?;
    if duration.is_zero() {
        return Err(Mistake::new(format!("{text:?} must be more than zero")));
    }
    if duration > ceiling {
        let most = show_duration(ceiling);
        return Err(Mistake::new(format!("{text:?} is longer than {most}, the most that can be set")));
    }
    Ok(duration)
}

fn read_word<T: FromStr<Err = UnknownTerm>>(text: &str) -> Result<T, Mistake> {
    text.parse::<T>().map_err(|unknown| {
        let lower = text.to_ascii_lowercase().replace('_', "-");
        let hint = did_you_mean(&lower, unknown.expected.iter().copied());
        Mistake::new(unknown.to_string()).maybe_hint(hint)
    })
}

fn idempotency(method: &MethodDescriptor) -> Idempotency {
    let options = method.method_descriptor_proto().options.as_ref();
    match options.map(|options| options.idempotency_level()) {
        Some(IdempotencyLevel::NoSideEffects) => Idempotency::NoSideEffects,
        Some(IdempotencyLevel::Idempotent) => Idempotency::Idempotent,
        _ => Idempotency::Unknown,
    }
}

/// Distinct request topics, in the order of the routes.
pub(super) fn distinct_topics(routes: &[Arc<Route>]) -> Vec<Arc<str>> {
    let mut seen = HashSet::new();
    let topics = routes.iter().map(|route| &route.request_topic);
    topics.filter(|topic| seen.insert(Arc::clone(topic))).cloned().collect()
}
