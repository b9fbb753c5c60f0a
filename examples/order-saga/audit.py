"""What has to hold of the four databases when every order has come to its end.
Each check is a query for what contradicts it."""

import sqlite3

CHECKS = {
    "every order that was placed is confirmed or cancelled": """
        SELECT placed.order_id, saga.state FROM placed LEFT JOIN saga USING (order_id)
        WHERE saga.state IS NULL OR saga.state NOT IN ('CONFIRMED', 'CANCELLED')""",
    "no order was made up": "SELECT order_id FROM saga WHERE order_id NOT IN (SELECT order_id FROM placed)",
    "the order service says the same of each": """
        SELECT order_id, saga.state, o.state FROM saga LEFT JOIN orders.orders AS o USING (order_id)
        WHERE saga.state IS NOT o.state
        UNION ALL SELECT order_id, NULL, state FROM orders.orders WHERE order_id NOT IN (SELECT order_id FROM saga)""",
    "confirmed: its stock is set aside and its money taken, as ordered": """
        SELECT order_id, r.state, p.state FROM saga
        LEFT JOIN inventory.reservation AS r USING (order_id) LEFT JOIN payment.payment AS p USING (order_id)
        WHERE saga.state = 'CONFIRMED' AND (r.state IS NOT 'RESERVED' OR p.state IS NOT 'TAKEN' OR r.sku IS NOT saga.sku
           OR r.quantity IS NOT saga.quantity OR p.amount IS NOT saga.amount OR p.customer IS NOT saga.customer)""",
    "cancelled: neither stock set aside nor money taken": """
        SELECT order_id, r.state, p.state FROM saga
        LEFT JOIN inventory.reservation AS r USING (order_id) LEFT JOIN payment.payment AS p USING (order_id)
        WHERE saga.state = 'CANCELLED' AND (r.state IS 'RESERVED' OR p.state IS 'TAKEN')""",
    "no payment and no reservation without an order": """
        SELECT order_id FROM payment.payment WHERE order_id NOT IN (SELECT order_id FROM saga)
        UNION ALL SELECT order_id FROM inventory.reservation WHERE order_id NOT IN (SELECT order_id FROM saga)""",
    "stock is conserved": """
        SELECT sku, initial, available, coalesce(sum(quantity), 0) FROM inventory.stock
        LEFT JOIN (SELECT sku, quantity FROM inventory.reservation WHERE state = 'RESERVED') USING (sku)
        GROUP BY sku HAVING initial <> available + coalesce(sum(quantity), 0) OR available < 0""",
    "money is conserved: every balance is what its confirmed orders leave": """
        SELECT account.customer, initial, balance, coalesce(sum(amount), 0) FROM payment.account
        LEFT JOIN (SELECT customer, amount FROM saga WHERE state = 'CONFIRMED') AS bought USING (customer)
        GROUP BY account.customer HAVING initial <> balance + coalesce(sum(amount), 0) OR balance < 0""",
    "the ledger tells of the same money": """
        SELECT account.customer, initial, balance FROM payment.account LEFT JOIN payment.ledger USING (customer)
        GROUP BY account.customer
        HAVING balance <> initial + coalesce(sum(CASE kind WHEN 'CHARGE' THEN -amount ELSE amount END), 0)""",
    "nothing was paid twice, nor given back twice, nor given back unpaid": """
        SELECT order_id, sum(kind = 'CHARGE'), sum(kind = 'REFUND') FROM payment.ledger GROUP BY order_id
        HAVING sum(kind = 'CHARGE') > 1 OR sum(kind = 'REFUND') > sum(kind = 'CHARGE')""",
    "nothing was done that the saga log had not said before": """
        SELECT order_id FROM payment.ledger WHERE kind = 'CHARGE'
        AND order_id NOT IN (SELECT order_id FROM event WHERE step = 'pay' AND what = 'started')""",
}

# What became of the orders, and what the way there was like.
FIGURES = {
    "orders": "SELECT count(*) FROM saga",
    "confirmed": "SELECT count(*) FROM saga WHERE state = 'CONFIRMED'",
    "cancelled: out of stock": "SELECT count(*) FROM saga WHERE state = 'CANCELLED' AND reason LIKE 'reserve: out of stock%'",
    "cancelled: payment declined": "SELECT count(*) FROM saga WHERE state = 'CANCELLED' AND reason LIKE 'pay: declined%'",
    "cancelled: no answer in time": "SELECT count(*) FROM saga WHERE state = 'CANCELLED' AND reason NOT LIKE '%: out of stock%' AND reason NOT LIKE '%: declined%'",
    "steps with unknown outcome": "SELECT count(*) FROM event WHERE what = 'unknown'",
    "of these done after all, and undone": """
        SELECT count(*) FROM event AS undo JOIN event AS step USING (order_id)
        WHERE step.what = 'unknown' AND undo.what = 'done' AND undo.detail = 'undone'
        AND (step.step, undo.step) IN (VALUES ('reserve', 'release'), ('pay', 'refund'), ('confirm', 'cancel'))""",
    "of these never done": """
        SELECT count(*) FROM event AS undo JOIN event AS step USING (order_id)
        WHERE step.what = 'unknown' AND undo.what = 'done' AND undo.detail = 'nothing to undo'
        AND (step.step, undo.step) IN (VALUES ('reserve', 'release'), ('pay', 'refund'), ('confirm', 'cancel'))""",
    "orders taken up again after a crash": "SELECT count(DISTINCT order_id) FROM event WHERE what = 'resumed'",
    "payments given back": "SELECT count(*) FROM payment.ledger WHERE kind = 'REFUND'",
    "requests done after their deadline": "SELECT coalesce(sum(times), 0) FROM notes WHERE what = 'done after the deadline'",
    "requests too late, not done": "SELECT coalesce(sum(times), 0) FROM notes WHERE what = 'too late, not done'",
    "repeats answered as before": "SELECT coalesce(sum(times), 0) FROM notes WHERE what = 'repeats answered as before'",
}
# Without these the run has shown little.
MUST_HAVE_HAPPENED = [
    "cancelled: out of stock", "cancelled: payment declined", "cancelled: no answer in time",
    "of these done after all, and undone", "orders taken up again after a crash", "repeats answered as before",
]  # fmt: skip


class Audit:
    def __init__(self, folder, placed):
        self.database = sqlite3.connect(folder / "saga.sqlite")
        for name in ("inventory", "payment", "orders"):
            self.database.execute(f"ATTACH ? AS {name}", (str(folder / f"{name}.sqlite"),))
        self.database.executescript("""
            CREATE TEMP TABLE placed (order_id TEXT PRIMARY KEY);
            CREATE TEMP VIEW notes AS SELECT * FROM inventory.note UNION ALL SELECT * FROM payment.note UNION ALL SELECT * FROM orders.note;
        """)
        self.database.executemany("INSERT INTO placed VALUES (?)", [(order_id,) for order_id in placed])

    def contradictions(self):
        """Of each check what contradicts it."""
        return {words: self.database.execute(query).fetchall() for words, query in CHECKS.items()}

    def figures(self):
        return {words: self.database.execute(query).fetchone()[0] for words, query in FIGURES.items()}
