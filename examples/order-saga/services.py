"""The three services behind the steps: stock, money, orders. Each has a SQLite
database of its own, and knows nothing of Kafka or of the others.

A step and what undoes it are idempotent by their order: undoing what was never
done leaves a mark (VOID), so that a step which comes after all is refused.
"""

FAILED_PRECONDITION = 9
SLOW_SECONDS = 6.0


class Refused(Exception):
    """Certainly not done; becomes the gRPC status of the reply."""

    def __init__(self, message, code=FAILED_PRECONDITION):
        super().__init__(message)
        self.code, self.message = code, message


def one(database, query, *arguments):
    return database.execute(query, arguments).fetchone()


class Inventory:
    topic = "saga_inventory_request"
    schema = """
        CREATE TABLE IF NOT EXISTS stock (sku TEXT PRIMARY KEY, initial INTEGER NOT NULL, available INTEGER NOT NULL CHECK (available >= 0));
        CREATE TABLE IF NOT EXISTS reservation (order_id TEXT PRIMARY KEY, sku TEXT, quantity INTEGER, state TEXT NOT NULL);
    """

    def __init__(self, pb, database):
        self.pb, self.database = pb, database
        self.methods = {
            "/saga.v1.InventoryService/Reserve": (pb.ReserveRequest, self.reserve),
            "/saga.v1.InventoryService/Release": (pb.UndoRequest, self.release),
        }

    def reserve(self, request):
        known = one(self.database, "SELECT state FROM reservation WHERE order_id = ?", request.order_id)
        if known and known[0] != "RESERVED":
            raise Refused(f"the reservation was released before: {known[0]}")
        if not known:
            stock = one(self.database, "SELECT available FROM stock WHERE sku = ?", request.sku)
            if stock is None or stock[0] < request.quantity:
                raise Refused(f"out of stock: {request.sku}")
            self.database.execute("UPDATE stock SET available = available - ? WHERE sku = ?", (request.quantity, request.sku))
            self.database.execute("INSERT INTO reservation VALUES (?, ?, ?, 'RESERVED')", (request.order_id, request.sku, request.quantity))
        return self.pb.StepReply(order_id=request.order_id)

    def release(self, request):
        known = one(self.database, "SELECT state, sku, quantity FROM reservation WHERE order_id = ?", request.order_id)
        undone = known is not None and known[0] == "RESERVED"
        if undone:
            self.database.execute("UPDATE stock SET available = available + ? WHERE sku = ?", (known[2], known[1]))
            self.database.execute("UPDATE reservation SET state = 'RELEASED' WHERE order_id = ?", (request.order_id,))
        elif known is None:
            self.database.execute("INSERT INTO reservation VALUES (?, NULL, NULL, 'VOID')", (request.order_id,))
        return self.pb.UndoReply(order_id=request.order_id, undone=undone)


