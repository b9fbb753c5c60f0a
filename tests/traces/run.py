#!/usr/bin/env python3
"""Traces and log against a real OpenTelemetry Collector.

    python3 tests/traces/run.py --antiphon target/release/antiphon \
        --broker target/release/examples/dev_broker [--keep]

Builds the collector of tests/traces/collector (Go), starts the embedded broker,
a worker, the collector and a gateway, and then asks the collector's file and
both records (antiphon why):

- a call whose caller records has three spans of the caller's trace, each below
  the one that it should be, with names, kinds and attributes by the conventions;
  the request carries the span that sent it, and the reply's leads back to it;
- a call whose caller does not record has none, and its context goes on as it is;
- of calls that begin here a share is recorded, and those that are not carry nothing;
- failed calls say so; no secret is in a span or in the access log;
- without a collector calls go on and what is dropped is counted; once it is
  back, spans arrive; a process that ends sends what it has;
- the log's filter changes while the gateway runs, and comes back.

Needs Go, and nothing of Python but itself.
"""

import argparse
import importlib.util
import json
import os
import re
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
WAIT_SECONDS_MAX = 60
READY_LINE = r"antiphon ready grpc=(\S+) admin=(\S+)"
ECHO, PAY = "echo.v1.EchoService/Echo", "payments.v1.PaymentService/Pay"
TOPIC = "echo.v1.EchoService"
SERVER, PRODUCER, CONSUMER = 2, 4, 5
TRACE, SPAN = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
SECRET = "s3cret-token"
RATIO, CALLS = 0.1, 4_000
GATEWAY = """\
shards = 2

[kafka]
bootstrap_servers = ["{broker}"]

[grpc]
listen = "127.0.0.1:0"
metadata_forward = ["x-tenant"]

[admin]
listen = "127.0.0.1:0"

[reply]
heartbeat_interval = "30s"

[access_log]
file = "{folder}/access.log"

[traces]
ratio = {ratio}
headers_file = "{folder}/headers"

[proto]
files = ["{root}/proto/echo/v1/echo.proto", "{root}/proto/payments/v1/payments.proto"]
"""
COLLECTOR = """\
receivers:
  otlp:
    protocols:
      http:
        endpoint: {address}
exporters:
  lines:
    path: {folder}/spans.json
service:
  telemetry:
    metrics:
      level: none
  pipelines:
    traces:
      receivers: [otlp]
      exporters: [lines]
"""


def fail(words):
    print(f"FAILED: {words}", file=sys.stderr)
    sys.exit(1)


def check(condition, words):
    if not condition:
        fail(words)


def await_(what, look, seconds=WAIT_SECONDS_MAX):
    until = time.monotonic() + seconds
    while True:
        if found := look():
            return found
        if time.monotonic() > until:
            fail(f"not within {seconds} s: {what() if callable(what) else what}")
        time.sleep(0.05)


class Crew:
    """The processes, and what they write."""

    def __init__(self, folder):
        self.folder, self.processes = folder, []

    def start(self, name, *command, **environment):
        log = (self.folder / f"{name}.log").open("a")
        process = subprocess.Popen(
            [str(part) for part in command], stdin=subprocess.PIPE, stdout=log, stderr=subprocess.STDOUT,
            env={**os.environ, **environment},
        )
        self.processes.append(process)
        return process

    def said(self, name, pattern):
        text = lambda: (self.folder / f"{name}.log").read_text(errors="replace")
        return await_(lambda: f"{name} says {pattern!r}: {text()}", lambda: re.search(pattern, text()))

    def end(self):
        for process in reversed(self.processes):
            if process.poll() is None:
                process.terminate()
        for process in self.processes:
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


