"""The image: the Dockerfile's last stage, built by buildah from a binary that is linked
as the Dockerfile links it, and run by crun as the chart's pod would run it."""

import json
import os
import re
import shutil
import socket
import struct
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

from chart import manifests, materialise, render
from parts import ROOT, Crew, Failure, await_, check, run

BINARY_BYTES_MAX = 40 * 1024 * 1024
BROKER_NAME = "kafka.test"
TARGET = ROOT / "target" / "shipping"


def static_binary():
    """Linked whole, by the flags of the Dockerfile, without its debug information."""
    host = re.search(r"^host: (.*)$", run("rustc", "-vV"), re.MULTILINE).group(1)
    dockerfile = (ROOT / "Dockerfile").read_text()
    flags = re.search(r'RUSTFLAGS="([^"]+)" cargo build --release --locked --bin antiphon --target', dockerfile)
    check(flags, "the Dockerfile builds with other words than this test knows")
    run(
        "cargo", "build", "--release", "--locked", "--bin", "antiphon", "--target", host, "--target-dir", TARGET,
        cwd=ROOT, env={"RUSTFLAGS": flags.group(1), "CARGO_INCREMENTAL": "0"}, seconds=2400,
    )
    return TARGET / host / "release" / "antiphon"


class Buildah:
    """Buildah with a store of its own."""

    def __init__(self, folder):
        self.base = ["buildah", "--storage-driver", "vfs", "--root", folder / "store", "--runroot", folder / "run"]

    def __call__(self, *arguments):
        return run(*self.base, *arguments)


def build(folder, binary):
    """The last stage, from a context with what the first would have made."""
    context = folder / "context"
    for name in ("usr/local/bin", "etc/ssl/certs"):
        (context / "image" / name).mkdir(parents=True)
    dockerfile = (ROOT / "Dockerfile").read_text()
    for words in ("strip --strip-debug -o /image/usr/local/bin/antiphon", "/etc/ssl/certs/ca-certificates.crt /image/etc/ssl/certs/"):
        check(words in dockerfile, f"the Dockerfile no longer says: {words}")
    run("strip", "--strip-debug", "-o", context / "image/usr/local/bin/antiphon", binary)
    shutil.copy("/etc/ssl/certs/ca-certificates.crt", context / "image/etc/ssl/certs/")
    last = dockerfile[dockerfile.rindex("\nFROM ") + 1 :]
    check(last.startswith("FROM scratch\n"), f"the last stage begins with {last.splitlines()[0]}")
    check("COPY --from=build /image/ /" in last, "the last stage copies something else")
    (context / "Dockerfile").write_text(last.replace("--from=build /image/", "image/"))
    buildah = Buildah(folder)
    buildah("bud", "--format", "docker", "--isolation", "chroot", "-t", "antiphon:test", context)
    config = json.loads(buildah("inspect", "--type", "image", "antiphon:test"))["Docker"]["config"]
    root = Path(buildah("mount", buildah("from", "antiphon:test").strip()).strip())
    return config, root


def check_image(config, root):
    check(config["User"] == "65532:65532", f"user {config['User']}")
    check(config["StopSignal"] == "SIGTERM", f"stop signal {config.get('StopSignal')}")
    check(config["Healthcheck"]["Test"] == ["CMD", "/usr/local/bin/antiphon", "health"], "the health check")
    version = re.search(r'^version = "(.*)"', (ROOT / "Cargo.toml").read_text(), re.MULTILINE).group(1)
    label = config["Labels"]["org.opencontainers.image.version"]
    check(label == version, f"the label says {label}, Cargo.toml {version}")
    files = sorted(str(path.relative_to(root)) for path in root.rglob("*") if path.is_file())
    check(
        files == ["etc/ssl/certs/ca-certificates.crt", "usr/local/bin/antiphon"],
        f"in the image are {files}",
    )
    size = (root / "usr/local/bin/antiphon").stat().st_size
    check(size < BINARY_BYTES_MAX, f"the binary has {size} bytes")
    headers = run("readelf", "-lW", root / "usr/local/bin/antiphon")
    check("INTERP" not in headers, "the binary needs a loader")
    print(f"ok  image: {len(files)} files, {size / 2**20:.1f} MiB, nothing is linked at run time")


