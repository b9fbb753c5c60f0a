"""What the parts share: commands with deadlines, processes that end with us."""

import os
import re
import subprocess
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
CACHE = ROOT / ".cache"
COMMAND_SECONDS_MAX = 900
WAIT_SECONDS_MAX = 60
READY_LINE = re.compile(r"antiphon ready grpc=(\S+) admin=(\S+)")


class Failure(AssertionError):
    """What a test saw is not what has to be."""


def check(condition, words):
    if not condition:
        raise Failure(words() if callable(words) else words)


def run(*command, ok=True, env=None, seconds=COMMAND_SECONDS_MAX, **options):
    """Standard output of a command that must succeed; with ok=False, that must fail."""
    command = [str(part) for part in command]
    done = subprocess.run(
        command, capture_output=True, text=True, check=False, timeout=seconds,
        env={**os.environ, **(env or {})}, **options,
    )
    said = done.stdout + done.stderr
    check((done.returncode == 0) == ok, f"{' '.join(command)[:300]}: exit {done.returncode}\n{said[-4000:]}")
    return done.stdout if ok else said


def await_(what, look, seconds=WAIT_SECONDS_MAX):
    """The first true answer of `look`, within so many seconds."""
    until = time.monotonic() + seconds
    while True:
        answer = look()
        if answer:
            return answer
        check(time.monotonic() < until, f"not within {seconds} s: {what() if callable(what) else what}")
        time.sleep(0.1)


class Crew:
    """Processes that end with us, each with a log of its own."""

    def __init__(self, folder):
        self.folder, self.processes = Path(folder), {}

    def __enter__(self):
        return self

    def __exit__(self, *_):
        for process in reversed(self.processes.values()):
            if process.poll() is None:
                process.terminate()
        for process in self.processes.values():
            try:
                process.wait(15)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()

    def start(self, name, *command, env=None):
        with (self.folder / f"{name}.log").open("w") as log:
            self.processes[name] = subprocess.Popen(
                [str(part) for part in command], stdin=subprocess.PIPE, stdout=log,
                stderr=subprocess.STDOUT, env={**os.environ, **(env or {})},
            )
        return self.processes[name]

    def text(self, name):
        return (self.folder / f"{name}.log").read_text(errors="replace")

    def said(self, name, pattern):
        """The first match in what `name` has written."""

        def look():
            found = re.search(pattern, self.text(name))
            ended = self.processes[name].poll()
            check(found or ended is None, lambda: f"{name} has ended with {ended}: {self.text(name)}")
            return found

        return await_(lambda: f"{name} says {pattern!r}: {self.text(name)}", look)

    def end(self, name, seconds=60):
        """Asks to end in good order; the exit code."""
        process = self.processes[name]
        process.terminate()
        try:
            return process.wait(seconds)
        except subprocess.TimeoutExpired:
            raise Failure(f"{name} has not ended {seconds} s after SIGTERM: {self.text(name)}") from None


def go_tool(folder, name):
    """A Go program of this repository, built into .cache."""
    (CACHE / "bin").mkdir(parents=True, exist_ok=True)
    binary = CACHE / "bin" / name
    run("go", "build", "-o", binary, ".", cwd=folder, env={"GOFLAGS": "-mod=readonly"})
    return binary