class Stage:
    """What the checks look at."""

    def __init__(self, options, folder, crew):
        self.options, self.folder, self.crew = options, folder, crew
        self.grpc = self.admin = self.broker = None
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.address = f"127.0.0.1:{free.getsockname()[1]}"

    def start_collector(self):
        config = self.folder / "collector.yaml"
        config.write_text(COLLECTOR.format(address=self.address, folder=self.folder))
        collector = self.crew.start("collector", self.options.collector, "--config", config)

        def listening():
            check(collector.poll() is None, (self.folder / "collector.log").read_text())
            host, port = self.address.split(":")
            with socket.socket() as probe:
                return probe.connect_ex((host, int(port))) == 0

        await_("the collector listens", listening)
        return collector

    def spans(self, trace=None):
        """All spans so far, flat, with their resource."""
        found = []
        file = self.folder / "spans.json"
        for line in file.read_text().splitlines() if file.exists() else []:
            for resource in json.loads(line)["resourceSpans"]:
                about = attributes(resource["resource"])
                for scope in resource["scopeSpans"]:
                    found += [{**span, "resource": about} for span in scope["spans"]]
        return [span for span in found if trace in (None, span["traceId"])]

    def call(self, method, data, *headers, timeout="5s"):
        """The call's error, or None."""
        command = [self.options.grpcurl, "-plaintext", "-max-time", timeout.rstrip("s"), "-d", json.dumps(data)]
        for header in headers:
            command += ["-H", header]
        done = subprocess.run([*map(str, command), self.grpc, method], capture_output=True, text=True, timeout=60)
        return None if done.returncode == 0 else done.stderr

    def why(self, trace):
        """The records of a trace's only call."""
        done = subprocess.run(
            [str(self.options.antiphon), "why", trace, "--bootstrap-servers", self.broker, "--json", "--topic", TOPIC],
            capture_output=True, text=True, timeout=90,
        )
        check(done.returncode == 0, f"why {trace}: {done.stdout}{done.stderr}")
        return json.loads(done.stdout.splitlines()[0])["records"]

    def metric(self, name):
        with urllib.request.urlopen(f"http://{self.admin}/metrics", timeout=10) as answer:
            text = answer.read().decode()
        return sum(float(line.split()[-1]) for line in text.splitlines() if re.match(rf"{name}[ {{]", line))

    def log(self, method="GET", body=None, query=""):
        request = urllib.request.Request(f"http://{self.admin}/log{query}", method=method, data=body)
        try:
            with urllib.request.urlopen(request, timeout=10) as answer:
                return 200, json.load(answer)
        except urllib.error.HTTPError as error:
            return error.code, error.read().decode()


def attributes(message):
    plain = {}
    for attribute in message.get("attributes", []):
        value = attribute["value"]
        plain[attribute["key"]] = value.get("stringValue", value.get("intValue"))
    return plain


def by_kind(spans, kind):
    found = [span for span in spans if span["kind"] == kind]
    check(len(found) == 1, f"one span of kind {kind} among {spans}")
    return found[0]


def ms(span):
    return int(span["startTimeUnixNano"]) / 1e6, int(span["endTimeUnixNano"]) / 1e6


def check_recorded(stage):
    headers = [f"traceparent: 00-{TRACE}-{SPAN}-01", "tracestate: vendor=7", f"authorization: Bearer {SECRET}"]
    began = time.time() * 1e3
    check(stage.call(ECHO, {"payload": "aGVsbG8="}, *headers) is None, "the call succeeds")
    await_("three spans", lambda: len(stage.spans(TRACE)) >= 3)
    spans = stage.spans(TRACE)
    server, producer, consumer = (by_kind(spans, kind) for kind in (SERVER, PRODUCER, CONSUMER))
    check(len(spans) == 3, f"three spans, not {spans}")
    check(server["parentSpanId"] == SPAN, f"the server's parent is the caller: {server}")
    check(server["traceState"] == "vendor=7", f"the caller's state: {server}")
    for child in (producer, consumer):
        check(child["parentSpanId"] == server["spanId"], f"below the server: {child}")
        check(ms(server)[0] <= ms(child)[0] <= ms(child)[1] <= ms(server)[1], f"within the server's time: {child}")
    check(began - 1_000 < ms(server)[0] < began + 10_000, f"at its time: {server}")
    check(server["name"] == ECHO, server["name"])
    about = attributes(server)
    expected = {"rpc.system.name": "grpc", "rpc.method": ECHO, "rpc.response.status_code": "OK",
                "client.address": "127.0.0.1", "antiphon.outcome": "sent"}
    check(expected.items() <= about.items(), f"{about}")
    check(server["resource"]["service.name"] == "tested", f"{server['resource']}")
    check(server["resource"]["deployment.environment.name"] == "a test", f"{server['resource']}")

    records = stage.why(TRACE)
    request, reply = (next(r for r in records if r["what"] == what) for what in ("request", "reply"))
    sent = f"00-{TRACE}-{producer['spanId']}-01"
    check(request["headers"]["traceparent"] == sent, f"the request carries {sent}: {request['headers']}")
    check(request["headers"]["tracestate"] == "vendor=7", f"{request['headers']}")
    check(reply["headers"]["traceparent"] == sent, f"the worker hands it on: {reply['headers']}")
    check(consumer["links"][0]["traceId"] == TRACE and consumer["links"][0]["spanId"] == producer["spanId"],
          f"the reply's context is linked: {consumer}")
    for span, operation, record in ((producer, "send", request), (consumer, "process", reply)):
        check(span["name"] == f"{operation} {record['topic']}", span["name"])
        expected = {
            "messaging.system": "kafka",
            "messaging.operation.name": operation,
            "messaging.operation.type": operation,
            "messaging.destination.name": record["topic"],
            "messaging.destination.partition.id": str(record["partition"]),
            "messaging.kafka.offset": str(record["offset"]),
            "messaging.message.conversation_id": about["messaging.message.conversation_id"],
        }
        check(expected.items() <= attributes(span).items(), f"{operation}: {attributes(span)}, expected {expected}")
    print("ok  a recorded call: three spans, and their context in both records")


