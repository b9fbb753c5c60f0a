#!/usr/bin/env python3
"""Real workers of every framework, behind the built gateway, on Apache Kafka.

    tests/interop/run.py --antiphon target/release/antiphon
    tests/interop/run.py --antiphon ... --worker spring --case order --case rebalance

builds the workers of examples/workers, starts a broker with scripts/kafka
unless --bootstrap names one, drives every worker through the same cases with
real gRPC calls, and prints workers against cases. It ends with "N passed,
N failed", each a cell. Whatever is missing fails the run.

Needs Python 3.11, Java 17, Maven, Go, Rust 1.91, Node 20 and npm. This file prepares;
workers.py says how each worker is built, started and what to expect of it,
cases.py holds the cases, matrix.py runs them.
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
EXAMPLES = ROOT / "examples" / "workers"
BUILT = ROOT / ".cache" / "interop"

sys.path.insert(0, str(HERE))
import workers  # noqa: E402


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


def unless_built(name, results, sources, build):
    """Builds what is not there, or was built from something else."""
    stamp, wanted = BUILT / f"{name}.stamp", fingerprint(*sources)
    if all(result.exists() for result in results) and stamp.is_file() and stamp.read_text() == wanted:
        return
    print(f"building the worker {name}", flush=True)
    stamp.unlink(missing_ok=True)
    build()
    stamp.write_text(wanted)


def build_java(name, jar):
    need("mvn", f"Maven, for the worker {name}")
    folder = EXAMPLES / name
    sources = [folder / "pom.xml", folder / "src", ROOT / "proto"]
    command = ["mvn", "-B", "-q", "package"]
    unless_built(name, [jar], sources, lambda: run(command, folder))


def build_go():
    need("go", "Go, for the Go worker")
    folder = EXAMPLES / "go"
    command = ["go", "build", "-mod=readonly", "-o", str(workers.GO_BINARY), "."]
    unless_built("go", [workers.GO_BINARY], [folder], lambda: run(command, folder))


def build_rust():
    need("cargo", "Rust 1.91, for the Rust worker")
    # cargo knows itself what is built.
    run(["cargo", "build", "--release", "--locked"], EXAMPLES / "rust", CARGO_TARGET_DIR=str(workers.RUST_TARGET))


def need_node():
    for tool in ("node", "npm"):
        need(tool, "Node 20.19 or later with npm, for the workers node and nestjs")


def build_node():
    need_node()
    folder = EXAMPLES / "node"
    install = ["npm", "ci", "--ignore-scripts", "--no-audit", "--no-fund"]
    sources = [folder / "package.json", folder / "package-lock.json"]
    unless_built("node", [folder / "node_modules"], sources, lambda: run(install, folder))


def build_nestjs():
    need_node()
    folder = EXAMPLES / "nestjs"

    def build():
        run(["npm", "ci", "--ignore-scripts", "--no-audit", "--no-fund"], folder)
        run(["npm", "run", "build"], folder)

    sources = [folder / name for name in ("package.json", "package-lock.json", "tsconfig.json", "src")]
    unless_built("nestjs", [workers.NESTJS_MAIN, folder / "node_modules"], sources, build)


def build_faststream():
    folder = EXAMPLES / "faststream"

    def build():
        venv.create(workers.FASTSTREAM_PYTHON.parents[1], with_pip=True, clear=True)
        pip = [str(workers.FASTSTREAM_PYTHON), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
        run([*pip, "-r", "requirements.txt"], folder)

    unless_built("faststream", [workers.FASTSTREAM_PYTHON], [folder / "requirements.txt"], build)


BUILDS = {
    "python": lambda: None,  # The tests' own venv has what it needs.
    "spring": lambda: build_java("spring", workers.SPRING_JAR),
    "smallrye": lambda: build_java("smallrye", workers.SMALLRYE_JAR),
    "go": build_go,
    "rust": build_rust,
    "node": build_node,
    "nestjs": build_nestjs,
    "faststream": build_faststream,
}


def main():
    need("java", "Java 17 or later, for Apache Kafka and the Spring worker")
    BUILT.mkdir(parents=True, exist_ok=True)
    # The end-to-end tests' venv: the same clients, the same pins.
    python = runpy.run_path(str(ROOT / "tests" / "e2e" / "run.py"))["prepare_venv"]()
    chosen = workers.chosen(sys.argv[1:])
    for example in dict.fromkeys(worker.example for worker in chosen):
        BUILDS[example]()
    environment = {**os.environ, "PYTHONDONTWRITEBYTECODE": "1"}
    os.execve(python, [str(python), str(HERE / "matrix.py"), *sys.argv[1:]], environment)


if __name__ == "__main__":
    main()
