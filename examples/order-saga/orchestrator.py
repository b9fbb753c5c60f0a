"""Takes orders on and sees each to its end: confirmed, with stock set aside and
money taken, or cancelled, with neither.

    reserve ─► pay ─► confirm ─► CONFIRMED
       │        │        │
       └────────┴────────┴── refused, or no answer in time
                             │
                             ▼
          cancel ─► refund ─► release ─► CANCELLED

- Every step is written to the saga log before it is called, and what came of it
  after. After a crash the log says which steps may have been done.
- A refusal is certain: that step was not done. A time-out is not: the step may
  be done, or be done yet. So it is undone like one that was done, and what undoes
  it says whether there was something to undo.
- Each step and each undoing has an idempotency-key of its own, which never
  changes, so that calling it again, also after a crash, does it once.
- A step is called again only when nothing speaks against trying (a gateway was
  killed, a worker asks for it). What undoes is called until it has answered.
"""

import argparse
import asyncio
import json
import logging
import random
import signal
import sys
from pathlib import Path

import grpc
from crash import CrashPoint
from saga.v1 import orders_pb2, steps_pb2
from sagalog import CANCELLED, COMPENSATING, CONFIRMED, RUNNING, SagaLog, new_event, new_saga, new_state

DEADLINE_SECONDS = 4.0
ATTEMPTS_MAX = 4
PAUSE_SECONDS, PAUSE_SECONDS_MAX = 0.1, 1.0
TOGETHER_MAX, TAKEN_ON_MAX = 200, 1_000
WORTH_ANOTHER_TRY = {grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.ABORTED, grpc.StatusCode.RESOURCE_EXHAUSTED}
CERTAINLY_NOT_DONE = {grpc.StatusCode.FAILED_PRECONDITION, grpc.StatusCode.INVALID_ARGUMENT}
DONE, REFUSED, UNKNOWN = "done", "refused", "unknown"
log = logging.getLogger("orchestrator")


class Step:
    def __init__(self, name, method, request, undo, undo_method):
        self.name, self.method, self.request = name, method, request
        self.undo, self.undo_method = undo, undo_method


STEPS = [
    Step("reserve", "InventoryService/Reserve",
         lambda o: steps_pb2.ReserveRequest(order_id=o.order_id, sku=o.sku, quantity=o.quantity),
         "release", "InventoryService/Release"),
    Step("pay", "PaymentService/Pay",
         lambda o: steps_pb2.PayRequest(order_id=o.order_id, customer=o.customer, amount_minor=o.amount_minor, card=o.card),
         "refund", "PaymentService/Refund"),
    Step("confirm", "OrderService/Confirm",
         lambda o: steps_pb2.ConfirmRequest(order_id=o.order_id),
         "cancel", "OrderService/Cancel"),
]  # fmt: skip


class Gateways:
    """Both of them, in turn; whoever is gone is left out."""

    def __init__(self, addresses):
        policy = json.dumps({"loadBalancingConfig": [{"round_robin": {}}]})
        self.channel = grpc.aio.insecure_channel("ipv4:" + ",".join(addresses), options=[
            ("grpc.service_config", policy),
            # Otherwise all addresses together become the :authority, which is none.
            ("grpc.default_authority", "antiphon"),
            ("grpc.enable_retries", 0),
            ("grpc.initial_reconnect_backoff_ms", 100),
            ("grpc.min_reconnect_backoff_ms", 100),
            ("grpc.max_reconnect_backoff_ms", 500),
        ])  # fmt: skip

    def call(self, method, request, reply_type, key, seconds):
        method = self.channel.unary_unary(
            f"/saga.v1.{method}", request_serializer=type(request).SerializeToString, response_deserializer=reply_type.FromString
        )
        return method(request, timeout=seconds, metadata=[("idempotency-key", key)])


