# Recipes for work on Antiphon. The README's two commands need cargo alone;
# these need `just`, and some of them Java, Python or Go.

set shell := ["bash", "-euo", "pipefail", "-c"]

# What there is.
default:
    @just --list

# Broker, workers and gateway in one process.
demo *ARGS:
    cargo run --release -- demo {{ARGS}}

# Format, lints, docs: what must be clean before a commit.
lint:
    cargo fmt --check
    cargo clippy --all-targets --all-features --locked -- -D warnings
    RUSTDOCFLAGS="-D warnings" cargo doc --no-deps --all-features --locked

# The hermetic tests.
test:
    cargo test --locked

# Licences, bans and sources.
deny:
    cargo deny --all-features check licenses bans sources

# The integration tests again, on Apache Kafka and with a schema registry.
test-kafka:
    scripts/with-kafka --brokers 1 --registry -- cargo test --locked --features registry-tests,worker-rdkafka --test integration

# grpcurl, Python workers and Python clients against Apache Kafka.
e2e *ARGS:
    cargo build --release --locked
    python3 tests/e2e/run.py --antiphon target/release/antiphon {{ARGS}}

# Workers of every framework, driven through the same cases; prints a table.
interop *ARGS:
    cargo build --release --locked
    python3 tests/interop/run.py --antiphon target/release/antiphon {{ARGS}}

# Clients of every language, driven through the same cases; prints a table.
clients *ARGS:
    cargo build --release --locked
    python3 tests/clients/run.py --antiphon target/release/antiphon {{ARGS}}

# How replies find their instance: modes against 1, 2, 8 and 32 instances; prints a table.
routing *ARGS:
    cargo build --release --locked
    python3 tests/routing/run.py --antiphon target/release/antiphon {{ARGS}}

# What breaks under load on three brokers, row by row; takes half an hour.
faults *ARGS:
    cargo build --release --locked
    python3 tests/faults/run.py faults --antiphon target/release/antiphon {{ARGS}}

# Who gets in and who does not: Kafka with every mechanism, callers with every
# proof, HTTP/2 abuse beside a bystander; prints tables. Ten minutes.
security *ARGS:
    cargo build --release --locked
    python3 tests/security/run.py --antiphon target/release/antiphon {{ARGS}}

# Whether a million calls, a third of them timed out, leave memory behind.
memory *ARGS:
    cargo build --release --locked
    python3 tests/faults/run.py memory --antiphon target/release/antiphon {{ARGS}}

# 100,000 mixed calls: do metrics, access log and dead letters say exactly what they were?
ground-truth *ARGS:
    cargo build --release --locked
    python3 tests/faults/run.py truth --antiphon target/release/antiphon {{ARGS}}

# 300,000 shops, three triggers at once, one order for each shop; `--quick` for 9,000.
delivery-radius *ARGS:
    cargo build --release --locked
    python3 examples/delivery-radius/run.py --antiphon target/release/antiphon {{ARGS}}

# Orders reserved, paid and confirmed while all of it is killed; `--quick` for 300.
order-saga *ARGS:
    cargo build --release --locked
    python3 examples/order-saga/run.py --antiphon target/release/antiphon {{ARGS}}

# Payments behind two gateways, with crashes; ends with an account of each of them.
payments *ARGS:
    cargo build --release --locked
    python3 examples/payments/run.py {{ARGS}}

# Ten thousand transfers that wait, and notifications that do not.
bank *ARGS:
    cargo build --release --locked
    python3 examples/bank/run.py {{ARGS}}

# The console in headless Chromium, on a gateway with a real worker.
console *ARGS:
    cargo build --release --locked --bin antiphon --example dev_broker
    python3 tests/console/run.py {{ARGS}}

# Eight incidents on Apache Kafka with a real Prometheus, each ended by the commands
# of docs/runbook.md; prints a table. `--quick` for shorter windows of the alerts.
incidents *ARGS:
    cargo build --release --locked
    python3 tests/incidents/run.py --antiphon target/release/antiphon {{ARGS}}

# Dashboard and alerts against a real Prometheus (Debian: apt-get install prometheus).
metrics *ARGS:
    cargo build --release --locked --bin antiphon --example dev_broker
    python3 tests/metrics/run.py {{ARGS}}

# Traces, access log and log level against a real OpenTelemetry Collector, built with Go.
traces *ARGS:
    cargo build --release --locked --bin antiphon --example dev_broker
    python3 tests/traces/run.py {{ARGS}}

# The documentation as a book, into target/book; its links, and its code, which is run.
book *ARGS:
    cargo build --release --locked
    python3 tests/book/run.py --antiphon target/release/antiphon {{ARGS}}

# A gateway on ReplyingKafkaTemplate and Antiphon side by side: what docs/migrating.md promises.
migration *ARGS:
    cargo build --release --locked
    python3 tests/book/migration.py --antiphon target/release/antiphon {{ARGS}}

# What ships besides the code: chart and manifests, compose, balancer, image, release;
# parts by name, `crate` among them. No Docker, no cluster.
shipping *ARGS:
    cargo build --release --locked --bin antiphon --example dev_broker
    python3 tests/shipping/run.py {{ARGS}}

# The folder of a release; `--notes-of Unreleased` for a rehearsal.
release *ARGS:
    scripts/release {{ARGS}}

# Each fuzz target for so many seconds.
fuzz SECONDS="60" *TARGETS:
    scripts/fuzz {{SECONDS}} {{TARGETS}}

# Gateway, Kafka alone and gRPC alone on Apache Kafka; writes bench/FLOOR.md.
bench *ARGS:
    cargo build --release --locked
    scripts/bench {{ARGS}}

# The gateway beside Spring Boot, Go and Node on Apache Kafka; writes bench/RESULTS.md
# and plots. Half an hour; an interrupted run goes on where it was.
bench-peers *ARGS:
    cargo build --release --locked
    scripts/bench-peers {{ARGS}}

# All that CI does.
ci:
    bash .ci/run
