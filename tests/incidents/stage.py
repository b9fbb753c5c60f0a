"""What an incident is staged with: gateway, workers, callers, Prometheus, and an
operator who runs the runbook's commands."""

import http.server
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
import urllib.request
from collections import Counter, deque
from pathlib import Path

import grpc
from common import PAY, Gateway, write
from harness import PROTO_DIR, ROOT, Process, check, tail, wait_until
from run import load

metrics = load(ROOT / "tests/metrics/run.py", "metrics_run")
HERE = Path(__file__).resolve().parent
PARTITIONS = 3
METHOD = PAY.strip("/")
TOOLS = ["topics", "consumer-groups", "broker-api-versions", "configs", "acls"]
COMMAND_SECONDS_MAX = 90
CALLS_KEPT = 4_000


class Callers:
    """Calls at a steady pace, and what they ended with."""

    def __init__(self, address, timeout):
        self.timeout, self.rate = timeout, 8
        self.channel = grpc.insecure_channel(address, options=[("grpc.enable_retries", 0)])
        self.pay = self.channel.unary_unary(PAY, lambda it: it, lambda it: it)
        self.calls, self.lock = deque(maxlen=CALLS_KEPT), threading.Lock()
        self.keys, self.ending = [], threading.Event()
        self.thread = threading.Thread(target=self._run, daemon=True)

    @staticmethod
    def message(key):
        """A PayRequest: order_id, amount_minor, currency."""
        order = key.encode()
        return bytes([0x0A, len(order)]) + order + b"\x10\x05\x1a\x03EUR"

    def find_keys(self):
        """As many for each partition, so that what one worker does is a third."""
        found = {}
        for number in range(200):
            key = f"order-{number}"
            try:
                _, call = self.pay.with_call(self.message(key), timeout=10)
            except grpc.RpcError:
                continue  # The workers have only begun; how it goes on is looked at below.
            record = dict(call.trailing_metadata()).get("antiphon-record")
            if record is None:
                continue  # The reply was there before Kafka's acknowledgement: where is not known.
            found.setdefault(record.split("/")[1], []).append(key)
            if len(found) == PARTITIONS and all(len(keys) >= 2 for keys in found.values()):
                self.keys = [keys[turn] for turn in range(2) for keys in found.values()]
                return
        check(False, f"the keys of 200 calls lie on {len(found)} partitions of {PARTITIONS}")

    def start(self):
        self.find_keys()
        self.thread.start()

    def _run(self):
        number, due = 0, time.monotonic()
        while not self.ending.wait(max(0, due - time.monotonic())):
            began = time.monotonic()
            future = self.pay.future(self.message(self.keys[number % len(self.keys)]), timeout=self.timeout + 1.0,
                                     metadata=[("grpc-previous-rpc-attempts", "0")])  # fmt: skip
            future.add_done_callback(lambda ended, began=began: self._note(ended, began))
            number, due = number + 1, due + 1 / self.rate

    def _note(self, ended, began):
        if ended.cancelled():
            return
        trailers = dict(ended.trailing_metadata() or ())
        call = {
            "began": began, "ended": time.monotonic(), "code": ended.code().name, "text": ended.details() or "",
            "id": trailers.get("antiphon-correlation-id"), "record": trailers.get("antiphon-record"),
        }  # fmt: skip
        with self.lock:
            self.calls.append(call)

    def since(self, moment):
        """Calls that began then or later."""
        with self.lock:
            return [call for call in self.calls if call["began"] >= moment]

    def are_well(self, seconds=2.0):
        """All that began within so many seconds, but for the last."""
        now = time.monotonic()
        calls = self.since(now - seconds - 0.5)
        return len(calls) >= self.rate * seconds * 0.6 and all(call["code"] == "OK" for call in calls)

    def end(self):
        self.ending.set()
        if self.thread.ident:
            self.thread.join(5)
        self.channel.close()


class Site:
    """What is done differently everywhere, such as starting a worker: `site
    WORDS` in the runbook's commands comes here."""

    def __init__(self, deeds):
        site = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_POST(self):
                words = self.rfile.read(int(self.headers["content-length"])).decode().split()
                try:
                    code, answer = 200, site.deeds[words[0]](*words[1:]) or ""
                    site.done.append(" ".join(words))
                except Exception as error:  # The operator's command fails and says why.
                    code, answer = 500, f"{type(error).__name__}: {error}"
                self.send_response(code)
                self.end_headers()
                self.wfile.write(f"{answer}\n".encode() if answer else b"")

            def log_message(self, *_):
                pass

        self.deeds, self.done = deeds, []
        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def end(self):
        self.server.shutdown()
        self.server.server_close()


