"""What is measured in a round. A session is one subject's share of a round; it
returns a document that is kept as JSON, so that an interrupted run can go on."""

import os
import shutil
import time
from pathlib import Path

from harness import (
    METHOD, PARTITIONS, RUN_SECONDS_EXTRA, TOPIC, Machine, Process, measure, say, seconds, write_message,
)

LOADS = (1, 64, 512)
FULL = 512
CROWD = 5000
FIXED_RATE = 2000
# Routes, how many of a service.
ROUTES = (1, 100, 10_000)
METHODS_PER_SERVICE = 100
# Calls that the gateway may hold. With the fewer its capacity is what the limit
# makes it; with the more the machine is full, and whatever sends twice as much
# and refuses the half of it takes its processors from what answers.
OVERLOAD_IN_FLIGHT = (64, 512)
# Settling ends when so many runs in a row brought no such gain.
SETTLED_RUNS = 2
SETTLED_GAIN = 0.05
OVERLOAD_TIMEOUT = "1s"
BACKLOG_RECORD_BYTES = 150
TICKS = os.sysconf("SC_CLK_TCK")


def cpu_seconds(pid):
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / TICKS


def busy_seconds():
    """Of each processor: what it spent on anything but idling and waiting."""
    busy = {}
    for line in Path("/proc/stat").read_text().splitlines():
        name, *ticks = line.split()
        if name.startswith("cpu") and name != "cpu":
            spent = [int(tick) for tick in ticks[:8]]
            busy[int(name[3:])] = (sum(spent) - spent[3] - spent[4]) / TICKS
    return busy


