"""Three brokers of Apache Kafka, what can be done to them, and the gateways in
front of them."""

import bisect
import re
import subprocess
import threading
import time
import urllib.error
import urllib.request
from pathlib import Path

from confluent_kafka import KafkaError, KafkaException
from confluent_kafka.admin import AdminClient, NewPartitions, NewTopic
from harness import PARTITIONS, PROTO_DIR, PROTOS, READY_LINE, ROOT, TOPICS, Process, check, tail, wait_until
from proxy import Proxy

BROKERS = 3
# Where scripts/kafka --proxied puts the ports of a broker.
PROXIED_OFFSET, PROXY_OFFSET = 20, 30
REPAIR_SECONDS_MAX = 90
READY_POLL_SECONDS = 0.025
STARVED_POLL_SECONDS = 0.02
QUIET = {"log_level": 0, "allow.auto.create.topics": False}


class Cluster:
    """Started here unless it runs already."""

    def __init__(self, brokers=BROKERS):
        self.script = str(ROOT / "scripts" / "kafka")
        self.brokers = brokers
        running = subprocess.run([self.script, "status"], capture_output=True, check=False).returncode == 0
        proxied = ["--proxied"] if brokers == BROKERS else []
        started = self.kafka("start", "--brokers", str(brokers), *proxied)
        self.bootstrap = started.splitlines()[-1].removeprefix("bootstrap.servers=")
        self.started = not running
        self.ports = {n: int(server.rsplit(":", 1)[1]) for n, server in enumerate(self.bootstrap.split(","), 1)}
        self.proxy = None
        self.proxied_bootstrap = ",".join(f"127.0.0.1:{port + PROXY_OFFSET}" for port in self.ports.values())
        if proxied:
            self.proxy = Proxy({n: (port + PROXY_OFFSET, port + PROXIED_OFFSET) for n, port in self.ports.items()})
            self.proxy.start()
        self.admin = AdminClient({"bootstrap.servers": self.bootstrap, **QUIET})

    def kafka(self, *arguments):
        ran = subprocess.run([self.script, *arguments], capture_output=True, text=True, check=False)
        check(ran.returncode == 0, f"scripts/kafka {' '.join(arguments)}: {ran.stdout}{ran.stderr}")
        return ran.stdout

    def stop(self):
        self.admin = None
        if self.proxy is not None:
            self.proxy.stop()
        if self.started:
            self.kafka("stop")

    # ---- topics ----

    def topics(self):
        return self.admin.list_topics(timeout=10).topics

    def create(self, name, partitions=PARTITIONS):
        settle(self.admin.create_topics([NewTopic(name, partitions, -1)]), KafkaError.TOPIC_ALREADY_EXISTS)

    def delete(self, name):
        settle(self.admin.delete_topics([name]), KafkaError.UNKNOWN_TOPIC_OR_PART)

    def add_partitions(self, name, partitions):
        settle(self.admin.create_partitions([NewPartitions(name, partitions)]))

    def fresh_topics(self, topics=tuple(TOPICS)):
        """Topics without a past; nothing left of earlier gateways."""
        past = {*topics, *(f"{name}.DLQ" for name in topics)}
        old = [name for name in self.topics() if name in past or name.startswith("antiphon.reply.")]
        for name in old:
            self.delete(name)
        wait_until(lambda: not set(old) & self.topics().keys(), 20, "the old topics are gone")
        for name in topics:
            self.create(name)
        wait_until(lambda: set(topics) <= self.topics().keys(), 20, "the new topics are there")
        self.wait_whole()

    def partitions(self, topic):
        """By number. Brokers hear of a new topic one after the other."""
        known = wait_until(lambda: self.topics().get(topic), 20, f"topic {topic} is there")
        return known.partitions

    def leader(self, topic, partition):
        return self.partitions(topic)[partition].leader

    def controller(self):
        """The active one; metadata would name any broker."""
        words = self.kafka("tool", "metadata-quorum", "--bootstrap-server", self.bootstrap, "describe", "--status")
        return int(re.search(r"^LeaderId:\s+(\d+)", words, re.MULTILINE)[1])

    # ---- repair ----

    def repair(self):
        if self.proxy is not None:
            self.proxy.heal()
        self.kafka("revive")
        self.wait_whole()

    def wait_whole(self):
        """Every partition has its leader, and all replicas are in sync."""
        wait_until(self._is_whole, REPAIR_SECONDS_MAX, "all replicas are in sync", pause=0.2)

    def _is_whole(self):
        try:
            metadata = self.admin.list_topics(timeout=5)
        except KafkaException:
            return False
        partitions = [p for topic in metadata.topics.values() for p in topic.partitions.values()]
        return len(metadata.brokers) == self.brokers and all(
            p.leader >= 0 and len(p.isrs) == len(p.replicas) for p in partitions
        )


