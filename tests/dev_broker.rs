//! The embedded broker as rskafka sees it, and as raw sockets do.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "the helpers of these tests are tests too")]

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use antiphon::dev_broker::{Api, Config, DevBroker, Fault, Rule, StartError, TopicError, code};
use rskafka::BackoffConfig;
use rskafka::chrono::{DateTime, Utc};
use rskafka::client::error::{Error, ProtocolError};
use rskafka::client::partition::{Compression, OffsetAt, PartitionClient, UnknownTopicHandling};
use rskafka::client::{Client, ClientBuilder};
use rskafka::record::{Record, RecordAndOffset};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::time::{sleep, timeout};

const FETCH_BYTES: std::ops::Range<i32> = 1..1_000_000;

async fn broker() -> DevBroker {
    let broker = DevBroker::start(Config::default()).await.unwrap();
    broker.create_topic("t", 2).unwrap();
    broker
}

async fn client(broker: &DevBroker) -> Client {
    let backoff = BackoffConfig {
        init_backoff: Duration::from_millis(5),
        max_backoff: Duration::from_millis(50),
        ..BackoffConfig::default()
    };
    ClientBuilder::new(vec![broker.bootstrap()]).backoff_config(backoff).build().await.unwrap()
}

async fn partition(broker: &DevBroker, index: i32) -> Arc<PartitionClient> {
    let client = client(broker).await;
    Arc::new(client.partition_client("t", index, UnknownTopicHandling::Error).await.unwrap())
}

fn record(value: &str) -> Record {
    record_of(value.as_bytes().to_vec())
}

fn record_of(value: Vec<u8>) -> Record {
    let timestamp = DateTime::<Utc>::from_timestamp_millis(1_700_000_000_000).unwrap();
    let headers = BTreeMap::from([("a".to_owned(), vec![0, 255, 7]), ("empty".to_owned(), Vec::new())]);
    Record { key: Some(b"key".to_vec()), value: Some(value), headers, timestamp }
}

async fn produce(partition: &PartitionClient, values: &[&str]) -> Vec<i64> {
    let records = values.iter().map(|value| record(value)).collect();
    partition.produce(records, Compression::NoCompression).await.unwrap()
}

async fn fetch(partition: &PartitionClient, offset: i64, wait_ms: i32) -> Vec<RecordAndOffset> {
    partition.fetch_records(offset, FETCH_BYTES, wait_ms).await.unwrap().0
}

fn error_of(error: &Error) -> Option<ProtocolError> {
    match error {
        Error::ServerError { protocol_error, .. } => Some(*protocol_error),
        _ => None,
    }
}

#[tokio::test]
async fn records_come_back_as_they_were_sent_with_every_compression() {
    let broker = broker().await;
    let partition = partition(&broker, 0).await;
    let mut sent = Vec::new();
    for compression in [
        Compression::NoCompression,
        Compression::Gzip,
        Compression::Lz4,
        Compression::Snappy,
        Compression::Zstd,
    ] {
        let mut records: Vec<_> =
            (0..20).map(|n| record(&format!("{compression:?} {n} {}", "x".repeat(500)))).collect();
        records.push(Record { value: None, ..record("") });
        records.push(Record { key: None, ..record("no key") });
        let offsets = partition.produce(records.clone(), compression).await.unwrap();
        let first = i64::try_from(sent.len()).unwrap();
        assert_eq!(offsets, (first..first + 22).collect::<Vec<_>>());
        sent.extend(records);
    }
    let mut read = Vec::new();
    while read.len() < sent.len() {
        read.extend(fetch(&partition, i64::try_from(read.len()).unwrap(), 100).await);
    }
    for (n, (read, sent)) in read.into_iter().zip(sent).enumerate() {
        assert_eq!((read.offset, read.record), (i64::try_from(n).unwrap(), sent));
    }
}

