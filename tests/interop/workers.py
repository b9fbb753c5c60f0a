"""The workers: how each is started, and what its framework can't do.

A worker that can't do something is no failure as long as it can't do it in the
way that is written here.
"""

import argparse
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
EXAMPLES = ROOT / "examples" / "workers"
BUILT = ROOT / ".cache" / "interop"
SPRING_JAR = EXAMPLES / "spring" / "target" / "worker-spring.jar"
SMALLRYE_JAR = EXAMPLES / "smallrye" / "target" / "quarkus-app" / "quarkus-run.jar"
GO_BINARY = BUILT / "worker-go"
RUST_TARGET = BUILT / "target-rust"
RUST_BINARY = RUST_TARGET / "release" / "worker-rust"
NESTJS_MAIN = EXAMPLES / "nestjs" / "dist" / "main.js"
FASTSTREAM_PYTHON = BUILT / "venv-faststream" / "bin" / "python"

# Of a JVM, and of a process that ends itself by the signal.
SIGTERM_EXIT, BY_SIGTERM = 143, -15


@dataclass(frozen=True)
class Sees:
    """What the caller of an error sees. `limit` says in words what the framework
    can't do; without it this is as it should be."""

    code: str
    words: str = ""
    limit: str = ""
    # What the worker's log says of it.
    logs: str = ""


NO_REPLY = "DEADLINE_EXCEEDED"


@dataclass(frozen=True)
class Worker:
    """A row of the table."""

    name: str
    example: str
    command: Callable
    # The dialect and the format of its methods.
    dialect: str = "spring"
    format: str = "protobuf"
    environment: dict = field(default_factory=dict)
    # Only these cases; the others say nothing new of it.
    cases: tuple = ()
    business: Sees | None = None
    exception: Sees = Sees("INTERNAL", "the handler broke on order")
    null: Sees = Sees("INTERNAL", "no value")
    exit_code: int = 0
    # Whose requests are handled one after the other: those of a partition, or of a key.
    order: str = "partition"
    # How many members of the group one process makes.
    members_per_process: int = 1

    def limits(self):
        """What it can't do, by case."""
        sees = {"business": self.business, "exception": self.exception, "null": self.null}
        return {case: one.limit for case, one in sees.items() if one and one.limit}


def python_command(row):
    return [
        sys.executable, str(EXAMPLES / "python" / "worker.py"), "--bootstrap", row["bootstrap"],
        "--group", row["group"], "--topics", row["topic"], "--log", row["journal"],
    ]  # fmt: skip


def fixed(*command):
    return lambda _row: list(map(str, command))


ERRORS_ONLY = ("success", "business", "exception", "null")
PAYLOADS_ONLY = ("success", "business", "exception", "empty", "null", "1 MiB", "metadata", "repeat")
CALLED_AGAIN = Sees(
    NO_REPLY, limit="a listener that throws is called again, up to ten times, and sends no reply",
    logs="Record in retry and not yet recovered",
)  # fmt: skip
JVM = ["java", "-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1", "-Xmx256m"]

