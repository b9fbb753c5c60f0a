"""Runs the clients and judges what they print. Through run.py, which builds them."""

import argparse
import base64
import concurrent.futures
import json
import os
import re
import shlex
import socket
import subprocess
import sys
import tempfile
import time
import traceback
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "e2e"))

from google.protobuf import json_format
from google.rpc import error_details_pb2
from harness import ROOT, Failure, Gateway, Kafka, Setup, check, generate_messages, tail

EXAMPLES = ROOT / "examples" / "clients"
BUILT = Path(os.environ["CLIENTS_BUILT"])
SERVICE = "payments.v1.PaymentService"
CASES = ["pay", "error", "non_ascii", "idempotency", "reflection", "parallel", "deadline"]
CLIENT_SECONDS_MAX = 90
COMMAND_SECONDS_MAX = 60
LATE_MS_MAX = 300
PARALLEL_CALLS = 100
# Of grpcurl and buf, each a process: so many run beside each other.
PROCESSES = 25
# What the sample worker takes for a slow order; a client after it would wait.
SLOW_SECONDS = 3
RECORD = re.compile(r"payment_request/\d+/\d+")


# ---- what a client has to see ----------------------------------------------------


def judge_pay(seen):
    check(seen["payment_id"] == f"pay-{seen['order_id']}-1250", f"paid {seen}")
    check(seen["order_id"].startswith("order-"), f"paid {seen}")
    check(seen["state"] == "PAYMENT_STATE_APPROVED", f"the state is {seen['state']}")
    trailers = seen["trailers"]
    check(trailers["antiphon-outcome"] == "sent", f"the trailers are {trailers}")
    check(len(trailers["antiphon-correlation-id"]) == 36, f"the trailers are {trailers}")
    # A reply may overtake the acknowledgement that has the record's place.
    record = trailers.get("antiphon-record")
    check(record is None or RECORD.fullmatch(record), f"the trailers are {trailers}")
    return "ok" if record else "ok, record unknown"


def judge_error(seen):
    wanted = {
        "code": "FAILED_PRECONDITION",
        "message": "currency XXX is not supported",
        "details": [{
            "type": "google.rpc.ErrorInfo",
            "reason": "CURRENCY_NOT_SUPPORTED",
            "domain": "payments.example",
            "metadata": {"currency": "XXX"},
        }],
    }  # fmt: skip
    check(seen == wanted, f"the error is {seen}")
    return "ErrorInfo"


def judge_non_ascii(seen):
    order = seen["details"][0]["metadata"]["order_id"]
    check(order.startswith("refused-"), f"the error is {seen}")
    message = f"주문 {order}: 결제가 거절되었습니다 ✗"
    wanted = {
        "code": "FAILED_PRECONDITION",
        "message": message,
        "details": [
            {
                "type": "google.rpc.ErrorInfo",
                "reason": "PAYMENT_REFUSED",
                "domain": "payments.example",
                "metadata": {"order_id": order, "은행": "한국은행"},
            },
            {"type": "google.rpc.LocalizedMessage", "locale": "ko-KR", "message": message},
        ],
    }
    check(seen == wanted, f"the error is {seen}")
    return "Korean"


def judge_idempotency(seen):
    first, second = seen["first"], seen["second"]
    check(re.fullmatch(r"pay-once-\w+-1250", first) and first == second, f"the payments are {seen}")
    check(seen["answered"] == "kept", f"the repeat was answered from {seen['answered']}")
    return "kept"


def judge_reflection(seen):
    if "impossible" in seen:
        check("streaming" in seen["impossible"], f"reflection failed with {seen['impossible']}")
        check(seen["health"] == "SERVING", f"the service's health is {seen['health']}")
        return "impossible; health"
    services = set(seen["services"])
    check({SERVICE, "grpc.health.v1.Health"} <= services, f"reflection lists {services}")
    return "ok"


def judge_parallel(seen):
    replies = {reply["asked"]: reply for reply in seen["replies"]}
    check(len(replies) == PARALLEL_CALLS == len(seen["replies"]), f"{len(replies)} calls were answered")
    for asked, reply in replies.items():
        number = re.match(r"parallel-(\d+)-", asked)[1]
        own = {"asked": asked, "order_id": asked, "payment_id": f"pay-{asked}-{number}"}
        check(reply == own, f"{asked} was answered with {reply}")
    return str(PARALLEL_CALLS)


