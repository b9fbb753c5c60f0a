"""HTTP/2 abuse: what each attack costs the gateway, and a bystander.

Memory is the gateway's resident set. After an attack it must come back to within
MEMORY_AFTER_MIB of what it was: the allocator gives pages back late, and buffers
of connections that were busy once stay. During one it may grow by what the bounds
allow: DURING_MIB by default, and for the slow reader its connection's replies, of
64 MiB and one more, and as much again for the buffers of Kafka's answers that they
were read from.
"""

import json
import math
import subprocess
import sys
import threading
import time
from pathlib import Path

import grpc

from common import ECHO, Authority, Gateway, Table, bench_worker, call, write
from harness import Process, check, tail, wait_until

HERE = Path(__file__).resolve().parent
MEMORY_AFTER_MIB, DURING_MIB = 64, 128
P99_MS_MAX = 1_000
ATTACK_SECONDS_MAX = 60
# Name, title, over TLS, what memory may grow by, whether a newcomer must get in.
ROWS = [
    ("rapid_reset", "rapid reset (CVE-2023-44487)", False, DURING_MIB, True),
    ("reset_calls", "whole calls, then reset", False, DURING_MIB, True),
    ("more_streams", "more streams than allowed", False, DURING_MIB, True),
    ("continuation_flood", "CONTINUATION flood (CVE-2024-27316)", False, DURING_MIB, True),
    ("empty_continuations", "empty CONTINUATION frames", False, DURING_MIB, True),
    ("hpack_bomb", "HPACK bomb", False, DURING_MIB, True),
    ("ping_flood", "PING flood", False, DURING_MIB, True),
    ("settings_flood", "SETTINGS flood", False, DURING_MIB, True),
    ("empty_data", "empty DATA frames (CVE-2019-9518)", False, DURING_MIB, True),
    ("garbage", "garbage", False, DURING_MIB, True),
    ("slow_reader", "a window that never opens", False, 256, True),
    ("slow_body", "slow bodies", False, DURING_MIB, True),
    ("idle", "idle connections", False, DURING_MIB, True),
    ("half_preface", "half a preface", False, DURING_MIB, True),
    ("more_connections", "more connections than allowed", False, DURING_MIB, False),
    ("tls_stall", "TLS handshakes that stall", True, DURING_MIB, True),
]


class Target:
    """A gateway under attack, and its bystander."""

    def __init__(self, bench, tls):
        self.bench, folder = bench, bench.folder
        name = "target-tls" if tls else "target"
        config = (
            f'[kafka]\nbootstrap_servers = ["{bench.broker.address("ADMIN")}"]\n\n[limits]\nbytes_held_max = "256MiB"\n\n'
            '[grpc]\nlisten = "127.0.0.1:0"\nconnections_max = 1000\nstreams_per_connection_max = 100\n'
            'keep_alive_interval = "3s"\nkeep_alive_timeout = "8s"\n\n'
        )
        self.authority = Authority("Target CA")
        self.ca_file = write(folder / "target-ca.pem", self.authority.pem)
        if tls:
            pem, key = self.authority.issue("target", ["localhost", "127.0.0.1"])
            cert, key = write(folder / "target.crt", pem), write(folder / "target.key", key)
            config += f'[grpc.tls]\ncert_file = "{cert}"\nkey_file = "{key}"\n\n'
        config += '[service."echo.v1.EchoService"]\ntimeout = "3s"\ntimeout_max = "30s"\n'
        self.tls = tls
        self.gateway = bench.child(Gateway(folder, bench.antiphon, name, config)).wait_ready()
        arguments = [self.gateway.grpc] + ([str(self.ca_file)] if tls else [])
        command = [sys.executable, str(HERE / "bystander.py"), *arguments]
        self.bystander = bench.child(Process(folder, f"bystander-{name}", command))
        wait_until(lambda: len(self.calls(0)) > 100, 30, lambda: f"the bystander calls\n{tail(self.bystander.stderr)}")

    def calls(self, since, until=math.inf):
        """Milliseconds and codes of the bystander's calls that were due then."""
        found = []
        for line in self.bystander.stdout.read_text().splitlines():
            parts = line.split(" ", 2)
            if len(parts) == 3 and since <= float(parts[0]) < until:
                found.append((float(parts[1]), parts[2]))
        return found

    def newcomer(self):
        """A call on a fresh connection."""
        if self.tls:
            credentials = grpc.ssl_channel_credentials(self.authority.pem.encode())
            channel = grpc.secure_channel(self.gateway.grpc, credentials)
        else:
            channel = grpc.insecure_channel(self.gateway.grpc, [("grpc.use_local_subchannel_pool", 1)])
        with channel:
            return call(channel, ECHO, b"", seconds=5)[0]

    def end(self):
        self.bystander.end()
        self.gateway.end()