def bundle(folder, config, root, pod, name):
    """What crun runs: the image's own words, under the pod's security context."""
    container = pod["containers"][0]
    security, user = container["securityContext"], pod["securityContext"]
    mounts = [
        {"destination": "/proc", "type": "proc", "source": "proc"},
        {"destination": "/dev", "type": "tmpfs", "source": "tmpfs", "options": ["nosuid", "mode=755"]},
        *(
            {"destination": mount["mountPath"], "type": "bind", "source": str(folder / "volumes" / mount["name"]),
             "options": ["rbind", "ro"]}
            for mount in container["volumeMounts"]
        ),
        # As the kubelet mounts it.
        {"destination": "/etc/resolv.conf", "type": "bind", "source": str(folder / "resolv.conf"),
         "options": ["rbind", "ro"]},
    ]
    spec = {
        "ociVersion": "1.0.0",
        "process": {
            "user": {"uid": user["runAsUser"], "gid": user["runAsGroup"]},
            "args": [*config["Entrypoint"], *container["args"]],
            "env": config["Env"],
            "cwd": "/",
            "capabilities": {key: [] for key in ("bounding", "effective", "permitted", "inheritable", "ambient")},
            "noNewPrivileges": not security["allowPrivilegeEscalation"],
        },
        "root": {"path": str(root), "readonly": security["readOnlyRootFilesystem"]},
        "hostname": name,
        "mounts": mounts,
        # The network is this test's own namespace.
        "linux": {"namespaces": [{"type": kind} for kind in ("pid", "ipc", "uts", "mount")]},
    }
    check(security["capabilities"]["drop"] == ["ALL"], "the pod keeps capabilities")
    place = folder / name
    place.mkdir()
    (place / "config.json").write_text(json.dumps(spec))
    return ["crun", "--root", folder / "crun", "--cgroup-manager=disabled"], place


class Names(threading.Thread):
    """A name server that knows the broker's name, and whom it was asked for."""

    def __init__(self):
        super().__init__(daemon=True)
        self.socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self.socket.bind(("127.0.0.1", 53))
        self.asked = set()

    def run(self):
        while True:
            query, sender = self.socket.recvfrom(1500)
            labels, at = [], 12
            while query[at]:
                labels.append(query[at + 1 : at + 1 + query[at]].decode(errors="replace"))
                at += 1 + query[at]
            name, kind = ".".join(labels), struct.unpack(">H", query[at + 1 : at + 3])[0]
            self.asked.add(name)
            found = name == BROKER_NAME
            answer = b"\xc0\x0c\x00\x01\x00\x01\x00\x00\x00\x05\x00\x04\x7f\x00\x00\x01" if found and kind == 1 else b""
            head = query[:2] + struct.pack(">HHHHH", 0x8180 if found else 0x8183, 1, bool(answer), 0, 0)
            self.socket.sendto(head + query[12 : at + 5] + answer, sender)


def check_process(pid):
    """What the kernel says of the process."""
    status = Path(f"/proc/{pid}/status").read_text()
    said = dict(line.split(":\t", 1) for line in status.splitlines() if ":\t" in line)
    check(said["Uid"].split() == ["65532"] * 4, f"uid {said['Uid']}")
    check(int(said["CapEff"], 16) == int(said["CapBnd"], 16) == 0, "it has capabilities")
    check(said["NoNewPrivs"] == "1", "it may gain privileges")
    mounted = [line.split()[4:6] for line in Path(f"/proc/{pid}/mountinfo").read_text().splitlines()]
    # Every runtime mounts /proc and /dev, and they are root's.
    writable = [at for at, options in mounted if "ro" not in options.split(",") and not at.startswith(("/proc", "/dev"))]
    check(not writable, f"these can be written to: {writable}")
    try:
        (Path(f"/proc/{pid}/root") / "written").write_text("")
    except OSError as error:
        check("Read-only" in str(error), str(error))
    else:
        raise Failure("its root file system can be written to")