def judge_deadline(seen):
    check(seen["code"] == "DEADLINE_EXCEEDED", f"the call ended with {seen}")
    late_ms = seen["ms"] - seen["deadline_ms"]
    # Timers of two clocks: a few milliseconds early is in time.
    check(-10 <= late_ms <= LATE_MS_MAX, f"the call ended {late_ms} ms after its deadline")
    if seen.get("trailers"):
        check(seen["trailers"]["antiphon-outcome"] == "sent", f"the trailers are {seen['trailers']}")
    own = seen.get("said_by_the_library", "DeadlineExceeded")
    return f"{late_ms:+d} ms" + ("" if own == "DeadlineExceeded" else f" ({own})")


JUDGES = {case: globals()[f"judge_{case}"] for case in CASES}


# ---- the programs of examples/clients ------------------------------------------------


class Program:
    """A client that prints a line of JSON for each case."""

    def __init__(self, command, version, folder=ROOT):
        self.command, self.version, self.folder = command, version, folder

    def sees(self, address):
        command = [word.replace("ADDRESS", address) for word in self.command]
        ran = subprocess.run(
            command, cwd=self.folder, stdin=subprocess.DEVNULL, capture_output=True, text=True,
            encoding="utf-8", timeout=CLIENT_SECONDS_MAX, check=False,
        )  # fmt: skip
        seen = {}
        for line in ran.stdout.splitlines():
            found = json.loads(line)
            seen[found.pop("case")] = found
        if "browser" in seen:
            self.version += f", Chromium {seen['browser']['version']}"
        # Cases that it did not come to have no line, and fail for that.
        why = "" if ran.returncode == 0 else f"the client ended with {ran.returncode}\n{ran.stderr[-2000:]}"
        return seen, why


def pinned(file, pattern):
    found = re.search(pattern, (EXAMPLES / file).read_text())
    check(found, f"{file} has no {pattern}")
    return found[1]


def programs(page_port):
    python = BUILT / "python" / "bin" / "python"
    jar = EXAMPLES / "java" / "target" / "client-java.jar"
    page = ["node", "headless.js", "--json", "--port", str(page_port), "ADDRESS"]
    go_version = pinned("go/go.mod", r"google.golang.org/grpc v(\S+)")
    tonic_version = pinned("rust/Cargo.lock", r'name = "tonic"\nversion = "([^"]+)"')
    connect_version = pinned("web/package.json", r'connect-web": "([^"]+)"')
    return {
        "java": Program(
            ["java", "-jar", str(jar), "--json", "ADDRESS"],
            f"grpc-java {pinned('java/pom.xml', r'<grpc.version>([^<]+)')}",
        ),
        "python": Program(
            [str(python), str(EXAMPLES / "python" / "client.py"), "--json", "ADDRESS"],
            f"grpcio {pinned('python/requirements.txt', r'grpcio==(.+)')}",
        ),
        "node": Program(
            ["node", str(EXAMPLES / "node" / "client.js"), "--json", "ADDRESS"],
            f"grpc-js {pinned('node/package.json', r'grpc-js.: .([0-9.]+)')}",
        ),
        "go": Program([str(BUILT / "client-go"), "-json", "ADDRESS"], f"grpc-go {go_version}"),
        "rust": Program(
            [str(BUILT / "rust" / "debug" / "antiphon-client-rust"), "--json", "ADDRESS"], f"tonic {tonic_version}"
        ),
        "web": Program(page, f"connect-web {connect_version}", EXAMPLES / "web"),
        "grpcurl": Grpcurl(),
        "buf": Buf(),
    }


# ---- the commands of examples/clients/README.md --------------------------------------


