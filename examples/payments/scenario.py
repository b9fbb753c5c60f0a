"""The scenario itself. Run through run.py, which prepares the tools; account.py
says what is right and what is not."""

import json
import subprocess
import sys
import time
import urllib.request
from dataclasses import dataclass
from pathlib import Path

import reconcile
import stage
from account import Account
from harness import Failure, check, tail
from row import Load

HOME = Path(__file__).resolve().parent
REQUESTS, REPLIES = "payment_request", "payment_reply"
PARTITIONS = 6
DEADLINE = 10.0  # as in the .proto
WARM_UP = 3.0
# How long callers go on when a gateway or a connection is gone.
RETRY_SECONDS = 20
RETRY_ON = "UNAVAILABLE,CANCELLED,UNKNOWN,INTERNAL"
# A third party on a good day, and on any other.
CALM = {"median_ms": 60, "sigma": 0.4, "max_ms": 1_000}
USUAL = {
    "median_ms": 500, "sigma": 0.35, "max_ms": 2_500, "declined": 0.03, "refused": 0.005, "dropped": 0.002,
    "hung": 0.003, "hang_ms": 11_000,
}  # fmt: skip
RECONCILE_SECONDS_MAX = 300
LATE_SECONDS = 6  # By then a hung answer has come, and stands beside its dead letter.


def run_python(command, seconds):
    """What the script prints."""
    words = [sys.executable, *map(str, command)]
    try:
        ran = subprocess.run(words, capture_output=True, text=True, timeout=seconds, check=False)
    except subprocess.TimeoutExpired:
        raise Failure(f"{command[0].name} takes more than {seconds:.0f} s") from None
    check(ran.returncode == 0, f"{command[0].name}: {ran.stderr}")
    return ran.stdout


@dataclass
class Size:
    few: int  # calls with the wrong-instance bug, and as many without
    rate: float
    calm: float  # seconds without a fault
    down: float  # seconds that a killed process stays dead
    after: float  # seconds after each restart


FULL = Size(few=1_000, rate=1_000, calm=60, down=3, after=15)
QUICK = Size(few=150, rate=150, calm=8, down=2, after=5)


