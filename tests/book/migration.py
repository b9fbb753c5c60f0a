#!/usr/bin/env python3
"""What docs/migrating.md promises, on real Apache Kafka: a gateway on Spring's
ReplyingKafkaTemplate (bench/peers/spring) and Antiphon beside it, over the same
request topic to the same worker.

    tests/book/migration.py --antiphon target/release/antiphon

Each step prints a line; it ends with "N passed, N failed". Needs what
tests/e2e/run.py needs, with Java 17 and Maven; about a minute.
"""

import argparse
import contextlib
import os
import re
import runpy
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
PEER = ROOT / "bench" / "peers" / "spring"
WORKER = ROOT / "examples" / "workers" / "python" / "worker.py"
TOPIC, OLD_REPLIES = "echo.v1.EchoService", "old.replies"
CALLS, CALL_SECONDS, START_SECONDS_MAX = 200, 20, 90


class Failure(Exception):
    """A promise that does not hold."""


def check(held, words):
    if not held:
        raise Failure(words)


class Process:
    """A program beside this one, with its log."""

    def __init__(self, name, command, folder, **environment):
        self.name, self.log = name, folder / f"{name}.log"
        with self.log.open("w") as output:
            self.process = subprocess.Popen(
                list(map(str, command)), stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT,
                env={**os.environ, **environment}, start_new_session=True,
            )  # fmt: skip

    def address(self):
        """What its ready line says."""
        until = time.monotonic() + START_SECONDS_MAX
        while True:
            ready = re.search(r"ready grpc=(\S+)", self.log.read_text())
            if ready:
                return ready[1]
            if self.process.poll() is not None or time.monotonic() > until:
                raise Failure(f"{self.name} did not start:\n{self.log.read_text()[-3000:]}")
            time.sleep(0.05)

    def stop(self):
        if self.process.poll() is None:
            os.killpg(self.process.pid, signal.SIGTERM)
            try:
                self.process.wait(20)
            except subprocess.TimeoutExpired:
                os.killpg(self.process.pid, signal.SIGKILL)
                self.process.wait()


def call_both(addresses):
    """So many calls to each at once; every caller gets its own payload back."""
    import grpc

    calls = []
    with contextlib.ExitStack() as stack:
        for name, address in addresses.items():
            channel = stack.enter_context(grpc.insecure_channel(address))
            echo = channel.unary_unary("/echo.v1.EchoService/Echo")
            for number in range(CALLS):
                text = f"{name}-{number}".encode()
                message = b"\x0a" + bytes([len(text)]) + text
                calls.append((name, message, echo.future(message, timeout=CALL_SECONDS)))
        for name, message, future in calls:
            check(future.exception() is None, f"a call through {name} ended with {future.exception()}")
            check(future.result() == message, f"a call through {name} got another's reply")
    return len(calls)


def records(bootstrap, topic):
    """All records of a topic, from its beginning to its end now."""
    from confluent_kafka import OFFSET_BEGINNING, Consumer, TopicPartition

    reader = Consumer({"bootstrap.servers": bootstrap, "group.id": "migration", "enable.auto.commit": False, "enable.partition.eof": True})
    try:
        partitions = list(reader.list_topics(topic, timeout=10).topics[topic].partitions)
        reader.assign([TopicPartition(topic, partition, OFFSET_BEGINNING) for partition in partitions])
        found, open_partitions, until = [], len(partitions), time.monotonic() + 30
        while open_partitions:
            check(time.monotonic() < until, f"{topic} could not be read to its end")
            record = reader.poll(1)
            if record is None:
                continue
            if record.error():
                open_partitions -= 1
            else:
                found.append((record, dict(record.headers() or [])))
        return found
    finally:
        reader.close()


def replies_by_form(bootstrap, topic):
    """How many replies have correlation ids of 16 bytes, of 36 characters, and none."""
    counts = {16: 0, 36: 0, 0: 0}
    for _, headers in records(bootstrap, topic):
        counts[len(headers.get("kafka_correlationId") or b"")] += 1
    return counts


def metric(address, name):
    import urllib.request

    with urllib.request.urlopen(f"http://{address}/metrics", timeout=10) as answer:
        text = answer.read().decode()
    return sum(float(line.rsplit(" ", 1)[1]) for line in text.splitlines() if line.startswith(name))


