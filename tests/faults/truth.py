"""Ground truth: what a hundred thousand mixed calls were, and whether metrics,
access log and dead letters say exactly that. Run through run.py.

    tests/faults/run.py truth --antiphon target/release/antiphon [--calls N]

The calls (load/mixed.go) are answered, refused by their worker, ignored,
answered late, given up by their callers, answered twice or with garbage, too
large, malformed, of an unknown method, without a topic, one too many for their
method, or made twice at once under one idempotency key. Three accounts are kept
by others than the gateway: of the callers, what each call ended with; of the
worker, which replies Kafka has acknowledged; and Kafka itself, read back. From
these follows, to the single call, what the gateway must say; no number of it is
taken for granted, and none may be off by one.
"""

import argparse
import collections
import contextlib
import json
import re
import shutil
import sys
import tempfile
import time
from pathlib import Path

from audit import correlation_id, read_back
from cluster import Cluster, Gateway
from harness import Failure, Process, check, tail, wait_until
from row import Load
from truth_worker import ECHO, LATE_SECONDS, PAY

HERE = Path(__file__).resolve().parent
DEADLINE_SECONDS = 2.0
CALLS_SECONDS_MAX = 500
MESSAGE_BYTES_MAX = 65_536  # Less than largeBytes of mixed.go.
# In flight of a method for which mixed.go has more.
KEYED_MAX = 20
GOOD_SHARE = 0.05
DROPPED = "antiphon_access_log_dropped"
METHODS = {
    "keyed": "/payments.v1.PaymentService/Pay", "malformed": "/payments.v1.PaymentService/Refund",
    "homeless": "/delivery.v1.DeliveryRadiusService/SetRadius", "unknown": "/echo.v1.EchoService/Whisper",
}  # fmt: skip
ECHO_METHOD = "/echo.v1.EchoService/Echo"
# What is usual of each kind; a machine that stalls makes some end otherwise.
USUAL = {
    "answered": "OK", "failed": "FAILED_PRECONDITION", "silent": "DEADLINE_EXCEEDED", "late": "DEADLINE_EXCEEDED",
    "cancelled": "CANCELLED", "twice": "OK", "garbage": "INTERNAL", "large": "RESOURCE_EXHAUSTED",
    "malformed": "INVALID_ARGUMENT", "unknown": "UNIMPLEMENTED", "homeless": "UNAVAILABLE",
}  # fmt: skip
USUAL_SHARE_MIN = 0.9


class Books:
    """Compares, and remembers what does not add up."""

    def __init__(self):
        self.wrong = []

    def same(self, what, truth, told):
        if truth == told:
            size = sum(truth.values()) if isinstance(truth, collections.Counter) else truth
            print(f"| {what} | {size:,} | exact |", flush=True)
            return
        words = f"{truth} and {told}"
        if isinstance(truth, collections.Counter):
            more, less = told - truth, truth - told
            words = f"{sum(truth.values())} and {sum(told.values())}: too many {few(more)}, missing {few(less)}"
        print(f"| {what} | **{words}** | WRONG |", flush=True)
        self.wrong.append(what)


def few(counter):
    return dict(counter.most_common(4))


def count(rows):
    return collections.Counter(rows)


def samples(gateway):
    """Of /metrics: {(name, sorted labels): value}."""
    text = gateway.scrape()
    found = {}
    for name, labels, value in re.findall(r"^(\w+)(?:\{(.*)\})? (\S+)", text, re.MULTILINE):
        found[name, tuple(sorted(re.findall(r'(\w+)="([^"]*)"', labels)))] = float(value)
    return found


def by_labels(found, name, *labels):
    """The samples of a counter that are not 0, by the values of these labels."""
    rows = collections.Counter()
    for (this, pairs), value in found.items():
        if this == name and value:
            pairs = dict(pairs)
            rows[tuple(pairs[label] for label in labels)] += round(value)
    return rows


def drive(options, cluster, folder, calls_out):
    """Makes the calls; returns the gateway's last word."""
    for topic in (ECHO, PAY):
        cluster.create(topic)
    cluster.wait_whole()
    log = folder / "access.log"
    limits = (
        f'[access_log]\nfile = "{log}"\nformat = "json"\ngood_share = {GOOD_SHARE}\n\n'
        f'[method."{METHODS["keyed"].removeprefix("/")}"]\nin_flight_max = {KEYED_MAX}\n\n'
    )
    services = {"echo.v1.EchoService": 'dead_letter_on = ["timeout", "undecodable-reply"]\n'}
    gateway = Gateway(
        folder, options.antiphon, cluster.bootstrap, DEADLINE_SECONDS, limits=limits, services=services,
        grpc=f"message_bytes_max = {MESSAGE_BYTES_MAX}\n",
    )  # fmt: skip
    journal = folder / "worker.jsonl"
    worker = Process(
        folder, "worker", [sys.executable, str(HERE / "truth_worker.py"), cluster.bootstrap, str(journal)]
    )
    try:
        gateway.wait_ready()
        wait_until(lambda: "assigned" in worker.stdout.read_text(), 40, "the worker has its partitions")
        load = Load(
            folder, "calls", [gateway.grpc], run="t", kind="mixed", calls=options.calls, rate=options.rate,
            deadline=DEADLINE_SECONDS, repeat_every=50,
        )  # fmt: skip
        load.finish_by_itself(CALLS_SECONDS_MAX)
        calls_out += load.calls()
        # The last late reply is on its way for so long.
        time.sleep(LATE_SECONDS + 1)
        worker.signal(15)
        check(worker.exit_code(40) == 0, f"the worker: {tail(worker.stderr)}")
        replies = [json.loads(line) for line in journal.read_text().splitlines()]
        return gateway, log, replies
    except BaseException:
        gateway.end()
        raise
    finally:
        worker.end()