class Payments:
    def __init__(self, play, size):
        self.play, self.size = play, size
        self.group = f"payments-{play.run}"
        self.gateways, self.balancer = [], None
        self.third_party = None

    # ---- processes ----

    def start(self):
        self.play.start_cluster(3, [REQUESTS, REPLIES])
        third_party = self.play.start("thirdparty", [stage.PROGRAMS / "thirdparty"])
        self.third_party = self.play.wait_line(third_party, "third party ready ")
        self.behave(CALM)
        self.workers = [self.start_worker(number) for number in (1, 2)]
        self.play.wait_group(self.group, 2, PARTITIONS)

    def start_worker(self, number, life=1):
        return self.play.start(
            f"worker-{number}.{life}", [stage.PROGRAMS / "worker"], KAFKA_BOOTSTRAP=self.play.cluster.bootstrap,
            KAFKA_GROUP=self.group, KAFKA_INSTANCE=f"worker-{number}", THIRD_PARTY=self.third_party,
        )  # fmt: skip

    def start_gateways(self):
        self.gateways = [self.play.start_gateway(f"gateway-{number}.1") for number in (1, 2)]
        port = stage.free_port()
        places = {
            f"GATEWAY_{number}{kind}_PORT": str(port)
            for number, gateway in enumerate(self.gateways, 1)
            for kind, port in zip(("", "_ADMIN"), gateway.ports)
        }
        self.play.start("haproxy", ["haproxy", "-db", "-f", HOME / "haproxy.cfg"], BALANCER_PORT=str(port), **places)
        self.balancer = f"127.0.0.1:{port}"

    def behave(self, how):
        reconcile.post(f"{self.third_party}/behaviour", how)

    def ledger(self):
        with urllib.request.urlopen(f"{self.third_party}/ledger", timeout=60) as answer:
            return json.load(answer)

    def load(self, name, **arguments):
        arguments = {
            "run": f"{name}-{self.play.run}", "kind": "checkout", "deadline": DEADLINE,
            "retry_seconds": RETRY_SECONDS, "retry_on": RETRY_ON, **arguments,
        }  # fmt: skip
        return self.play.add(Load(self.play.folder, name, [self.balancer], **arguments))

    # ---- one: the bug, on purpose ----

    def show_the_bug(self):
        self.play.say(f"{self.size.few} payments through two plain gateways with one consumer group")
        run = f"bug-{self.play.run}"
        command = [
            HOME / "shared_group.py", "--bootstrap", self.play.cluster.bootstrap,
            "--run", run, "--calls", self.size.few,
        ]  # fmt: skip
        seconds = 60 + self.size.few / 10
        outcome = json.loads(run_python(command, seconds))
        taken = {entry["order_id"] for entry in self.ledger() if entry["state"] == "approved"}
        return outcome, len(taken & set(outcome["timed_out"]))

    def show_it_gone(self):
        self.play.say(f"{self.size.few} payments through two gateways of Antiphon behind HAProxy")
        load = self.load("same", rate=50, calls=self.size.few)
        load.finish_by_itself(self.size.few / 50 + DEADLINE + 30)
        taken = {entry["order_id"] for entry in self.ledger() if entry["state"] == "approved"}
        calls = load.calls()
        wrong = sum(call["wrong"] for call in calls)
        unanswered = [call for call in calls if call["code"] != "OK"]
        return len(calls), sum(call["key"] in taken for call in unanswered), len(unanswered), wrong

    # ---- two: a usual day, with two crashes ----

    def drive(self, careless):
        size = self.size
        self.behave(USUAL)
        self.play.say(f"{size.rate:.0f} calls a second for {size.calm:.0f} s, every tenth a refund")
        before = [gateway.metric("antiphon_calls_total", default=0) for gateway in self.gateways]
        load = self.load("day", rate=size.rate, refund_every=10, careless=careless, seconds=3_600)
        self.hold(load, WARM_UP)
        earlier = self.play.cpu()
        self.hold(load, size.calm - WARM_UP)
        self.used = self.play.cpu() - earlier
        after = [gateway.metric("antiphon_calls_total") for gateway in self.gateways]
        shares = [later - earlier for earlier, later in zip(before, after)]
        calm = (load.began + WARM_UP, load.began + size.calm - DEADLINE / 4)

        self.play.say("kill -9 for gateway-1")
        killed = time.time()
        stage.kill(self.gateways[0])
        self.hold(load, size.down)
        self.gateways[0] = self.play.start_gateway("gateway-1.2", self.gateways[0].ports)
        self.play.say("gateway-1 is back")
        self.hold(load, size.after)
        self.play.say("kill -9 for worker-1")
        stage.kill(self.workers[0])
        self.hold(load, size.down)
        self.workers[0] = self.start_worker(1, life=2)
        self.play.say("worker-1 is back")
        self.hold(load, size.after)
        load.finish(DEADLINE + RETRY_SECONDS + 30)
        self.play.say(f"no more calls; late outcomes have {LATE_SECONDS} s")
        time.sleep(LATE_SECONDS)
        return Account(load.calls(), calm, killed), shares

    def processors(self):
        """By kind of process; `day` is the load generator."""
        used = dict(self.used)
        seconds, machine = used.pop("clock"), used.pop("machine")
        own = sum(used.values())
        words = ", ".join(f"{name} {cpu / seconds:.2f}" for name, cpu in sorted(used.items(), key=lambda one: -one[1]))
        return f"{own / seconds:.2f} ({words}); others {(machine - own) / seconds:.2f}"

    def hold(self, load, seconds):
        """The load goes on for so long."""
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            check(load.child.poll() is None, f"the load ended\n{tail(load.errors)}")
            time.sleep(min(0.2, max(0, until - time.monotonic())))

    def reconcile(self, account):
        self.play.say("reconciling what timed out")
        command = [
            HOME / "reconcile.py", "--antiphon", self.play.options.antiphon,
            "--bootstrap", self.play.cluster.bootstrap, "--third-party", self.third_party,
        ]  # fmt: skip
        found = [json.loads(line) for line in run_python(command, RECONCILE_SECONDS_MAX).splitlines()]
        # A gateway that is killed may take a dead letter with it. Its caller
        # knows that there was no answer, and asks the operator.
        orphans = account.without_letter({one["reference"] for one in found})
        found += [
            {"reference": name, "known": reconcile.ask(self.third_party, name, order), "by": "caller", "late": False}
            for name, order in orphans.items()
        ]
        return found


def scenario(options):
    size = QUICK if options.quick else FULL

    def run(play):
        payments = Payments(play, size)
        payments.start()
        bug, bug_taken = payments.show_the_bug()
        payments.start_gateways()
        same, same_taken, same_unanswered, same_wrong = payments.show_it_gone()
        account, shares = payments.drive(options.careless)
        found = payments.reconcile(account)
        account.settle(found, payments.ledger())

        stage.show([
            ("plain gateways, one group: calls", size.few),
            ("  replies at the wrong instance", bug["at_the_wrong_instance"]),
            ("  timed out, although taken", bug_taken),
            ("Antiphon: calls", same),
            ("  timed out, although taken", same_taken),
            ("", ""),
            ("calls a second", f"{size.rate:.0f}"),
            ("shares of the gateways", " : ".join(f"{share:.0f}" for share in shares)),
            *account.rows(),
            ("processors used, no fault", payments.processors()),
        ])  # fmt: skip
        broken = account.broken(latency=not options.quick)
        if bug_taken < size.few / 10:
            broken.append(f"the bug does not show: {bug_taken} of {size.few}")
        if same_unanswered or same_wrong or same != size.few:
            broken.append(f"of {same} quiet calls {same_unanswered} were not answered, {same_wrong} wrongly")
        if min(shares) < 0.4 * sum(shares):
            broken.append(f"the balancer does not balance: {shares}")
        return broken

    return run


def main():
    parser = stage.arguments(__doc__)
    parser.add_argument("--careless", action="store_true", help="calls without idempotency keys; the check must fail")
    parser.add_argument("--rate", type=float, help="calls a second (default: 1,000, quick 150)")
    options = parser.parse_args()
    if options.rate:
        FULL.rate = QUICK.rate = options.rate
    return stage.play(scenario(options), options, HOME)


if __name__ == "__main__":
    sys.exit(main())
