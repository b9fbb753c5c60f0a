#!/usr/bin/env python3
"""Real Kafka clients against a broker: the embedded one or Apache Kafka.

    pip install 'confluent-kafka==2.16.*' 'aiokafka==0.14.*' cramjam
    python tests/conformance/clients.py 127.0.0.1:9092 [--only NAME]

Every check runs on topics and groups of its own, so it can be run again on
the same broker. Prints "N passed, N failed"; exits with 1 when any failed.
"""

import argparse
import asyncio
import functools
import subprocess
import sys
import threading
import time
import traceback
import uuid

import aiokafka
import aiokafka.admin
import aiokafka.errors
import confluent_kafka
from confluent_kafka import Consumer, KafkaError, KafkaException, Producer, TopicPartition
from confluent_kafka.admin import AdminClient, NewTopic, OffsetSpec

CODECS = ["none", "gzip", "snappy", "lz4", "zstd"]
HEADERS = [("kafka_correlationId", b"\x00\xff\x10"), ("twice", b"1"), ("twice", b"2"), ("empty", b""), ("null", None)]
PATIENCE_S = 30

CHECKS = []


def check(function):
    CHECKS.append(function)
    return function


def expect(condition, message):
    if not condition:
        raise AssertionError(message)


def fresh(prefix):
    return f"{prefix}-{uuid.uuid4().hex[:12]}"


@functools.cache
def admin(bootstrap):
    # One, and kept: a client that is dropped forgets what it was asked.
    return AdminClient({"bootstrap.servers": bootstrap})


def new_topic(bootstrap, partitions=1):
    name = fresh("conformance")
    for future in admin(bootstrap).create_topics([NewTopic(name, partitions, 1)]).values():
        future.result(PATIENCE_S)
    # Apache Kafka needs a moment until every client sees a new topic.
    end = time.monotonic() + PATIENCE_S
    while time.monotonic() < end:
        known = admin(bootstrap).list_topics(name, timeout=10).topics[name]
        if known.error is None and len(known.partitions) == partitions:
            return name
        time.sleep(0.1)
    raise AssertionError(f"topic {name} does not appear")


def consumer(bootstrap, group, **more):
    return Consumer({
        "bootstrap.servers": bootstrap,
        "group.id": group,
        "auto.offset.reset": "earliest",
        "enable.auto.commit": False,
        "session.timeout.ms": 6000,
        "heartbeat.interval.ms": 500,
        **more,
    })


def produce(bootstrap, topic, records, **more):
    """Sends (key, value, headers, partition); fails if any is not delivered."""
    failures = []
    producer = Producer({"bootstrap.servers": bootstrap, "message.timeout.ms": PATIENCE_S * 1000, **more})
    for key, value, headers, partition in records:
        producer.produce(topic, value, key, partition, headers=headers,
                         on_delivery=lambda error, _: failures.append(error) if error else None)
    left = producer.flush(PATIENCE_S)
    expect(left == 0 and not failures, f"{left} not delivered, {failures[:3]}")


def numbered(count, partitions=1):
    return [(str(n), f"value {n}", [], n % partitions) for n in range(count)]


def read(client, count, patience_s=PATIENCE_S):
    """Reads exactly so many records, as long as it takes."""
    records, end = [], time.monotonic() + patience_s
    while len(records) < count and time.monotonic() < end:
        record = client.poll(0.2)
        if record is None:
            continue
        if record.error():
            raise KafkaException(record.error())
        records.append(record)
    expect(len(records) == count, f"read {len(records)} records, not {count}")
    return records


def until(condition, message, patience_s=PATIENCE_S):
    end = time.monotonic() + patience_s
    while not condition():
        expect(time.monotonic() < end, message)


# Topics


@check
def create_list_delete(bootstrap):
    name = new_topic(bootstrap, 3)
    try:
        admin(bootstrap).create_topics([NewTopic(name, 3, 1)])[name].result(PATIENCE_S)
        raise AssertionError("the same topic was created twice")
    except KafkaException as error:
        expect(error.args[0].code() == KafkaError.TOPIC_ALREADY_EXISTS, f"{error}")
    admin(bootstrap).delete_topics([name])[name].result(PATIENCE_S)
    until(lambda: name not in admin(bootstrap).list_topics(timeout=10).topics, "the topic is not deleted")


@check
def create_with_defaults(bootstrap):
    name = fresh("conformance")
    admin(bootstrap).create_topics([NewTopic(name, -1, -1)])[name].result(PATIENCE_S)
    until(lambda: name in admin(bootstrap).list_topics(timeout=10).topics, "the topic does not appear")


