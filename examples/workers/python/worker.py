#!/usr/bin/env python3
"""A Kafka worker that answers Antiphon's sample services.

It knows nothing of gRPC but a few headers: it reads requests from topics as a
member of a consumer group and writes each reply to the topic that the request
names. The header names are those of Spring's request-reply ("spring" dialect).

One thread handles records in the order of their partitions. Offsets are
committed after the replies have been acknowledged, so a worker that dies
leaves its requests to the next one.

A request with an `idempotency-key` is executed once: when the same request
comes again, from a caller that did not get its answer, the answer that was
kept is sent again. They are kept in memory, which is enough for a sample: a
worker that must not forget writes them down together with what it did.
"""

import argparse
import base64
import hashlib
import importlib
import json
import logging
import signal
import sys
import tempfile
import time
import urllib.parse
import uuid
from collections import OrderedDict
from importlib import resources
from pathlib import Path

from confluent_kafka import Consumer, KafkaException, Producer
from google.protobuf.message import DecodeError
from google.rpc import error_details_pb2, status_pb2
from grpc_tools import protoc

PROTO_DIR = Path(__file__).resolve().parents[3] / "proto"
PROTOS = ["antiphon/v1/options.proto", "payments/v1/payments.proto", "delivery/v1/delivery.proto", "echo/v1/echo.proto"]
TOPICS = ["payment_request", "delivery_radius_request", "echo.v1.EchoService"]

BATCH_RECORDS_MAX = 500
POLL_SECONDS = 0.25
FLUSH_SECONDS_MAX = 40
REPLY_BYTES_MAX = 4 * 1024 * 1024
SLOW_SECONDS = 3
ANSWERS_KEPT_MAX = 100_000

# Numbers of google.rpc.Code, which are gRPC's.
INVALID_ARGUMENT, FAILED_PRECONDITION, UNIMPLEMENTED, INTERNAL = 3, 9, 12, 13
RESOURCE_EXHAUSTED, ABORTED, UNAVAILABLE = 8, 10, 14
# After these the same request may be tried again, so they are not kept.
WORTH_ANOTHER_TRY = {str(code) for code in (RESOURCE_EXHAUSTED, ABORTED, UNAVAILABLE)}

log = logging.getLogger("worker")


# ---- errors and their headers ------------------------------------------------


class Refused(Exception):
    """A business error: what the gRPC caller shall get."""

    def __init__(self, code, message, *details):
        super().__init__(message)
        self.code, self.message, self.details = code, message, details


def bad_field(field, description):
    """INVALID_ARGUMENT that names the field."""
    violation = error_details_pb2.BadRequest.FieldViolation(field=field, description=description)
    return Refused(
        INVALID_ARGUMENT,
        f"{field}: {description}",
        error_details_pb2.BadRequest(field_violations=[violation]),
        error_details_pb2.ErrorInfo(reason="FIELD_INVALID", domain="payments.example", metadata={"field": field}),
    )


def refusal_in_korean(order_id):
    """FAILED_PRECONDITION with what a person can be shown."""
    message = f"주문 {order_id}: 결제가 거절되었습니다 ✗"
    return Refused(
        FAILED_PRECONDITION,
        message,
        error_details_pb2.ErrorInfo(
            reason="PAYMENT_REFUSED", domain="payments.example", metadata={"order_id": order_id, "은행": "한국은행"}
        ),
        error_details_pb2.LocalizedMessage(locale="ko-KR", message=message),
    )


def error_headers(code, message, details=()):
    """grpc-status, grpc-message and grpc-status-details-bin."""
    headers = [("grpc-status", str(code)), ("grpc-message", urllib.parse.quote(message, safe=" !#$&'()*+,/:;=?@[]"))]
    if details:
        status = status_pb2.Status(code=code, message=message)
        for detail in details:
            status.details.add().Pack(detail)
        headers.append(("grpc-status-details-bin", base64.b64encode(status.SerializeToString())))
    return headers


# ---- the services ------------------------------------------------------------