def check_not_recorded(stage):
    trace = "a" * 32
    parent = f"00-{trace}-{SPAN}-00"
    check(stage.call(ECHO, {"payload": "aGVsbG8="}, f"traceparent: {parent}") is None, "the call succeeds")
    request = next(r for r in stage.why(trace) if r["what"] == "request")
    check(request["headers"]["traceparent"] == parent, f"as the caller sent it: {request['headers']}")
    time.sleep(2)
    check(stage.spans(trace) == [], "no spans of a trace that is not recorded")
    print("ok  a call whose caller does not record: no spans, its context as it came")


def check_failed(stage):
    trace = "b" * 32
    headers = [f"traceparent: 00-{trace}-{SPAN}-01", f"authorization: Bearer {SECRET}", f"idempotency-key: key-{trace}"]
    check(stage.call(PAY, {"order_id": "o-1"}, *headers, timeout="1s"), "nobody answers")
    await_("spans of the failed call", lambda: len(stage.spans(trace)) >= 2)
    server, producer = (by_kind(stage.spans(trace), kind) for kind in (SERVER, PRODUCER))
    about = attributes(server)
    check(about["error.type"] == about["rpc.response.status_code"] == "DEADLINE_EXCEEDED", f"{about}")
    check(server["status"]["code"] == 2, f"{server}")
    check("status" not in producer or producer["status"].get("code") != 2, f"the request was sent: {producer}")
    lines = [json.loads(line) for line in (stage.folder / "access.log").read_text().splitlines()]
    line = next(line for line in lines if line.get("trace_id") == trace)
    check(line["idempotency_key"] == f"key-{trace}" and line["code"] == "DEADLINE_EXCEEDED", f"{line}")
    print("ok  a failed call: status and error in its span, and its line in the access log")


def check_share(stage):
    before = {span["traceId"] for span in stage.spans()}
    exported = stage.metric("antiphon_spans_exported_total")
    done = subprocess.run(
        [str(stage.options.antiphon), "bench", stage.grpc, ECHO, "--proto", str(ROOT / "proto/echo/v1/echo.proto"),
         "--proto-path", str(ROOT / "proto"), "--data", '{"payload":"aGVsbG8="}', "--in-flight", "16",
         "--calls", str(CALLS)],
        capture_output=True, text=True, timeout=120,
    )
    check(done.returncode == 0, done.stdout + done.stderr)
    await_("all exported spans are in the file",
           lambda: time.sleep(1.5) or len(stage.spans()) == stage.metric("antiphon_spans_exported_total"))
    traces = {span["traceId"] for span in stage.spans()} - before
    share = len(traces) / CALLS
    # Six standard deviations of a binomial share.
    slack = 6 * (RATIO * (1 - RATIO) / CALLS) ** 0.5
    check(abs(share - RATIO) < slack, f"{share} of the calls are recorded, expected {RATIO}")
    roots = [span for span in stage.spans() if span["traceId"] in traces and span["kind"] == SERVER]
    check(len(roots) == len(traces) and not any(span.get("parentSpanId") for span in roots), "one root each")
    check(stage.metric("antiphon_spans_exported_total") - exported == 3 * len(traces), "three spans each")
    print(f"ok  of {CALLS} calls that begin here {share:.1%} are recorded ({RATIO:.0%} asked for)")


def check_outage(stage, collector):
    collector.terminate()
    collector.wait(20)
    trace = "c" * 32
    header = f"traceparent: 00-{trace}-{SPAN}-01"
    took = time.monotonic()
    for _ in range(5):
        check(stage.call(ECHO, {"payload": "aGVsbG8="}, header) is None, "calls go on without a collector")
    check(time.monotonic() - took < 10, "and are not slower")
    await_("what is lost is counted", lambda: stage.metric("antiphon_spans_dropped_total") >= 15)
    stage.crew.said("gateway", "spans could not be exported")
    check(stage.spans(trace) == [], "nothing came")
    collector = stage.start_collector()
    trace = "d" * 32
    check(stage.call(ECHO, {"payload": "aGVsbG8="}, f"traceparent: 00-{trace}-{SPAN}-01") is None, "the call succeeds")
    await_("spans arrive again", lambda: len(stage.spans(trace)) == 3)
    print("ok  without a collector calls go on, drops are counted; with it spans arrive again")
    return collector


