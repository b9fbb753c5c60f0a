"""Runs the table. Through run.py, which builds what it needs."""

import asyncio
import collections
import contextlib
import json
import os
import re
import shutil
import signal
import sys
import tempfile
import time
import traceback
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "e2e"))

import observables
from cases import Caller, run_case
from confluent_kafka import OFFSET_BEGINNING, Consumer, ConsumerGroupState, KafkaException, TopicPartition
from confluent_kafka.admin import AlterConfigOpType, ConfigEntry, ConfigResource, NewTopic, ResourceType
from google.protobuf import json_format
from harness import NOT_YET, PARTITIONS, Failure, Gateway, Kafka, Process, check, generate_messages, tail, wait_until
from workers import CASES, Sees, chosen, options

# A record of 1 MiB with its headers is more than Kafka's default. The reply
# topic is made by the gateway and has what the cluster has, so the cluster's
# default is raised.
RECORD_BYTES_MAX = 2 * 1024 * 1024
METADATA = ["x-note-bin", "x-tenant"]
START_SECONDS_MAX = 60
READ_SECONDS_MAX = 20
EXIT_SECONDS_MAX = 30
HANDLED = re.compile(r"handled topic=\S+ partition=(\d+) offset=(\d+)")
SKIPPED = re.compile(r"skipped topic=\S+ partition=(\d+) offset=(\d+)")


