#!/usr/bin/env python3
"""Faults under load, on three brokers of Apache Kafka.

    tests/faults/run.py faults --antiphon target/release/antiphon [--quick]
    tests/faults/run.py memory --antiphon target/release/antiphon

Needs what tests/e2e/run.py needs, but for Go, and shares its venv. This file
only prepares; faults.py and memory.py are what is run.
"""

import importlib.util
import os
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
E2E = HERE.parent / "e2e"
PROGRAMS = ["faults", "memory"]


def main():
    if len(sys.argv) < 2 or sys.argv[1] not in PROGRAMS:
        sys.exit(__doc__)
    spec = importlib.util.spec_from_file_location("e2e_run", E2E / "run.py")
    e2e_run = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(e2e_run)
    python = e2e_run.prepare_venv()
    environment = {**os.environ, "PYTHONPATH": str(E2E), "PYTHONDONTWRITEBYTECODE": "1"}
    os.execve(python, [str(python), str(HERE / f"{sys.argv[1]}.py"), *sys.argv[2:]], environment)


if __name__ == "__main__":
    main()
