#!/usr/bin/env python3
"""Three triggers change the delivery radius of 300,000 shops at once.

    examples/delivery-radius/run.py [--quick] [--antiphon target/release/antiphon]

starts Apache Kafka (unless --bootstrap names one), PostgreSQL, three gateways
and two workers; shows first what goes wrong straight against the database, then
the same through Antiphon; checks every call, record and row; and ends with a
table, a plot and a list of the shops that failed in --out. Exits with 1 if
anything is wrong.

Needs Python 3.11, Go 1.26, PostgreSQL 13 or later, and Java with Maven for
Kafka. This file only prepares; scenario.py is what is run.
"""

import importlib.util
import os
import shutil
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
E2E = HERE.parents[1] / "tests" / "e2e"
PROGRAMS = ["worker", "callers", "naive", "topic"]


def main():
    if {"-h", "--help"} & set(sys.argv):
        sys.exit(__doc__)
    if shutil.which("go") is None:
        sys.exit("missing: go (Go 1.26 or later, for the workers and callers)")
    spec = importlib.util.spec_from_file_location("e2e_run", E2E / "run.py")
    e2e_run = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(e2e_run)
    python = e2e_run.prepare_venv()
    built = e2e_run.CACHE / "delivery-radius"
    built.mkdir(parents=True, exist_ok=True)
    packages = [f"./{name}" for name in PROGRAMS]
    subprocess.run(["go", "build", "-mod=readonly", "-o", f"{built}/", *packages], cwd=HERE, check=True)
    environment = {**os.environ, "PYTHONPATH": str(E2E), "PYTHONDONTWRITEBYTECODE": "1", "RADIUS_BUILT": str(built)}
    os.execve(python, [str(python), str(HERE / "scenario.py"), *sys.argv[1:]], environment)


if __name__ == "__main__":
    main()
