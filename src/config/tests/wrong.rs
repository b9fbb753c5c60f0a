//! Wrong configuration and the exact words that are said of it.

/// Contents of `a.toml`.
pub(super) const FILES: &[(&str, &str)] = &[
    (
        r#"[kafka]
bootstrap_server = ["a:1"]"#,
        r#"a.toml:2:1: kafka.bootstrap_server: unknown setting
  hint: did you mean "bootstrap_servers"?"#,
    ),
    (
        "[kafak]
x = 1",
        r#"a.toml:1:2: kafak: unknown section
  hint: did you mean "kafka"?"#,
    ),
    (
        r#"[grpc]
metadata_return = ["x-a", "x-b"]
trailers_return = ["x-b"]"#,
        r#"a.toml:3:19: grpc.trailers_return: "x-b" is in metadata_return, too"#,
    ),
    (
        "[custom_dialect]
reply_partition_form = \"decimal\"",
        "a.toml:1:2: custom_dialect: correlation_id is missing
  hint: the name of a header
a.toml:1:2: custom_dialect: reply_topic is missing
  hint: the name of a header",
    ),
    (
        r#"[custom_dialect]
correlation_id = ""
reply_topic = "grpc-method"
reply_partition = "x"
error_code = "x"
correlation_form = "bytes""#,
        r#"a.toml:2:18: custom_dialect.correlation_id: must not be empty
a.toml:3:15: custom_dialect.reply_topic: "grpc-method" is one of Antiphon's own headers
a.toml:5:14: custom_dialect.error_code: "x" is the name of another header
a.toml:6:20: custom_dialect.correlation_form: unknown value "bytes"; expected one of: text, binary"#,
    ),
    (
        r#"[grpc.tls]
cert_file = "/no/such/cert.pem"
client_auth = "optional""#,
        r#"a.toml:1:7: grpc.tls: key_file is missing
  hint: a PEM file
a.toml:2:13: grpc.tls.cert_file: there is no file "/no/such/cert.pem"
a.toml:3:15: grpc.tls.client_auth: says nothing without grpc.tls.client_ca_file"#,
    ),
    (
        r#"[access]
allow = ["cert:web -> *", "token:sub=x -> *", "me -> *", "anyone"]
audience = "x""#,
        r#"a.toml:2:47: access.allow: "me" names nobody; expected anyone, authenticated, cert:PATTERN or token:CLAIM=PATTERN
a.toml:3:12: access.audience: says nothing without keys
  hint: set access.jwks_file or access.jwks_url"#,
    ),
    (
        r#"[access]
allow = ["cert:web -> *", "token:sub=x -> *"]"#,
        r#"a.toml:2:9: access.allow: has rules about tokens, and there are no keys to check tokens with
  hint: set access.jwks_file or access.jwks_url
a.toml:2:9: access.allow: has rules about certificates, and callers are not asked for any
  hint: set grpc.tls.client_ca_file"#,
    ),
    (
        r#"[access]
jwks_url = "http://me:pw@idp/keys""#,
        r#"a.toml:1:2: access: allow is missing
  hint: with [access], what no rule allows is refused; such as ["cert:web -> shop.v1.OrderService/*"]
a.toml:2:12: access.jwks_url: is no URL of a JWK set
  hint: http://HOST[:PORT]/PATH, or https, without a user"#,
    ),
    (
        r#"[schema_registry]
password = "hunter2"
timeout = "0s""#,
        "a.toml:1:2: schema_registry: url is missing
a.toml:1:2: schema_registry: username is missing
a.toml:3:11: schema_registry.timeout: must be more than zero",
    ),
    (
        r#"[schema_registry]
url = "http://me:hunter2@registry:8081"
username = "a:b"
ca_file = "/no/such/ca.pem""#,
        r#"a.toml:2:7: schema_registry.url: is not the URL of a registry
  hint: user and password belong into username and password
a.toml:3:12: schema_registry.username: must not be empty, nor have a colon
a.toml:4:11: schema_registry.ca_file: there is no file "/no/such/ca.pem""#,
    ),
    (
        r#"[schema_registry]
url = "registry:8081"
username = "me""#,
        "a.toml:1:2: schema_registry: password or password_file is missing
a.toml:2:7: schema_registry.url: is not the URL of a registry
  hint: http://HOST:PORT, or https, and the path to Confluent's API",
    ),
    (
        "[grpc]
frobnicate = 1",
        "a.toml:2:1: grpc.frobnicate: unknown setting",
    ),
    (
        r#"bootstrap_servers = ["a:1"]"#,
        "a.toml:1:1: bootstrap_servers: unknown setting
  hint: bootstrap_servers belongs into [kafka]",
    ),
    (
        "in_flight_max = 3",
        "a.toml:1:1: in_flight_max: unknown setting
  hint: in_flight_max belongs into [limits]",
    ),
    (
        "kafka = 1",
        "a.toml:1:1: kafka: expected a table
  hint: [kafka]",
    ),
    (
        "[kafka]
tls = true",
        "a.toml:2:1: kafka.tls: expected a table
  hint: [kafka.tls]",
    ),
    (
        r#"[kafka.tsl]
ca_file = "x""#,
        r#"a.toml:1:8: kafka.tsl: unknown section
  hint: did you mean "tls"?"#,
    ),
    (r#"shards = "4""#, "a.toml:1:10: shards: expected an integer, found a string"),
    ("shards = 0", "a.toml:1:10: shards: 0 is not within 1 to 256"),
    ("shards = 257", "a.toml:1:10: shards: 257 is not within 1 to 256"),
    (
        "shards = 4
[limits]
in_flight_max = 3",
        "a.toml:1:10: shards: 4 shards can't share limits.in_flight_max, 3",
    ),
    ("shards = 1.5", "a.toml:1:10: shards: expected an integer, found a float"),
    (
        r#"[kafka]
bootstrap_servers = "a:1""#,
        "a.toml:2:21: kafka.bootstrap_servers: expected a list of HOST:PORT, found a string",
    ),
    (
        "[kafka]
bootstrap_servers = []",
        r#"a.toml:2:21: kafka.bootstrap_servers: must name a broker
  hint: HOST:PORT, such as "127.0.0.1:9092""#,
    ),
    (
        r#"[kafka]
bootstrap_servers = ["a"]"#,
        r#"a.toml:2:22: kafka.bootstrap_servers: "a" is not HOST:PORT
  hint: did you mean "a:9092"?"#,
    ),
    (
        r#"[kafka]
bootstrap_servers = [
  "a:1",
  "b:0"]"#,
        r#"a.toml:4:3: kafka.bootstrap_servers: "b:0" is not HOST:PORT
  hint: a broker's port is 1 to 65535"#,
    ),
    (
        r#"[kafka]
bootstrap_servers = ["a:b"]"#,
        r#"a.toml:2:22: kafka.bootstrap_servers: "a:b" is not HOST:PORT
  hint: "b" is not a port; a port is 1 to 65535"#,
    ),
    (
        r#"[kafka]
bootstrap_servers = ["kafka://a:1"]"#,
        r#"a.toml:2:22: kafka.bootstrap_servers: "kafka://a:1" is not HOST:PORT
  hint: did you mean "a:1"?"#,
    ),
    (
        r#"[kafka]
bootstrap_servers = ["::1"]"#,
        r#"a.toml:2:22: kafka.bootstrap_servers: "::1" is not HOST:PORT
  hint: did you mean "[::1]:9092"?"#,
    ),
    (
        r#"[kafka]
bootstrap_servers = ["me:hunter2@a:1"]"#,
        "a.toml:2:22: kafka.bootstrap_servers: a broker is HOST:PORT, without a user
  hint: user and password belong into [kafka.sasl]",
    ),
    (
        r#"[kafka]
bootstrap_servers = [":9092"]"#,
        r#"a.toml:2:22: kafka.bootstrap_servers: ":9092" is not HOST:PORT"#,
    ),
    (
        "[kafka]
bootstrap_servers = [7]",
        "a.toml:2:22: kafka.bootstrap_servers: expected a list of HOST:PORT, found an integer",
    ),
    (
        r#"[kafka]
client_id = """#,
        "a.toml:2:13: kafka.client_id: must be 1 to 249 printable characters",
    ),
    (
        r#"[kafka]
compression = "GZIP""#,
        r#"a.toml:2:15: kafka.compression: unknown value "GZIP"; expected one of: none, gzip, snappy, lz4, zstd
  hint: did you mean "gzip"?"#,
    ),
    (
        r#"[kafka]
compression = "zip""#,
        r#"a.toml:2:15: kafka.compression: unknown value "zip"; expected one of: none, gzip, snappy, lz4, zstd
  hint: did you mean "gzip"?"#,
    ),
    (
        "[kafka]
connect_timeout = 5",
        r#"a.toml:2:19: kafka.connect_timeout: expected a duration, found an integer
  hint: a whole number with a unit of ms, s, m or h, such as "10s""#,
    ),
    (
        r#"[kafka]
connect_timeout = "0s""#,
        "a.toml:2:19: kafka.connect_timeout: must be more than zero",
    ),
    (
        r#"[kafka]
connect_timeout = "5 s""#,
        r#"a.toml:2:19: kafka.connect_timeout: "5 s" is not a duration
  hint: a whole number with a unit of ms, s, m or h, such as "10s""#,
    ),
    (
        r#"[kafka]
produce_timeout = "25h""#,
        r#"a.toml:2:19: kafka.produce_timeout: "25h" is longer than 24h, the most that can be set"#,
    ),
    (
        r#"[kafka.tls]
cert_file = "ca.pem""#,
        "a.toml:2:13: kafka.tls.cert_file: needs kafka.tls.key_file, too",
    ),
    (
        r#"[kafka.tls]
key_file = "ca.pem""#,
        "a.toml:2:12: kafka.tls.key_file: needs kafka.tls.cert_file, too",
    ),
    (
        r#"[kafka.tls]
ca_file = "nope.pem""#,
        r#"a.toml:2:11: kafka.tls.ca_file: there is no file "nope.pem""#,
    ),
    (
        r#"[kafka.tls]
enabled = false
ca_file = "ca.pem""#,
        "a.toml:1:8: kafka.tls: has files for TLS, and enabled = false",
    ),
    (
        r#"[kafka.tls]
ca_file = """#,
        "a.toml:2:11: kafka.tls.ca_file: must not be empty",
    ),
    (
        "[kafka.sasl]",
        "a.toml:1:8: kafka.sasl: mechanism is missing
  hint: PLAIN, SCRAM-SHA-256, SCRAM-SHA-512 or OAUTHBEARER
a.toml:1:8: kafka.sasl: username is missing
a.toml:1:8: kafka.sasl: password or password_file is missing",
    ),
    (
        r#"[kafka.sasl]
mechanism = "PLAIN"
username = "me""#,
        "a.toml:1:8: kafka.sasl: password or password_file is missing",
    ),
    (
        r#"[kafka.sasl]
mechanism = "plain"
username = "me"
password = "hunter2""#,
        r#"a.toml:2:13: kafka.sasl.mechanism: unknown value "plain"; expected one of: PLAIN, SCRAM-SHA-256, SCRAM-SHA-512, OAUTHBEARER
  hint: did you mean "PLAIN"?"#,
    ),
    (
        r#"[kafka.sasl]
mechanism = "PLAIN"
username = "me"
password = "hunter2"
password_file = "secret.txt""#,
        "a.toml:5:17: kafka.sasl.password_file: the password is in kafka.sasl.password, too
  hint: set one of the two",
    ),
    (
        r#"[kafka.sasl]
mechanism = "PLAIN"
username = "me"
password = """#,
        "a.toml:4:12: kafka.sasl.password: the password must not be empty",
    ),
    (
        r#"[kafka.sasl]
mechanism = "PLAIN"
username = "me"
password_file = "empty.txt""#,
        "a.toml:4:17: kafka.sasl.password_file: the password must not be empty",
    ),
    (
        r#"[kafka.sasl]
mechanism = "PLAIN"
username = "me"
password_file = "nope.txt""#,
        r#"a.toml:4:17: kafka.sasl.password_file: there is no file "nope.txt""#,
    ),
    (
        r#"[kafka.sasl]
mechanism = "PLAIN"
password = "hunter2""#,
        "a.toml:1:8: kafka.sasl: username is missing",
    ),
    (
        r#"[kafka.sasl]
mechanism = "OAUTHBEARER"
username = "me"
password = "hunter2""#,
        "a.toml:3:12: kafka.sasl.username: OAUTHBEARER has no user name, only a token",
    ),
    (
        r#"[kafka.sasl]
mechanism = "PLAIN"
username = "me"
password = hunter2"#,
        "a.toml:4:12: string values must be quoted, expected literal string",
    ),
    (
        r#"[kafka.sasl]
mechanism = "PLAIN"
username = "me"
password = ["hunter2"]"#,
        "a.toml:4:12: kafka.sasl.password: expected a string, found a list",
    ),
    (
        r#"[kafka.sasl]
mechanism = "PLAIN"
username = "me"
passwrod = "hunter2""#,
        r#"a.toml:1:8: kafka.sasl: password or password_file is missing
a.toml:4:1: kafka.sasl.passwrod: unknown setting
  hint: did you mean "password"?"#,
    ),
    (
        r#"[grpc]
listen = "50051""#,
        r#"a.toml:2:10: grpc.listen: "50051" is not an address
  hint: did you mean ":50051"?"#,
    ),
    (
        r#"[grpc]
listen = "0.0.0.0:70000""#,
        r#"a.toml:2:10: grpc.listen: "0.0.0.0:70000" is not an address
  hint: "70000" is not a port; a port is 0 to 65535"#,
    ),
    (
        "[grpc]
listen = 50051",
        "a.toml:2:10: grpc.listen: expected an address, found an integer
  hint: HOST:PORT, or :PORT for all interfaces",
    ),
    (
        r#"[grpc]
listen = ":9464""#,
        "a.toml:2:10: grpc.listen and admin.listen are both on port 9464",
    ),
    (
        "[grpc]
message_bytes_max = 0",
        "a.toml:2:21: grpc.message_bytes_max: 0 is not within 1 to 268435456",
    ),
    (
        r#"[grpc]
message_bytes_max = "4MB""#,
        r#"a.toml:2:21: grpc.message_bytes_max: "4MB" is not a number of bytes
  hint: an integer, or one with KiB, MiB or GiB, such as "4MiB""#,
    ),
    (
        r#"[grpc]
message_bytes_max = "1GiB""#,
        "a.toml:2:21: grpc.message_bytes_max: 1073741824 is not within 1 to 268435456",
    ),
    (
        "[grpc]
message_bytes_max = -1",
        "a.toml:2:21: grpc.message_bytes_max: -1 is not within 1 to 268435456",
    ),
    (
        "[grpc]
message_bytes_max = 99999999999999999999",
        r#"a.toml:2:21: grpc.message_bytes_max: expected a number of bytes, found an integer of more than 64 bits
  hint: an integer, or one with KiB, MiB or GiB, such as "4MiB""#,
    ),
    (
        r#"[limits]
bytes_held_max = "1MiB""#,
        "a.toml:2:18: limits.bytes_held_max, 1048576, has no room for grpc.message_bytes_max, 4194304",
    ),
    (
        r#"[grpc]
reflection = "yes""#,
        "a.toml:2:14: grpc.reflection: expected true or false, found a string",
    ),
    (
        r#"[grpc]
metadata_forward = ["Authorization"]"#,
        r#"a.toml:2:21: grpc.metadata_forward: "Authorization" can't name metadata
  hint: did you mean "authorization"?"#,
    ),
    (
        r#"[grpc]
metadata_forward = ["grpc-timeout"]"#,
        r#"a.toml:2:21: grpc.metadata_forward: "grpc-timeout" is one of gRPC's own names, which are never passed on"#,
    ),
    (
        r#"[grpc]
metadata_return = ["x tenant"]"#,
        r#"a.toml:2:20: grpc.metadata_return: "x tenant" can't name metadata
  hint: a metadata name is made of a-z, 0-9, '_', '-' and '.'"#,
    ),
    (
        r#"[grpc]
web_origins = ["https://app.example.com/"]"#,
        r#"a.toml:2:16: grpc.web_origins: "https://app.example.com/" is no web origin
  hint: an origin is https://HOST or http://HOST, with :PORT where needed, in lower case, without a path; or *"#,
    ),
    (
        "[grpc]
connections_max = 0",
        "a.toml:2:19: grpc.connections_max: 0 is not within 1 to 1000000",
    ),
    (
        "[limits]
in_flight_max = 16777217",
        "a.toml:2:17: limits.in_flight_max: 16777217 is not within 1 to 16777216",
    ),
    (
        "[limits]
lane_queue_max = 0",
        "a.toml:2:18: limits.lane_queue_max: 0 is not within 1 to 1000000",
    ),
    (
        r#"[reply]
routing = "partitions""#,
        r#"a.toml:2:11: reply.routing: unknown value "partitions"; expected one of: instance-topic, partition, shared
  hint: did you mean "partition"?"#,
    ),
    (
        r#"[reply]
routing = "partition""#,
        "a.toml:2:11: reply.routing: partition needs reply.topic
  hint: name the reply topic that the instances share",
    ),
    (
        r#"[reply]
routing = "shared"
topic = "a b""#,
        r#"a.toml:3:9: reply.topic: "a b" can't name a topic: ' ' is not allowed
  hint: Kafka allows 1 to 249 of a-z, A-Z, 0-9, '.', '_' and '-'"#,
    ),
    (
        r#"[reply]
topic = "replies""#,
        "a.toml:2:9: reply.topic: is of no use with routing instance-topic
  hint: set reply.routing to partition or shared, or reply.topic_prefix",
    ),
    (
        r#"[reply]
ordinal = 3"#,
        "a.toml:2:11: reply.ordinal: is of no use with routing instance-topic; only partition has ordinals",
    ),
    (
        r#"[reply]
routing = "partition"
topic = "replies"
ordinal = "host""#,
        r#"a.toml:4:11: reply.ordinal: expected a number or "hostname", found "host""#,
    ),
    (
        "shards = 4
[reply]
partitions = 3",
        "a.toml:3:14: reply.partitions: 3 is not within 4 to 1000",
    ),
    (
        r#"[reply]
lease_ttl = "8s""#,
        "a.toml:2:13: reply.lease_ttl: 8s is shorter than 9s, 3 times reply.heartbeat_interval",
    ),
    (
        r#"[reply]
heartbeat_interval = "7s""#,
        "a.toml:2:22: reply.heartbeat_interval: reply.lease_ttl, 15s is shorter than 21s, 3 times reply.heartbeat_interval",
    ),
    (
        r#"[reply]
topic_prefix = "a b""#,
        r#"a.toml:2:16: reply.topic_prefix: "a b" can't name a topic: ' ' is not allowed
  hint: Kafka allows 1 to 249 of a-z, A-Z, 0-9, '.', '_' and '-'"#,
    ),
    (
        r#"[reply]
instance = "a.b""#,
        r#"a.toml:2:12: reply.instance: "a.b" can't name an instance
  hint: 1 to 100 of a-z, A-Z, 0-9, '_' and '-'"#,
    ),
    (
        "[reply]
replication_factor = 0",
        "a.toml:2:22: reply.replication_factor: 0 is not a replication factor
  hint: 1 or more, or -1 for the cluster's own",
    ),
    (
        r#"[reply]
heartbeat_interval = "15s""#,
        "a.toml:2:22: reply.heartbeat_interval: must be shorter than 15s, the age at which a heartbeat counts as lost",
    ),
    (
        r#"[log]
format = "xml""#,
        r#"a.toml:2:10: log.format: unknown value "xml"; expected one of: text, json"#,
    ),
    (
        r#"[log]
filter = "a=b=c""#,
        r#"a.toml:2:10: log.filter: is not a filter: error parsing level filter: expected one of "off", "error", "warn", "info", "debug", "trace", or a number 0-5
  hint: such as "info,rskafka=warn""#,
    ),
    (
        r#"[drain]
timeout = "-1s""#,
        r#"a.toml:2:11: drain.timeout: "-1s" is not a duration
  hint: a whole number with a unit of ms, s, m or h, such as "10s""#,
    ),
    (
        r#"[proto]
files = ["nope.proto"]
include_paths = ["nope"]"#,
        r#"a.toml:2:10: proto.files: there is no file "nope.proto"
a.toml:3:18: proto.include_paths: there is no folder "nope""#,
    ),
    (
        r#"[proto]
files = "p""#,
        "a.toml:2:9: proto.files: expected a list of paths, found a string",
    ),
    (
        r#"[service.payments.v1.PaymentService]
key = "x""#,
        r#"a.toml:1:10: service.payments.v1.PaymentService: the name must be in quotes
  hint: [service."payments.v1.PaymentService"]"#,
    ),
    (
        r#"[method."a.B/C"]
key = 1
timeuot = "1s"
partition = "3"
cancel_record = 1
dead_letter_on = "timeout""#,
        r#"a.toml:2:7: method."a.B/C".key: expected a string, found an integer
a.toml:3:1: method."a.B/C".timeuot: unknown setting
  hint: did you mean "timeout"?
a.toml:4:13: method."a.B/C".partition: expected an integer, found a string
a.toml:5:17: method."a.B/C".cancel_record: expected true or false, found an integer
a.toml:6:18: method."a.B/C".dead_letter_on: expected a list of strings, found a string"#,
    ),
    (
        "[method]
x = 1",
        r#"a.toml:2:1: method."x": expected a table"#,
    ),
    (
        "service = 1",
        r#"a.toml:1:1: service: expected a table
  hint: [service."pkg.Service"]"#,
    ),
    (
        "[kafka
x = 1",
        "a.toml:1:7: unclosed table, expected `]`",
    ),
    (
        "a = 
 b = = 2",
        "a.toml:1:5: string values must be quoted, expected literal string
a.toml:2:6: extra `=`, expected nothing
a.toml:2:8: unexpected key or value, expected newline, `#`",
    ),
    (
        "[kafka]
[kafka]",
        "a.toml:2:2: duplicate key",
    ),
    (
        r#"[kafka]
client_id = "a"
client_id = "b""#,
        "a.toml:3:1: duplicate key",
    ),
    (
        r#"[kafka.sasl]
password = "hunter2"#,
        r#"a.toml:2:20: invalid basic string, expected `"`"#,
    ),
    (
        r#"[grpc]
listen = ":1" # é
ünknown = 1"#,
        "a.toml:3:1: invalid unquoted key, expected letters, numbers, `-`, `_`",
    ),
];

/// One environment variable, name and value.
pub(super) const VARIABLES: &[(&str, &str, &str)] = &[
    (
        "ANTIPHON_KAFKA_BOOTSTRAP_SERVER",
        "a:1",
        r#"ANTIPHON_KAFKA_BOOTSTRAP_SERVER: unknown environment variable
  hint: did you mean "ANTIPHON_KAFKA_BOOTSTRAP_SERVERS"?"#,
    ),
    (
        "ANTIPHON_KAFKA_BOOTSTRAP_SERVERS",
        ",",
        r#"ANTIPHON_KAFKA_BOOTSTRAP_SERVERS: must name a broker
  hint: HOST:PORT, such as "127.0.0.1:9092""#,
    ),
    ("ANTIPHON_NONSENSE", "1", "ANTIPHON_NONSENSE: unknown environment variable"),
    ("ANTIPHON_SHARDS", "many", r#"ANTIPHON_SHARDS: expected an integer, found "many""#),
    (
        "ANTIPHON_LIMITS_IN_FLIGHT_MAX",
        "20_000_000",
        "ANTIPHON_LIMITS_IN_FLIGHT_MAX: 20000000 is not within 1 to 16777216",
    ),
    ("ANTIPHON_GRPC_REFLECTION", "on", r#"ANTIPHON_GRPC_REFLECTION: expected true or false, found "on""#),
    (
        "ANTIPHON_KAFKA_SASL_PASSWORD",
        "hunter2",
        "kafka.sasl: mechanism is missing
  hint: PLAIN, SCRAM-SHA-256, SCRAM-SHA-512 or OAUTHBEARER
kafka.sasl: username is missing",
    ),
    (
        "ANTIPHON_KAFKA_SASL_PASWORD",
        "hunter2",
        r#"ANTIPHON_KAFKA_SASL_PASWORD: unknown environment variable
  hint: did you mean "ANTIPHON_KAFKA_SASL_PASSWORD"?"#,
    ),
    ("ANTIPHON_CONFIG", "/nonesuch.toml", "/nonesuch.toml: no such file"),
    (
        "ANTIPHON_GRPC_KEEP_ALIVE_INTERVAL",
        "30",
        r#"ANTIPHON_GRPC_KEEP_ALIVE_INTERVAL: "30" is not a duration
  hint: a whole number with a unit of ms, s, m or h, such as "10s""#,
    ),
    (
        "ANTIPHON_PROTO_FILES",
        "/nonesuch.proto",
        r#"ANTIPHON_PROTO_FILES: there is no file "/nonesuch.proto""#,
    ),
];
