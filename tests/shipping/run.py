#!/usr/bin/env python3
"""Everything that ships, but for the code: tried with what it is for, without Docker.

    tests/shipping/run.py [--antiphon FILE] [--broker FILE] [PART...]

PART is chart, compose, balancer, image, release or crate; without any, all of them
but crate, which builds the gateway anew from what `cargo package` packs.

    chart     the Helm chart and the manifests: rendered, validated, checked by antiphon
    compose   docker-compose.yml, Envoy's and Prometheus's files
    balancer  HAProxy with deploy/haproxy against two gateways that come and go
    image     the Dockerfile's last stage, built by buildah and run by crun as the
              chart's pod: read-only, without rights, on an empty file system
    release   completions, manual pages, SBOM, notes, checksums
    crate     the packed crate installs, and its `antiphon demo` needs no checkout

Needs Go 1.26, and of Debian: haproxy, prometheus, mandoc, fish, zsh, buildah, crun.
This file only prepares; shipping.py runs the parts.
"""

import hashlib
import os
import subprocess
import sys
import venv
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
VENV = ROOT / ".cache" / "shipping-venv"


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
    environment = {**os.environ, "PYTHONDONTWRITEBYTECODE": "1"}
    os.execve(python, [str(python), str(HERE / "shipping.py"), *sys.argv[1:]], environment)


if __name__ == "__main__":
    main()