#[tokio::test]
async fn topics_are_created_listed_and_deleted() {
    let broker = DevBroker::start(Config { default_partitions: 4, ..Config::default() }).await.unwrap();
    let client = client(&broker).await;
    let controller = client.controller_client().unwrap();
    controller.create_topic("made", 3, 1, 1_000).await.unwrap();
    controller.create_topic("default", -1, -1, 1_000).await.unwrap();
    assert_eq!((broker.partitions("made"), broker.partitions("default")), (Some(3), Some(4)));
    let again = controller.create_topic("made", 3, 1, 1_000).await.unwrap_err();
    assert_eq!(error_of(&again), Some(ProtocolError::TopicAlreadyExists));
    let bad = controller.create_topic("no/good", 3, 1, 1_000).await.unwrap_err();
    assert_eq!(error_of(&bad), Some(ProtocolError::InvalidTopicException));
    let listed = client.list_topics().await.unwrap();
    assert_eq!(listed.iter().map(|t| t.partitions.len()).sum::<usize>(), 7);
    controller.delete_topic("made", 1_000).await.unwrap();
    assert_eq!(broker.topics(), ["default"]);
    assert_eq!(broker.create_topic("default", 1), Err(TopicError::Exists));
    let unknown = client.partition_client("made", 0, UnknownTopicHandling::Error).await.unwrap_err();
    assert_eq!(error_of(&unknown), Some(ProtocolError::UnknownTopicOrPartition));
}

