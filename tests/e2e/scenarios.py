"""What has to hold end to end. Run through run.py, which prepares the tools."""

import argparse
import asyncio
import collections
import contextlib
import http.server
import json
import re
import signal
import socket
import sys
import tempfile
import threading
import time
import traceback
from pathlib import Path

import confluent_kafka
import grpc
from google.rpc import error_details_pb2, status_pb2
from grpc_health.v1 import health_pb2, health_pb2_grpc
from harness import EXIT_SECONDS_MAX, Failure, Kafka, Setup, check, generate_messages, tail, wait_until

PAY = "/payments.v1.PaymentService/Pay"
CALL_SECONDS_MAX = 30
# No hidden second try, and one connection per channel.
CHANNEL_OPTIONS = [("grpc.enable_retries", 0), ("grpc.use_local_subchannel_pool", 1)]

# EX_UNAVAILABLE of sysexits: what antiphon ends with when Kafka is not to be had.
EXIT_UNAVAILABLE = 69
START_TIMEOUT_SECONDS = 5


class Payments:
    """A caller of PaymentService/Pay on one HTTP/2 connection."""

    def __init__(self, setup, address):
        self.messages = setup.payments
        self.channel = grpc.aio.insecure_channel(address, options=CHANNEL_OPTIONS)
        self._pay = self.channel.unary_unary(
            PAY,
            request_serializer=self.messages.PayRequest.SerializeToString,
            response_deserializer=self.messages.PayReply.FromString,
        )

    async def __aenter__(self):
        await asyncio.wait_for(self.channel.channel_ready(), 10)
        return self

    async def __aexit__(self, *_):
        await self.channel.close()

    def pay(self, order_id, amount, currency="EUR", timeout=CALL_SECONDS_MAX):
        """The call is on its way when this returns."""
        request = self.messages.PayRequest(order_id=order_id, amount_minor=amount, currency=currency)
        return self._pay(request, timeout=timeout)

    def check_own(self, reply, order_id, amount):
        """The reply belongs to this call and no other."""
        check(reply.order_id == order_id, f"{order_id}/{amount} was answered with order {reply.order_id}")
        payment_id = f"pay-{order_id}-{amount}"
        check(reply.payment_id == payment_id, f"{order_id}/{amount} was answered with {reply.payment_id}")


async def code_of(call):
    """The call's status; OK included."""
    try:
        await call
        return grpc.StatusCode.OK
    except grpc.aio.AioRpcError as error:
        return error.code()


# ---- replies within transactions, with headers that have no value ---------------


def scenario_transactional_worker(setup):
    """What such a worker leaves on the reply topic, no client can leave out:
    markers, records of aborted transactions, null headers. Every call gets its
    committed reply, and never an aborted one."""
    gateway = setup.gateway()
    worker = TransactionalWorker(setup)
    with worker:
        asyncio.run(call_one_after_the_other(setup, gateway, 50))
    check(worker.failure is None, f"the worker ended: {worker.failure}")
    poison = gateway.metric("antiphon_replies_total", label='kind="undecodable"', default=0)
    check(poison == 0, f"{poison:g} records were passed over as undecodable")


async def call_one_after_the_other(setup, gateway, calls):
    async with Payments(setup, gateway.grpc) as caller:
        for number in range(calls):
            order = f"{setup.run}-t-{number}"
            reply = await caller.pay(order, number + 1)
            check(reply.payment_id == f"committed-{order}", f"{order} was answered with {reply.payment_id}")