@check
def create_refusals(bootstrap):
    for topic, code in [
        (NewTopic("not/legal", 1, 1), KafkaError.TOPIC_EXCEPTION),
        (NewTopic(fresh("conformance"), 1, 99), KafkaError.INVALID_REPLICATION_FACTOR),
        (NewTopic(fresh("conformance"), 0, 1), KafkaError.INVALID_PARTITIONS),
    ]:
        try:
            admin(bootstrap).create_topics([topic])[topic.topic].result(PATIENCE_S)
            raise AssertionError(f"{topic} was created")
        except KafkaException as error:
            expect(error.args[0].code() == code, f"{topic}: {error}")


@check
def unknown_topic_is_not_delivered(bootstrap):
    failures = []
    producer = Producer({
        "bootstrap.servers": bootstrap, "message.timeout.ms": 10000,
        "allow.auto.create.topics": False, "topic.metadata.propagation.max.ms": 500,
    })
    producer.produce(fresh("not-there"), b"x", partition=0, on_delivery=lambda error, _: failures.append(error))
    producer.flush(PATIENCE_S)
    expect(len(failures) == 1 and failures[0] is not None, f"{failures}")


# Records


def round_trip(bootstrap, records, **more):
    topic = new_topic(bootstrap)
    produce(bootstrap, topic, records, **more)
    client = consumer(bootstrap, fresh("group"), **{"fetch.max.bytes": 64 << 20, "check.crcs": True})
    client.assign([TopicPartition(topic, 0, 0)])
    got = read(client, len(records))
    client.close()
    for offset, (record, (key, value, headers, _)) in enumerate(zip(got, records)):
        as_bytes = lambda text: text.encode() if isinstance(text, str) else text
        expect(record.offset() == offset, f"offset {record.offset()}, not {offset}")
        expect(record.key() == as_bytes(key) and record.value() == as_bytes(value), f"record {offset} differs")
        expect((record.headers() or []) == headers, f"headers {record.headers()}")


@check
def headers_null_values_and_empty_values(bootstrap):
    records = [("k", b"\x00binary\xff", HEADERS, 0), (None, "no key", [], 0), ("k", None, HEADERS, 0), ("k", b"", [], 0)]
    round_trip(bootstrap, records)


@check
def every_compression(bootstrap):
    for codec in CODECS:
        records = [(str(n), f"value {n} " + "x" * 1000, HEADERS, 0) for n in range(200)]
        round_trip(bootstrap, records, **{"compression.type": codec, "linger.ms": 20})


@check
def idempotent_producer(bootstrap):
    for codec in ["none", "lz4"]:
        round_trip(bootstrap, numbered(2000), **{"enable.idempotence": True, "compression.type": codec})


@check
def every_acks(bootstrap):
    for acks in ["all", "1", "0"]:
        round_trip(bootstrap, numbered(50), acks=acks)


@check
def big_records(bootstrap):
    round_trip(bootstrap, [("big", b"b" * 999_000, HEADERS, 0)] * 3)


@check
def too_big_a_record_is_refused(bootstrap):
    topic, failures = new_topic(bootstrap), []
    producer = Producer({"bootstrap.servers": bootstrap, "message.max.bytes": 4_000_000})
    producer.produce(topic, b"b" * 2_000_000, on_delivery=lambda error, _: failures.append(error))
    producer.flush(PATIENCE_S)
    expect([error.code() for error in failures] == [KafkaError.MSG_SIZE_TOO_LARGE], f"{failures}")


@check
def a_waiting_reader_is_woken(bootstrap):
    topic = new_topic(bootstrap)
    client = consumer(bootstrap, fresh("group"), **{"fetch.wait.max.ms": 10000})
    client.assign([TopicPartition(topic, 0, 0)])
    expect(client.poll(2) is None, "a record out of nowhere")
    producer = Producer({"bootstrap.servers": bootstrap, "linger.ms": 0})
    producer.produce(topic, b"warm")
    producer.flush(PATIENCE_S)
    read(client, 1)
    for _ in range(5):
        time.sleep(0.3)
        started = time.monotonic()
        producer.produce(topic, b"x")
        producer.flush(PATIENCE_S)
        read(client, 1)
        took = time.monotonic() - started
        expect(took < 1.5, f"the record took {took:.3f} s to come")
    client.close()


