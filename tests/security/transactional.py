"""A worker for the echo whose replies only the raw reader can decode: each in a
transaction of its own, after one that is aborted, with a header of no value."""

import os
import threading

import confluent_kafka
from harness import check, wait_until


class TransactionalWorker(threading.Thread):
    """Runs from `with` to its end."""

    def __init__(self, bootstrap, topic):
        super().__init__(daemon=True)
        self.topic, self.failure, self.ending = topic, None, threading.Event()
        run = os.urandom(4).hex()
        common = {"bootstrap.servers": bootstrap, "log_level": 0}
        self.producer = confluent_kafka.Producer({**common, "transactional.id": f"security-{run}"})
        group = {"group.id": f"security-{run}", "auto.offset.reset": "latest", "enable.auto.commit": False}
        self.consumer = confluent_kafka.Consumer({**common, **group})

    def __enter__(self):
        self.producer.init_transactions(60)
        self.consumer.subscribe([self.topic], on_assign=self._from_the_end)
        wait_until(self._assigned, 60, "the transactional worker has no partitions")
        self.start()
        return self

    def __exit__(self, *_):
        self.ending.set()
        self.join(30)
        self.consumer.close()
        check(self.failure is None, f"the transactional worker ended: {self.failure}")

    @staticmethod
    def _from_the_end(consumer, partitions):
        for partition in partitions:
            _, partition.offset = consumer.get_watermark_offsets(partition, timeout=10)
        consumer.assign(partitions)

    def _assigned(self):
        self.consumer.poll(0.1)
        return bool(self.consumer.assignment())

    def run(self):
        try:
            while not self.ending.is_set():
                record = self.consumer.poll(0.1)
                if record is not None and record.error() is None:
                    self._answer(record)
        except Exception as error:  # noqa: BLE001, told when the work is over
            self.failure = error

    def _answer(self, record):
        headers = dict(record.headers())
        correlation = ("kafka_correlationId", headers["kafka_correlationId"])
        for value, end in ((b"aborted", "abort"), (record.value(), "commit")):
            self.producer.begin_transaction()
            self.producer.produce(
                headers["kafka_replyTopic"].decode(),
                value,
                partition=int.from_bytes(headers["kafka_replyPartition"], "big"),
                headers=[correlation, ("x-nothing", None)],
            )
            self.producer.flush(10)
            getattr(self.producer, f"{end}_transaction")(10)
