//! Route tables, and the exact words for what is wrong with their sources.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use prost::Message;
use prost_types::FileDescriptorSet;

use super::compile::compile_within;
use super::*;
use crate::message::dialect::{Custom, Dialect};
use crate::message::format::Format;
use crate::terms::{Compression, CorrelationForm, DeadLetterOn, Mode, PartitionForm};

mod wrong;

/// The first line of every test file; services begin on the second.
const HEAD: &str = "syntax = \"proto3\"; package t; import \"antiphon/v1/options.proto\"; \
    import \"google/protobuf/empty.proto\"; message A { string id = 1; int32 n = 2; repeated int32 many = 3; \
    double real = 4; B b = 5; bool flag = 6; } message B { string id = 1; }\n";

struct Files(tempfile::TempDir);

impl Files {
    fn new(files: &[(&str, &str)]) -> Self {
        let dir = tempfile::tempdir().unwrap();
        for (name, text) in files {
            let path = dir.path().join(name);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, text).unwrap();
        }
        Self(dir)
    }

    fn path(&self, name: &str) -> std::path::PathBuf {
        self.0.path().join(name)
    }

    fn protos(&self, names: &[&str]) -> Sources {
        Sources { protos: names.iter().map(|name| self.path(name)).collect(), ..Sources::default() }
    }

    /// The mistakes as they are shown, with the folder's name left out.
    fn wrong(&self, sources: &Sources) -> String {
        let mistakes = compile(sources).expect_err("no mistake was found").to_string();
        let shown = self.0.path().display().to_string();
        mistakes.replace(&format!("{shown}/"), "").replace(&shown, "DIR")
    }
}

fn sample(name: &str) -> Sources {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("proto");
    Sources { protos: vec![root.join(name)], ..Sources::default() }
}

fn route<'a>(table: &'a RouteTable, path: &str) -> &'a Route {
    match table.lookup(path) {
        Lookup::Route(route) => route,
        other => panic!("{path}: {other:?}"),
    }
}

#[test]
fn options_make_a_route() {
    let table = compile(&sample("payments/v1/payments.proto")).unwrap();
    let pay = route(&table, "/payments.v1.PaymentService/Pay");
    assert_eq!((pay.index, &*pay.service, &*pay.method), (0, "payments.v1.PaymentService", "Pay"));
    assert_eq!((&*pay.request_topic, &*pay.dead_letter_topic), ("payment_request", "payment_request.DLQ"));
    assert_eq!((pay.timeout, pay.timeout_max), (Duration::from_secs(10), Duration::from_secs(60)));
    assert_eq!(pay.key.as_ref().map(FieldPath::as_str), Some("order_id"));
    assert!(matches!(pay.partitioning, Partitioning::ByKey));
    assert_eq!(pay.input.full_name(), "payments.v1.PayRequest");
    assert_eq!(table.routes().iter().map(|r| r.index).collect::<Vec<_>>(), [0, 1]);
    assert_eq!(table.services().collect::<Vec<_>>(), ["payments.v1.PaymentService"]);
    assert_eq!(table.request_topics().iter().map(|t| &**t).collect::<Vec<_>>(), ["payment_request"]);
}

#[test]
fn a_method_overrides_its_service_and_says_whether_it_may_be_repeated() {
    let table = compile(&sample("delivery/v1/delivery.proto")).unwrap();
    let set = &table.routes()[0];
    assert_eq!((&*set.request_topic, set.timeout), ("delivery_radius_request", Duration::from_secs(30)));
    assert_eq!((set.idempotency, set.key.as_ref().unwrap().as_str()), (Idempotency::Idempotent, "shop_id"));
}

