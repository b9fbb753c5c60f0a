"""payments.v1.PaymentService: functions that return a reply or raise. Nothing
here knows of Kafka."""

import asyncio
import importlib
import os
import sys
import tempfile
from importlib import resources
from pathlib import Path

from google.protobuf.message import DecodeError
from google.rpc import code_pb2, error_details_pb2, status_pb2
from grpc_tools import protoc

PROTO_DIR = Path(os.environ.get("PROTO_DIR", Path(__file__).resolve().parents[3] / "proto"))
SLOW_SECONDS = 3


class Refused(Exception):
    """A business error: what the gRPC caller shall get."""

    def __init__(self, code, message, *details):
        super().__init__(message)
        self.status = status_pb2.Status(code=code, message=message)
        for detail in details:
            self.status.details.add().Pack(detail)


def bad_field(field, description):
    violation = error_details_pb2.BadRequest.FieldViolation(field=field, description=description)
    return Refused(
        code_pb2.INVALID_ARGUMENT,
        f"{field}: {description}",
        error_details_pb2.BadRequest(field_violations=[violation]),
        error_details_pb2.ErrorInfo(reason="FIELD_INVALID", domain="payments.example", metadata={"field": field}),
    )


def generate():
    """Compiles the protos into a temporary folder and imports what comes out. A
    project of your own has the generated module in its package."""
    with tempfile.TemporaryDirectory() as out:
        well_known = resources.files("grpc_tools") / "_proto"
        protos = ["antiphon/v1/options.proto", "payments/v1/payments.proto"]
        if protoc.main(["protoc", f"-I{PROTO_DIR}", f"-I{well_known}", f"--python_out={out}", *protos]) != 0:
            sys.exit(f"the protos under {PROTO_DIR} do not compile")
        sys.path.insert(0, out)
        try:
            return importlib.import_module("payments.v1.payments_pb2")
        finally:
            sys.path.remove(out)


pb = generate()


async def pay(request):
    if request.order_id.startswith("null-"):
        return None
    if request.order_id.startswith("empty-"):
        return pb.PayReply()
    state = await decide(request, pb.PAYMENT_STATE_APPROVED)
    echoed = request.order_id.startswith("echo-")
    payment_id = request.currency if echoed else f"pay-{request.order_id}-{request.amount_minor}"
    return pb.PayReply(order_id=request.order_id, payment_id=payment_id, state=state)


async def refund(request):
    state = await decide(request, pb.PAYMENT_STATE_REFUNDED)
    return pb.RefundReply(order_id=request.order_id, payment_id=request.payment_id, state=state)


async def decide(request, granted):
    """The sample's rules: examples/workers/README.md lists them."""
    if request.amount_minor <= 0:
        raise bad_field("amount_minor", "must be above zero")
    if request.currency == "XXX":
        info = error_details_pb2.ErrorInfo(
            reason="CURRENCY_NOT_SUPPORTED", domain="payments.example", metadata={"currency": "XXX"}
        )
        raise Refused(code_pb2.FAILED_PRECONDITION, "currency XXX is not supported", info)
    if request.order_id.startswith("slow-"):
        await asyncio.sleep(SLOW_SECONDS)
    if request.order_id.startswith("crash-"):
        raise RuntimeError(f"the handler broke on order {request.order_id}")
    return pb.PAYMENT_STATE_DECLINED if request.order_id.startswith("declined-") else granted


METHODS = {
    "/payments.v1.PaymentService/Pay": (pb.PayRequest, pay),
    "/payments.v1.PaymentService/Refund": (pb.RefundRequest, refund),
}


async def call(method, payload):
    """The encoded reply to an encoded request, or None where a handler has none."""
    if method not in METHODS:
        raise Refused(code_pb2.UNIMPLEMENTED, f"this worker does not serve {method}")
    request_type, handle = METHODS[method]
    try:
        request = request_type.FromString(payload)
    except DecodeError as error:
        raise Refused(code_pb2.INVALID_ARGUMENT, f"the request does not decode: {error}") from None
    reply = await handle(request)
    return None if reply is None else reply.SerializeToString()
