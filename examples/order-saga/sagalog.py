"""The orchestrator's memory: which orders it has taken on, and what it has begun
and heard of each step. Nothing is done that is not written here first.

Writes that come together become one transaction: a disk is asked once for many.
"""

import asyncio
import sqlite3
import time
from concurrent.futures import ThreadPoolExecutor

RUNNING, COMPENSATING, CONFIRMED, CANCELLED = "RUNNING", "COMPENSATING", "CONFIRMED", "CANCELLED"
QUEUE_MAX = 5_000
SCHEMA = """
    PRAGMA journal_mode = WAL;
    PRAGMA synchronous = FULL;
    CREATE TABLE IF NOT EXISTS saga (
        order_id TEXT PRIMARY KEY, customer TEXT NOT NULL, sku TEXT NOT NULL, quantity INTEGER NOT NULL,
        amount INTEGER NOT NULL, card TEXT NOT NULL, state TEXT NOT NULL, reason TEXT NOT NULL DEFAULT ''
    );
    CREATE INDEX IF NOT EXISTS saga_by_state ON saga (state);
    CREATE TABLE IF NOT EXISTS event (
        id INTEGER PRIMARY KEY, order_id TEXT NOT NULL, step TEXT NOT NULL, what TEXT NOT NULL, detail TEXT NOT NULL, at REAL NOT NULL
    );
    CREATE INDEX IF NOT EXISTS event_by_order ON event (order_id);
"""
COLUMNS = "order_id, customer, sku, quantity, amount, card"


class SagaLog:
    def __init__(self, path):
        # One thread has the connection; it is never used by two at once.
        self.disk = ThreadPoolExecutor(1)
        self.database = self.disk.submit(self._open, path).result()
        self.queue = asyncio.Queue(QUEUE_MAX)

    @staticmethod
    def _open(path):
        database = sqlite3.connect(path, isolation_level=None)
        database.executescript(SCHEMA)
        return database

    async def write(self, *statements):
        """Returns once these statements, and arguments, are on disk."""
        written = asyncio.get_running_loop().create_future()
        await self.queue.put((statements, written))
        return await written

    async def run(self):
        while True:
            batch = [await self.queue.get()]
            while not self.queue.empty():
                batch.append(self.queue.get_nowait())
            await asyncio.get_running_loop().run_in_executor(self.disk, self._commit, [statements for statements, _ in batch])
            for _, written in batch:
                if not written.done():  # Its writer may have gone away.
                    written.set_result(None)

    def _commit(self, batch):
        self.database.execute("BEGIN IMMEDIATE")
        for statements in batch:
            for statement, arguments in statements:
                self.database.execute(statement, arguments)
        self.database.execute("COMMIT")

    def unfinished(self):
        """The orders that a crash has left in the middle, with what is known of them."""

        def read():
            sagas = self.database.execute(f"SELECT {COLUMNS}, state FROM saga WHERE state IN (?, ?)", (RUNNING, COMPENSATING)).fetchall()
            events = {}
            for order_id, step, what in self.database.execute(
                "SELECT order_id, step, what FROM event WHERE order_id IN (SELECT order_id FROM saga WHERE state IN (?, ?)) ORDER BY id",
                (RUNNING, COMPENSATING),
            ):
                events.setdefault(order_id, {}).setdefault(step, set()).add(what)
            return [(saga[:-1], saga[-1], events.get(saga[0], {})) for saga in sagas]

        return self.disk.submit(read).result()

    def known(self):
        """Every order ever taken on, to recognise one that is placed again."""
        return self.disk.submit(lambda: self.database.execute(f"SELECT {COLUMNS} FROM saga").fetchall()).result()


def new_saga(order):
    return f"INSERT INTO saga ({COLUMNS}, state) VALUES (?, ?, ?, ?, ?, ?, '{RUNNING}')", order


def new_event(order_id, step, what, detail=""):
    return "INSERT INTO event (order_id, step, what, detail, at) VALUES (?, ?, ?, ?, ?)", (order_id, step, what, detail, time.time())


def new_state(order_id, state, reason=None):
    return "UPDATE saga SET state = ?, reason = coalesce(?, reason) WHERE order_id = ?", (state, reason, order_id)
