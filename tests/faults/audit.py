"""What Kafka's logs say: an independent account of every call.

* `ReplyAudit` reads the gateway's reply topic beside the gateway, by the same
  way through the network, and notes when it had each reply in its hands.
* `read_requests` reads whole request topics back when a row is over.
"""

import bisect
import collections
import threading
import time
import uuid

from cluster import QUIET
from confluent_kafka import OFFSET_BEGINNING, Consumer, KafkaError, KafkaException, TopicPartition

CORRELATION = "kafka_correlationId"
# A reader that gives a silent broker up as soon as librdkafka can.
IMPATIENT = {
    "socket.timeout.ms": 2_000,
    "fetch.wait.max.ms": 100,
    "reconnect.backoff.ms": 50,
    "reconnect.backoff.max.ms": 500,
    "topic.metadata.refresh.interval.ms": 1_000,
    "metadata.max.age.ms": 30_000,
}
READ_BACK_SECONDS_MAX = 60
# How far two clients of one broker may be apart.
MOMENT_SECONDS = 0.2


def consumer(bootstrap, **settings):
    return Consumer({
        "bootstrap.servers": bootstrap, **QUIET, "group.id": "faults-audit", "enable.auto.commit": False,
        "auto.offset.reset": "earliest", **settings,
    })  # fmt: skip


def correlation_id(record):
    """As text, or None."""
    for name, value in record.headers() or ():
        if name == CORRELATION and value is not None:
            return str(uuid.UUID(bytes=value)) if len(value) == 16 else value.decode(errors="replace")
    return None


class ReplyAudit:
    """When each correlation id's first reply could be read, as Unix time, and
    in which partition; and when anything of each partition was."""

    def __init__(self, bootstrap, topic, partitions):
        self.bootstrap, self.topic, self.partitions = bootstrap, topic, partitions
        self.seen = {}  # correlation id: (moment, partition)
        self.reads = [[] for _ in range(partitions)]  # by partition: moments, in order
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="audit", daemon=True)
        self._thread.start()

    def _run(self):
        while not self._stopping.is_set():
            reader = consumer(self.bootstrap, **IMPATIENT)
            try:
                reader.assign([TopicPartition(self.topic, p, OFFSET_BEGINNING) for p in range(self.partitions)])
                self._read(reader)
            except KafkaException:
                pass
            finally:
                reader.close()
            self._stopping.wait(0.2)

    def _read(self, reader):
        while not self._stopping.is_set():
            records = reader.consume(500, timeout=0.1)
            now = time.time()
            for record in records:
                error = record.error()
                if error is None:
                    found, moments = correlation_id(record), self.reads[record.partition()]
                    if not moments or moments[-1] < now:
                        moments.append(now)
                    if found is not None:
                        self.seen.setdefault(found, (now, record.partition()))
                elif error.code() in (KafkaError._UNKNOWN_TOPIC, KafkaError.UNKNOWN_TOPIC_OR_PART):
                    return  # It is gone; another one may follow.

    def available(self, fault_began):
        """Correlation id to the moment from which its reply could be had. One
        that was read in the moment of the fault's beginning counts as
        available from when its partition could be read again: the same fetch,
        sent a moment later, had no answer until then."""

        def from_when(moment, partition):
            if abs(moment - fault_began) > MOMENT_SECONDS:
                return moment
            again = bisect.bisect_right(self.reads[partition], fault_began + MOMENT_SECONDS)
            return self.reads[partition][again] if again < len(self.reads[partition]) else float("inf")

        return {identity: from_when(*seen) for identity, seen in self.seen.items()}

    def stop(self):
        self._stopping.set()
        self._thread.join(10)


class Requests:
    """The request topics' whole content."""

    def __init__(self):
        self.places = collections.defaultdict(set)  # correlation id: (topic, partition, offset)
        self.ids_of_key = collections.defaultdict(set)  # (topic, key): correlation ids
        self.records = 0


def read_back(bootstrap, topics):
    """Every record of these topics ({name: partitions}), as they are now."""
    reader = consumer(bootstrap, **{"socket.timeout.ms": 10_000})
    try:
        left = {}
        for topic, partitions in topics.items():
            for partition in partitions:
                place = TopicPartition(topic, partition, OFFSET_BEGINNING)
                _, end = reader.get_watermark_offsets(place, timeout=20)
                if end > 0:
                    left[topic, partition] = end
        reader.assign([TopicPartition(topic, partition, OFFSET_BEGINNING) for topic, partition in left])
        until = time.monotonic() + READ_BACK_SECONDS_MAX
        while left:
            if time.monotonic() > until:
                raise TimeoutError(f"topics not read back: {left}")
            for record in reader.consume(5_000, timeout=0.5):
                if record.error() is not None:
                    continue
                yield record
                place = record.topic(), record.partition()
                if record.offset() + 1 >= left.get(place, 1 << 62):
                    del left[place]
    finally:
        reader.close()


def read_requests(bootstrap, topics):
    found = Requests()
    for record in read_back(bootstrap, topics):
        found.records += 1
        identity = correlation_id(record)
        if identity is not None:
            found.places[identity].add((record.topic(), record.partition(), record.offset()))
            found.ids_of_key[record.topic(), (record.key() or b"").decode(errors="replace")].add(identity)
    return found