#[test]
fn without_options_the_topic_is_the_services_name() {
    let table = compile(&sample("echo/v1/echo.proto")).unwrap();
    let echo = route(&table, "/echo.v1.EchoService/Echo");
    assert_eq!(&*echo.request_topic, "echo.v1.EchoService");
    assert!(echo.key.is_none() && matches!(echo.partitioning, Partitioning::Spread));
    assert_eq!((echo.mode, echo.idempotency), (Mode::RequestReply, Idempotency::Unknown));
    assert_eq!((echo.timeout, echo.timeout_max), (Duration::from_secs(10), Duration::from_secs(300)));
    assert_eq!((echo.compression, echo.cancel_record, echo.in_flight_max), (None, false, None));
    let many = route(&table, "/echo.v1.EchoService/EchoMany");
    assert!(many.is_stream() && many.replies.as_ref().unwrap().until_last && !echo.is_stream());
    assert!(echo.replies.is_none() && table.not_served().is_empty());
    assert!(matches!(table.lookup("/echo.v1.EchoService/Nope"), Lookup::UnknownMethod));
    for path in ["/echo.v1.Echo/Echo", "/", "", "echo.v1.EchoService/Echo", "/echo.v1.EchoServic/Echo"] {
        assert!(matches!(table.lookup(path), Lookup::UnknownService), "{path}");
    }
}

#[test]
fn every_option_is_read() {
    let service = r#"service S { rpc M(A) returns (google.protobuf.Empty) { option (antiphon.v1.kafka) = {
        request_topic: "q" key: "b.id" partition: 7 timeout: "1s" timeout_max: "2s" mode: ONE_WAY
        dialect: "spring" correlation_form: BINARY format: PROTOBUF compression: ZSTD dead_letter_on: [TIMEOUT, REJECTED, TIMEOUT]
        dead_letter_topic: "dead" cancel_record: true in_flight_max: 12 }; }
        rpc N(A) returns (B) { option (antiphon.v1.kafka).partition_field = "n"; option (antiphon.v1.kafka).mode = REQUEST_REPLY; } }"#;
    let files = Files::new(&[("t.proto", &format!("{HEAD}{service}"))]);
    let table = compile(&files.protos(&["t.proto"])).unwrap();
    let m = route(&table, "/t.S/M");
    assert_eq!((&*m.request_topic, &*m.dead_letter_topic), ("q", "dead"));
    assert!(matches!(m.partitioning, Partitioning::Fixed(7)) && m.key.as_ref().unwrap().as_str() == "b.id");
    assert_eq!(m.dialect, Dialect::Spring(CorrelationForm::Binary));
    assert_eq!((m.mode, m.compression, m.cancel_record), (Mode::OneWay, Some(Compression::Zstd), true));
    assert_eq!(m.dead_letter_on, [DeadLetterOn::Timeout, DeadLetterOn::Rejected]);
    assert_eq!(
        (m.in_flight_max, m.timeout, m.timeout_max),
        (Some(12), Duration::from_secs(1), Duration::from_secs(2))
    );
    let n = &route(&table, "/t.S/N").partitioning;
    assert!(matches!(n, Partitioning::ByField(path) if path.as_str() == "n"), "{n:?}");
}

/// Only one that waits for its reply must be able to name the partition.
#[test]
fn a_dialect_without_reply_partitions_is_refused_where_they_are_needed() {
    let service = r#"service S {
  rpc Spring(A) returns (B);
  rpc OneWay(A) returns (google.protobuf.Empty) { option (antiphon.v1.kafka) = { dialect: "zilla" mode: ONE_WAY }; }
  rpc Fast(A) returns (B) { option (antiphon.v1.kafka) = { dialect: "faststream" }; }
  rpc Zilla(A) returns (B) { option (antiphon.v1.kafka) = { dialect: "zilla" }; }
}"#;
    let files = Files::new(&[("t.proto", &format!("{HEAD}{service}"))]);
    assert!(compile(&files.protos(&["t.proto"])).is_ok());
    let mistakes = compile(&Sources { reply_partition: true, ..files.protos(&["t.proto"]) }).unwrap_err();
    let shown: Vec<String> = mistakes.iter().map(ToString::to_string).collect();
    assert_eq!(shown.len(), 2, "{shown:#?}");
    for (shown, name) in shown.iter().zip(["t.S/Fast", "t.S/Zilla"]) {
        assert!(shown.contains("t.proto:") && shown.contains(name), "{shown}");
        assert!(shown.contains("reply.routing is partition\n  hint: set reply.routing to"), "{shown}");
    }
}

