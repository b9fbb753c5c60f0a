"""Serves one of services.py over Kafka.

What it does and that it did it are one transaction: the answer to every request
is kept under its idempotency-key beside what the request has changed. A request
that comes again, repeated by its caller or because a worker died, gets the
answer that was kept.

The requests of one order are handled one after the other, in their order;
others go on while the bank takes its time with one. An offset is committed when
everything before it has been answered.
"""

import argparse
import hashlib
import logging
import signal
import sqlite3
import sys
import time
from collections import deque
from pathlib import Path
from urllib.parse import quote

from confluent_kafka import Consumer, KafkaError, KafkaException, Producer, TopicPartition
from crash import CrashPoint
from google.protobuf.message import DecodeError
from saga.v1 import steps_pb2
from services import SERVICES, Refused

INVALID_ARGUMENT, ABORTED, UNIMPLEMENTED, INTERNAL = 3, 10, 12, 13
EXIT_START_AGAIN = 75
BATCH_MAX, OPEN_MAX = 200, 5_000
POLL_SECONDS, FLUSH_SECONDS_MAX = 0.02, 20
ANSWERS = """
    CREATE TABLE IF NOT EXISTS answer (key TEXT PRIMARY KEY, digest BLOB NOT NULL, status INTEGER NOT NULL, message TEXT NOT NULL, value BLOB NOT NULL);
    CREATE TABLE IF NOT EXISTS note (what TEXT PRIMARY KEY, times INTEGER NOT NULL);
"""
log = logging.getLogger("worker")


class Request:
    def __init__(self, record):
        self.record = record
        self.headers = {name: value for name, value in record.headers() or () if value is not None}
        self.key = self.headers.get("idempotency-key", b"").decode(errors="replace")
        # Set when it is looked at for the first time.
        self.due = self.in_time = None

    def expired(self):
        deadline = self.headers.get("grpc-deadline", b"")
        return deadline.isdigit() and int(deadline) < time.time() * 1000


class Board:
    """What is in hand: a queue for each order, and what each partition waits for."""

    def __init__(self):
        self.queues, self.open, self.ends = {}, {}, {}

    def add(self, request):
        record = request.record
        self.queues.setdefault(record.key(), deque()).append(request)
        self.open.setdefault(record.partition(), {})[record.offset()] = None
        self.ends[record.partition()] = record.offset() + 1

    def heads(self):
        return [queue[0] for queue in self.queues.values()]

    def done(self, request):
        record = request.record
        queue = self.queues[record.key()]
        queue.popleft()
        if not queue:
            del self.queues[record.key()]
        del self.open[record.partition()][record.offset()]

    def marks(self):
        """Where each partition would begin if we died now."""
        return {partition: next(iter(left), self.ends[partition]) for partition, left in self.open.items()}

    def __len__(self):
        return sum(map(len, self.open.values()))


