"""The scenario itself. Run through run.py, which prepares the tools."""

import collections
import re
import sys
import time
from pathlib import Path

import stage
from books import BOOKED, REFUSED, Books
from harness import check, tail, wait_until
from row import Load

HOME = Path(__file__).resolve().parent
TRANSFERS, NOTIFICATIONS = "bank_transfer", "bank_notification"
PARTITIONS = 6
DEADLINE = 120.0  # as in the .proto
# Every so many transfers are asked for twice at once.
REPEAT_EVERY = 20
# "A handful": the shards, the main thread and what belongs to it.
THREADS_MAX = 8
REST_SECONDS = 3


def status(pid, name):
    return int(re.search(rf"^{name}:\s+(\d+)", Path(f"/proc/{pid}/status").read_text(), re.MULTILINE)[1])


def threads(pid):
    names = [path.read_text().strip() for path in Path(f"/proc/{pid}/task").glob("*/comm")]
    return collections.Counter(names)


class Bank:
    def __init__(self, play, calls, notices, notices_rate):
        self.play, self.calls, self.notices, self.notices_rate = play, calls, notices, notices_rate
        self.books_path = play.folder / "books.sqlite"
        self.closed = play.folder / "closed"

    def start(self):
        self.play.start_cluster(3, [TRANSFERS, NOTIFICATIONS])
        Books(self.books_path).create()
        self.closed.touch()
        self.worker = self.start_worker("worker.1", TRANSFERS, "--closed", self.closed, "--pause-ms", "20")
        self.start_worker("notifier", NOTIFICATIONS)
        for topic in (TRANSFERS, NOTIFICATIONS):
            self.play.wait_group(self.group(topic), 1, PARTITIONS)
        self.gateway = self.play.start_gateway("gateway")
        self.pid = self.gateway.child.pid

    def group(self, topic):
        return f"{topic}-{self.play.run}"

    def start_worker(self, name, topic, *more):
        return self.play.start(name, [
            sys.executable, HOME / "worker.py", "--bootstrap", self.play.cluster.bootstrap, "--topic", topic,
            "--group", self.group(topic), "--books", self.books_path, *more,
        ])  # fmt: skip

    def load(self, name, **arguments):
        arguments = {"run": f"{name}-{self.play.run}", "deadline": DEADLINE, **arguments}
        return self.play.add(Load(self.play.folder, name, [self.gateway.grpc], **arguments))

    def pile_up(self):
        """All transfers wait at once."""
        self.before = status(self.pid, "VmRSS"), threads(self.pid).total()
        whole = self.calls + self.calls // REPEAT_EVERY
        self.play.say(f"{self.calls} transfers at once, every {REPEAT_EVERY}th twice; the bank is closed")
        load = self.load(
            "transfers", kind="transfer", rate=4_000, calls=self.calls, repeat_every=REPEAT_EVERY, in_flight=whole,
        )  # fmt: skip
        self.transfers = load

        def waiting():
            check(load.child.poll() is None, f"the calls do not wait\n{tail(load.errors)}")
            return self.gateway.metric("antiphon_calls_in_flight", default=0) >= self.calls

        wait_until(waiting, 60, lambda: f"in flight: {self.gateway.metric('antiphon_calls_in_flight')}", pause=0.2)
        time.sleep(1)
        self.waiting = self.gateway.metric("antiphon_calls_in_flight")
        self.names, self.resident = threads(self.pid), status(self.pid, "VmRSS")
        began = stage.cpu_seconds(self.pid)
        time.sleep(REST_SECONDS)
        self.resting_cpu = (stage.cpu_seconds(self.pid) - began) / REST_SECONDS

    def notify(self):
        self.play.say(f"{self.notices} notifications meanwhile")
        load = self.load("notices", kind="notify", rate=self.notices_rate, calls=self.notices, in_flight=800)
        load.finish_by_itself(self.notices / self.notices_rate + 60)
        self.notified = load.calls()
        self.still_waiting = self.gateway.metric("antiphon_calls_in_flight")

    def open(self):
        self.play.say("the bank opens")
        books, began = Books(self.books_path), time.monotonic()
        self.closed.unlink()
        wait_until(lambda: books.count(BOOKED) > self.calls / 4, 60, "a quarter is booked", pause=0.01)
        self.play.say("kill -9 for the worker")
        stage.kill(self.worker)
        self.booked_by_the_first = books.count(BOOKED)
        self.worker = self.start_worker("worker.2", TRANSFERS, "--pause-ms", "20")
        self.transfers.finish_by_itself(DEADLINE + 30)
        self.seconds = time.monotonic() - began
        wait_until(lambda: len(books.notified()) >= len(self.notified), 30, "all notifications are handed over")

    def judge(self):
        books = Books(self.books_path)
        calls, states = self.transfers.calls(), books.states()
        codes = collections.Counter(call["code"] for call in calls)
        told = collections.defaultdict(set)
        for call in calls:
            told[call["key"]].add(call["code"])
        expected = {"OK": BOOKED, "FAILED_PRECONDITION": REFUSED}
        untrue = [name for name, said in told.items() if {expected.get(code) for code in said} != {states.get(name)}]
        wrong = sum(call["wrong"] for call in calls)
        joined = sum(call.get("repeat") is not None for call in calls)
        notice_codes = collections.Counter(call["code"] for call in self.notified)
        unheard = {call["key"] for call in self.notified if call["code"] == "OK"} - books.notified()
        waits = [(call["sent"] + call["seconds"] - call["due"])  for call in self.notified]
        each = (self.resident - self.before[0]) / self.waiting
        names = ", ".join(f"{n} {name}" for name, n in sorted(self.names.items()))
        stage.show([
            ("transfers waiting at once", f"{self.waiting:.0f}"),
            ("  threads of the gateway", f"{self.names.total()}: {names}"),
            ("  its memory", f"{self.resident / 1024:.1f} MiB, {self.before[0] / 1024:.1f} before: {each:.1f} KiB each"),
            ("  its CPU while they wait", f"{self.resting_cpu:.1%} of a core"),
            ("notifications meanwhile", f"{len(self.notified)} at {self.notices_rate} a second, {dict(notice_codes)}"),
            ("  until Kafka has them", stage.p50_p99(waits)),
            ("calls answered", f"{len(calls)} in {self.seconds:.1f} s, {dict(codes)}"),
            ("  of them repeats of another", joined),
            ("booked before the crash, in all", f"{self.booked_by_the_first}, {books.count(BOOKED)}"),
            ("told otherwise than booked", len(untrue)),
            ("wrong", wrong),
            ("the books", "; ".join(books.mistakes()) or "balance"),
        ])  # fmt: skip
        broken = list(books.mistakes())
        asked = self.calls + -(-self.calls // REPEAT_EVERY)
        for words, is_so in (
            (f"{self.waiting:.0f} calls waited", self.waiting < self.calls),
            (f"{self.still_waiting:.0f} were left after the notifications", self.still_waiting < self.calls),
            (f"{self.names.total()} threads", self.names.total() > THREADS_MAX),
            (f"{len(calls)} calls ended, {asked} were made", len(calls) != asked),
            (f"codes {dict(codes)}", set(codes) != set(expected)),
            (f"{len(states)} transfers in the books", len(states) != self.calls),
            (f"{len(untrue)} told otherwise than booked", untrue),
            (f"{wrong} wrong", wrong),
            (f"{joined} repeats were told", joined != asked - self.calls),
            (f"the crash was too late: {self.booked_by_the_first}", self.booked_by_the_first >= books.count(BOOKED)),
            (f"notifications: {dict(notice_codes)}", set(notice_codes) != {"OK"} or len(self.notified) != self.notices),
            (f"{len(unheard)} notifications lost", unheard),
        ):  # fmt: skip
            if is_so:
                broken.append(words)
        return broken


def scenario(play):
    bank = Bank(play, 2_000, 400, 100) if play.options.quick else Bank(play, 10_000, 3_000, 200)
    bank.start()
    bank.pile_up()
    bank.notify()
    bank.open()
    return bank.judge()


def main():
    return stage.play(scenario, stage.arguments(__doc__).parse_args(), HOME)


if __name__ == "__main__":
    sys.exit(main())