def settled(gateway):
    """The metrics, once nothing moves any more."""
    before = None

    def still():
        nonlocal before
        last, before = before, {
            key: value for key, value in samples(gateway).items()
            if key[0] in ("antiphon_calls_total", "antiphon_replies_total", "antiphon_dead_letters_total")
            and ("kind", "heartbeat") not in key[1]
        }  # fmt: skip
        return last == before

    wait_until(still, 60, "the metrics stand still", pause=2)
    return samples(gateway)


def method_of(call):
    return METHODS.get(call["kind"], ECHO_METHOD)


def judge(calls, replies, records, letters, found, lines):
    """What follows from the calls, the worker and Kafka, against what is told."""
    books = Books()
    print("| account | number | |\n|---|--:|---|", flush=True)

    # ---- how calls ended ----
    ended = count((method_of(call), call["code"]) for call in calls)
    served = collections.Counter()
    for (method, code), number in ended.items():
        served["_OTHER" if method == METHODS["unknown"] else method, code] += number
    books.same("calls by method and status, in the metrics", served, by_labels(found, "antiphon_calls_total", "method", "code"))
    histogram = by_labels(found, "rpc_server_call_duration_seconds_count", "rpc_method", "rpc_response_status_code")
    books.same("the same, in the histogram", served, count_with(histogram, lambda key: (key[0] if key[0] == "_OTHER" else "/" + key[0], key[1])))

    # ---- the access log ----
    failed = count((method_of(call), call["code"]) for call in calls if call["code"] != "OK")
    books.same("failed calls with a line", failed, count((line["method"], line["code"]) for line in lines if line["code"] != "OK"))
    named = count((call["cid"], call["code"]) for call in calls if call["code"] != "OK" and call["cid"])
    cancelled = {record["id"] for record in records if record["kind"] == "cancelled"}
    told = [line for line in lines if line["code"] != "OK" and "correlation_id" in line]
    books.same(
        "their correlation ids", named,
        count((line["correlation_id"], line["code"]) for line in told if line["code"] != "CANCELLED"),
    )  # fmt: skip
    given_up = {line["correlation_id"] for line in told if line["code"] == "CANCELLED"}
    books.same("callers that went away, by their requests", count(cancelled), count(given_up))
    good = {call["cid"] for call in calls if call["code"] == "OK"}
    sampled = [line["correlation_id"] for line in lines if line["code"] == "OK"]
    books.same("sampled lines that are of a good call", len(sampled), sum(identity in good for identity in sampled))
    at = {record["id"]: record["at"] for record in records}
    placed = [line for line in lines if "request_offset" in line]
    books.same(
        "lines whose request stands where they say", len(placed),
        sum(at.get(line["correlation_id"]) == place_of(line) for line in placed),
    )  # fmt: skip
    expected = GOOD_SHARE * sum(call["code"] == "OK" for call in calls)
    if abs(len(sampled) - expected) > 6 * expected**0.5:
        books.wrong.append(f"{len(sampled)} sampled lines; {expected:.0f} would be usual")
    books.same("lines dropped", 0, round(sum(value for (name, _), value in found.items() if name.startswith(DROPPED))))

    # ---- requests and replies ----
    sent = collections.Counter(record["topic"] for record in records)
    books.same(
        "requests that Kafka has acknowledged", sent,
        count_with(by_labels(found, "messaging_client_sent_messages_total", "messaging_destination_name"), lambda key: key[0], sent),
    )  # fmt: skip
    by_id = collections.Counter(reply["correlation_id"] for reply in replies)
    code_of = {call["cid"]: call["code"] for call in calls if call["cid"]} | dict.fromkeys(cancelled, "CANCELLED")
    in_time = {identity for identity in by_id if code_of.get(identity) not in ("DEADLINE_EXCEEDED", "CANCELLED")}
    kinds = collections.Counter()
    for identity, number in by_id.items():
        if identity in in_time:
            kinds["delivered"] += 1
            kinds["duplicate"] += number - 1
        else:
            kinds["late"] += 1
            kinds["duplicate"] += number - 1
    told = by_labels(found, "antiphon_replies_total", "kind")
    for kind in ("delivered", "late", "duplicate"):
        books.same(f"replies that are {kind}", kinds[kind], told[(kind,)])
    for kind in ("foreign", "uncorrelated"):
        books.same(f"replies that are {kind}", 0, told[(kind,)])

    # ---- dead letters ----
    echo_of = {record["id"] for record in records if record["topic"] == ECHO}
    truth = collections.Counter()
    for identity, code in code_of.items():
        if identity in echo_of and code == "DEADLINE_EXCEEDED":
            truth["timeout", identity] += 1
            if by_id[identity]:
                truth["late-reply", identity] += 1
        if identity in echo_of and code == "INTERNAL":
            truth["undecodable-reply", identity] += 1
    books.same("dead letters on their topic, by class and call", truth, count((letter["class"], letter["id"]) for letter in letters))
    classes = count(name for name, _ in truth.elements())
    books.same("dead letters in the metrics", classes, count_with(by_labels(found, "antiphon_dead_letters_total", "class"), lambda key: key[0]))
    books.same("calls still in flight", 0, round(found["antiphon_calls_in_flight", ()]))
    books.same("bytes still held", 0, round(found["antiphon_bytes_held", ()]))

    # ---- whether it was a mix at all ----
    for kind, usual in USUAL.items():
        of = [call["code"] for call in calls if call["kind"] == kind]
        if not of or of.count(usual) < USUAL_SHARE_MIN * len(of):
            books.wrong.append(f"{kind} is to end with {usual}: {dict(collections.Counter(of))}")
    keyed = {call["code"] for call in calls if call["kind"] == "keyed"}
    if not {"OK", "RESOURCE_EXHAUSTED"} <= keyed:
        books.wrong.append(f"of the calls that are limited none were refused, or all: {keyed}")
    if any(call["wrong"] for call in calls):
        books.wrong.append("a call has the reply of another one")
    joined = sum(call.get("repeat") is not None for call in calls)
    told = by_labels(found, "antiphon_idempotent_total", "kind")
    books.same("calls that joined another, or had its reply", joined, told["joined",] + told["kept",])
    return books


