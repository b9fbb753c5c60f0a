"""What scripts/bench and scripts/bench-peers share: who runs where, processes that
say when they are ready, runs of `antiphon bench`, and how numbers are written."""

import json
import os
import platform
import re
import shutil
import signal
import statistics
import subprocess
import sys
import threading
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent.parent
TOPIC = "echo.v1.EchoService"
METHOD = "echo.v1.EchoService/Echo"
PARTITIONS = 6
READY_SECONDS_MAX = 60
STOP_SECONDS_MAX = 40
RUN_SECONDS_EXTRA = 120
# The run itself keeps some three threads busy on each.
CALM_LOAD_PER_PROCESSOR = 3
NOT_CALM = """
**The machine was not calm**: a load average of {busy:.0f} on {processors} processors, most of it not
ours. Calls a second and times say little here, and least at the tail; CPU per call is what to
compare.
"""


def say(text):
    print(text, file=sys.stderr, flush=True)


def seconds(text):
    match = re.fullmatch(r"(\d+)(ms|s|m)", text)
    if not match:
        sys.exit(f"bench: {text!r} is no time; expected 500ms, 8s or 1m")
    return int(match[1]) * {"ms": 0.001, "s": 1, "m": 60}[match[2]]


class Machine:
    """Who runs where."""

    def __init__(self, pin):
        self.cpus = sorted(os.sched_getaffinity(0))
        enough = len(self.cpus) >= {"auto": 4, "yes": 2, "no": sys.maxsize}[pin]
        self.pins = shutil.which("taskset") is not None and enough
        self.rest = ",".join(str(cpu) for cpu in self.cpus[1:])

    def subject(self, command):
        return ["taskset", "-c", str(self.cpus[0]), *command] if self.pins else command

    def others(self, command):
        return ["taskset", "-c", self.rest, *command] if self.pins else command

    def move_others(self, pids):
        """Moves processes that run already to where the others belong."""
        if shutil.which("taskset") is None:
            return
        where = self.rest if self.pins else ",".join(str(cpu) for cpu in self.cpus)
        for pid in pids:
            subprocess.run(["taskset", "-a", "-c", "-p", where, str(pid)], stdout=subprocess.DEVNULL, check=False)


class Process:
    """A process that says when it is ready and is stopped in good order."""

    def __init__(self, name, command, log):
        self.name, self.command = name, command
        began = time.monotonic()
        # What the caller has set for a gateway of its own is not for this one.
        clean = {name: value for name, value in os.environ.items() if not name.startswith("ANTIPHON_")}
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=log, text=True, cwd=ROOT, env=clean)
        # A process that never says a word is killed, which ends its output.
        hung = threading.Timer(READY_SECONDS_MAX, self.process.kill)
        hung.start()
        self.ready = self.process.stdout.readline()
        self.ready_ms = (time.monotonic() - began) * 1000
        hung.cancel()
        if " ready " not in self.ready:
            say(Path(log.name).read_text()[-4000:])
            sys.exit(f"bench: {name} did not start: {' '.join(command)}")

    @property
    def pid(self):
        return self.process.pid

    def word(self, name):
        return re.search(rf"\b{name}=(\S+)", self.ready)[1]

    def memory_mib(self, name):
        status = Path(f"/proc/{self.pid}/status").read_text()
        return int(re.search(rf"^{name}:\s+(\d+) kB", status, re.M)[1]) / 1024

    def stop(self):
        self.process.send_signal(signal.SIGTERM)
        try:
            self.process.wait(STOP_SECONDS_MAX)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()


def measure(command, limit):
    """The one run that a command of `antiphon bench` prints as JSON."""
    done = subprocess.run(
        [*command, "--json", "-"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, timeout=limit, cwd=ROOT
    )
    if done.returncode:
        say(done.stderr)
        sys.exit(f"bench: failed with {done.returncode}: {' '.join(command)}")
    run = json.loads(done.stdout)["runs"][0]
    run["load_average"] = os.getloadavg()[0]
    return run


def write_message(path, payload_bytes):
    """An EchoRequest: field 1, bytes."""
    length, prefix = payload_bytes, bytearray()
    while length >= 0x80:
        prefix.append(length & 0x7F | 0x80)
        length >>= 7
    path.write_bytes(b"\x0a" + bytes(prefix) + bytes([length]) + b"x" * payload_bytes)


class Broker:
    """The cluster of scripts/kafka: one that runs already is used and left running."""

    def __enter__(self):
        self.ran = subprocess.run(["scripts/kafka", "status"], cwd=ROOT, capture_output=True, check=False).returncode == 0
        started = self.tool("start")
        self.bootstrap = started.strip().splitlines()[-1].removeprefix("bootstrap.servers=")
        return self

    def __exit__(self, *_):
        if not self.ran:
            self.tool("stop")

    @staticmethod
    def tool(*command):
        done = subprocess.run(["scripts/kafka", *command], cwd=ROOT, stdout=subprocess.PIPE, text=True, check=True)
        return done.stdout

    def pids(self):
        return [int(pid) for pid in re.findall(r"pid=(\d+)", self.tool("status"))]


def numbers(runs, *path):
    found = []
    for run in runs:
        for name in path:
            run = run[name] if run else None
        if run is not None:
            found.append(float(run))
    return found


def spread(values, form):
    if not values:
        return "-"
    low, high = form(min(values)), form(max(values))
    return f"{form(statistics.median(values))} ({low}–{high})" if low != high else low


def milliseconds(us):
    ms = us / 1000
    return f"{ms:.2f}" if ms < 10 else f"{ms:.1f}" if ms < 100 else f"{ms:.0f}"


def output(*command):
    try:
        done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=False)
        lines = (done.stdout or done.stderr).strip().splitlines()
        return lines[0] if lines else "unknown"
    except OSError:
        return "not there"


def processor():
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith(("model name", "Model")):
            return line.split(":", 1)[1].strip()
    return platform.machine()


def kafka_version():
    return re.search(r"<kafka.version>(.*)</kafka.version>", (ROOT / "scripts/kafka.d/pom.xml").read_text())[1]


def memory_gib():
    return int(Path("/proc/meminfo").read_text().split()[1]) // 1024 // 1024


def binary(path):
    if not path.exists():
        sys.exit(f"bench: {path} is not there; cargo build --release --locked")
    return path.resolve()


def plain(command, names):
    """A command without what differs from run to run and machine to machine."""
    text = re.sub(r"--pid \d+", "--pid $PID", " ".join(str(word) for word in command))
    text = re.sub(r"127\.0\.0\.1:19\d+", "$KAFKA", text)
    for what, name in {**names, str(ROOT) + "/": ""}.items():
        text = text.replace(what, name)
    return re.sub(r"127\.0\.0\.1:\d+ echo", "$ADDRESS echo", text)


def warning(loads, processors):
    """Says so where others were using the machine."""
    busy = statistics.median(loads)
    calm = busy <= CALM_LOAD_PER_PROCESSOR * processors
    return "" if calm else NOT_CALM.format(busy=busy, processors=processors)
