//! The worker kit as a member of a consumer group: it joins, leaves and is
//! killed under load.

use std::collections::HashMap;
use std::io::Write as _;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use antiphon::terms::Compression;
use antiphon::transport::{Cluster, Record};
use antiphon::worker::rdkafka::{Config, RdKafkaDriver};
use antiphon::worker::samples::payments::{PayReply, PayRequest};
use antiphon::worker::{Ended, Kit, Order};
use bytes::Bytes;
use futures_util::future::join_all;
use prost::Message as _;
use tonic::Request;

use crate::harness::{PAY, TestGateway, until};
use crate::kit::{KitWorker, pay};

const KEYS: usize = 12;
/// Callers of each key at once.
const CALLERS: usize = 2;
/// What a call may take, a worker's death and its session's end included.
const CALL_LIMIT: Duration = Duration::from_secs(40);
/// Environment of a worker in a process of its own.
const PLACE: &str = "ANTIPHON_TEST_KIT_WORKER";

/// One request that a worker began.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Began {
    at_ns: u128,
    partition: i32,
    offset: i64,
    key: String,
}

fn now_ns() -> u128 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_nanos()
}

fn kit(note: impl Fn(Began) + Send + Sync + 'static) -> Kit {
    Kit::new().handle::<PayRequest, PayReply>(PAY, move |call, request| {
        let (partition, offset) = (call.partition().partition, call.record().offset);
        note(Began { at_ns: now_ns(), partition, offset, key: request.order_id.clone() });
        async move {
            tokio::time::sleep(Duration::from_millis(5)).await;
            let payment_id = format!("pay-{}-{}", request.order_id, request.amount_minor);
            Ok(PayReply { order_id: request.order_id, payment_id, state: 1 })
        }
    })
}

fn config(bootstrap: &str, topic: &str) -> Config {
    let mut config = Config::new(bootstrap, format!("{topic}-workers"), &[topic]);
    config.consumer.push(("session.timeout.ms".to_owned(), "6000".to_owned()));
    config.consumer.push(("heartbeat.interval.ms".to_owned(), "500".to_owned()));
    config
}

/// Calls without end under every key until `stop`; how many. Each must succeed.
async fn load(gateway: &TestGateway, stop: &AtomicBool) -> usize {
    let caller = async |caller: usize| {
        let (key, mut calls) = (format!("order-{}", caller % KEYS), 0);
        while !stop.load(Ordering::Relaxed) {
            calls += 1;
            let mut request = Request::new(pay(&key, calls * 100 + i64::try_from(caller).unwrap()));
            let expected = format!("pay-{key}-{}", request.get_ref().amount_minor);
            request.set_timeout(CALL_LIMIT);
            let reply = gateway.send::<_, PayReply>(PAY, request).await;
            assert_eq!(reply.expect("a reply within the deadline").into_inner().payment_id, expected);
        }
        usize::try_from(calls).unwrap()
    };
    join_all((0..KEYS * CALLERS).map(caller)).await.into_iter().sum()
}

/// Every request was begun, and for the first time in the order of its key.
/// Returns how many were begun more than once.
fn check(mut began: Vec<Began>, calls: usize) -> usize {
    began.sort_by_key(|one| one.at_ns);
    let (mut times, mut last) = (HashMap::<(i32, i64), usize>::new(), HashMap::<String, i64>::new());
    for Began { partition, offset, key, .. } in &began {
        let time = times.entry((*partition, *offset)).or_default();
        *time += 1;
        if *time == 1 {
            let before = last.insert(key.clone(), *offset);
            assert!(before.is_none_or(|before| before < *offset), "{key}: {offset} came after {before:?}");
        }
    }
    assert_eq!(times.len(), calls, "requests that were handled");
    times.values().filter(|times| **times > 1).count()
}