class Commands:
    """A tool that is driven by the very lines that the README has."""

    heading = tool = None

    def __init__(self):
        page = (EXAMPLES / "README.md").read_text()
        section = page.split(f"\n## {self.heading}\n")[1].split("\n## ")[0]
        block = section.split("```sh\n")[1].split("```")[0]
        self.lines = dict(re.findall(r"^# (\w+).*\n(.+)$", block, re.MULTILINE))
        self.run = os.urandom(4).hex()

    def call(self, case, address, instead=()):
        """Its exit code, what it printed, and how long it took in ms."""
        line = self.lines[case].replace("127.0.0.1:50051", address)
        line = re.sub(r"\b(order|refused|once|slow|key)-1\b", rf"\1-{self.run}", line)
        for old, new in instead:
            check(old in line, f"{line} has no {old}")
            line = line.replace(old, new)
        words = shlex.split(line)
        check(words[0] == self.heading.split()[0], f"{line} is not for {self.heading}")
        started = time.monotonic()
        ran = subprocess.run(
            [self.tool, *words[1:]], stdin=subprocess.DEVNULL, capture_output=True, text=True, encoding="utf-8",
            timeout=COMMAND_SECONDS_MAX, check=False,
        )  # fmt: skip
        return ran.returncode, ran.stdout, ran.stderr, round((time.monotonic() - started) * 1000)

    def sees(self, address):
        return {case: getattr(self, case)(address) for case in CASES}, ""

    def paid(self, case, address, instead=()):
        code, out, err, _ = self.call(case, address, instead)
        check(code == 0, f"{self.heading} ended with {code}:\n{out}{err}")
        reply = json.loads(re.search(r"^\{$.*?^\}$", out, re.MULTILINE | re.DOTALL)[0])
        trailers = re.findall(r"(antiphon-[\w-]+): (\S+)", f"{out}\n{err}", re.IGNORECASE)
        return reply, {name.lower(): value for name, value in trailers}

    def pay(self, address):
        reply, trailers = self.paid("pay", address)
        named = {"order_id": reply["orderId"], "payment_id": reply["paymentId"], "state": reply["state"]}
        return {**named, "trailers": trailers}

    def error(self, address):
        return self.refused("error", address)

    def non_ascii(self, address):
        return self.refused("non_ascii", address)

    def idempotency(self, address):
        first, _ = self.paid("idempotency", address)
        second, trailers = self.paid("idempotency", address)
        answered = trailers.get("antiphon-idempotency")
        return {"first": first["paymentId"], "second": second["paymentId"], "answered": answered}

    def reflection(self, address):
        code, out, err, _ = self.call("reflection", address)
        check(code == 0, f"{self.heading} ended with {code}:\n{out}{err}")
        return {"services": out.split()}

    def parallel(self, address):
        def one(number):
            asked = f"parallel-{number}-{self.run}"
            reply, _ = self.paid("pay", address, [(f"order-{self.run}", asked), ("1250", str(number))])
            return {"asked": asked, "order_id": reply["orderId"], "payment_id": reply["paymentId"]}

        with concurrent.futures.ThreadPoolExecutor(PROCESSES) as pool:
            return {"replies": list(pool.map(one, range(1, PARALLEL_CALLS + 1)))}


class Grpcurl(Commands):
    heading, tool = "grpcurl", os.environ["CLIENTS_GRPCURL"]
    codes = {4: "DEADLINE_EXCEEDED", 9: "FAILED_PRECONDITION"}

    def __init__(self):
        super().__init__()
        self.version = Path(self.tool).name.replace("-", " ")

    def status(self, code, err):
        status = json.loads(err)
        check(code == 64 + status["code"], f"grpcurl ended with {code} and {err}")
        return status

    def refused(self, case, address):
        code, _, err, _ = self.call(case, address)
        status = self.status(code, err)
        # It asks the gateway's reflection what the details are.
        details = [{"type": detail.pop("@type").split("/")[-1], **detail} for detail in status["details"]]
        return {"code": self.codes[status["code"]], "message": status["message"], "details": details}

    def deadline(self, address):
        code, _, err, ms = self.call("deadline", address)
        return {"code": self.codes[self.status(code, err)["code"]], "deadline_ms": 500, "ms": ms}


