#!/usr/bin/env python3
"""End-to-end tests of the built gateway on real Apache Kafka.

    tests/e2e/run.py --antiphon target/release/antiphon

starts a broker with scripts/kafka unless --bootstrap names one, and ends with
"N passed, N failed". Needs Python 3.11, Go (for grpcurl) and what scripts/kafka
needs; everything else goes into .cache at the root of the repository.

This file only prepares; harness.py holds the processes, scenarios.py the tests.
"""

import hashlib
import os
import shutil
import subprocess
import sys
import venv
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
CACHE = ROOT / ".cache"
VENV = CACHE / "e2e-venv"
GRPCURL_VERSION = "v1.9.4"
GRPCURL = CACHE / "bin" / f"grpcurl-{GRPCURL_VERSION}"


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


def prepare_grpcurl():
    if GRPCURL.is_file():
        return
    if shutil.which("go") is None:
        sys.exit("Go, which builds grpcurl, is missing: install Go 1.24 or newer")
    print(f"building grpcurl {GRPCURL_VERSION}", flush=True)
    GRPCURL.parent.mkdir(parents=True, exist_ok=True)
    package = f"github.com/fullstorydev/grpcurl/cmd/grpcurl@{GRPCURL_VERSION}"
    subprocess.run(["go", "install", package], check=True, env={**os.environ, "GOBIN": str(GRPCURL.parent)})
    (GRPCURL.parent / "grpcurl").rename(GRPCURL)


def main():
    python = prepare_venv()
    prepare_grpcurl()
    environment = {**os.environ, "E2E_GRPCURL": str(GRPCURL), "PYTHONDONTWRITEBYTECODE": "1"}
    os.execve(python, [str(python), str(HERE / "scenarios.py"), *sys.argv[1:]], environment)


if __name__ == "__main__":
    main()
