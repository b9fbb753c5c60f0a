"""A caller who minds his own business: 100 echoes a second over one connection,
a line for each: when it was due, milliseconds, code.

    bystander.py ADDRESS [CA_FILE]
"""

import asyncio
import signal
import sys
import time

import grpc

RATE = 100
DEADLINE_SECONDS = 5
ECHO = "/echo.v1.EchoService/Echo"
MESSAGE = b"\x0a\x64" + b"b" * 100


async def call(method, due):
    began = time.monotonic()
    try:
        code = "OK" if await method(MESSAGE, timeout=DEADLINE_SECONDS) == MESSAGE else "another reply"
    except grpc.RpcError as error:
        code = f"{error.code().name}: {error.details()}"
    print(f"{due:.6f} {(time.monotonic() - began) * 1000:.3f} {code}", flush=True)


async def main(address, ca_file=None):
    ending = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, ending.set)
    if ca_file:
        with open(ca_file, "rb") as file:
            channel = grpc.aio.secure_channel(address, grpc.ssl_channel_credentials(file.read()))
    else:
        channel = grpc.aio.insecure_channel(address)
    method = channel.unary_unary(ECHO, lambda it: it, lambda it: it)
    calls, due = set(), time.monotonic()
    while not ending.is_set():
        due = max(due + 1 / RATE, time.monotonic() - 1)
        await asyncio.sleep(max(0, due - time.monotonic()))
        task = asyncio.create_task(call(method, due))
        calls.add(task)
        task.add_done_callback(calls.discard)
    await asyncio.gather(*calls)
    await channel.close()


asyncio.run(main(*sys.argv[1:]))