class Saga:
    """One order on its way. `events` has for each step what was logged of it."""

    def __init__(self, orchestrator, order, state=RUNNING, events=None):
        self.order, self.state, self.events = order, state, events or {}
        self.log, self.gateways, self.crash = orchestrator.log, orchestrator.gateways, orchestrator.crash
        self.resumed = events is not None

    def has(self, step, *what):
        return bool(self.events.get(step, set()) & set(what))

    async def note(self, step, what, detail="", *more):
        await self.log.write(new_event(self.order.order_id, step, what, detail), *more)
        self.events.setdefault(step, set()).add(what)

    async def run(self):
        if self.resumed:
            await self.note("saga", "resumed", self.state)
        if self.state == RUNNING:
            await self.forward()
        if self.state == COMPENSATING:
            await self.backward()

    async def forward(self):
        for step in STEPS:
            if self.has(step.name, DONE):
                continue
            if not self.has(step.name, "started"):
                await self.note(step.name, "started")
            self.crash.passed("started")
            result, words = await self.attempt(step)
            self.crash.passed("answered")
            if result == DONE:
                last = [new_state(self.order.order_id, CONFIRMED)] if step is STEPS[-1] else []
                await self.note(step.name, DONE, words, *last)
                continue
            reason = f"{step.name}: {words}"
            await self.note(step.name, result, words, new_state(self.order.order_id, COMPENSATING, reason))
            self.state = COMPENSATING
            return
        self.state = CONFIRMED

    async def attempt(self, step):
        """DONE, REFUSED or UNKNOWN, and what was said."""
        key = f"{self.order.order_id}/{step.name}"
        for attempt in range(ATTEMPTS_MAX):
            try:
                await self.gateways.call(step.method, step.request(self.order), steps_pb2.StepReply, key, DEADLINE_SECONDS)
                return DONE, ""
            except grpc.aio.AioRpcError as error:
                code, words = error.code(), error.details() or ""
                if code in CERTAINLY_NOT_DONE:
                    return REFUSED, words
                sent = dict(error.trailing_metadata() or ()).get("antiphon-outcome", "unknown")
                if code not in WORTH_ANOTHER_TRY and sent != "not-sent":
                    return UNKNOWN, f"{code.name}, request {sent}"
                last = f"{code.name}, request {sent}"
            await asyncio.sleep(pause(attempt))
        return UNKNOWN, last

    async def backward(self):
        """Undoes, last first, what was done or may have been; the order itself is
        always marked as cancelled."""
        for step in reversed(STEPS):
            may_be_done = self.has(step.name, "started") and not self.has(step.name, REFUSED)
            if self.has(step.undo, DONE) or not (may_be_done or step is STEPS[-1]):
                continue
            undone = await self.insist(step)
            self.crash.passed("undone")
            last = [new_state(self.order.order_id, CANCELLED)] if step is STEPS[0] else []
            await self.note(step.undo, DONE, "undone" if undone else "nothing to undo", *last)
        if not self.has(STEPS[0].undo, DONE):
            await self.log.write(new_state(self.order.order_id, CANCELLED))
        self.state = CANCELLED

    async def insist(self, step):
        key, attempt = f"{self.order.order_id}/{step.undo}", 0
        while True:
            try:
                request = steps_pb2.UndoRequest(order_id=self.order.order_id)
                reply = await self.gateways.call(step.undo_method, request, steps_pb2.UndoReply, key, DEADLINE_SECONDS)
                return reply.undone
            except grpc.aio.AioRpcError as error:
                log.warning("%s: %s %s; again", key, error.code().name, error.details())
                if error.code() in CERTAINLY_NOT_DONE or error.code() == grpc.StatusCode.UNIMPLEMENTED:
                    raise  # No undoing is ever refused: somebody has to look.
            await asyncio.sleep(pause(attempt))
            attempt += 1


def pause(attempt):
    return min(PAUSE_SECONDS * 2**attempt, PAUSE_SECONDS_MAX) * random.uniform(0.5, 1.0)


