"""The gateways that one writes first, and their bug.

Two instances, one reply topic, and one consumer group for both: each reads half
of the reply topic's partitions, and Kafka's key decides which of them a reply
goes to, not who waits for it. A reply at the wrong instance finds nobody; its
caller times out for a payment that was taken.

    shared_group.py --bootstrap HOST:PORT --run NAME --calls 300

Prints what became of the calls, as JSON.
"""

import argparse
import itertools
import json
import sys
import threading
import time
import uuid
from pathlib import Path

import grpc
from confluent_kafka import Consumer, Producer

HERE = Path(__file__).resolve().parent
REQUESTS, REPLIES = "payment_request", "payment_reply"
ASSIGN_SECONDS_MAX = 30


class TinyGateway:
    """One instance: a producer, a consumer, and the calls that wait."""

    def __init__(self, bootstrap, group):
        self.waiting, self.foreign = {}, 0
        self.producer = Producer({"bootstrap.servers": bootstrap, "acks": "all", "linger.ms": 0})
        self.consumer = Consumer({"bootstrap.servers": bootstrap, "group.id": group, "auto.offset.reset": "earliest"})
        self.partitions = []
        # The mistake is this line, with a group that both instances have.
        self.consumer.subscribe([REPLIES], on_assign=lambda _, got: setattr(self, "partitions", got))
        self.stopping = threading.Event()
        self.reading = threading.Thread(target=self.read, daemon=True)
        self.reading.start()

    def read(self):
        while not self.stopping.is_set():
            record = self.consumer.poll(0.05)
            self.producer.poll(0)
            if record is None or record.error() is not None:
                continue
            waiting = self.waiting.pop(dict(record.headers())["kafka_correlationId"], None)
            if waiting is None:
                self.foreign += 1  # Whose is it? Another instance's; it is lost.
            else:
                waiting.set()
        self.consumer.close()

    def pay(self, order, message, deadline):
        """Whether an answer came in time."""
        correlation, answered = str(uuid.uuid4()).encode(), threading.Event()
        self.waiting[correlation] = answered
        self.producer.produce(REQUESTS, message, order, headers=[
            ("kafka_correlationId", correlation), ("kafka_replyTopic", REPLIES.encode()),
            ("grpc-method", b"/shop.payments.v1.PaymentService/Pay"),
        ])  # fmt: skip
        return answered.wait(deadline)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bootstrap", required=True)
    parser.add_argument("--run", required=True, help="begins every order")
    parser.add_argument("--calls", type=int, required=True)
    parser.add_argument("--rate", type=float, default=50, help="calls a second (default: %(default)s)")
    parser.add_argument("--deadline", type=float, default=5, help="seconds (default: %(default)s)")
    options = parser.parse_args()
    sys.path += [str(HERE / "proto"), str(HERE.parents[1] / "proto")]
    messages = grpc.protos("shop/payments/v1/payments.proto")

    gateways = [TinyGateway(options.bootstrap, f"gateways-{options.run}") for _ in range(2)]
    until = time.monotonic() + ASSIGN_SECONDS_MAX
    while not all(0 < len(gateway.partitions) < 6 for gateway in gateways):
        if time.monotonic() > until:
            sys.exit(f"the gateways' partitions: {[len(gateway.partitions) for gateway in gateways]}")
        time.sleep(0.1)

    outcomes = {}

    def call(gateway, number):
        order = f"{options.run}-{number}"
        request = messages.PayRequest(order_id=order, amount_minor=1 + number, currency="EUR")
        outcomes[order] = gateway.pay(order, request.SerializeToString(), options.deadline)

    callers = []
    for number, gateway in zip(range(options.calls), itertools.cycle(gateways)):  # A balancer in turns.
        callers.append(threading.Thread(target=call, args=(gateway, number)))
        callers[-1].start()
        time.sleep(1 / options.rate)
    for caller in callers:
        caller.join()
    for gateway in gateways:
        gateway.stopping.set()
        gateway.reading.join()
    print(json.dumps({
        "answered": [order for order, in_time in outcomes.items() if in_time],
        "timed_out": [order for order, in_time in outcomes.items() if not in_time],
        "at_the_wrong_instance": sum(gateway.foreign for gateway in gateways),
    }))  # fmt: skip


if __name__ == "__main__":
    main()
