"""What callers were told, what an operator found out, and what really happened:
the three must agree.

done          told so (OK), or found so by reconciliation
not done      told so (FAILED_PRECONDITION: declined), or found so
timed out     DEADLINE_EXCEEDED; in doubt until reconciled
charged twice an order with two charges in the third party's ledger, or two refunds
lost          in the ledger and not known as done, or known as done and not there
wrong         the reply to another call, or about another payment than the ledger has
in doubt      timed out, and still not known as either
failed        ended in any other way
"""

import collections

from reconcile import DONE, NOT_DONE
from stage import p50_p99, percentile

LIMIT_MS = 300
# A caller hears of its time-out a moment before the dead letter is safe.
LETTER_SECONDS = 1.0
PAYMENT_KINDS = 5
TOLD = {"OK": DONE, "FAILED_PRECONDITION": NOT_DONE}
REALLY = {"approved": DONE, "refunded": DONE, "declined": NOT_DONE, "void": NOT_DONE}


def reference(call):
    return f"{'refund' if call['kind'] == 'refund' else 'pay'}-{call['key']}"


class Account:
    def __init__(self, calls, calm, killed):
        self.calls, self.killed = calls, killed
        self.codes = collections.Counter(call["code"] for call in calls)
        answered = [call for call in calls if call["code"] in TOLD]
        # From when a call was due: one that was sent late has waited.
        self.whole = [call["sent"] + call["seconds"] - call["due"] for call in answered]
        self.outside = [whole - call.get("third_party", 0) for whole, call in zip(self.whole, answered)]
        calmly = [calm[0] <= call["due"] < calm[1] for call in answered]
        self.calm_whole = [whole for whole, inside in zip(self.whole, calmly) if inside]
        self.calm_outside = [outside for outside, inside in zip(self.outside, calmly) if inside]

    def without_letter(self, letters):
        """Calls whose dead letter may have died with the gateway: reference to order."""
        return {
            reference(call): call["key"]
            for call in self.calls
            if call["code"] == "DEADLINE_EXCEEDED"
            and reference(call) not in letters
            and abs(call["sent"] + call["seconds"] - self.killed) < LETTER_SECONDS
        }

    def settle(self, found, ledger):
        self.found = {one["reference"]: one for one in found}
        self.by = collections.Counter((one["by"], one["known"]) for one in self.found.values())
        self.late = sum(one["late"] for one in self.found.values())
        mine = {call["key"] for call in self.calls}
        entries = [entry for entry in ledger if entry["order_id"] in mine]
        self.repeats = sum(entry["repeats"] for entry in entries)
        happened = collections.Counter(
            (entry["kind"], entry["order_id"]) for entry in entries if REALLY[entry["state"]] == DONE
        )
        self.twice = sorted(order for order, times in happened.items() if times > 1)
        self.in_doubt, self.lost, self.wrong = [], [], [reference(call) for call in self.calls if call["wrong"]]
        known = set()
        for call in self.calls:
            kind = "refund" if call["kind"] == "refund" else "charge"
            told = TOLD.get(call["code"])
            if told is None and call["code"] == "DEADLINE_EXCEEDED":
                told = self.found.get(reference(call), {}).get("known")
                if told is None:
                    self.in_doubt.append(reference(call))
            if (told == DONE) != bool(happened[kind, call["key"]]):
                self.lost.append(reference(call))
            known.add((kind, call["key"]))
        # What was done without anybody having asked for it.
        self.lost += sorted(f"{kind} {order}" for kind, order in happened.keys() - known)
        self.compare(entries)

    def compare(self, entries):
        """Told names and partitions against the ledger's."""
        charges = {entry["order_id"]: entry["id"] for entry in entries if entry["state"] == "approved"}
        refunds = {entry["order_id"]: entry["charge_id"] for entry in entries if entry["state"] == "refunded"}
        for call in self.calls:
            if call["code"] != "OK":
                continue
            if call["kind"] != "refund" and charges.get(call["key"]) != call.get("shown"):
                self.wrong.append(reference(call))
            if call["kind"] == "refund" and call.get("record"):
                kind = 1 + len(refunds.get(call["key"], "")) % PAYMENT_KINDS
                if refunds.get(call["key"]) != charges.get(call["key"]) or call["record"].split("/")[1] != str(kind):
                    self.wrong.append(reference(call))

    def failed(self):
        return {code: n for code, n in self.codes.items() if code not in TOLD and code != "DEADLINE_EXCEEDED"}

    def rows(self):
        refunds = sum(call["kind"] == "refund" for call in self.calls)
        repeated = sum(call["attempts"] > 1 for call in self.calls)
        resent = sum(call.get("resent", 0) > 0 for call in self.calls)
        return [
            ("calls", f"{len(self.calls)}, {refunds} of them refunds"),
            ("  answered: done", self.codes["OK"]),
            ("  answered: declined", self.codes["FAILED_PRECONDITION"]),
            ("  timed out", self.codes["DEADLINE_EXCEEDED"]),
            ("  failed", self.failed() or 0),
            ("repeated by their callers", repeated),
            ("repeated by gRPC itself", resent),
            ("asked of the third party again", self.repeats),
            ("dead letters", sum(n for (by, _), n in self.by.items() if by != "caller")),
            ("  with a late outcome beside them", self.late),
            ("reconciled by the late outcome", self.told_by("late outcome")),
            ("reconciled at the third party", self.told_by("third party")),
            ("dead letter lost with the gateway", self.told_by("caller")),
            ("in doubt", len(self.in_doubt)),
            ("charged or refunded twice", len(self.twice)),
            ("lost", len(self.lost)),
            ("wrong", len(self.wrong)),
            ("outside the third party, no fault", p50_p99(self.calm_outside)),
            ("outside the third party, all", p50_p99(self.outside)),
            ("with it, no fault", p50_p99(self.calm_whole)),
        ]

    def told_by(self, by):
        return f"{self.by[by, DONE]} done, {self.by[by, NOT_DONE]} not done"

    def broken(self, latency):
        broken = []
        for words, found in (
            ("in doubt", self.in_doubt), ("charged twice", self.twice), ("lost", self.lost), ("wrong", self.wrong),
        ):  # fmt: skip
            if found:
                broken.append(f"{len(found)} {words}, such as {found[:3]}")
        if self.failed():
            broken.append(f"calls failed: {self.failed()}")
        # What makes the check worth something.
        if not self.codes["OK"] or not self.found or not self.late or not self.repeats:
            broken.append("nothing timed out, came late or was asked for again: the run proves nothing")
        p99 = percentile(self.calm_outside, 0.99) * 1e3
        if latency and not p99 < LIMIT_MS:
            broken.append(f"p99 outside the third party is {p99:.0f} ms; {LIMIT_MS} is the limit")
        return broken
