"""What is killed when. All of it follows from the seed; how far each process is
by then does not, which is the point."""

import random
import signal
import time

from harness import Failure, check, tail

POINTS = {
    # Written down but not called; answered but not written down; undone but not written down.
    "orchestrator": [("answered", 40, 160), ("started", 40, 160), ("undone", 4, 12)],
    # Nothing done; done but nobody told; told, but the offset is not committed.
    "worker": [("after-commit", 6, 20), ("before-commit", 6, 20), ("after-reply", 6, 20)],
}
KILLS = ["orchestrator", "inventory", "payment", "orders", "gateway-1", "gateway-2"]
PAUSES = ["payment", "inventory"]
PAUSE_SECONDS = 5.5
RESTART_SECONDS = (0.2, 1.0)
EXIT_START_AGAIN = 75  # as worker.py ends when Kafka has taken its place away


class Supervised:
    """A process that is started again whenever it has been killed."""

    def __init__(self, name, start, points, rng):
        self.name, self.start, self.points, self.rng = name, start, points, rng
        self.process, self.again_at, self.continue_at = None, 0.0, None
        self.lives, self.died_at, self.killed = 0, [], 0

    def begin(self):
        point = self.points.pop(0) if self.points else None
        self.point = point and f"{point[0]}:{self.rng.randint(*point[1:])}"
        self.lives += 1
        self.process = self.start(f"{self.name}.{self.lives}", {"SAGA_CRASH": self.point} if self.point else {})

    def look(self):
        now = time.monotonic()
        if self.process is None:
            if now >= self.again_at:
                self.begin()
        elif self.process.alive():
            if self.continue_at is not None and now >= self.continue_at:
                self.process.signal(signal.SIGCONT)
                self.continue_at = None
        else:
            code = self.process.exit_code(1)
            if code == EXIT_START_AGAIN:
                self.died_at.append("asked to be started again")
            elif code == -signal.SIGKILL:
                self.died_at.append(self.point.partition(":")[0] if not self.killed and self.point else "signal")
            else:
                raise Failure(f"{self.process.name} ended by itself with {code}\n{tail(self.process.stderr)}")
            self.killed, self.process, self.continue_at = 0, None, None
            self.again_at = now + self.rng.uniform(*RESTART_SECONDS)

    def kill(self):
        if self.process is None or not self.process.alive():
            return False
        self.killed = 1
        self.process.signal(signal.SIGKILL)
        return True

    def pause(self):
        if self.process is None or not self.process.alive() or self.continue_at is not None:
            return False
        self.process.signal(signal.SIGSTOP)
        self.continue_at = time.monotonic() + PAUSE_SECONDS
        return True

    def settle(self):
        """No more of its own deaths: whoever is dead comes back for good."""
        self.points = []
        if self.process is not None and self.continue_at is not None:
            self.process.signal(signal.SIGCONT)
            self.continue_at = None


class Chaos:
    def __init__(self, supervised, orders, rounds, seed):
        self.supervised = {one.name: one for one in supervised}
        rng = random.Random(seed)
        deeds = [(getattr(Supervised, kind), name) for kind, names in (("kill", KILLS), ("pause", PAUSES)) for name in names]
        deeds = [deed for _ in range(rounds) for deed in rng.sample(deeds, len(deeds))]
        # Between the first and the last twentieth of the orders.
        moments = sorted(rng.uniform(0.05, 0.95) * orders for _ in deeds)
        self.plan = list(zip(moments, deeds, strict=True))
        self.done = []

    def look(self, finished):
        for one in self.supervised.values():
            one.look()
        if self.plan and finished >= self.plan[0][0]:
            deed, name = self.plan[0][1]
            if deed(self.supervised[name]):
                self.done.append((deed.__name__, name))
                self.plan.pop(0)

    def table(self):
        """Of each process how it died, and how often it was paused."""
        return [
            (name, len(one.died_at), sum(1 for place in one.died_at if place == "signal"),
             ", ".join(place for place in one.died_at if place != "signal") or "-",
             sum(1 for deed in self.done if deed == ("pause", name)))
            for name, one in self.supervised.items()
        ]  # fmt: skip

    def check_that_it_raged(self):
        for name, died, *_ in self.table():
            check(died > 0, f"{name} was never killed; this run has shown too little")


def points_for(name, orders, rounds, rng):
    """The places where the first lives of a process end; further apart where
    there are more orders."""
    if name.startswith("gateway"):
        return []
    wide = max(1, orders // (300 * rounds))
    points = [(place, low * wide, high * wide) for place, low, high in POINTS["orchestrator" if name == "orchestrator" else "worker"] * rounds]
    rng.shuffle(points)
    return points