class Services:
    """The methods, by the value of the `grpc-method` header."""

    def __init__(self, proto_dir):
        self.payments, self.delivery, self.echo_pb = generate(proto_dir)
        self.radius_of_shop = {}
        payments, delivery, echo = self.payments, self.delivery, self.echo_pb
        self.methods = {
            "/payments.v1.PaymentService/Pay": (payments.PayRequest, self.pay),
            "/payments.v1.PaymentService/Refund": (payments.RefundRequest, self.refund),
            "/delivery.v1.DeliveryRadiusService/SetRadius": (delivery.SetRadiusRequest, self.set_radius),
            "/echo.v1.EchoService/Echo": (echo.EchoRequest, self.echo),
        }

    def pay(self, request):
        if request.order_id.startswith("null-"):
            return None
        if request.order_id.startswith("empty-"):
            return self.payments.PayReply()
        state = self._decide(request, self.payments.PAYMENT_STATE_APPROVED)
        echoed = request.order_id.startswith("echo-")
        payment_id = request.currency if echoed else f"pay-{request.order_id}-{request.amount_minor}"
        return self.payments.PayReply(order_id=request.order_id, payment_id=payment_id, state=state)

    def refund(self, request):
        state = self._decide(request, self.payments.PAYMENT_STATE_REFUNDED)
        return self.payments.RefundReply(order_id=request.order_id, payment_id=request.payment_id, state=state)

    def _decide(self, request, granted):
        """The sample's rules; the order id's prefix asks for misbehaviour."""
        order_id = request.order_id
        if request.amount_minor <= 0:
            raise bad_field("amount_minor", "must be above zero")
        if request.currency == "XXX":
            info = error_details_pb2.ErrorInfo(
                reason="CURRENCY_NOT_SUPPORTED", domain="payments.example", metadata={"currency": "XXX"}
            )
            raise Refused(FAILED_PRECONDITION, "currency XXX is not supported", info)
        if order_id.startswith("refused-"):
            raise refusal_in_korean(order_id)
        if order_id.startswith("slow-"):
            time.sleep(SLOW_SECONDS)
        if order_id.startswith("crash-"):
            raise RuntimeError(f"the handler broke on order {order_id}")
        return self.payments.PAYMENT_STATE_DECLINED if order_id.startswith("declined-") else granted

    def set_radius(self, request):
        previous = self.radius_of_shop.get(request.shop_id, 0)
        self.radius_of_shop[request.shop_id] = request.radius_m
        return self.delivery.SetRadiusReply(
            shop_id=request.shop_id, radius_m=request.radius_m, previous_radius_m=previous
        )

    def echo(self, request):
        return self.echo_pb.EchoReply(payload=request.payload)


def generate(proto_dir):
    """Compiles the protos into a temporary folder and imports what comes out."""
    with tempfile.TemporaryDirectory() as out:
        well_known = resources.files("grpc_tools") / "_proto"
        if protoc.main(["protoc", f"-I{proto_dir}", f"-I{well_known}", f"--python_out={out}", *PROTOS]) != 0:
            sys.exit(f"the protos under {proto_dir} do not compile")
        sys.path.insert(0, out)
        try:
            names = ["payments.v1.payments_pb2", "delivery.v1.delivery_pb2", "echo.v1.echo_pb2"]
            return [importlib.import_module(name) for name in names]
        finally:
            sys.path.remove(out)


# ---- one record --------------------------------------------------------------


class Answers:
    """What was answered under an idempotency key; the oldest are forgotten
    first."""

    def __init__(self, answers_max=ANSWERS_KEPT_MAX):
        self.answers_max, self._kept = answers_max, OrderedDict()

    def find(self, method, key, payload):
        """Value and error headers, or None for a request that is new."""
        kept = self._kept.get((method, key))
        if kept is None:
            return None
        digest, value, errors = kept
        if digest != hashlib.sha256(payload).digest():
            return b"", error_headers(INVALID_ARGUMENT, "this idempotency-key was sent with another message before")
        return value, errors

    def keep(self, method, key, payload, value, errors):
        if errors and errors[0][1] in WORTH_ANOTHER_TRY:
            return
        self._kept[method, key] = hashlib.sha256(payload).digest(), value, errors
        if len(self._kept) > self.answers_max:
            self._kept.popitem(last=False)


