//! Mistakes in `.proto` files and the exact words that are said of them.

/// Options of method `t.S/M`, written from line 5 column 7.
pub(super) const OPTIONS: &[(&str, &str)] = &[
    (
        r#"request_topic: "a b""#,
        r#"t.proto:5:7: request_topic: "a b" can't name a topic: ' ' is not allowed
  hint: Kafka allows 1 to 249 of a-z, A-Z, 0-9, '.', '_' and '-'"#,
    ),
    (
        r#"request_topic: """#,
        "t.proto:5:7: request_topic: a topic name must not be empty
  hint: Kafka allows 1 to 249 of a-z, A-Z, 0-9, '.', '_' and '-'",
    ),
    (
        r#"request_topic: "..""#,
        r#"t.proto:5:7: request_topic: ".." can't name a topic
  hint: Kafka allows 1 to 249 of a-z, A-Z, 0-9, '.', '_' and '-'"#,
    ),
    (
        r#"key: "idd""#,
        r#"t.proto:5:7: key "idd" of t.S/M: t.A has no field "idd"
  hint: did you mean "id"?"#,
    ),
    (r#"key: "many""#, r#"t.proto:5:7: key "many" of t.S/M: field "many" of t.A is repeated"#),
    (
        r#"key: "b""#,
        r#"t.proto:5:7: key "b" of t.S/M: field "b" of t.A is a message, and only string, bytes, integer, bool and enum will do"#,
    ),
    (
        r#"key: "real""#,
        r#"t.proto:5:7: key "real" of t.S/M: field "real" of t.A is a double, and only string, bytes, integer, bool and enum will do"#,
    ),
    (r#"key: "id.x""#, r#"t.proto:5:7: key "id.x" of t.S/M: field "id" of t.A has no fields of its own"#),
    ("partition: 100000", "t.proto:5:7: partition: 100000 is not within 0 to 99999"),
    (
        r#"partition: 1 partition_field: "n""#,
        "t.proto:5:20: partition and partition_field exclude each other",
    ),
    (r#"partition_field: "id""#, r#"t.proto:5:7: partition_field "id" of t.S/M is not an integer"#),
    (r#"partition_field: "flag""#, r#"t.proto:5:7: partition_field "flag" of t.S/M is not an integer"#),
    (
        r#"timeout: "10x""#,
        r#"t.proto:5:7: timeout: "10x" is not a duration
  hint: a whole number with a unit of ms, s, m or h, such as "10s""#,
    ),
    (r#"timeout: "0s""#, r#"t.proto:5:7: timeout: "0s" must be more than zero"#),
    (r#"timeout: "25h""#, r#"t.proto:5:7: timeout: "25h" is longer than 24h, the most that can be set"#),
    (
        r#"timeout: "10s"
      timeout_max: "5s""#,
        "t.proto:5:7: timeout: 10s is longer than timeout_max, 5s",
    ),
    (
        r#"timeout_max: """#,
        r#"t.proto:5:7: timeout_max: "" is not a duration
  hint: a whole number with a unit of ms, s, m or h, such as "10s""#,
    ),
    (
        "mode: ONE_WAY",
        "t.proto:5:7: mode: t.S/M is one-way, and yet returns t.B
  hint: return google.protobuf.Empty or antiphon.v1.Ack",
    ),
    (
        "mode: SOMETIMES",
        "t.proto:5:13: invalid value of type 'antiphon.v1.KafkaOptions' for option '(antiphon.v1.kafka)': value 'SOMETIMES' was not found for enum 'antiphon.v1.Mode'",
    ),
    ("mode: 9", r#"t.proto:5:7: mode: unknown value "9"; expected one of: request-reply, one-way"#),
    (
        r#"dialect: "custom""#,
        r#"t.proto:5:7: dialect: "custom" needs the section [custom_dialect]
  hint: at least correlation_id and reply_topic, the names of headers"#,
    ),
    (
        r#"dialect: "nestjs" correlation_form: BINARY"#,
        "t.proto:5:25: correlation_form: the dialect nestjs has no form to choose",
    ),
    (
        r#"dialect: "zilla" cancel_record: true"#,
        "t.proto:5:24: cancel_record: a record without a value is the end of a request in the dialect zilla, which has no way to cancel one",
    ),
    (
        r#"dialect: "Spring""#,
        r#"t.proto:5:7: dialect: unknown value "Spring"; expected one of: spring, nestjs, smallrye, faststream, zilla, custom
  hint: did you mean "spring"?"#,
    ),
    (
        r#"dialect: "sprnig""#,
        r#"t.proto:5:7: dialect: unknown value "sprnig"; expected one of: spring, nestjs, smallrye, faststream, zilla, custom
  hint: did you mean "spring"?"#,
    ),
    (
        "format: CONFLUENT_PROTOBUF",
        "t.proto:5:7: format: confluent-protobuf needs a schema registry
  hint: set url in the section [schema_registry]",
    ),
    (r#"format: JSON schema_subject: """#, "t.proto:5:20: schema_subject: must not be empty"),
    (
        "format: 9",
        r#"t.proto:5:7: format: unknown value "9"; expected one of: protobuf, json, confluent-protobuf"#,
    ),
    (
        r#"dead_letter_topic: "x/y""#,
        r#"t.proto:5:7: dead_letter_topic: "x/y" can't name a topic: '/' is not allowed
  hint: Kafka allows 1 to 249 of a-z, A-Z, 0-9, '.', '_' and '-'"#,
    ),
    (r#"dead_letter_topic: "t.S""#, r#"t.proto:5:7: dead_letter_topic: "t.S" is the request topic itself"#),
    (
        "replies: 3",
        "t.proto:5:7: t.S/M: t.B has no repeated message field to put the replies in
  hint: return a message that has one, or a stream",
    ),
    (
        r#"replies_field: "all" skip_errors: true replies_max: 3"#,
        "t.proto:5:7: replies_field: a call of t.S/M has one reply
  hint: set one of replies, until_last or partial_on_timeout, too
t.proto:5:28: skip_errors: a call of t.S/M has one reply
  hint: set one of replies, until_last or partial_on_timeout, too
t.proto:5:46: replies_max: a call of t.S/M has one reply
  hint: set one of replies, until_last or partial_on_timeout, too",
    ),
    ("in_flight_max: 0", "t.proto:5:7: in_flight_max: 0 is not within 1 to 16777216"),
    ("in_flight_max: 16777217", "t.proto:5:7: in_flight_max: 16777217 is not within 1 to 16777216"),
    (
        r#"tiemout: "1s""#,
        r#"t.proto:5:7: invalid value of type 'antiphon.v1.KafkaOptions' for option '(antiphon.v1.kafka)': field 'tiemout' not found for message 'antiphon.v1.KafkaOptions'
  hint: did you mean "timeout"?"#,
    ),
    (
        "timeout: 10",
        "t.proto:5:16: invalid value of type 'antiphon.v1.KafkaOptions' for option '(antiphon.v1.kafka)': expected a string, but found '10'",
    ),
    (
        r#"timeout: "10s" key: "x"
      dialect: "zila"
      in_flight_max: 0"#,
        r#"t.proto:5:22: key "x" of t.S/M: t.A has no field "x"
t.proto:6:7: dialect: unknown value "zila"; expected one of: spring, nestjs, smallrye, faststream, zilla, custom
  hint: did you mean "zilla"?
t.proto:7:7: in_flight_max: 0 is not within 1 to 16777216"#,
    ),
];

/// What stands from line 2.
pub(super) const SERVICES: &[(&str, &str)] = &[
    (
        r#"service S {
  option (antiphon.v1.kafka_defaults) = { timeout: "1d" };
  rpc M(A) returns (B);
  rpc N(A) returns (B); }"#,
        r#"t.proto:3:43: timeout: "1d" is not a duration
  hint: a whole number with a unit of ms, s, m or h, such as "10s""#,
    ),
    (
        r#"service S {
  option (antiphon.v1.kafka_defaults) = { key: "many" };
  rpc M(A) returns (B);
  rpc N(A) returns (B); }"#,
        r#"t.proto:3:43: key "many" of t.S/M: field "many" of t.A is repeated
t.proto:3:43: key "many" of t.S/N: field "many" of t.A is repeated"#,
    ),
    (
        r#"service S {
  rpc M(A) returns (B) { option (antiphon.v1.kafka).timeout = "1d";
  option (antiphon.v1.kafka).key = "n.x"; }
 }"#,
        r#"t.proto:3:26: timeout: "1d" is not a duration
  hint: a whole number with a unit of ms, s, m or h, such as "10s"
t.proto:4:3: key "n.x" of t.S/M: field "n" of t.A has no fields of its own"#,
    ),
    (
        r#"service S {
  rpc M(stream A) returns (B) { option (antiphon.v1.kafka).timeout = "1d"; }
 }"#,
        "there is no method to serve; those whose callers stream are not served
t.proto:3:3: t.S/M is not served: its caller sends a stream, and a request is one record
  hint: take its (antiphon.v1.kafka) option away",
    ),
    (
        "service S {
  rpc M(stream A) returns (stream B);
 }",
        "there is no method to serve; those whose callers stream are not served",
    ),
    (
        "",
        "there is no service to serve
  hint: name a .proto file that has one, with --proto FILE",
    ),
    ("service S {}", "there is no method to serve; those whose callers stream are not served"),
    (
        r#"message L { repeated B all = 1; } message T { repeated B some = 1; repeated B more = 2; repeated int32 n = 3; }
service S {
  rpc Two(A) returns (T) { option (antiphon.v1.kafka).until_last = true; }
  rpc Named(A) returns (T) { option (antiphon.v1.kafka) = { replies: 2 replies_field: "smoe" }; }
  rpc Scalar(A) returns (T) { option (antiphon.v1.kafka) = { replies: 2 replies_field: "n" }; }
  rpc Zero(A) returns (L) { option (antiphon.v1.kafka) = { replies: 0 until_last: true }; }
  rpc Far(A) returns (L) { option (antiphon.v1.kafka) = { replies: 9 replies_max: 8 }; }
  rpc OneWay(A) returns (google.protobuf.Empty) { option (antiphon.v1.kafka) = { mode: ONE_WAY replies: 2 }; }
  rpc Endless(A) returns (stream B) { option (antiphon.v1.kafka) = { until_last: false }; }
  rpc Stream(A) returns (stream L) { option (antiphon.v1.kafka) = { replies_field: "all" }; }
  rpc Zilla(A) returns (stream B) { option (antiphon.v1.kafka) = { dialect: "zilla" skip_errors: true }; }
 }"#,
        r#"t.proto:4:28: t.S/Two: t.T has several repeated message fields to put the replies in
  hint: name one with replies_field
t.proto:5:72: replies_field: t.T has no field "smoe"
  hint: did you mean "some"?
t.proto:6:73: replies_field: field "n" of t.T is not a repeated message
t.proto:7:60: replies: 0 is not within 1 to 1000000
t.proto:8:59: replies: 9 are more than replies_max, 8
t.proto:9:82: mode: t.S/OneWay is one-way, and yet waits for several replies
  hint: take replies, until_last or partial_on_timeout away, or the mode
t.proto:9:96: t.S/OneWay: google.protobuf.Empty has no repeated message field to put the replies in
  hint: return a message that has one, or a stream
t.proto:10:70: until_last: nothing ends the replies of t.S/Endless
  hint: set one of replies, until_last or partial_on_timeout
t.proto:11:69: replies_field: t.S/Stream streams, and each reply is a message of its own
t.proto:12:85: skip_errors: an error is the end of all replies in the dialect zilla"#,
    ),
    (
        "service S {
  rpc M(A) returns (B);
 rpc M(A) returns (B);}",
        "t.proto:4:6: name 't.S.M' is defined twice",
    ),
    (
        "service S {
  rpc M(A) returns (C);}",
        "t.proto:3:21: name 'C' is not defined",
    ),
    (
        "service S {
  rpc M(A) returns (B)
}",
        "t.proto:4:1: expected ';' or '{', but found '}'",
    ),
    (
        "service S {
  rpc M(A) returns (B)",
        "t.proto: expected ';' or '{', but reached end of file",
    ),
    (
        r#"import "nope.proto";
"#,
        "t.proto:2:1: import 'nope.proto' not found
  hint: add the folder that it is in with --proto-path, or make the descriptor set with --include_imports",
    ),
    (
        r#"import "t.proto";
"#,
        "t.proto: import cycle detected: t.proto -> t.proto",
    ),
    (
        r#"service S {
  rpc M(A) returns (B) { option (antiphon.v1.kafca).timeout = "1d"; }
 }"#,
        "t.proto:3:26: 'antiphon.v1.kafca' resolves to 'antiphon.v1.kafca', which is not defined",
    ),
    (
        r#"service S {
  rpc M(A) returns (B) { option (antiphon.v1.kafka_defaults) = {timeout: "1s"}; }
 }"#,
        "t.proto:3:26: expected an extension to type 'google.protobuf.MethodOptions', but 'antiphon.v1.kafka_defaults' extends 'google.protobuf.ServiceOptions'",
    ),
];
