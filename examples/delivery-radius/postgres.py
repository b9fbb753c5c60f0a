"""A PostgreSQL server of our own, with its data in a temporary folder."""

import os
import pwd
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from pathlib import Path

from harness import Process, check, tail, wait_until

SETTINGS = {
    "listen_addresses": "127.0.0.1",
    "max_connections": "50",
    "shared_buffers": "128MB",
    "max_wal_size": "2GB",
    "work_mem": "64MB",
    "checkpoint_timeout": "15min",
    # A wait for a row that takes longer than this is logged, and searched for
    # a deadlock. The default, 1 s, would hide most waits.
    "deadlock_timeout": "100ms",
    "log_lock_waits": "on",
    "lock_timeout": "2s",
}
WAITING = re.compile(r"still waiting for \w+ on (?:transaction|tuple)")


def programs():
    """The folder of initdb and postgres, which Debian keeps out of the PATH."""
    found = shutil.which("initdb")
    places = [Path(found).resolve().parent] if found else []
    places += sorted(Path("/usr/lib/postgresql").glob("*/bin"), key=lambda path: -float(path.parent.name))
    for place in places:
        if (place / "initdb").exists() and (place / "postgres").exists():
            return place
    sys.exit("missing: PostgreSQL 13 or later (Debian: apt-get install postgresql)")


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


class Postgres:
    def __init__(self, logs):
        place = programs()
        self.psql = shutil.which("psql") or str(place / "psql")
        self.folder = Path(tempfile.mkdtemp(prefix="antiphon-postgres-"))
        # The server refuses to run as root; Debian's package brings a user for it.
        as_user = []
        if os.geteuid() == 0:
            account = pwd.getpwnam("postgres")
            os.chown(self.folder, account.pw_uid, account.pw_gid)
            as_user = ["setpriv", "--reuid=postgres", "--regid=postgres", "--init-groups", "--"]
        data, self.port = self.folder / "data", free_port()
        made = subprocess.run(
            [*as_user, place / "initdb", "-D", data, "-U", "postgres", "-A", "trust", "-E", "UTF8", "--locale=C"],
            capture_output=True, text=True, check=False, cwd="/",
        )  # fmt: skip
        check(made.returncode == 0, f"initdb: {made.stdout}{made.stderr}")
        command = [*as_user, place / "postgres", "-D", data, "-p", str(self.port), "-k", self.folder]
        for name, value in SETTINGS.items():
            command += ["-c", f"{name}={value}"]
        self.process = Process(logs, "postgres", command, cwd="/")
        self.url = f"postgres://postgres@127.0.0.1:{self.port}/postgres?sslmode=disable"
        wait_until(self._answers, 30, lambda: f"PostgreSQL answers\n{tail(self.process.stderr)}")

    def _answers(self):
        check(self.process.alive(), f"PostgreSQL ended\n{tail(self.process.stderr)}")
        return subprocess.run([self.psql, self.url, "-c", "SELECT 1"], capture_output=True, check=False).returncode == 0

    def run(self, *statements):
        """The rows of the last statement, as lists of texts."""
        command = [self.psql, self.url, "-X", "-q", "-A", "-t", "-F", "\t", "-v", "ON_ERROR_STOP=1"]
        for statement in statements:
            command += ["-c", statement]
        ran = subprocess.run(command, capture_output=True, text=True, check=False)
        check(ran.returncode == 0, f"psql: {ran.stderr}")
        return [line.split("\t") for line in ran.stdout.splitlines()]

    def value(self, statement):
        return int(self.run(statement)[0][0])

    def load(self, table, columns, path):
        self.run(f"\\copy {table} ({columns}) FROM '{path}' WITH (FORMAT csv)")

    def trouble(self):
        """Deadlocks, lock time-outs and waits of more than 100 ms, since the start."""
        log = self.process.stderr.read_text(errors="replace")
        return {
            "deadlocks": log.count("ERROR:  deadlock detected"),
            "lock time-outs": log.count("canceling statement due to lock timeout"),
            "lock waits": len(WAITING.findall(log)),
        }

    def stop(self):
        if self.process.alive():
            self.process.signal(signal.SIGINT)  # "fast": does not wait for clients.
            self.process.exit_code(30)
        shutil.rmtree(self.folder)
