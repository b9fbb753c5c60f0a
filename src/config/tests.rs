//! What can be set, what wins, and the exact words for what is wrong.

use std::path::{Path, PathBuf};

use super::*;
use crate::kafka::config::{SaslMechanism, TlsConfig};
use crate::telemetry::config::LogFormat;

mod wrong;

/// A folder with a configuration file `a.toml` and the files that some
/// settings name.
struct Folder(tempfile::TempDir);

impl Folder {
    fn new(toml: &str) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let folder = Self(dir);
        folder.write("a.toml", toml);
        folder.write("ca.pem", "");
        folder.write("secret.txt", "hunter2\n");
        folder.write("empty.txt", "\n");
        folder.write("p/x/v1/x.proto", "syntax = \"proto3\"; package x.v1; message M { string id = 1; }\nservice S { rpc C(M) returns (M); }");
        folder
    }

    fn write(&self, name: &str, text: &str) {
        let path = self.path(name);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, text).unwrap();
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn flags(&self) -> Flags {
        Flags { config: Some(self.path("a.toml")), ..Flags::default() }
    }

    /// The mistakes as they are shown, with the folder's name left out.
    fn shown(&self, mistakes: &Mistakes) -> String {
        mistakes.to_string().replace(&format!("{}/", self.0.path().display()), "")
    }
}

fn env(variables: &[(&str, &str)]) -> Vec<(OsString, OsString)> {
    variables.iter().map(|(name, value)| (name.into(), value.into())).collect()
}

fn load_from(flags: &Flags, variables: &[(&str, &str)]) -> Result<Config, Mistakes> {
    let mut mistakes = Mistakes::default();
    let resolved = read(flags, &env(variables), &mut mistakes);
    mistakes.or(resolved.config)
}

fn loaded(toml: &str) -> Config {
    let folder = Folder::new(toml);
    load_from(&folder.flags(), &[]).unwrap_or_else(|mistakes| panic!("{mistakes}"))
}

#[test]
fn nothing_set_is_all_defaults() {
    let config = load_from(&Flags::default(), &[]).unwrap();
    let gateway = app::Config { shards: config.gateway.shards, ..app::Config::default() };
    let defaults = Config { gateway, log: Default::default(), routes: Default::default() };
    assert_eq!(format!("{config:?}"), format!("{defaults:?}"));
    assert!((1..=256).contains(&config.gateway.shards));
}

#[test]
fn the_references_defaults_are_the_defaults() {
    let rows = reference();
    let variables: Vec<(&str, &str)> = rows
        .iter()
        .filter(|row| !row.default.is_empty())
        .map(|row| (row.variable.as_str(), row.default))
        .collect();
    let config = load_from(&Flags::default(), &variables).unwrap();
    let nothing = load_from(&Flags::default(), &[]).unwrap();
    assert_eq!(format!("{config:?}"), format!("{nothing:?}"));
}

#[test]
fn the_reference_names_every_setting_once() {
    let rows = reference();
    let mut variables: Vec<&str> = rows.iter().map(|row| row.variable.as_str()).collect();
    variables.sort_unstable();
    let count = variables.len();
    variables.dedup();
    assert_eq!(variables.len(), count, "two settings have one variable");
    assert!(rows.iter().all(|row| !row.doc.is_empty() && !row.doc.contains("  ")));
    let shards = rows.iter().find(|row| row.name == "shards").unwrap();
    assert_eq!((shards.variable.as_str(), shards.flag), ("ANTIPHON_SHARDS", Some("--shards")));
    let ca = rows.iter().find(|row| row.name == "ca_file").unwrap();
    assert_eq!(
        (ca.section, ca.variable.as_str(), ca.kind),
        ("kafka.tls", "ANTIPHON_KAFKA_TLS_CA_FILE", "a path")
    );
}

