"""What a NestJS handler sends that returns an observable, as a stream.

Not in the table: no other framework has such handlers.
"""

import os
import shutil
import tempfile
import time
from pathlib import Path

import grpc
from confluent_kafka.admin import NewTopic
from harness import Gateway, Process, check, tail, wait_until
from workers import EXAMPLES

METHOD = "/echo.v1.EchoService/EchoMany"
START_SECONDS_MAX = 60
CALL_SECONDS_MAX = 30
# What the worker is asked for: the texts of the stream, its status, and how many replies are counted.
CASES = {
    "now 3": (["0", "1", "2"], grpc.StatusCode.OK, "3"),
    "slow 5": (["0", "1", "2", "3", "4"], grpc.StatusCode.OK, "5"),
    "now 500": ([str(number) for number in range(500)], grpc.StatusCode.OK, "500"),
    "hello": (["hello"], grpc.StatusCode.OK, "1"),
    "none": ([], grpc.StatusCode.OK, "0"),
    "fail 2": (["0", "1"], grpc.StatusCode.FAILED_PRECONDITION, "3"),
    "slowfail 2": (["0", "1"], grpc.StatusCode.FAILED_PRECONDITION, "3"),
}


def run(antiphon, kafka, cell):
    """Cells by case; `cell` makes one of whether it has failed."""
    run = os.urandom(4).hex()
    topic = f"interop-observables-{run}"
    folder = Path(tempfile.mkdtemp(prefix="antiphon-interop-"))
    children = []
    try:
        kafka.admin.create_topics([NewTopic(topic, 1, -1)])[topic].result(20)
        wait_until(lambda: topic in kafka.topics(), 10, "the topic appears")
        place = {"KAFKA_BOOTSTRAP": kafka.bootstrap, "KAFKA_TOPIC": topic, "KAFKA_GROUP": topic, "NO_COLOR": "1"}
        command = ["node", str(Path(__file__).with_suffix(".cjs")), str(EXAMPLES / "nestjs")]
        worker = Process(folder, "observables", command, environment=place)
        children.append(worker)
        routes = f'[service."echo.v1.EchoService"]\nrequest_topic = "{topic}"\ndialect = "nestjs"\nformat = "json"\n'
        gateway = Gateway(folder, antiphon, kafka.bootstrap, routes=routes)
        children.append(gateway)
        gateway.wait_ready()

        def listening():
            check(worker.alive(), f"the worker ended\n{tail(worker.stderr)}")
            return "listening" in worker.stdout.read_text()

        wait_until(listening, START_SECONDS_MAX, lambda: f"the worker listens\n{tail(worker.stdout)}")
        cells = {}
        with grpc.insecure_channel(gateway.grpc) as channel:
            for asked, wanted in CASES.items():
                started = time.monotonic()
                seen = call(channel, asked)
                failed = seen != wanted
                said = f"FAILED: {seen} instead of {wanted}" if failed else "ok"
                print(f"  observable, {asked}: {said} [{time.monotonic() - started:.1f} s]", flush=True)
                cells[asked] = cell("FAILED" if failed else "ok", failed=failed)
        lost = gateway.metric("antiphon_replies_total", 'kind="uncorrelated"', 0)
        check(lost == 0, f"{lost} replies named no call")
        return cells
    finally:
        for child in reversed(children):
            child.end()
        shutil.rmtree(folder)


def call(channel, text):
    """The texts of a stream, its status, and what is counted."""
    stub = channel.unary_stream(METHOD)
    request = b"\x0a" + bytes([len(text)]) + text.encode()
    stream, texts = stub(request, timeout=CALL_SECONDS_MAX), []
    try:
        texts.extend(payload(message) for message in stream)
    except grpc.RpcError:
        pass
    return texts, stream.code(), dict(stream.trailing_metadata()).get("antiphon-replies")


def payload(message):
    """Of a message that has one field of less than 128 bytes, or nothing."""
    check(not message or (message[0] == 0x0A and message[1] == len(message) - 2), f"an echo is {message}")
    return message[2:].decode()
