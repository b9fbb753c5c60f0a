"""The scenario itself; run.py prepares and starts it."""

import argparse
import csv
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import checks
import plot
from confluent_kafka import KafkaError, KafkaException
from confluent_kafka.admin import NewTopic
from harness import READY_LINE, ROOT, Failure, Kafka, Process, check, tail, wait_until
from postgres import Postgres

HERE = Path(__file__).resolve().parent
BUILT = Path(os.environ["RADIUS_BUILT"])
TOPIC, PARTITIONS = "shop_radius_request", 12
TRIGGERS = ["riders short (3 km)", "weather (2 km)", "outage (1 km)"]
GATEWAYS, WORKERS = 3, 2
# Shops that are closed, and numbers that no shop has.
CLOSED_EVERY, UNKNOWN_EVERY = 997, 1499
KILLED_AT, DEAD_SECONDS = 0.35, 3
BAR = 28


def say(words=""):
    print(words, flush=True)


class Gateway(Process):
    def __init__(self, folder, binary, bootstrap, number, config):
        command = [
            str(binary), "serve", "--config", str(config), "--bootstrap-servers", bootstrap,
            "--proto-path", str(ROOT / "proto"), "--proto-path", str(HERE / "proto"),
        ]  # fmt: skip
        super().__init__(folder, f"gateway-{number}", command)

    def address(self):
        def ready():
            check(self.alive(), f"{self.name} ended\n{tail(self.stderr)}")
            return READY_LINE.search(self.stdout.read_text())

        return wait_until(ready, 40, lambda: f"{self.name} is ready\n{tail(self.stderr)}")["grpc"]


class Worker(Process):
    def __init__(self, folder, name, bootstrap, database):
        command = [str(BUILT / "worker"), "-brokers", bootstrap, "-topic", TOPIC, "-database", database]
        super().__init__(folder, name, command)

    def has_partitions(self):
        check(self.alive(), f"{self.name} ended\n{tail(self.stderr)}")
        return f"{TOPIC}:[" in self.stderr.read_text()


class Bar:
    """One line that is written over on a terminal, a line every so often elsewhere."""

    def __init__(self, total):
        self.total, self.terminal = total, sys.stdout.isatty()
        self.told = self.done = self.at = 0

    def show(self, line):
        done, seconds = sum(line["done"]), line["seconds"]
        if not self.terminal and seconds - self.told < 5 and done < self.total:
            return
        rate = (done - self.done) / max(seconds - self.at, 0.001)
        self.told, self.done, self.at = seconds, done, seconds
        filled = BAR * done // self.total
        each = " ".join(f"{name.split(' (')[0]} {100 * len(TRIGGERS) * one // self.total}%"
                        for name, one in zip(TRIGGERS, line["done"], strict=True))  # fmt: skip
        text = f"  [{'#' * filled}{'.' * (BAR - filled)}] {done:>9,}/{self.total:,} {rate:>7,.0f}/s  {each}  failed {sum(line['failed']):,}"
        print(f"\r{text}\033[K" if self.terminal else text, end="" if self.terminal else "\n", flush=True)

    def end(self):
        if self.terminal:
            say()


