"""What every worker is asked to do, and what has to come of it.

A case gets the row and returns what its cell says, in short and in full. It
raises a Failure where what it saw is not what has to be.
"""

import asyncio
import collections
import signal
import statistics
import time

import grpc
from google.rpc import error_details_pb2, status_pb2
from harness import Failure, check, wait_until

SERVICE = "/payments.v1.PaymentService/"
CALL_SECONDS = 20
# What a caller should see of an error, it should see by then, also where the
# worker is a cold JVM on a busy machine.
PROMPT_MS = 5_000
SHORT_DEADLINE_SECONDS = 1.0
SLOW_DEADLINE_SECONDS = 0.5
# How late the gateway may be in keeping a deadline.
DEADLINE_GRACE_SECONDS = 0.5
PAYLOAD_BYTES = 1024 * 1024
IN_FLIGHT, KEYS, CALLS_PER_KEY = 64, 16, 48
REBALANCE_KEYS, PAUSE_SECONDS = 24, 0.05
TWICE_SHARE_MAX = 0.1
CASE_SECONDS_MAX = 90

Ended = collections.namedtuple("Ended", "code message details reply ms metadata trailers")


class Caller:
    """A client of PaymentService on one HTTP/2 connection."""

    def __init__(self, row, address):
        self.row, self.messages = row, row.messages
        options = [("grpc.enable_retries", 0), ("grpc.use_local_subchannel_pool", 1)]
        self.channel = grpc.aio.insecure_channel(address, options=options)
        self.methods = {
            "Pay": self._method("Pay", self.messages.PayRequest, self.messages.PayReply),
            "Refund": self._method("Refund", self.messages.RefundRequest, self.messages.RefundReply),
        }

    def _method(self, name, request, reply):
        return self.channel.unary_unary(
            SERVICE + name, request_serializer=request.SerializeToString, response_deserializer=reply.FromString
        )

    async def __aenter__(self):
        await asyncio.wait_for(self.channel.channel_ready(), 10)
        return self

    async def __aexit__(self, *_):
        await self.channel.close()

    def start(self, order, amount=1250, currency="EUR", timeout=CALL_SECONDS, metadata=()):
        """The call is on its way when this returns."""
        request = self.messages.PayRequest(order_id=order, amount_minor=amount, currency=currency)
        return self.methods["Pay"](request, timeout=timeout, metadata=tuple(metadata))

    async def pay(self, order, *arguments, **named):
        return await ended(self.start(order, *arguments, **named))

    async def paid(self, order, amount=1250, **named):
        """A call that has to succeed."""
        got = await self.pay(order, amount, **named)
        check(got.code == "OK", f"{order} ended with {got.code}: {got.message}")
        check(got.reply.order_id == order, f"{order} was answered with {got.reply.order_id!r}")
        check(got.reply.payment_id == f"pay-{order}-{amount}", f"{order} was answered with {got.reply.payment_id!r}")
        return got


def both(text):
    return text, text


async def ended(call):
    started = time.monotonic()
    try:
        reply = await call
        code, message = "OK", ""
    except grpc.aio.AioRpcError as error:
        reply, code, message = None, error.code().name, error.details()
    ms = (time.monotonic() - started) * 1000
    trailers = {name: value for name, value in await call.trailing_metadata() or ()}
    metadata = {name: value for name, value in await call.initial_metadata() or ()}
    details = status_pb2.Status.FromString(trailers.get("grpc-status-details-bin", b""))
    return Ended(code, message, details, reply, ms, metadata, trailers)


async def check_logs(row, sees):
    words = lambda: f"the worker's log says {sees.logs!r}"  # noqa: E731
    await asyncio.to_thread(wait_until, lambda: sees.logs in row.log(), 5, words)


def check_sees(sees, got, deadline):
    """An error is the one that the row expects, and comes when it should."""
    check(got.code == sees.code, f"{got.code} ({got.message}) after {got.ms:.0f} ms; expected {sees.code}")
    check(sees.words in got.message, f"the message {got.message!r} lacks {sees.words!r}")
    if sees.code == "DEADLINE_EXCEEDED":
        early, late = deadline * 1000 - 50, (deadline + DEADLINE_GRACE_SECONDS) * 1000
        check(early <= got.ms <= late, f"{got.code} after {got.ms:.0f} ms; expected after {deadline * 1000:.0f}")
        return "no reply", f"no reply: {sees.code} after {got.ms:.0f} ms"
    check(got.ms < PROMPT_MS, f"{got.code} took {got.ms:.0f} ms")
    return f"{got.ms:.0f} ms", f"{got.code} after {got.ms:.0f} ms: {got.message}"