def count_with(counter, rename, only=None):
    rows = collections.Counter()
    for key, number in counter.items():
        if only is None or rename(key) in only:
            rows[rename(key)] += number
    return rows


def place_of(line):
    return line["request_topic"], line["request_partition"], line["request_offset"]


def read_all(cluster):
    """Requests and dead letters, as Kafka has them."""
    topics = {name: cluster.partitions(name) for name in (ECHO, PAY, f"{ECHO}.DLQ")}
    records, letters = [], []
    for record in read_back(cluster.bootstrap, topics):
        headers = dict(record.headers() or ())
        identity = correlation_id(record)
        if record.topic() == f"{ECHO}.DLQ":
            letters.append({"class": headers["failure.class"].decode(), "id": identity})
            continue
        value = record.value()
        records.append({
            "id": identity, "topic": record.topic(), "kind": value[2 : 2 + value[1]].decode().partition(":")[0],
            "at": (record.topic(), record.partition(), record.offset()),
        })  # fmt: skip
    return records, letters


def run(options, cluster, folder):
    calls = []
    gateway, log, replies = drive(options, cluster, folder, calls)
    try:
        found = settled(gateway)
        gateway.end()  # Its last lines are written.
        check(gateway.child.returncode == 0, f"the gateway ended with {gateway.child.returncode}")
        lines = [json.loads(line) for line in log.read_text().splitlines()]
        records, letters = read_all(cluster)
    finally:
        gateway.end()
    codes = collections.Counter(call["code"] for call in calls)
    print(f"{len(calls):,} calls: " + ", ".join(f"{code} {number:,}" for code, number in codes.most_common()) + "\n")
    check(len(calls) >= options.calls, f"only {len(calls)} calls were made")
    return judge(calls, replies, records, letters, found, lines).wrong


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--antiphon", type=Path, required=True, help="the gateway's binary")
    parser.add_argument("--calls", type=int, default=100_000, help="in all (default: %(default)s)")
    parser.add_argument("--rate", type=float, default=1_500, help="calls a second (default: %(default)s)")
    options = parser.parse_args()
    options.antiphon = options.antiphon.resolve()
    folder, wrong = Path(tempfile.mkdtemp(prefix="antiphon-truth-")), ["it did not come to an end"]
    with contextlib.ExitStack() as cleaning:
        cluster = Cluster(brokers=1)
        cleaning.callback(cluster.stop)
        try:
            wrong = run(options, cluster, folder)
        except Failure as failure:
            wrong = [str(failure)]
    for words in wrong:
        print(f"FAILED: {words}", file=sys.stderr)
    if wrong:
        print(f"kept {folder}", file=sys.stderr)
        return 1
    shutil.rmtree(folder)
    return 0


if __name__ == "__main__":
    sys.exit(main())
