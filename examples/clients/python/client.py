#!/usr/bin/env python3
"""Calls payments.v1.PaymentService through Antiphon with grpcio.

    client.py [--json] [HOST:PORT]

To the caller it is a gRPC server like any other; nothing here knows of Kafka
but the names of the antiphon-* trailers.
"""

import argparse
import json
import sys
import time
import uuid
from pathlib import Path

import grpc
from google.protobuf import any_pb2, json_format
from google.rpc import error_details_pb2  # noqa: F401 - known to json_format by being imported
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import ProtoReflectionDescriptorDatabase
from grpc_status import rpc_status

# Compiled when this starts. A project of yours runs grpc_tools.protoc when it is built.
sys.path.append(str(Path(__file__).resolve().parents[3] / "proto"))
messages, services = grpc.protos_and_services("payments/v1/payments.proto")

RUN = uuid.uuid4().hex[:8]
PATIENCE_SECONDS = 20


def order(kind, currency="EUR", amount=1250):
    return messages.PayRequest(order_id=f"{kind}-{RUN}", amount_minor=amount, currency=currency)


def antiphon_trailers(call):
    """What is known of the request: whether it was sent, and where it is."""
    return {name: value for name, value in call.trailing_metadata() or () if name.startswith("antiphon-")}


def pay(stub):
    """A call, its reply and its trailers."""
    reply, call = stub.Pay.with_call(order("order"), timeout=PATIENCE_SECONDS)
    return {
        "order_id": reply.order_id,
        "payment_id": reply.payment_id,
        "state": messages.PaymentState.Name(reply.state),
        "trailers": antiphon_trailers(call),
    }


def refused(stub, request):
    """An error of the business, with its google.rpc details."""
    try:
        stub.Pay(request, timeout=PATIENCE_SECONDS)
    except grpc.RpcError as error:
        status = rpc_status.from_call(error)
        return {
            "code": error.code().name,
            "message": error.details(),
            "details": [unpacked(detail) for detail in status.details],
        }
    raise AssertionError("the payment was taken")


def unpacked(detail: any_pb2.Any):
    # To act on one kind: info = error_details_pb2.ErrorInfo(); detail.Unpack(info)
    fields = json_format.MessageToDict(detail)
    return {"type": detail.TypeName(), **{name: value for name, value in fields.items() if name != "@type"}}


def idempotency(stub):
    """The same call twice: executed once, and the second says so."""
    metadata = [("idempotency-key", f"key-{RUN}")]
    first = stub.Pay(order("once"), timeout=PATIENCE_SECONDS, metadata=metadata)
    second, call = stub.Pay.with_call(order("once"), timeout=PATIENCE_SECONDS, metadata=metadata)
    return {
        "first": first.payment_id,
        "second": second.payment_id,
        "answered": antiphon_trailers(call).get("antiphon-idempotency"),
    }


def parallel(stub, calls=100):
    """Many calls at once over one connection."""
    requests = [order(f"parallel-{number}", amount=number) for number in range(1, calls + 1)]
    futures = [stub.Pay.future(request, timeout=PATIENCE_SECONDS) for request in requests]
    replies = []
    for request, future in zip(requests, futures):
        reply = future.result()
        replies.append({"asked": request.order_id, "order_id": reply.order_id, "payment_id": reply.payment_id})
    return {"replies": replies}


def reflection(channel):
    """The services, asked of the server itself."""
    return {"services": list(ProtoReflectionDescriptorDatabase(channel).get_services())}


def deadline(stub, seconds=0.5):
    """The sample worker takes 3 s for this order."""
    started = time.monotonic()
    try:
        stub.Pay(order("slow"), timeout=seconds)
    except grpc.RpcError as error:
        return {
            "code": error.code().name,
            "deadline_ms": round(seconds * 1000),
            "ms": round((time.monotonic() - started) * 1000),
            "trailers": antiphon_trailers(error),
        }
    raise AssertionError("the payment was taken in time")


def main():
    arguments = argparse.ArgumentParser(description="Calls payments.v1.PaymentService.")
    arguments.add_argument("address", nargs="?", default="127.0.0.1:50051")
    arguments.add_argument("--json", action="store_true", help="one line of JSON for each case")
    options = arguments.parse_args()

    def show(case, result):
        line = json.dumps({"case": case, **result}, ensure_ascii=False) if options.json else f"{case}: {result}"
        print(line, flush=True)

    with grpc.insecure_channel(options.address) as channel:
        stub = services.PaymentServiceStub(channel)
        show("pay", pay(stub))
        show("error", refused(stub, order("order", currency="XXX")))
        show("non_ascii", refused(stub, order("refused")))
        show("idempotency", idempotency(stub))
        show("reflection", reflection(channel))
        show("parallel", parallel(stub))
        # Last: the sample worker does one thing after the other.
        show("deadline", deadline(stub))


if __name__ == "__main__":
    main()