#[test]
fn a_format_is_a_methods_own() {
    let service = r#"service S {
        option (antiphon.v1.kafka_defaults) = { format: JSON json_names: PROTO };
        rpc Default(A) returns (B);
        rpc Own(A) returns (B) { option (antiphon.v1.kafka) = { json_names: LOWER_CAMEL json_defaults: true }; }
        rpc Plain(A) returns (B) { option (antiphon.v1.kafka) = { format: PROTOBUF }; }
        rpc Framed(A) returns (B) { option (antiphon.v1.kafka) = { format: CONFLUENT_PROTOBUF request_topic: "q" }; }
        rpc Subject(A) returns (B) { option (antiphon.v1.kafka) = { format: CONFLUENT_PROTOBUF schema_subject: "s" }; } }"#;
    let files = Files::new(&[("t.proto", &format!("{HEAD}{service}"))]);
    let table = compile(&Sources { schema_registry: true, ..files.protos(&["t.proto"]) }).unwrap();
    let formats: Vec<&Format> = table.routes().iter().map(|route| &route.format).collect();
    let [
        Format::Json(default),
        Format::Json(own),
        Format::Protobuf,
        Format::ConfluentProtobuf(framed),
        Format::ConfluentProtobuf(subject),
    ] = formats[..]
    else {
        panic!("{formats:?}");
    };
    assert_eq!((default.proto_names, default.defaults), (true, false));
    assert_eq!((own.proto_names, own.defaults), (false, true));
    assert_eq!((framed.subject.as_str(), subject.subject.as_str()), ("q-value", "s"));
}

/// Options of the service and of a method, and TOML over both.
#[test]
fn a_dialect_is_a_methods_own() {
    let service = r#"service S {
        option (antiphon.v1.kafka_defaults) = { dialect: "nestjs" };
        rpc Default(A) returns (B);
        rpc Own(A) returns (B) { option (antiphon.v1.kafka) = { dialect: "zilla" }; }
        rpc Toml(A) returns (B) { option (antiphon.v1.kafka) = { dialect: "zilla" }; } }"#;
    let files = Files::new(&[("t.proto", &format!("{HEAD}{service}"))]);
    let custom = Arc::new(Custom {
        correlation_id: "x-call".to_owned(),
        correlation_form: CorrelationForm::Text,
        reply_topic: "x-answer-to".to_owned(),
        reply_partition: None,
        reply_partition_form: PartitionForm::Int32,
        error_code: None,
        error_message: None,
        last: None,
    });
    let mut sources = files.protos(&["t.proto"]);
    sources.custom_dialect = Some(Arc::clone(&custom));
    let word =
        |settings: &mut Settings, origin| settings.dialect = Some(Sourced::new("custom".to_owned(), origin));
    sources.methods.insert("t.S/Toml".to_owned(), overlay(1, word));
    let table = compile(&sources).unwrap();
    let dialects: Vec<Dialect> = table.routes().iter().map(|route| route.dialect.clone()).collect();
    assert_eq!(dialects, [Dialect::Nestjs, Dialect::Zilla, Dialect::Custom(custom)]);
}

