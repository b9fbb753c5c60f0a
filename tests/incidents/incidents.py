"""The eight incidents, each from good order to good order. Run through run.py,
which prepares the tools."""

import argparse
import os
import re
import shutil
import signal
import sys
import tempfile
import time
import traceback
from pathlib import Path

import broker
import runbook
from cluster import Cluster
from common import Secrets, Table, write
from harness import Failure, Process, check, wait_until
from stage import METHOD, PARTITIONS, Stage

ALERT_SECONDS_MAX, RECOVERY_SECONDS_MAX = 60, 90
# What follows from causes and may fire beside them.
CONSEQUENCES = {
    "AntiphonCallsFail", "AntiphonDeadLetters", "AntiphonDeadLettersLost", "AntiphonNotReady",
    "AntiphonProduceErrors", "AntiphonReplyReaderFails",
}  # fmt: skip

# Calls that are in flight when it happens time out, and for some seconds no others end.
IN_FLIGHT = frozenset({"AntiphonSlowWorker", "AntiphonNoWorker"})
# Of the listener FEW: long enough that all is well in between.
SESSION_SECONDS = 25


class Incident:
    """One of them. `statuses` and `page` are patterns that have to be found,
    `verdict` one that the sentence about a call has to match."""

    name = alert = None
    also = frozenset()
    statuses, page, verdict = (), (), ""

    def __init__(self, options, folder, world):
        self.options, self.folder, self.world = options, folder, world
        self.stage = self.id = None

    # ---- what differs ----

    def plain(self):
        """A stage on the three brokers, with a topic of its own."""
        cluster = self.world.cluster()
        topic = f"pay-{self.name}"
        cluster.create(topic, PARTITIONS)
        wait_until(lambda: len(cluster.partitions(topic)) == PARTITIONS, 20, f"{topic} is there")
        servers = ", ".join(f'"{server}"' for server in cluster.bootstrap.split(","))
        kafka = f'[kafka]\nbootstrap_servers = [{servers}]\nconnect_timeout = "3s"\n'
        return Stage(self.options, self.folder, self.name, kafka, cluster.bootstrap, topic)

    def guarded(self, listener):
        """One on the broker that lets nobody in without proof."""
        guarded = self.world.broker()
        topic = f"pay-{self.name}"
        for future in guarded.admin.create_topics([new_topic(topic)]).values():
            future.result(30)
        guarded.allow("User:gateway", topic, "WRITE")
        guarded.allow("User:gateway", topic, "READ")
        folder = guarded.folder / self.name
        folder.mkdir()
        self.password_file = write(folder / "password", guarded.passwords["gateway"] + "\n")
        kafka = (
            f'[kafka]\nbootstrap_servers = ["{guarded.address(listener)}"]\nconnect_timeout = "3s"\n\n'
            f'[kafka.tls]\nca_file = "{guarded.ca_file}"\n\n[kafka.sasl]\nmechanism = "SCRAM-SHA-512"\n'
            f'username = "gateway"\npassword_file = "{self.password_file}"\n'
        )
        return Stage(self.options, self.folder, self.name, kafka, guarded.address("ADMIN"), topic)

    def prepare(self):
        self.stage = self.plain()
        self.stage.start()

    def strike(self):
        raise NotImplementedError

    def variables(self):
        """For the runbook's commands, besides what all have."""
        return {}

    def choose(self, failed):
        """The call that is asked about: the latest that has an id."""
        return [call for call in failed if call["id"]][-1]

    def repaired(self):
        """After all; what the world is to get back."""

    # ---- what is the same ----

    def run(self, table):
        began = time.monotonic()
        self.prepare()
        stage = self.stage
        stage.check_healthy()
        print(f"{self.name}: all is well ({time.monotonic() - began:.0f} s)", flush=True)
        self.struck = struck = time.monotonic()
        self.strike()
        firing = self._await_alert(struck)
        fired = time.monotonic() - struck
        self._check_statuses(struck)
        seen, sentence = self._look(struck)
        firing |= set(stage.alerts())
        steps_began = time.monotonic()
        steps = self._do(seen)
        self._await_recovery(steps_began)
        recovered = time.monotonic() - steps_began
        stray = firing - {self.alert} - self.also - CONSEQUENCES
        code, text = next((key for key, _ in self.found.most_common() if re.search(self.statuses[0], " ".join(key))))
        beside = ", ".join(sorted(name.removeprefix("Antiphon") for name in firing - {self.alert})) or "-"
        table.row(
            self.name, f"{code}: {text}".replace("|", "/"), f"{self.alert}, {fired:.0f} s", beside,
            sentence.replace("|", "/"), "; ".join(steps), f"{recovered:.0f} s",
            wrong=f"fires, too: {sorted(stray)}" if stray else None,
        )  # fmt: skip

    def _await_alert(self, struck):
        wait_until(
            lambda: self.alert in self.stage.alerts(), ALERT_SECONDS_MAX,
            lambda: f"{self.alert} fires; there are {self.stage.alerts('firing', 'pending').keys()}, "
            f"/ready says {self.stage.gateway.page('/ready')}, callers see {self.stage.statuses(struck)}", 0.2,
        )  # fmt: skip
        return set(self.stage.alerts())

    def _check_statuses(self, struck):
        self.found = self.stage.statuses(struck)

        def missing():
            self.found = self.stage.statuses(struck)
            texts = [" ".join(key) for key in self.found]
            return [wanted for wanted in self.statuses if not any(re.search(wanted, text) for text in texts)]

        wait_until(lambda: not missing(), 25, lambda: f"callers are told {missing()}; they are told {self.found}")

    def _look(self, struck):
        """The runbook's part See, and what `why` says."""
        stage = self.stage
        failed = wait_until(
            lambda: [call for call in stage.callers.since(struck) if call["code"] != "OK" and call["id"]], 20,
            "a call that failed has an id",
        )  # fmt: skip
        call = self.choose(failed)
        sentence = stage.why(call)
        check(re.search(self.verdict, sentence), f"why {call} says {sentence!r}, which lacks {self.verdict!r}")
        self.id = call["id"]
        seen = ""
        for script in runbook.commands(self.alert, "See"):
            seen += stage.run(script, **self._variables())[0]
        missing = [wanted for wanted in self.page if not re.search(wanted, seen)]
        check(not missing, f"the runbook's commands do not show {missing}:\n{seen}")
        return seen, sentence

    def _variables(self):
        return {"ID": self.id, "TOPIC": self.stage.topic, "METHOD": METHOD, **self.variables()}

    def _do(self, seen):
        """The runbook's part Do, as it stands there."""
        scripts = runbook.commands(self.alert, "Do")
        check(scripts, f"the runbook has no command that ends {self.alert}")
        member = re.search(r"(\S+) has the partition", seen)
        for script in scripts:
            said, code = self.stage.run(script, **self._variables(), MEMBER=member[1] if member else "")
            check(code == 0, f"{script} ends with {code}: {said}")
        steps = [line.strip() for script in scripts for line in script.splitlines()]
        return [f"`{step}`" for step in steps if step]

    def _await_recovery(self, since):
        stage = self.stage
        wait_until(
            lambda: stage.callers.are_well() and not stage.alerts("firing"), RECOVERY_SECONDS_MAX,
            lambda: f"all is well again; alerts {stage.alerts('firing').keys()}, /ready {stage.gateway.page('/ready')}, "
            f"calls {stage.statuses(time.monotonic() - 4)}", 0.2,
        )  # fmt: skip
        status, text = stage.gateway.page("/ready")
        check(status == 200, f"/ready says {status} {text}")


