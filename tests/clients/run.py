#!/usr/bin/env python3
"""Real gRPC clients of every language, against the built gateway on Apache Kafka.

    tests/clients/run.py --antiphon target/release/antiphon
    tests/clients/run.py --antiphon ... --client java --client web

builds the clients of examples/clients, starts a broker with scripts/kafka
unless --bootstrap names one, lets every client run its cases, and prints
clients against cases. It ends with "N passed, N failed", each a cell.
Whatever is missing fails the run, but for Chromium, which is installed.

Needs Python 3.11, Java 17, Maven, Go, Node 20 with npm, cargo. This file
prepares; table.py runs the clients and judges what they print.
"""

import hashlib
import os
import runpy
import shutil
import subprocess
import sys
import venv
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
EXAMPLES = ROOT / "examples" / "clients"
BUILT = ROOT / ".cache" / "clients"
BUF_VERSION = "v1.72.0"
BUF = ROOT / ".cache" / "bin" / f"buf-{BUF_VERSION}"
CHROMIUM = "/usr/bin/chromium"
CLIENTS = ["java", "python", "node", "go", "rust", "web", "grpcurl", "buf"]


def need(tool, words):
    if shutil.which(tool) is None:
        sys.exit(f"missing: {tool} ({words})")


def run(command, folder, **environment):
    """A build step; its output is shown only when it fails."""
    ran = subprocess.run(
        command, cwd=folder, env={**os.environ, **environment}, stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False,
    )  # fmt: skip
    if ran.returncode != 0:
        sys.exit(f"{' '.join(map(str, command))} in {folder} ended with {ran.returncode}:\n{ran.stdout}")


def fingerprint(*paths):
    digest = hashlib.sha256()
    for path in paths:
        for file in sorted(path.rglob("*")) if path.is_dir() else [path]:
            if file.is_file():
                digest.update(str(file.relative_to(ROOT)).encode() + b"\0" + file.read_bytes())
    return digest.hexdigest()


def unless_built(name, result, sources, build):
    """Builds what is not there, or was built from something else."""
    stamp, wanted = BUILT / f"{name}.stamp", fingerprint(*sources)
    if result.exists() and stamp.is_file() and stamp.read_text() == wanted:
        return
    print(f"building the client {name}", flush=True)
    stamp.unlink(missing_ok=True)
    build()
    stamp.write_text(wanted)


def build_java():
    need("mvn", "Maven, for the client in Java")
    folder = EXAMPLES / "java"
    sources = [folder / "pom.xml", folder / "src", ROOT / "proto"]
    command = ["mvn", "-B", "-q", "package"]
    unless_built("java", folder / "target" / "client-java.jar", sources, lambda: run(command, folder))


def build_python():
    python, pins = BUILT / "python" / "bin" / "python", EXAMPLES / "python" / "requirements.txt"

    def build():
        venv.create(python.parents[1], with_pip=True, clear=True)
        pip = [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
        run([*pip, "-r", str(pins)], ROOT)

    unless_built("python", python, [pins], build)


def npm(*words):
    return ["npm", "ci", "--ignore-scripts", "--no-audit", "--no-fund"] if words == ("ci",) else ["npm", *words]


def build_node():
    need("npm", "Node 20 with npm, for the client in Node")
    folder = EXAMPLES / "node"
    sources = [folder / "package.json", folder / "package-lock.json"]
    unless_built("node", folder / "node_modules", sources, lambda: run(npm("ci"), folder))


def build_go():
    need("go", "Go 1.26, for the client in Go")
    folder, binary = EXAMPLES / "go", BUILT / "client-go"
    command = ["go", "build", "-mod=readonly", "-o", str(binary), "."]
    unless_built("go", binary, [folder], lambda: run(command, folder))


def build_rust():
    need("cargo", "Rust 1.91, for the client in Rust")
    # Cargo knows by itself whether there is something to do.
    run(["cargo", "build", "--quiet", "--locked", "--target-dir", str(BUILT / "rust")], EXAMPLES / "rust")


def build_web():
    need("npm", "Node 20 with npm, for the client in a page")
    install_chromium()
    folder = EXAMPLES / "web"
    names = ["package.json", "package-lock.json", "buf.gen.yaml", "client.ts"]

    def build():
        run(npm("ci"), folder)
        run(npm("run", "build"), folder)

    sources = [*(folder / name for name in names), ROOT / "proto"]
    unless_built("web", folder / "dist" / "client.js", sources, build)


def install_chromium():
    if Path(CHROMIUM).exists():
        return
    if os.geteuid() != 0 or shutil.which("apt-get") is None:
        sys.exit(f"missing: {CHROMIUM} (Debian: apt-get install chromium)")
    print("installing Chromium", flush=True)
    run(["apt-get", "update", "-qq"], ROOT)
    install = ["apt-get", "install", "-y", "-qq", "--no-install-recommends", "chromium"]
    run(install, ROOT, DEBIAN_FRONTEND="noninteractive")


def build_buf():
    if BUF.is_file():
        return
    need("go", "Go, which builds buf")
    print(f"building buf {BUF_VERSION}", flush=True)
    BUF.parent.mkdir(parents=True, exist_ok=True)
    run(["go", "install", f"github.com/bufbuild/buf/cmd/buf@{BUF_VERSION}"], ROOT, GOBIN=str(BUF.parent))
    (BUF.parent / "buf").rename(BUF)


def main():
    need("java", "Java 17 or later, for Apache Kafka and the client in Java")
    need("node", "Node 20 with npm, for the clients in Node and in a page")
    BUILT.mkdir(parents=True, exist_ok=True)
    # The end-to-end tests' venv and grpcurl: the same pins.
    e2e = runpy.run_path(str(ROOT / "tests" / "e2e" / "run.py"))
    builds = {
        "java": build_java, "python": build_python, "node": build_node, "go": build_go, "rust": build_rust,
        "web": build_web, "grpcurl": e2e["prepare_grpcurl"], "buf": build_buf,
    }  # fmt: skip
    python = e2e["prepare_venv"]()
    wanted = [word for at, word in enumerate(sys.argv) if sys.argv[at - 1] == "--client"] or CLIENTS
    for client in CLIENTS:
        if client in wanted:
            builds[client]()
    environment = {
        **os.environ,
        "PYTHONDONTWRITEBYTECODE": "1",
        "CLIENTS_GRPCURL": str(e2e["GRPCURL"]),
        "CLIENTS_BUF": str(BUF),
        "CLIENTS_BUILT": str(BUILT),
        "CHROMIUM": CHROMIUM,
    }
    os.execve(python, [str(python), str(HERE / "table.py"), *sys.argv[1:]], environment)


if __name__ == "__main__":
    main()
