"""What an operator does with payments that timed out: finds out whether they
were carried out, one by one, until none is in doubt.

    reconcile.py --antiphon BINARY --bootstrap HOST:PORT --third-party URL

Reads the dead letters of payment_request. One whose outcome came late, and
stands beside it, is known by that. Any other is asked for at the third party,
under the reference that the worker used; `void` says what became of it, and
what was not done by then never will be. Prints a line of JSON for each.
"""

import argparse
import json
import subprocess
import sys
import urllib.request
from pathlib import Path

LETTERS_MAX = 100_000
DONE, NOT_DONE = "done", "not done"
# What the worker answers says it for these; any other status is no outcome.
BY_STATUS = {"OK": DONE, "FAILED_PRECONDITION": NOT_DONE}
BY_STATE = {"approved": DONE, "refunded": DONE, "declined": NOT_DONE, "void": NOT_DONE}
PREFIX = {"/shop.payments.v1.PaymentService/Pay": "pay-", "/shop.payments.v1.PaymentService/Refund": "refund-"}


def post(url, what):
    request = urllib.request.Request(url, json.dumps(what).encode(), {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=60) as answer:
        return json.loads(answer.read() or "null")


def letters(antiphon, bootstrap):
    command = [
        str(antiphon), "dlq", "list", "payment_request", "--bootstrap-servers", bootstrap, "--json",
        "--limit", str(LETTERS_MAX),
    ]  # fmt: skip
    ran = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    if ran.returncode != 0:
        sys.exit(f"antiphon dlq list: {ran.stderr}")
    return [json.loads(line) for line in ran.stdout.splitlines()]


def ask(third_party, reference, order):
    return BY_STATE[post(f"{third_party}/void", {"reference": reference, "order_id": order})["state"]]


def settle(third_party, letter):
    method = letter["method"] if letter["method"].startswith("/") else f"/{letter['method']}"
    reference = PREFIX[method] + letter["key"]
    late = letter["late_reply"]
    known = BY_STATUS.get(late["status"]) if late else None
    by = "late outcome" if known else "third party"
    known = known or ask(third_party, reference, letter["key"])
    return {"reference": reference, "known": known, "by": by, "late": bool(late)}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--antiphon", type=Path, required=True)
    parser.add_argument("--bootstrap", required=True)
    parser.add_argument("--third-party", required=True)
    options = parser.parse_args()
    for letter in letters(options.antiphon, options.bootstrap):
        print(json.dumps(settle(options.third_party, letter)))


if __name__ == "__main__":
    main()