#[test]
fn several_replies_are_a_methods_own() {
    let service = r#"message L { string note = 1; repeated B all = 7; map<string, B> by_name = 8; }
        message M { repeated B some = 2; repeated B others = 3; }
        service S {
        rpc One(A) returns (L);
        rpc Three(A) returns (L) { option (antiphon.v1.kafka) = { replies: 3 partial_on_timeout: true skip_errors: true }; }
        rpc Last(A) returns (M) { option (antiphon.v1.kafka) = { until_last: true replies_field: "others" replies_max: 5 }; }
        rpc Many(A) returns (L) { option (antiphon.v1.kafka) = { replies: 20000 }; }
        rpc Stream(A) returns (stream L);
        rpc Five(A) returns (stream L) { option (antiphon.v1.kafka) = { replies: 5 until_last: false replies_max: 2 }; }
        rpc Up(stream A) returns (B); rpc Both(stream A) returns (stream B); }"#;
    let files = Files::new(&[("t.proto", &format!("{HEAD}{service}"))]);
    let table = compile(&files.protos(&["t.proto"])).unwrap();
    let shown: Vec<_> = table
        .routes()
        .iter()
        .map(|route| {
            let plan = route.replies.as_ref()?;
            let field = match &plan.delivery {
                Delivery::Field { number, element } => Some((*number, element.full_name().to_owned())),
                Delivery::Stream => None,
            };
            let flags = [plan.until_last, plan.partial_on_timeout, plan.skip_errors];
            Some((plan.count, flags, plan.held_max, field, route.reply_type().name().to_owned()))
        })
        .collect();
    let b = |number| Some((number, "t.B".to_owned()));
    let expected = [
        None,
        Some((Some(3), [false, true, true], 10_000, b(7), "B".to_owned())),
        Some((None, [true, false, false], 5, b(3), "B".to_owned())),
        Some((Some(20_000), [false; 3], 20_000, b(7), "B".to_owned())),
        Some((None, [true, false, false], 10_000, None, "L".to_owned())),
        Some((Some(5), [false; 3], 2, None, "L".to_owned())),
    ];
    assert_eq!(shown, expected);
    assert_eq!(table.not_served(), ["/t.S/Both", "/t.S/Up"]);
    assert!(matches!(table.lookup("/t.S/Up"), Lookup::Streaming { server: false }));
    assert!(matches!(table.lookup("/t.S/Both"), Lookup::Streaming { server: true }));
}

#[test]
fn a_set_timeout_moves_the_one_that_is_not() {
    let service = r#"service S {
        rpc Long(A) returns (B) { option (antiphon.v1.kafka) = { timeout: "10m" }; }
        rpc Short(A) returns (B) { option (antiphon.v1.kafka) = { timeout_max: "5s" }; } }"#;
    let files = Files::new(&[("t.proto", &format!("{HEAD}{service}"))]);
    let table = compile(&files.protos(&["t.proto"])).unwrap();
    for (route, seconds) in table.routes().iter().zip([600, 5]) {
        assert_eq!(
            (route.timeout, route.timeout_max),
            (Duration::from_secs(seconds), Duration::from_secs(seconds))
        );
    }
}

fn overlay(line: usize, fill: impl FnOnce(&mut Settings, Origin)) -> Overlay {
    let origin = Origin { file: Some("a.toml".into()), line: Some(line), column: Some(1) };
    let mut settings = Settings::default();
    fill(&mut settings, Origin { line: Some(line + 1), ..origin.clone() });
    Overlay { origin, settings }
}

fn topic(name: &'static str) -> impl FnOnce(&mut Settings, Origin) {
    move |settings, origin| settings.request_topic = Some(Sourced::new(name.to_owned(), origin))
}

#[test]
fn the_nearest_layer_wins() {
    let service = r#"service S { option (antiphon.v1.kafka_defaults) = { request_topic: "service" partition: 3 key: "id" };
        rpc One(A) returns (B); rpc Two(A) returns (B) { option (antiphon.v1.kafka) = { request_topic: "method"
        partition_field: "n" key: "" }; }
        rpc Three(A) returns (B) { option (antiphon.v1.kafka) = { partition_field: "" }; } }"#;
    let files = Files::new(&[("t.proto", &format!("{HEAD}{service}"))]);
    let mut sources = files.protos(&["t.proto"]);
    let topics = |sources: &Sources| {
        let table = compile(sources).unwrap();
        table.routes().iter().map(|r| r.request_topic.to_string()).collect::<Vec<_>>()
    };
    assert_eq!(topics(&sources), ["service", "method", "service"]);
    let table = compile(&sources).unwrap();
    assert!(matches!(table.routes()[0].partitioning, Partitioning::Fixed(3)));
    assert!(
        matches!(table.routes()[1].partitioning, Partitioning::ByField(_)) && table.routes()[1].key.is_none()
    );
    assert!(matches!(table.routes()[2].partitioning, Partitioning::ByKey));
    sources.services.insert("t.S".into(), overlay(1, topic("toml-service")));
    assert_eq!(topics(&sources), ["toml-service"; 3]);
    sources.methods.insert("t.S/Two".into(), overlay(1, topic("toml-method")));
    assert_eq!(topics(&sources), ["toml-service", "toml-method", "toml-service"]);
}

