#!/usr/bin/env python3
"""Faults under load, on three brokers of Apache Kafka.

    tests/faults/run.py faults --antiphon target/release/antiphon [--quick]
    tests/faults/run.py memory --antiphon target/release/antiphon
    tests/faults/run.py truth --antiphon target/release/antiphon

Needs what tests/e2e/run.py needs, and shares its venv; Go builds the load
generator in load/. This file only prepares; faults.py, memory.py and
truth.py are what is run.
"""

import importlib.util
import os
import shutil
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
E2E = HERE.parent / "e2e"
PROGRAMS = ["faults", "memory", "truth"]


def build_load(folder):
    """The load generator; quick when nothing has changed."""
    if shutil.which("go") is None:
        sys.exit("Go, which builds the load generator, is missing: install Go 1.25 or newer")
    program = folder / "faults-load"
    program.parent.mkdir(parents=True, exist_ok=True)
    subprocess.run(["go", "build", "-o", str(program), "."], cwd=HERE / "load", check=True)
    return program


def main():
    if len(sys.argv) < 2 or sys.argv[1] not in PROGRAMS:
        sys.exit(__doc__)
    spec = importlib.util.spec_from_file_location("e2e_run", E2E / "run.py")
    e2e_run = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(e2e_run)
    python = e2e_run.prepare_venv()
    load = build_load(e2e_run.CACHE / "bin")
    environment = {
        **os.environ, "PYTHONPATH": str(E2E), "PYTHONDONTWRITEBYTECODE": "1", "FAULTS_LOAD": str(load),
    }  # fmt: skip
    os.execve(python, [str(python), str(HERE / f"{sys.argv[1]}.py"), *sys.argv[2:]], environment)


if __name__ == "__main__":
    main()
