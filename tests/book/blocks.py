"""Fenced code blocks: each is run, compiled or parsed, or says why not.

What stands behind the language tells what is done with a block:

    sh                  run with bash, in the page's scratch folder; `cd` and `export`
                        last until the page's end
    sh background: TEXT run beside what follows; it has started once it prints TEXT
    console             `$ command` lines are run, and what stands below them has to be
                        what they print; `...` is any number of lines
    text                a picture; `text output` is what the block in front of it printed
    toml                a configuration that `antiphon check` takes
    proto               `antiphon check` takes it; what a fragment leaves out is added
    json, yaml          parses
    any other           needs `file: NAME`, which puts it into the scratch folder for the
                        blocks behind it to run; or is nothing but an {{#include}} from
                        examples/, bench/ or deploy/, which tests of their own run
    ... no-run: WHY     not run; how many there are on each page is written in run.py
"""

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import yaml
from stage import FENCE, INCLUDE, ROOT, Wrong, included

FIXTURES = Path(__file__).resolve().parent / "fixtures"
RUN_SECONDS_MAX = 240
START_SECONDS_MAX = 60
# Whose tests run what is included from there.
RUN_ELSEWHERE = ("examples/", "bench/", "deploy/", "proto/", "tests/")
# Addresses as pages show them: of the demo, and of what is started beside it.
GRPC, ADMIN, KAFKA = "127.0.0.1:50051", "127.0.0.1:9464", "127.0.0.1:9092"
BESIDE = ["127.0.0.1:50052", "127.0.0.1:50053"]


@dataclass
class Block:
    page: str
    line: int
    language: str
    words: str
    text: str

    def __str__(self):
        return f"{self.page}:{self.line}: {self.language}"

    def word(self, name):
        """What stands behind `name:`; None without it."""
        found = re.search(rf"(?:^|\s){name}:\s*(.+)$", self.words)
        return found and found[1].strip()


def blocks_of(page):
    lines = (ROOT / page).read_text().splitlines()
    found, opened = [], None
    for number, line in enumerate(lines, 1):
        mark = FENCE.match(line)
        if mark and opened is None:
            opened = number, mark
        elif mark and mark[2].startswith(opened[1][2]) and not mark[3].strip():
            start, (indent, _, info) = opened[0], opened[1].groups()
            first, _, words = info.strip().partition(" ")
            text = "\n".join(one.removeprefix(indent) for one in lines[start : number - 1]) + "\n"
            found.append(Block(page, start, first.partition(",")[0], words, text))
            opened = None
    if opened:
        raise Wrong(f"{page}:{opened[0]}: the block does not end")
    return found


class Scratch:
    """A folder like the repository's root, in which a page's blocks run one after the other."""

    def __init__(self, page, antiphon, path, environment):
        self.page, self.antiphon = page, antiphon
        self.folder = Path(tempfile.mkdtemp(prefix="antiphon-book-")).resolve()
        self.root = self.folder / "antiphon"
        self.root.mkdir()
        for name in ("proto", "docs"):
            shutil.copytree(ROOT / name, self.root / name)
        for name in ("examples", "tests", "scripts", "bench", "deploy"):
            (self.root / name).symlink_to(ROOT / name)
        own = FIXTURES / page.removesuffix(".md").replace("/", "-")
        if own.is_dir():
            shutil.copytree(own, self.root, dirs_exist_ok=True)
        bin_folder = self.folder / "bin"
        bin_folder.mkdir()
        (bin_folder / "antiphon").symlink_to(antiphon)
        self.state, self.cwd = self.folder / "environment", self.folder / "cwd"
        self.cwd.write_text(str(self.root))
        self.environment = {**os.environ, **environment, "PATH": f"{bin_folder}:{path}", "NO_COLOR": "1"}
        self.running, self.last_output = [], None
        self.actual = {shown: free_address() for shown in BESIDE}

    def here(self, text):
        """The addresses that a page shows, as they are here."""
        for shown, actual in self.actual.items():
            text = text.replace(shown, actual)
        return text

    def shown(self, text):
        for shown, actual in self.actual.items():
            text = text.replace(actual, shown)
        return text

    def command(self, script):
        return [
            "bash", "-euo", "pipefail", "-c",
            f'[ -f "{self.state}" ] && . "{self.state}"; cd "$(cat "{self.cwd}")"\n{script}\n'
            f'pwd > "{self.cwd}"; export -p > "{self.state}"',
        ]  # fmt: skip

    def run(self, script, where, may_fail=False):
        # Into a file: what a command leaves running must not hold up the reading of a pipe.
        with tempfile.TemporaryFile("w+") as output:
            process = subprocess.Popen(
                self.command(self.here(script)), stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT,
                env=self.environment, start_new_session=True,
            )  # fmt: skip
            try:
                code = process.wait(RUN_SECONDS_MAX)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
                code = f"nothing within {RUN_SECONDS_MAX} s"
            output.seek(0)
            self.last_output = self.shown(re.sub(r"\x1b\[[0-9;]*m", "", output.read()))
        if code != 0 and not may_fail:
            raise Wrong(f"{where} ended with {code}:\n{self.last_output}")
        return self.last_output

    def start(self, script, text, where):
        """Runs beside what follows."""
        log = self.folder / f"log-{len(self.running)}"
        with log.open("w") as output:
            process = subprocess.Popen(
                ["bash", "-euo", "pipefail", "-c", f'[ -f "{self.state}" ] && . "{self.state}"; cd "$(cat "{self.cwd}")"\n{self.here(script)}'],
                stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT, env=self.environment, start_new_session=True,
            )  # fmt: skip
        self.running.append(process)
        until = time.monotonic() + START_SECONDS_MAX
        while text not in log.read_text():
            if process.poll() is not None or time.monotonic() > until:
                raise Wrong(f"{where} has not printed {text!r}:\n{log.read_text()}")
            time.sleep(0.05)
        time.sleep(0.1)
        if KAFKA not in self.actual:
            ready = re.search(r"antiphon ready grpc=(\S+) admin=(\S+)", log.read_text())
            if ready:
                self.actual |= {GRPC: ready[1], ADMIN: ready[2], KAFKA: broker_of(process.pid, ready.groups())}
        self.last_output = self.shown(log.read_text())

    def end(self):
        for process in reversed(self.running):
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGTERM)
        for process in self.running:
            try:
                process.wait(20)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
        shutil.rmtree(self.folder, ignore_errors=True)