#[test]
fn wrong_options_are_shown_where_they_are() {
    for (option, expected) in wrong::OPTIONS {
        let service = format!(
            "service S {{\n  rpc M(A) returns (B) {{\n    option (antiphon.v1.kafka) = {{\n      {option}\n    }};\n  }}\n}}"
        );
        let files = Files::new(&[("t.proto", &format!("{HEAD}{service}"))]);
        assert_eq!(files.wrong(&files.protos(&["t.proto"])), *expected, "{option}");
    }
}

#[test]
fn wrong_services_are_shown_where_they_are() {
    for (service, expected) in wrong::SERVICES {
        let files = Files::new(&[("t.proto", &format!("{HEAD}{service}"))]);
        assert_eq!(files.wrong(&files.protos(&["t.proto"])), *expected, "{service}");
    }
}

const PLAIN: &str = "service S { rpc M(A) returns (B); rpc Flow(stream A) returns (B); }";

#[test]
fn settings_for_what_is_not_served_are_refused() {
    let files = Files::new(&[("t.proto", &format!("{HEAD}{PLAIN}"))]);
    let mut sources = files.protos(&["t.proto"]);
    for (line, name) in [(1, "t.Z"), (3, "S"), (5, "u.Other")] {
        sources.services.insert(name.into(), overlay(line, |_, _| {}));
    }
    for (line, name) in
        [(11, "t.S/m"), (13, "t.S.M"), (15, "t.S/Flow"), (17, "elsewhere.Service/Call"), (19, "/t.S/M")]
    {
        sources.methods.insert(name.into(), overlay(line, |_, _| {}));
    }
    assert_eq!(
        files.wrong(&sources),
        r#"a.toml:1:1: there is no service "t.Z" to serve
  hint: did you mean "t.S"?
a.toml:3:1: there is no service "S" to serve
  hint: did you mean "t.S"?
a.toml:5:1: there is no service "u.Other" to serve
a.toml:11:1: there is no method "t.S/m" to serve
  hint: did you mean "t.S/M"?
a.toml:13:1: there is no method "t.S.M" to serve
  hint: did you mean "t.S/M"?
a.toml:15:1: "t.S/Flow" is not served: its caller sends a stream, and a request is one record
a.toml:17:1: there is no method "elsewhere.Service/Call" to serve"#
    );
}

#[test]
fn wrong_settings_are_shown_where_they_were_written() {
    let files = Files::new(&[("t.proto", &format!("{HEAD}{PLAIN}"))]);
    let mut sources = files.protos(&["t.proto"]);
    let fill = |settings: &mut Settings, at: Origin| {
        settings.partition = Some(Sourced::new(-1, at.clone()));
        settings.in_flight_max = Some(Sourced::new(1 << 40, at.clone()));
        settings.compression = Some(Sourced::new("zip".into(), at.clone()));
        settings.mode = Some(Sourced::new("ONE_WAY".into(), at.clone()));
        settings.dead_letter_on = Some(Sourced::new(vec!["timeout".into(), "tmeout".into()], at));
    };
    sources.methods.insert("t.S/M".into(), overlay(7, fill));
    assert_eq!(
        files.wrong(&sources),
        r#"a.toml:8:1: dead_letter_on: unknown value "tmeout"; expected one of: timeout, undecodable-reply, rejected
  hint: did you mean "timeout"?
a.toml:8:1: partition: -1 is not within 0 to 99999
a.toml:8:1: mode: unknown value "ONE_WAY"; expected one of: request-reply, one-way
  hint: did you mean "one-way"?
a.toml:8:1: compression: unknown value "zip"; expected one of: none, gzip, snappy, lz4, zstd
  hint: did you mean "gzip"?
a.toml:8:1: in_flight_max: 1099511627776 is not within 1 to 16777216"#
    );
}