def check_log_level(stage):
    configured = stage.log()[1]
    check(configured["filter"] == configured["configured"] and configured["configured_in_seconds"] is None, f"{configured}")
    code, text = stage.log("PUT", b"antiphon=loud")
    check(code == 400 and "expected one of" in text, f"{code} {text}")
    check(stage.log("PUT", b"debug", "?for=soon")[0] == 400, "a time that is none")
    code, shown = stage.log("PUT", b"info,antiphon=debug", "?for=2s")
    check(code == 200 and shown["filter"] == "info,antiphon=debug" and shown["configured_in_seconds"] == 2, f"{shown}")
    check(stage.log()[1]["filter"] == "info,antiphon=debug", "it holds")
    await_("the configured filter is back", lambda: stage.log()[1] == configured, 10)
    stage.log("PUT", b"warn")
    check(stage.log("DELETE")[1] == configured, "DELETE brings it back")
    print("ok  the log's filter changes at run time, and comes back")


def check_end(stage, gateway):
    trace = "e" * 32
    check(stage.call(ECHO, {"payload": "aGVsbG8="}, f"traceparent: 00-{trace}-{SPAN}-01") is None, "the call succeeds")
    gateway.terminate()
    check(gateway.wait(30) == 0, "the gateway ends in good order")
    await_("its last spans", lambda: len(stage.spans(trace)) == 3, 5)
    for file in ("spans.json", "access.log", "gateway.log"):
        check(SECRET not in (stage.folder / file).read_text(), f"{file} has a secret")
    check("collector-s3cret" not in (stage.folder / "gateway.log").read_text(), "the collector's token is in the log")
    print("ok  what was left was sent at the end; no secret in spans, access log and log")


def run(stage):
    options, folder, crew = stage.options, stage.folder, stage.crew
    crew.start("broker", options.broker)
    stage.broker = crew.said("broker", r"127\.0\.0\.1:\d+").group(0)
    for topic in (TOPIC, "payment_request"):
        worker = crew.start(topic, options.antiphon, "bench", "worker", "--bootstrap-servers", stage.broker, "--topic", topic)
        crew.said(topic, "ready")
    # Leaves its topic behind, and nobody who reads it.
    worker.terminate()
    worker.wait(10)
    collector = stage.start_collector()
    (folder / "headers").write_text("x-token=collector-s3cret\n")
    (folder / "gateway.toml").write_text(GATEWAY.format(broker=stage.broker, root=ROOT, folder=folder, ratio=RATIO))
    gateway = crew.start(
        "gateway", options.antiphon, "serve", "--config", folder / "gateway.toml",
        OTEL_EXPORTER_OTLP_ENDPOINT=f"http://{stage.address}", OTEL_SERVICE_NAME="tested",
        OTEL_RESOURCE_ATTRIBUTES="deployment.environment.name=a%20test",
    )
    stage.grpc, stage.admin = crew.said("gateway", READY_LINE).groups()
    check_recorded(stage)
    check_not_recorded(stage)
    check_failed(stage)
    check_share(stage)
    check_outage(stage, collector)
    check_log_level(stage)
    check_end(stage, gateway)


def build_collector():
    """The collector, built once for each version of its sources."""
    target = ROOT / ".cache/bin/collector"
    sources = [HERE / "collector" / name for name in ("main.go", "go.mod", "go.sum")]
    if not target.is_file() or any(source.stat().st_mtime > target.stat().st_mtime for source in sources):
        print("building the collector", flush=True)
        target.parent.mkdir(parents=True, exist_ok=True)
        subprocess.run(
            ["go", "build", "-trimpath", "-mod=readonly", "-o", str(target), "."], cwd=HERE / "collector", check=True,
            env={**os.environ, "CGO_ENABLED": "0"},
        )
    return target


def prepare_grpcurl():
    """As the end-to-end tests have it."""
    spec = importlib.util.spec_from_file_location("e2e", ROOT / "tests/e2e/run.py")
    e2e = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(e2e)
    e2e.prepare_grpcurl()
    return e2e.GRPCURL


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--antiphon", type=Path, default=ROOT / "target/release/antiphon")
    parser.add_argument("--broker", type=Path, default=ROOT / "target/release/examples/dev_broker")
    parser.add_argument("--keep", action="store_true", help="leave logs and data behind")
    options = parser.parse_args()
    for program in ("go", options.antiphon, options.broker):
        if shutil.which(program) is None:
            print(f"missing: {program}", file=sys.stderr)
            sys.exit(69)
    options.collector, options.grpcurl = build_collector(), prepare_grpcurl()
    folder = Path(tempfile.mkdtemp(prefix="antiphon-traces-"))
    crew = Crew(folder)
    try:
        run(Stage(options, folder, crew))
    finally:
        crew.end()
        if options.keep:
            print(f"logs and data are in {folder}")
        else:
            shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    main()