class Row:
    """One worker with a topic, a group and a gateway of its own."""

    sees = Sees

    def __init__(self, worker, antiphon, kafka, messages, folder):
        self.worker, self.antiphon, self.kafka, self.messages = worker, antiphon, kafka, messages
        self.folder = folder
        self.run = os.urandom(4).hex()
        self.topic = self.group = f"interop-{re.sub('[^a-z]+', '-', worker.name)}-{self.run}"
        self.children = []
        self.started = 0
        self.process = self.front = None
        self.orders = 0

    def __enter__(self):
        made = self.kafka.admin.create_topics(
            [NewTopic(self.topic, PARTITIONS, -1, config={"max.message.bytes": str(RECORD_BYTES_MAX)})]
        )
        made[self.topic].result(20)
        wait_until(lambda: self.topic in self.kafka.topics(), 10, "the topic appears")
        return self

    def __exit__(self, *_):
        for child in reversed(self.children):
            if child.alive():
                child.signal(signal.SIGCONT)
            child.end()

    def begin(self):
        self.process = self.start_second()
        self.front = self.gateway("gateway")
        self.wait_members(1)

    def start_second(self):
        self.started += 1
        name = f"worker-{self.started}"
        place = {
            "bootstrap": self.kafka.bootstrap,
            "topic": self.topic,
            "group": self.group,
            "journal": str(self.folder / f"{name}.jsonl"),
        }
        environment = {
            "KAFKA_BOOTSTRAP": self.kafka.bootstrap,
            "KAFKA_TOPIC": self.topic,
            "KAFKA_GROUP": self.group,
            "NO_COLOR": "1",
            **self.worker.environment,
        }
        process = Process(self.folder, name, self.worker.command(place), environment=environment)
        self.children.append(process)
        return process

    def gateway(self, name):
        names = json.dumps(METADATA)
        gateway = Gateway(
            self.folder, self.antiphon, self.kafka.bootstrap, name=name,
            grpc=f"metadata_forward = {names}\nmetadata_return = {names}\n",
            routes='[service."payments.v1.PaymentService"]\n'
            f'request_topic = "{self.topic}"\ndialect = "{self.worker.dialect}"\nformat = "{self.worker.format}"\n',
        )  # fmt: skip
        self.children.append(gateway)
        gateway.wait_ready()
        return gateway

    def caller(self):
        return Caller(self, self.front.grpc)

    def order(self, name):
        """An order id that no other case of this run uses; its prefix stays."""
        self.orders += 1
        return f"{name}-{self.run}{self.orders}"

    def wait_members(self, count):
        """So many processes share the partitions, all of them."""

        def shared():
            for child in self.children:
                if child.name.startswith("worker") and child is self.process:
                    check(child.alive(), f"{child.name} ended with {child.child.poll()}\n{output_tail(child)}")
            try:
                group = self.kafka.admin.describe_consumer_groups([self.group])[self.group].result(10)
            except KafkaException as error:
                if error.args[0].code() in NOT_YET:
                    return False
                raise
            # Spring has a member for each thread: count what holds something by host process.
            held = [len(member.assignment.topic_partitions) for member in group.members]
            processes = self.worker.members_per_process
            return (
                group.state == ConsumerGroupState.STABLE
                and sum(held) == PARTITIONS
                and len(group.members) == count * processes
            )

        wait_until(shared, START_SECONDS_MAX, lambda: f"{count} workers share the partitions\n{self.tails()}", 0.1)

    def tails(self):
        return "\n".join(f"---- {c.name}\n{output_tail(c)}" for c in self.children if c.name.startswith("worker"))

    def check_exit(self, process):
        code = process.exit_code(EXIT_SECONDS_MAX)
        wanted = self.worker.exit_code
        check(code == wanted, f"{process.name} ended with {code}, expected {wanted}\n{output_tail(process)}")

    def handled(self, process=None):
        """Partitions and offsets, in the order in which they were handled."""
        process = process or self.process
        journal = self.folder / f"{process.name}.jsonl"
        if journal.exists():
            lines = [json.loads(line) for line in journal.read_text().splitlines()]
            return [(line["partition"], line["offset"]) for line in lines]
        return found(HANDLED, process)

    def requests(self):
        """What the request topic holds: places by order and amount."""
        consumer = Consumer({"bootstrap.servers": self.kafka.bootstrap, "group.id": self.group + "-reader"})
        places = [TopicPartition(self.topic, partition, OFFSET_BEGINNING) for partition in range(PARTITIONS)]
        ends = {}
        for place in places:
            ends[place.partition] = consumer.get_watermark_offsets(place, timeout=10)[1]
        consumer.assign([place for place in places if ends[place.partition]])
        requests, missing = collections.defaultdict(list), sum(ends.values())
        until = time.monotonic() + READ_SECONDS_MAX
        while missing:
            check(time.monotonic() < until, f"{missing} requests of {self.topic} can't be read")
            for record in consumer.consume(1_000, timeout=0.1):
                check(record.error() is None, f"{self.topic}: {record.error()}")
                missing -= 1
                request = self.request_of(record.value())
                requests[request.order_id, request.amount_minor].append((record.partition(), record.offset()))
        consumer.close()
        return requests

    def request_of(self, value):
        if self.worker.format == "json":
            return json_format.Parse(value, self.messages.PayRequest(), ignore_unknown_fields=True)
        return self.messages.PayRequest.FromString(value)

    def log(self):
        return output(self.process)

    def skipped(self):
        return found(SKIPPED, self.process)


def output(process):
    return process.stdout.read_text(errors="replace") + process.stderr.read_text(errors="replace")


def found(pattern, process):
    return [(int(partition), int(offset)) for partition, offset in pattern.findall(output(process))]


def output_tail(process):
    return f"{tail(process.stdout)}\n{tail(process.stderr)}"


# ---- the table ---------------------------------------------------------------


class Cell:
    """`limit` is what the framework can't do, where it can't."""

    def __init__(self, text, limit="", failed=False):
        self.text, self.limit, self.failed = text, limit, failed


def run_row(worker, wanted, settings, kafka, messages, loop):
    cells = {}
    folder = Path(tempfile.mkdtemp(prefix="antiphon-interop-"))
    names = [name for name in wanted if not worker.cases or name in worker.cases]
    started = time.monotonic()
    try:
        with Row(worker, settings.antiphon, kafka, messages, folder) as row:
            row.begin()
            print(f"{worker.name}: ready after {time.monotonic() - started:.1f} s", flush=True)
            for name in names:
                cells[name] = run_cell(name, row, loop)
            row.process.signal(signal.SIGTERM)
            row.check_exit(row.process)
    except Exception as error:
        say(worker, "start and end", error)
        cells.setdefault("start and end", Cell("FAILED", failed=True))
        for name in names:
            cells.setdefault(name, Cell("FAILED", failed=True))
    if any(cell.failed for cell in cells.values()):
        print(f"  the processes' output is in {folder}", flush=True)
    else:
        shutil.rmtree(folder)
    print(f"{worker.name}: {time.monotonic() - started:.1f} s", flush=True)
    return cells