# ---- one call ----------------------------------------------------------------


async def success(row):
    async with row.caller() as caller:
        state = row.messages
        got = await caller.paid(row.order("plain"))
        check(got.reply.state == state.PAYMENT_STATE_APPROVED, f"the state is {got.reply.state}")
        check(got.trailers.get("antiphon-outcome") == "sent", f"the trailers are {got.trailers}")
        got = await caller.paid(row.order("declined-plain"))
        check(got.reply.state == state.PAYMENT_STATE_DECLINED, f"the state is {got.reply.state}")
        request = state.RefundRequest(order_id=row.order("back"), payment_id="pay-1", amount_minor=5, currency="EUR")
        refunded = await caller.methods["Refund"](request, timeout=CALL_SECONDS)
        expected = state.RefundReply(order_id=request.order_id, payment_id="pay-1", state=state.PAYMENT_STATE_REFUNDED)
        check(refunded == expected, f"the refund is {refunded}")
        times = [(await caller.paid(row.order(f"quick-{number}"))).ms for number in range(20)]
        return both(f"{statistics.median(times):.0f} ms")


async def business(row):
    sees = row.worker.business
    async with row.caller() as caller:
        deadline = SHORT_DEADLINE_SECONDS if sees and sees.code == "DEADLINE_EXCEEDED" else CALL_SECONDS
        refused = await caller.pay(row.order("bad"), 0, timeout=deadline)
        if sees:
            await check_logs(row, sees)
            check(not refused.details.details, f"it has details after all: {refused.details}")
            return check_sees(sees, refused, deadline)
        text = check_sees(row.sees("INVALID_ARGUMENT", "amount_minor: must be above zero"), refused, deadline)
        check(refused.details.code == 3, f"the details are {refused.details}")
        request, info = error_details_pb2.BadRequest(), error_details_pb2.ErrorInfo()
        kinds = [detail.type_url for detail in refused.details.details]
        check(len(kinds) == 2 and refused.details.details[0].Unpack(request), f"the details are {kinds}")
        check(refused.details.details[1].Unpack(info), f"the details are {kinds}")
        check([v.field for v in request.field_violations] == ["amount_minor"], f"the detail says {request}")
        check(info.reason == "FIELD_INVALID", f"the detail says {info}")
        refused = await caller.pay(row.order("bad"), 5, "XXX")
        check_sees(row.sees("FAILED_PRECONDITION", "currency XXX is not supported"), refused, deadline)
        check(refused.details.details[0].Unpack(info), f"the details are {refused.details}")
        check(info.metadata["currency"] == "XXX", f"the detail says {info}")
        return text


async def exception(row):
    sees = row.worker.exception
    deadline = SHORT_DEADLINE_SECONDS if sees.code == "DEADLINE_EXCEEDED" else CALL_SECONDS
    async with row.caller() as caller:
        # A key and a message that are not ASCII.
        order = row.order("crash-주문")
        got = await caller.pay(order, timeout=deadline)
        text = check_sees(sees, got, deadline)
        await check_logs(row, sees)
        if sees.words and not sees.limit:
            check(order in got.message, f"the message {got.message!r} lacks {order!r}")
        # The worker lives on, and so does the partition.
        await caller.paid(order.replace("crash-", "after-"))
        return text


async def empty(row):
    async with row.caller() as caller:
        got = await caller.pay(row.order("empty-1"))
        check(got.code == "OK", f"{got.code}: {got.message}")
        check(got.reply == row.messages.PayReply(), f"the reply is {got.reply}")
        return both(f"{got.ms:.0f} ms")


async def null(row):
    sees = row.worker.null
    deadline = SHORT_DEADLINE_SECONDS if sees.code == "DEADLINE_EXCEEDED" else CALL_SECONDS
    async with row.caller() as caller:
        got = await caller.pay(row.order("null-1"), timeout=deadline)
        if sees.code == "OK":
            check(got.code == "OK" and got.reply == row.messages.PayReply(), f"{got.code}: {got.message} {got.reply}")
            return "empty", f"an empty message after {got.ms:.0f} ms"
        short, full = check_sees(sees, got, deadline)
        return short if sees.limit else got.code, full


