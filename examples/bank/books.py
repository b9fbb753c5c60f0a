"""The bank's books: SQLite, double entry, real transactions.

A transfer is booked or refused once, under its own name; who asks again is
told what stands there. Whatever is told to a caller is committed before.
"""

import sqlite3

ACCOUNTS = 200
OPENING_MINOR = 1_000_000
# Every so many accounts are empty at first, so that some transfers are refused.
EMPTY_EVERY = 20

BOOKED, REFUSED, UNKNOWN_ACCOUNT = "booked", "refused", "unknown account"

SCHEMA = """
CREATE TABLE accounts (
    id TEXT PRIMARY KEY, opening_minor INTEGER NOT NULL, balance_minor INTEGER NOT NULL CHECK (balance_minor >= 0)
);
CREATE TABLE transfers (
    id TEXT PRIMARY KEY, state TEXT NOT NULL, amount_minor INTEGER NOT NULL, balance_minor INTEGER NOT NULL
);
CREATE TABLE entries (
    transfer_id TEXT NOT NULL REFERENCES transfers (id), account_id TEXT NOT NULL REFERENCES accounts (id),
    amount_minor INTEGER NOT NULL, PRIMARY KEY (transfer_id, account_id)
) WITHOUT ROWID;
CREATE TABLE notifications (id TEXT PRIMARY KEY, text TEXT NOT NULL);
"""


class Books:
    def __init__(self, path):
        # Transactions are begun and ended by name: begin(), commit().
        self.db = sqlite3.connect(path, timeout=30, isolation_level=None)
        self.db.execute("PRAGMA journal_mode = WAL")
        self.db.execute("PRAGMA synchronous = FULL")
        self.db.execute("PRAGMA foreign_keys = ON")

    def create(self):
        self.db.executescript(SCHEMA)
        self.begin()
        for number in range(ACCOUNTS):
            opening = 0 if number % EMPTY_EVERY == 0 else OPENING_MINOR
            self.db.execute("INSERT INTO accounts VALUES (?, ?, ?)", (f"account-{number}", opening, opening))
        self.commit()

    def begin(self):
        self.db.execute("BEGIN IMMEDIATE")

    def commit(self):
        self.db.execute("COMMIT")

    def one(self, query, *values):
        return self.db.execute(query, values).fetchone()

    # ---- transfers ----

    def transfer(self, name, payer, payee, amount):
        """State, amount and balance of the payer; the same for ever."""
        known = self.one("SELECT state, amount_minor, balance_minor FROM transfers WHERE id = ?", name)
        return known or self.decide(name, payer, payee, amount)

    def decide(self, name, payer, payee, amount):
        balance = self.one("SELECT balance_minor FROM accounts WHERE id = ?", payer)
        if payer == payee or balance is None or self.one("SELECT 1 FROM accounts WHERE id = ?", payee) is None:
            return self.write(name, UNKNOWN_ACCOUNT, amount, 0)
        if balance[0] < amount:
            return self.write(name, REFUSED, amount, balance[0])
        outcome = self.write(name, BOOKED, amount, balance[0] - amount)
        for account, change in ((payer, -amount), (payee, amount)):
            self.db.execute("INSERT INTO entries VALUES (?, ?, ?)", (name, account, change))
            self.db.execute("UPDATE accounts SET balance_minor = balance_minor + ? WHERE id = ?", (change, account))
        return outcome

    def write(self, name, state, amount, balance):
        self.db.execute("INSERT INTO transfers VALUES (?, ?, ?, ?)", (name, state, amount, balance))
        return state, amount, balance

    # ---- notifications ----

    def notify(self, name, text):
        self.db.execute("INSERT OR IGNORE INTO notifications VALUES (?, ?)", (name, text))

    # ---- what an auditor asks ----

    def count(self, state):
        return self.one("SELECT count(*) FROM transfers WHERE state = ?", state)[0]

    def states(self):
        return dict(self.db.execute("SELECT id, state FROM transfers"))

    def notified(self):
        return {name for (name,) in self.db.execute("SELECT id FROM notifications")}

    def mistakes(self):
        """What does not add up, in words."""
        found = []
        opening, balances = self.one("SELECT sum(opening_minor), sum(balance_minor) FROM accounts")
        if opening != balances:
            found.append(f"there were {opening}, there are {balances}")
        crooked = self.one("""
            SELECT count(*) FROM accounts WHERE balance_minor != opening_minor
            + (SELECT coalesce(sum(amount_minor), 0) FROM entries WHERE account_id = accounts.id)""")[0]
        if crooked:
            found.append(f"{crooked} accounts differ from their entries")
        lame = self.one("""
            SELECT count(*) FROM transfers WHERE (state = 'booked') !=
            (SELECT count(*) = 2 AND sum(amount_minor) = 0 FROM entries WHERE transfer_id = transfers.id)""")[0]
        if lame:
            found.append(f"{lame} transfers without their two entries")
        return found
