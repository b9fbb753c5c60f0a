#!/usr/bin/env python3
"""Eight incidents, staged on real Apache Kafka with a real Prometheus.

    tests/incidents/run.py --antiphon target/release/antiphon [--quick] [NAME...]
    tests/incidents/run.py --check

NAME is no-worker, slow-worker, stuck-partition, garbage, credentials,
reply-topic, broker-down or flood; without any, all of them. For each: all is
well and nothing fires; the incident is staged; callers' statuses, the admin
port, the alert and `antiphon why` name the cause; the commands of
docs/runbook.md end it; all is well again. Prints a table.

--check looks only whether docs/runbook.md and the alert rules belong together;
it needs nothing but Python.

Needs Python 3.11, prometheus (apt-get install prometheus) and what
scripts/kafka needs; everything else goes into .cache at the root of the
repository. This file only prepares; incidents.py has the incidents.
"""

import importlib.util
import os
import shutil
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
TESTS = HERE.parent


def load(path, name):
    """A script of another suite, as a module."""
    spec = importlib.util.spec_from_file_location(name, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def main():
    sys.dont_write_bytecode = True
    if "--check" in sys.argv:
        import runbook

        print(runbook.check())
        return
    missing = [program for program in ("prometheus", "bash", "curl", "java") if shutil.which(program) is None]
    if missing:
        print(f"missing: {', '.join(missing)}", file=sys.stderr)
        sys.exit(69)
    # The same packages as for tests/security.
    python = load(TESTS / "security/run.py", "security_run").prepare_venv()
    paths = os.pathsep.join(str(TESTS / name) for name in ("incidents", "security", "faults", "e2e"))
    environment = {**os.environ, "PYTHONPATH": paths, "PYTHONDONTWRITEBYTECODE": "1", "GRPC_VERBOSITY": "NONE"}
    os.execve(python, [str(python), str(HERE / "incidents.py"), *sys.argv[1:]], environment)


if __name__ == "__main__":
    main()