def run_cell(name, row, loop):
    started = time.monotonic()
    try:
        text, words = run_case(name, row, loop)
    except Exception as error:
        say(row.worker, name, error)
        return Cell("FAILED", failed=True)
    limit = row.worker.limits().get(name, "")
    print(f"  {name}: {words}{' (limit)' if limit else ''} [{time.monotonic() - started:.1f} s]", flush=True)
    return Cell(text, limit)


def run_observables(antiphon, kafka):
    try:
        return observables.run(antiphon, kafka, Cell)
    except Exception as error:
        print(f"  FAILED nestjs, observables: {error}", flush=True)
        if not isinstance(error, Failure):
            traceback.print_exception(error, file=sys.stdout)
        return {"start and end": Cell("FAILED", failed=True)}


def say(worker, name, error):
    print(f"  FAILED {worker.name} / {name}: {error}", flush=True)
    if not isinstance(error, Failure):
        traceback.print_exception(error, file=sys.stdout)


def print_table(table):
    limits = {}
    for cells in table.values():
        for cell in cells.values():
            if cell.limit:
                limits.setdefault(cell.limit, len(limits) + 1)
    names = [name for name in CASES if any(name in cells for cells in table.values())]
    rows = [["worker", *names]]
    for worker, cells in table.items():
        texts = [worker]
        for name in names:
            cell = cells.get(name)
            mark = f" [{limits[cell.limit]}]" if cell and cell.limit else ""
            texts.append(cell.text + mark if cell else "")
        rows.append(texts)
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    print()
    for row in rows:
        print(" | ".join(text.ljust(width) for text, width in zip(row, widths, strict=True)).rstrip())
    for limit, number in limits.items():
        print(f"[{number}] {limit}")
    print(flush=True)


def raise_record_size(kafka):
    entry = ConfigEntry("message.max.bytes", str(RECORD_BYTES_MAX), incremental_operation=AlterConfigOpType.SET)
    for broker in kafka.admin.list_topics(timeout=10).brokers:
        resource = ConfigResource(ResourceType.BROKER, str(broker), incremental_configs=[entry])
        kafka.admin.incremental_alter_configs([resource])[resource].result(20)


def main():
    settings = options(sys.argv[1:])
    # Ended from outside, the processes and the broker are still cleaned up.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    started = time.monotonic()
    with tempfile.TemporaryDirectory() as generated, contextlib.ExitStack() as cleaning:
        messages = generate_messages(generated)
        # One event loop for all: grpc.aio does not survive the end of its first.
        loop = cleaning.enter_context(asyncio.Runner())
        kafka = Kafka(settings.bootstrap)
        cleaning.callback(kafka.stop)
        raise_record_size(kafka)
        wanted = [name for name in CASES if not settings.case or name in settings.case]
        table = {
            worker.name: run_row(worker, wanted, settings, kafka, messages, loop) for worker in chosen(sys.argv[1:])
        }
        if any(worker.name == "nestjs" for worker in chosen(sys.argv[1:])) and not settings.case:
            table["nestjs, observables"] = run_observables(settings.antiphon, kafka)
    print_table(table)
    cells = [cell for row in table.values() for cell in row.values()]
    failed = sum(cell.failed for cell in cells)
    print(f"{time.monotonic() - started:.0f} s", flush=True)
    print(f"{len(cells) - failed} passed, {failed} failed", flush=True)
    return 1 if failed or not cells else 0


if __name__ == "__main__":
    sys.exit(main())
