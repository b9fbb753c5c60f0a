//! The parts of a call's way, each by itself: `cargo bench --bench parts`.
//!
//! Times of a busy machine say little; `scripts/instructions` counts the whole
//! way, the same on any machine.

#![allow(clippy::unwrap_used, reason = "a benchmark has nobody to tell")]

use std::fmt::Write as _;
use std::sync::{Arc, LazyLock};

use antiphon::correlation::{CorrelationId, Minter};
use antiphon::deadline::{Deadline, parse_grpc_timeout};
use antiphon::message::dialect::{self, Dialect};
use antiphon::message::{PROTOBUF, Reply, ReplyAddress, RequestParts, partition_of_key};
use antiphon::pending::{About, Coordinates, Pending, WaitFor};
use antiphon::route::{FieldPath, Lookup, RouteTable, Sources, compile};
use antiphon::terms::CorrelationForm;
use antiphon::transport::Received;
use bytes::Bytes;
use divan::{Bencher, black_box};

fn main() {
    divan::main();
}

const DIALECT: Dialect = Dialect::Spring(CorrelationForm::Text);

/// A table of so many methods, a hundred to a service.
fn table(methods: usize) -> RouteTable {
    let mut proto = String::from("syntax = \"proto3\";\npackage bench;\nmessage M { string id = 1; }\n");
    for service in 0..methods.div_ceil(100) {
        writeln!(proto, "service Service{service} {{").unwrap();
        for method in 0..methods.min(100) {
            writeln!(proto, "  rpc Method{method}(M) returns (M);").unwrap();
        }
        proto.push_str("}\n");
    }
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("bench.proto");
    std::fs::write(&file, proto).unwrap();
    compile(&Sources { protos: vec![file], ..Sources::default() }).unwrap()
}

#[divan::bench(args = [1, 100, 10_000])]
fn route_look_up(bencher: Bencher<'_, '_>, methods: usize) {
    let table = table(methods);
    let path = table.routes()[methods / 2].path.to_string();
    bencher.bench_local(|| matches!(table.lookup(black_box(&path)), Lookup::Route(_)));
}

/// `order_id` of a payment, behind a field that has to be stepped over.
static PAYMENT: LazyLock<(FieldPath, Bytes)> = LazyLock::new(|| {
    let protos = vec!["proto/payments/v1/payments.proto".into()];
    let include_paths = vec!["proto".into()];
    let table = compile(&Sources { protos, include_paths, ..Sources::default() });
    let routes = table.unwrap();
    let Lookup::Route(pay) = routes.lookup("/payments.v1.PaymentService/Pay") else { panic!("no Pay") };
    (
        FieldPath::new(&pay.input, "order_id").unwrap(),
        Bytes::from_static(b"\x10\xe2\x09\x1a\x03EUR\x0a\x0border-12345"),
    )
});

#[divan::bench]
fn key_walk(bencher: Bencher<'_, '_>) {
    let (path, message) = &*PAYMENT;
    bencher.bench_local(|| path.extract(black_box(message)).unwrap().map(|key| key.len()));
}

#[divan::bench]
fn partition_of_a_key(bencher: Bencher<'_, '_>) {
    let key = Bytes::from_static(b"order-12345");
    bencher.bench_local(|| partition_of_key(black_box(&key), 6));
}

#[divan::bench]
fn grpc_timeout(bencher: Bencher<'_, '_>) {
    bencher.bench_local(|| parse_grpc_timeout(black_box(b"9999999u")));
}

#[divan::bench]
fn request_headers(bencher: Bencher<'_, '_>) {
    let id = Minter::new(0, 1, [7; 32]).mint(5);
    let address =
        ReplyAddress { topic: Bytes::from_static(b"antiphon.reply.host-1234abcd"), partition: Some(0) };
    let method = Bytes::from_static(b"/payments.v1.PaymentService/Pay");
    let deadline = Deadline::after(std::time::Duration::from_secs(10));
    bencher.bench_local(|| {
        let parts = RequestParts {
            dialect: &DIALECT,
            content_type: PROTOBUF,
            method: method.clone(),
            id,
            reply_to: Some(&address),
            deadline,
            key: Some(PAYMENT.1.slice(12..)),
            value: PAYMENT.1.clone(),
            metadata: Vec::new(),
        };
        parts.into_record()
    });
}

fn reply(id: CorrelationId) -> Received {
    let text = Bytes::copy_from_slice(&id.to_text());
    let headers =
        vec![("kafka_correlationId".into(), text), ("content-type".into(), Bytes::from_static(b"x"))];
    Received { offset: 1, partition: 0, timestamp_ms: 0, key: None, value: Some(PAYMENT.1.clone()), headers }
}

#[divan::bench]
fn reply_classify_and_decode(bencher: Bencher<'_, '_>) {
    let id = Minter::new(0, 1, [7; 32]).mint(5);
    bencher.with_inputs(|| reply(id)).bench_local_values(|record| {
        black_box(dialect::classify(&record, None));
        Reply::decode(record, &DIALECT, false, 4 << 20)
    });
}

/// Register, mark as sent and acknowledged, resolve, free: with as many threads
/// on one slab, although a shard has one.
#[divan::bench(threads = [1, 2, 4])]
fn pending_whole_life(bencher: Bencher<'_, '_>) {
    static PENDING: LazyLock<Arc<Pending>> =
        LazyLock::new(|| Pending::new(1, Minter::new(0, 1, [7; 32]), 100_000));
    let at = Coordinates { partition: 0, offset: Some(1) };
    let now = tokio::time::Instant::now();
    let about = About { route: 0, partition: 0, began: now, deadline: now };
    bencher.with_inputs(|| reply(Minter::new(0, 1, [7; 32]).mint(5))).bench_values(|record| {
        let ticket = PENDING.register(WaitFor::Reply, about).unwrap();
        PENDING.begin_send(ticket.id());
        PENDING.appended(ticket.id(), at);
        PENDING.resolve(ticket.id(), &mut Some(record))
    });
}