def inside(folder, antiphon, broker):
    """In a network of our own, with the broker, a worker and a name server."""
    run("ip", "link", "set", "lo", "up")
    if Path("/sys/fs/cgroup/unified").is_dir():
        # crun does without cgroups here, and yet does not start where both kinds are.
        run("umount", "--lazy", "/sys/fs/cgroup/unified")
    config, root = json.loads((folder / "image.json").read_text()), Path((folder / "root").read_text())
    names = Names()
    names.start()
    (folder / "resolv.conf").write_text("nameserver 127.0.0.1\noptions timeout:1 attempts:2\n")
    with Crew(folder) as crew:
        crew.start("broker", broker)
        port = crew.said("broker", r"bootstrap \S+:(\d+)").group(1)
        crew.start("worker", antiphon, "bench", "worker", "--bootstrap-servers", f"127.0.0.1:{port}")
        echo = ROOT / "proto/echo/v1/echo.proto"
        documents = render(
            "--set-json", f'config.kafka.bootstrap_servers=["{BROKER_NAME}:{port}"]', "--set-file", rf"protos.files.echo/v1/echo\.proto={echo}"
        )
        pod = manifests(documents, "Deployment")[0]["spec"]["template"]["spec"]
        materialise(documents, pod, folder / "volumes")
        crun, place = bundle(folder, config, root, pod, "gateway")
        crew.start("gateway", *crun, "run", "--bundle", place, "gateway")
        crew.said("gateway", r"antiphon ready")
        check(BROKER_NAME in names.asked, f"the name server was asked for {names.asked} only")
        pid = json.loads(run(*crun, "state", "gateway"))["pid"]
        check_process(pid)
        print("ok  image: runs as the chart's pod: uid 65532, no capability, nothing writable; found the broker by name")

        load = json.loads(
            run(antiphon, "bench", "127.0.0.1:50051", "echo.v1.EchoService/Echo", "--proto", echo, "--calls", "500",
                "--in-flight", "16", "--json", "-")
        )
        answered = codes(load)
        check(answered == {"OK": 500}, f"500 calls ended {answered}")
        said = run(*crun, "exec", "gateway", *config["Healthcheck"]["Test"][1:], "--config", "/etc/antiphon/config/antiphon.toml")
        check(said == "ready\n", f"the health check says {said!r}")
        print("ok  image: 500 calls through it are answered; its health check says ready")
        check_stop(crew, crun, pod, antiphon, config)

        # Public authorities are found: what fails is TLS with a broker that has none.
        crun, place = bundle(folder, config, root, pod, "tls")
        spec = json.loads((place / "config.json").read_text())
        spec["process"]["env"] += ["ANTIPHON_KAFKA_TLS_ENABLED=true", "ANTIPHON_REPLY_START_TIMEOUT=3s"]
        (place / "config.json").write_text(json.dumps(spec))
        said = run(*crun, "run", "--bundle", place, "tls", ok=False)
        check("no trusted certificates" not in said and "Kafka" in said, f"with TLS it says {said}")
        print("ok  image: certificates of public authorities are found")


def codes(report):
    """How the calls in a report of `antiphon bench --json` ended."""
    (row,) = report["runs"]
    return {"OK": row["ok"], **row["errors"]}


def check_stop(crew, crun, pod, antiphon, config):
    """SIGTERM: it says so at once, drains, and ends well within the grace period."""
    began = time.monotonic()
    run(*crun, "kill", "gateway", config["StopSignal"])
    health = [*config["Healthcheck"]["Test"][1:], "--config", "/etc/antiphon/config/antiphon.toml"]
    await_("the health check sees the drain", lambda: "about to drain" in probe(crun, health), 5)
    load = json.loads(
        run(antiphon, "bench", "127.0.0.1:50051", "echo.v1.EchoService/Echo", "--proto",
            ROOT / "proto/echo/v1/echo.proto", "--calls", "50", "--in-flight", "4", "--json", "-")
    )
    check(codes(load) == {"OK": 50}, f"during drain.notice calls ended {codes(load)}")
    grace = pod["terminationGracePeriodSeconds"]
    process = crew.processes["gateway"]
    try:
        code = process.wait(grace)
    except subprocess.TimeoutExpired:
        raise Failure(f"still there after the grace period of {grace} s") from None
    took = time.monotonic() - began
    check(code == 0, f"it ended with {code}: {crew.text('gateway')[-2000:]}")
    print(f"ok  image: serves on through drain.notice, gone {took:.1f} s after SIGTERM, of {grace} s it has")


def probe(crun, command):
    done = subprocess.run([*map(str, crun), "exec", "gateway", *command], capture_output=True, text=True, check=False, timeout=20)
    return done.stdout


def part(options):
    binary = Path(options.static) if options.static else static_binary()
    with tempfile.TemporaryDirectory(prefix="antiphon-image-") as name:
        folder = Path(name)
        config, root = build(folder, binary)
        check_image(config, root)
        (folder / "image.json").write_text(json.dumps(config))
        (folder / "root").write_text(str(root))
        # Everything that follows is on a network of its own, where port 53 is free.
        os.sync()
        done = subprocess.run(
            ["unshare", "--net", "--mount", sys.executable, __file__, folder, options.antiphon, options.broker], check=False, timeout=600
        )
        check(done.returncode == 0, "the image does not do what it should")


if __name__ == "__main__":
    try:
        inside(Path(sys.argv[1]), *sys.argv[2:])
    except Failure as failure:
        print(f"FAILED: {failure}", file=sys.stderr)
        sys.exit(1)