class Sessions:
    def __init__(self, given, broker, folder, log):
        self.given, self.broker, self.folder, self.log = given, broker, folder, log
        self.floating, self.pinned = Machine("no"), Machine("yes")
        self.machine = self.floating
        self.commands = {}
        self.message = folder / "message"
        write_message(self.message, given.payload_bytes)
        command = [str(given.antiphon), "bench", "worker", "--bootstrap-servers", broker.bootstrap]
        self.commands["worker"] = [*command, "--topic", TOPIC, "--partitions", str(PARTITIONS)]
        self.worker = Process("worker", self.commands["worker"], log)
        self.broker_pids = broker.pids()

    def stop(self):
        self.worker.stop()

    # ---- runs ------------------------------------------------------------------

    def timed(self, what, subject=False, duration=None, warm_up=None, timeout=None, note=None):
        """One run of `antiphon bench`, and which processes were busy meanwhile."""
        duration, warm_up = duration or self.given.duration, warm_up or self.given.warm_up
        command = [str(self.given.antiphon), "bench", *what, "--duration", duration, "--warm-up", warm_up]
        command += ["--timeout", timeout or self.given.call_timeout]
        self.commands.setdefault(note or what[0], command)
        pids = {"worker": [self.worker.pid], "broker": self.broker_pids}
        before = {name: sum(map(cpu_seconds, several)) for name, several in pids.items()}
        busy, began = busy_seconds(), time.monotonic()
        placed = self.machine.subject(command) if subject else self.machine.others(command)
        run = measure(placed, seconds(duration) + seconds(warm_up) + RUN_SECONDS_EXTRA)
        wall = time.monotonic() - began
        run["shares"] = {name: (sum(map(cpu_seconds, several)) - before[name]) / wall for name, several in pids.items()}
        # Where the subject is `antiphon bench` itself, it is its own load.
        client = None if subject else run["client"]
        run["shares"]["load"] = client["cpu_seconds"] / run["seconds"] if client else None
        run["shares"]["subject"] = run["server"]["cpu_seconds"] / run["seconds"] if run["server"] else None
        run["processors"] = {cpu: (now - busy[cpu]) / wall for cpu, now in busy_seconds().items()}
        return run

    def say(self, subject, step, run):
        cpu = run["server"]["cpu_us_per_call"] if run["server"] else None
        cpu = f"{cpu:.1f} µs" if cpu else "-"
        errors = f", errors {run['errors']}" if run["errors"] else ""
        say(f"  {subject:9} {step:12} {run['calls_per_second']:8.0f} calls/s  p50 {run['latency_us']['p50'] / 1000:8.3f} ms"
            f"  CPU {cpu:>9}  load {run['load_average']:.1f}{errors}")

    def load(self, process, step, *flags, **options):
        what = [process.word("grpc"), METHOD, "--message-file", str(self.message), "--pid", str(process.pid), *flags]
        run = self.timed(what, note=f"load {step}", **options)
        self.say(process.name, step, run)
        return run

    def settle(self, process, in_flight=FULL):
        """Drives a process until its calls get no cheaper, so that a virtual
        machine has compiled what is hot: the same rule for everyone."""
        best, idle, began = None, 0, time.monotonic()
        runs = 0
        while idle < SETTLED_RUNS and time.monotonic() - began < seconds(self.given.settle_max):
            run = self.load(process, "settling", "--in-flight", str(in_flight), duration=self.given.settle, warm_up="0s")
            cost = run["server"]["cpu_us_per_call"]
            idle = 0 if best is None or cost < best * (1 - SETTLED_GAIN) else idle + 1
            best = cost if best is None else min(best, cost)
            runs += 1
        return {"runs": runs, "seconds": time.monotonic() - began, "settled": idle >= SETTLED_RUNS}

    def start(self, name, command, note=None):
        self.commands.setdefault(note or name, command)
        return Process(name, self.machine.subject(command), self.log)

    def pin(self, pinned):
        """Gives the subject a processor of its own, or takes it back."""
        self.machine = self.pinned if pinned else self.floating
        self.machine.move_others([self.worker.pid, *self.broker_pids])

    # ---- sessions --------------------------------------------------------------

    def gateway(self, name, command):
        steps = {}
        process = self.start(name, command)
        try:
            ready_ms, idle = process.ready_ms, process.memory_mib("VmRSS")
            settled = self.settle(process)
            for load in LOADS:
                steps[f"{load}"] = self.load(process, f"{load}", "--in-flight", str(load))
            most = max(steps[f"{load}"]["calls_per_second"] for load in LOADS)
            steps["rate"] = self.load(process, "rate", "--rate", str(FIXED_RATE))
            steps["half"] = self.load(process, "half", "--rate", str(round(most / 2)))
            steps["crowd"] = self.load(process, "crowd", "--in-flight", str(CROWD))
        finally:
            process.stop()
        if self.pinned.pins:
            steps |= self.on_one_core(name, command)
        return {"steps": steps, "ready_ms": ready_ms, "idle_mib": idle, "settled": settled}

    def on_one_core(self, name, command):
        self.pin(True)
        process = None
        try:
            process = self.start(name, command)
            self.settle(process)
            loads = (64, FULL)
            return {f"pinned-{load}": self.load(process, f"pinned-{load}", "--in-flight", str(load)) for load in loads}
        finally:
            if process:
                process.stop()
            self.pin(False)

    def floor(self):
        def run(load):
            what = ["floor-kafka", "--bootstrap-servers", self.broker.bootstrap, "--topic", TOPIC]
            what += ["--payload-bytes", str(self.given.payload_bytes), "--in-flight", str(load)]
            run = self.timed(what, subject=True)
            self.say("floor", f"{load}{' pinned' if self.machine.pins else ''}", run)
            return run

        steps = {f"{load}": run(load) for load in LOADS} | {"crowd": run(CROWD)}
        if self.pinned.pins:
            self.pin(True)
            try:
                steps |= {f"pinned-{load}": run(load) for load in (64, FULL)}
            finally:
                self.pin(False)
        return {"steps": steps}

    def tonic(self, ours):
        """At its own maximum, and under the loads that the gateway had."""
        command = [str(self.given.antiphon), "bench", "echo-server", "--listen", "127.0.0.1:0"]
        process = self.start("tonic", command)
        try:
            steps = {f"{load}": self.load(process, f"{load}", "--in-flight", str(load)) for load in (64, FULL)}
            if ours:
                for step in ("rate", "half"):
                    wanted = ours["steps"][step]["rate_wanted"]
                    steps[step] = self.load(process, step, "--rate", str(round(wanted)))
                # On as many connections as 64 calls in flight are.
                reached = ours["steps"]["64"]["calls_per_second"]
                steps["same"] = self.load(process, "same", "--rate", str(round(reached)), "--connections", "1")
        finally:
            process.stop()
        if ours:
            # As long as a call waits for Kafka, so that as many calls a second
            # come from 64 in flight, and together as the gateway's do.
            delay = round(64_000 / reached)
            process = self.start("tonic", [*command, "--delay", f"{max(1, delay)}ms"], "tonic that waits")
            try:
                steps["waits"] = self.load(process, "waits", "--in-flight", "64")
            finally:
                process.stop()
        return {"steps": steps}

    def one_run(self, name, command, steps, step, load=64, warm_up=None):
        process = self.start(name, command)
        try:
            steps[step] = self.load(process, step, "--in-flight", str(load), warm_up=warm_up)
            steps[step]["ready_ms"] = process.ready_ms
        finally:
            process.stop()

    def flat(self, antiphon):
        """Whether a call's cost grows with what there is besides it."""
        steps, bootstrap = {}, self.broker.bootstrap
        self.one_run("antiphon", antiphon.command(bootstrap, {"SHARDS": 2}), steps, "two-shards")
        for routes in ROUTES:
            proto = write_routes(self.folder, routes)
            self.one_run("antiphon", antiphon.command(bootstrap, proto=proto), steps, f"routes-{routes}")
        for replies in (0, self.given.backlog):
            instance = f"bench-backlog-{replies}"
            topic = f"antiphon.reply.{instance}"
            if replies:
                self.fill(topic, replies)
            command = antiphon.command(bootstrap, {"REPLY_INSTANCE": instance})
            self.one_run("antiphon", command, steps, "backlog" if replies else "no-backlog")
        return {"steps": steps}

    def fill(self, topic, replies):
        self.broker.tool("topic", "create", topic, "--partitions", "1")
        say(f"  writing {replies:,} earlier replies")
        self.broker.tool(
            "tool", "producer-perf-test", "--topic", topic, "--num-records", str(replies), "--record-size",
            str(BACKLOG_RECORD_BYTES), "--throughput", "-1",
        )

    def overload(self, antiphon):
        """Twice what it can do, when it may hold no more than that takes."""
        steps = {}
        for held in OVERLOAD_IN_FLIGHT:
            command = antiphon.command(self.broker.bootstrap, {"LIMITS_IN_FLIGHT_MAX": held})
            process = self.start("antiphon", command, f"antiphon holding {held}")
            try:
                self.settle(process, held)
                full = self.load(process, f"full-{held}", "--in-flight", str(held), timeout=OVERLOAD_TIMEOUT)
                flags = ["--rate", str(round(2 * full["calls_per_second"])), "--in-flight", str(8 * FULL)]
                twice = self.load(process, f"twice-{held}", *flags, timeout=OVERLOAD_TIMEOUT)
                steps |= {f"full-{held}": full, f"twice-{held}": twice}
            finally:
                process.stop()
        return {"steps": steps}


def write_routes(folder, count):
    """A .proto with so many unary routes; echo.v1.EchoService/Echo is one."""
    folder = folder / f"routes-{count}"
    shutil.rmtree(folder, ignore_errors=True)
    target = folder / "echo/v1/echo.proto"
    target.parent.mkdir(parents=True)
    lines = ['syntax = "proto3";', "package echo.v1;", 'import "antiphon/v1/options.proto";']
    lines += ["message EchoRequest { bytes payload = 1; }", "message EchoReply { bytes payload = 1; }"]
    option = f'option (antiphon.v1.kafka_defaults) = {{ request_topic: "{TOPIC}" }};'
    left, service = count - 1, 0
    methods = ["Echo"]
    while methods:
        name = f"Other{service}Service" if service else "EchoService"
        lines.append(f"service {name} {{ {option}")
        lines += [f"  rpc {method}(EchoRequest) returns (EchoReply);" for method in methods]
        lines.append("}")
        methods = [f"Method{n}" for n in range(min(left, METHODS_PER_SERVICE))]
        left -= len(methods)
        service += 1
    target.write_text("\n".join(lines) + "\n")
    return target
