"""A steady stream of calls from a process of its own: open loop, so a slow
answer never holds the next call up.

Writes one JSON line per call to --out when it is over, and a line of running
counts to stdout every second. Ends by itself after --seconds, or when its
stdin is closed, and then waits for the calls under way.
"""

import argparse
import asyncio
import collections
import importlib
import json
import sys
import time

import grpc

PAY = "/payments.v1.PaymentService/Pay"
SET_RADIUS = "/delivery.v1.DeliveryRadiusService/SetRadius"
ECHO = "/echo.v1.EchoService/Echo"
CHANNEL_OPTIONS = [
    ("grpc.enable_retries", 0),
    ("grpc.use_local_subchannel_pool", 1),
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.min_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 500),
]
# A gateway allows 1,000 streams a connection; calls must not queue up in the client.
CALLS_PER_CHANNEL = 800
# The caller's own patience beyond the deadline: a gateway that does not keep
# the deadline shows.
GUARD_SECONDS = 5
RETRY_PAUSE_SECONDS = 0.2
TICK_SECONDS = 0.01
SHOPS = 997


class Ticker:
    """How late this process's own event loop is, by the tenth of a second."""

    def __init__(self):
        self.lag_at = collections.defaultdict(float)

    async def run(self):
        while True:
            before = time.monotonic()
            await asyncio.sleep(TICK_SECONDS)
            now = time.monotonic()
            lag = now - before - TICK_SECONDS
            for tenth in range(int(before * 10), int(now * 10) + 1):
                self.lag_at[tenth] = max(self.lag_at[tenth], lag)

    def lag(self, moment):
        """The worst in the second before."""
        tenth = int(moment * 10)
        return max(self.lag_at[t] for t in range(tenth - 10, tenth + 2))