def free_address():
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return f"127.0.0.1:{one.getsockname()[1]}"


def broker_of(group, others):
    """Where the demo's embedded broker listens: the port that is not in its ready line."""
    inodes = set()
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            if os.getpgid(int(folder.name)) != group:
                continue
            for file in (folder / "fd").iterdir():
                inodes.add(os.readlink(file))
        except OSError:
            continue
    for line in Path("/proc/net/tcp").read_text().splitlines()[1:]:
        words = line.split()
        address = f"127.0.0.1:{int(words[1].partition(':')[2], 16)}"
        if words[3] == "0A" and f"socket:[{words[9]}]" in inodes and address not in others:
            return address
    return KAFKA


VARIES = [
    (r"\b[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}\b", "UUID"),
    (r"\b(\w+)/\d+/\d+\b", r"\1/P/O"),
    (r"antiphon\.reply\.[\w-]+", "REPLY-TOPIC"),
    (r"\b(ready_ms)=\d+", r"\1=N"),
]


def same(shown, printed):
    """Whether the output is what the page shows, but for what differs from run to run."""

    def plain(text):
        for pattern, word in VARIES:
            text = re.sub(pattern, word, text)
        return [line.rstrip() for line in text.strip().splitlines()]

    pattern = r"\n".join(r"(?:.*\n?)*?" if line == "..." else re.escape(line) for line in plain(shown))
    return re.fullmatch(pattern.replace(r"(?:.*\n?)*?\n", r"(?:.*\n)*?"), "\n".join(plain(printed))) is not None


def check_console(block, scratch):
    commands = re.split(r"^\$ ", block.text, flags=re.MULTILINE)
    if commands[0].strip() or len(commands) < 2:
        raise Wrong(f"{block}: begins with no `$ command`")
    for one in commands[1:]:
        lines = one.splitlines()
        taken = 1
        while lines[taken - 1].endswith("\\"):
            taken += 1
        printed = scratch.run("\n".join(lines[:taken]), block, may_fail=True)
        shown = "\n".join(lines[taken:])
        if not same(shown, printed):
            raise Wrong(f"{block}: $ {lines[0]}\nprinted:\n{printed}\nand the page says:\n{shown}")


def check_proto(block, scratch):
    """A fragment gets its head, and the messages that it names."""
    text = block.text
    if "syntax =" not in text:
        text = f'syntax = "proto3";\npackage shop.v1;\nimport "antiphon/v1/options.proto";\n{text}'
    used = set(re.findall(r"\((?:stream )?(\w+)\)", re.sub(r"option \([^)]*\)", "", text)))
    used |= set(re.findall(r"repeated ([A-Z]\w*)", text))
    for name in sorted(used - set(re.findall(r"message (\w+)", text))):
        text += f"message {name} {{ string order_id = 1; }}\n"
    file = scratch.folder / f"block-{block.line}.proto"
    file.write_text(text)
    command = [str(scratch.antiphon), "check", "--proto", str(file), "--proto-path", str(scratch.folder), "--proto-path", str(ROOT / "proto")]
    ran = subprocess.run(command, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, check=False)
    if ran.returncode != 0:
        raise Wrong(f"{block}: antiphon check ended with {ran.returncode}:\n{ran.stdout}")


