#!/usr/bin/env python3
"""The bank's worker: books transfers, or hands notifications over.

    worker.py --bootstrap HOST:PORT --topic bank_transfer --books books.sqlite

A batch of requests is one transaction of the books; its replies are written
when it is committed, and its offsets when the replies are acknowledged. So a
worker that is killed leaves nothing half done, and what is handled again finds
its outcome in the books.
"""

import argparse
import signal
import struct
import sys
import time
import urllib.parse
from pathlib import Path

import grpc
from books import BOOKED, REFUSED, Books
from confluent_kafka import Consumer, KafkaError, KafkaException, Producer

HERE = Path(__file__).resolve().parent
BATCH_RECORDS_MAX = 200
POLL_SECONDS = 0.1
FLUSH_SECONDS_MAX = 30
# While the bank is closed; below Kafka's max.poll.interval.ms.
CLOSED_SECONDS_MAX = 240
CLOSED_POLL_SECONDS = 0.02
FAILED_PRECONDITION, NOT_FOUND, INVALID_ARGUMENT = 9, 5, 3


def error(code, words):
    return b"", [("grpc-status", str(code)), ("grpc-message", urllib.parse.quote(words, safe=" "))]


class Worker:
    def __init__(self, options):
        sys.path += [str(HERE / "proto"), str(HERE.parents[1] / "proto")]
        self.messages = grpc.protos("bank/v1/bank.proto")
        self.books = Books(options.books)
        self.options, self.stopping = options, False
        self.producer = Producer({"bootstrap.servers": options.bootstrap, "acks": "all", "linger.ms": 1})
        self.consumer = Consumer({
            "bootstrap.servers": options.bootstrap, "group.id": options.group, "group.instance.id": options.instance,
            "auto.offset.reset": "earliest", "enable.auto.commit": False, "session.timeout.ms": 10_000,
        })  # fmt: skip
        self.consumer.subscribe([options.topic])

    def run(self):
        while not self.stopping:
            records = []
            for record in self.consumer.consume(BATCH_RECORDS_MAX, timeout=POLL_SECONDS):
                if record.error() is None:
                    records.append(record)
                elif record.error().code() != KafkaError._PARTITION_EOF:
                    print(record.error(), file=sys.stderr)
            if records:
                self.handle(records)
        self.consumer.close()

    def handle(self, records):
        self.wait_while_closed()
        self.books.begin()
        answers = [self.answer(record) for record in records]
        self.books.commit()
        for record, answer in zip(records, answers):
            self.reply(record, *answer)
        if self.producer.flush(FLUSH_SECONDS_MAX):
            raise KafkaException("replies are not acknowledged")
        self.consumer.commit(asynchronous=False)
        time.sleep(self.options.pause_ms / 1_000)

    def wait_while_closed(self):
        until = time.monotonic() + CLOSED_SECONDS_MAX
        while self.options.closed is not None and self.options.closed.exists():
            if time.monotonic() > until:
                sys.exit(f"closed for more than {CLOSED_SECONDS_MAX} s")
            time.sleep(CLOSED_POLL_SECONDS)

    def answer(self, record):
        """Value and status headers of the reply."""
        method = dict(record.headers() or ()).get("grpc-method", b"").decode()
        if method == "/bank.v1.BankService/Notify":
            request = self.messages.NotifyRequest.FromString(record.value())
            self.books.notify(request.notification_id, request.text)
            return b"", []
        request = self.messages.TransferRequest.FromString(record.value())
        if not request.transfer_id or request.amount_minor <= 0:
            return error(INVALID_ARGUMENT, "transfer_id must be set and amount_minor above zero")
        state, amount, balance = self.books.transfer(
            request.transfer_id, request.from_account, request.to_account, request.amount_minor
        )
        if state == BOOKED:
            reply = self.messages.TransferReply(
                transfer_id=request.transfer_id, amount_minor=amount, balance_minor=balance
            )
            return reply.SerializeToString(), []
        return error(FAILED_PRECONDITION if state == REFUSED else NOT_FOUND, f"the transfer is {state}")

    def reply(self, record, value, status):
        headers = dict(record.headers() or ())
        topic, correlation = headers.get("kafka_replyTopic"), headers.get("kafka_correlationId")
        if topic is None or correlation is None:
            return  # One-way: nobody waits.
        place = {}
        if len(headers.get("kafka_replyPartition", b"")) == 4:
            place["partition"] = struct.unpack(">i", headers["kafka_replyPartition"])[0]
        self.producer.produce(
            topic.decode(), value, record.key(), headers=[("kafka_correlationId", correlation), *status], **place
        )
        self.producer.poll(0)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bootstrap", default="127.0.0.1:9092")
    parser.add_argument("--topic", default="bank_transfer", help="bank_transfer or bank_notification")
    parser.add_argument("--group", default="bank")
    parser.add_argument("--instance", default="bank-1", help="group.instance.id: started again, it goes on at once")
    parser.add_argument("--books", type=Path, required=True, help="SQLite file, made by books.py")
    parser.add_argument("--closed", type=Path, help="while this file exists, nothing is booked")
    parser.add_argument("--pause-ms", type=float, default=0, help="after each batch")
    worker = Worker(parser.parse_args())
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: setattr(worker, "stopping", True))
    worker.run()


if __name__ == "__main__":
    main()
