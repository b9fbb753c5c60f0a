"""The processes of an end-to-end test: broker, workers, gateway, grpcurl.

All of them are started here, waited for with a deadline, and ended by their
handles when the test is over.
"""

import importlib
import json
import os
import re
import subprocess
import sys
import tempfile
import time
import urllib.request
from importlib import resources
from pathlib import Path

from confluent_kafka import ConsumerGroupTopicPartitions, KafkaError, KafkaException, TopicPartition
from confluent_kafka.admin import AdminClient, NewTopic, OffsetSpec
from grpc_tools import protoc

ROOT = Path(__file__).resolve().parents[2]
PROTO_DIR = ROOT / "proto"
PROTOS = ["payments/v1/payments.proto", "delivery/v1/delivery.proto", "echo/v1/echo.proto"]
TOPICS = ["payment_request", "delivery_radius_request", "echo.v1.EchoService"]
PARTITIONS = 6
READY_LINE = re.compile(
    r"^antiphon ready grpc=(?P<grpc>\S+) admin=(?P<admin>\S+) routes=(?P<routes>\d+)"
    r" reply_topic=(?P<reply_topic>\S+) ready_ms=(?P<ready_ms>\d+)$",
    re.MULTILINE,
)
EXIT_SECONDS_MAX = 20
NOT_YET = {
    KafkaError.NOT_LEADER_FOR_PARTITION,
    KafkaError.LEADER_NOT_AVAILABLE,
    KafkaError.UNKNOWN_TOPIC_OR_PART,
    KafkaError.COORDINATOR_NOT_AVAILABLE,
    KafkaError.COORDINATOR_LOAD_IN_PROGRESS,
    KafkaError.NOT_COORDINATOR,
}


class Failure(AssertionError):
    """What a test saw is not what has to be."""


def check(condition, words):
    if not condition:
        raise Failure(words)


def wait_until(ready, seconds, words, pause=0.05):
    """The first true answer of `ready`, or a Failure after `seconds`."""
    until = time.monotonic() + seconds
    while True:
        answer = ready()
        if answer:
            return answer
        check(time.monotonic() < until, f"not within {seconds} s: {words() if callable(words) else words}")
        time.sleep(pause)


def tail(path, lines=15):
    return "\n".join(path.read_text(errors="replace").splitlines()[-lines:])


def generate_messages(folder):
    """Python modules of the sample protos: payments and echo."""
    well_known = resources.files("grpc_tools") / "_proto"
    protos = ["antiphon/v1/options.proto", *PROTOS]
    if protoc.main(["protoc", f"-I{PROTO_DIR}", f"-I{well_known}", f"--python_out={folder}", *protos]) != 0:
        sys.exit("the sample protos do not compile")
    sys.path.insert(0, str(folder))
    return importlib.import_module("payments.v1.payments_pb2")


# ---- Kafka -------------------------------------------------------------------


class Kafka:
    """The cluster under test: named by the caller, or one broker of our own."""

    def __init__(self, bootstrap):
        self.started = False
        self.script = str(ROOT / "scripts" / "kafka")
        if bootstrap is None:
            running = subprocess.run([self.script, "status"], capture_output=True, check=False).returncode == 0
            out = subprocess.run([self.script, "start"], stdout=subprocess.PIPE, text=True, check=True).stdout
            bootstrap = out.splitlines()[-1].removeprefix("bootstrap.servers=")
            self.started = not running
        self.bootstrap = bootstrap
        self.admin = AdminClient({"bootstrap.servers": bootstrap})

    def create_topics(self):
        futures = self.admin.create_topics([NewTopic(name, PARTITIONS, -1) for name in TOPICS])
        for future in futures.values():
            try:
                future.result(20)
            except KafkaException as error:
                if error.args[0].code() != KafkaError.TOPIC_ALREADY_EXISTS:
                    raise
        wait_until(lambda: set(TOPICS) <= self.topics().keys(), 10, "the topics appear")
        for name in TOPICS:
            count = len(self.topics()[name].partitions)
            check(count == PARTITIONS, f"topic {name} has {count} partitions, the tests need {PARTITIONS}")

    def topics(self):
        return self.admin.list_topics(timeout=10).topics

    def create_group(self, group):
        """A group that begins where the topics end now: what earlier tests left
        behind is not its work."""
        places = [TopicPartition(topic, partition) for topic in TOPICS for partition in range(PARTITIONS)]

        def commit():
            latest = self.admin.list_offsets({place: OffsetSpec.latest() for place in places})
            ends = [TopicPartition(p.topic, p.partition, found.result(20).offset) for p, found in latest.items()]
            altered = self.admin.alter_consumer_group_offsets([ConsumerGroupTopicPartitions(group, ends)])
            for future in altered.values():
                future.result(20)

        def committed():
            try:
                commit()
            except KafkaException as error:
                # New topics have no leader yet, a new cluster no coordinator.
                if error.args[0].code() in NOT_YET:
                    return False
                raise
            return True

        wait_until(committed, 20, f"the group {group} is made", pause=0.2)

    def stop(self):
        self.admin = None  # It would complain of the broker's end.
        if self.started:
            subprocess.run([self.script, "stop"], check=True)


# ---- processes ---------------------------------------------------------------