def settle(futures, *accepted):
    for future in futures.values():
        try:
            future.result(30)
        except KafkaException as error:
            if error.args[0].code() not in accepted:
                raise


class Gateway(Process):
    """`antiphon serve` whose deadlines are its own: every call ends after
    `deadline`, however patient the caller is. `limits` are more sections,
    `services` more settings of a service, `grpc` more lines of [grpc]."""

    def __init__(self, folder, binary, bootstrap, deadline, name="gateway", port=0, limits="", services=None, grpc=""):
        config = folder / f"{name}.toml"
        settings = {"payments.v1.PaymentService": "", "delivery.v1.DeliveryRadiusService": "", "echo.v1.EchoService": ""}
        settings |= services or {}
        duration = f"{round(deadline * 1000)}ms"
        timeouts = "\n".join(
            f'[service."{service}"]\ntimeout = "{duration}"\ntimeout_max = "{duration}"\n{more}'
            for service, more in settings.items()
        )
        servers = ", ".join(f'"{server}"' for server in bootstrap.split(","))
        config.write_text(
            f"[kafka]\nbootstrap_servers = [{servers}]\n\n"
            f'[grpc]\nlisten = "127.0.0.1:{port}"\n{grpc}\n[admin]\nlisten = "127.0.0.1:0"\n\n{limits}{timeouts}'
        )
        command = [str(binary), "serve", "--config", str(config), "--proto-path", str(PROTO_DIR)]
        for proto in PROTOS:
            command += ["--proto", str(PROTO_DIR / proto)]
        super().__init__(folder, name, command)
        self.readiness = None
        self.starved = Starved(self.child)

    def wait_ready(self):
        def ready():
            check(self.alive(), f"the gateway ended with {self.child.poll()}\n{tail(self.stderr)}")
            return READY_LINE.search(self.stdout.read_text())

        found = wait_until(ready, 40, lambda: f"the ready line\n{tail(self.stderr)}")
        self.grpc, self.admin, self.reply_topic = found["grpc"], found["admin"], found["reply_topic"]
        self.readiness = Readiness(self.admin)
        return self

    def metric(self, name, labels=""):
        """The sum of a metric's samples that have these labels."""
        values = re.findall(rf"^{name}(?:\{{.*{labels}.*\}})? (\S+)", self.scrape(), re.MULTILINE)
        return sum(float(value) for value in values)

    def scrape(self):
        with urllib.request.urlopen(f"http://{self.admin}/metrics", timeout=5) as answer:
            return answer.read().decode()

    def end(self):
        if self.readiness is not None:
            self.readiness.stop()
        self.starved.stop()
        super().end()


class Readiness:
    """Polls /ready and remembers when it was not 200."""

    def __init__(self, admin):
        self.url = f"http://{admin}/ready"
        self.polls = []  # (moment, ready)
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self):
        while not self._stopping.wait(READY_POLL_SECONDS):
            moment = time.monotonic()
            try:
                with urllib.request.urlopen(self.url, timeout=5) as answer:
                    self.polls.append((moment, answer.status == 200))
            except (urllib.error.URLError, OSError):
                self.polls.append((moment, False))

    def ready(self):
        return bool(self.polls) and self.polls[-1][1]

    def seconds_until_ready(self, since):
        """From then to the last change to ready; None: it is not."""
        if not self.ready():
            return None
        unready = [moment for moment, ready in self.polls if moment >= since and not ready]
        if not unready:
            return 0.0
        return next(moment for moment, ready in self.polls if ready and moment > unready[-1]) - since

    def stop(self):
        self._stopping.set()
        self._thread.join(6)


class Starved:
    """For how long a process was ready to run and had no processor: the kernel
    counts it for each thread (the second number of /proc/PID/schedstat)."""

    def __init__(self, child):
        self.tasks = Path(f"/proc/{child.pid}/task")
        self.moments, self.waited = [], []  # Unix seconds; {thread: seconds}
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self):
        while not self._stopping.wait(STARVED_POLL_SECONDS):
            waited = {}
            moment = time.time()
            for task in self.tasks.glob("*/schedstat"):
                try:
                    waited[task.parent.name] = int(task.read_text().split()[1]) / 1e9
                except (OSError, IndexError):  # The thread has just ended.
                    continue
            if waited:
                self.moments.append(moment)
                self.waited.append(waited)

    def seconds(self, began, ended):
        """Of the thread that waited most between two moments."""
        if not self.moments:
            return 0.0
        before = self.waited[max(bisect.bisect_right(self.moments, began) - 1, 0)]
        after = self.waited[min(bisect.bisect_left(self.moments, ended), len(self.moments) - 1)]
        return max((waited - before.get(thread, 0.0) for thread, waited in after.items()), default=0.0)

    def stop(self):
        self._stopping.set()
        self._thread.join(5)