#[test]
fn a_table_has_a_size() {
    let files = Files::new(&[(
        "t.proto",
        &format!("{HEAD}service S {{ rpc M(A) returns (B); rpc N(A) returns (B); }}"),
    )]);
    let sources = files.protos(&["t.proto"]);
    assert!(compile_within(&sources, 2).is_ok());
    let shown = compile_within(&sources, 1).unwrap_err().to_string();
    assert_eq!(shown, "2 methods are more than 1, the most in one table");
}

#[test]
fn a_default_topic_can_be_too_long() {
    let name = "S".repeat(250);
    let files = Files::new(&[("t.proto", &format!("{HEAD}service {name} {{\n rpc M(A) returns (B); }}"))]);
    let shown = files.wrong(&files.protos(&["t.proto"]));
    let expected =
        format!("t.proto:3:2: request_topic: \"t.{name}\" has 252 characters, and a topic name at most 249");
    assert!(shown.starts_with(&expected), "{shown}");
}

fn pkg(package: &str, imports: &str, body: &str) -> String {
    format!("syntax = \"proto3\"; package {package}; {imports}\n{body}")
}

#[test]
fn imports_are_not_served() {
    let common = pkg("common.v1", "", "message C {} service Common { rpc Get(C) returns (C); }");
    let own = pkg(
        "own.v1",
        "import \"common/v1/common.proto\";",
        "service Own { rpc Get(common.v1.C) returns (common.v1.C); }",
    );
    let files = Files::new(&[("p/common/v1/common.proto", &common), ("p/own/v1/own.proto", &own)]);
    let table = compile(&files.protos(&["p/own/v1/own.proto"])).unwrap();
    assert_eq!(table.services().collect::<Vec<_>>(), ["own.v1.Own"]);
    assert!(matches!(table.lookup("/common.v1.Common/Get"), Lookup::UnknownService));
    let both = compile(&files.protos(&["p/own/v1/own.proto", "p/common/v1/common.proto"])).unwrap();
    assert_eq!(both.services().collect::<Vec<_>>(), ["own.v1.Own", "common.v1.Common"]);
    let set = FileDescriptorSet::decode(table.descriptor_set().as_slice()).unwrap();
    let names: Vec<_> = set.file.iter().map(|file| (file.name(), file.source_code_info.is_some())).collect();
    assert_eq!(names, [("common/v1/common.proto", false), ("own/v1/own.proto", false)]);
}

#[test]
fn one_file_may_be_imported_by_two_names() {
    let a = pkg("x", "", "message A {} service Sa { rpc M(A) returns (A); }");
    let b =
        pkg("y", "import \"a.proto\"; import \"sub/a.proto\";", "service Sb { rpc M(x.A) returns (x.A); }");
    let files = Files::new(&[("sub/a.proto", &a), ("sub/b.proto", &b)]);
    let mut sources = files.protos(&["sub/a.proto", "sub/b.proto"]);
    sources.include_paths = vec![files.path(""), files.path("sub")];
    let table = compile(&sources).unwrap();
    assert_eq!(table.services().collect::<Vec<_>>(), ["x.Sa", "y.Sb"]);
    sources.protos.reverse();
    assert!(compile(&sources).is_ok());
}

#[test]
fn names_count_from_the_most_specific_folder() {
    let a = pkg("x", "", "message A {} service Sa { rpc M(A) returns (A); }");
    let files =
        Files::new(&[("deep/sub/a.proto", &a), ("other/a.proto", &a.replace("package x", "package z"))]);
    let name_of = |sources: &Sources| {
        let set = compile(sources).unwrap().descriptor_set();
        FileDescriptorSet::decode(set.as_slice()).unwrap().file.pop().unwrap().name().to_owned()
    };
    let mut sources = files.protos(&["deep/sub/a.proto"]);
    assert_eq!(name_of(&sources), "a.proto");
    sources.include_paths = vec![files.path(""), files.path("deep"), files.path("other")];
    assert_eq!(name_of(&sources), "sub/a.proto");
    sources.protos = vec!["sub/a.proto".into()];
    assert_eq!(name_of(&sources), "sub/a.proto");
    let same_name = files.protos(&["deep/sub/a.proto", "other/a.proto"]);
    assert_eq!(compile(&same_name).unwrap().routes().len(), 2);
    sources.protos = vec![files.path("other/a.proto")];
    sources.include_paths = vec![files.path("deep")];
    assert_eq!(
        files.wrong(&sources),
        "other/a.proto: is in none of the include paths\n  hint: add --proto-path DIR/other"
            .replace("DIR/", "")
    );
}

