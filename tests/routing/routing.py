"""One table: how replies find their instance, modes against instances.

For each mode and number of instances: all are started at once; each answers
calls whose replies are compared with what was sent; each is loaded with
`antiphon bench`; then half of them are killed with SIGKILL, and what they leave
behind must go by itself while the others go on answering.
"""

import argparse
import concurrent.futures
import os
import re
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from pathlib import Path

import grpc
from harness import METHOD, PARTITIONS, ROOT, TOPIC, Broker, Process, binary, measure, say

TICKS = os.sysconf("SC_CLK_TCK")
START_SECONDS_MAX = 120
GONE_SECONDS_EXTRA = 60
POLL_SECONDS = 0.2
CALL_SECONDS_MAX = 20
# Starts and loads at a time: more than this many measure only the machine.
AT_ONCE = 8
MODES = ["instance-topic", "partition", "shared"]
# Limits by which what is dead is given up.
FULL = {"HEARTBEAT_INTERVAL": "3s", "ORPHAN_AFTER": "30s", "LEASE_TTL": "15s", "START_TIMEOUT": "60s"}
QUICK = {"HEARTBEAT_INTERVAL": "1s", "ORPHAN_AFTER": "5s", "LEASE_TTL": "5s", "START_TIMEOUT": "60s"}


def arguments():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--antiphon", type=Path, default=ROOT / "target/release/antiphon")
    parser.add_argument("--modes", default=",".join(MODES))
    parser.add_argument("--instances")
    parser.add_argument("--calls", type=int, help="calls a cell under load, of all instances together")
    parser.add_argument("--quick", action="store_true", help="1, 2 and 4 instances, fewer calls, shorter limits")
    given = parser.parse_args()
    given.antiphon = binary(given.antiphon)
    given.modes = given.modes.split(",")
    given.instances = [int(n) for n in (given.instances or ("1,2,4" if given.quick else "1,2,8,32")).split(",")]
    given.calls = given.calls or (4_000 if given.quick else 40_000)
    given.checked = 200 if given.quick else 2_000
    given.limits = QUICK if given.quick else FULL
    unknown = set(given.modes) - set(MODES)
    if unknown:
        sys.exit(f"routing: no such mode: {', '.join(sorted(unknown))}; there are {', '.join(MODES)}")
    return given


class Failed(Exception):
    """A cell that did not hold."""


class Instance(Process):
    """A gateway, and what can be learnt of it."""

    def metrics(self):
        with urllib.request.urlopen(f"http://{self.word('admin')}/metrics", timeout=10) as page:
            return page.read().decode()

    def counter(self, name, **labels):
        label = ",".join(f'{key}="{value}"' for key, value in labels.items())
        pattern = rf"^antiphon_{name}{re.escape('{' + label + '}') if label else ''} (\d+)"
        found = re.search(pattern, self.metrics(), re.M)
        return int(found[1]) if found else 0

    def replies(self):
        found = re.findall(r'^antiphon_replies_total\{kind="([^"]+)"\} (\d+)', self.metrics(), re.M)
        return {kind: int(number) for kind, number in found}

    def cpu_seconds(self):
        fields = Path(f"/proc/{self.pid}/stat").read_text().rsplit(")", 1)[1].split()
        return (int(fields[11]) + int(fields[12])) / TICKS

    def kill(self):
        self.process.send_signal(signal.SIGKILL)
        self.process.wait()


