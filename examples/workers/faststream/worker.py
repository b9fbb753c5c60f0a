"""Answers payments.v1.PaymentService over Kafka with FastStream.

A handler's return value is the reply: FastStream sends it where the request's
`reply_to` says, under its `correlation_id`, waits for the acknowledgement and
then commits. Each of WORKERS consumers handles its partitions' requests one
after the other, so those with one key keep their order.
"""

import asyncio
import base64
import hashlib
import logging
import os
import time
import urllib.parse
from collections import OrderedDict

from faststream import AckPolicy, BaseMiddleware, ExceptionMiddleware, FastStream
from faststream.exceptions import AckMessage
from faststream.kafka import KafkaBroker, KafkaMessage, KafkaResponse
from google.rpc import code_pb2, status_pb2
from payment_service import Refused, call

BOOTSTRAP = os.environ.get("KAFKA_BOOTSTRAP", "127.0.0.1:9092").split(",")
GROUP = os.environ.get("KAFKA_GROUP", "payments")
TOPIC = os.environ.get("KAFKA_TOPIC", "payment_request")
# "false" leaves errors to FastStream: no reply, and the caller waits until its deadline.
ANSWER_ERRORS = os.environ.get("ANSWER_ERRORS") != "false"

WORKERS = 2
ANSWERS_KEPT_MAX = 10_000
REPLY_BYTES_MAX = 4 * 1024 * 1024
WORTH_ANOTHER_TRY = {code_pb2.RESOURCE_EXHAUSTED, code_pb2.ABORTED, code_pb2.UNAVAILABLE}

log = logging.getLogger("worker")
counts = {"handled": 0, "errors": 0, "skipped": 0}


class Requests(BaseMiddleware):
    """Passes over requests that nobody waits for any longer, and counts."""

    async def consume_scope(self, call_next, message):
        record = message.raw_message
        place = f"topic={record.topic} partition={record.partition} offset={record.offset}"
        deadline = message.headers.get("grpc-deadline", "")
        late_ms = int(time.time() * 1000) - int(deadline) if deadline.isdigit() else 0
        if late_ms > 0 or "antiphon-cancel" in message.headers:
            counts["skipped"] += 1
            log.info("skipped %s late_ms=%d", place, late_ms)
            raise AckMessage  # Committed, and no reply.
        response = await call_next(message)
        counts["handled"] += 1
        headers = response.headers if isinstance(response, KafkaResponse) else {}
        log.info("handled %s key=%r status=%s", place, record.key, headers.get("grpc-status", 0))
        return response


# Without these, what a handler raises is logged and the request committed.
# ANCHOR: errors
errors = ExceptionMiddleware()


@errors.add_handler(Exception, publish=True)
async def answer_error(error: Exception, message: KafkaMessage):
    """Whatever a handler raises, the caller hears of it at once."""
    counts["errors"] += 1
    if isinstance(error, Refused):
        status = error.status
    else:
        log.error("the handler failed", exc_info=error)
        status = status_pb2.Status(code=code_pb2.INTERNAL, message=f"{type(error).__name__}: {error}")
    headers = {"grpc-status": str(status.code), "grpc-message": urllib.parse.quote(status.message)}
    if status.details:
        headers["grpc-status-details-bin"] = base64.b64encode(status.SerializeToString()).decode()
    return KafkaResponse(b"", headers=headers, key=message.raw_message.key)
# ANCHOR_END: errors


broker = KafkaBroker(
    BOOTSTRAP,
    acks="all",
    enable_idempotence=True,
    # As large as the reply topic takes; aiokafka's default is 1 MiB with everything.
    max_request_size=REPLY_BYTES_MAX,
    # Requests and topics are the gateway's and the operators' business.
    allow_auto_create_topics=False,
    middlewares=[Requests, *([errors] if ANSWER_ERRORS else [])],
    log_level=logging.DEBUG,
)
app = FastStream(broker)


# ANCHOR: handler
@broker.subscriber(
    TOPIC,
    group_id=GROUP,
    auto_offset_reset="earliest",
    ack_policy=AckPolicy.ACK,
    max_workers=WORKERS,
    session_timeout_ms=10_000,
    heartbeat_interval_ms=1_000,
    fetch_max_wait_ms=500,
)
async def answer(payload: bytes, message: KafkaMessage):
    headers = message.headers
    value = await once_per_key(headers.get("idempotency-key"), headers.get("grpc-method", ""), payload)
    if value is None:
        return None  # FastStream makes an empty message of it.
    # What the caller's infrastructure sent along goes back; the gateway's
    # allow-list decides.
    along = {name: text for name, text in headers.items() if name.startswith("x-")}
    return KafkaResponse(value, headers=along, key=message.raw_message.key)
# ANCHOR_END: handler


answers = OrderedDict()


async def once_per_key(key, method, payload):
    """A request whose idempotency key was seen gets the answer that was kept. A
    worker that must not forget keeps them in its database, with what it did."""
    if key is None:
        return await call(method, payload)
    digest = hashlib.sha256(payload).digest()
    if (method, key) not in answers:
        try:
            answers[method, key] = digest, await call(method, payload), None
        except Refused as refused:
            if refused.status.code in WORTH_ANOTHER_TRY:
                raise
            answers[method, key] = digest, None, refused
        if len(answers) > ANSWERS_KEPT_MAX:
            answers.popitem(last=False)
    kept, value, refused = answers[method, key]
    if kept != digest:
        raise Refused(code_pb2.INVALID_ARGUMENT, "this idempotency-key was sent with another message before")
    if refused is not None:
        raise refused
    return value


@app.after_shutdown
async def report():
    log.info("stopped %s", " ".join(f"{name}={count}" for name, count in counts.items()))


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s")
    asyncio.run(app.run())
