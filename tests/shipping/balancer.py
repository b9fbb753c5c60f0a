"""HAProxy with the configuration of deploy/haproxy, in front of two gateways that come
and go under load. No call may fail when one goes in good order."""

import json
import re
import socket
import subprocess
import tempfile
import time
import urllib.request
from pathlib import Path

import yaml

from parts import ROOT, Crew, await_, check, run

ECHO = ROOT / "proto/echo/v1/echo.proto"
CONFIG = ROOT / "deploy/haproxy/haproxy.cfg"
LOAD_SECONDS = 12
IN_FLIGHT = 8


def free_port():
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def calls(admin):
    """Calls that this gateway has answered well."""
    with urllib.request.urlopen(f"http://{admin}/metrics", timeout=5) as answer:
        text = answer.read().decode()
    found = re.search(r'^antiphon_calls_total\{method="/echo.v1.EchoService/Echo",code="OK"\} (\d+)', text, re.MULTILINE)
    return int(found.group(1)) if found else 0


class Stage:
    def __init__(self, crew, options):
        self.crew, self.antiphon = crew, options.antiphon
        crew.start("broker", options.broker)
        self.bootstrap = crew.said("broker", r"bootstrap (\S+)").group(1)
        crew.start("worker", options.antiphon, "bench", "worker", "--bootstrap-servers", self.bootstrap)
        self.ports = {name: (free_port(), free_port()) for name in ("gateway-1", "gateway-2")}
        compose = yaml.safe_load((ROOT / "docker-compose.yml").read_text())["services"]
        self.notice = compose["gateway-1"]["environment"]["ANTIPHON_DRAIN_NOTICE"]
        self.listen = f"127.0.0.1:{free_port()}"

    def gateway(self, name):
        grpc, admin = self.ports[name]
        self.crew.start(
            name, self.antiphon, "serve", "--bootstrap-servers", self.bootstrap, "--listen", f"127.0.0.1:{grpc}",
            "--admin-listen", f"127.0.0.1:{admin}", "--proto", ECHO, "--shards", "1",
            env={"ANTIPHON_DRAIN_NOTICE": self.notice},
        )
        self.crew.said(name, "antiphon ready")

    def balancer(self):
        environment = {"LISTEN": self.listen}
        for name, (grpc, admin) in self.ports.items():
            key = name.upper().replace("-", "_")
            environment |= {key: f"127.0.0.1:{grpc}", f"{key}_ADMIN_HOST": "127.0.0.1", f"{key}_ADMIN_PORT": str(admin)}
        run("haproxy", "-c", "-f", CONFIG, env=environment)
        self.crew.start("haproxy", "haproxy", "-db", "-f", CONFIG, env=environment)
        await_(lambda: f"calls through HAProxy: {self.crew.text('haproxy')}", self.answers, 30)

    def answers(self):
        host, port = self.listen.split(":")
        with socket.socket() as caller:
            caller.settimeout(1)
            if caller.connect_ex((host, int(port))):
                return False
        return self.load("--calls", "1", "--in-flight", "1", "--timeout", "2s", ok=None).get("OK") == 1

    def load(self, *flags, ok=True):
        """How calls through the balancer end, all over one connection."""
        file = self.crew.folder / f"load-{time.monotonic_ns()}.json"
        command = [self.antiphon, "bench", self.listen, "echo.v1.EchoService/Echo", "--proto", ECHO, "--connections", "1",
                   "--json", file, *flags]
        if ok is None:
            subprocess.run([str(part) for part in command], capture_output=True, check=False, timeout=60)
        else:
            run(*command, seconds=120)
        if not file.is_file():
            return {}
        (row,) = json.loads(file.read_text())["runs"]
        return {"OK": row["ok"], **row["errors"]}

    def shares(self):
        return {name: calls(f"127.0.0.1:{admin}") for name, (_, admin) in self.ports.items()}


def part(options):
    with tempfile.TemporaryDirectory(prefix="antiphon-balancer-") as name, Crew(name) as crew:
        stage = Stage(crew, options)
        for gateway in stage.ports:
            stage.gateway(gateway)
        stage.balancer()

        before = stage.shares()
        ended = stage.load("--calls", "2000", "--in-flight", str(IN_FLIGHT))
        check(ended == {"OK": 2000}, f"calls ended {ended}")
        shares = {gateway: number - before[gateway] for gateway, number in stage.shares().items()}
        check(min(shares.values()) >= 600, f"of 2,000 calls over one connection the gateways had {shares}")
        print(f"ok  balancer: 2,000 calls over one connection, balanced call by call: {shares}")

        crew.start(
            "load", options.antiphon, "bench", stage.listen, "echo.v1.EchoService/Echo", "--proto", ECHO,
            "--connections", "1", "--in-flight", str(IN_FLIGHT), "--duration", f"{LOAD_SECONDS}s", "--json",
            crew.folder / "load.json",
        )
        time.sleep(3)
        began = time.monotonic()
        code = crew.end("gateway-1")
        took = time.monotonic() - began
        check(code == 0, f"gateway-1 ended with {code}: {crew.text('gateway-1')[-1000:]}")
        check(crew.processes["load"].poll() is None, "the load was over before the gateway had gone")
        crew.processes["load"].wait(LOAD_SECONDS + 30)
        (row,) = json.loads((crew.folder / "load.json").read_text())["runs"]
        check(row["errors"] == {} and row["ok"] > 0, f"while a gateway went: {row['ok']} OK, {row['errors']}")
        print(f"ok  balancer: a gateway goes in {took:.1f} s under load: {row['ok']} calls, none failed")

        ended = stage.load("--calls", "200", "--in-flight", str(IN_FLIGHT))
        check(ended == {"OK": 200}, f"with one gateway calls ended {ended}")
        stage.gateway("gateway-1")

        def shared():
            ended = stage.load("--calls", "50", "--in-flight", str(IN_FLIGHT))
            check(ended == {"OK": 50}, f"while a gateway came calls ended {ended}")
            return stage.shares()["gateway-1"] > 0

        await_("the gateway that came back gets calls", shared, 20)
        print("ok  balancer: it comes back and gets calls again, none failed")