class Handler:
    """Turns a request record into a reply record."""

    def __init__(self, services, producer, journal, work_seconds):
        self.services, self.producer = services, producer
        self.journal, self.work_seconds = journal, work_seconds
        self.answers = Answers()
        self.handled = self.skipped = self.errors = self.replies_lost = 0

    def handle(self, record):
        headers = {name: value for name, value in record.headers() or () if value is not None}
        if "antiphon-cancel" in headers or self._expired(record, headers):
            self.skipped += 1
            return
        method = headers.get("grpc-method", b"").decode(errors="replace")
        payload, key = record.value() or b"", headers.get("idempotency-key")
        kept = self.answers.find(method, key, payload) if key else None
        if kept is not None:
            request, (value, errors) = None, kept
        else:
            request, value, errors = self._answer(method, payload)
            if key:
                self.answers.keep(method, key, payload, value, errors)
        self.handled += 1
        self._note(record, headers, method, request, errors, repeat=kept is not None)
        self._reply(record, headers, value, errors)

    def _expired(self, record, headers):
        """Nobody waits any longer: the work would be for nothing."""
        deadline = headers.get("grpc-deadline", b"")
        if not deadline.isdigit():
            return False
        late_ms = int(time.time() * 1000) - int(deadline)
        if late_ms <= 0:
            return False
        log.info(
            "skipped topic=%s partition=%d offset=%d: deadline passed %d ms ago",
            record.topic(), record.partition(), record.offset(), late_ms,
        )  # fmt: skip
        return True

    # ANCHOR: answer
    def _answer(self, method, payload):
        """The request, the reply's value (empty on an error) and error headers."""
        request = None
        try:
            if method not in self.services.methods:
                raise Refused(UNIMPLEMENTED, f"this worker does not serve {method or 'a record without grpc-method'}")
            request_type, serve = self.services.methods[method]
            request = request_type.FromString(payload)
            if self.work_seconds:
                time.sleep(self.work_seconds)
            reply = serve(request)
            # An empty message is a value of 0 bytes; null is a tombstone.
            return request, None if reply is None else reply.SerializeToString(), []
        except Refused as refused:
            self.errors += 1
            return request, b"", error_headers(refused.code, refused.message, refused.details)
        except DecodeError as error:
            self.errors += 1
            return request, b"", error_headers(INVALID_ARGUMENT, f"the request does not decode: {error}")
        except Exception as error:  # A caller gets an answer whatever breaks.
            self.errors += 1
            log.exception("%s failed", method)
            return request, b"", error_headers(INTERNAL, f"{type(error).__name__}: {error}")
    # ANCHOR_END: answer

    def _note(self, record, headers, method, request, errors, repeat):
        if self.journal is None:
            return
        line = {
            "seq": self.handled,
            "topic": record.topic(),
            "partition": record.partition(),
            "offset": record.offset(),
            "key": (record.key() or b"").decode(errors="replace"),
            "correlation_id": readable(headers.get("kafka_correlationId", b"")),
            "method": method,
            "status": int(errors[0][1]) if errors else 0,
        }
        if repeat:
            line["repeat"] = True  # Answered from what was kept, not executed.
        for field in ("order_id", "amount_minor", "shop_id", "radius_m"):
            if hasattr(request, field):
                line[field] = getattr(request, field)
        self.journal.write(json.dumps(line) + "\n")

    # ANCHOR: reply
    def _reply(self, record, headers, value, errors):
        correlation_id, topic = headers.get("kafka_correlationId"), headers.get("kafka_replyTopic")
        if correlation_id is None or topic is None:
            return  # One-way: nobody waits.
        topic, place = topic.decode(errors="replace"), {}
        partition = headers.get("kafka_replyPartition", b"")
        if len(partition) == 4:
            place["partition"] = int.from_bytes(partition, "big", signed=True)
        # What the caller's infrastructure sent along goes back; the gateway's
        # allow-list decides.
        along = [(name, value) for name, value in headers.items() if name.startswith("x-")]
        reply_headers = [("kafka_correlationId", correlation_id), *along, *errors]
        arguments = dict(
            value=value, key=record.key(), headers=reply_headers, on_delivery=self._delivered, **place
        )
        while True:
            try:
                self.producer.produce(topic, **arguments)
                return
    # ANCHOR_END: reply
            except BufferError:
                self.producer.poll(0.1)
            except KafkaException as error:
                self._lost(topic, error)
                return

    def _delivered(self, error, message):
        if error is not None:
            self._lost(message.topic(), error)

    def _lost(self, topic, error):
        """The work is done; to do it twice would be worse than a lost reply."""
        self.replies_lost += 1
        log.error("reply to %s lost: %s", topic, error)


def readable(correlation_id):
    """A UUID as text; whatever else it may be as far as it is text."""
    if len(correlation_id) == 16:
        return str(uuid.UUID(bytes=correlation_id))
    return correlation_id.decode(errors="backslashreplace")