class Cell:
    """One mode with so many instances."""

    def __init__(self, given, broker, mode, count, log):
        self.given, self.broker, self.mode, self.count, self.log = given, broker, mode, count, log
        self.prefix = f"routing.{mode}.{count}.{int(time.time())}"
        self.instances = []
        self.row = {"mode": mode, "instances": count}

    def command(self):
        settings = {
            "SHARDS": 1, "ADMIN_LISTEN": "127.0.0.1:0", "REPLY_ROUTING": self.mode, "LOG_FILTER": "warn",
            **{f"REPLY_{name}": value for name, value in self.given.limits.items()},
        }  # fmt: skip
        if self.mode == "instance-topic":
            settings["REPLY_TOPIC_PREFIX"] = self.prefix
        else:
            settings["REPLY_TOPIC"] = f"{self.prefix}.all"
            settings["REPLY_PARTITIONS"] = self.count
        command = ["env", *(f"ANTIPHON_{name}={value}" for name, value in settings.items())]
        command += [str(self.given.antiphon), "serve", "--proto", "proto/echo/v1/echo.proto"]
        return [*command, "--bootstrap-servers", self.broker.bootstrap, "--listen", "127.0.0.1:0"]

    def start(self, count):
        with concurrent.futures.ThreadPoolExecutor(AT_ONCE) as pool:
            starts = [pool.submit(Instance, "gateway", self.command(), self.log) for _ in range(count)]
            started = []
            for start in starts:
                try:
                    started.append(start.result(START_SECONDS_MAX))
                except SystemExit as ended:
                    say(str(ended))
            self.instances += started
        if len(started) < count:
            raise Failed(f"{count - len(started)} of {count} instances did not start")
        return started

    def run(self):
        started = self.start(self.count)
        self.row["ready_ms"] = [float(instance.word("ready_ms")) for instance in started]
        topics = self.topics()
        self.row["topics"], self.row["partitions"] = len(topics), sum(topics.values())
        expected = self.count if self.mode == "instance-topic" else 1
        if (len(topics), sum(topics.values())) != (expected, self.count):
            raise Failed(f"there are {topics}; expected {expected} topics with {self.count} partitions")
        self.row["checked"] = self.check_calls(started)
        self.load(started)
        self.count_replies(started)
        if self.count > 1:
            self.kill_half()
        self.end()

    def topics(self):
        """Reply topics of this cell, with their partitions."""
        described = self.broker.tool("tool", "topics", "--describe")
        found = re.findall(r"Topic: (\S+)\s.*PartitionCount: (\d+)", described)
        return {name: int(partitions) for name, partitions in found if name.startswith(self.prefix)}

    def check_calls(self, instances):
        """Calls with a message each of their own; every instance at once."""
        each = max(20, self.given.checked // len(instances))
        wrong = []

        def caller(number, instance):
            with grpc.insecure_channel(instance.word("grpc")) as channel:
                call = channel.unary_unary(f"/{METHOD}")
                for batch in range(0, each, 20):
                    sent = [f"{self.prefix} {number} {call_number}".encode() for call_number in range(batch, batch + 20)]
                    waiting = [call.future(bytes([10, len(one)]) + one, timeout=CALL_SECONDS_MAX) for one in sent]
                    for one, answer in zip(sent, waiting, strict=True):
                        # The reply has the payload as its first field, and perhaps more.
                        try:
                            got = answer.result()
                        except grpc.RpcError as error:
                            wrong.append(f"{one}: {error.code()} {error.details()}")
                            continue
                        if not got.startswith(bytes([10, len(one)]) + one):
                            wrong.append(f"{one}: got {got}")

        threads = [threading.Thread(target=caller, args=pair) for pair in enumerate(instances)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        if wrong:
            raise Failed(f"{len(wrong)} calls did not get their own reply, the first {wrong[0]}")
        return -(-each // 20) * 20 * len(instances)

    def load(self, instances):
        calls = max(100, self.given.calls // len(instances))
        before = sum(instance.cpu_seconds() for instance in instances)

        def bench(instance):
            command = [str(self.given.antiphon), "bench", instance.word("grpc"), METHOD, "--data", "{}"]
            command += ["--calls", str(calls), "--in-flight", "16", "--timeout", f"{CALL_SECONDS_MAX}s"]
            return measure(command, 600)

        with concurrent.futures.ThreadPoolExecutor(AT_ONCE) as pool:
            runs = list(pool.map(bench, instances))
        # What others have read for nothing is part of the price.
        self.settle(instances)
        cpu = sum(instance.cpu_seconds() for instance in instances) - before
        made = sum(run["calls"] for run in runs)
        failed = made - sum(run["ok"] for run in runs)
        self.row["calls"], self.row["cpu_us"] = made, cpu / made * 1e6
        if failed:
            raise Failed(f"{failed} of {made} calls failed: {[run['errors'] for run in runs if run['errors']]}")

    def settle(self, instances):
        """Until the instances have read what was written."""
        last, until = None, time.monotonic() + 60
        while time.monotonic() < until:
            now = [sum(n for kind, n in one.replies().items() if kind in NEEDED | WASTED) for one in instances]
            if now == last:
                return
            last = now
            time.sleep(0.5)
        raise Failed("the instances go on reading replies though no calls are made")

    def count_replies(self, instances):
        replies = [instance.replies() for instance in instances]
        needed = sum(number for one in replies for kind, number in one.items() if kind in NEEDED)
        wasted = sum(number for one in replies for kind, number in one.items() if kind in WASTED)
        self.row["read_per_needed"] = (needed + wasted) / needed
        # What came to an instance that did not wait for it. Where all read all,
        # that is the mode itself, and only what nobody took would be wrong.
        answered = self.row["calls"] + self.row["checked"]
        self.row["wrong_instance"] = wasted if self.mode != "shared" else answered - needed
        if needed != answered:
            raise Failed(f"{answered} calls were answered, with {needed} replies")
        expected = self.count if self.mode == "shared" else 1
        if abs(self.row["read_per_needed"] - expected) > 1e-9:
            raise Failed(f"{self.row['read_per_needed']} replies read for each needed; expected {expected}")

    def kill_half(self):
        dead, living = self.instances[: self.count // 2], self.instances[self.count // 2 :]
        for instance in dead:
            instance.kill()
        killed = time.monotonic()
        if self.mode == "instance-topic":
            self.row["orphans"] = len(dead)
            self.until_gone(living)
        elif self.mode == "partition":
            # Their partitions are free for others once their leases have run out.
            self.row["orphans"] = len(dead)
            living = living + self.start(len(dead))
        else:
            self.row["orphans"] = 0
        self.row["gone_s"] = time.monotonic() - killed
        self.row["checked"] += self.check_calls(living)
        self.instances = living

    def until_gone(self, living):
        limit = int(self.given.limits["ORPHAN_AFTER"].removesuffix("s"))
        until = time.monotonic() + limit * 1.5 + GONE_SECONDS_EXTRA
        expected = {instance.word("reply_topic") for instance in living}
        # A look at the topics takes a JVM; the janitors say when it is worth it.
        while time.monotonic() < until:
            if sum(instance.counter("orphans_removed_total") for instance in living) >= self.count // 2:
                gone = time.monotonic()
                found = set(self.topics())
                if found == expected:
                    return gone
                if expected - found:
                    raise Failed(f"topics of living instances are gone: {expected - found}")
            time.sleep(POLL_SECONDS)
        raise Failed(f"orphans are left: {set(self.topics()) - expected}")

    def end(self):
        for instance in self.instances:
            instance.stop()
            if instance.process.returncode:
                raise Failed(f"an instance ended with {instance.process.returncode}")
        self.instances = []
        left = set(self.topics())
        expected = set() if self.mode == "instance-topic" else {f"{self.prefix}.all"}
        if left != expected:
            raise Failed(f"after a clean stop there are {left}; expected {expected}")
        for topic in left:
            self.broker.tool("topic", "delete", topic)

    def clean(self):
        for instance in self.instances:
            instance.kill()


# Replies that a call has got, and those that were read for nothing.
NEEDED = {"delivered"}
WASTED = {"foreign", "late", "duplicate", "uncorrelated", "request", "undecodable"}

COLUMNS = [
    ("mode", lambda row: row["mode"]),
    ("instances", lambda row: str(row["instances"])),
    ("calls", lambda row: f"{row['calls'] + row['checked']:,}"),
    ("wrong instance", lambda row: str(row["wrong_instance"])),
    ("replies read per reply needed", lambda row: f"{row['read_per_needed']:.1f}"),
    ("gateway CPU µs per call", lambda row: f"{row['cpu_us']:.0f}"),
    ("start to READY ms, median (max)", lambda row: f"{statistics.median(row['ready_ms']):.0f} ({max(row['ready_ms']):.0f})"),
    ("reply topics", lambda row: str(row["topics"])),
    ("reply partitions", lambda row: str(row["partitions"])),
    ("orphans after kill -9 of half", lambda row: str(row.get("orphans", "-"))),
    ("gone after s", lambda row: f"{row['gone_s']:.1f}" if row.get("orphans") else "-"),
]  # fmt: skip


def table(rows):
    lines = ["| " + " | ".join(name for name, _ in COLUMNS) + " |", "|" + "---|" * len(COLUMNS)]
    for row in rows:
        cells = []
        for _, cell in COLUMNS:
            try:
                cells.append(cell(row))
            except KeyError:
                cells.append("?")
        failure = f" **{row['failure']}**" if "failure" in row else ""
        lines.append("| " + " | ".join(cells) + f" |{failure}")
    return "\n".join(lines)


def main():
    given = arguments()
    rows = []
    with Broker() as broker, tempfile.TemporaryDirectory() as folder, open(Path(folder) / "log", "w") as log:
        command = [str(given.antiphon), "bench", "worker", "--bootstrap-servers", broker.bootstrap]
        worker = Process("worker", [*command, "--topic", TOPIC, "--partitions", str(PARTITIONS)], log)
        try:
            for mode in given.modes:
                for count in given.instances:
                    cell = Cell(given, broker, mode, count, log)
                    rows.append(cell.row)
                    began = time.monotonic()
                    try:
                        cell.run()
                    except (Failed, SystemExit, OSError, subprocess.SubprocessError) as failure:
                        cell.row["failure"] = str(failure)
                        say(Path(log.name).read_text()[-3000:])
                    finally:
                        cell.clean()
                    verdict = cell.row.get("failure", "ok")
                    say(f"{mode} with {count}: {verdict} ({time.monotonic() - began:.0f} s)")
        finally:
            worker.stop()
    print(table(rows))
    failed = [row for row in rows if "failure" in row]
    if failed:
        sys.exit(f"{len(failed)} of {len(rows)} cells failed")


if __name__ == "__main__":
    main()