class Orchestrator:
    def __init__(self, arguments):
        self.log, self.crash = SagaLog(arguments.log), CrashPoint()
        self.gateways = Gateways(arguments.gateways.split(","))
        # Of each order what was placed, and None or the task that writes it down.
        self.known = {row[0]: (row, None) for row in self.log.known()}
        self.tasks = set()
        self.together = asyncio.Semaphore(TOGETHER_MAX)
        self.failed = asyncio.get_running_loop().create_future()

    def start(self, saga):
        async def run():
            async with self.together:
                await saga.run()

        task = asyncio.create_task(run())
        self.tasks.add(task)
        task.add_done_callback(self.ended)

    def ended(self, task):
        self.tasks.discard(task)
        if not task.cancelled() and task.exception() is not None and not self.failed.done():
            self.failed.set_exception(task.exception())

    def recover(self):
        unfinished = self.log.unfinished()
        for order, state, events in unfinished:
            self.start(Saga(self, as_order(order), state, events))
        log.info("takes up %d orders that a crash has left", len(unfinished))

    async def place(self, order, context):
        row = (order.order_id, order.customer, order.sku, order.quantity, order.amount_minor, order.card)
        if not order.order_id:
            await context.abort(grpc.StatusCode.INVALID_ARGUMENT, "order_id: must not be empty")
        if order.order_id in self.known:
            before, writing = self.known[order.order_id]
            if before != row:
                await context.abort(grpc.StatusCode.ALREADY_EXISTS, "this order_id was used for another order")
            if writing is not None:
                await asyncio.shield(writing)
            return orders_pb2.PlaceReply(order_id=order.order_id)
        if len(self.tasks) >= TAKEN_ON_MAX:
            await context.abort(grpc.StatusCode.RESOURCE_EXHAUSTED, f"{TAKEN_ON_MAX} orders are under way; try again")
        writing = asyncio.create_task(self.take_on(order, row))
        self.known[order.order_id] = row, writing
        await asyncio.shield(writing)  # A caller that goes away does not stop it.
        return orders_pb2.PlaceReply(order_id=order.order_id)

    async def take_on(self, order, row):
        await self.log.write(new_saga(row))
        self.known[order.order_id] = row, None
        self.start(Saga(self, order))


def as_order(row):
    order_id, customer, sku, quantity, amount, card = row
    return orders_pb2.PlaceRequest(order_id=order_id, customer=customer, sku=sku, quantity=quantity, amount_minor=amount, card=card)


async def serve(arguments):
    orchestrator = Orchestrator(arguments)
    server = grpc.aio.server()
    server.add_generic_rpc_handlers([grpc.method_handlers_generic_handler("saga.v1.SagaService", {
        "Place": grpc.unary_unary_rpc_method_handler(
            orchestrator.place, orders_pb2.PlaceRequest.FromString, orders_pb2.PlaceReply.SerializeToString
        ),
    })])  # fmt: skip
    if server.add_insecure_port(arguments.listen) == 0:
        sys.exit(f"{arguments.listen} can't be had")
    writing = asyncio.create_task(orchestrator.log.run())
    orchestrator.recover()
    await server.start()
    stopping = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stopping.set)
    print(f"orchestrator ready at {arguments.listen}", flush=True)
    waits = {asyncio.create_task(stopping.wait()), writing, orchestrator.failed}
    over, _ = await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
    for one in over & {writing, orchestrator.failed}:
        one.result()  # Raises what has ended it.
    await server.stop(1)


def main():
    parser = argparse.ArgumentParser(description="Sees orders to their end, through Antiphon.")
    parser.add_argument("--listen", default="127.0.0.1:50061")
    parser.add_argument("--gateways", default="127.0.0.1:50051", help="HOST:PORT[,...]")
    parser.add_argument("--log", type=Path, required=True, help="SQLite database of the saga log")
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s", stream=sys.stderr)
    asyncio.run(serve(arguments))


if __name__ == "__main__":
    main()
