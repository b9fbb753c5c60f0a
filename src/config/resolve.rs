//! From settings that have been read to the rooms' `Config`s: defaults, bounds,
//! and what must or must not come together.

use std::num::NonZero;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use super::Config;
use super::layers::Layers;
use super::raw::{Found, Paths, Place};
use super::sections::{
    Admin, Circuit, CustomDialect, Drain, Grpc, Idempotency, Kafka, Limits, Log, Proto, Sasl, SchemaRegistry,
    Tls, Top,
};
use crate::admin::config as admin;
use crate::app::{self, DrainConfig};
use crate::exchange::config as exchange;
use crate::ingress::config as ingress;
use crate::kafka::config::{self as kafka, SaslConfig, SaslMechanism, Secret, TlsConfig};
use crate::limits;
use crate::message::{self, dialect::Custom};
use crate::registry::config as registry;
use crate::route::{Mistakes, Sources};
use crate::telemetry::config as telemetry;
use crate::terms::{CorrelationForm, PartitionForm, ReplyRouting};
use crate::web_client::parse_url;

/// What came of the settings, mistakes or not.
pub(super) struct Resolved {
    pub(super) config: Config,
    /// Whether every file that is named was found, so that routes can be made
    /// of them.
    pub(super) sources_complete: bool,
    /// Where `access.allow` is set.
    pub(super) access_place: Place,
}

/// Makes the configuration.
pub(super) fn resolve(layers: Layers, mistakes: &mut Mistakes) -> Resolved {
    let mut judge = Judge { layers: &layers, mistakes };
    let limits = judge.limits();
    let grpc = judge.grpc();
    let shards = judge.shards(&limits);
    let admin = judge.admin();
    let kafka = judge.kafka();
    let reply = judge.reply(shards);
    let circuit = judge.circuit();
    let idempotency = judge.idempotency();
    let drain = judge.drain();
    let log = judge.log();
    let access_log = judge.access_log(log.format);
    let traces = judge.traces();
    judge.together(&limits, &grpc, &admin);
    let access_place = judge.place_of(&[("access", "allow")]);
    let schema_registry = judge.schema_registry();
    let before = judge.mistakes.len();
    let sources = Sources { custom_dialect: judge.custom_dialect(), ..judge.sources() };
    // Where its settings are wrong, that is said once.
    let has_registry = layers.place_of("schema_registry").is_some();
    let sources_complete = judge.mistakes.len() == before && !layers.unread;
    let routes = Sources {
        services: layers.services,
        methods: layers.methods,
        schema_registry: has_registry,
        reply_partition: reply.routing == ReplyRouting::Partition,
        ..sources
    };
    let gateway = app::Config {
        kafka,
        grpc,
        admin,
        limits,
        reply,
        circuit,
        idempotency,
        schema_registry,
        access_log,
        traces,
        drain,
        shards,
    };
    let config = Config { gateway, log, routes };
    Resolved { config, sources_complete, access_place }
}

pub(super) struct Judge<'a> {
    pub(super) layers: &'a Layers,
    pub(super) mistakes: &'a mut Mistakes,
}