class NoWorker(Incident):
    name, alert = "no-worker", "AntiphonNoWorker"
    statuses = [r"DEADLINE_EXCEEDED no reply within the deadline"]
    verdict = r"no worker has answered it; group \S+ has no members"
    page = [r"has no members", r"has no active members"]

    def strike(self):
        for name in list(self.stage.workers):
            self.stage.stop_worker(name)
        self.stage.site.deeds["start-workers"] = self._start

    def _start(self):
        for number in range(3):
            self.stage.worker(f"worker-{number}-new")


class SlowWorker(Incident):
    """One of three workers takes longer than callers wait."""

    name, alert = "slow-worker", "AntiphonSlowWorker"
    statuses = [r"DEADLINE_EXCEEDED no reply within the deadline"]
    verdict = r"answered OK .* after the caller's deadline; the worker took [\d.]+ m?s"
    page = [r"after the caller's deadline", r"worker-\d"]

    def strike(self):
        self.stage.stop_worker("worker-2")
        self.slow = "worker-3-slow"
        self.stage.worker(self.slow, work_ms=2_200)
        self.stage.await_workers()
        self.stage.site.deeds["restart-worker"] = self._restart

    def _restart(self, name):
        check(name == self.slow, f"the runbook finds {name}, and {self.slow} is the slow one")
        self.stage.stop_worker(name)
        self.stage.worker("worker-4")

    def choose(self, failed):
        """Of the calls that this worker did not skip as too late."""
        seen = set()

        def late():
            calls = [call for call in self.stage.callers.since(self.struck) if call["code"] != "OK" and call["id"]]
            fresh = [call for call in calls if call["id"] not in seen and call["ended"] < time.monotonic() - 2]
            for call in fresh[-4:]:
                seen.add(call["id"])
                if re.search(self.verdict, self.stage.why(call)):
                    return call
            return None

        return wait_until(late, 60, "one of the calls was answered late", 0.5)