const EVERYTHING: &str = r#"
shards = 3
[kafka]
bootstrap_servers = ["b1:9092", "[::1]:9093"]
client_id = "gate"
compression = "zstd"
connect_timeout = "1s"
produce_timeout = "2s"
metadata_refresh = "3s"
[kafka.tls]
ca_file = "ca.pem"
[kafka.sasl]
mechanism = "SCRAM-SHA-512"
username = "me"
password_file = "secret.txt"
[grpc]
listen = "localhost:1"
message_bytes_max = "1MiB"
reflection = false
metadata_forward = ["x-tenant", "authorization"]
metadata_return = ["x-cost"]
connections_max = 2
streams_per_connection_max = 3
keep_alive_interval = "4s"
keep_alive_timeout = "5s"
[admin]
listen = ":2"
console = false
[limits]
in_flight_max = 100
bytes_held_max = 0x100000
lane_queue_max = 7
[reply]
routing = "instance-topic"
topic_prefix = "r"
instance = "pod-1"
replication_factor = 3
fetch_wait = "100ms"
heartbeat_interval = "1s"
start_timeout = "1m"
[drain]
notice = "5s"
timeout = "1h"
[log]
format = "json"
filter = "debug"
[proto]
files = ["p/x/v1/x.proto"]
include_paths = ["p"]
[service."x.v1.S"]
request_topic = "q"
[method."/x.v1.S/C"]
key = "id"
timeout = "7s"
"#;

#[test]
fn everything_can_be_set_in_the_file() {
    let folder = Folder::new(EVERYTHING);
    let (config, table) = load_with_routes_from(&folder.flags(), &[]).unwrap_or_else(|m| panic!("{m}"));
    assert_eq!(config.gateway.kafka.bootstrap_servers, ["b1:9092", "[::1]:9093"]);
    assert_eq!(
        (config.gateway.kafka.client_id.as_str(), config.gateway.kafka.connect_timeout.as_secs()),
        ("gate", 1)
    );
    let tls = TlsConfig { ca_file: Some(folder.path("ca.pem")), ..TlsConfig::default() };
    assert_eq!(config.gateway.kafka.tls, Some(tls));
    let sasl = config.gateway.kafka.sasl.as_ref().unwrap();
    assert_eq!((sasl.mechanism, sasl.username.as_str()), (SaslMechanism::ScramSha512, "me"));
    assert_eq!(sasl.password.reveal(), "hunter2");
    assert!(!format!("{config:?}").contains("hunter2"));
    assert_eq!(config.gateway.grpc.listen.to_string(), "127.0.0.1:1");
    assert_eq!((config.gateway.grpc.message_bytes_max, config.gateway.grpc.reflection), (1 << 20, false));
    assert_eq!(config.gateway.grpc.metadata_forward, ["x-tenant", "authorization"]);
    assert_eq!(config.gateway.admin.listen.to_string(), "0.0.0.0:2");
    assert!(!config.gateway.admin.console);
    assert_eq!((config.gateway.limits.in_flight_max, config.gateway.limits.bytes_held_max), (100, 1 << 20));
    assert_eq!(
        (config.gateway.reply.instance.as_deref(), config.gateway.reply.replication_factor),
        (Some("pod-1"), 3)
    );
    assert_eq!((config.gateway.drain.notice.as_secs(), config.gateway.drain.timeout.as_secs()), (5, 3600));
    assert_eq!(
        (config.log.format, config.log.filter.as_str(), config.gateway.shards),
        (LogFormat::Json, "debug", 3)
    );
    let route = &table.routes()[0];
    assert_eq!((&*route.request_topic, route.timeout.as_secs()), ("q", 7));
    assert_eq!(route.key.as_ref().unwrap().as_str(), "id");
}

#[test]
fn a_custom_dialect_is_read_from_the_file_and_the_environment() {
    let folder = Folder::new("[custom_dialect]\ncorrelation_id = \"x-call\"\nreply_topic = \"x-to\"");
    let config =
        load_from(&folder.flags(), &[("ANTIPHON_CUSTOM_DIALECT_REPLY_PARTITION", "x-part")]).unwrap();
    let custom = config.routes.custom_dialect.unwrap();
    assert_eq!((&*custom.correlation_id, &*custom.reply_topic), ("x-call", "x-to"));
    assert_eq!(custom.reply_partition.as_deref(), Some("x-part"));
    assert_eq!((custom.error_code.as_deref(), custom.error_message.as_deref()), (None, None));
    assert!(loaded("").routes.custom_dialect.is_none());
}

#[test]
fn a_schema_registry_is_read_from_the_file_and_the_environment() {
    let folder =
        Folder::new("[schema_registry]\nurl = \"http://r:8081/apis\"\nusername = \"me\"\nregister = false");
    std::fs::write(folder.path("pw"), "hunter2\nmore").unwrap();
    let file = folder.path("pw");
    let variables = [("ANTIPHON_SCHEMA_REGISTRY_PASSWORD_FILE", file.to_str().unwrap())];
    let config = load_from(&folder.flags(), &variables).unwrap();
    assert!(!format!("{config:?}").contains("hunter2"));
    let registry = config.gateway.schema_registry.unwrap();
    assert_eq!(
        (registry.url.as_str(), registry.register, registry.timeout.as_secs()),
        ("http://r:8081/apis", false, 5)
    );
    let (user, password) = registry.credentials.unwrap();
    assert_eq!((user.as_str(), password.reveal()), ("me", "hunter2"));
    assert!(config.routes.schema_registry && loaded("").gateway.schema_registry.is_none());
}

