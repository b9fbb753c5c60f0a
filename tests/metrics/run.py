#!/usr/bin/env python3
"""Dashboard and alerts against a real Prometheus.

    python3 tests/metrics/run.py --antiphon target/release/antiphon \
        --broker target/release/examples/dev_broker [--keep]

Starts the embedded broker, a worker for one of two services, a gateway and
Prometheus; drives calls that are answered and calls that nobody answers; and
then asks Prometheus itself:

- every alert rule does what deploy/prometheus/alerts_test.yml says (promtool);
- every alert has its section in docs/runbook.md;
- every query of the Grafana dashboard parses and returns series;
- every metric of docs/metrics.md is scraped, and no other;
- every alert expression evaluates without an error;
- the method without a worker fires AntiphonNoWorker, and only what belongs to it.

The rules are those of deploy/, but for their times: ranges of minutes become
seconds, so that nobody has to wait for them. Needs prometheus and promtool
(apt-get install prometheus) and nothing of Python but itself.
"""

import argparse
import importlib
import json
import re
import shutil
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.parse
import urllib.request
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
ALERTS = ROOT / "deploy/prometheus/alerts.yml"
DASHBOARD = ROOT / "deploy/grafana/antiphon.json"
WAIT_SECONDS_MAX = 60
READY_LINE = re.compile(r"antiphon ready grpc=(\S+) admin=(\S+)")
ECHO, PAY = "echo.v1.EchoService/Echo", "payments.v1.PaymentService/Pay"
# Has a series only once a method with several replies was called.
NOT_STAGED = {"antiphon_collected_replies_total"}
# What the staged cause may fire: the cause itself, and what follows from it.
EXPECTED_ALERTS = {"AntiphonNoWorker", "AntiphonDeadLetters"}
GATEWAY = """\
shards = 1

[kafka]
bootstrap_servers = ["{broker}"]

[grpc]
listen = "127.0.0.1:0"

[admin]
listen = "127.0.0.1:0"

[proto]
files = ["{root}/proto/echo/v1/echo.proto", "{root}/proto/payments/v1/payments.proto"]

[service."payments.v1.PaymentService"]
dead_letter_on = ["timeout"]
"""
PROMETHEUS = """\
global:
  scrape_interval: 1s
  evaluation_interval: 1s
rule_files: ["{rules}"]
scrape_configs:
  - job_name: antiphon
    static_configs:
      - targets: ["{admin}"]
"""


def fail(words):
    print(f"FAILED: {words}", file=sys.stderr)
    sys.exit(1)


def await_(what, look, seconds=WAIT_SECONDS_MAX):
    """The first true answer of `look`, within so many seconds."""
    until = time.monotonic() + seconds
    while True:
        answer = look()
        if answer:
            return answer
        if time.monotonic() > until:
            fail(f"not within {seconds} s: {what() if callable(what) else what}")
        time.sleep(0.2)


class Crew:
    """Processes that end with us, each with a log of its own."""

    def __init__(self, folder):
        self.folder, self.processes = folder, []

    def start(self, name, *command):
        log = (self.folder / f"{name}.log").open("w")
        process = subprocess.Popen(
            [str(part) for part in command], stdin=subprocess.PIPE, stdout=log, stderr=subprocess.STDOUT
        )
        self.processes.append(process)
        return process

    def said(self, name, pattern):
        """The first match in what `name` has written."""

        def look():
            for process in self.processes:
                if process.poll() not in (None, 0, -15):
                    fail(f"{process.args[0]} has ended with {process.returncode}: {self.text(name)}")
            return re.search(pattern, self.text(name))

        return await_(lambda: f"{name} says {pattern!r}: {self.text(name)}", look)

    def text(self, name):
        return (self.folder / f"{name}.log").read_text(errors="replace")

    def end(self):
        for process in reversed(self.processes):
            process.terminate()
        for process in self.processes:
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


class Prometheus:
    def __init__(self, address):
        self.base = f"http://{address}/api/v1/"

    def get(self, path, **parameters):
        url = self.base + path + "?" + urllib.parse.urlencode(parameters)
        try:
            with urllib.request.urlopen(url, timeout=10) as answer:
                return json.load(answer)["data"]
        except urllib.error.HTTPError as error:
            fail(f"{path} {parameters}: {error.read().decode(errors='replace')}")
        except OSError:
            return None

    def query(self, expression):
        return (self.get("query", query=expression) or {}).get("result", [])


def quick(text, covers="10s", lasts="3s"):
    """The rules with minutes as seconds: [5m] covers 10 s, `for` 3 s."""
    text = re.sub(r"\[\d+m\]", f"[{covers}]", text)
    return re.sub(r"for: \d+m", f"for: {lasts}", text)


def dashboard_queries():
    for panel in json.loads(DASHBOARD.read_text())["panels"]:
        for target in panel.get("targets", []):
            expression = target["expr"].replace("$__rate_interval", "10s").replace("$instance", ".*")
            yield panel["title"], expression


def check_rules():
    for command in (["check", "rules", str(ALERTS)], ["test", "rules", str(ALERTS.with_name("alerts_test.yml"))]):
        done = subprocess.run(["promtool", *command], capture_output=True, text=True, check=False)
        if done.returncode != 0:
            fail(f"promtool {' '.join(command)}: {done.stdout}{done.stderr}")
    tested = set(re.findall(r"alertname: (\w+)\n +exp_alerts", ALERTS.with_name("alerts_test.yml").read_text()))
    declared = set(re.findall(r"alert: (\w+)", ALERTS.read_text()))
    if tested != declared:
        fail(f"alerts without a test that fires them: {declared - tested}")
    print(f"ok  {len(declared)} alerts, each with its cause (promtool)")
    sys.path.insert(0, str(ROOT / "tests/incidents"))
    print(f"ok  {importlib.import_module('runbook').check()}")


