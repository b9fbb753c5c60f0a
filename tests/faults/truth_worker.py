"""The worker of truth.py: does with a request what the beginning of its payload
asks for, and writes down each reply that Kafka has acknowledged.

    answered    a reply; keyed: after KEYED_SECONDS
    failed      a reply with FAILED_PRECONDITION
    silent      none
    late        a reply LATE_SECONDS after the request, as for cancelled
    twice       two replies
    garbage     a null value, which is no message
"""

import heapq
import json
import os
import signal
import struct
import sys
import time

from audit import CORRELATION
from cluster import QUIET
from confluent_kafka import Consumer, Producer

ECHO, PAY = "echo.v1.EchoService", "payment_request"
REPLY_TOPIC, REPLY_PARTITION = "kafka_replyTopic", "kafka_replyPartition"
FLUSH_SECONDS_MAX = 30
# Longer than a call may take, by more than a busy machine is late.
LATE_SECONDS = 4.0
KEYED_SECONDS = 0.1


class Worker:
    def __init__(self, bootstrap, journal):
        self.consumer = Consumer({
            "bootstrap.servers": bootstrap, **QUIET, "group.id": f"truth-{os.getpid()}", "auto.offset.reset": "earliest",
            "enable.auto.commit": False,
        })  # fmt: skip
        self.producer = Producer({"bootstrap.servers": bootstrap, **QUIET, "linger.ms": 1, "acks": "all"})
        self.journal = open(journal, "w", encoding="utf-8")  # noqa: SIM115: closed at the end of run
        self.later, self.count, self.ending = [], 0, False
        signal.signal(signal.SIGTERM, self.end)

    def end(self, *_):
        self.ending = True

    def run(self):
        self.consumer.subscribe([ECHO, PAY], on_assign=lambda *_: print("assigned", flush=True))
        while not self.ending:
            for record in self.consumer.consume(500, timeout=0.02):
                if record.error() is None:
                    self.handle(record)
            now = time.monotonic()
            while self.later and self.later[0][0] <= now:
                self.answer(*heapq.heappop(self.later)[2:])
            self.producer.poll(0)
        self.consumer.close()
        left = self.producer.flush(FLUSH_SECONDS_MAX)
        self.journal.close()
        return f"{left} replies were not acknowledged" if left or self.later else 0

    def handle(self, record):
        headers = {name: value for name, value in record.headers() if value is not None}
        kind, _, _ = text(record.value(), 1).partition(":")
        if kind == "silent":
            return
        if kind in ("late", "cancelled"):
            self.put_off(LATE_SECONDS, record, headers, kind)
        elif kind == "keyed":
            self.put_off(KEYED_SECONDS, record, headers, kind)
        else:
            self.answer(record, headers, kind)
            if kind == "twice":
                self.answer(record, headers, kind)

    def put_off(self, seconds, *reply):
        self.count += 1  # No two records are compared.
        heapq.heappush(self.later, (time.monotonic() + seconds, self.count, *reply))

    def answer(self, record, headers, kind):
        identity = headers[CORRELATION].decode()
        value, more = record.value(), []
        if kind == "failed":
            value, more = b"", [("grpc-status", "9"), ("grpc-message", "not in this state")]
        elif kind == "garbage":
            value = None
        elif record.topic() == PAY:
            order = text(value, 1)
            value = field(1, order) + field(2, f"pay-{order}-{int(order.rpartition('-')[2]) + 1}")
        place = {}
        if len(headers.get(REPLY_PARTITION, b"")) == 4:
            place["partition"] = struct.unpack(">i", headers[REPLY_PARTITION])[0]
        line = json.dumps({"correlation_id": identity, "kind": kind}) + "\n"

        def acknowledged(error, _):
            if error is not None:
                sys.exit(f"a reply could not be written: {error}")
            self.journal.write(line)

        self.producer.produce(
            headers[REPLY_TOPIC].decode(), value, headers=[(CORRELATION, headers[CORRELATION]), *more],
            on_delivery=acknowledged, **place,
        )  # fmt: skip


def text(message, number):
    """The first field, which is a string of less than 128 bytes."""
    if message[0] != number << 3 | 2 or message[1] > 127:
        raise ValueError(f"not a message of truth.py: {message[:20]!r}")
    return message[2 : 2 + message[1]].decode()


def field(number, value):
    data = value.encode()
    return bytes([number << 3 | 2, len(data)]) + data


if __name__ == "__main__":
    sys.exit(Worker(*sys.argv[1:]).run())
