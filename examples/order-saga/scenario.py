"""The scenario itself; run.py prepares and starts it."""

import argparse
import os
import random
import shutil
import signal
import socket
import sqlite3
import sys
import tempfile
import threading
import time
from importlib import resources
from pathlib import Path

import grpc
from audit import MUST_HAVE_HAPPENED, Audit
from chaos import Chaos, Supervised, points_for
from confluent_kafka import ConsumerGroupTopicPartitions, KafkaError, KafkaException, TopicPartition
from confluent_kafka.admin import NewTopic, OffsetSpec
from grpc_tools import protoc
from harness import READY_LINE, ROOT, Failure, Kafka, Process, check, tail, wait_until
from services import SERVICES

HERE = Path(__file__).resolve().parent
WORKERS, GATEWAYS, PARTITIONS = ["inventory", "payment", "orders"], 2, 6
CUSTOMERS, SKUS = 50, 12
PRICE_MINOR = 700
BAR = 40


def say(words=""):
    print(words, flush=True)


def free_ports(count):
    held = [socket.socket() for _ in range(count)]
    for one in held:
        one.bind(("127.0.0.1", 0))
    ports = [one.getsockname()[1] for one in held]
    for one in held:
        one.close()
    return ports


def generate(folder):
    """Python modules of the protos, for all processes."""
    well_known = resources.files("grpc_tools") / "_proto"
    protos = ["antiphon/v1/options.proto", "saga/v1/steps.proto", "saga/v1/orders.proto"]
    includes = [f"-I{HERE / 'proto'}", f"-I{ROOT / 'proto'}", f"-I{well_known}"]
    check(protoc.main(["protoc", *includes, f"--python_out={folder}", *protos]) == 0, "the protos do not compile")


def order(number, rng):
    """Most go well; some want what is scarce, can't pay, or pay slowly."""
    quantity, customer = rng.randint(1, 3), number % CUSTOMERS
    card = "slow" if number % 23 == 7 else "blocked" if number % 31 == 11 else "visa"
    return {
        "order_id": f"order-{number}", "customer": f"customer-{customer}", "sku": f"sku-{number % SKUS}",
        "quantity": quantity, "amount_minor": quantity * PRICE_MINOR, "card": card,
    }  # fmt: skip


class Placing(threading.Thread):
    """The customers: each order is placed until it has been taken on."""

    def __init__(self, address, orders, rate, pb):
        super().__init__(daemon=True)
        self.orders, self.pb, self.placed, self.repeats, self.failure = orders, pb, 0, 0, None
        self.over, self.rate = threading.Event(), rate
        self.channel = grpc.insecure_channel(address, options=[
            ("grpc.initial_reconnect_backoff_ms", 100), ("grpc.min_reconnect_backoff_ms", 100), ("grpc.max_reconnect_backoff_ms", 300),
        ])  # fmt: skip
        self.place = self.channel.unary_unary(
            "/saga.v1.SagaService/Place", request_serializer=pb.PlaceRequest.SerializeToString, response_deserializer=pb.PlaceReply.FromString
        )

    def run(self):
        try:
            began = time.monotonic()
            for number, one in enumerate(self.orders):
                self.over.wait(max(0.0, began + number / self.rate - time.monotonic()))
                self.insist(self.pb.PlaceRequest(**one))
                self.placed += 1
        except grpc.RpcError as error:
            self.failure = error

    def insist(self, request):
        while not self.over.is_set():
            try:
                self.place(request, timeout=3)
                return
            except grpc.RpcError as error:
                again = {grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED, grpc.StatusCode.RESOURCE_EXHAUSTED}
                if error.code() not in again:
                    raise
                self.repeats += 1
                time.sleep(0.05)


def is_ready(process):
    """By what it has said; it then knows what to do when it is told to end."""
    kind = process.name.partition("-")[0].partition(".")[0]
    if kind == "gateway":
        return READY_LINE.search(process.stdout.read_text()) is not None
    if kind == "orchestrator":
        return "orchestrator ready" in process.stdout.read_text()
    return "assigned 0" in process.stderr.read_text()