class Process:
    """A child whose output goes to files in the test's folder."""

    def __init__(self, folder, name, command, cwd=None, environment=None):
        self.name = name
        self.stdout, self.stderr = folder / f"{name}.out", folder / f"{name}.err"
        self.started_at = time.monotonic()
        environment = {**os.environ, **(environment or {})}
        with self.stdout.open("wb") as out, self.stderr.open("wb") as err:
            self.child = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=out, stderr=err, cwd=cwd, env=environment
            )

    def alive(self):
        return self.child.poll() is None

    def signal(self, number):
        self.child.send_signal(number)

    def exit_code(self, seconds):
        try:
            return self.child.wait(seconds)
        except subprocess.TimeoutExpired:
            raise Failure(f"{self.name} still runs after {seconds} s\n{tail(self.stderr)}") from None

    def end(self):
        if self.alive():
            self.child.terminate()
            try:
                self.child.wait(EXIT_SECONDS_MAX)
            except subprocess.TimeoutExpired:
                self.child.kill()
                self.child.wait()


class Worker(Process):
    """The sample Python worker."""

    def __init__(self, folder, name, bootstrap, group, work_ms, topics=TOPICS):
        self.journal_path = folder / f"{name}.jsonl"
        command = [
            sys.executable, str(ROOT / "examples/workers/python/worker.py"),
            "--bootstrap", bootstrap, "--group", group, "--topics", ",".join(topics),
            "--log", str(self.journal_path), "--work-ms", str(work_ms),
        ]  # fmt: skip
        super().__init__(folder, name, command)

    def assigned(self):
        """Partitions of its latest assignment."""
        check(self.alive(), f"{self.name} ended\n{tail(self.stderr)}")
        lines = [line for line in self.stderr.read_text().splitlines() if " assigned " in line]
        return re.findall(r"\S+\[\d+\]", lines[-1]) if lines else []

    def journal(self):
        """Its handled requests, in the order in which it handled them."""
        return [json.loads(line) for line in self.journal_path.read_text().splitlines()]


class Gateway(Process):
    """`antiphon serve`. Only this class knows its flags and configuration."""

    def __init__(self, folder, binary, bootstrap, start_timeout="20s", name="gateway", grpc="", routes=""):
        """`grpc` are more lines of [grpc], `routes` are sections of services."""
        config = folder / f"{name}.toml"
        servers = ", ".join(json.dumps(server) for server in bootstrap.split(","))
        config.write_text(
            f"[kafka]\nbootstrap_servers = [{servers}]\n\n"
            f'[grpc]\nlisten = "127.0.0.1:0"\n{grpc}\n'
            '[admin]\nlisten = "127.0.0.1:0"\n\n'
            f'[reply]\nstart_timeout = "{start_timeout}"\n\n{routes}'
        )
        command = [str(binary), "serve", "--config", str(config), "--proto-path", str(PROTO_DIR)]
        for proto in PROTOS:
            command += ["--proto", str(PROTO_DIR / proto)]
        super().__init__(folder, name, command)
        self.grpc = self.admin = self.reply_topic = None

    def wait_ready(self):
        def ready():
            check(self.alive(), f"the gateway ended with {self.child.poll()}\n{tail(self.stderr)}")
            return self.ready_line()

        found = wait_until(ready, 30, lambda: f"the ready line\n{tail(self.stderr)}")
        self.grpc, self.admin, self.reply_topic = found["grpc"], found["admin"], found["reply_topic"]
        self.routes = int(found["routes"])

    def ready_line(self):
        return READY_LINE.search(self.stdout.read_text())

    def metric(self, name, label="", default=None):
        """The sum of a metric's samples on the admin port, or of those with a label."""
        with urllib.request.urlopen(f"http://{self.admin}/metrics", timeout=5) as answer:
            text = answer.read().decode()
        labels = rf"\{{.*{re.escape(label)}.*\}}" if label else r"(?:\{.*\})?"
        values = re.findall(rf"^{name}{labels} (\S+)", text, re.MULTILINE)
        check(values or default is not None, f"/metrics has no {name}")
        return sum(float(value) for value in values)


class Setup:
    """What a scenario is given: a folder, and children that end with it."""

    def __init__(self, options, kafka, payments):
        self.options, self.kafka, self.payments = options, kafka, payments
        # Names this scenario's keys and group, whatever the topics hold already.
        self.run = os.urandom(4).hex()
        self.folder = None
        self._children = []

    def __enter__(self):
        self.folder = Path(tempfile.mkdtemp(prefix="antiphon-e2e-"))
        return self

    def __exit__(self, kind, *_):
        for child in reversed(self._children):
            child.end()
        if kind is not None:
            print(f"  the processes' output is in {self.folder}", flush=True)
            return
        for path in self.folder.iterdir():
            path.unlink()
        self.folder.rmdir()

    def workers(self, count, work_ms=0):
        """Workers of one group, each holding partitions of every topic."""
        group = f"e2e-{self.run}"
        self.kafka.create_group(group)
        workers = [Worker(self.folder, f"worker-{i}", self.kafka.bootstrap, group, work_ms) for i in range(count)]
        self._children += workers
        total = len(TOPICS) * PARTITIONS

        def shared_out():
            held = [worker.assigned() for worker in workers]
            return all(held) and sum(map(len, held)) == total and len(set().union(*held)) == total

        wait_until(shared_out, 40, "the workers hold every partition")
        return workers

    def gateway(self, bootstrap=None, ready=True, **settings):
        gateway = Gateway(self.folder, self.options.antiphon, bootstrap or self.kafka.bootstrap, **settings)
        self._children.append(gateway)
        if ready:
            gateway.wait_ready()
        return gateway

    def grpcurl(self, *arguments):
        """Its exit code and everything it printed."""
        command = [os.environ["E2E_GRPCURL"], "-plaintext", "-max-time", "15", *arguments]
        ran = subprocess.run(
            command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=30, check=False
        )
        return ran.returncode, ran.stdout