class StuckPartition(Incident):
    name, alert = "stuck-partition", "AntiphonPartitionStuck"
    # With few partitions a third of the calls is more than a twentieth.
    also = frozenset({"AntiphonSlowWorker"})
    statuses = [r"DEADLINE_EXCEEDED no reply within the deadline"]
    verdict = r"no worker has answered it; group \S+ has not come past it: .* records? to do .*; worker-\d has the partition"
    page = [r"antiphon_lane_calls_waiting\{", r"worker-\d has the partition"]

    def prepare(self):
        self.stage = self.plain()
        self.stage.timeout = 6.0
        self.stage.start(fault=f"hang={self.folder}/{self.name}/hang")

    def strike(self):
        (self.stage.folder / "hang").touch()
        self.stage.site.deeds["restart-worker"] = self._restart

    def _restart(self, name):
        self.stage.stop_worker(name, signal.SIGKILL)
        self.stage.worker(f"{name}-again")


class Garbage(Incident):
    """Workers answer with an error page."""

    name, alert = "garbage", "AntiphonCallsFail"
    statuses = [r"INTERNAL the worker's reply .* cannot be understood: its value is no payments"]
    verdict = r"the worker's reply .* cannot be understood: .*looks like HTML"
    page = [r"looks like HTML", r"undecodable-reply"]

    def prepare(self):
        self.stage = self.plain()
        self.flag = self.folder / self.name / "garbage"
        self.stage.start(fault=f"garbage={self.flag}")

    def strike(self):
        self.flag.touch()
        self.stage.site.deeds["roll-back-workers"] = self.flag.unlink


class Credentials(Incident):
    """The password is another one, and it shows when sessions end."""

    name, alert = "credentials", "AntiphonCredentialsRefused"
    also = IN_FLIGHT
    statuses = [r"UNAVAILABLE this instance is not ready: Kafka does not accept its credentials"]
    verdict = r'SASL authentication failed: the broker does not accept user "gateway" with SCRAM-SHA-512'
    page = [r'not ready: .*SASL authentication failed: the broker does not accept user "gateway"']

    def prepare(self):
        self.stage = self.guarded("FEW")
        self.stage.start(dead_letters=False)

    def strike(self):
        guarded = self.world.broker()
        self.password = guarded.passwords["gateway"] = guarded.secrets.password()
        guarded.set_scram_password("gateway", self.password)
        self.stage.site.deeds["new-kafka-password"] = lambda: self.password

    def variables(self):
        return {"PASSWORD_FILE": str(self.password_file)}


class ReplyTopic(Incident):
    """Somebody cleans up topics, and the gateway may not create any."""

    name, alert = "reply-topic", "AntiphonReplyTopicGone"
    also = IN_FLIGHT
    statuses = [r"UNAVAILABLE this instance is not ready: its reply topic is gone"]
    verdict = r"its reply topic is gone"
    page = [r"not ready: reply topic antiphon\.reply\S+ is gone, and could not be created again: .*ACL must allow .* Create"]

    def prepare(self):
        self.stage = self.guarded("SASL")
        # So that some calls are in flight whenever it happens.
        self.stage.start(dead_letters=False, work_ms=250)

    def strike(self):
        guarded = self.world.broker()
        guarded.forbid("User:gateway", "antiphon.reply", "CREATE", prefix=True)
        for future in guarded.admin.delete_topics([self.stage.gateway.reply_topic]).values():
            future.result(30)

    def choose(self, failed):
        """One that was sent."""
        return [call for call in failed if call["record"]][-1]

    def repaired(self):
        self.world.broker().allow("User:gateway", "antiphon.reply", "CREATE", prefix=True)


class BrokerDown(Incident):
    """One broker of three is killed, which nobody has to be woken for; then a
    second one, which leaves less than min.insync.replicas."""

    name, alert = "broker-down", "AntiphonKafkaUnreachable"
    also = IN_FLIGHT
    statuses = [r"UNAVAILABLE|DEADLINE_EXCEEDED"]
    verdict = r"not all was read|never sent|Kafka|no worker has answered"
    page = [r"(not ready|ready, but in trouble): ", r"DOWN"]

    def prepare(self):
        super().prepare()
        cluster = self.world.cluster()
        self.first = next(n for n in cluster.ports if n != cluster.controller())
        self.stage.check_healthy()
        began = time.monotonic()
        cluster.kafka("kill", str(self.first))
        time.sleep(1)
        wait_until(lambda: self.stage.callers.are_well(3), 40, "calls are answered with two brokers of three")
        print(f"  one broker of three is killed: all calls OK again after {time.monotonic() - began:.0f} s", flush=True)

    def strike(self):
        cluster = self.world.cluster()
        second = next(n for n in cluster.ports if n != self.first)
        cluster.kafka("kill", str(second))
        self.stage.site.deeds["start-brokers"] = lambda: cluster.kafka("revive")

    def repaired(self):
        self.world.cluster().repair()


