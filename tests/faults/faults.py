"""Every fault in turn, and the table. Run through run.py, which prepares the
tools; row.py says what the columns mean."""

import argparse
import contextlib
import signal
import socket
import sys
import time
import traceback
from collections import Counter
from pathlib import Path

from cluster import Cluster
from harness import PARTITIONS, TOPICS, Failure, check, wait_until
from row import RECOVERED_SECONDS, WARM_UP_SECONDS, Row, worker_lines

PAYMENTS = TOPICS[0]
CLIENT_ID = "antiphon"


def pick(quick, full, options):
    return quick if options.quick else full


# ---- brokers -------------------------------------------------------------------


class KillBroker(Row):
    """SIGKILL for a broker that leads one of the reply topic's partitions and
    is not the active controller. It stays dead."""

    def fault(self):
        controller = self.cluster.controller()
        partitions = self.cluster.partitions(self.gateway.reply_topic).values()
        leaders = [p.leader for p in partitions if p.leader != controller]
        victim = leaders[0] if leaders else next(n for n in self.cluster.ports if n != controller)
        self.begin()
        self.cluster.kafka("kill", str(victim))
        self.end()
        self.hold(5)


class KillController(Row):
    """SIGKILL for the active controller. It stays dead."""

    def fault(self):
        controller = self.cluster.controller()
        self.begin()
        self.cluster.kafka("kill", str(controller))
        self.end()
        self.hold(5)


class RollingRestart(Row):
    """Each broker shut down in good order and started again, one after the
    other, the next when all replicas are in sync."""

    def fault(self):
        self.begin()
        for number in self.cluster.ports:
            self.cluster.kafka("restart", str(number))
            self.cluster.wait_whole()
            self.say()
        self.end()


class PauseBroker(Row):
    """SIGSTOP for the leader of a reply partition: connections stay open and
    nobody answers."""

    def fault(self):
        victim = self.cluster.leader(self.gateway.reply_topic, 0)
        self.begin()
        self.cluster.kafka("pause", str(victim))
        self.hold(pick(12, 20, self.options))
        self.cluster.kafka("resume", str(victim))
        self.end()


class AllDown(Row):
    """SIGKILL for all brokers; started again after a while. The fault ends when
    all of them answer."""

    def fault(self):
        self.begin()
        for number in self.cluster.ports:
            self.cluster.kafka("kill", str(number))
        self.hold(pick(15, 60, self.options))
        self.cluster.kafka("revive")
        self.end()
        self.hold(5)


# ---- the network ---------------------------------------------------------------


class NetworkCut(Row):
    """Nothing gets through between the gateway and the leader of a reply
    partition, which leads request partitions, too; the cluster sees nothing of
    it and moves no leader. What was under way arrives afterwards."""

    proxied = True

    def fault(self):
        victim = self.cluster.leader(self.gateway.reply_topic, 0)
        self.begin()
        self.cluster.proxy.hold(victim)
        self.hold(pick(10, 20, self.options))
        self.cluster.proxy.release(victim)
        self.end()


class SlowNetwork(Row):
    """200 ms more each way between the gateway and every broker."""

    proxied = True

    def fault(self):
        self.begin()
        for link in self.cluster.proxy.links.values():
            link.delay_seconds = 0.2
        self.hold(pick(10, 20, self.options))
        for link in self.cluster.proxy.links.values():
            link.delay_seconds = 0.0
        self.end()


class CutAfterSend(Row):
    """The proxy lets a produce request through whole and cuts the connection in
    front of its answer, again and again: every batch is in the log, and the
    gateway cannot know."""

    proxied = True
    cuts = 40

    def fault(self):
        self.begin()
        links = self.cluster.proxy.links.values()
        for link in links:
            link.cut_topic, link.cut_every = PAYMENTS.encode(), 10
            link.cuts_done, link.cuts_left = 0, self.cuts
        self.hold(pick(8, 15, self.options))
        cuts = sum(link.cuts_done for link in links)
        for link in links:
            link.cuts_left = 0
        self.end()
        self.remarks.append(f"{cuts} answers cut off")
        check(cuts > 0, "no answer was cut off")