class Memory(threading.Thread):
    """Samples the gateway's memory."""

    def __init__(self, gateway):
        super().__init__(daemon=True)
        self.gateway, self.most, self.ending = gateway, 0.0, threading.Event()
        self.start()

    def run(self):
        while not self.ending.wait(0.1):
            if self.gateway.alive():
                self.most = max(self.most, self.gateway.memory_mib())

    def stop(self):
        self.ending.set()
        self.join(5)
        return self.most


def p99(calls):
    ordered = sorted(ms for ms, _ in calls)
    return ordered[min(len(ordered) - 1, math.ceil(len(ordered) * 0.99) - 1)] if ordered else math.inf


def attack(target, row, table, seconds, quiet):
    name, title, _, grows_max, newcomer_must = row
    gateway, started = target.gateway, time.monotonic()
    time.sleep(quiet)
    before, began, memory = gateway.memory_mib(), time.monotonic(), Memory(gateway)
    command = [sys.executable, str(HERE / "attacks.py"), name, gateway.grpc, str(seconds)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as attacker:
        time.sleep(seconds * 0.6)
        newcomer = target.newcomer()
        out, errors = attacker.communicate(timeout=ATTACK_SECONDS_MAX)
    most, ended = memory.stop(), time.monotonic()
    check(attacker.returncode == 0, f"the attack {name} ended with {attacker.returncode}\n{errors}")
    seen = json.loads(out)
    time.sleep(quiet)
    after = came_back(gateway, before)
    # Calls that were due last may still be under way.
    over = time.monotonic() - 0.5
    time.sleep(1)
    phases = [target.calls(started, began), target.calls(began, ended), target.calls(ended, over)]
    everybody = [code for calls in phases for _, code in calls]
    lost = [code for code in everybody if code != "OK"]
    latency = [p99(calls) for calls in phases]
    wrong = [
        words
        for bad, words in [
            (not gateway.alive(), "the gateway is gone"),
            (seen["wrong"], seen["wrong"]),
            (lost, f"{len(lost)} of the bystander's calls failed: {lost[:1]}"),
            (len(phases[1]) < seconds * 50, f"the bystander made only {len(phases[1])} calls"),
            (max(latency[1:]) > P99_MS_MAX, "the bystander waited too long"),
            (most - before > grows_max, f"memory grew by {most - before:.0f} MiB"),
            (after - before > MEMORY_AFTER_MIB, "memory did not come back"),
            (newcomer_must and newcomer != "OK", f"a newcomer got {newcomer}"),
        ]
        if bad
    ]
    table.row(
        title, seen["did"], seen["saw"], " / ".join(f"{mib:.0f}" for mib in (before, most, after)),
        " / ".join(f"{ms:.0f}" for ms in latency), f"{len(everybody) - len(lost)} of {len(everybody)}", newcomer,
        wrong="; ".join(wrong),
    )  # fmt: skip


def came_back(gateway, before):
    """Memory once it has come back, or what it is when it does not."""
    until = time.monotonic() + 15
    while (now := gateway.memory_mib()) - before > MEMORY_AFTER_MIB / 2 and time.monotonic() < until:
        time.sleep(0.5)
    return now


def run(bench):
    table = Table(
        "HTTP/2 abuse", "attack", "what it did", "what the gateway did", "MiB before / most / after",
        "p99 ms before / during / after", "bystander's calls OK", "newcomer",
    )  # fmt: skip
    bench.tables.append(table)
    bench.child(bench_worker(bench.folder, bench.antiphon, bench.broker.address("ADMIN"), "echo.v1.EchoService"))
    rows = [row for row in ROWS if bench.attack in (None, row[0])]
    check(rows, f"there is no attack {bench.attack}")
    for tls in sorted({row[2] for row in rows}):
        target = Target(bench, tls)
        for row in [row for row in rows if row[2] == tls]:
            # Their time-outs have to pass.
            least = {"slow_reader": 25, "slow_body": 6}.get(row[0], 0)
            attack(target, row, table, max(least, 2 if bench.quick else 8), 1 if bench.quick else 4)
        target.end()