# ---- the loop ----------------------------------------------------------------


def clients(arguments):
    common = {"bootstrap.servers": arguments.bootstrap, "socket.nagle.disable": True}
    consumer = Consumer({
        **common,
        "group.id": arguments.group,
        "auto.offset.reset": "earliest",
        "enable.auto.commit": False,
        "enable.auto.offset.store": False,
        "session.timeout.ms": 10_000,
        "topic.metadata.refresh.interval.ms": 5_000,
    })  # fmt: skip
    producer = Producer({
        **common,
        "enable.idempotence": True,
        "linger.ms": 1,
        # As large as the reply topic takes; librdkafka's default is 1 MB.
        "message.max.bytes": REPLY_BYTES_MAX,
        "delivery.timeout.ms": 30_000,
        # A reply topic that is gone belonged to a gateway that is gone.
        "topic.metadata.propagation.max.ms": 2_000,
    })  # fmt: skip
    return consumer, producer


def next_batch(consumer):
    """Waits for one record, then takes what has come with it: no batch waits to
    become full."""
    first = consumer.poll(POLL_SECONDS)
    if first is None:
        return []
    batch = [first, *consumer.consume(BATCH_RECORDS_MAX - 1, timeout=0)]
    records = []
    for record in batch:
        error = record.error()
        if error is None:
            records.append(record)
        elif error.fatal():
            raise KafkaException(error)
        else:  # Such as a topic that is not there yet: the client tries again.
            log.warning("%s", error.str())
    return records


def serve(consumer, producer, handler, stopping):
    while not stopping:
        done = {}
        for record in next_batch(consumer):
            if stopping:
                break  # The rest of the batch is the next worker's.
            handler.handle(record)
            producer.poll(0)
            done[record.topic(), record.partition()] = record
        if not done:
            continue
        if handler.journal is not None:
            handler.journal.flush()
        unsent = producer.flush(FLUSH_SECONDS_MAX)
        if unsent:
            raise SystemExit(f"{unsent} replies not acknowledged within {FLUSH_SECONDS_MAX} s")
        commit(consumer, done.values(), asynchronous=not stopping)


def commit(consumer, records, asynchronous):
    """Commits what comes before and with these records, one of each partition."""
    try:
        for record in records:
            consumer.store_offsets(record)
        consumer.commit(asynchronous=asynchronous)
    except KafkaException as error:
        # Such as a partition that has gone to another worker meanwhile.
        log.warning("commit: %s; requests may come twice", error)


def parse_arguments():
    parser = argparse.ArgumentParser(description="A worker for Antiphon's sample services.")
    parser.add_argument("--bootstrap", default="127.0.0.1:9092", help="Kafka's HOST:PORT[,...] (default: %(default)s)")
    parser.add_argument("--group", default="sample-workers", help="consumer group (default: %(default)s)")
    parser.add_argument("--topics", default=",".join(TOPICS), help="comma-separated (default: %(default)s)")
    parser.add_argument("--proto", type=Path, default=PROTO_DIR, help="folder of the protos (default: %(default)s)")
    parser.add_argument("--log", type=Path, help="append one JSON line per handled request to this file")
    parser.add_argument("--work-ms", type=float, default=0, help="time that every request takes (default: %(default)s)")
    return parser.parse_args()


def main():
    arguments = parse_arguments()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s", stream=sys.stderr)
    stopping = []
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda received, _frame: stopping.append(received))
    services = Services(arguments.proto)
    consumer, producer = clients(arguments)
    journal = arguments.log.open("a", encoding="utf-8") if arguments.log else None
    handler = Handler(services, producer, journal, arguments.work_ms / 1000)

    def assigned(_consumer, partitions):
        log.info("assigned %s", " ".join(sorted(f"{p.topic}[{p.partition}]" for p in partitions)) or "nothing")

    consumer.subscribe(arguments.topics.split(","), on_assign=assigned)
    try:
        serve(consumer, producer, handler, stopping)
    finally:
        consumer.close()
        if journal is not None:
            journal.close()
        log.info(
            "stopped handled=%d errors=%d skipped=%d replies_lost=%d",
            handler.handled, handler.errors, handler.skipped, handler.replies_lost,
        )  # fmt: skip


if __name__ == "__main__":
    main()