#[tokio::test]
async fn a_held_fetch_wakes_at_once_and_waits_no_longer_than_asked() {
    let broker = broker().await;
    let (reader, writer) = (partition(&broker, 0).await, partition(&broker, 0).await);
    let started = Instant::now();
    assert!(fetch(&reader, 0, 150).await.is_empty());
    assert!(started.elapsed() >= Duration::from_millis(150));
    for n in 0..20 {
        let held = tokio::spawn({
            let reader = Arc::clone(&reader);
            async move { (fetch(&reader, n, 30_000).await, Instant::now()) }
        });
        sleep(Duration::from_millis(u64::try_from(n).unwrap())).await;
        let sent = Instant::now();
        assert_eq!(produce(&writer, &["x"]).await, [n]);
        let (read, at) = timeout(Duration::from_secs(5), held).await.unwrap().unwrap();
        assert_eq!(read[0].offset, n);
        assert!(at - sent < Duration::from_secs(1), "took {:?}", at - sent);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_wake_up_is_lost_under_load() {
    let broker = broker().await;
    let (reader, writer) = (partition(&broker, 1).await, partition(&broker, 1).await);
    let writing = tokio::spawn(async move {
        for n in 0..2_000 {
            produce(&writer, &[&n.to_string()]).await;
        }
    });
    let mut next = 0;
    while next < 2_000 {
        let read = timeout(Duration::from_secs(10), fetch(&reader, next, 60_000)).await.unwrap();
        for read in read {
            assert_eq!((read.offset, read.record.value.unwrap()), (next, next.to_string().into_bytes()));
            next += 1;
        }
    }
    writing.await.unwrap();
}

#[tokio::test]
async fn a_held_fetch_blocks_what_follows_on_its_connection() {
    let broker = broker().await;
    let both = partition(&broker, 0).await;
    let held = tokio::spawn({
        let both = Arc::clone(&both);
        async move { fetch(&both, 0, 400).await }
    });
    sleep(Duration::from_millis(50)).await;
    let started = Instant::now();
    produce(&both, &["behind"]).await;
    assert!(started.elapsed() > Duration::from_millis(250));
    assert!(held.await.unwrap().is_empty());
}

#[tokio::test]
async fn retention_and_deleting_move_the_start() {
    let config = Config { retention_bytes_per_partition: 64 * 1024, ..Config::default() };
    let broker = DevBroker::start(config).await.unwrap();
    broker.create_topic("t", 1).unwrap();
    let partition = partition(&broker, 0).await;
    let value = "x".repeat(4_000);
    for _ in 0..100 {
        produce(&partition, &[&value]).await;
    }
    let start = partition.get_offset(OffsetAt::Earliest).await.unwrap();
    assert!((80..100).contains(&start), "{start}");
    assert_eq!(partition.get_offset(OffsetAt::Latest).await.unwrap(), 100);
    let gone = partition.fetch_records(0, FETCH_BYTES, 10).await.unwrap_err();
    assert_eq!(error_of(&gone), Some(ProtocolError::OffsetOutOfRange));
    partition.delete_records(95, 1_000).await.unwrap();
    assert_eq!(partition.get_offset(OffsetAt::Earliest).await.unwrap(), 95);
    assert_eq!((broker.partition_start("t", 0), broker.partition_end("t", 0)), (Some(95), Some(100)));
    assert_eq!(fetch(&partition, 95, 10).await[0].offset, 95);
    let gone = partition.fetch_records(94, FETCH_BYTES, 10).await.unwrap_err();
    assert_eq!(error_of(&gone), Some(ProtocolError::OffsetOutOfRange));
}

#[tokio::test]
async fn a_batch_that_is_too_large_is_refused() {
    let broker = broker().await;
    let partition = partition(&broker, 0).await;
    let refused =
        partition.produce(vec![record_of(vec![0; 1_048_588])], Compression::NoCompression).await.unwrap_err();
    assert_eq!(error_of(&refused), Some(ProtocolError::MessageTooLarge));
    let offsets = partition.produce(vec![record_of(vec![0; 1_048_000])], Compression::NoCompression).await;
    assert_eq!(offsets.unwrap(), [0]);
}

#[tokio::test]
async fn deleting_a_topic_wakes_who_waits_for_it() {
    let broker = broker().await;
    let partition = partition(&broker, 0).await;
    let held = tokio::spawn(async move { partition.fetch_records(0, FETCH_BYTES, 5_000).await });
    sleep(Duration::from_millis(50)).await;
    let controller = client(&broker).await.controller_client().unwrap();
    controller.delete_topic("t", 1_000).await.unwrap();
    let error = timeout(Duration::from_secs(2), held).await.unwrap().unwrap().unwrap_err();
    assert_eq!(error_of(&error), Some(ProtocolError::UnknownTopicOrPartition));
}

#[tokio::test]
async fn an_error_is_answered_so_many_times_and_appends_nothing() {
    let broker = broker().await;
    let (first, second) = (partition(&broker, 0).await, partition(&broker, 1).await);
    let rule = Rule::new(Api::Produce, Fault::Error(code::NOT_ENOUGH_REPLICAS)).topic("t").times(1);
    let hits = broker.faults().inject(rule);
    let refused = first.produce(vec![record("x")], Compression::NoCompression).await.unwrap_err();
    assert_eq!(error_of(&refused), Some(ProtocolError::NotEnoughReplicas));
    assert_eq!((hits.count(), broker.partition_end("t", 0)), (1, Some(0)));
    produce(&second, &["fine"]).await;
    assert_eq!(hits.count(), 1);
}

#[tokio::test]
async fn a_moved_leader_delays_and_loses_nothing() {
    let broker = broker().await;
    let partition = partition(&broker, 0).await;
    broker.faults().move_leader("t", Duration::from_millis(200));
    let started = Instant::now();
    produce(&partition, &["x"]).await;
    assert!(started.elapsed() >= Duration::from_millis(200));
    assert_eq!(broker.partition_end("t", 0), Some(1));
}

#[tokio::test]
async fn a_throttled_record_is_appended() {
    let broker = broker().await;
    let partition = partition(&broker, 0).await;
    broker.faults().inject(Rule::new(Api::Produce, Fault::Throttle(Duration::from_millis(50))).times(2));
    produce(&partition, &["x"]).await;
    // The client sends again what was only throttled: that is what it does.
    assert_eq!(broker.partition_end("t", 0), Some(3));
}

#[tokio::test]
async fn a_connection_is_cut_before_or_after_the_append() {
    for (fault, appended) in [(Fault::CutBefore, 1), (Fault::CutAfter, 2)] {
        let broker = broker().await;
        let partition = partition(&broker, 0).await;
        let hits = broker.faults().inject(Rule::new(Api::Produce, fault).times(1));
        produce(&partition, &["x"]).await;
        assert_eq!((hits.count(), broker.partition_end("t", 0)), (1, Some(appended)), "{fault:?}");
    }
}

#[tokio::test]
async fn delays_hold_the_request_or_only_its_answer() {
    for (fault, meanwhile) in
        [(Fault::Delay(Duration::from_millis(300)), 0), (Fault::DelayAnswer(Duration::from_millis(300)), 1)]
    {
        let broker = broker().await;
        let partition = partition(&broker, 0).await;
        broker.faults().inject(Rule::new(Api::Produce, fault).times(1));
        let producing = tokio::spawn(async move { produce(&partition, &["x"]).await });
        sleep(Duration::from_millis(150)).await;
        assert_eq!(broker.partition_end("t", 0), Some(meanwhile), "{fault:?}");
        assert_eq!(producing.await.unwrap(), [0]);
    }
}

#[tokio::test]
async fn silence_and_a_pause_answer_nothing() {
    let broker = broker().await;
    let (silenced, other) = (partition(&broker, 0).await, partition(&broker, 0).await);
    broker.faults().inject(Rule::new(Api::Produce, Fault::Silence).times(1));
    let short = Duration::from_millis(200);
    assert!(timeout(short, produce(&silenced, &["x"])).await.is_err());
    assert!(timeout(short, produce(&silenced, &["same connection"])).await.is_err());
    assert_eq!(produce(&other, &["another"]).await, [0]);
    broker.faults().pause();
    let paused = tokio::spawn(async move { produce(&other, &["late"]).await });
    sleep(short).await;
    assert!(!paused.is_finished());
    broker.faults().resume();
    assert_eq!(timeout(Duration::from_secs(2), paused).await.unwrap().unwrap(), [1]);
}

#[tokio::test]
async fn connections_are_cut_and_come_back() {
    let broker = broker().await;
    let partition = partition(&broker, 0).await;
    produce(&partition, &["x"]).await;
    let mut raw = TcpStream::connect(broker.addr()).await.unwrap();
    sleep(Duration::from_millis(50)).await;
    broker.faults().cut_connections();
    assert!(closed(&mut raw).await);
    assert_eq!(produce(&partition, &["y"]).await, [1]);
}

/// Whether the broker closes this connection, answering nothing.
async fn closed(stream: &mut TcpStream) -> bool {
    let read = timeout(Duration::from_secs(2), stream.read_u8()).await;
    read.expect("the connection stays open").is_err()
}

#[tokio::test]
async fn garbage_closes_its_connection_and_no_other() {
    let broker = broker().await;
    let partition = partition(&broker, 0).await;
    let claim = |key: i16, version: i16, rest: &[u8]| {
        let mut frame = Vec::new();
        frame.extend(i32::try_from(8 + rest.len()).unwrap().to_be_bytes());
        frame.extend(key.to_be_bytes());
        frame.extend(version.to_be_bytes());
        frame.extend([0, 0, 0, 1]);
        frame.extend(rest);
        frame
    };
    for garbage in [
        b"GET / HTTP/1.1\r\nhost: x\r\n\r\n".to_vec(),
        vec![0xff; 64],
        vec![0, 0, 0, 0],
        vec![0, 0, 0, 3, 1, 2, 3],
        claim(999, 0, &[]),
        claim(Api::Produce.key(), 7, &[0xff; 40]),
        // Topics: as many as 32 bits can say.
        claim(Api::Metadata.key(), 1, &[0xff, 0xff, 0x7f, 0xff, 0xff, 0xff]),
        claim(Api::Fetch.key(), 17, &[]),
    ] {
        let mut stream = TcpStream::connect(broker.addr()).await.unwrap();
        stream.write_all(&garbage).await.unwrap();
        assert!(closed(&mut stream).await, "{garbage:?}");
    }
    assert_eq!(produce(&partition, &["x"]).await, [0]);
}

#[tokio::test]
async fn dropping_or_stopping_the_broker_closes_its_port_and_connections() {
    for stop in [true, false] {
        let broker = broker().await;
        let addr = broker.addr();
        let mut stream = TcpStream::connect(addr).await.unwrap();
        sleep(Duration::from_millis(50)).await;
        if stop {
            broker.stop().await;
            assert!(TcpStream::connect(addr).await.is_err());
        } else {
            drop(broker);
        }
        assert!(closed(&mut stream).await);
        assert!(TcpStream::connect(addr).await.is_err());
    }
}

#[tokio::test]
async fn a_start_that_cannot_be_says_why() {
    let broker = broker().await;
    let taken = DevBroker::start(Config { listen: broker.addr(), ..Config::default() }).await;
    assert!(matches!(taken, Err(StartError::Bind { addr, .. }) if addr == broker.addr()));
    let none = DevBroker::start(Config { default_partitions: 0, ..Config::default() }).await;
    assert!(matches!(none, Err(StartError::DefaultPartitions(0))));
}
