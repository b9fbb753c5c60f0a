"""One row of the table: a fresh gateway and fresh workers on fresh topics, a
steady load, a fault in the middle of it, and the account afterwards.

The columns, exactly:

calls       calls made; `answered` of them ended OK, the others by status.
wrong       OK, but with the reply to another call. Must be 0.
lost        not OK, although the worker had handled the request and written its
            reply, and an independent reader (librdkafka, impatient, on the same
            way through the network as the gateway) had that reply in its hands
            at least ROOM_SECONDS before the call's deadline. (One that it got in
            the very moment in which the fault began counts from when that
            partition could be read again.) Must be 0.
sent twice  correlation ids of Pay, which may not be repeated, that stand more
            than once in the request topic. Must be 0. (SetRadius is idempotent
            and may be repeated.)
misreported calls whose `antiphon-outcome` says `not-sent` while the request is
            in the topic, or `sent` while it is not. Must be 0.
late        the longest wait beyond the deadline. The gateway alone holds the
            deadline (its timeout_max; the caller's own timer runs 5 s longer),
            from when the call reaches it, so the caller's clock starts a little
            earlier. Taken off is what is the machine's: by how much the caller's
            own timers were late around that moment, and for how long the gateway
            was ready to run and had no processor as the call came and as it
            ended; both are measured all along. Must be below LATE_SECONDS_MAX.
ready       seconds from the end of the fault to the moment from which /ready
            stays 200.
recovered   of the calls begun in the last RECOVERED_SECONDS, all but a few are
            OK: else the row is broken, too. A machine with much else to do may
            take RECOVERY_SECONDS_MAX longer; that is remarked.
"""

import collections
import itertools
import json
import os
import subprocess
import tempfile
import threading
import time
from pathlib import Path

from audit import ReplyAudit, read_requests
from cluster import Gateway
from harness import TOPICS, Failure, Worker, check, tail, wait_until

ROOM_SECONDS = 1.0
LATE_SECONDS_MAX = 0.1
STARVED_ROOM = 0.05
RECOVERED_SECONDS = 3.0
RECOVERED_SHARE_MIN = 0.99
RECOVERY_SECONDS_MAX = 45
WARM_UP_SECONDS = 3
GROUP_SECONDS_MAX = 60
TOPIC_OF = {"pay": TOPICS[0], "radius": TOPICS[1], "echo": TOPICS[2]}


class Load:
    """The program in load/, in a process of its own."""

    def __init__(self, folder, name, gateways, **arguments):
        self.name, self.out = name, folder / f"{name}.calls"
        self.counts = {}
        command = [os.environ["FAULTS_LOAD"], "--out", str(self.out)]
        for gateway in gateways:
            command += ["--gateway", gateway]
        for argument, value in arguments.items():
            command.append(f"--{argument.replace('_', '-')}={value}")
        self.errors = folder / f"{name}.err"
        self.child = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self.errors.open("w"), text=True
        )
        self.started = threading.Event()
        self._reading = threading.Thread(target=self._read, daemon=True)
        self._reading.start()
        check(self.started.wait(30) and self.child.poll() is None, f"the load does not start\n{tail(self.errors)}")
        self.began = time.time()

    def _read(self):
        for line in self.child.stdout:
            if line.startswith("{"):
                self.counts = json.loads(line)
            self.started.set()
        self.started.set()

    def finish(self, seconds):
        """No more calls; waits for those under way."""
        self.ended = time.time()
        self.child.stdin.close()
        self.finish_by_itself(seconds)

    def finish_by_itself(self, seconds):
        """Waits for the last of the calls that it was to make."""
        try:
            self.child.wait(seconds)
        except subprocess.TimeoutExpired:
            raise Failure(f"calls are still under way after {seconds:.0f} s: {self.counts}") from None
        self._reading.join(5)
        check(self.child.returncode == 0, f"the load ended with {self.child.returncode}\n{tail(self.errors)}")

    def calls(self):
        return [json.loads(line) for line in self.out.read_text().splitlines()]

    def alive(self):
        return self.child.poll() is None

    def end(self):
        if self.alive():
            self.child.kill()
            self.child.wait()