class Buf(Commands):
    heading, tool = "buf curl", os.environ["CLIENTS_BUF"]
    codes = {4: "deadline_exceeded", 9: "failed_precondition"}

    def __init__(self):
        super().__init__()
        self.version = Path(self.tool).name.replace("-", " curl ")

    def status(self, code, err):
        status = json.loads(err)
        check(code % 8 == 0 and status["code"] == self.codes[code // 8], f"buf ended with {code} and {err}")
        return status

    def refused(self, case, address):
        code, _, err, _ = self.call(case, address)
        status = self.status(code, err)
        details = []
        for detail in status["details"]:
            # What it prints is base64 without padding.
            message = getattr(error_details_pb2, detail["type"].removeprefix("google.rpc."))()
            message.ParseFromString(base64.b64decode(detail["value"] + "=="))
            details.append({"type": detail["type"], **json_format.MessageToDict(message)})
        return {"code": status["code"].upper(), "message": status["message"], "details": details}

    def deadline(self, address):
        code, _, err, ms = self.call("deadline", address)
        return {"code": self.status(code, err)["code"].upper(), "deadline_ms": 500, "ms": ms}


# ---- the table ---------------------------------------------------------------------------


def row(name, client, address):
    """A cell for each case: whether it is as it has to be, and words."""
    try:
        seen, why = client.sees(address)
    except Exception:  # The row fails, the others go on.
        return {case: (False, traceback.format_exc()) for case in CASES}
    cells = {}
    for case in CASES:
        try:
            check(case in seen, why or f"{name} printed nothing of it")
            cells[case] = True, JUDGES[case](seen[case])
        except Failure as failure:
            cells[case] = False, str(failure)
        except (KeyError, IndexError, TypeError) as error:
            cells[case] = False, f"{error!r} in {seen[case]}"
    if why and all(good for good, _ in cells.values()):
        cells[CASES[-1]] = False, why
    return cells


def page_of_another_origin(client, address, allowed_port):
    """A page that the gateway does not know gets nothing."""
    port = free_port()
    check(port != allowed_port, "the port is that of the page that may call")
    command = [str(port) if word == str(allowed_port) else word for word in client.command]
    seen, why = Program(command, "", client.folder).sees(address)
    check(why and not set(seen) & set(CASES), f"a page of another origin was served: {seen}")
    check("CORS" in why, f"it failed for another reason: {why}")


def free_port():
    with socket.socket() as place:
        place.bind(("127.0.0.1", 0))
        return place.getsockname()[1]


def show(table, clients):
    head = ["client", *CASES]
    lines = [[clients[name].version, *(words if good else "FAILED" for good, words in cells.values())]
             for name, cells in table.items()]  # fmt: skip
    widths = [max(len(line[at]) for line in [head, *lines]) for at in range(len(head))]
    for line in [head, *lines]:
        print("  ".join(word.ljust(width) for word, width in zip(line, widths)).rstrip())


def run_clients(options, kafka, payments):
    page_port = free_port()
    # The gateway is told of the page before it starts.
    os.environ["ANTIPHON_GRPC_WEB_ORIGINS"] = f"http://127.0.0.1:{page_port}"
    clients = programs(page_port)
    table, failures = {}, []
    with Setup(options, kafka, payments) as setup:
        setup.workers(1)
        gateway: Gateway = setup.gateway()
        for name in options.client or list(clients):
            started = time.monotonic()
            table[name] = row(name, clients[name], gateway.grpc)
            failures += [f"{name}, {case}: {words}" for case, (good, words) in table[name].items() if not good]
            if name == "web":
                try:
                    page_of_another_origin(clients[name], gateway.grpc, page_port)
                except Failure as failure:
                    failures.append(f"web, another origin: {failure}")
            print(f"{clients[name].version} ({time.monotonic() - started:.1f} s)", flush=True)
            time.sleep(SLOW_SECONDS)
        check(gateway.alive(), f"the gateway ended\n{tail(gateway.stderr)}")
    print()
    show(table, clients)
    if "web" in table:
        print("\nweb: reflection is a stream in both directions, which gRPC-Web does not have; the page asked the")
        print("health of its service. A page of an origin that is not named was opened, too, and has to be refused.")
    return table, failures


def main():
    arguments = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    arguments.add_argument("--antiphon", type=Path, required=True, help="the gateway's binary")
    arguments.add_argument("--bootstrap", help="Kafka brokers; one is started where this is missing")
    arguments.add_argument("--client", action="append", help="only this client; may be said again")
    options = arguments.parse_args()
    options.antiphon = options.antiphon.resolve()
    if not options.antiphon.is_file():
        sys.exit(f"there is no {options.antiphon}: cargo build --release --locked")
    unknown = set(options.client or ()) - programs(0).keys()
    if unknown:
        sys.exit(f"no such client: {', '.join(sorted(unknown))}")
    started = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        payments = generate_messages(Path(folder))
        kafka = Kafka(options.bootstrap)
        try:
            kafka.create_topics()
            table, failures = run_clients(options, kafka, payments)
        finally:
            kafka.stop()
    for failure in failures:
        print(f"\n{failure}")
    cells = len(table) * len(CASES) + ("web" in table)
    print(f"\n{cells - len(failures)} passed, {len(failures)} failed, {time.monotonic() - started:.0f} s")
    return 1 if failures or not table else 0


if __name__ == "__main__":
    sys.exit(main())