async def large(row):
    """A request and a reply of 1 MiB, more than most clients take as they come."""
    text = ("가나다라" * (PAYLOAD_BYTES // 12 + 1)).encode()[: PAYLOAD_BYTES // 3 * 3].decode() + "x"
    check(len(text.encode()) >= PAYLOAD_BYTES, "the payload is too small")
    async with row.caller() as caller:
        got = await caller.pay(row.order("echo-large"), currency=text)
        check(got.code == "OK", f"{got.code}: {got.message}")
        check(got.reply.payment_id == text, f"{len(got.reply.payment_id)} characters came back, other than were sent")
        return both(f"{got.ms:.0f} ms")


async def metadata(row):
    note = "결제 ✓ café".encode() + b"\x00\xff"
    async with row.caller() as caller:
        sent = [("x-note-bin", note), ("x-tenant", "shop-7")]
        got = await caller.paid(row.order("noted"), metadata=sent)
        for name, value in sent:
            check(got.metadata.get(name) == value, f"{name} came back as {got.metadata.get(name)!r}")
        return "ok", "both ways, initial metadata"


async def repeat(row):
    """A key that comes again through another gateway, which knows nothing of the
    first: the worker is what remembers."""
    key = [("idempotency-key", row.order("key"))]
    order = row.order("once")
    replies = []
    for name in ("gateway", "gateway-2"):
        address = row.front.grpc if name == "gateway" else row.gateway(name).grpc
        async with Caller(row, address) as caller:
            replies.append((await caller.paid(order, metadata=key)).reply)
    check(replies[0] == replies[1], f"the repeat was answered with {replies[1]}")
    async with Caller(row, row.gateway("gateway-3").grpc) as caller:
        conflict = await caller.pay(order, 7, metadata=key)
    check_sees(row.sees("INVALID_ARGUMENT", "sent with another message before"), conflict, CALL_SECONDS)
    sent = [len(places) for (name, _), places in (await asyncio.to_thread(row.requests)).items() if name == order]
    check(sum(sent) == 3, f"{sum(sent)} of the three requests went to the worker")
    return "once", "executed once, answered twice, refused with another message"


# ---- many calls --------------------------------------------------------------


async def order(row):
    """64 calls in flight on one connection, four of each of 16 keys: each key's
    requests are in the log, and are handled, in the order in which they went."""
    at_once = IN_FLIGHT // KEYS
    started = time.monotonic()
    keys = [row.order(f"k{index}") for index in range(KEYS)]
    async with row.caller() as caller:

        async def of(key):
            waiting = collections.deque()
            for amount in range(1, CALLS_PER_KEY + 1):
                if len(waiting) == at_once:
                    await settle(key, *waiting.popleft())
                waiting.append((amount, caller.start(key, amount)))
            while waiting:
                await settle(key, *waiting.popleft())

        async def settle(key, amount, call):
            got = await ended(call)
            check(got.code == "OK", f"{key}/{amount} ended with {got.code}: {got.message}")
            check(got.reply.payment_id == f"pay-{key}-{amount}", f"{key}/{amount}: {got.reply.payment_id}")

        async with asyncio.TaskGroup() as callers:
            for key in keys:
                callers.create_task(of(key))
    seconds = time.monotonic() - started
    requests = await asyncio.to_thread(row.requests)
    wanted = {}
    for key in keys:
        found = [places for (name, _), places in sorted(requests.items()) if name == key]
        check(all(len(places) == 1 for places in found), f"a request of key {key} is in the log twice")
        found = [places[0] for places in found]
        check(len(found) == CALLS_PER_KEY, f"key {key} has {len(found)} requests in the log")
        check(len({partition for partition, _ in found}) == 1, f"key {key} is in more than one partition")
        check(found == sorted(found), f"key {key} is in the log in another order than it was sent")
        wanted.update(dict.fromkeys(found, key))
    await asyncio.to_thread(wait_until, lambda: wanted.keys() <= set(row.handled()), 5, "every request is in the worker's log")
    handled = [place for place in row.handled() if place in wanted]
    check(len(handled) == len(set(handled)), "a request was handled twice")
    check_first_times_in_order(row, row.process, handled, wanted)
    rate = f"{len(wanted) / seconds:.0f}/s"
    return rate, f"{len(wanted)} calls in order, {rate}"


async def rebalance(row):
    """A second process joins under load, then the first one leaves: no call is
    lost, and no key's request overtakes another."""
    calls, stop = [], asyncio.Event()
    keys = [row.order(f"r{index}") for index in range(REBALANCE_KEYS)]
    async with row.caller() as caller:

        async def load(key):
            amount = 0
            while not stop.is_set():
                amount += 1
                calls.append(await caller.paid(key, amount))
                await asyncio.sleep(PAUSE_SECONDS)

        async def move():
            await asyncio.sleep(0.5)
            first = row.process
            second = row.start_second()
            await asyncio.to_thread(row.wait_members, 2)
            await asyncio.sleep(1)
            row.process = second
            first.signal(signal.SIGTERM)
            await asyncio.to_thread(row.check_exit, first)
            await asyncio.to_thread(row.wait_members, 1)
            await asyncio.sleep(1)
            stop.set()
            return first, second

        async with asyncio.TaskGroup() as tasks:
            for key in keys:
                tasks.create_task(load(key))
            moved = tasks.create_task(move())
        first, second = moved.result()
    requests = await asyncio.to_thread(row.requests)
    places = {place: name for (name, _), found in requests.items() if name in keys for place in found}
    check(len(places) == len(calls), f"{len(calls)} calls, but {len(places)} requests in the log")
    logs = lambda: set(row.handled(first)) | set(row.handled(second))  # noqa: E731
    await asyncio.to_thread(wait_until, lambda: places.keys() <= logs(), 5, "every request is in the workers' logs")
    by_process = [[place for place in row.handled(process) if place in places] for process in (first, second)]
    for process, handled in zip((first, second), by_process, strict=True):
        check(handled, f"{process.name} had nothing to do")
        check_first_times_in_order(row, process, handled, places)
    twice = sum(map(len, by_process)) - len(set().union(*by_process))
    check(twice <= TWICE_SHARE_MAX * len(calls), f"{twice} of {len(calls)} requests were handled twice")
    longest = max(got.ms for got in calls) / 1000
    return f"{twice} twice", f"{len(calls)} calls answered, {twice} handled twice, the longest took {longest:.1f} s"


def check_first_times_in_order(row, process, handled, keys):
    """Of each partition, or of each key where the worker keeps the order of keys
    only."""
    seen = collections.defaultdict(lambda: -1)
    known = set()
    for partition, offset in handled:
        place = partition, offset
        lane = partition if row.worker.order == "partition" else keys[place]
        if place not in known:
            check(offset > seen[lane], f"{process.name}: {partition}/{offset} came after {seen[lane]}")
            seen[lane] = offset
        known.add(place)


async def deadline(row):
    """A handler that takes longer than its caller waits; then a request whose
    time is over before the worker sees it."""
    async with row.caller() as caller:
        slow = row.order("slow-1")
        got = await caller.pay(slow, timeout=SLOW_DEADLINE_SECONDS)
        check_sees(row.sees("DEADLINE_EXCEEDED"), got, SLOW_DEADLINE_SECONDS)
        # The key is served again as soon as the handler has ended.
        got = await caller.pay(slow.replace("slow-", "next-"), timeout=CALL_SECONDS)
        check(got.code == "OK", f"the next call ended with {got.code}: {got.message}")

        row.process.signal(signal.SIGSTOP)
        try:
            order = row.order("late")
            late = await caller.pay(order, timeout=SLOW_DEADLINE_SECONDS)
        finally:
            row.process.signal(signal.SIGCONT)
        check_sees(row.sees("DEADLINE_EXCEEDED"), late, SLOW_DEADLINE_SECONDS)
        await caller.paid(row.order("awake"))
    ((place,),) = [places for (name, _), places in (await asyncio.to_thread(row.requests)).items() if name == order]
    await asyncio.to_thread(wait_until, lambda: place in row.skipped(), 10, "the late request is skipped")
    check(place not in row.handled(), "the late request was handled")
    return "kept", "kept; the late request was skipped"


FUNCTIONS = {
    "success": success,
    "business": business,
    "exception": exception,
    "empty": empty,
    "null": null,
    "1 MiB": large,
    "metadata": metadata,
    "repeat": repeat,
    "order": order,
    "rebalance": rebalance,
    "deadline": deadline,
}


def run_case(name, row, loop):
    """What the cell says. A TaskGroup's failures are reduced to the first."""
    try:
        return loop.run(asyncio.wait_for(FUNCTIONS[name](row), CASE_SECONDS_MAX))
    except BaseExceptionGroup as group:
        error = group
        while isinstance(error, BaseExceptionGroup):
            error = error.exceptions[0]
        raise error from None
    except TimeoutError:
        raise Failure(f"not done within {CASE_SECONDS_MAX} s\n{row.tails()}") from None