class Flood(Incident):
    """A caller that has a loop."""

    name, alert = "flood", "AntiphonRefusesCalls"
    # Those that are let in wait for the others.
    also = IN_FLIGHT
    statuses = [r"RESOURCE_EXHAUSTED .*in_flight_max.* has reached its limit of N"]
    verdict = r"records? to do|after the caller's deadline|too late to reach it|has come past it"
    page = [r'antiphon_calls_total\{method="/payments.v1.PaymentService/Pay",code="RESOURCE_EXHAUSTED"\} [1-9]']

    def prepare(self):
        self.stage = self.plain()
        # The flood's dead letters would have to be purged afterwards.
        self.stage.start(work_ms=25, dead_letters=False, routes=f'[method."{METHOD}"]\nin_flight_max = 300\n')

    def strike(self):
        stage = self.stage
        command = [
            str(self.options.antiphon), "bench", stage.gateway.grpc, METHOD, "--in-flight", "600", "--timeout", "1500ms",
            "--data", '{"amount_minor":1,"currency":"EUR"}', "--key-field", "order_id", "--keys", "60",
            "--warm-up", "0s", "--duration", "300s",
        ]  # fmt: skip
        self.caller = Process(stage.folder, "flood", command)
        stage.children.append(self.caller)
        stage.site.deeds["stop-caller"] = self._stop

    def _stop(self):
        self.caller.signal(signal.SIGKILL)
        self.caller.exit_code(10)


ALL = [NoWorker, SlowWorker, StuckPartition, Garbage, Credentials, ReplyTopic, BrokerDown, Flood]


def new_topic(name):
    from confluent_kafka.admin import NewTopic

    return NewTopic(name, PARTITIONS, 1)


class World:
    """Clusters, started when first needed."""

    def __init__(self, folder):
        self.folder, self._cluster, self._broker = folder, None, None

    def cluster(self):
        if self._cluster is None:
            self._cluster = Cluster()
        return self._cluster

    def broker(self):
        if self._broker is None:
            broker.SESSION_SECONDS = SESSION_SECONDS
            self._broker = broker.Broker(self.folder, Secrets())
        return self._broker

    def end(self):
        if self._cluster is not None:
            self._cluster.stop()
        if self._broker is not None:
            self._broker.stop()


def main():
    names = [kind.name for kind in ALL]
    parser = argparse.ArgumentParser()
    parser.add_argument("--antiphon", type=Path, required=True)
    parser.add_argument("--quick", action="store_true", help="shorter windows of the alerts, for CI")
    parser.add_argument("--markdown", type=Path, help="write the table there, too")
    parser.add_argument("--keep", action="store_true", help="leave logs behind")
    parser.add_argument("names", nargs="*", choices=[[], *names], metavar="NAME", help=", ".join(names))
    options = parser.parse_args()
    options.antiphon = options.antiphon.resolve()
    print(runbook.check(), flush=True)
    folder = Path(tempfile.mkdtemp(prefix="antiphon-incidents-"))
    world, began, wrong = World(folder), time.monotonic(), []
    table = Table("Incidents", "incident", "callers see", "alert, after", "beside it", "`antiphon why`",
                  "ended by", "well again after")  # fmt: skip
    try:
        for kind in ALL:
            if options.names and kind.name not in options.names:
                continue
            incident = kind(options, folder, world)
            try:
                incident.run(table)
            except Failure as failure:
                wrong.append(f"{kind.name}: {failure}")
                print(f"  WRONG  {wrong[-1]}", flush=True)
            except Exception:
                wrong.append(f"{kind.name}: {traceback.format_exc()}")
                print(f"  WRONG  {wrong[-1]}", flush=True)
            finally:
                if incident.stage is not None:
                    incident.stage.end()
                incident.repaired()
    finally:
        world.end()
    load = ", ".join(f"{load:.1f}" for load in os.getloadavg())
    text = f"{table.markdown()}\n{os.cpu_count()} cores, load average {load}\n"
    print(f"\n{text}")
    if options.markdown:
        options.markdown.write_text(text)
    wrong += table.wrong
    if wrong:
        print("\n".join(["wrong:", *wrong, f"the processes' output is in {folder}"]))
        sys.exit(1)
    if options.keep:
        print(f"the processes' output is in {folder}")
    else:
        shutil.rmtree(folder)
    print(f"{len(table.rows)} incidents, all as they have to be, in {time.monotonic() - began:.0f} s")


if __name__ == "__main__":
    main()