def family(series):
    """The metric of a series, as docs/metrics.md has it."""
    return re.sub(r"_(bucket|sum|count)$", "", series)


def check_reference(prometheus):
    page = (ROOT / "docs/metrics.md").read_text()
    documented = dict(re.findall(r"^\| `(\w+)` \| (\w+) \|", page, re.MULTILINE))
    histograms = {name for name, kind in documented.items() if kind == "histogram"}

    def scraped():
        names = prometheus.get("label/__name__/values") or []
        ours = {name for name in names if name.startswith(("antiphon_", "rpc_", "messaging_"))}
        return {family(name) if family(name) in histograms else name for name in ours}

    expected = set(documented) - NOT_STAGED
    await_(lambda: f"these are scraped, too: {expected - scraped()}", lambda: expected <= scraped())
    if not scraped() <= set(documented):
        fail(f"metrics that docs/metrics.md does not have: {scraped() - set(documented)}")
    print(f"ok  {len(expected)} metrics are documented, and scraped")


def check_dashboard(prometheus):
    queries = list(dashboard_queries())
    for title, expression in queries:
        await_(f"{title!r} shows something: {expression}", lambda e=expression: prometheus.query(e), 20)
    print(f"ok  {len(queries)} queries of the dashboard return series")


def check_alerts(prometheus):
    def firing():
        alerts = (prometheus.get("alerts") or {}).get("alerts", [])
        return {(a["labels"]["alertname"], a["labels"].get("rpc_method", "")) for a in alerts if a["state"] == "firing"}

    await_(
        lambda: f"the method without a worker fires its alert; firing: {firing()}",
        lambda: ("AntiphonNoWorker", PAY) in firing(),
    )
    wrong = {name for name, _ in firing()} - EXPECTED_ALERTS
    if wrong or ("AntiphonNoWorker", ECHO) in firing():
        fail(f"alerts without a cause: {firing()}")
    rules = [rule for group in prometheus.get("rules")["groups"] for rule in group["rules"]]
    sick = [(rule["name"], rule.get("lastError")) for rule in rules if rule["health"] != "ok"]
    if sick:
        fail(f"rules that do not evaluate: {sick}")
    print(f"ok  {PAY} has no worker, and {' and '.join(sorted(n for n, _ in firing()))} fires; {len(rules)} rules evaluate")


def run(options, folder, crew):
    broker_log = crew.start("broker", options.broker)
    broker = crew.said("broker", r"127\.0\.0\.1:\d+").group(0)
    assert broker_log.poll() is None
    crew.start("worker", options.antiphon, "bench", "worker", "--bootstrap-servers", broker)
    crew.said("worker", "ready")
    # Leaves its topic behind, and nobody who reads it.
    gone = crew.start("gone", options.antiphon, "bench", "worker", "--bootstrap-servers", broker, "--topic", "payment_request")
    crew.said("gone", "ready")
    gone.terminate()
    gone.wait(10)

    (folder / "gateway.toml").write_text(GATEWAY.format(broker=broker, root=ROOT))
    crew.start("gateway", options.antiphon, "serve", "--config", folder / "gateway.toml")
    grpc, admin = crew.said("gateway", READY_LINE.pattern).groups()
    (folder / "alerts.yml").write_text(quick(ALERTS.read_text()))
    (folder / "prometheus.yml").write_text(PROMETHEUS.format(rules=folder / "alerts.yml", admin=admin))
    crew.start(
        "prometheus", "prometheus", f"--config.file={folder}/prometheus.yml", f"--storage.tsdb.path={folder}/data",
        "--web.listen-address=127.0.0.1:0",
    )
    address = crew.said("prometheus", r"Listening on.*address=(127\.0\.0\.1:\d+)").group(1)
    prometheus = Prometheus(address)

    load = [options.antiphon, "bench", grpc, "--proto-path", ROOT / "proto", "--duration", "180s"]
    crew.start("good", *load[:3], ECHO, *load[3:], "--proto", ROOT / "proto/echo/v1/echo.proto",
               "--rate", "50", "--data", '{"payload":"aGVsbG8="}')
    crew.start("failing", *load[:3], PAY, *load[3:], "--proto", ROOT / "proto/payments/v1/payments.proto",
               "--rate", "5", "--timeout", "300ms", "--data", '{"order_id":"o-1","amount_minor":1,"currency":"EUR"}')
    await_("the gateway is scraped", lambda: prometheus.query('up{job="antiphon"} == 1'))
    check_reference(prometheus)
    check_dashboard(prometheus)
    check_alerts(prometheus)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--antiphon", type=Path, default=ROOT / "target/release/antiphon")
    parser.add_argument("--broker", type=Path, default=ROOT / "target/release/examples/dev_broker")
    parser.add_argument("--keep", action="store_true", help="leave logs and data behind")
    options = parser.parse_args()
    for program in ("prometheus", "promtool", options.antiphon, options.broker):
        if shutil.which(program) is None:
            print(f"missing: {program}", file=sys.stderr)
            sys.exit(69)
    check_rules()
    folder = Path(tempfile.mkdtemp(prefix="antiphon-metrics-"))
    crew = Crew(folder)
    try:
        run(options, folder, crew)
    finally:
        crew.end()
        if options.keep:
            print(f"logs and data are in {folder}")
        else:
            shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    main()