class Scenario:
    def __init__(self, options):
        self.options, self.rng = options, random.Random(options.seed)
        self.folder = Path(tempfile.mkdtemp(prefix="antiphon-saga-"))
        self.kafka, self.supervised, self.run = None, [], os.urandom(3).hex()
        generated = self.folder / "generated"
        generated.mkdir()
        generate(generated)
        sys.path.insert(0, str(generated))
        self.environment = {"PYTHONPATH": str(generated)}
        self.orders = [order(number, self.rng) for number in range(options.orders)]

    # ---- processes ----

    def topics(self):
        """Empty ones: earlier orders are none of ours."""
        admin, names = self.kafka.admin, [SERVICES[name].topic for name in WORKERS]
        old = [name for name in names if name in self.kafka.topics()]
        for future in admin.delete_topics(old).values() if old else ():
            future.result(20)
        wait_until(lambda: not set(names) & self.kafka.topics().keys(), 20, "the old topics are gone")

        def created():
            for future in admin.create_topics([NewTopic(name, PARTITIONS, -1) for name in names]).values():
                try:
                    future.result(20)
                except KafkaException as error:
                    if error.args[0].code() != KafkaError.TOPIC_ALREADY_EXISTS:
                        raise
            return set(names) <= self.kafka.topics().keys()

        wait_until(created, 20, "the topics are there", pause=0.2)

    def worker(self, service):
        kind = self.options.spoil if self.options.spoil and self.options.spoil.startswith(service) else service
        command = [
            sys.executable, HERE / "worker.py", "--service", kind, "--bootstrap", self.kafka.bootstrap,
            "--group", f"saga-{service}-{self.run}", "--database", self.folder / f"{service}.sqlite",
        ]  # fmt: skip
        return lambda name, crash: Process(self.folder, name, command, environment={**self.environment, **crash})

    def gateway(self, port, admin_port):
        command = [
            self.options.antiphon, "serve", "--config", HERE / "antiphon.toml", "--bootstrap-servers", self.kafka.bootstrap,
            "--listen", f"127.0.0.1:{port}", "--admin-listen", f"127.0.0.1:{admin_port}",
            "--proto-path", ROOT / "proto", "--proto-path", HERE / "proto",
        ]  # fmt: skip
        return lambda name, crash: Process(self.folder, name, command, environment=crash)

    def start(self):
        self.kafka = Kafka(self.options.bootstrap)
        self.topics()
        port, *ports = free_ports(1 + 2 * GATEWAYS)
        gateways = ports[:GATEWAYS]
        self.address = f"127.0.0.1:{port}"
        orchestrator = [
            sys.executable, HERE / "orchestrator.py", "--listen", self.address, "--log", self.folder / "saga.sqlite",
            "--gateways", ",".join(f"127.0.0.1:{one}" for one in gateways),
        ]  # fmt: skip
        starts = {name: self.worker(name) for name in WORKERS}
        for n in range(GATEWAYS):
            starts[f"gateway-{n + 1}"] = self.gateway(gateways[n], ports[GATEWAYS + n])
        starts["orchestrator"] = lambda name, crash: Process(self.folder, name, orchestrator, environment={**self.environment, **crash})
        for name, start in starts.items():
            one = Supervised(name, start, points_for(name, self.options.orders, self.options.rounds, self.rng), self.rng)
            self.supervised.append(one)
            one.begin()
        self.wait_for_all()
        self.furnish()

    def wait_for_all(self):
        def ready(one):
            check(one.process.alive(), f"{one.process.name} ended\n{tail(one.process.stderr)}")
            return is_ready(one.process)

        for one in self.supervised:
            wait_until(lambda one=one: ready(one), 60, lambda one=one: f"{one.name} is ready\n{tail(one.process.stderr)}")

    def furnish(self):
        """Stock and money. One thing is scarce, two customers are poor."""
        orders = self.options.orders
        with sqlite3.connect(self.folder / "inventory.sqlite", timeout=10) as database:
            plenty = [(f"sku-{n}", orders if n < SKUS - 1 else orders // 60) for n in range(SKUS)]
            database.executemany("INSERT INTO stock VALUES (?, ?, ?)", [(sku, count, count) for sku, count in plenty])
        with sqlite3.connect(self.folder / "payment.sqlite", timeout=10) as database:
            purses = [(f"customer-{n}", PRICE_MINOR * (3 * orders if n < CUSTOMERS - 2 else 4)) for n in range(CUSTOMERS)]
            database.executemany("INSERT INTO account VALUES (?, ?, ?)", [(name, money, money) for name, money in purses])

    # ---- the run ----

    def rage(self):
        """Until every order has come to its end, whatever is killed."""
        from saga.v1 import orders_pb2

        total, terminal, told, began = self.options.orders, sys.stdout.isatty(), 0.0, time.monotonic()
        chaos = Chaos(self.supervised, total, self.options.rounds, self.options.seed)
        placing = Placing(self.address, self.orders, self.options.rate, orders_pb2)
        placing.start()
        saga = sqlite3.connect(f"file:{self.folder / 'saga.sqlite'}?mode=ro", uri=True, timeout=10)
        try:
            while True:
                ended = dict(saga.execute("SELECT state, count(*) FROM saga GROUP BY state").fetchall())
                finished = ended.get("CONFIRMED", 0) + ended.get("CANCELLED", 0)
                seconds = time.monotonic() - began
                over = finished == total
                if over or terminal or seconds - told >= 5:
                    told = seconds
                    filled = BAR * finished // total
                    text = (
                        f"  [{'#' * filled}{'.' * (BAR - filled)}] {finished:>6,}/{total:,}  {seconds:4.0f} s  confirmed {ended.get('CONFIRMED', 0):,}"
                        f"  cancelled {ended.get('CANCELLED', 0):,}  killed {sum(len(one.died_at) for one in self.supervised)}"
                    )
                    print(f"\r{text}\033[K" if terminal else text, end="" if terminal else "\n", flush=True)
                check(placing.failure is None, f"an order was refused: {placing.failure}")
                if over and placing.placed == total:
                    break
                check(seconds < self.options.seconds_max, f"{total - finished} orders have not ended after {self.options.seconds_max} s")
                chaos.look(finished)
                time.sleep(0.02)
        finally:
            placing.over.set()
            saga.close()
        if terminal:
            say()
        chaos.check_that_it_raged()
        return chaos, seconds, placing.repeats

    def quiet(self):
        """Brings everybody back and lets every request be handled: one that is
        still in Kafka could change what the audit has seen."""
        for one in self.supervised:
            one.settle()

        def all_ready():
            for one in self.supervised:
                one.look()
            return all(one.process is not None and is_ready(one.process) for one in self.supervised)

        for name in WORKERS:
            wait_until(lambda name=name: self.lag(name) == 0, 90, f"{name} has handled everything", pause=0.3)
        # Who was told to end before it listens for that would not end in order.
        wait_until(all_ready, 60, "all processes are back")

    def lag(self, name):
        for one in self.supervised:
            one.look()
        topic, group = SERVICES[name].topic, f"saga-{name}-{self.run}"
        places = [TopicPartition(topic, partition) for partition in range(PARTITIONS)]
        ends = self.kafka.admin.list_offsets({place: OffsetSpec.latest() for place in places})
        future = self.kafka.admin.list_consumer_group_offsets([ConsumerGroupTopicPartitions(group, places)])[group]
        committed = {place.partition: max(place.offset, 0) for place in future.result(20).topic_partitions}
        return sum(found.result(20).offset - committed.get(place.partition, 0) for place, found in ends.items())

    def end(self):
        """In good order; the databases are complete then."""
        ending = [one.process for one in self.supervised]
        for process in reversed(ending):
            process.signal(signal.SIGTERM)
        for process in reversed(ending):
            code = process.exit_code(45)
            check(code == 0, f"{process.name} ended with {code}\n{tail(process.stderr)}")

    def close(self, went_well):
        for one in self.supervised:
            if one.process is not None and one.process.alive():
                one.process.signal(signal.SIGCONT)
                one.process.end()
        if self.kafka is not None:
            self.kafka.stop()
        if went_well:
            shutil.rmtree(self.folder)
        else:
            say(f"the processes' output and databases are in {self.folder}")


def options():
    parser = argparse.ArgumentParser(description="Orders through Antiphon, while what carries them out is killed.")
    parser.add_argument("--antiphon", type=Path, default=ROOT / "target/release/antiphon", help="the gateway's binary (default: target/release/antiphon)")
    parser.add_argument("--bootstrap", help="Kafka's HOST:PORT[,...]; default: a broker of our own")
    parser.add_argument("--quick", action="store_true", help="300 orders instead of 3,000")
    parser.add_argument("--orders", type=int)
    parser.add_argument("--rate", type=float, default=15, help="orders placed a second (default: %(default)s)")
    parser.add_argument("--seed", type=int, help="of orders and kills (default: a new one, which is printed)")
    parser.add_argument("--seconds-max", type=int, default=900, help="limit of the run (default: %(default)s)")
    parser.add_argument(
        "--spoil", choices=["payment-forgets-refunds", "payment-twice"], help="a service that is wrong, to see that the audit notices"
    )
    given = parser.parse_args()
    if given.orders is None:
        given.orders = 300 if given.quick else 3_000
    given.rounds = max(1, given.orders // 1_000)
    given.antiphon = given.antiphon.resolve()
    if not given.antiphon.is_file():
        parser.error(f"{given.antiphon} is not there: cargo build --release, or name another with --antiphon")
    if given.seed is None:
        given.seed = int.from_bytes(os.urandom(3), "big")
    return given


def play(scenario):
    load_before = os.getloadavg()[0]
    scenario.start()
    say(f"\n{scenario.options.orders:,} orders, {GATEWAYS} gateways, 3 services, seed {scenario.options.seed}")
    chaos, seconds, repeats = scenario.rage()
    scenario.quiet()
    scenario.end()
    audit = Audit(scenario.folder, [one["order_id"] for one in scenario.orders])
    say(f"\n  {'process':<14}{'killed':>7}{'by signal':>11}{'paused':>8}  at places of its own")
    for name, died, by_signal, places, paused in chaos.table():
        say(f"  {name:<14}{died:>7}{by_signal:>11}{paused:>8}  {places}")
    say()
    holds = True
    for words, found in audit.contradictions().items():
        say(f"  {'FAILS' if found else 'holds'}  {words}" + (f": {len(found)} contradict, such as {found[:3]}" if found else ""))
        holds = holds and not found
    figures = audit.figures()
    say()
    for words, count in figures.items():
        say(f"  {words:<40}{count:>8,}")
    say(f"  {'orders placed again by their customers':<40}{repeats:>8,}")
    say(f"  {'seconds':<40}{seconds:>8.1f}")
    say(f"  load of this machine (2 is two busy processors): {load_before:.1f} before, {os.getloadavg()[0]:.1f} after; {os.cpu_count()} processors")
    for words in MUST_HAVE_HAPPENED:
        if not figures[words]:
            say(f"  FAILS  \"{words}\" did not happen: this run has shown too little")
            holds = False
    # How many are is a matter of how fast the machine brings back what was killed.
    if figures["confirmed"] < scenario.options.orders // 10:
        say("  FAILS  fewer than a tenth of the orders were confirmed: this run has shown too little")
        holds = False
    return holds


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
    say("\norder-saga: passed" if went_well else f"\norder-saga: FAILED (seed {scenario.options.seed})")
    sys.exit(0 if went_well else 1)


if __name__ == "__main__":
    main()