class Quota(Row):
    """A quota on the gateway's client id, below what it sends: brokers append
    and answer with a throttle time."""

    bytes_per_second = 15_000

    def fault(self):
        self.begin()
        self._alter("--add-config", f"producer_byte_rate={self.bytes_per_second}")
        self.hold(pick(8, 20, self.options))
        self._alter("--delete-config", "producer_byte_rate")
        self.end()
        throttled = self.gateway.metric("antiphon_produce_errors_total")
        self.remarks.append(f"{throttled:.0f} throttled answers")
        check(throttled > 0, "nothing was throttled")

    def _alter(self, *change):
        self.cluster.kafka("tool", "configs", "--alter", "--entity-type", "clients", "--entity-name", CLIENT_ID, *change)


# ---- processes -----------------------------------------------------------------


class KillGateway(Row):
    """Two gateways; one is killed and started again, as a new instance, while
    every caller repeats what failed under its idempotency key, at whichever
    gateway. Each payment is executed once."""

    retry_seconds = 25

    def prepare(self):
        super().prepare()
        with socket.create_server(("127.0.0.1", 0)) as free:
            self.port = free.getsockname()[1]
        self.victim = self.start_gateway("victim", self.port)

    def start_load(self, **arguments):
        return super().start_load(gateways=[self.gateway.grpc, self.victim.grpc], **arguments)

    def fault(self):
        self.begin()
        self.victim.signal(signal.SIGKILL)
        self.victim.exit_code(5)
        self.victim.readiness.stop()
        self.hold(2)
        fresh = self.start_gateway("victim-again", self.port)
        self.end()
        check(fresh.reply_topic != self.victim.reply_topic, "the restarted gateway has its old name")

    def account(self, requests):
        lines = [line for worker in self.workers for line in worker_lines(worker)]
        executed = Counter(line["order_id"] for line in lines if "order_id" in line and not line.get("repeat"))
        again = [order for order, times in executed.items() if times > 1]
        if again:
            self.broken.append(f"{len(again)} payments executed more than once")
        repeats = sum(bool(line.get("repeat")) for line in lines)
        found = super().account(requests)
        retried = sum(call["attempts"] > 1 for load in self.loads for call in load.calls())
        self.remarks.append(
            f"{retried} calls repeated, {repeats} answered from what the worker kept, {len(again)} executed twice"
        )
        if found["calls"] != found["answered"]:
            self.broken.append("a repeated call was not answered")
        return found


class KillWorker(Row):
    """SIGKILL for a worker in the middle of a batch; another one takes its
    place at once, but the group waits for the dead one's session to end (10 s)."""

    work_ms = 1

    def fault(self):
        self.begin()
        self.workers[0].signal(signal.SIGKILL)
        self.workers[0].exit_code(5)
        dead = self.workers.pop(0)
        self.hold(2)
        self.start_workers(1)
        self.end()
        self.workers.append(dead)


class NobodyReads(Row):
    """10,000 calls of a method whose topic has no reader, beside the load: each
    ends at its deadline, and nothing of them stays behind."""

    worker_topics = TOPICS[:2]
    calls = 10_000

    def fault(self):
        self.begin()
        rate = 1_000
        second = self.start_load(kind="echo", radius_every=0, rate=rate, seconds=self.calls / rate, name="echo")
        self.hold(self.calls / rate + self.options.deadline)
        wait_until(lambda: second.child.poll() is not None, 60, "the echo calls end")
        self.end()

    def account(self, requests):
        found = super().account(requests)
        codes = Counter(call["code"] for call in self.loads[1].calls())
        self.remarks.append(f"{codes['DEADLINE_EXCEEDED']} of the {self.calls} timed out")
        if codes["DEADLINE_EXCEEDED"] < 0.99 * self.calls:
            self.broken.append(f"calls nobody reads ended with {dict(codes)}")
        if any(call["code"] != "OK" for call in self.loads[0].calls()):
            self.remarks.append("other calls failed, too")
        left = self.gateway.metric("antiphon_calls_in_flight")
        if left:
            self.broken.append(f"{left:.0f} calls still in flight")
        return found