def steps(arguments, bootstrap, folder):
    """Yields a line for each promise that held."""
    started = []

    def start(name, command, **environment):
        started.append(Process(name, command, folder, **environment))
        return started[-1]

    def gateway(name, **environment):
        command = [arguments.antiphon, "serve", "--proto", ROOT / "proto/echo/v1/echo.proto", "--listen", "127.0.0.1:0"]
        return start(name, [*command, "--bootstrap-servers", bootstrap, "--admin-listen", "127.0.0.1:0"], **environment)

    def old():
        jar = PEER / "target" / "spring-peer.jar"
        settings = [f"--spring.kafka.bootstrap-servers={bootstrap}", f"--peer.reply-topic={OLD_REPLIES}"]
        return start("spring", ["java", "-Xmx256m", "-XX:+UseSerialGC", "-jar", jar, *settings])

    try:
        start("worker", [sys.executable, WORKER, "--bootstrap", bootstrap, "--topics", TOPIC])
        spring, antiphon = old(), gateway("antiphon")
        both = {"spring": spring.address(), "antiphon": antiphon.address()}
        count = call_both(both)
        yield f"side by side: {count} calls through both at once, to one worker; each caller got its own reply"

        counts = replies_by_form(bootstrap, OLD_REPLIES)
        check(counts == {16: CALLS, 36: 0, 0: 0}, f"the old reply topic has {counts}")
        yield f"the old gateway's reply topic has its {CALLS} replies, and nothing of Antiphon's"

        old_request, new_request = None, None
        for _, headers in records(bootstrap, TOPIC):
            if headers["kafka_replyTopic"] == OLD_REPLIES.encode():
                old_request = headers
            else:
                new_request = headers
        missing = set(old_request) - set(new_request)
        check(not missing, f"requests through Antiphon lack {missing}")
        yield f"each header of the old gateway's requests is in Antiphon's: {', '.join(sorted(old_request))}"

        spring.stop()
        call_both({"antiphon": both["antiphon"]})
        yield "cut over: the old gateway is stopped, Antiphon answers"
        antiphon.stop()
        again = old()
        call_both({"spring": again.address()})
        yield "and back: Antiphon is stopped, the old gateway answers"

        binary = gateway("antiphon-binary", ANTIPHON_CONFIG=str(config(folder, "binary", '[method."echo.v1.EchoService/Echo"]\ncorrelation_form = "binary"\n')))
        call_both({"antiphon": binary.address()})
        forms = [len(headers["kafka_correlationId"]) for _, headers in records(bootstrap, TOPIC)]
        check(forms.count(16) == 3 * CALLS, f"{forms.count(16)} requests with ids of 16 bytes")
        binary.stop()
        yield "correlation_form BINARY: ids of 16 bytes, as the old gateway writes them"

        shared = gateway("antiphon-shared", ANTIPHON_REPLY_ROUTING="shared", ANTIPHON_REPLY_TOPIC=OLD_REPLIES, ANTIPHON_SHARDS="1")
        both = {"spring": again.address(), "antiphon": shared.address()}
        call_both(both)
        admin = re.search(r"admin=(\S+)", shared.log.read_text())[1]
        foreign = metric(admin, 'antiphon_replies_total{kind="foreign"}')
        check(foreign >= CALLS, f"{foreign:.0f} replies passed over as foreign")
        beats = replies_by_form(bootstrap, OLD_REPLIES)[0]
        complaints = len(re.findall(r"No correlationId", again.log.read_text()))
        yield f"one reply topic for both (reply.routing = shared): each got its own; {foreign:.0f} passed over, {beats} heartbeats, of which the old gateway logged {complaints} as errors"
    finally:
        for process in reversed(started):
            process.stop()


def config(folder, name, text):
    file = folder / f"{name}.toml"
    file.write_text(text)
    return file


def main():
    e2e = runpy.run_path(str(ROOT / "tests" / "e2e" / "run.py"))
    python = e2e["prepare_venv"]()
    if Path(sys.prefix).resolve() != e2e["VENV"].resolve():
        os.execve(python, [str(python), *sys.argv], {**os.environ, "PYTHONDONTWRITEBYTECODE": "1"})
    arguments = argparse.ArgumentParser(description="A ReplyingKafkaTemplate gateway and Antiphon, side by side.")
    arguments.add_argument("--antiphon", type=Path, default=ROOT / "target" / "release" / "antiphon")
    options = arguments.parse_args()
    options.antiphon = options.antiphon.resolve()
    subprocess.run(["mvn", "-B", "-q", "package"], cwd=PEER, check=True, stdin=subprocess.DEVNULL)
    kafka = [str(ROOT / "scripts" / "kafka")]
    passed, failed = 0, 0
    try:
        started = subprocess.run([*kafka, "start", "--brokers", "1"], check=True, text=True, stdout=subprocess.PIPE).stdout
        bootstrap = started.strip().splitlines()[-1].removeprefix("bootstrap.servers=")
        subprocess.run([*kafka, "topic", "create", TOPIC, "--partitions", "6"], check=True, stdout=subprocess.DEVNULL)
        with tempfile.TemporaryDirectory(prefix="antiphon-migration-") as folder:
            for line in steps(options, bootstrap, Path(folder)):
                passed += 1
                print(f"ok   {line}", flush=True)
    except Failure as failure:
        failed += 1
        print(f"FAIL {failure}", flush=True)
    finally:
        subprocess.run([*kafka, "stop"], check=False, stdout=subprocess.DEVNULL)
    print(f"{passed} passed, {failed} failed")
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