def answers(url):
    try:
        with urllib.request.urlopen(url, timeout=5) as answer:
            return answer.status == 200
    except OSError:
        return False


class Stage:
    """One incident's own gateway, workers, callers and Prometheus."""

    def __init__(self, options, folder, slug, kafka, operator_bootstrap, topic, timeout=1.5):
        """`kafka` is the [kafka] section of the gateway, `operator_bootstrap`
        where Kafka's own tools and the workers are let in."""
        self.options, self.slug, self.topic, self.timeout = options, slug, topic, timeout
        self.folder = folder / slug
        self.folder.mkdir()
        self.kafka, self.bootstrap = kafka, operator_bootstrap
        self.children, self.workers = [], {}
        self.group = f"payments-{slug}"
        self.gateway = self.callers = self.prometheus = None
        self.site = Site({})

    # ---- the parts ----

    def worker(self, name, fault="", work_ms=0):
        command = [
            sys.executable, str(HERE / "worker.py"), "--bootstrap", self.bootstrap, "--group", self.group,
            "--topics", self.topic, "--work-ms", str(work_ms),
        ]  # fmt: skip
        process = Process(self.folder, name, command, environment={"FAULT": fault, "WORKER_NAME": name})
        self.workers[name] = process
        self.children.append(process)
        return process

    def stop_worker(self, name, number=signal.SIGTERM):
        process = self.workers.pop(name)
        process.signal(number)
        process.exit_code(20)

    def await_workers(self):
        """Each has its share of the partitions."""

        def shared_out():
            held = []
            for name, process in self.workers.items():
                check(process.alive(), f"{name} ended\n{tail(process.stderr)}")
                lines = [line for line in process.stderr.read_text().splitlines() if " assigned " in line]
                held += re.findall(r"\S+\[\d+\]", lines[-1]) if lines else []
            return len(held) == len(set(held)) == PARTITIONS

        wait_until(shared_out, 60, "the workers hold every partition")

    def start(self, workers=3, routes="", fault="", work_ms=0, dead_letters=True, limits=""):
        for number in range(workers):
            self.worker(f"worker-{number}", fault, work_ms)
        milliseconds = round(self.timeout * 1000)
        letters = 'dead_letter_on = ["timeout", "undecodable-reply", "rejected"]' if dead_letters else ""
        config = (
            f'{self.kafka}\n\n[grpc]\nlisten = "127.0.0.1:0"\n\n{limits}\n'
            f'[proto]\nfiles = ["{PROTO_DIR}/payments/v1/payments.proto"]\ninclude_paths = ["{PROTO_DIR}"]\n\n'
            f'[service."payments.v1.PaymentService"]\nrequest_topic = "{self.topic}"\n'
            f'timeout = "{milliseconds}ms"\ntimeout_max = "{milliseconds}ms"\n{letters}\n\n{routes}\n'
        )
        os.environ["ANTIPHON_SHARDS"] = "1"
        self.gateway = Gateway(self.folder, self.options.antiphon, "gateway", config, "40s", protos=[])
        self.children.append(self.gateway)
        self.gateway.wait_ready()
        self._start_prometheus()
        self.await_workers()
        self.callers = Callers(self.gateway.grpc, self.timeout)
        self.callers.start()

    def _start_prometheus(self):
        ranges, lasts = ("6s", "1s") if self.options.quick else ("10s", "3s")
        rules = write(self.folder / "alerts.yml", metrics.quick(metrics.ALERTS.read_text(), ranges, lasts))
        config = metrics.PROMETHEUS.format(rules=rules, admin=self.gateway.admin)
        config = write(self.folder / "prometheus.yml", config)
        process = Process(self.folder, "prometheus", [
            "prometheus", f"--config.file={config}", f"--storage.tsdb.path={self.folder}/data",
            "--web.listen-address=127.0.0.1:0",
        ])  # fmt: skip
        self.children.append(process)

        def address():
            check(process.alive(), f"prometheus ended\n{tail(process.stderr)}")
            return re.search(r"Listening on.*address=(127\.0\.0\.1:\d+)", process.stderr.read_text())

        self.prometheus = metrics.Prometheus(wait_until(address, 40, "prometheus listens")[1])
        ready = self.prometheus.base.replace("/api/v1/", "/-/ready")
        wait_until(lambda: answers(ready), 40, "prometheus is ready")
        wait_until(lambda: self.prometheus.query('up{job="antiphon"} == 1'), 30, "the gateway is scraped")

    def end(self):
        if self.callers is not None:
            self.callers.end()
        self.site.end()
        for child in reversed(self.children):
            if child is self.gateway or not child.alive():
                child.end()
            else:
                child.signal(signal.SIGKILL)
                child.exit_code(10)

    # ---- what is seen ----

    def alerts(self, *states):
        """Name to labels of the alerts in one of these states."""
        alerts = (self.prometheus.get("alerts") or {}).get("alerts", [])
        return {a["labels"]["alertname"]: a for a in alerts if a["state"] in (states or ("firing",))}

    def check_healthy(self):
        """Nothing fires or is about to, and calls are answered."""
        wait_until(self.callers.are_well, 20, lambda: f"all calls are OK: {self.callers.since(0)[-5:]}")
        wait_until(lambda: not self.alerts("firing", "pending"), 20, lambda: f"no alert: {self.alerts()}")
        status, text = self.gateway.page("/ready")
        check(status == 200, f"/ready says {status} {text}")

    def statuses(self, since):
        """Code and text of the calls that failed, without what differs from call
        to call, the most frequent first."""
        failed = [call for call in self.callers.since(since) if call["code"] != "OK"]
        shorter = lambda text: re.sub(r"\d+", "N", re.sub(r"127\.0\.0\.1:\d+", "BROKER", text))
        return Counter((call["code"], shorter(call["text"])) for call in failed)

    # ---- the operator ----

    def tools(self):
        """Kafka's tools by their names, and `site`."""
        folder = self.folder / "bin"
        folder.mkdir(exist_ok=True)
        for tool in TOOLS:
            script = folder / f"kafka-{tool}.sh"
            script.write_text(f'#!/bin/sh\nexec "{ROOT}/scripts/kafka" tool {tool} "$@"\n')
            script.chmod(0o755)
        site = folder / "site"
        port = self.site.server.server_address[1]
        site.write_text(f'#!/bin/sh\nexec curl -sS --fail-with-body --max-time 80 --data "$*" http://127.0.0.1:{port}/\n')
        site.chmod(0o755)
        antiphon = folder / "antiphon"
        antiphon.unlink(missing_ok=True)
        antiphon.symlink_to(self.options.antiphon)
        return folder

    def run(self, script, **variables):
        """A code block of the runbook. Its words, and whether it succeeded."""
        environment = {
            **os.environ, "PATH": f"{self.tools()}:{os.environ['PATH']}", "ADMIN": f"http://{self.gateway.admin}",
            "KAFKA": self.bootstrap, "CONFIG": str(self.folder / "gateway.toml"), "GROUP": self.group, **variables,
        }  # fmt: skip
        ran = subprocess.run(
            ["bash", "-euo", "pipefail", "-c", script], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
            env=environment, timeout=COMMAND_SECONDS_MAX, check=False, cwd=self.folder,
        )  # fmt: skip
        with (self.folder / "operator.log").open("a") as log:
            log.write(f"$ {script}{ran.stdout}[{ran.returncode}]\n\n")
        return ran.stdout, ran.returncode

    def why(self, call):
        """The verdict about a call, or what stands in its place."""
        command = [str(self.options.antiphon), "why", call["id"], "--config", str(self.folder / "gateway.toml"),
                   "--since", "10m", "--timeout", "20s", "--json"]  # fmt: skip
        ran = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
        lines = [json.loads(line) for line in ran.stdout.splitlines() if line.startswith("{")]
        said = (lines[0]["sentence"] if lines else "") or (ran.stderr.strip().splitlines() or ["nothing"])[-1]
        with (self.folder / "operator.log").open("a") as log:
            log.write(f"$ why {call}\n{ran.stdout}{ran.stderr}\n")
        return said