#[tokio::test]
async fn members_of_a_group_hand_over_without_handling_anything_twice() {
    let gateway = TestGateway::build().topic("payment_request", 6).start().await;
    let config = config(gateway.bootstrap(), &gateway.topic("payment_request"));
    let journal = Arc::new(Mutex::new(Vec::new()));
    let worker = || {
        let journal = Arc::clone(&journal);
        let note = move |began| journal.lock().unwrap().push(began);
        KitWorker::start(kit(note), RdKafkaDriver::start(&config).unwrap())
    };
    let stop = AtomicBool::new(false);
    let moves = async {
        let first = worker();
        until("the first has all", || first.metrics.partitions.get() == 6).await;
        tokio::time::sleep(Duration::from_millis(300)).await;
        let second = worker();
        let shared = || first.metrics.partitions.get() == 3 && second.metrics.partitions.get() == 3;
        until("they share", shared).await;
        let handled = second.metrics.handled_with(PAY, "OK");
        until("the second works", || second.metrics.handled_with(PAY, "OK") > handled + 20).await;
        assert_eq!(first.stop().await, Ended { cut: 0 });
        until("the second has all", || second.metrics.partitions.get() == 6).await;
        let handled = second.metrics.handled_with(PAY, "OK");
        until("the second works on", || second.metrics.handled_with(PAY, "OK") > handled + 50).await;
        stop.store(true, Ordering::Relaxed);
        second
    };
    let (calls, second) = tokio::join!(load(&gateway, &stop), moves);
    assert_eq!(second.stop().await, Ended { cut: 0 });
    let twice = check(journal.lock().unwrap().clone(), calls);
    assert_eq!(twice, 0, "of {calls} calls handled twice");
    gateway.stop().await;
}

#[tokio::test]
async fn a_member_that_is_killed_loses_no_call() {
    if let Ok(place) = std::env::var(PLACE) {
        return work(&place).await;
    }
    let gateway = TestGateway::build().topic("payment_request", 6).start().await;
    let folder = tempfile::tempdir().unwrap();
    let place = |name: &str| {
        let journal = folder.path().join(name).to_str().unwrap().to_owned();
        format!("{} {} {journal}", gateway.bootstrap(), gateway.topic("payment_request"))
    };
    let start = |name: &str| {
        tokio::process::Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "kit_groups::a_member_that_is_killed_loses_no_call", "--nocapture"])
            .env(PLACE, place(name))
            .stdout(std::process::Stdio::null())
            .kill_on_drop(true)
            .spawn()
            .unwrap()
    };
    let read = |name: &str| read(&folder.path().join(name));
    let stop = AtomicBool::new(false);
    let moves = async {
        let (mut first, second) = (start("first"), start("second"));
        let works = |name: &str| read(name).len() > 100;
        until("both work", || works("first") && works("second")).await;
        first.kill().await.unwrap();
        let partitions =
            |name: &str| read(name).iter().map(|one| one.partition).collect::<std::collections::HashSet<_>>();
        let lost = partitions("first");
        until("the second has taken over", || partitions("second").is_superset(&lost)).await;
        let handled = read("second").len();
        until("it works on", || read("second").len() > handled + 100).await;
        stop.store(true, Ordering::Relaxed);
        second
    };
    let (calls, second) = tokio::join!(load(&gateway, &stop), moves);
    drop(second);
    let began = [read("first"), read("second")].concat();
    let twice = check(began, calls);
    // What was at work, or done and not committed yet.
    assert!(twice < calls / 2, "{twice} of {calls} calls were handled twice");
    gateway.stop().await;
}

/// Requests without callers, straight into a partition.
async fn write(gateway: &TestGateway, partition: i32, keys: &[&str]) {
    let topic = gateway.topic("payment_request");
    let mut writer = gateway.cluster.writer(&topic, partition).await.unwrap();
    let records: Vec<Record> = (keys.iter())
        .map(|key| Record {
            key: Some(Bytes::copy_from_slice(key.as_bytes())),
            value: Some(Bytes::from(pay(key, 5).encode_to_vec())),
            headers: vec![("grpc-method".into(), Bytes::from_static(PAY.as_bytes()))],
        })
        .collect();
    writer.produce(&records, Compression::Zstd).await.unwrap();
}