@check
def watermarks_times_and_deleted_records(bootstrap):
    topic = new_topic(bootstrap)
    produce(bootstrap, topic, numbered(10), **{"batch.num.messages": 1})
    client = consumer(bootstrap, fresh("group"))
    partition = TopicPartition(topic, 0)
    expect(client.get_watermark_offsets(partition, timeout=10) == (0, 10), "watermarks")
    at = client.offsets_for_times([TopicPartition(topic, 0, 1)], timeout=10)[0]
    expect(at.offset == 0, f"offset at time 1: {at}")
    latest = admin(bootstrap).list_offsets({partition: OffsetSpec.latest()})[partition].result(PATIENCE_S)
    expect(latest.offset == 10, f"latest {latest.offset}")
    deleted = admin(bootstrap).delete_records([TopicPartition(topic, 0, 6)])
    low = list(deleted.values())[0].result(PATIENCE_S).low_watermark
    expect(low == 6, f"low watermark {low}")
    expect(client.get_watermark_offsets(partition, timeout=10) == (6, 10), "watermarks after deleting")
    # An offset that is gone resets to the earliest there is.
    client.assign([TopicPartition(topic, 0, 0)])
    expect([record.offset() for record in read(client, 4)] == [6, 7, 8, 9], "not the records that are left")
    client.close()


# Groups


def assigned_evenly(clients, partitions):
    def settled():
        for client in clients:
            client.poll(0.1)
        counts = [len(client.assignment()) for client in clients]
        return sum(counts) == partitions and min(counts) > 0
    return settled


@check
def a_group_of_two_shares_and_one_leaves(bootstrap):
    for strategy in ["range", "cooperative-sticky"]:
        topic, group = new_topic(bootstrap, 4), fresh("group")
        a, b = (consumer(bootstrap, group, **{"partition.assignment.strategy": strategy}) for _ in range(2))
        for client in (a, b):
            client.subscribe([topic])
        until(assigned_evenly([a, b], 4), f"{strategy}: partitions are not shared by two")
        produce(bootstrap, topic, numbered(100, 4))
        seen, end = {}, time.monotonic() + PATIENCE_S
        while len(seen) < 100 and time.monotonic() < end:
            for who, client in (("a", a), ("b", b)):
                record = client.poll(0.05)
                if record is not None and not record.error():
                    place = (record.partition(), record.offset())
                    expect(place not in seen, f"{strategy}: {place} read twice")
                    seen[place] = who
        expect(len(seen) == 100 and set(seen.values()) == {"a", "b"}, f"{strategy}: read {len(seen)}")
        a.commit(asynchronous=False)
        b.commit(asynchronous=False)
        a.close()
        until(assigned_evenly([b], 4), f"{strategy}: the one left does not get all partitions", 15)
        produce(bootstrap, topic, numbered(8, 4))
        read(b, 8)
        b.close()


@check
def a_group_resumes_where_it_committed(bootstrap):
    topic, group = new_topic(bootstrap), fresh("group")
    produce(bootstrap, topic, numbered(20))
    first = consumer(bootstrap, group)
    first.subscribe([topic])
    got = read(first, 10)
    first.commit(got[-1], asynchronous=False)
    first.close()
    second = consumer(bootstrap, group)
    second.subscribe([topic])
    expect([record.offset() for record in read(second, 10)] == list(range(10, 20)), "not from where it committed")
    committed = second.committed([TopicPartition(topic, 0)], timeout=10)[0].offset
    expect(committed == 10, f"committed {committed}")
    second.close()


@check
def a_crashed_member_is_replaced(bootstrap):
    topic, group = new_topic(bootstrap, 2), fresh("group")
    code = (
        "import sys\n"
        "from confluent_kafka import Consumer\n"
        "c = Consumer({'bootstrap.servers': sys.argv[1], 'group.id': sys.argv[2], 'session.timeout.ms': 6000,\n"
        "  'heartbeat.interval.ms': 500, 'auto.offset.reset': 'earliest'})\n"
        "c.subscribe([sys.argv[3]])\n"
        "while True:\n"
        "  c.poll(0.1)\n"
        "  if c.assignment(): print(len(c.assignment()), flush=True)\n"
    )
    crashing = subprocess.Popen([sys.executable, "-c", code, bootstrap, group, topic], stdout=subprocess.PIPE)
    try:
        expect(crashing.stdout.readline().strip() == b"2", "the first member does not get both partitions")
        threading.Thread(target=crashing.stdout.read, daemon=True).start()
        survivor = consumer(bootstrap, group)
        survivor.subscribe([topic])
        until(assigned_evenly([survivor], 1), "partitions are not shared with the second")
    finally:
        crashing.kill()
        crashing.wait()
    started = time.monotonic()
    until(assigned_evenly([survivor], 2), "the crashed member's partition is not taken over")
    took = time.monotonic() - started
    expect(took > 2, f"taken over after {took:.1f} s, before the session ended")
    produce(bootstrap, topic, numbered(10, 2))
    read(survivor, 10)
    survivor.close()


@check
def a_static_member_comes_back(bootstrap):
    topic, group = new_topic(bootstrap, 2), fresh("group")
    produce(bootstrap, topic, numbered(4, 2))
    for _ in range(2):
        client = consumer(bootstrap, group, **{"group.instance.id": "fixed"})
        client.subscribe([topic])
        read(client, 4)
        client.close()


