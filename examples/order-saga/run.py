#!/usr/bin/env python3
"""Orders that are reserved, paid and confirmed through Antiphon, while what does
it is killed.

    examples/order-saga/run.py [--quick] [--antiphon target/release/antiphon] [--seed N]

starts Apache Kafka (unless --bootstrap names one), two gateways, three services
and the orchestrator; places orders; ends processes with kill -9 at random
moments; and asks the databases at the end whether every order is confirmed and
paid, or cancelled and not. Exits with 1 if anything is wrong.

Needs Python 3.11, and Java with Maven for Kafka. This file only prepares;
scenario.py is what is run.
"""

import importlib.util
import os
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
E2E = HERE.parents[1] / "tests" / "e2e"


def main():
    if {"-h", "--help"} & set(sys.argv):
        sys.exit(__doc__)
    spec = importlib.util.spec_from_file_location("e2e_run", E2E / "run.py")
    e2e_run = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(e2e_run)
    python = e2e_run.prepare_venv()
    environment = {**os.environ, "PYTHONPATH": str(E2E), "PYTHONDONTWRITEBYTECODE": "1"}
    os.execve(python, [str(python), str(HERE / "scenario.py"), *sys.argv[1:]], environment)


if __name__ == "__main__":
    main()
