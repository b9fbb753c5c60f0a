"""Runs the parts, prints their tables, and looks for secrets in all that was
printed on the way."""

import argparse
import importlib
import os
import shutil
import sys
import tempfile
import time
from pathlib import Path

from broker import Broker
from common import Secrets
from harness import Failure

PARTS = ["kafka", "identities", "abuse"]


class Bench:
    """What the parts work with: a folder, a broker, children that end with it."""

    def __init__(self, options):
        self.antiphon, self.quick, self.attack = options.antiphon, options.quick, options.attack
        self.folder = Path(tempfile.mkdtemp(prefix="antiphon-security-"))
        self.secrets = Secrets()
        self.children, self.tables = [], []
        self.broker = None

    def start(self):
        self.broker = Broker(self.folder, self.secrets)

    def child(self, process):
        self.children.append(process)
        return process

    def end(self):
        for process in reversed(self.children):
            process.end()
        if self.broker is not None:
            self.broker.stop()

    def leaks(self):
        """Files of output that hold a secret. Configuration and keys are inputs."""
        found = []
        for path in [*self.folder.glob("*.out"), *self.folder.glob("*.err"), *self.folder.glob("*.page")]:
            found += [f"{path.name}: {leak}" for leak in self.secrets.found_in(path.read_text(errors="replace"))]
        return found


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--antiphon", type=Path, required=True)
    parser.add_argument("--quick", action="store_true", help="what CI has time for")
    parser.add_argument("--markdown", type=Path, help="write the tables there, too")
    parser.add_argument("--attack", help="of HTTP/2 abuse only this one, such as slow_reader")
    parser.add_argument("parts", nargs="*", choices=[[], *PARTS], metavar="PART", help=", ".join(PARTS))
    options = parser.parse_args()
    options.antiphon = options.antiphon.resolve()
    bench, began, wrong = Bench(options), time.monotonic(), []
    try:
        print("starting a broker", flush=True)
        bench.start()
        for name in options.parts or PARTS:
            print(f"{name} ({time.monotonic() - began:.0f} s)", flush=True)
            importlib.import_module(name).run(bench)
    except Failure as failure:
        wrong.append(str(failure))
    finally:
        bench.end()
    wrong += [line for table in bench.tables for line in table.wrong]
    wrong += [f"a secret is shown in {leak}" for leak in bench.leaks()]
    load = ", ".join(f"{load:.1f}" for load in os.getloadavg())
    text = "\n".join(table.markdown() for table in bench.tables)
    text += f"\n{os.cpu_count()} cores, load average {load}; {len(bench.secrets.known)} passwords and tokens, "
    text += f"{len(bench.leaks())} of them seen in any output\n"
    print(f"\n{text}")
    if options.markdown:
        options.markdown.write_text(text)
    if wrong:
        print("\n".join(["wrong:", *wrong, f"the processes' output is in {bench.folder}"]))
        sys.exit(1)
    shutil.rmtree(bench.folder)
    print(f"all right, in {time.monotonic() - began:.0f} s")


if __name__ == "__main__":
    main()