class Caller:
    """Channels to one or more gateways, and the calls made on them."""

    def __init__(self, options):
        self.options = options
        sys.path.insert(0, str(options.messages))
        self.payments = importlib.import_module("payments.v1.payments_pb2")
        self.delivery = importlib.import_module("delivery.v1.delivery_pb2")
        self.echo = importlib.import_module("echo.v1.echo_pb2")
        per_gateway = int(options.rate * (options.deadline + GUARD_SECONDS) / CALLS_PER_CHANNEL) + 1
        # Neighbouring calls go to different gateways.
        addresses = options.gateway * per_gateway
        self.channels = [grpc.aio.insecure_channel(address, options=CHANNEL_OPTIONS) for address in addresses]
        self.methods = [
            {
                "pay": self._method(channel, PAY, self.payments.PayRequest, self.payments.PayReply),
                "radius": self._method(channel, SET_RADIUS, self.delivery.SetRadiusRequest, self.delivery.SetRadiusReply),
                "echo": self._method(channel, ECHO, self.echo.EchoRequest, self.echo.EchoReply),
            }
            for channel in self.channels
        ]
        self.calls, self.counts = [], collections.Counter()

    @staticmethod
    def _method(channel, path, request, reply):
        return channel.unary_unary(
            path, request_serializer=request.SerializeToString, response_deserializer=reply.FromString
        )

    async def connect(self):
        await asyncio.gather(*(asyncio.wait_for(channel.channel_ready(), 20) for channel in self.channels))

    def request(self, kind, number):
        """The request, and whether a reply is its own."""
        run = self.options.run
        if kind == "pay":
            order = f"{run}-{number}"
            own = f"pay-{order}-{number + 1}"
            request = self.payments.PayRequest(order_id=order, amount_minor=number + 1, currency="EUR")
            return request, order, lambda reply: reply.order_id == order and reply.payment_id == own
        if kind == "radius":
            shop, radius = number % SHOPS, number + 1
            request = self.delivery.SetRadiusRequest(shop_id=shop, radius_m=radius)
            return request, str(shop), lambda reply: (reply.shop_id, reply.radius_m) == (shop, radius)
        payload = f"{run}-{number}".encode()
        return self.echo.EchoRequest(payload=payload), payload.decode(), lambda reply: reply.payload == payload

    async def call(self, number):
        options = self.options
        kind = "radius" if options.radius_every and number % options.radius_every == 0 else options.kind
        request, key, is_own = self.request(kind, number)
        line = {"n": number, "kind": kind, "key": key, "attempts": 0, "sent": time.time()}
        started = time.monotonic()
        metadata = (("idempotency-key", f"{options.run}-{number}"),) if options.retry_seconds else None
        # A retry goes to the next channel, so with several gateways to another one.
        while True:
            method = self.methods[(number + line["attempts"]) % len(self.methods)][kind]
            line["attempts"] += 1
            await self._attempt(method, request, metadata, is_own, line)
            again = line["code"] in ("UNAVAILABLE", "DEADLINE_EXCEEDED", "CANCELLED", "UNKNOWN")
            if not (options.retry_seconds and again and time.monotonic() - started < options.retry_seconds):
                break
            await asyncio.sleep(RETRY_PAUSE_SECONDS)
        line["seconds"] = time.monotonic() - started
        self.counts[line["code"]] += 1
        self.counts["wrong"] += line.get("wrong", False)
        self.calls.append(line)

    async def _attempt(self, method, request, metadata, is_own, line):
        began = time.monotonic()
        # The gateway holds the deadline by its own configuration (timeout_max),
        # so what is measured here is its clock and not this client's timer.
        call = method(request, timeout=self.options.deadline + GUARD_SECONDS, metadata=metadata)
        try:
            reply = await call
            line["code"], line["wrong"] = "OK", not is_own(reply)
        except grpc.aio.AioRpcError as error:
            line["code"], line["words"] = error.code().name, error.details()
        trailers = dict(await call.trailing_metadata() or ())
        line["ended_monotonic"] = time.monotonic()
        line["beyond"] = line["ended_monotonic"] - began - self.options.deadline
        line["cid"] = trailers.get("antiphon-correlation-id")
        line["outcome"] = trailers.get("antiphon-outcome")

    async def run(self):
        options = self.options
        await self.connect()
        ticker = Ticker()
        ticking = asyncio.create_task(ticker.run())
        ended = asyncio.Event()
        asyncio.get_running_loop().add_reader(sys.stdin, ended.set)
        telling = asyncio.create_task(self.tell())
        print("started", flush=True)
        began, number, under_way = time.monotonic(), 0, set()
        while not ended.is_set() and time.monotonic() - began < options.seconds:
            due = int((time.monotonic() - began) * options.rate)
            while number < due:
                task = asyncio.create_task(self.call(options.first + number))
                under_way.add(task)
                task.add_done_callback(under_way.discard)
                number += 1
            await asyncio.sleep(0.002)
        self.counts["sent"] = number
        if under_way:
            await asyncio.wait(set(under_way))
        telling.cancel()
        ticking.cancel()
        self.tell_once(number)
        with open(options.out, "w", encoding="utf-8") as out:
            for line in self.calls:
                line["lag"] = ticker.lag(line.pop("ended_monotonic"))
                out.write(json.dumps(line) + "\n")
        for channel in self.channels:
            await channel.close()

    async def tell(self):
        while True:
            await asyncio.sleep(1)
            self.tell_once()

    def tell_once(self, sent=None):
        print(json.dumps(self.counts | ({"sent": sent} if sent else {})), flush=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--gateway", action="append", required=True, help="HOST:PORT; may be repeated")
    parser.add_argument("--messages", required=True, help="folder of the generated modules")
    parser.add_argument("--out", required=True)
    parser.add_argument("--run", required=True, help="begins every key")
    parser.add_argument("--rate", type=float, default=500, help="calls a second")
    parser.add_argument("--seconds", type=float, default=600)
    parser.add_argument("--deadline", type=float, default=10, help="as the gateway is configured")
    parser.add_argument("--kind", default="pay", choices=["pay", "radius", "echo"])
    parser.add_argument("--radius-every", type=int, default=0, help="every so many calls are SetRadius")
    parser.add_argument("--first", type=int, default=0, help="number of the first call")
    parser.add_argument("--retry-seconds", type=float, default=0, help="repeat under an idempotency key for so long")
    options = parser.parse_args()

    async def run():  # The channels belong to the loop in which they are made.
        await Caller(options).run()

    asyncio.run(run())


if __name__ == "__main__":
    main()