class Payment:
    topic = "saga_payment_request"
    schema = """
        CREATE TABLE IF NOT EXISTS account (customer TEXT PRIMARY KEY, initial INTEGER NOT NULL, balance INTEGER NOT NULL CHECK (balance >= 0));
        CREATE TABLE IF NOT EXISTS payment (order_id TEXT PRIMARY KEY, customer TEXT, amount INTEGER, state TEXT NOT NULL);
        CREATE TABLE IF NOT EXISTS ledger (id INTEGER PRIMARY KEY, order_id TEXT NOT NULL, customer TEXT NOT NULL, kind TEXT NOT NULL, amount INTEGER NOT NULL);
    """

    def __init__(self, pb, database):
        self.pb, self.database = pb, database
        self.methods = {
            "/saga.v1.PaymentService/Pay": (pb.PayRequest, self.pay),
            "/saga.v1.PaymentService/Refund": (pb.UndoRequest, self.refund),
        }

    def seconds_of(self, request):
        """How long the simulated bank takes."""
        return SLOW_SECONDS if getattr(request, "card", "") == "slow" else 0

    def pay(self, request):
        known = one(self.database, "SELECT state FROM payment WHERE order_id = ?", request.order_id)
        if known and known[0] != "TAKEN":
            raise Refused(f"the payment was given up before: {known[0]}")
        if not known:
            balance = one(self.database, "SELECT balance FROM account WHERE customer = ?", request.customer)
            if request.card == "blocked":
                raise Refused("declined: the card is blocked")
            if balance is None or balance[0] < request.amount_minor:
                raise Refused("declined: not enough money")
            self.move(request.order_id, request.customer, "CHARGE", request.amount_minor)
            self.database.execute(
                "INSERT INTO payment VALUES (?, ?, ?, 'TAKEN')", (request.order_id, request.customer, request.amount_minor)
            )
        return self.pb.StepReply(order_id=request.order_id)

    def refund(self, request):
        known = one(self.database, "SELECT state, customer, amount FROM payment WHERE order_id = ?", request.order_id)
        undone = known is not None and known[0] == "TAKEN"
        if undone:
            self.move(request.order_id, known[1], "REFUND", known[2])
            self.database.execute("UPDATE payment SET state = 'REFUNDED' WHERE order_id = ?", (request.order_id,))
        elif known is None:
            self.database.execute("INSERT INTO payment VALUES (?, NULL, NULL, 'VOID')", (request.order_id,))
        return self.pb.UndoReply(order_id=request.order_id, undone=undone)

    def move(self, order_id, customer, kind, amount):
        change = -amount if kind == "CHARGE" else amount
        self.database.execute("UPDATE account SET balance = balance + ? WHERE customer = ?", (change, customer))
        self.database.execute("INSERT INTO ledger (order_id, customer, kind, amount) VALUES (?, ?, ?, ?)", (order_id, customer, kind, amount))


class Orders:
    topic = "saga_order_request"
    schema = "CREATE TABLE IF NOT EXISTS orders (order_id TEXT PRIMARY KEY, state TEXT NOT NULL);"

    def __init__(self, pb, database):
        self.pb, self.database = pb, database
        self.methods = {
            "/saga.v1.OrderService/Confirm": (pb.ConfirmRequest, self.confirm),
            "/saga.v1.OrderService/Cancel": (pb.UndoRequest, self.cancel),
        }

    def confirm(self, request):
        known = one(self.database, "SELECT state FROM orders WHERE order_id = ?", request.order_id)
        if known and known[0] == "CANCELLED":
            raise Refused("the order was cancelled before")
        self.database.execute("INSERT OR IGNORE INTO orders VALUES (?, 'CONFIRMED')", (request.order_id,))
        return self.pb.StepReply(order_id=request.order_id)

    def cancel(self, request):
        known = one(self.database, "SELECT state FROM orders WHERE order_id = ?", request.order_id)
        self.database.execute("INSERT OR REPLACE INTO orders VALUES (?, 'CANCELLED')", (request.order_id,))
        return self.pb.UndoReply(order_id=request.order_id, undone=known is not None and known[0] == "CONFIRMED")


# ---- broken on purpose, to see that the audit notices ------------------------


class ForgetfulPayment(Payment):
    """Says that it gives money back, and does not."""

    def refund(self, request):
        known = one(self.database, "SELECT state FROM payment WHERE order_id = ?", request.order_id)
        return self.pb.UndoReply(order_id=request.order_id, undone=known is not None)


class DoublePayment(Payment):
    """Takes a request that comes again for a new one."""

    keeps_answers = False

    def pay(self, request):
        self.database.execute("DELETE FROM payment WHERE order_id = ? AND state = 'TAKEN'", (request.order_id,))
        return super().pay(request)


SERVICES = {
    "inventory": Inventory, "payment": Payment, "orders": Orders,
    "payment-forgets-refunds": ForgetfulPayment, "payment-twice": DoublePayment,
}  # fmt: skip
