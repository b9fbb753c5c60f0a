"""What a scenario needs before it can run: the end-to-end tests' venv, its Go
programs, the load generator of tests/faults. Then the scenario takes over."""

import os
import runpy
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
TESTS = ROOT / "tests"
BUILT = ROOT / ".cache" / "scenarios"


def start(folder, go=(), tools=()):
    """Runs `scenario.py` of this folder. `go` are packages in it, to build;
    `tools` are programs that must be there, each with where to get it."""
    for tool, words in (("go", "Go 1.26 or later"), ("java", "Java 17 or later, for Apache Kafka"), *tools):
        if shutil.which(tool) is None:
            sys.exit(f"missing: {tool} ({words})")
    python = runpy.run_path(str(TESTS / "e2e" / "run.py"))["prepare_venv"]()
    load = runpy.run_path(str(TESTS / "faults" / "run.py"))["build_load"](ROOT / ".cache" / "bin")
    programs = BUILT / folder.name
    programs.mkdir(parents=True, exist_ok=True)
    for package in go:
        command = ["go", "build", "-mod=readonly", "-o", str(programs / package), f"./{package}"]
        subprocess.run(command, cwd=folder, check=True)
    environment = {
        **os.environ, "PYTHONDONTWRITEBYTECODE": "1", "FAULTS_LOAD": str(load), "SCENARIO_PROGRAMS": str(programs),
        "PYTHONPATH": os.pathsep.join(map(str, (TESTS / "e2e", TESTS / "faults", ROOT / "examples" / "stage"))),
    }  # fmt: skip
    os.execve(python, [str(python), str(folder / "scenario.py"), *sys.argv[1:]], environment)