# aiokafka


@check
def aiokafka_round_trip(bootstrap):
    async def run():
        topic = new_topic(bootstrap)
        values = []
        for codec in CODECS:
            kind = None if codec == "none" else codec
            async with aiokafka.AIOKafkaProducer(bootstrap_servers=bootstrap, compression_type=kind) as producer:
                for n in range(20):
                    value = f"{codec} {n} ".encode() + b"x" * 500
                    await producer.send_and_wait(topic, value, key=b"k", headers=[("a", b"\x00\xff"), ("a", b"")])
                    values.append(value)
                await producer.send_and_wait(topic, None, key=b"gone")
                values.append(None)
        reader = aiokafka.AIOKafkaConsumer(topic, bootstrap_servers=bootstrap, auto_offset_reset="earliest")
        async with reader:
            got = [await asyncio.wait_for(reader.getone(), PATIENCE_S) for _ in values]
        expect([record.value for record in got] == values, "values differ")
        expect(got[0].headers == (("a", b"\x00\xff"), ("a", b"")), f"headers {got[0].headers}")
    asyncio.run(run())


@check
def aiokafka_idempotent_producer(bootstrap):
    async def run():
        topic = new_topic(bootstrap)
        async with aiokafka.AIOKafkaProducer(bootstrap_servers=bootstrap, enable_idempotence=True) as producer:
            sent = await asyncio.gather(*[producer.send_and_wait(topic, str(n).encode()) for n in range(200)])
        expect(sorted(record.offset for record in sent) == list(range(200)), "offsets")
    asyncio.run(run())


@check
def aiokafka_group_of_two_and_resume(bootstrap):
    async def run():
        topic, group = new_topic(bootstrap, 4), fresh("group")
        make = lambda: aiokafka.AIOKafkaConsumer(
            topic, bootstrap_servers=bootstrap, group_id=group, auto_offset_reset="earliest",
            enable_auto_commit=False, session_timeout_ms=6000, heartbeat_interval_ms=500,
        )
        a, b = make(), make()
        await asyncio.gather(a.start(), b.start())
        end = time.monotonic() + PATIENCE_S
        while [len(a.assignment()), len(b.assignment())] != [2, 2]:
            expect(time.monotonic() < end, f"shared {len(a.assignment())}, {len(b.assignment())}")
            await asyncio.sleep(0.1)
        async with aiokafka.AIOKafkaProducer(bootstrap_servers=bootstrap) as producer:
            for n in range(40):
                await producer.send_and_wait(topic, str(n).encode(), partition=n % 4)
        for client in (a, b):
            for _ in range(20):
                await asyncio.wait_for(client.getone(), PATIENCE_S)
            await client.commit()
        await a.stop()
        async with aiokafka.AIOKafkaProducer(bootstrap_servers=bootstrap) as producer:
            for n in range(4):
                await producer.send_and_wait(topic, b"more", partition=n)
        for _ in range(4):
            record = await asyncio.wait_for(b.getone(), PATIENCE_S)
            expect(record.value == b"more" and record.offset == 10, f"read again: {record}")
        await b.stop()
    asyncio.run(run())


@check
def aiokafka_admin(bootstrap):
    async def run():
        name = fresh("conformance")
        client = aiokafka.admin.AIOKafkaAdminClient(bootstrap_servers=bootstrap)
        await client.start()
        try:
            await client.create_topics([aiokafka.admin.NewTopic(name, 2, 1)])
            end = time.monotonic() + PATIENCE_S
            while name not in await client.list_topics():
                expect(time.monotonic() < end, "the topic does not appear")
                await asyncio.sleep(0.1)
            await client.delete_topics([name])
        finally:
            await client.close()
    asyncio.run(run())


def main():
    arguments = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    arguments.add_argument("bootstrap", help="host:port of a broker")
    arguments.add_argument("--only", default="", help="only checks whose name contains this")
    options = arguments.parse_args()
    library = confluent_kafka.libversion()[0]
    print(f"confluent-kafka {confluent_kafka.version()} (librdkafka {library}), aiokafka {aiokafka.__version__}")
    passed = failed = 0
    for run in [run for run in CHECKS if options.only in run.__name__]:
        started = time.monotonic()
        try:
            run(options.bootstrap)
            passed += 1
            outcome = "ok    "
        except Exception:
            failed += 1
            outcome = "FAILED"
            traceback.print_exc()
        print(f"{outcome} {run.__name__} ({time.monotonic() - started:.1f} s)", flush=True)
    print(f"{passed} passed, {failed} failed")
    return 1 if failed or not passed else 0


if __name__ == "__main__":
    sys.exit(main())
