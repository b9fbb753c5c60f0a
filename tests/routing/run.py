#!/usr/bin/env python3
"""How replies find their instance, on Apache Kafka: modes against instances.

    tests/routing/run.py --antiphon target/release/antiphon [--quick]
                         [--modes instance-topic,partition,shared]
                         [--instances 1,2,8,32]

Prints one table, and fails where a call did not get its own reply, where an
instance read more than it should, or where something was left behind. Needs what
tests/e2e/run.py needs, and shares its venv. This file only prepares; routing.py
is what is run.
"""

import importlib.util
import os
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
E2E = HERE.parent / "e2e"
BENCH = HERE.parents[1] / "scripts" / "bench.d"


def main():
    if "--help" in sys.argv or "-h" in sys.argv:
        sys.exit(__doc__)
    spec = importlib.util.spec_from_file_location("e2e_run", E2E / "run.py")
    e2e_run = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(e2e_run)
    python = e2e_run.prepare_venv()
    environment = {**os.environ, "PYTHONPATH": str(BENCH), "PYTHONDONTWRITEBYTECODE": "1"}
    os.execve(python, [str(python), str(HERE / "routing.py"), *sys.argv[1:]], environment)


if __name__ == "__main__":
    main()