class Row:
    """What a fault is given."""

    proxied = False
    work_ms = 0
    retry_seconds = 0
    worker_topics = TOPICS

    def __init__(self, title, options, cluster, progress):
        self.title, self.options, self.cluster = title, options, cluster
        self.progress = progress
        self.folder = Path(tempfile.mkdtemp(prefix="antiphon-faults-"))
        self.run = self.folder.name.removeprefix("antiphon-faults-")
        self.children, self.workers, self.loads, self.audits, self.remarks = [], [], [], [], []
        self.worker_numbers = itertools.count()
        self.gateway = None
        self.fault_began = self.fault_ended = None
        self.broken = []

    # ---- before ----

    def prepare(self):
        self.cluster.fresh_topics()
        self.start_workers(2)
        self.gateway = self.start_gateway("gateway")

    def start_gateway(self, name, port=0):
        bootstrap = self.cluster.proxied_bootstrap if self.proxied else self.cluster.bootstrap
        gateway = Gateway(self.folder, self.options.antiphon, bootstrap, self.options.deadline, name, port)
        self.children.append(gateway)
        gateway.wait_ready()
        partitions = len(self.cluster.partitions(gateway.reply_topic))
        self.audits.append(ReplyAudit(bootstrap, gateway.reply_topic, partitions))
        return gateway

    def start_workers(self, count):
        group = f"faults-{self.run}"
        # A name is a worker's for good: its files are what it did.
        fresh = [
            Worker(self.folder, f"worker-{next(self.worker_numbers)}", self.cluster.bootstrap, group, self.work_ms, self.worker_topics)
            for _ in range(count)
        ]
        self.workers += fresh
        self.children += fresh
        total = sum(len(self.cluster.partitions(topic)) for topic in self.worker_topics)

        def shared_out():
            held = [worker.assigned() for worker in self.workers]
            return all(held) and sum(map(len, held)) == len(set().union(*held)) == total

        wait_until(shared_out, GROUP_SECONDS_MAX, "the workers hold every partition", pause=0.2)

    def start_load(self, name="load", gateways=None, **arguments):
        arguments = {
            "run": self.run, "rate": self.options.rate, "deadline": self.options.deadline, "radius_every": 5,
            "retry_seconds": self.retry_seconds, **arguments,
        }  # fmt: skip
        load = Load(self.folder, name, gateways or [self.gateway.grpc], **arguments)
        self.loads.append(load)
        return load

    # ---- the fault ----

    def begin(self):
        self.fault_began, self.fault_began_unix = time.monotonic(), time.time()

    def end(self):
        self.fault_ended = time.monotonic()

    def hold(self, seconds):
        """The load goes on for so long."""
        until = time.monotonic() + seconds
        while (left := until - time.monotonic()) > 0:
            self.say()
            time.sleep(min(1, left))

    def await_recovery(self):
        """The load goes on until all but a few calls are answered."""
        began = time.monotonic()
        while time.monotonic() - began < RECOVERY_SECONDS_MAX:
            before = dict(self.loads[0].counts)
            self.hold(RECOVERED_SECONDS)
            now = self.loads[0].counts
            sent, answered = (now.get(name, 0) - before.get(name, 0) for name in ("sent", "OK"))
            if sent and answered >= RECOVERED_SHARE_MIN * sent:
                break
        seconds = time.monotonic() - began - RECOVERED_SECONDS
        if seconds >= 1:
            self.remarks.append(f"recovered {seconds:.0f} s later than usual")

    def say(self):
        counts = collections.Counter()
        for load in self.loads:
            counts.update(load.counts)
        words = " ".join(f"{name}={count}" for name, count in sorted(counts.items()) if name != "wrong" or count)
        self.progress(f"{self.title}: {words}")

    # ---- after ----

    def finish(self):
        for load in self.loads:
            load.finish(self.options.deadline + self.retry_seconds + 30)
        wait_until(self.gateway.readiness.ready, 60, "the gateway is ready again")
        time.sleep(1)  # The workers write their last lines.
        self.cluster.repair()  # What is read back must be all there is.
        for worker in self.workers:
            if not worker.alive() and worker.child.returncode != -9:
                self.remarks.append(f"{worker.name} ended with {worker.child.returncode}")

    def account(self, requests):
        calls = [call for load in self.loads for call in load.calls()]
        counts = collections.Counter(call["code"] for call in calls)
        replies = {}
        for audit in self.audits:
            replies.update(audit.available(self.fault_began_unix))
        journal = [line for worker in self.workers for line in worker_lines(worker)]
        occurrences = collections.defaultdict(set)
        for identity, places in requests.places.items():
            occurrences[identity] |= places
        for line in journal:  # What stood in a topic that is no more.
            occurrences[line["correlation_id"]].add((line["topic"], line["partition"], line["offset"]))
        payments = TOPIC_OF["pay"]

        wrong = [call for call in calls if call.get("wrong")]
        lost = [call for call in calls if self.is_lost(call, requests, replies)]
        twice = [
            identity
            for identity, places in occurrences.items()
            if len(places) > 1 and all(topic == payments for topic, _, _ in places)
        ]
        misreported = [call for call in calls if self.is_misreported(call, occurrences)]
        late = max(map(self.late, calls), default=0)
        raw_late = max((call["beyond"] for call in calls), default=0)
        ready = self.gateway.readiness.seconds_until_ready(self.fault_ended)
        self.judge_recovery()

        for words, found in (
            ("wrong", wrong),
            ("lost", lost),
            ("sent twice", twice),
            ("misreported", misreported),
        ):
            if found:
                self.broken.append(f"{len(found)} {words}")
                (self.folder / f"{words.replace(' ', '-')}.json").write_text(json.dumps(found, indent=1))
        if late >= LATE_SECONDS_MAX:
            self.broken.append(f"late by {late * 1000:.0f} ms")
        if ready is None:
            self.broken.append("not ready again")
        if not calls or not counts["OK"]:
            self.broken.append("nothing was answered")
        failed = {code: count for code, count in counts.items() if code != "OK"}
        ids = {call["cid"] for call in calls if call["code"] == "OK"}
        return {
            "fault": self.title,
            "calls": len(calls),
            "answered": counts["OK"],
            "failed": failed,
            "wrong": len(wrong),
            "lost": len(lost),
            "twice": len(twice),
            "misreported": len(misreported),
            "late_ms": late * 1000,
            "raw_late_ms": raw_late * 1000,
            "ready": ready,
            "remarks": self.remarks,
            "broken": self.broken,
            "handled": len({line["correlation_id"] for line in journal}),
            "replies_audited": len(ids & replies.keys()),
        }

    def late(self, call):
        late = call["beyond"] - call["lag"]
        if late <= 0:
            return late
        ended = call["sent"] + call["seconds"]
        due = ended - call["beyond"]
        began = due - self.options.deadline
        windows = [(began - STARVED_ROOM, began + STARVED_ROOM), (due - STARVED_ROOM, ended)]
        gateways = [child for child in self.children if isinstance(child, Gateway)]
        return late - sum(max(gateway.starved.seconds(*window) for gateway in gateways) for window in windows)

    def is_lost(self, call, requests, replies):
        if call["code"] == "OK":
            return False
        ids = {call["cid"]} if call["cid"] else set()
        if not ids and call["kind"] == "pay" and call["attempts"] == 1:
            ids = requests.ids_of_key.get((TOPIC_OF["pay"], call["key"]), set())
        # Of a call that was repeated, the last attempt counts.
        began = call["sent"] if call["attempts"] == 1 else call["sent"] + call["seconds"] - self.options.deadline
        limit = began + self.options.deadline - ROOM_SECONDS
        return any(replies.get(identity, limit + 1) <= limit for identity in ids)

    @staticmethod
    def is_misreported(call, occurrences):
        if not call["cid"]:
            return False
        there = call["cid"] in occurrences
        return (call["outcome"] == "not-sent" and there) or (call["outcome"] == "sent" and not there)

    def judge_recovery(self):
        load = self.loads[0]
        last = [call for call in load.calls() if call["sent"] > load.ended - RECOVERED_SECONDS]
        answered = sum(call["code"] == "OK" for call in last)
        if not last or answered < RECOVERED_SHARE_MIN * len(last):
            self.broken.append(f"not recovered: {answered} of the last {len(last)} answered")

    def clean_up(self, keep):
        for load in self.loads:
            load.end()
        for audit in self.audits:
            audit.stop()
        for child in reversed(self.children):
            child.end()
        if keep:
            self.progress(f"{self.title}: kept {self.folder}", final=True)
            return
        for path in self.folder.iterdir():
            path.unlink()
        self.folder.rmdir()

    def requests(self):
        return read_requests(self.cluster.bootstrap, {topic: self.cluster.partitions(topic) for topic in TOPICS})


def worker_lines(worker):
    """A worker that was killed may have left half a line."""
    for line in worker.journal_path.read_text().splitlines():
        try:
            yield json.loads(line)
        except json.JSONDecodeError:
            continue
