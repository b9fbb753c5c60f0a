"""A TCP proxy in front of every broker, which can misbehave on demand.

Only clients that bootstrap through it are behind it (scripts/kafka start
--proxied), so a fault here is one between the gateway and Kafka; workers,
brokers and the tests' own readers go straight.

It runs as a thread with an event loop of its own. Faults are set by plain
attributes of a `Link`, one for each broker.
"""

import asyncio
import collections
import socket
import struct
import threading

CHUNK_BYTES = 256 * 1024
PRODUCE_API_KEY = 0


class Link:
    """The way to one broker, and what is wrong with it."""

    def __init__(self, number, listen_port, broker_port):
        self.number, self.listen_port, self.broker_port = number, listen_port, broker_port
        self.delay_seconds = 0.0
        # Cuts so many more answers to produce requests that name `cut_topic`.
        self.cuts_left, self.cut_every, self.cut_topic = 0, 1, b""
        self.cuts_done = self.produces_seen = 0
        self._open = None  # An asyncio.Event; clear while nothing gets through.

    def heal(self):
        self.delay_seconds, self.cuts_left = 0.0, 0


class Proxy:
    """All links; `start` returns when every port listens."""

    def __init__(self, ports):
        self.links = {number: Link(number, listen, broker) for number, (listen, broker) in ports.items()}
        self._loop = asyncio.new_event_loop()
        self._ready = threading.Event()
        self._error = None
        self._thread = threading.Thread(target=self._run, name="proxy", daemon=True)

    def start(self):
        self._thread.start()
        self._ready.wait()
        if self._error is not None:
            raise self._error

    def stop(self):
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(5)

    def hold(self, number):
        """Nothing gets through any more, either way, and nobody is told: as
        when a cable is pulled."""
        self._loop.call_soon_threadsafe(self.links[number]._open.clear)

    def release(self, number):
        """What was held arrives late, as TCP would have it."""
        self._loop.call_soon_threadsafe(self.links[number]._open.set)

    def heal(self):
        for number, link in self.links.items():
            link.heal()
            self.release(number)

    def _run(self):
        asyncio.set_event_loop(self._loop)
        try:
            self._loop.run_until_complete(self._listen())
        except OSError as error:
            self._error = error
        self._ready.set()
        if self._error is None:
            self._loop.run_forever()

    async def _listen(self):
        for link in self.links.values():
            link._open = asyncio.Event()
            link._open.set()
            await asyncio.start_server(
                lambda reader, writer, link=link: serve(link, reader, writer),
                "127.0.0.1", link.listen_port, limit=CHUNK_BYTES,
            )  # fmt: skip


async def serve(link, client_reader, client_writer):
    await link._open.wait()
    try:
        broker_reader, broker_writer = await asyncio.open_connection("127.0.0.1", link.broker_port, limit=CHUNK_BYTES)
    except OSError:
        client_writer.transport.abort()  # Refused, as by a port that nobody has.
        return
    for writer in (client_writer, broker_writer):
        writer.get_extra_info("socket").setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    connection = Connection(link, client_writer, broker_writer)
    await asyncio.gather(
        connection.pump(client_reader, broker_writer, Frames(connection)),
        connection.pump(broker_reader, client_writer, None),
    )


class Connection:
    """Two pumps. Once `doomed`, the broker's next answer ends it unseen."""

    def __init__(self, link, client_writer, broker_writer):
        self.link, self.writers = link, (client_writer, broker_writer)
        self.doomed = False

    def abort(self):
        for writer in self.writers:
            writer.transport.abort()

    async def pump(self, reader, writer, frames):
        late = collections.deque()
        arrived, ended = asyncio.Event(), False
        loop = asyncio.get_running_loop()

        async def deliver():
            while True:
                while late:
                    due, data = late.popleft()
                    pause = due - loop.time()
                    if pause > 0:
                        await asyncio.sleep(pause)
                    await self.link._open.wait()
                    writer.write(data)
                    await writer.drain()
                if ended:
                    return
                arrived.clear()
                await arrived.wait()

        delivering = None
        try:
            while data := await reader.read(CHUNK_BYTES):
                if frames is not None:
                    frames.see(data)
                elif self.doomed:
                    self.link.cuts_done += 1
                    return
                if delivering is None and not self.link.delay_seconds and self.link._open.is_set():
                    writer.write(data)
                    await writer.drain()
                    continue
                # Once late, always in this order.
                late.append((loop.time() + self.link.delay_seconds, data))
                arrived.set()
                if delivering is None:
                    delivering = asyncio.create_task(deliver())
            if delivering is not None:
                ended = True
                arrived.set()
                await delivering
        except OSError:
            pass
        finally:
            if delivering is not None:
                delivering.cancel()
            self.abort()


class Frames:
    """Finds the produce requests in what a client sends: a frame is its length
    and then the api key, as 4 and 2 bytes, big-endian."""

    def __init__(self, connection):
        self.connection, self.link = connection, connection.link
        self._head, self._left = b"", 0

    def see(self, data):
        while data:
            if self._left:
                # The topic's name is at a frame's beginning; frames that are cut
                # apart right there are not told from others, which does no harm.
                taken, data = data[: self._left], data[self._left :]
                self._left -= len(taken)
                continue
            self._head += data
            if len(self._head) < 6:
                return
            length, api_key = struct.unpack(">ih", self._head[:6])
            data, self._head = self._head[4:], b""
            self._left = length
            if api_key == PRODUCE_API_KEY:
                self._note(data[: min(length, 256)])

    def _note(self, beginning):
        link = self.link
        if link.cut_topic not in beginning:
            return
        link.produces_seen += 1
        if link.cuts_left > 0 and link.produces_seen % link.cut_every == 0 and not self.connection.doomed:
            link.cuts_left -= 1
            self.connection.doomed = True