WORKERS = [
    Worker("python", "python", python_command),
    Worker(
        "spring", "spring", fixed(*JVM, "-jar", SPRING_JAR), exit_code=SIGTERM_EXIT, members_per_process=6,
        null=Sees(NO_REPLY, limit="a listener that returns null sends no reply"),
    ),
    Worker(
        "spring, no error handler", "spring", fixed(*JVM, "-jar", SPRING_JAR),
        exit_code=SIGTERM_EXIT, members_per_process=6,
        environment={"ERROR_HANDLER": ""}, cases=ERRORS_ONLY,
        business=CALLED_AGAIN, exception=CALLED_AGAIN,
        null=Sees(NO_REPLY, limit="a listener that returns null sends no reply"),
    ),
    Worker(
        "smallrye", "smallrye", fixed(*JVM, "-jar", SMALLRYE_JAR), dialect="smallrye",
        exit_code=SIGTERM_EXIT, members_per_process=2,
        null=Sees(NO_REPLY, limit="a processor that returns null sends no reply"),
    ),
    Worker(
        "smallrye, errors left to it", "smallrye", fixed(*JVM, "-jar", SMALLRYE_JAR), dialect="smallrye",
        exit_code=SIGTERM_EXIT, members_per_process=2,
        environment={"ANSWER_ERRORS": "false"}, cases=ERRORS_ONLY,
        business=Sees(NO_REPLY, limit="for a request that is nacked there is no reply"),
        exception=Sees(NO_REPLY, limit="for a request that is nacked there is no reply"),
        null=Sees(NO_REPLY, limit="a processor that returns null sends no reply"),
    ),
    Worker("go", "go", fixed(GO_BINARY)),
    Worker(
        "rust", "rust", fixed(RUST_BINARY), order="key",
        null=Sees("OK", limit="a typed handler has no null to return"),
    ),
    Worker("rust, in order", "rust", fixed(RUST_BINARY), environment={"ORDER": "partition"}, cases=("order", "rebalance")),
    Worker("node", "node", fixed("node", EXAMPLES / "node" / "worker.js")),
    Worker("nestjs", "nestjs", fixed("node", NESTJS_MAIN), dialect="nestjs", exit_code=BY_SIGTERM),
    Worker(
        "nestjs, JSON", "nestjs", fixed("node", NESTJS_MAIN), dialect="nestjs", format="json",
        exit_code=BY_SIGTERM, environment={"PAYLOAD": "json"}, cases=PAYLOADS_ONLY,
    ),
    Worker(
        "nestjs, no filter", "nestjs", fixed("node", NESTJS_MAIN), dialect="nestjs", exit_code=BY_SIGTERM,
        environment={"ANSWER_ERRORS": "false"}, cases=ERRORS_ONLY,
        business=Sees(
            "INVALID_ARGUMENT", "amount_minor: must be above zero",
            limit="kafka_nest-err has the code and the text of an RpcException, but no details",
        ),
        exception=Sees("UNKNOWN", "Internal server error", limit="of other exceptions NestJS tells nothing"),
    ),
    Worker(
        "faststream", "faststream", fixed(FASTSTREAM_PYTHON, EXAMPLES / "faststream" / "worker.py"),
        dialect="faststream", members_per_process=2,
        null=Sees("OK", limit="a handler that returns None answers with an empty message"),
    ),
    Worker(
        "faststream, no middleware", "faststream",
        fixed(FASTSTREAM_PYTHON, EXAMPLES / "faststream" / "worker.py"),
        dialect="faststream", members_per_process=2,
        environment={"ANSWER_ERRORS": "false"}, cases=ERRORS_ONLY,
        business=Sees(NO_REPLY, limit="a handler that raises sends no reply"),
        exception=Sees(NO_REPLY, limit="a handler that raises sends no reply"),
        null=Sees("OK", limit="a handler that returns None answers with an empty message"),
    ),
]  # fmt: skip

CASES = (
    "success", "business", "exception", "empty", "null", "1 MiB",
    "metadata", "repeat", "order", "rebalance", "deadline",
)  # fmt: skip


def options(arguments):
    parser = argparse.ArgumentParser(description="Workers of every framework against the same cases.")
    parser.add_argument("--antiphon", type=Path, required=True, help="the gateway's binary")
    parser.add_argument("--bootstrap", help="Kafka's HOST:PORT[,...]; without it scripts/kafka starts one")
    names = [worker.name for worker in WORKERS]
    parser.add_argument("--worker", action="append", choices=names, help="only this one; may be repeated")
    parser.add_argument("--case", action="append", choices=CASES, help="only this one; may be repeated")
    parsed = parser.parse_args(arguments)
    if not parsed.antiphon.is_file():
        parser.error(f"{parsed.antiphon} is not there; build it with cargo build --release")
    parsed.antiphon = parsed.antiphon.resolve()
    return parsed


def chosen(arguments):
    wanted = options(arguments).worker
    return [worker for worker in WORKERS if not wanted or worker.name in wanted]