impl Judge<'_> {
    fn shards(&mut self, limits: &exchange::LimitsConfig) -> usize {
        let top = Top::read(self.layers, self.mistakes);
        let in_flight_max = usize::try_from(limits.in_flight_max).unwrap_or(usize::MAX);
        let cores = std::thread::available_parallelism().map_or(1, NonZero::get);
        let default = cores.min(limits::SHARDS_MAX).min(in_flight_max).max(1);
        let place = top.shards.as_ref().map(|found| found.place.clone());
        let shards = self.within(top.shards, 1, limits::SHARDS_MAX, default);
        if let Some(place) = place.filter(|_| shards > in_flight_max) {
            let what = format!("{shards} shards can't share limits.in_flight_max, {in_flight_max}");
            self.mistakes.push(place.mistake(what));
        }
        shards
    }

    fn kafka(&mut self) -> kafka::Config {
        let part = Kafka::read(self.layers, self.mistakes);
        let default = kafka::Config::default();
        if let Some(found) = &part.client_id {
            let printable = found.value.chars().all(|c| c.is_ascii_graphic());
            if found.value.is_empty() || found.value.len() > limits::TOPIC_NAME_CHARS_MAX || !printable {
                let what = format!("must be 1 to {} printable characters", limits::TOPIC_NAME_CHARS_MAX);
                self.mistakes.push(found.place.mistake(what));
            }
        }
        kafka::Config {
            bootstrap_servers: value(part.bootstrap_servers, |s| s.0, default.bootstrap_servers),
            client_id: value(part.client_id, |id| id, default.client_id),
            compression: value(part.compression, |c| c.0, default.compression),
            connect_timeout: value(part.connect_timeout, |t| t.0, default.connect_timeout),
            produce_timeout: value(part.produce_timeout, |t| t.0, default.produce_timeout),
            metadata_refresh: value(part.metadata_refresh, |t| t.0, default.metadata_refresh),
            tls: self.tls(),
            sasl: self.sasl(),
        }
    }

    fn tls(&mut self) -> Option<TlsConfig> {
        let part = Tls::read(self.layers, self.mistakes);
        let place = self.layers.place_of("kafka.tls")?;
        for found in [&part.ca_file, &part.cert_file, &part.key_file].into_iter().flatten() {
            self.readable(found);
        }
        match (&part.cert_file, &part.key_file) {
            (Some(cert), None) => self.mistakes.push(cert.place.mistake("needs kafka.tls.key_file, too")),
            (None, Some(key)) => self.mistakes.push(key.place.mistake("needs kafka.tls.cert_file, too")),
            _ => {}
        }
        let enabled = part.enabled.is_none_or(|found| found.value);
        let path = |found: Option<Found<PathBuf>>| found.map(|found| found.value);
        let config = TlsConfig {
            ca_file: path(part.ca_file),
            cert_file: path(part.cert_file),
            key_file: path(part.key_file),
        };
        if !enabled && config != TlsConfig::default() {
            self.mistakes.push(place.mistake("has files for TLS, and enabled = false"));
        }
        enabled.then_some(config)
    }

    pub(super) fn readable(&mut self, found: &Found<PathBuf>) {
        if let Err(error) = std::fs::File::open(&found.value) {
            self.mistakes.push(found.place.mistake(unreadable(&found.value, &error)));
        }
    }

    fn sasl(&mut self) -> Option<SaslConfig> {
        let part = Sasl::read(self.layers, self.mistakes);
        let place = self.layers.place_of("kafka.sasl")?;
        let before = self.mistakes.len();
        let mechanism = part.mechanism.map(|found| found.value.0.0);
        let oauth = mechanism == Some(SaslMechanism::OauthBearer);
        if mechanism.is_none() && !self.is_set("kafka.sasl", "mechanism") {
            let hint = "PLAIN, SCRAM-SHA-256, SCRAM-SHA-512 or OAUTHBEARER";
            self.missing("kafka.sasl", &place, "mechanism", hint);
        }
        match &part.username {
            Some(found) if oauth => {
                self.mistakes.push(found.place.mistake("OAUTHBEARER has no user name, only a token"));
            }
            Some(found) if found.value.is_empty() => {
                self.mistakes.push(found.place.mistake("must not be empty"))
            }
            None if !oauth && !self.is_set("kafka.sasl", "username") => {
                self.missing("kafka.sasl", &place, "username", "")
            }
            _ => {}
        }
        let password_file = part.password_file.as_ref().map(|found| found.value.clone());
        let password = self.password(part.password, part.password_file, ("kafka.sasl", &place));
        let username = value(part.username, |name| name, String::new());
        let whole = self.mistakes.len() == before;
        let sasl = SaslConfig { mechanism: mechanism?, username, password: password?, password_file };
        whole.then_some(sasl)
    }

    fn password(
        &mut self,
        password: Option<Found<Secret>>,
        file: Option<Found<PathBuf>>,
        (section, place): (&'static str, &Place),
    ) -> Option<Secret> {
        let (secret, place) = match (password, file) {
            (Some(password), Some(file)) => {
                let what = format!("the password is in {}, too", password.place.label);
                self.mistakes.push(file.place.mistake(what).hint("set one of the two"));
                return None;
            }
            (Some(password), None) => (password.value, password.place),
            (None, Some(file)) => match std::fs::read_to_string(&file.value) {
                Ok(text) => (Secret::new(text.lines().next().unwrap_or_default()), file.place),
                Err(error) => {
                    self.mistakes.push(file.place.mistake(unreadable(&file.value, &error)));
                    return None;
                }
            },
            (None, None) => {
                if !self.is_set(section, "password") && !self.is_set(section, "password_file") {
                    self.missing(section, place, "password or password_file", "");
                }
                return None;
            }
        };
        if secret.reveal().is_empty() {
            self.mistakes.push(place.mistake("the password must not be empty"));
            return None;
        }
        Some(secret)
    }

    /// Whether any layer sets this, be it wrongly.
    pub(super) fn is_set(&self, section: &'static str, name: &'static str) -> bool {
        self.layers.outside.contains(&(section, name))
            || self.layers.layers.iter().any(|layer| layer.0.contains_key(&(section, name)))
    }

    pub(super) fn missing(&mut self, section: &str, place: &Place, name: &str, hint: &str) {
        let mistake = place.origin.mistake(format!("{section}: {name} is missing"));
        self.mistakes.push(mistake.maybe_hint((!hint.is_empty()).then(|| hint.to_owned())));
    }

    fn grpc(&mut self) -> ingress::Config {
        let part = Grpc::read(self.layers, self.mistakes);
        let default = ingress::Config::default();
        let bytes = part.message_bytes_max.map(|found| found.map(|bytes| bytes.0));
        let streams = part.streams_per_connection_max;
        let metadata_return = value(part.metadata_return, |names| names.0, default.metadata_return);
        let place = part.trailers_return.as_ref().map(|found| found.place.clone()).unwrap_or_default();
        let trailers_return = value(part.trailers_return, |names| names.0, default.trailers_return);
        if let Some(name) = trailers_return.iter().find(|name| metadata_return.contains(name)) {
            self.mistakes.push(place.mistake(format!("{name:?} is in metadata_return, too")));
        }
        ingress::Config {
            listen: value(part.listen, |listen| listen.0, default.listen),
            message_bytes_max: self.within(
                bytes,
                1,
                limits::MESSAGE_BYTES_CEILING,
                default.message_bytes_max,
            ),
            reflection: value(part.reflection, |yes| yes, default.reflection),
            metadata_forward: value(part.metadata_forward, |names| names.0, default.metadata_forward),
            metadata_return,
            trailers_return,
            web_origins: value(part.web_origins, |origins| origins.0, default.web_origins),
            connections_max: self.within(
                part.connections_max,
                1,
                limits::CONNECTIONS_CEILING,
                default.connections_max,
            ),
            streams_per_connection_max: self.within(
                streams,
                1,
                limits::STREAMS_PER_CONNECTION_CEILING,
                default.streams_per_connection_max,
            ),
            keep_alive_interval: value(part.keep_alive_interval, |t| t.0, default.keep_alive_interval),
            keep_alive_timeout: value(part.keep_alive_timeout, |t| t.0, default.keep_alive_timeout),
            connection_age_max: part.connection_age_max.map(|found| found.value.0),
            tls: self.grpc_tls(),
            access: self.access(),
        }
    }

    fn admin(&mut self) -> admin::Config {
        let part = Admin::read(self.layers, self.mistakes);
        if let Some(file) = &part.token_file {
            match std::fs::read_to_string(&file.value) {
                Ok(text) if text.lines().next().unwrap_or_default().trim().is_empty() => {
                    self.mistakes.push(file.place.mistake("the token must not be empty"));
                }
                Ok(_) => {}
                Err(error) => self.mistakes.push(file.place.mistake(unreadable(&file.value, &error))),
            }
        }
        admin::Config {
            listen: value(part.listen, |listen| listen.0, admin::Config::default().listen),
            token_file: part.token_file.map(|file| file.value),
            console: part.console.is_none_or(|found| found.value),
        }
    }

    fn limits(&mut self) -> exchange::LimitsConfig {
        let part = Limits::read(self.layers, self.mistakes);
        let default = exchange::LimitsConfig::default();
        let bytes = part.bytes_held_max.map(|found| found.map(|bytes| bytes.0));
        exchange::LimitsConfig {
            in_flight_max: self.within(
                part.in_flight_max,
                1,
                limits::IN_FLIGHT_CEILING,
                default.in_flight_max,
            ),
            bytes_held_max: self.within(bytes, 1, limits::BYTES_HELD_CEILING, default.bytes_held_max),
            lane_queue_max: self.within(
                part.lane_queue_max,
                1,
                limits::LANE_QUEUE_RECORDS_CEILING,
                default.lane_queue_max,
            ),
        }
    }

    fn circuit(&mut self) -> exchange::CircuitConfig {
        let part = Circuit::read(self.layers, self.mistakes);
        let default = exchange::CircuitConfig::default();
        exchange::CircuitConfig {
            timeouts_max: self.within(part.timeouts_max, 0, limits::IN_FLIGHT_CEILING, default.timeouts_max),
            open_for: value(part.open_for, |t| t.0, default.open_for),
        }
    }

    fn idempotency(&mut self) -> exchange::IdempotencyConfig {
        let part = Idempotency::read(self.layers, self.mistakes);
        let default = exchange::IdempotencyConfig::default();
        let bytes = part.bytes_max.map(|found| found.map(|bytes| bytes.0));
        exchange::IdempotencyConfig {
            window: value(part.window, |t| t.0, default.window),
            keys_max: self.within(part.keys_max, 1, limits::IDEMPOTENCY_KEYS_CEILING, default.keys_max),
            bytes_max: self.within(bytes, 1, limits::IDEMPOTENCY_BYTES_CEILING, default.bytes_max),
        }
    }

    fn drain(&mut self) -> DrainConfig {
        let part = Drain::read(self.layers, self.mistakes);
        let default = DrainConfig::default();
        DrainConfig {
            notice: value(part.notice, |t| t.0, default.notice),
            timeout: value(part.timeout, |t| t.0, default.timeout),
        }
    }

    fn log(&mut self) -> telemetry::Config {
        let part = Log::read(self.layers, self.mistakes);
        let default = telemetry::Config::default();
        if let Some(found) = &part.filter
            && let Err(error) = tracing_subscriber::EnvFilter::builder().parse(&found.value)
        {
            let hint = "such as \"info,rskafka=warn\"";
            self.mistakes.push(found.place.mistake(format!("is not a filter: {error}")).hint(hint));
        }
        telemetry::Config {
            format: value(part.format, |format| format.0.0, default.format),
            filter: value(part.filter, |filter| filter, default.filter),
        }
    }

    /// What can only be wrong between two sections.
    fn together(&mut self, limits: &exchange::LimitsConfig, grpc: &ingress::Config, admin: &admin::Config) {
        if limits.bytes_held_max < grpc.message_bytes_max as u64 {
            let place = self.place_of(&[("limits", "bytes_held_max"), ("grpc", "message_bytes_max")]);
            let (held, message) = (limits.bytes_held_max, grpc.message_bytes_max);
            let what =
                format!("limits.bytes_held_max, {held}, has no room for grpc.message_bytes_max, {message}");
            self.mistakes.push(place.origin.mistake(what));
        }
        let (one, other) = (grpc.listen, admin.listen);
        let overlap = one.ip() == other.ip() || one.ip().is_unspecified() || other.ip().is_unspecified();
        if one.port() == other.port() && one.port() != 0 && overlap {
            let place = self.place_of(&[("admin", "listen"), ("grpc", "listen")]);
            let what = format!("grpc.listen and admin.listen are both on port {}", one.port());
            self.mistakes.push(place.origin.mistake(what));
        }
    }

    /// The strongest place of the first of these that is set.
    fn place_of(&self, settings: &[(&'static str, &'static str)]) -> Place {
        let find = |key| self.layers.layers.iter().rev().find_map(|layer| layer.0.get(key));
        settings.iter().find_map(find).map(|raw| raw.place.clone()).unwrap_or_default()
    }

    fn custom_dialect(&mut self) -> Option<Arc<Custom>> {
        let part = CustomDialect::read(self.layers, self.mistakes);
        let place = self.layers.place_of("custom_dialect")?;
        for name in ["correlation_id", "reply_topic"] {
            if !self.is_set("custom_dialect", name) {
                self.missing("custom_dialect", &place, name, "the name of a header");
            }
        }
        let mut names: Vec<String> = Vec::new();
        let mut name = |found: Option<Found<String>>| {
            let Found { value: name, place } = found?;
            if name.is_empty() || message::is_own_header(&name) || names.contains(&name) {
                let what = match &*name {
                    "" => "must not be empty".to_owned(),
                    _ if names.contains(&name) => format!("{name:?} is the name of another header"),
                    _ => format!("{name:?} is one of Antiphon's own headers"),
                };
                self.mistakes.push(place.mistake(what));
            }
            names.push(name.clone());
            Some(name)
        };
        let correlation_id = name(part.correlation_id);
        let reply_topic = name(part.reply_topic);
        let custom = Custom {
            reply_partition: name(part.reply_partition),
            error_code: name(part.error_code),
            error_message: name(part.error_message),
            last: name(part.last),
            correlation_id: correlation_id?,
            reply_topic: reply_topic?,
            correlation_form: value(part.correlation_form, |form| form.0, CorrelationForm::Text),
            reply_partition_form: value(part.reply_partition_form, |form| form.0, PartitionForm::Int32),
        };
        Some(Arc::new(custom))
    }

    fn schema_registry(&mut self) -> Option<registry::Config> {
        let part = SchemaRegistry::read(self.layers, self.mistakes);
        let section = "schema_registry";
        let place = self.layers.place_of(section)?;
        let before = self.mistakes.len();
        match &part.url {
            None if !self.is_set(section, "url") => self.missing(section, &place, "url", ""),
            Some(found) if parse_url(&found.value).is_none() => {
                let hint = match found.value.contains('@') {
                    true => "user and password belong into username and password",
                    false => "http://HOST:PORT, or https, and the path to Confluent's API",
                };
                // Not shown: it may hold a password.
                self.mistakes.push(found.place.mistake("is not the URL of a registry").hint(hint));
            }
            _ => {}
        }
        let has_password = part.password.is_some() || part.password_file.is_some();
        let credentials = match part.username {
            Some(user) if user.value.contains(':') || user.value.is_empty() => {
                self.mistakes.push(user.place.mistake("must not be empty, nor have a colon"));
                None
            }
            Some(user) => self
                .password(part.password, part.password_file, (section, &place))
                .map(|password| (user.value, password)),
            None => {
                if has_password && !self.is_set(section, "username") {
                    self.missing(section, &place, "username", "");
                }
                None
            }
        };
        if let Some(file) = &part.ca_file {
            self.readable(file);
        }
        let whole = self.mistakes.len() == before;
        let default_timeout = Duration::from_millis(limits::SCHEMA_REGISTRY_TIMEOUT_MS);
        let config = registry::Config {
            url: part.url?.value,
            credentials,
            register: value(part.register, |yes| yes, true),
            timeout: value(part.timeout, |t| t.0, default_timeout),
            ca_file: part.ca_file.map(|found| found.value),
        };
        whole.then_some(config)
    }

    fn sources(&mut self) -> Sources {
        let part = Proto::read(self.layers, self.mistakes);
        let mut include_paths = Vec::new();
        for (path, _, place) in part.include_paths.map_or_else(Vec::new, |found| found.value.0) {
            if !path.is_dir() {
                self.mistakes
                    .push(place.mistake(format!("there is no folder {:?}", path.display().to_string())));
            }
            include_paths.push(path);
        }
        Sources {
            protos: self.files(part.files, &include_paths),
            descriptor_sets: self.files(part.descriptor_sets, &[]),
            include_paths,
            ..Sources::default()
        }
    }

    /// Files that exist, as they are written or in an include path.
    fn files(&mut self, found: Option<Found<Paths>>, include_paths: &[PathBuf]) -> Vec<PathBuf> {
        let mut files = Vec::new();
        for (path, written, place) in found.map_or_else(Vec::new, |found| found.value.0) {
            let elsewhere =
                || include_paths.iter().map(|folder| folder.join(&written)).find(|path| path.exists());
            match Some(path.clone()).filter(|path| path.exists()).or_else(elsewhere) {
                Some(path) => files.push(path),
                None => {
                    self.mistakes
                        .push(place.mistake(format!("there is no file {:?}", path.display().to_string())));
                }
            }
        }
        files
    }

    /// A whole number between bounds.
    pub(super) fn within<T>(&mut self, found: Option<Found<i64>>, least: T, most: T, default: T) -> T
    where
        T: TryFrom<i64> + PartialOrd + std::fmt::Display,
    {
        let Some(found) = found else { return default };
        match T::try_from(found.value) {
            Ok(value) if value >= least && value <= most => value,
            _ => {
                let what = format!("{} is not within {least} to {most}", found.value);
                self.mistakes.push(found.place.mistake(what));
                default
            }
        }
    }
}

impl<T> Found<T> {
    pub(super) fn map<U>(self, change: impl FnOnce(T) -> U) -> Found<U> {
        Found { value: change(self.value), place: self.place }
    }
}

pub(super) fn value<T, U>(found: Option<Found<T>>, change: impl FnOnce(T) -> U, default: U) -> U {
    found.map_or(default, |found| change(found.value))
}

fn unreadable(path: &Path, error: &std::io::Error) -> String {
    match error.kind() {
        std::io::ErrorKind::NotFound => format!("there is no file {:?}", path.display().to_string()),
        _ => format!("{:?} can't be read: {error}", path.display().to_string()),
    }
}
