"""The gateways that are compared: how each is built, started and named."""

import json
import os
import shutil
import subprocess
import sys

from harness import ROOT, output, say

PEERS = ROOT / "bench/peers"
NODE = PEERS / "node"
SPRING = PEERS / "spring"
GO_BINARY = PEERS / "go/go-peer"
SPRING_APP = SPRING / "target/app/spring-peer.jar"
# A heap as such a service gets it, and of the collectors of Java 17 the one
# that took the least CPU here.
JAVA_FLAGS = ["-Xmx1g", "-XX:+UseParallelGC"]
BUILD_SECONDS_MAX = 900


def need(tool, what):
    if shutil.which(tool) is None:
        say(f"bench-peers: {tool} is missing ({what}); install it, or leave its gateway out with --subjects")
        sys.exit(69)


def build(*command, folder):
    done = subprocess.run(
        command, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=BUILD_SECONDS_MAX,
        check=False,
    )
    if done.returncode:
        say(done.stdout[-4000:])
        sys.exit(f"bench-peers: failed with {done.returncode}: {' '.join(command)}")


def newer(made, *sources):
    """Whether `made` is there and no older than what it is made from."""
    if not made.exists():
        return False
    files = [file for source in sources for file in ([source] if source.is_file() else source.rglob("*"))]
    return all(file.stat().st_mtime <= made.stat().st_mtime for file in files)


class Antiphon:
    def __init__(self, binary):
        self.binary = binary

    def build(self):
        pass

    def command(self, bootstrap, settings=(), proto="proto/echo/v1/echo.proto"):
        environment = {"SHARDS": 1, "ADMIN_LISTEN": "127.0.0.1:0", **dict(settings)}
        words = ["env", *(f"ANTIPHON_{name}={value}" for name, value in environment.items())]
        words += [str(self.binary), "serve", "--proto", str(proto), "--bootstrap-servers", bootstrap]
        return [*words, "--listen", "127.0.0.1:0"]

    def versions(self):
        return f"{output('git', 'describe', '--always', '--dirty')}, {output('rustc', '--version')}, 1 shard"


class Spring:
    def build(self):
        need("java", "Java 17 or later")
        need("mvn", "Maven, which builds the Spring gateway")
        if newer(SPRING_APP, SPRING / "src", SPRING / "pom.xml"):
            return
        build("mvn", "-B", "-q", "package", folder=SPRING)
        shutil.rmtree(SPRING_APP.parent, ignore_errors=True)
        # Unpacked, as its reference advises: it starts sooner than from one jar.
        build("java", "-Djarmode=tools", "-jar", "target/spring-peer.jar", "extract", "--destination", "target/app",
              folder=SPRING)
        os.utime(SPRING_APP)

    def command(self, bootstrap):
        return ["java", *JAVA_FLAGS, "-jar", str(SPRING_APP), f"--spring.kafka.bootstrap-servers={bootstrap}"]

    def versions(self):
        names = ["spring-boot-4", "spring-kafka", "grpc-netty", "kafka-clients"]
        jars = [file.stem for file in sorted((SPRING_APP.parent / "lib").glob("*.jar"))]
        found = [jar for jar in jars if jar.startswith(tuple(names))]
        return f"{', '.join(found)}; {output('java', '-version')}, {' '.join(JAVA_FLAGS)}"


class Go:
    def build(self):
        need("go", "Go 1.26 or later, which builds the Go gateway")
        build("go", "build", "-o", str(GO_BINARY), ".", folder=GO_BINARY.parent)

    def command(self, bootstrap):
        return [str(GO_BINARY), "--bootstrap-servers", bootstrap]

    def versions(self):
        lines = (GO_BINARY.parent / "go.mod").read_text().splitlines()
        direct = [line.split()[0].rpartition("/")[2] + " " + line.split()[1] for line in lines
                  if line.startswith("\t") and "indirect" not in line]
        return f"{', '.join(direct)}; {output('go', 'version').removeprefix('go version ')}"


class Node:
    def build(self):
        need("npm", "npm, which installs the Node gateway")
        if not newer(NODE / "node_modules/.package-lock.json", NODE / "package-lock.json"):
            build("npm", "ci", "--ignore-scripts", folder=NODE)
            (NODE / "node_modules/.package-lock.json").touch()

    def runtime(self):
        """The pinned one, where npm has it for this machine."""
        pinned = sorted(NODE.glob("node_modules/node-*/bin/node"))
        return str(pinned[0]) if pinned else "node"

    def command(self, bootstrap):
        return [self.runtime(), str(NODE / "index.js"), "--bootstrap-servers", bootstrap]

    def versions(self):
        wanted = json.loads((NODE / "package.json").read_text())["dependencies"]
        return f"{', '.join(f'{name} {version}' for name, version in wanted.items())}; Node {output(self.runtime(), '--version')}"