class Scenario:
    def __init__(self, options):
        self.options = options
        self.folder = Path(tempfile.mkdtemp(prefix="antiphon-radius-"))
        self.kafka = self.postgres = None
        self.children, self.events = [], []

    def child(self, process):
        self.children.append(process)
        return process

    def close(self, went_well):
        for one in reversed(self.children):
            one.end()
        if self.postgres is not None:
            self.postgres.stop()
        if self.kafka is not None:
            self.kafka.stop()
        if went_well:
            shutil.rmtree(self.folder)
        else:
            say(f"the processes' output is in {self.folder}")

    # ---- the problem ----

    def naive(self):
        shops = self.options.naive_shops
        say(f"\n1. Straight against the database: three triggers, {shops:,} shops, large transactions")
        self.postgres.run(f"INSERT INTO naive_shop SELECT n, {checks.INITIAL_M} FROM generate_series(1, {shops}) AS n")
        before = self.postgres.trouble()
        ran = subprocess.run(
            [BUILT / "naive", "-database", self.postgres.url, "-shops", str(shops), "-size", str(shops // 10),
             "-seed", str(self.options.seed)],
            capture_output=True, text=True, check=False, timeout=400,
        )  # fmt: skip
        check(ran.returncode == 0, f"naive: {ran.stderr}")
        account = json.loads(ran.stdout)
        after = self.postgres.trouble()
        account["waits"] = after["lock waits"] - before["lock waits"]
        say(
            f"  {account['transactions']} transactions in {account['seconds']:.1f} s: {account['deadlocks']} deadlocks,"
            f" {account['lock_timeouts']} lock time-outs, {account['waits']} waits of more than 100 ms;"
            f" {account['given_up']} transactions given up, with {account['shops_lost']:,} changes lost"
        )
        say(f"  {account['wrong']:,} of {shops:,} shops are not at the radius of the trigger that was fired last")
        return account

    # ---- through Antiphon ----

    def fresh_topic(self):
        admin = self.kafka.admin
        if TOPIC in self.kafka.topics():
            for future in admin.delete_topics([TOPIC]).values():
                future.result(20)
            wait_until(lambda: TOPIC not in self.kafka.topics(), 20, "the old topic is gone")

        def created():
            try:
                for future in admin.create_topics([NewTopic(TOPIC, PARTITIONS, -1)]).values():
                    future.result(20)
            except KafkaException as error:
                if error.args[0].code() != KafkaError.TOPIC_ALREADY_EXISTS:
                    raise
            return TOPIC in self.kafka.topics()

        wait_until(created, 20, "the topic is there", pause=0.2)

    def fill(self):
        shops = self.options.shops
        self.postgres.run(
            f"""INSERT INTO shop SELECT n, {checks.INITIAL_M}, n % {CLOSED_EVERY} = 0
                FROM generate_series(1, {shops}) AS n WHERE n % {UNKNOWN_EVERY} <> 0""",
            f"INSERT INTO progress SELECT n, 0 FROM generate_series(0, {PARTITIONS - 1}) AS n",
            "ANALYZE shop",
        )

    def worker(self, name):
        return self.child(Worker(self.folder, name, self.kafka.bootstrap, self.postgres.url))

    def config(self):
        """antiphon.toml; for `--spoil unkeyed` one that takes the key away."""
        if self.options.spoil != "unkeyed":
            return HERE / "antiphon.toml"
        say("  (spoiled on purpose: the requests have no key)")
        config = self.folder / "unkeyed.toml"
        text = (HERE / "antiphon.toml").read_text().replace('"proto/', f'"{HERE}/proto/')
        config.write_text(text + '\n[method."radius.v1.RadiusService/SetRadius"]\nkey = ""\n')
        return config

    def triggers(self):
        """The run; the callers' progress over time, and their summary."""
        self.fresh_topic()
        self.fill()
        workers = [self.worker(f"worker-{n}") for n in range(1, WORKERS + 1)]
        config = self.config()
        gateways = [
            self.child(Gateway(self.folder, self.options.antiphon, self.kafka.bootstrap, n, config))
            for n in range(1, GATEWAYS + 1)
        ]
        addresses = [gateway.address() for gateway in gateways]
        wait_until(lambda: all(worker.has_partitions() for worker in workers), 40, "each worker holds partitions")
        shops = self.options.shops
        say(f"\n2. Through Antiphon: the same triggers, {shops:,} shops, {GATEWAYS} gateways, {WORKERS} workers, {PARTITIONS} partitions")
        callers = self.child(Process(self.folder, "callers", [
            str(BUILT / "callers"), "-gateways", ",".join(addresses), "-shops", str(shops),
            "-seed", str(self.options.seed), "-out", str(self.folder / "calls.csv"),
        ]))  # fmt: skip
        lines, summary = self.follow(callers, workers)
        for one in [*self.children]:
            if one is not callers:
                one.signal(signal.SIGTERM)
        for one in self.children:
            if one.name != "worker-1":
                code = one.exit_code(60)
                check(code == 0, f"{one.name} ended with {code}\n{tail(one.stderr)}")
        self.children = []
        return lines, summary

    def follow(self, callers, workers):
        total = self.options.shops * len(TRIGGERS)
        bar, lines, killed, revived = Bar(total), [], None, False
        until = time.monotonic() + self.options.seconds_max
        with callers.stdout.open() as progress:
            part = ""
            while True:
                check(time.monotonic() < until, f"the calls are not over after {self.options.seconds_max} s")
                part += progress.readline()
                if not part.endswith("\n"):
                    check(callers.alive() or callers.exit_code(1) == 0, f"callers\n{tail(callers.stderr)}")
                    for worker in workers[1:]:
                        check(worker.alive(), f"{worker.name} ended\n{tail(worker.stderr)}")
                    time.sleep(0.05)
                    continue
                line, part = json.loads(part), ""
                if "summary" in line:
                    bar.end()
                    return lines, line["summary"]
                lines.append(line)
                bar.show(line)
                if killed is None and sum(line["done"]) > KILLED_AT * total:
                    workers[0].signal(signal.SIGKILL)
                    killed = line["seconds"]
                    self.events.append((killed, "a worker is killed"))
                elif killed is not None and not revived and line["seconds"] > killed + DEAD_SECONDS:
                    self.worker("worker-3")
                    revived = True
                    self.events.append((line["seconds"], "a new one starts"))

    # ---- what came of it ----

    def verdict(self):
        say("\n3. What has to hold, asked of the topic, the callers' notes and the database")
        records = self.folder / "records.csv"
        ran = subprocess.run([BUILT / "topic", "-brokers", self.kafka.bootstrap, "-topic", TOPIC, "-out", records],
                             capture_output=True, text=True, check=False)  # fmt: skip
        check(ran.returncode == 0, f"topic: {ran.stderr}")
        if self.options.spoil not in (None, "unkeyed"):
            self.spoil()
        began = time.monotonic()
        checks.load(self.postgres, self.options.shops, self.folder / "calls.csv", records)

        def show(words, count, examples):
            say(f"  {'holds' if not count else 'FAILS'}  {words}" + (f": {count:,} contradict, such as {examples}" if count else ""))

        holds = checks.all_hold(self.postgres, show)
        say(f"  asked in {time.monotonic() - began:.0f} s")
        return holds

    def spoil(self):
        """Makes what happened wrong by a little, so that it shows whether the check notices."""
        say(f"  (spoiled on purpose: {self.options.spoil})")
        one = "(SELECT shop FROM change WHERE status = 0 ORDER BY applied LIMIT 1)"
        self.postgres.run({
            "radius": f"UPDATE shop SET radius_m = 4001 WHERE id = {one}",
            "lost": f"DELETE FROM change WHERE shop = {one} AND nth = 2",
            "swapped": f"UPDATE change SET nth = 3 - nth WHERE shop = {one} AND nth < 3",
        }[self.options.spoil])  # fmt: skip

    def failed_shops(self):
        """The callers' own list, for whoever has to see to them."""
        rows = self.postgres.run(
            f"""SELECT shop, CASE code WHEN {checks.NOT_FOUND} THEN 'NOT_FOUND' ELSE 'FAILED_PRECONDITION' END, count(*)
                FROM call WHERE code <> 0 GROUP BY shop, code ORDER BY shop"""
        )
        with (self.options.out / "failed-shops.csv").open("w", newline="") as file:
            csv.writer(file).writerows([["shop", "status", "calls"], *rows])
        return len(rows)

    def outage_last(self):
        """Of the shops whose triggers overlapped, how many end at each radius."""
        return {int(radius): int(count) for radius, count in self.postgres.run(
            """SELECT radius_m, count(*) FROM shop WHERE changes > 0 AND id IN (SELECT shop FROM call WHERE NOT chained)
               GROUP BY 1 ORDER BY 1 DESC""")}  # fmt: skip


def table(scenario, naive, lines, summary, trouble, holds):
    shops, postgres = scenario.options.shops, scenario.postgres
    seconds, calls = lines[-1]["seconds"], shops * len(TRIGGERS)
    chained = postgres.value("SELECT count(DISTINCT shop) FROM call WHERE chained")
    late = postgres.value(f"SELECT count(*) FROM shop WHERE NOT closed AND radius_m <> {checks.LAST_M} AND id IN (SELECT shop FROM call WHERE chained)")
    worker_logs = "".join((scenario.folder / f"worker-{n}.err").read_text() for n in range(1, WORKERS + 2))
    repeated = sum(map(int, re.findall(r" repeated=(\d+)", worker_logs)))
    rows = [
        ("shops", f"{naive['shops']:,}", f"{shops:,}"),
        ("changes", f"{naive['shops'] * len(TRIGGERS):,}", f"{calls:,}"),
        ("seconds", f"{naive['seconds']:.1f}", f"{seconds:.1f}"),
        ("changes a second", f"{naive['shops'] * len(TRIGGERS) / naive['seconds']:,.0f}", f"{calls / seconds:,.0f}"),
        ("deadlocks", f"{naive['deadlocks']:,}", f"{trouble['deadlocks']:,}"),
        ("lock time-outs", f"{naive['lock_timeouts']:,}", f"{trouble['lock time-outs']:,}"),
        ("waits for a row over 100 ms", f"{naive['waits']:,}", f"{trouble['lock waits']:,}"),
        ("changes given up", f"{naive['shops_lost']:,}", "0" if holds else "see above"),
        ("fired in order, wrong at the end", f"{naive['wrong']:,} of {naive['shops']:,}", f"{late:,} of {chained:,}"),
        ("calls with their own outcome", "none", f"{sum(summary['codes'].values()):,}"),
        ("calls that failed, with the reason", "-", f"{calls - summary['codes'].get('OK', 0):,}"),
        ("reply p50 / p99 / max", "-", f"{summary['p50_ms']:,.0f} / {summary['p99_ms']:,.0f} / {summary['max_ms']:,.0f} ms"),
        ("requests that came again after the kill", "-", f"{repeated:,}"),
    ]  # fmt: skip
    say(f"\n  {'':<40}{'database alone':>20}{'Antiphon':>26}")
    for name, before, after in rows:
        say(f"  {name:<40}{before:>20}{after:>26}")


def options():
    parser = argparse.ArgumentParser(description="Three triggers change the delivery radius of 300,000 shops at once.")
    parser.add_argument("--antiphon", type=Path, default=ROOT / "target/release/antiphon", help="the gateway's binary (default: target/release/antiphon)")
    parser.add_argument("--bootstrap", help="Kafka's HOST:PORT[,...]; default: a broker of our own")
    parser.add_argument("--quick", action="store_true", help="9,000 shops instead of 300,000")
    parser.add_argument("--shops", type=int)
    parser.add_argument("--seed", type=int, default=1, help="chooses the orders of the shops (default: %(default)s)")
    parser.add_argument("--out", type=Path, default=ROOT / "target" / "delivery-radius", help="plot and lists (default: target/delivery-radius)")
    parser.add_argument("--seconds-max", type=int, default=1800, help="limit of the calls (default: %(default)s)")
    parser.add_argument("--spoil", choices=["radius", "lost", "swapped", "unkeyed"], help="spoil the result, to see that the check notices")
    given = parser.parse_args()
    if given.shops is None:
        given.shops = 9_000 if given.quick else 300_000
    given.naive_shops = 10_000 if given.quick else 50_000
    given.antiphon = given.antiphon.resolve()
    if not given.antiphon.is_file():
        parser.error(f"{given.antiphon} is not there: cargo build --release, or name another with --antiphon")
    given.out.mkdir(parents=True, exist_ok=True)
    return given


def play(scenario):
    scenario.kafka = Kafka(scenario.options.bootstrap)
    scenario.postgres = Postgres(scenario.folder)
    scenario.postgres.run((HERE / "schema.sql").read_text())
    naive = scenario.naive()
    before = scenario.postgres.trouble()
    load_before = os.getloadavg()[0]
    lines, summary = scenario.triggers()
    trouble = {name: count - before[name] for name, count in scenario.postgres.trouble().items()}
    holds = scenario.verdict()
    table(scenario, naive, lines, summary, trouble, holds)
    out, failed = scenario.options.out, scenario.failed_shops()
    plot.draw(out / "calls.svg", lines, TRIGGERS, scenario.options.shops, scenario.events)
    ends = ", ".join(f"{count:,} at {radius / 1000:g} km" for radius, count in scenario.outage_last().items())
    say(f"\n  fired at once, the last in the log stands: {ends}")
    say(f"  {failed:,} shops failed and are listed in {out}/failed-shops.csv; the plot is {out}/calls.svg")
    say(f"  load of this machine (2 is two busy processors): {load_before:.1f} before, {os.getloadavg()[0]:.1f} after; {os.cpu_count()} processors")
    # A wait is no failure: a worker that was thought dead may still be at work.
    locks = trouble["deadlocks"] + trouble["lock time-outs"]
    if locks:
        say(f"  FAILS  no deadlock and no lock time-out: {trouble}")
    foreign = summary["foreign_replies"]
    if foreign:
        say(f"  FAILS  {foreign} replies were for another shop")
    shown = naive["deadlocks"] > 0 and naive["wrong"] > 0
    if not shown:
        say("  FAILS  the naive way did not show its deadlocks and wrong radii")
    return holds and not locks and not foreign and shown


def main():
    # Ends in good order, with its children, when it is told to end.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    scenario = Scenario(options())
    went_well = False
    try:
        went_well = play(scenario)
    except Failure as failure:
        say(f"\n  FAILS  {failure}")
    finally:
        scenario.close(went_well)
    say("\ndelivery-radius: passed" if went_well else "\ndelivery-radius: FAILED")
    sys.exit(0 if went_well else 1)


if __name__ == "__main__":
    main()
