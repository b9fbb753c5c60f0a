"""The sample Python worker, gone wrong on demand.

The variable FAULT is `garbage=FILE`, and while that file is there every answer is
an error page instead of a message; or `hang=FILE`, and the first record after that file appears is never
done: the process that meets it takes the file away and sleeps for good, while
Kafka's client goes on telling the group that all is well.
"""

import os
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "examples/workers/python"))

import worker  # noqa: E402

FAULT = os.environ.get("FAULT", "")
PAGE = b"<html><body><h1>502 Bad Gateway</h1></body></html>"


class Handler(worker.Handler):
    def handle(self, record):
        kind, _, file = FAULT.partition("=")
        if kind == "hang":
            try:
                os.unlink(file)
            except FileNotFoundError:
                pass
            else:
                worker.log.error("hangs at %s[%d]@%d", record.topic(), record.partition(), record.offset())
                while True:
                    time.sleep(60)
        super().handle(record)

    def _reply(self, record, headers, value, errors):
        kind, _, file = FAULT.partition("=")
        is_garbage = kind == "garbage" and os.path.exists(file)
        super()._reply(record, headers, PAGE if is_garbage else value, errors)


def consumer(settings):
    """By its name in the group's description, and gone from it sooner."""
    return Consumer({**settings, "client.id": os.environ["WORKER_NAME"], "session.timeout.ms": 6_000})


Consumer, worker.Consumer, worker.Handler = worker.Consumer, consumer, Handler

if __name__ == "__main__":
    worker.main()