class Worker:
    def __init__(self, arguments):
        self.crash = CrashPoint()
        self.database = sqlite3.connect(arguments.database, isolation_level=None)
        self.database.executescript("PRAGMA journal_mode = WAL; PRAGMA synchronous = FULL;")
        kind = SERVICES[arguments.service]
        self.database.executescript(kind.schema + ANSWERS)
        self.service = kind(steps_pb2, self.database)
        self.keeps_answers = getattr(kind, "keeps_answers", True)
        self.board, self.committed = Board(), {}
        common = {"bootstrap.servers": arguments.bootstrap, "socket.nagle.disable": True}
        name = arguments.service.split("-")[0]
        self.consumer = Consumer({
            **common,
            "group.id": arguments.group,
            # Who comes back under this name gets its partitions back at once.
            "group.instance.id": name,
            "auto.offset.reset": "earliest",
            "enable.auto.commit": False,
            "session.timeout.ms": 10_000,
            "fetch.wait.max.ms": 100,
        })  # fmt: skip
        self.producer = Producer({
            **common,
            "enable.idempotence": True,
            "linger.ms": 0,
            "delivery.timeout.ms": 15_000,
            # A reply topic that is gone belonged to a gateway that is gone.
            "topic.metadata.propagation.max.ms": 1_000,
        })  # fmt: skip
        self.consumer.subscribe([kind.topic], on_assign=self.assigned, on_revoke=self.revoked, on_lost=self.revoked)
        self.topic = kind.topic

    def assigned(self, _consumer, partitions):
        log.info("assigned %s", " ".join(str(p.partition) for p in partitions))

    def revoked(self, _consumer, partitions):
        """What is in hand comes again to whoever has the partitions next."""
        self.board, self.committed = Board(), {}
        log.info("revoked %s", " ".join(str(p.partition) for p in partitions))

    def serve(self, stopping):
        while not stopping:
            room = max(0, min(BATCH_MAX, OPEN_MAX - len(self.board)))
            for record in self.consumer.consume(room, timeout=POLL_SECONDS) if room else ():
                if record.error() is None:
                    self.board.add(Request(record))
                elif is_fatal(record.error()):
                    start_again(record.error())
                else:
                    log.warning("%s", record.error().str())
            ready = self.ready()
            if ready:
                self.handle(ready)
        self.consumer.close()
        self.database.close()

    def ready(self):
        """The requests that may be carried out now; the others' time begins."""
        now, ready = time.monotonic(), []
        for request in self.board.heads():
            if request.due is None:
                request.in_time = not request.expired()
                request.due = now + (self.bank_seconds(request) if request.in_time else 0)
            if request.due <= now:
                ready.append(request)
        return ready[:BATCH_MAX]

    def bank_seconds(self, request):
        seconds_of = getattr(self.service, "seconds_of", None)
        request_type, _ = self.service.methods.get(method_of(request), (None, None))
        if seconds_of is None or request_type is None or self.kept(request.key) is not None:
            return 0
        try:
            return seconds_of(request_type.FromString(request.record.value() or b""))
        except DecodeError:
            return 0

    def handle(self, ready):
        self.database.execute("BEGIN IMMEDIATE")
        answers = [(request, *self.answer(request)) for request in ready]
        self.crash.passed("before-commit")
        self.database.execute("COMMIT")
        self.crash.passed("after-commit")
        for request, status, message, value in answers:
            self.reply(request, status, message, value)
        unsent = self.producer.flush(FLUSH_SECONDS_MAX)
        if unsent:
            raise SystemExit(f"{unsent} replies not acknowledged within {FLUSH_SECONDS_MAX} s")
        self.crash.passed("after-reply")
        for request in ready:
            self.board.done(request)
        self.commit()

    def answer(self, request):
        payload = request.record.value() or b""
        digest = hashlib.sha256(method_of(request).encode() + b"\0" + payload).digest()
        kept = self.kept(request.key)
        if kept is not None:
            self.note("repeats answered as before")
            if kept[0] != digest:
                return INVALID_ARGUMENT, "this idempotency-key was sent with another message before", b""
            return kept[1:]
        if not request.in_time:
            self.note("too late, not done")
            return ABORTED, "the deadline had passed; nothing was done", b""
        if request.expired():  # The bank had begun in time, and nobody can call it back.
            self.note("done after the deadline")
        status, message, value = self.call(request, payload)
        if request.key and self.keeps_answers and status != INTERNAL:
            self.database.execute("INSERT INTO answer VALUES (?, ?, ?, ?, ?)", (request.key, digest, status, message, value))
        return status, message, value

    def kept(self, key):
        if not key:
            return None
        return self.database.execute("SELECT digest, status, message, value FROM answer WHERE key = ?", (key,)).fetchone()

    def note(self, what):
        self.database.execute("INSERT INTO note VALUES (?, 1) ON CONFLICT DO UPDATE SET times = times + 1", (what,))

    def call(self, request, payload):
        request_type, serve = self.service.methods.get(method_of(request), (None, None))
        if serve is None:
            return UNIMPLEMENTED, f"this worker does not serve {method_of(request)}", b""
        try:
            return 0, "", serve(request_type.FromString(payload)).SerializeToString()
        except Refused as refused:
            return refused.code, refused.message, b""
        except DecodeError as error:
            return INVALID_ARGUMENT, f"the request does not decode: {error}", b""

    def reply(self, request, status, message, value):
        correlation, topic = request.headers.get("kafka_correlationId"), request.headers.get("kafka_replyTopic")
        if correlation is None or topic is None:
            return
        headers = [("kafka_correlationId", correlation)]
        if status:
            headers += [("grpc-status", str(status).encode()), ("grpc-message", quote(message).encode())]
        place = {}
        partition = request.headers.get("kafka_replyPartition", b"")
        if len(partition) == 4:
            place["partition"] = int.from_bytes(partition, "big", signed=True)
        try:
            self.producer.produce(topic.decode(), value=value, key=request.record.key(), headers=headers, on_delivery=delivered, **place)
        except KafkaException as error:
            log.warning("reply lost: %s", error)

    def commit(self):
        marks = {partition: mark for partition, mark in self.board.marks().items() if self.committed.get(partition) != mark}
        if not marks:
            return
        try:
            self.consumer.commit(offsets=[TopicPartition(self.topic, p, mark) for p, mark in marks.items()], asynchronous=False)
            self.committed.update(marks)
        except KafkaException as error:
            if is_fatal(error.args[0]):
                start_again(error)
            log.warning("commit: %s; requests come again", error)


def method_of(request):
    return request.headers.get("grpc-method", b"").decode(errors="replace")


def is_fatal(error):
    """Such as when the broker takes a process that was killed, and whose last words
    it hears now, for the one that has our name."""
    return error.fatal() or error.code() in (KafkaError._FATAL, KafkaError.FENCED_INSTANCE_ID)


def start_again(error):
    log.error("%s; to be started again", error)
    sys.exit(EXIT_START_AGAIN)


def delivered(error, _message):
    if error is not None:
        log.warning("reply lost: %s", error)


def main():
    parser = argparse.ArgumentParser(description="Serves one of the saga's services over Kafka.")
    parser.add_argument("--service", choices=SERVICES, required=True)
    parser.add_argument("--bootstrap", default="127.0.0.1:9092")
    parser.add_argument("--group", required=True, help="consumer group")
    parser.add_argument("--database", type=Path, required=True)
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s", stream=sys.stderr)
    stopping = []
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda received, _frame: stopping.append(received))
    Worker(arguments).serve(stopping)
    log.info("stopped")


if __name__ == "__main__":
    main()
