#!/usr/bin/env python3
"""Security of the built gateway, row by row, on real Apache Kafka.

    tests/security/run.py --antiphon target/release/antiphon [--quick] [PART...]

PART is kafka, identities or abuse; without any, all of them. Prints a table for
each and fails on any wrong cell. Needs Python 3.11 and what scripts/kafka needs;
everything else goes into .cache at the root of the repository.

This file only prepares; tables.py runs the parts.
"""

import hashlib
import os
import subprocess
import sys
import venv
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
VENV = ROOT / ".cache" / "security-venv"


def prepare_venv():
    """A venv with the pinned packages, made again when the pins change."""
    pins = (HERE / "requirements.txt").read_bytes()
    stamp, wanted = VENV / "pins", hashlib.sha256(pins).hexdigest()
    python = VENV / "bin" / "python"
    if not (stamp.is_file() and stamp.read_text() == wanted):
        print(f"preparing {VENV.relative_to(ROOT)}", flush=True)
        venv.create(VENV, with_pip=True, clear=True)
        pip = [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
        subprocess.run([*pip, "-r", str(HERE / "requirements.txt")], check=True)
        stamp.write_text(wanted)
    return python


def main():
    python = prepare_venv()
    paths = os.pathsep.join([str(HERE), str(ROOT / "tests" / "e2e")])
    environment = {**os.environ, "PYTHONPATH": paths, "PYTHONDONTWRITEBYTECODE": "1", "GRPC_VERBOSITY": "NONE"}
    os.execve(python, [str(python), str(HERE / "tables.py"), *sys.argv[1:]], environment)


if __name__ == "__main__":
    main()