#[test]
fn flags_win_over_the_environment_and_that_over_the_file() {
    let folder = Folder::new(
        "[kafka]\nbootstrap_servers = [\"file:1\"]\n[grpc]\nlisten = \":1\"\n[admin]\nlisten = \":11\"",
    );
    let variables = [
        ("ANTIPHON_KAFKA_BOOTSTRAP_SERVERS", "env:1, env:2"),
        ("ANTIPHON_GRPC_LISTEN", ":2"),
        ("ANTIPHON_SHARDS", "2"),
        ("ANTIPHON_LOG_FORMAT", ""),
        ("PATH", "/bin"),
    ];
    let flags = Flags { listen: Some(":3".into()), ..folder.flags() };
    let config = load_from(&flags, &variables).unwrap();
    assert_eq!(config.gateway.kafka.bootstrap_servers, ["env:1", "env:2"]);
    assert_eq!(
        (config.gateway.grpc.listen.port(), config.gateway.admin.listen.port(), config.gateway.shards),
        (3, 11, 2)
    );
}

#[test]
fn the_environment_can_name_the_file() {
    let folder = Folder::new("shards = 5");
    let path = folder.path("a.toml");
    let config = load_from(&Flags::default(), &[("ANTIPHON_CONFIG", path.to_str().unwrap())]).unwrap();
    assert_eq!(config.gateway.shards, 5);
}

#[test]
fn variables_of_service_links_are_passed_over() {
    let links = [
        ("ANTIPHON_SERVICE_HOST", "10.0.0.1"),
        ("ANTIPHON_SERVICE_PORT", "50051"),
        ("ANTIPHON_SERVICE_PORT_GRPC", "50051"),
        ("ANTIPHON_PORT", "tcp://10.0.0.1:50051"),
        ("ANTIPHON_PORT_50051_TCP", "tcp://10.0.0.1:50051"),
        ("ANTIPHON_PORT_50051_TCP_ADDR", "10.0.0.1"),
        ("ANTIPHON_ADMIN_SERVICE_HOST", "10.0.0.1"),
    ];
    assert!(load_from(&Flags::default(), &links).is_ok());
}

#[test]
fn tls_and_sasl_are_there_when_they_are_named() {
    assert_eq!(loaded("[kafka.tls]").gateway.kafka.tls, Some(TlsConfig::default()));
    assert_eq!(loaded("[kafka.tls]\nenabled = false").gateway.kafka.tls, None);
    let enabled = load_from(&Flags::default(), &[("ANTIPHON_KAFKA_TLS_ENABLED", "true")]).unwrap();
    assert_eq!(enabled.gateway.kafka.tls, Some(TlsConfig::default()));
    let token = loaded("[kafka.sasl]\nmechanism = \"OAUTHBEARER\"\npassword = \"token\"");
    assert_eq!(token.gateway.kafka.sasl.unwrap().username, "");
}

#[test]
fn the_documented_example_works() {
    let toml = r#"
[kafka]
bootstrap_servers = ["127.0.0.1:9092"]
[service."payments.v1.PaymentService"]        # defaults for its methods
request_topic = "payment_request"
[method."payments.v1.PaymentService/Pay"]
key = "order_id"
timeout = "10s"
"#;
    let folder = Folder::new(toml);
    let proto = Path::new(env!("CARGO_MANIFEST_DIR")).join("proto/payments/v1/payments.proto");
    let flags = Flags { protos: vec![proto], ..folder.flags() };
    let (_, table) = load_with_routes_from(&flags, &[]).unwrap();
    assert_eq!(table.routes().len(), 2);
}