#[tokio::test]
async fn a_worker_that_is_slow_pauses_its_partitions_and_loses_nothing() {
    const RECORDS: usize = 1_500;
    let gateway = TestGateway::build().topic("payment_request", 2).start().await;
    for partition in [0, 1] {
        write(&gateway, partition, &["a", "b", "c"].repeat(RECORDS / 3)).await;
    }
    let config = config(gateway.bootstrap(), &gateway.topic("payment_request"));
    let journal = Arc::new(Mutex::new(Vec::new()));
    let log = Arc::clone(&journal);
    let kit = Kit::new()
        .settings(|settings| {
            settings.order = Order::Partition;
            (settings.held_max, settings.concurrency) = (8, 2);
        })
        .handle::<PayRequest, PayReply>(PAY, move |call, _| {
            let log = Arc::clone(&log);
            async move {
                let offset = call.record().offset;
                // Longer than the polling thread waits for room before it pauses.
                let stall = Duration::from_millis(if offset % 500 == 0 { 400 } else { 0 });
                tokio::time::sleep(stall).await;
                log.lock().unwrap().push((call.partition().partition, offset));
                Ok(PayReply::default())
            }
        });
    let worker = KitWorker::start(kit, RdKafkaDriver::start(&config).unwrap());
    until("all are handled", || journal.lock().unwrap().len() >= 2 * RECORDS).await;
    assert_eq!(worker.stop().await, Ended { cut: 0 });
    let journal = journal.lock().unwrap().clone();
    for partition in [0, 1] {
        let offsets: Vec<i64> = journal.iter().filter(|one| one.0 == partition).map(|one| one.1).collect();
        let expected: Vec<i64> = (0..i64::try_from(RECORDS).unwrap()).collect();
        assert_eq!(offsets, expected, "each once and in order");
    }
    gateway.stop().await;
}

#[tokio::test]
async fn a_handler_without_end_holds_up_neither_a_rebalance_nor_a_drain() {
    let gateway = TestGateway::build().topic("payment_request", 2).start().await;
    let mut config = config(gateway.bootstrap(), &gateway.topic("payment_request"));
    config.revoke_limit = Duration::from_secs(1);
    for partition in [0, 1] {
        write(&gateway, partition, &["a"]).await;
    }
    let stuck = Kit::new()
        .settings(|settings| settings.drain_limit = Duration::from_secs(1))
        .handle::<PayRequest, PayReply>(PAY, |_, _| std::future::pending());
    let first = KitWorker::start(stuck, RdKafkaDriver::start(&config).unwrap());
    until("both are at work", || first.metrics.working.get() == 2).await;
    let second = KitWorker::start(kit(drop), RdKafkaDriver::start(&config).unwrap());
    until("one has moved", || second.metrics.handled_with(PAY, "OK") == 1).await;
    assert_eq!(first.metrics.working.get(), 1, "the one that moved was dropped here");
    assert_eq!(first.stop().await, Ended { cut: 1 });
    until("the other has moved", || second.metrics.handled_with(PAY, "OK") == 2).await;
    assert_eq!(second.stop().await, Ended { cut: 0 });
    gateway.stop().await;
}

/// A worker until it is killed.
async fn work(place: &str) {
    let [bootstrap, topic, journal] = place.split(' ').collect::<Vec<_>>().try_into().unwrap();
    let file = std::fs::OpenOptions::new().create(true).append(true).open(journal).unwrap();
    let file = Mutex::new(file);
    let note = move |Began { at_ns, partition, offset, key }: Began| {
        // In one write, so that a kill leaves whole lines.
        let line = format!("{at_ns} {partition} {offset} {key}\n");
        file.lock().unwrap().write_all(line.as_bytes()).unwrap();
    };
    let driver = RdKafkaDriver::start(&config(bootstrap, topic)).unwrap();
    kit(note).run(driver, std::future::pending()).await.unwrap();
}

fn read(journal: &std::path::Path) -> Vec<Began> {
    let text = std::fs::read_to_string(journal).unwrap_or_default();
    let parse = |line: &str| {
        let [at_ns, partition, offset, key] = line.split(' ').collect::<Vec<_>>().try_into().unwrap();
        let (at_ns, partition) = (at_ns.parse().unwrap(), partition.parse().unwrap());
        Began { at_ns, partition, offset: offset.parse().unwrap(), key: key.to_owned() }
    };
    text.lines().map(parse).collect()
}
