"""Whether the gateway's memory stays what it is: a million calls, a third of
which time out because the worker ignores them. Run through run.py.

The resident set after the last call must be at most a tenth above that after
the first 100,000. Needs h2load (Debian: nghttp2-client), which is fast enough
to leave the cores to the others; one broker, started here unless one runs.
"""

import argparse
import contextlib
import os
import re
import shutil
import struct
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from audit import CORRELATION
from cluster import QUIET, Cluster, Gateway
from confluent_kafka import Consumer, Producer
from harness import Failure, check, wait_until

TOPIC = "echo.v1.EchoService"
PATH = "/echo.v1.EchoService/Echo"
REPLY_TOPIC, REPLY_PARTITION = "kafka_replyTopic", "kafka_replyPartition"
STEPS = 10
GROWTH_MAX = 1.10
CONNECTIONS, STREAMS = 8, 100
PAYLOAD_BYTES = 100


def work(bootstrap):
    """A worker that answers two of three requests with their own value, which
    is what an echo's reply looks like. Runs until it is killed."""
    consumer = Consumer({
        "bootstrap.servers": bootstrap, **QUIET, "group.id": f"memory-{os.getpid()}", "auto.offset.reset": "latest",
        "enable.auto.commit": False,
    })  # fmt: skip
    producer = Producer({"bootstrap.servers": bootstrap, **QUIET, "linger.ms": 1})
    consumer.subscribe([TOPIC], on_assign=lambda *_: print("assigned", flush=True))
    number = 0
    while True:
        for record in consumer.consume(1_000, timeout=0.05):
            number += 1
            if record.error() is not None or number % 3 == 0:
                continue
            headers = dict(record.headers())
            place = {}
            if len(headers.get(REPLY_PARTITION, b"")) == 4:
                place["partition"] = struct.unpack(">i", headers[REPLY_PARTITION])[0]
            producer.produce(
                headers[REPLY_TOPIC].decode(), record.value(), headers=[(CORRELATION, headers[CORRELATION])], **place
            )
            producer.poll(0)
        producer.poll(0)


def resident_kib(pid):
    return int(re.search(r"^VmRSS:\s+(\d+) kB", Path(f"/proc/{pid}/status").read_text(), re.MULTILINE)[1])


def send(gateway, message, calls, deadline):
    """So many calls, however they end; the gateway's counters tell how."""
    command = [
        "h2load", "-n", str(calls), "-c", str(CONNECTIONS), "-m", str(STREAMS), "-t", "1", "-d", str(message),
        "-H", "content-type: application/grpc", "-H", "te: trailers", "-H", f"grpc-timeout: {round(deadline * 1000)}m",
        f"http://{gateway.grpc}{PATH}",
    ]  # fmt: skip
    ran = subprocess.run(command, capture_output=True, text=True, check=False)
    check(ran.returncode == 0, f"h2load: {ran.stdout}{ran.stderr}")


def measure(options, cluster, folder):
    cluster.create(TOPIC)
    cluster.wait_whole()
    gateway = Gateway(folder, options.antiphon, cluster.bootstrap, deadline=options.deadline)
    worker = subprocess.Popen(
        [sys.executable, __file__, "--work", cluster.bootstrap], stdout=subprocess.PIPE, text=True
    )
    try:
        gateway.wait_ready()
        check(worker.stdout.readline() == "assigned\n", "the worker has no partitions")
        payload = b"\x0a" + bytes([PAYLOAD_BYTES]) + b"x" * PAYLOAD_BYTES
        message = folder / "message"
        message.write_bytes(struct.pack(">BI", 0, len(payload)) + payload)
        sizes = [resident_kib(gateway.child.pid)]
        print(f"| calls | resident | timed out | calls/s |\n|--:|--:|--:|--:|\n| 0 | {sizes[0] / 1024:.1f} MiB | | |")
        for step in range(1, STEPS + 1):
            began = time.monotonic()
            send(gateway, message, options.calls // STEPS, options.deadline)
            rate = options.calls / STEPS / (time.monotonic() - began)
            wait_until(lambda: gateway.metric("antiphon_calls_in_flight") == 0, 10, "all calls have ended")
            time.sleep(1)
            sizes.append(resident_kib(gateway.child.pid))
            ended = gateway.metric("antiphon_calls_total")
            late = gateway.metric("antiphon_calls_total", 'code="DEADLINE_EXCEEDED"')
            check(ended == step * (options.calls // STEPS), f"the gateway counts {ended:.0f} calls")
            print(f"| {ended:.0f} | {sizes[-1] / 1024:.1f} MiB | {late / ended:.0%} | {rate:.0f} |", flush=True)
            check(0.25 < late / ended < 0.6, f"{late / ended:.0%} timed out; a third should")
        growth = sizes[-1] / sizes[1]
        print(f"\nafter {options.calls} calls {growth:.2f} of what it was after {options.calls // STEPS}", flush=True)
        return growth <= GROWTH_MAX
    finally:
        gateway.end()
        worker.kill()
        worker.wait()


def main():
    if sys.argv[1:2] == ["--work"]:
        work(sys.argv[2])
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--antiphon", type=Path, required=True, help="the gateway's binary")
    parser.add_argument("--calls", type=int, default=1_000_000, help="in all (default: %(default)s)")
    parser.add_argument("--deadline", type=float, default=0.3, help="seconds a call may take (default: %(default)s)")
    options = parser.parse_args()
    options.antiphon = options.antiphon.resolve()
    if shutil.which("h2load") is None:
        sys.exit("h2load is missing: install it (Debian: apt-get install nghttp2-client)")
    with tempfile.TemporaryDirectory() as folder, contextlib.ExitStack() as cleaning:
        cluster = Cluster(brokers=1)
        cleaning.callback(cluster.stop)
        try:
            holds = measure(options, cluster, Path(folder))
        except Failure as failure:
            sys.exit(f"failed: {failure}")
    return 0 if holds else 1


if __name__ == "__main__":
    sys.exit(main())
