"""Where a scenario plays: a cluster, gateways, other processes, a folder for
what they say, and the table at the end. Everything started here is ended here."""

import argparse
import collections
import math
import os
import re
import shutil
import signal
import socket
import sys
import tempfile
import time
from pathlib import Path

import harness
from cluster import Cluster
from confluent_kafka import KafkaException
from harness import Failure, Process, check, tail, wait_until

ROOT = Path(__file__).resolve().parents[2]
PROGRAMS = Path(os.environ["SCENARIO_PROGRAMS"])
GROUP_SECONDS_MAX = 60


def arguments(words):
    """Those that every scenario has."""
    parser = argparse.ArgumentParser(description=words, formatter_class=argparse.RawDescriptionHelpFormatter)
    default = ROOT / "target" / "release" / "antiphon"
    parser.add_argument("--antiphon", type=Path, default=default, help="the gateway's binary (default: %(default)s)")
    parser.add_argument("--quick", action="store_true", help="small, for CI")
    return parser


def free_port():
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return one.getsockname()[1]


class Gateway(harness.Gateway):
    """`antiphon serve` with a scenario's own file."""

    def __init__(self, stage, name, grpc_port, admin_port):
        self.ports = grpc_port, admin_port
        command = [
            str(stage.options.antiphon), "serve", "--config", str(stage.home / "antiphon.toml"),
            "--bootstrap-servers", stage.cluster.bootstrap,
            "--listen", f"127.0.0.1:{grpc_port}", "--admin-listen", f"127.0.0.1:{admin_port}",
        ]  # fmt: skip
        Process.__init__(self, stage.folder, name, command)


class Stage:
    def __init__(self, options, home):
        self.options, self.home = options, home
        options.antiphon = options.antiphon.resolve()
        if not options.antiphon.is_file():
            sys.exit(f"there is no {options.antiphon}: cargo build --release, or name another by --antiphon")
        self.run = os.urandom(3).hex()
        self.began = time.monotonic()
        self.children = []
        self.cluster = self.folder = None

    def __enter__(self):
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
        self.folder = Path(tempfile.mkdtemp(prefix=f"antiphon-{self.home.name}-"))
        return self

    def __exit__(self, kind, error, _):
        for child in reversed(self.children):
            child.end()
        if self.cluster is not None:
            self.cluster.stop()
        if kind is None:
            shutil.rmtree(self.folder)
        else:
            print(f"what the processes said is in {self.folder}", flush=True)

    def say(self, words):
        print(f"[{time.monotonic() - self.began:5.1f} s] {words}", flush=True)

    def start_cluster(self, brokers, topics):
        self.say(f"Apache Kafka, {brokers} broker{'s' if brokers > 1 else ''}")
        self.cluster = Cluster(brokers)
        self.cluster.fresh_topics(topics)

    def add(self, child):
        self.children.append(child)
        return child

    def start(self, name, command, **environment):
        return self.add(Process(self.folder, name, [str(word) for word in command], environment=environment))

    def start_gateway(self, name, ports=None):
        gateway = self.add(Gateway(self, name, *(ports or (free_port(), free_port()))))
        gateway.wait_ready()
        return gateway

    def cpu(self):
        """Seconds so far: on the clock, of the machine whoever used them, and by
        kind of process, `worker` for `worker-1.2`."""
        brokers = re.findall(r"^broker \d+ running .*pid=(\d+)$", self.cluster.kafka("status"), re.MULTILINE)
        named = [("brokers", int(pid)) for pid in brokers]
        named += [(re.split(r"[-.]", child.name)[0], child.child.pid) for child in self.children if child.alive()]
        # user nice system idle iowait irq softirq
        machine = [int(word) for word in Path("/proc/stat").read_text().split(maxsplit=9)[1:8]]
        used = (sum(machine) - machine[3] - machine[4]) / os.sysconf("SC_CLK_TCK")
        found = collections.Counter({"clock": time.monotonic(), "machine": used})
        for name, pid in named:
            found[name] += cpu_seconds(pid)
        return found

    def wait_line(self, child, beginning, seconds=20):
        """What follows on the line that begins so."""

        def found():
            check(child.alive(), f"{child.name} ended with {child.child.poll()}\n{tail(child.stderr)}")
            lines = child.stdout.read_text().splitlines()
            return next((line.removeprefix(beginning) for line in lines if line.startswith(beginning)), None)

        return wait_until(found, seconds, lambda: f"{child.name} says {beginning!r}\n{tail(child.stderr)}")

    def wait_group(self, group, members, partitions):
        """All partitions are shared out, and no member is without."""

        def shared_out():
            try:
                found = self.cluster.admin.describe_consumer_groups([group])[group].result(10)
            except (KafkaException, TimeoutError):
                return False
            held = [len(member.assignment.topic_partitions) for member in found.members if member.assignment]
            return found.state.name == "STABLE" and len(held) == members and all(held) and sum(held) == partitions

        words = f"{members} members of {group} share {partitions} partitions"
        wait_until(shared_out, GROUP_SECONDS_MAX, words, pause=0.2)


def cpu_seconds(pid):
    """User and system time so far."""
    words = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    return (int(words[11]) + int(words[12])) / os.sysconf("SC_CLK_TCK")


def kill(child):
    """As a crash does it."""
    child.child.kill()
    child.child.wait()


def percentile(values, share):
    """The smallest value that so many do not exceed."""
    ordered = sorted(values)
    return ordered[max(math.ceil(len(ordered) * share), 1) - 1] if ordered else float("nan")


def p50_p99(seconds):
    return f"p50 {percentile(seconds, 0.5) * 1e3:.1f} ms, p99 {percentile(seconds, 0.99) * 1e3:.1f} ms"


def show(rows):
    width = max(len(name) for name, _ in rows)
    print("\n" + "\n".join(f"{name:{width}}  {value}" for name, value in rows) + "\n", flush=True)


def play(scenario, options, home):
    """Exit code 0, or 1 with what is wrong."""
    try:
        with Stage(options, home) as stage:
            broken = scenario(stage)
            if broken:
                raise Failure("; ".join(broken))
            stage.say("everything is as it must be")
    except Failure as failure:
        print(f"failed: {failure}", flush=True)
        return 1
    return 0