#[test]
fn what_routes_can_not_do_with_a_reply_routing_is_a_mistake() {
    let method = "[proto]\nfiles = [\"p/x/v1/x.proto\"]\n[method.\"x.v1.S/C\"]\ndialect = \"faststream\"\n";
    let reply = "[reply]\nrouting = \"partition\"\ntopic = \"replies\"\n";
    let folder = Folder::new(&format!("{method}{reply}"));
    let mistakes = load_with_routes_from(&folder.flags(), &[]).map(drop).unwrap_err();
    let shown = folder.shown(&mistakes);
    assert!(
        shown.starts_with("a.toml:4:11: dialect: requests of x.v1.S/C can't name the partition"),
        "{shown}"
    );
    let folder = Folder::new(&format!("{method}{}", reply.replace("\"partition", "\"shared")));
    assert!(load_with_routes_from(&folder.flags(), &[]).is_ok());
}

#[test]
fn wrong_files_are_shown_where_they_are_wrong() {
    for (toml, expected) in wrong::FILES {
        let folder = Folder::new(toml);
        let mistakes = load_from(&folder.flags(), &[]).expect_err(toml);
        assert_eq!(folder.shown(&mistakes), *expected, "{toml}");
        assert!(!mistakes.to_string().contains("hunter2"), "{toml}");
    }
}

#[test]
fn wrong_variables_are_shown_by_name() {
    for (name, value, expected) in wrong::VARIABLES {
        let mistakes = load_from(&Flags::default(), &[(name, value)]).expect_err(name);
        assert_eq!(mistakes.to_string(), *expected, "{name}={value}");
        assert!(!mistakes.to_string().contains("hunter2"), "{name}");
    }
}

#[test]
fn wrong_flags_are_shown_by_name() {
    let flags = Flags {
        protos: vec!["/nonesuch/x.proto".into()],
        proto_paths: vec!["/nonesuch".into()],
        listen: Some("50051".into()),
        shards: Some(0),
        bootstrap_servers: vec!["kafka://b:9092".into()],
        ..Flags::default()
    };
    assert_eq!(
        load_from(&flags, &[]).unwrap_err().to_string(),
        r#"--listen: "50051" is not an address
  hint: did you mean ":50051"?
--shards: 0 is not within 1 to 256
--bootstrap-servers: "kafka://b:9092" is not HOST:PORT
  hint: did you mean "b:9092"?
--proto-path: there is no folder "/nonesuch"
--proto: there is no file "/nonesuch/x.proto""#
    );
}

#[test]
fn mistakes_of_settings_and_routes_come_in_one_list() {
    let toml = "[grpc]\nlisten = \"x\"\n[proto]\nfiles = [\"p/x/v1/x.proto\"]\n[method.\"x.v1.S/C\"]\nkey = \"ib\"\n[service.\"x.v1.T\"]\ntimeout = 10";
    let folder = Folder::new(toml);
    let mistakes = load_with_routes_from(&folder.flags(), &[]).unwrap_err();
    assert_eq!(
        folder.shown(&mistakes),
        r#"a.toml:2:10: grpc.listen: "x" is not an address
  hint: HOST:PORT, or :PORT for all interfaces
a.toml:6:7: key "ib" of x.v1.S/C: x.v1.M has no field "ib"
  hint: did you mean "id"?
a.toml:7:10: there is no service "x.v1.T" to serve
  hint: did you mean "x.v1.S"?
a.toml:8:11: service."x.v1.T".timeout: expected a string, found an integer
  hint: a whole number with a unit of ms, s, m or h, such as "10s""#
    );
    let broken = Folder::new("[proto]\nfiles = [\"nonesuch.proto\"]\n[service.\"x.v1.S\"]");
    let mistakes = load_with_routes_from(&broken.flags(), &[]).unwrap_err();
    assert_eq!(broken.shown(&mistakes), "a.toml:2:10: proto.files: there is no file \"nonesuch.proto\"");
}

#[test]
fn a_text_is_checked_without_looking_at_anything_else() {
    let outside = r#"
        [kafka.tls]
        ca_file = "/no/such/file"
        [kafka.sasl]
        mechanism = "PLAIN"
        username = "gateway"
        password_file = "/no/such/file"
        [grpc]
        listen = "no-such-host.invalid:50051"
        [proto]
        files = ["no/such.proto"]
    "#;
    let config = check_text(outside).unwrap();
    assert!(config.gateway.kafka.tls.is_some() && config.gateway.kafka.sasl.is_some());
    let wrong = "shards = 0\n[kafka.tls]\nca_file = 7\n[proto]\nfiles = true\n[grpc]\nlisten = \"x\"\n";
    assert_eq!(check_text(wrong).unwrap_err().len(), 4);
    assert_eq!(check_text("= 1").unwrap_err().len(), 1);
}