#[test]
fn a_file_named_from_a_deeper_folder_keeps_its_importable_name() {
    let table = compile(&sample("payments/v1/payments.proto")).unwrap();
    let set = FileDescriptorSet::decode(table.descriptor_set().as_slice()).unwrap();
    let names: Vec<_> = set.file.iter().map(prost_types::FileDescriptorProto::name).collect();
    assert_eq!(
        names,
        ["google/protobuf/descriptor.proto", "antiphon/v1/options.proto", "payments/v1/payments.proto"]
    );
}

#[test]
fn every_broken_file_is_shown() {
    let files = Files::new(&[
        ("a.proto", "syntax = \"proto3\";\nmessage {}"),
        ("b.proto", "syntax = \"proto3\"; import \"c.proto\";"),
        ("c.proto", "syntax = \"proto3\";\n\nmessage M { Nope n = 1; }"),
        ("d.proto", "edition = \"2023\";\nmessage M {}"),
    ]);
    let mut sources = files.protos(&["a.proto", "b.proto", "c.proto", "d.proto", "e.proto", ""]);
    sources.descriptor_sets = vec![files.path("nope.bin"), files.path("a.proto")];
    sources.services.insert("not.Judged".into(), overlay(1, |_, _| {}));
    assert_eq!(
        files.wrong(&sources),
        r#": is a folder
  hint: name each .proto file in it
a.proto: is not an encoded FileDescriptorSet
  hint: make one with protoc --include_imports --descriptor_set_out=FILE, or name .proto files with --proto
a.proto:2:9: expected an identifier, but found '{'
c.proto:3:13: name 'Nope' is not defined
d.proto:1:1: expected 'enum', 'extend', 'import', 'message', 'option', 'service', 'package' or ';', but found 'edition'
  hint: editions are not supported; use syntax = "proto3"
e.proto: no such file
nope.bin: no such file"#
    );
}

#[test]
fn descriptor_sets_keep_their_options_and_lines() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("proto");
    let mut compiler = protox::Compiler::new([&root]).unwrap();
    compiler.include_imports(true).include_source_info(true);
    compiler.open_files(["payments/v1/payments.proto", "echo/v1/echo.proto"]).unwrap();
    let files = Files::new(&[]);
    std::fs::write(files.path("set.bin"), compiler.encode_file_descriptor_set()).unwrap();
    let mut sources = Sources { descriptor_sets: vec![files.path("set.bin")], ..Sources::default() };
    let table = compile(&sources).unwrap();
    assert_eq!(&*route(&table, "/payments.v1.PaymentService/Pay").request_topic, "payment_request");
    assert_eq!(table.services().count(), 2);
    sources.descriptor_sets.push(files.path("set.bin"));
    assert!(compile(&sources).is_ok(), "the same set twice is the same set");
    sources.protos = vec![root.join("echo/v1/echo.proto")];
    let shown = files.wrong(&sources).replace(&root.display().to_string(), "");
    assert_eq!(
        shown,
        "/echo/v1/echo.proto: \"echo/v1/echo.proto\" is in a descriptor set, too\n  hint: name one of the two"
    );
}

#[test]
fn a_set_without_its_imports_is_completed_from_the_include_paths() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("proto");
    let mut compiler = protox::Compiler::new([&root]).unwrap();
    compiler.open_file("payments/v1/payments.proto").unwrap();
    let files = Files::new(&[]);
    std::fs::write(files.path("set.bin"), compiler.encode_file_descriptor_set()).unwrap();
    let sources = Sources { descriptor_sets: vec![files.path("set.bin")], ..Sources::default() };
    let table = compile(&sources).unwrap();
    assert_eq!(&*route(&table, "/payments.v1.PaymentService/Pay").request_topic, "payment_request");
}