def check_toml(block, scratch):
    """A configuration; without protos it gets those of the services that it names."""
    text = block.text
    if "[proto]" not in text:
        protos = {"shop.v1": FIXTURES / "shop.proto"}
        protos |= {"payments.v1": ROOT / "proto/payments/v1/payments.proto", "echo.v1": ROOT / "proto/echo/v1/echo.proto"}
        wanted = [str(file) for package, file in protos.items() if f"{package}." in text] or [str(protos["shop.v1"])]
        text += f"\n[proto]\nfiles = {json.dumps(wanted)}\ninclude_paths = {json.dumps([str(FIXTURES), str(ROOT / 'proto')])}\n"
    else:
        text = text.replace('"proto/shop/v1/shop.proto"', json.dumps(str(scratch.root / "proto/shop/v1/shop.proto")))
    text = text.replace("/run/", f"{secrets(scratch)}/")
    file = scratch.folder / f"block-{block.line}.toml"
    file.write_text(text)
    command = [str(scratch.antiphon), "check", "--config", str(file)]
    ran = subprocess.run(command, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, check=False, cwd=scratch.root)
    if ran.returncode != 0:
        raise Wrong(f"{block}: antiphon check ended with {ran.returncode}:\n{ran.stdout}\nof\n{text}")


def secrets(scratch):
    """Stands for /run: what a container's platform would have put there."""
    folder = scratch.folder / "run"
    if not folder.is_dir():
        for name in ("secrets/kafka", "secrets/registry"):
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_text("secret\n")
        (folder / "tls").mkdir()
        words = "req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 1 -subj /CN=localhost".split()
        files = ["-keyout", str(folder / "tls/tls.key"), "-out", str(folder / "tls/tls.crt")]
        subprocess.run(["openssl", *words, *files], check=True, capture_output=True)
        shutil.copyfile(folder / "tls/tls.crt", folder / "tls/ca.crt")
    return folder


def check(block, scratch):
    """Does what the language and the words say; returns what was done, in a word."""
    include = INCLUDE.fullmatch(block.text.strip())
    text = included(block.page, include[1]) if include else block.text
    if include and not block.word("file"):
        path = os.path.normpath(os.path.join(os.path.dirname(block.page), include[1]))
        if not path.startswith(RUN_ELSEWHERE):
            raise Wrong(f"{block}: nothing runs {path}")
        return "included"
    if block.word("file"):
        target = Path(scratch.cwd.read_text().strip()) / block.word("file")
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(scratch.here(text))
    match block.language:
        case "text" if block.words == "output":
            if scratch.last_output is None or not same(text, scratch.last_output):
                raise Wrong(f"{block}: what was printed is\n{scratch.last_output}")
            return "run"
        case "text":
            return "a picture"
        case "sh" if block.word("background"):
            scratch.start(text, block.word("background"), block)
        case "sh":
            scratch.run(text, block)
        case "console":
            check_console(block, scratch)
        case "toml" if not block.word("file"):
            check_toml(block, scratch)
        case "proto":
            check_proto(block, scratch)
        case "json":
            json.loads(text)
        case "yaml":
            list(yaml.safe_load_all(text))
        case _ if not block.word("file"):
            raise Wrong(f"{block}: nothing says how it is run; see the top of tests/book/blocks.py")
    return "parsed" if block.language in ("json", "yaml", "toml", "proto") else "run"


def check_page(page, antiphon, path, environment, gateway, elsewhere=None):
    """Goes through a page; returns what was done, and what is wrong. `elsewhere`
    says what is done with its commands, if not here."""
    counts, wrong = {}, []
    scratch = Scratch(page, antiphon, path, environment)
    try:
        if gateway:
            scratch.start("antiphon demo --listen 127.0.0.1:0", "Ctrl-C stops it", page)
        for block in blocks_of(page):
            started = time.monotonic()
            try:
                if block.word("no-run"):
                    done = "not run"
                elif elsewhere and block.language in ("sh", "console", "bash", "shell"):
                    done = elsewhere
                else:
                    done = check(block, scratch)
            except (Wrong, ValueError, yaml.YAMLError) as error:
                wrong.append(str(error) if isinstance(error, Wrong) else f"{block}: {error}")
                done = "wrong"
            counts[done] = counts.get(done, 0) + 1
            seconds = time.monotonic() - started
            if seconds > 1:
                print(f"    {block} {done} [{seconds:.1f} s]", flush=True)
    finally:
        scratch.end()
    return counts, wrong