# ---- topics --------------------------------------------------------------------


class ReplyTopicDeleted(Row):
    """The reply topic is deleted; nobody but the gateway makes it again."""

    def fault(self):
        self.begin()
        self.cluster.delete(self.gateway.reply_topic)
        self.end()
        self.hold(5)


class RequestTopicDeleted(Row):
    """The payments' request topic is deleted, and made again after a while."""

    def fault(self):
        self.begin()
        self.cluster.delete(PAYMENTS)
        self.hold(3)
        self.cluster.create(PAYMENTS)
        self.end()
        self.hold(5)


class PartitionsAdded(Row):
    """The payments' request topic gets half as many partitions more."""

    def fault(self):
        self.begin()
        self.cluster.add_partitions(PAYMENTS, PARTITIONS + PARTITIONS // 2)
        self.end()
        self.hold(12)  # Until the gateway looks at the topics again.

    def account(self, requests):
        used = {partition for places in requests.places.values() for topic, partition, _ in places if topic == PAYMENTS}
        if len(used) != PARTITIONS + PARTITIONS // 2:
            self.broken.append(f"only {len(used)} partitions were used")
        return super().account(requests)


class NoFault(Row):
    """Nothing happens: what the measuring itself comes to."""

    def fault(self):
        self.begin()
        self.end()


ROWS = {
    "none": (NoFault, "no fault"),
    "kill-broker": (KillBroker, "kill -9 a broker"),
    "kill-controller": (KillController, "kill -9 the active controller"),
    "rolling-restart": (RollingRestart, "rolling restart of all"),
    "pause-broker": (PauseBroker, "pause a broker"),
    "all-down": (AllDown, "all brokers down"),
    "network-cut": (NetworkCut, "network cut to a leader"),
    "slow-network": (SlowNetwork, "slow network, 200 ms each way"),
    "cut-after-send": (CutAfterSend, "cut after send"),
    "quota": (Quota, "throttled by a quota"),
    "kill-gateway": (KillGateway, "kill -9 a gateway, callers repeat"),
    "kill-worker": (KillWorker, "kill -9 a worker mid-batch"),
    "nobody-reads": (NobodyReads, "10,000 calls nobody reads"),
    "reply-topic-deleted": (ReplyTopicDeleted, "reply topic deleted"),
    "request-topic-deleted": (RequestTopicDeleted, "request topic deleted and made again"),
    "partitions-added": (PartitionsAdded, "partitions added"),
}
# What --quick leaves out takes long or is much like something it has.
QUICK = ["kill-broker", "pause-broker", "network-cut", "cut-after-send", "quota", "kill-gateway", "reply-topic-deleted"]


# ---- the run -------------------------------------------------------------------


class Progress:
    """One line that changes, on a terminal; else a line every few seconds."""

    SECONDS = 5

    def __init__(self):
        self.began, self.told_at, self.place = time.monotonic(), 0.0, ""

    def __call__(self, words, final=False):
        now = time.monotonic()
        line = f"[{self.place} {now - self.began:4.0f} s] {words}"
        if sys.stderr.isatty():
            print(f"\r\033[K{line}", end="\n" if final else "", file=sys.stderr, flush=True)
        elif final or now - self.told_at >= self.SECONDS:
            self.told_at = now
            print(line, file=sys.stderr, flush=True)


HEAD = """| fault | calls | answered | failed by status | wrong | lost | sent twice | misreported | late | READY after | remarks |
|---|--:|--:|---|--:|--:|--:|--:|--:|--:|---|"""


def as_markdown(found):
    failed = ", ".join(f"{code} {count}" for code, count in sorted(found["failed"].items())) or "none"
    late = f"{max(0, found['late_ms']):.0f} ms"
    ready = "never" if found["ready"] is None else f"{found['ready']:.1f} s"
    remarks = "; ".join([*(f"**{words}**" for words in found["broken"]), *found["remarks"]])
    cells = [
        found["fault"], found["calls"], found["answered"], failed, found["wrong"], found["lost"], found["twice"],
        found["misreported"], late, ready, remarks,
    ]  # fmt: skip
    return "| " + " | ".join(map(str, cells)) + " |"


def run_row(kind, title, options, cluster, progress):
    row = kind(title, options, cluster, progress)
    keep = True
    try:
        progress(f"{title}: preparing")
        row.prepare()
        row.start_load()
        row.hold(WARM_UP_SECONDS)
        row.fault()
        row.hold(options.seconds - RECOVERED_SECONDS)
        row.await_recovery()
        row.finish()
        found = row.account(row.requests())
        keep = bool(found["broken"]) or options.keep
        return found
    except Exception as error:
        words = str(error) if isinstance(error, Failure) else "".join(traceback.format_exception(error))
        progress(f"{title}: {words}", final=True)
        return {
            "fault": title, "calls": 0, "answered": 0, "failed": {}, "wrong": 0, "lost": 0, "twice": 0,
            "misreported": 0, "late_ms": 0, "raw_late_ms": 0, "ready": None, "remarks": [],
            "broken": [f"row did not finish: {words.strip().splitlines()[-1]}"],
        }  # fmt: skip
    finally:
        row.clean_up(keep)


def parse_options():
    parser = argparse.ArgumentParser(description="Faults under load, on three brokers of Apache Kafka.")
    parser.add_argument("--antiphon", type=Path, required=True, help="the gateway's binary")
    parser.add_argument("--only", action="append", choices=ROWS, metavar="ROW", help="run only this; may be repeated")
    parser.add_argument("--list", action="store_true", help="list the rows and end")
    parser.add_argument("--rate", type=float, default=500, help="calls a second (default: %(default)s)")
    parser.add_argument("--seconds", type=float, help="load after the fault (default: 15, with --quick 10)")
    parser.add_argument("--deadline", type=float, help="seconds a call may take (default: 10, with --quick 6)")
    parser.add_argument("--quick", action="store_true", help="fewer and shorter faults")
    parser.add_argument("--keep", action="store_true", help="keep the processes' output of every row")
    options = parser.parse_args()
    options.seconds = options.seconds or pick(10, 15, options)
    options.deadline = options.deadline or pick(6, 10, options)
    if options.list:
        for name, (kind, _) in ROWS.items():
            print(f"{name:22} {' '.join(kind.__doc__.split())}")
        sys.exit()
    options.antiphon = options.antiphon.resolve()
    if not options.antiphon.is_file():
        parser.error(f"{options.antiphon} is not there; build it with cargo build --release")
    return options


def main():
    options = parse_options()
    # Ended from outside, processes and brokers are still cleaned up.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    chosen = options.only or (QUICK if options.quick else list(ROWS))
    progress, results = Progress(), []
    with contextlib.ExitStack() as cleaning:
        progress("starting three brokers", final=True)
        cluster = Cluster()
        cleaning.callback(cluster.stop)
        for number, name in enumerate(chosen, 1):
            progress.place = f"{number}/{len(chosen)}"
            kind, title = ROWS[name]
            cluster.repair()
            found = run_row(kind, title, options, cluster, progress)
            results.append(found)
            progress(as_markdown(found), final=True)
    broken = [found for found in results if found["broken"]]
    print(f"\n{options.rate:.0f} calls/s, a fifth of them idempotent; deadline {options.deadline:g} s\n\n{HEAD}")
    for found in results:
        print(as_markdown(found))
    print(f"\n{len(results) - len(broken)} rows hold, {len(broken)} broken", flush=True)
    return 1 if broken else 0


if __name__ == "__main__":
    sys.exit(main())