class TransactionalWorker(threading.Thread):
    """Replies in a transaction of its own, after one that it aborts."""

    def __init__(self, setup):
        super().__init__(daemon=True)
        self.messages = setup.payments
        self.failure = None
        self.ending = threading.Event()
        common = {"bootstrap.servers": setup.kafka.bootstrap}
        self.producer = confluent_kafka.Producer({**common, "transactional.id": f"worker-{setup.run}"})
        group = f"transactional-{setup.run}"
        setup.kafka.create_group(group)
        self.consumer = confluent_kafka.Consumer({**common, "group.id": group, "auto.offset.reset": "latest"})

    def __enter__(self):
        self.producer.init_transactions(30)
        self.consumer.subscribe(["payment_request"], on_assign=self._from_the_end)
        wait_until(self._assigned, 30, "the transactional worker has no partitions")
        self.start()
        return self

    def __exit__(self, *_):
        self.ending.set()
        self.join(30)
        self.consumer.close()

    @staticmethod
    def _from_the_end(consumer, partitions):
        """Of itself the consumer looks the end up some time after it has its
        partitions, and steps over what has come until then."""
        for partition in partitions:
            _, partition.offset = consumer.get_watermark_offsets(partition, timeout=10)
        consumer.assign(partitions)

    def _assigned(self):
        check(self.consumer.poll(0.1) is None, "a request before any was sent")
        return bool(self.consumer.assignment())

    def run(self):
        try:
            while not self.ending.is_set():
                record = self.consumer.poll(0.1)
                if record is not None and record.error() is None:
                    self._answer(record)
        except Exception as error:  # the scenario tells
            self.failure = error

    def _answer(self, record):
        headers = dict(record.headers())
        topic = headers["kafka_replyTopic"].decode()
        partition = int.from_bytes(headers["kafka_replyPartition"], "big")
        order = self.messages.PayRequest.FromString(record.value()).order_id
        for word in ("aborted", "committed"):
            reply = self.messages.PayReply(order_id=order, payment_id=f"{word}-{order}")
            self.producer.begin_transaction()
            self.producer.produce(
                topic,
                reply.SerializeToString(),
                partition=partition,
                headers=[("kafka_correlationId", headers["kafka_correlationId"]), ("x-nothing", None)],
            )
            self.producer.flush(10)
            if word == "aborted":
                self.producer.abort_transaction(10)
            else:
                self.producer.commit_transaction(10)


# ---- a: a first look with grpcurl, without a proto -----------------------------


def scenario_first_look(setup):
    setup.workers(1)
    gateway = setup.gateway()
    check(gateway.routes >= 4, f"the ready line counts {gateway.routes} routes, the samples have at least 4")

    code, listed = setup.grpcurl(gateway.grpc, "list")
    services = listed.split()
    for service in (
        "payments.v1.PaymentService",
        "delivery.v1.DeliveryRadiusService",
        "echo.v1.EchoService",
        "grpc.health.v1.Health",
    ):
        check(code == 0 and service in services, f"list lacks {service}:\n{listed}")

    code, described = setup.grpcurl(gateway.grpc, "describe", "payments.v1.PaymentService")
    check(code == 0 and "rpc Pay" in described and "rpc Refund" in described, f"describe:\n{described}")

    order = f"{setup.run}-1"
    code, paid = pay_with_grpcurl(setup, gateway, order, 1250, "EUR")
    check(code == 0, f"Pay ended with {code}:\n{paid}")
    reply = json.loads(paid)
    # The JSON name depends on whether the descriptors say it.
    paid_order = reply.get("orderId", reply.get("order_id"))
    check(paid_order == order and reply.get("state") == "PAYMENT_STATE_APPROVED", f"Pay returned {reply}")

    code, refused = pay_with_grpcurl(setup, gateway, order, 1250, "XXX")
    check(code == 64 + grpc.StatusCode.FAILED_PRECONDITION.value[0], f"currency XXX ended with {code}:\n{refused}")
    for words in ("FailedPrecondition", "currency XXX is not supported", "google.rpc.ErrorInfo"):
        check(words in refused, f"the business error lacks {words!r}:\n{refused}")

    code, health = setup.grpcurl(gateway.grpc, "grpc.health.v1.Health/Check")
    check(code == 0 and json.loads(health) == {"status": "SERVING"}, f"health:\n{health}")
    asyncio.run(error_details(setup, gateway))


def pay_with_grpcurl(setup, gateway, order, amount, currency):
    body = json.dumps({"order_id": order, "amount_minor": amount, "currency": currency})
    return setup.grpcurl("-d", body, gateway.grpc, PAY.lstrip("/"))


async def error_details(setup, gateway):
    """A client library gets the details as the worker packed them."""
    async with Payments(setup, gateway.grpc) as caller:
        try:
            await caller.pay(f"{setup.run}-2", 0)
            raise Failure("an amount of 0 was accepted")
        except grpc.aio.AioRpcError as error:
            check(error.code() == grpc.StatusCode.INVALID_ARGUMENT, f"an amount of 0 gave {error.code()}")
            trailers = dict(error.trailing_metadata())
            check("grpc-status-details-bin" in trailers, f"no details in the trailers: {trailers}")
            status = status_pb2.Status.FromString(trailers["grpc-status-details-bin"])
        request = error_details_pb2.BadRequest()
        check(status.details[0].Unpack(request), f"the first detail is {status.details[0].type_url}")
        check(request.field_violations[0].field == "amount_minor", f"the detail names {request}")

        code = await code_of(caller.pay(f"crash-{setup.run}", 1))
        check(code == grpc.StatusCode.INTERNAL, f"a crash gave {code}")
        reply = await caller.pay(f"declined-{setup.run}", 1)
        check(reply.state == setup.payments.PAYMENT_STATE_DECLINED, f"declined gave {reply}")
        slow = caller.pay(f"slow-{setup.run}", 1, timeout=0.5)
        started = time.monotonic()
        code = await code_of(slow)
        check(code == grpc.StatusCode.DEADLINE_EXCEEDED, f"a slow worker gave {code}")
        check(time.monotonic() - started < 1.5, "the deadline was not kept")


# ---- b: order per key, each call once, each reply to its caller ----------------


def scenario_order_one_at_a_time(setup):
    """Each key's caller sends its next call when the last is answered."""
    order_test(setup, calls_at_once=1)


def scenario_order_pipelined(setup):
    """Each key's caller has two calls under way on one HTTP/2 connection."""
    order_test(setup, calls_at_once=2)


def order_test(setup, calls_at_once):
    options = setup.options
    per_key = max(calls_at_once, options.calls // options.keys)
    workers = setup.workers(2)
    assignments = [worker.assigned() for worker in workers]
    gateway = setup.gateway()
    started = time.monotonic()
    asyncio.run(send_in_order(setup, gateway, per_key, calls_at_once))
    seconds = time.monotonic() - started
    total = per_key * options.keys
    print(f"  {total} calls in {seconds:.1f} s, {total / seconds:.0f} a second", flush=True)

    wait_until(
        lambda: gateway.metric("antiphon_calls_in_flight") == 0, 2, "the in-flight gauge is 0 after the last reply"
    )
    check([worker.assigned() for worker in workers] == assignments, "the group was rebalanced during the test")
    for worker in workers:
        worker.signal(signal.SIGTERM)
    for worker in workers:
        check(worker.exit_code(EXIT_SECONDS_MAX) == 0, f"{worker.name} did not end well\n{tail(worker.stderr)}")
    check_journals(setup, workers, per_key)


async def send_in_order(setup, gateway, per_key, calls_at_once):
    slots = asyncio.Semaphore(max(1, setup.options.in_flight // calls_at_once))

    async def caller_of(key):
        for first in range(1, per_key + 1, calls_at_once):
            numbers = range(first, min(first + calls_at_once, per_key + 1))
            async with slots:
                # The list starts every call, in this order, before the first wait.
                calls = [caller.pay(key, number) for number in numbers]
                replies = await asyncio.gather(*calls)
            for number, reply in zip(numbers, replies, strict=True):
                caller.check_own(reply, key, number)

    async with Payments(setup, gateway.grpc) as caller, asyncio.TaskGroup() as callers:
        for index in range(setup.options.keys):
            callers.create_task(caller_of(f"{setup.run}-k{index}"))


def check_journals(setup, workers, per_key):
    handled, busy = collections.defaultdict(list), 0
    for worker in workers:
        lines = [line for line in worker.journal() if line["key"].startswith(setup.run)]
        busy += bool(lines)
        for line in lines:
            check(line["key"] == line["order_id"], f"key {line['key']} carries order {line['order_id']}")
            handled[line["key"]].append(line)
    check(busy == len(workers), "one of the workers had nothing to do, so nothing was shared out")
    check(len(handled) == setup.options.keys, f"{len(handled)} of {setup.options.keys} keys were handled")
    ids = collections.Counter(line["correlation_id"] for lines in handled.values() for line in lines)
    check(max(ids.values()) == 1, f"correlation id {ids.most_common(1)} was used twice")
    wanted = list(range(1, per_key + 1))
    for key, lines in handled.items():
        check(len({line["partition"] for line in lines}) == 1, f"key {key} is in more than one partition")
        numbers = [line["amount_minor"] for line in lines]
        check(len(numbers) == per_key and set(numbers) == set(wanted), f"key {key}: not each call once: {numbers}")
        check(numbers == wanted, f"key {key}: handled as {numbers}")
        offsets = [line["offset"] for line in lines]
        check(offsets == sorted(offsets), f"key {key}: offsets {offsets}")


# ---- c: drain ------------------------------------------------------------------


def scenario_drain(setup):
    """SIGTERM under load: nothing that was accepted is lost."""
    in_flight = setup.options.in_flight
    # Calls take about half a second: in_flight * work_ms, by one worker.
    setup.workers(1, work_ms=500 / in_flight)
    gateway = setup.gateway()
    check(gateway.reply_topic in setup.kafka.topics(), f"the reply topic {gateway.reply_topic} is there")
    asyncio.run(drain_under_load(setup, gateway, in_flight))
    code = gateway.exit_code(EXIT_SECONDS_MAX)
    check(code == 0, f"the gateway ended with {code}\n{tail(gateway.stderr)}")
    wait_until(
        lambda: gateway.reply_topic not in setup.kafka.topics(), 5, f"the reply topic {gateway.reply_topic} is deleted"
    )


Ended = collections.namedtuple("Ended", "sent_at ended_at code")


async def drain_under_load(setup, gateway, in_flight):
    ended = []

    async def load(lane):
        for number in range(10_000):
            sent_at = time.monotonic()
            code = await code_of(caller.pay(f"{setup.run}-d{lane}-{number}", 1))
            ended.append(Ended(sent_at, time.monotonic(), code))
            if code != grpc.StatusCode.OK:
                return

    async with Payments(setup, gateway.grpc) as caller:
        # A channel of its own: the end of the load's connection must not hide the notice.
        async with grpc.aio.insecure_channel(gateway.grpc, options=CHANNEL_OPTIONS) as watcher:
            watch = health_pb2_grpc.HealthStub(watcher).Watch(health_pb2.HealthCheckRequest())
            first = await asyncio.wait_for(watch.read(), 5)
            check(first.status == health_pb2.HealthCheckResponse.SERVING, f"health before the signal: {first}")
            lanes = [asyncio.create_task(load(lane)) for lane in range(in_flight)]
            await asyncio.sleep(2)
            check(len(ended) > in_flight and not any(lane.done() for lane in lanes), "the load does not run")
            signal_at = time.monotonic()
            gateway.signal(signal.SIGTERM)
            notice = await asyncio.wait_for(watch.read(), 5)
            notice_at = time.monotonic()
            watch.cancel()
        check(
            notice is not grpc.aio.EOF and notice.status == health_pb2.HealthCheckResponse.NOT_SERVING,
            f"health after the signal: {notice}",
        )
        late = [await code_of(caller.pay(f"{setup.run}-late{i}", 1, timeout=5)) for i in range(5)]
        await asyncio.wait_for(asyncio.gather(*lanes), EXIT_SECONDS_MAX)
    check(all(code == grpc.StatusCode.UNAVAILABLE for code in late), f"new calls got {collections.Counter(late)}")
    check_drained(ended, signal_at, notice_at, in_flight)


def check_drained(ended, signal_at, notice_at, in_flight):
    # What was sent this long before the signal has been accepted for sure.
    accepted = [e for e in ended if e.sent_at < signal_at - 0.1 and e.ended_at > signal_at]
    check(len(accepted) >= in_flight // 2, f"only {len(accepted)} calls were in flight at the signal")
    lost = collections.Counter(e.code for e in accepted if e.code != grpc.StatusCode.OK)
    check(not lost, f"calls in flight at the signal ended with {dict(lost)}")
    check(notice_at < max(e.ended_at for e in accepted), "NOT_SERVING came after the last call in flight had ended")
    other = {e.code for e in ended} - {grpc.StatusCode.OK, grpc.StatusCode.UNAVAILABLE}
    check(not other, f"calls ended with {other}")
    taken_late = [e for e in ended if e.sent_at > notice_at + 0.1 and e.code == grpc.StatusCode.OK]
    check(not taken_late, f"{len(taken_late)} calls sent after the notice were still taken")
    notice_ms = (notice_at - signal_at) * 1000
    print(f"  {len(accepted)} calls in flight at the signal, all answered; notice after {notice_ms:.0f} ms", flush=True)


def scenario_second_signal(setup):
    """Who signals twice does not want to wait for a slow call."""
    setup.workers(1)
    gateway = setup.gateway()

    async def impatient():
        async with Payments(setup, gateway.grpc) as caller:
            slow = caller.pay(f"slow-{setup.run}", 1)
            await asyncio.sleep(0.5)
            gateway.signal(signal.SIGTERM)
            await asyncio.sleep(0.5)
            check(gateway.alive(), "the gateway did not wait for the slow call after the first signal")
            second_at = time.monotonic()
            gateway.signal(signal.SIGTERM)
            code = await asyncio.to_thread(gateway.exit_code, 5)
            check(time.monotonic() - second_at < 1, "the second signal took more than a second")
            check(code != 0, "the gateway ended with 0 although a call was cut off")
            check(await code_of(slow) != grpc.StatusCode.OK, "the slow call was answered")

    asyncio.run(impatient())


# ---- d: a broker that is none ----------------------------------------------------


def scenario_broker_refuses(setup):
    with socket.create_server(("127.0.0.1", 0)) as closing:
        address = f"127.0.0.1:{closing.getsockname()[1]}"
    bad_broker(setup, address, r"refused")


def scenario_broker_black_hole(setup):
    """Connections are taken by the kernel, and nobody ever answers."""
    with socket.create_server(("127.0.0.1", 0)) as silent:
        bad_broker(setup, f"127.0.0.1:{silent.getsockname()[1]}", r"time|answer")


def scenario_broker_speaks_http(setup):
    class Quiet(http.server.BaseHTTPRequestHandler):
        def log_message(self, *_):
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Quiet) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        try:
            bad_broker(setup, f"127.0.0.1:{server.server_port}", r"kafka broker|not kafka|speak|closed|http")
        finally:
            server.shutdown()


def bad_broker(setup, address, mistake):
    gateway = setup.gateway(bootstrap=address, ready=False, start_timeout=f"{START_TIMEOUT_SECONDS}s")
    code = gateway.exit_code(START_TIMEOUT_SECONDS + 3)
    seconds = time.monotonic() - gateway.started_at
    said = gateway.stderr.read_text()
    print(
        f"  ended with {code} after {seconds:.1f} s: {said.strip().splitlines()[-1] if said.strip() else 'nothing'}",
        flush=True,
    )
    check(code == EXIT_UNAVAILABLE, f"ended with {code}, not {EXIT_UNAVAILABLE}\n{tail(gateway.stderr)}")
    check(gateway.ready_line() is None, "it said it was ready")
    check(address in said, f"the error does not name {address}:\n{said}")
    check(re.search(mistake, said.replace(address, ""), re.IGNORECASE), f"the error does not name the mistake:\n{said}")


# ---- the run -------------------------------------------------------------------


SCENARIOS = {
    name.removeprefix("scenario_").replace("_", "-"): function
    for name, function in list(globals().items())
    if name.startswith("scenario_")
}


def parse_options():
    parser = argparse.ArgumentParser(description="End-to-end tests on real Apache Kafka.")
    parser.add_argument("--antiphon", type=Path, required=True, help="the gateway's binary")
    parser.add_argument("--bootstrap", help="Kafka's HOST:PORT[,...] (default: start one with scripts/kafka)")
    parser.add_argument("--calls", type=int, default=20_000, help="calls of an order test (default: %(default)s)")
    parser.add_argument("--keys", type=int, default=1_000, help="keys of an order test (default: %(default)s)")
    parser.add_argument("--in-flight", type=int, default=64, help="calls at once (default: %(default)s)")
    parser.add_argument("--only", action="append", choices=SCENARIOS, help="run only this one; may be repeated")
    options = parser.parse_args()
    options.antiphon = options.antiphon.resolve()
    if not options.antiphon.is_file():
        parser.error(f"{options.antiphon} is not there; build it with cargo build --release")
    return options


def run_one(name, function, options, kafka, payments):
    started = time.monotonic()
    try:
        with Setup(options, kafka, payments) as setup:
            function(setup)
    except Exception as error:
        while isinstance(error, ExceptionGroup):
            error = error.exceptions[0]
        words = str(error) if isinstance(error, Failure) else "".join(traceback.format_exception(error))
        print(f"FAIL {name} ({time.monotonic() - started:.1f} s): {words}", flush=True)
        return False
    print(f"PASS {name} ({time.monotonic() - started:.1f} s)", flush=True)
    return True


def main():
    options = parse_options()
    # Ended from outside, the processes and the broker are still cleaned up.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    with tempfile.TemporaryDirectory() as generated, contextlib.ExitStack() as cleaning:
        payments = generate_messages(generated)
        kafka = Kafka(options.bootstrap)
        cleaning.callback(kafka.stop)
        kafka.create_topics()
        chosen = {name: f for name, f in SCENARIOS.items() if not options.only or name in options.only}
        passed = [run_one(name, function, options, kafka, payments) for name, function in chosen.items()]
    print(f"{sum(passed)} passed, {len(passed) - sum(passed)} failed", flush=True)
    return 0 if all(passed) else 1


if __name__ == "__main__":
    sys.exit(main())
