"""Whether the tests of the book notice what they are there for: each line below is
a page with one mistake. Run by run.py, in a second."""

import re
import tempfile
from pathlib import Path

import blocks
import links
import stage

FENCE = "```"
# A page, and what has to be said of it; an empty text for a page that is right.
BLOCKS = [
    (f"{FENCE}sh\ntrue\n{FENCE}\n", ""),
    (f"{FENCE}sh\nfalse\n{FENCE}\n", "ended with 1"),
    (f"{FENCE}console\n$ echo one\ntwo\n{FENCE}\n", "printed:\none"),
    (f"{FENCE}console\n$ printf 'one\\ntwo\\nthree\\n'\n...\nthree\n{FENCE}\n", ""),
    (f"{FENCE}console\n$ printf 'one\\ntwo\\n'\n...\nthree\n{FENCE}\n", "the page says"),
    (f"{FENCE}sh\necho one\n{FENCE}\n{FENCE}text output\ntwo\n{FENCE}\n", "what was printed"),
    (f"{FENCE}json\n{{\n{FENCE}\n", "json"),
    (f"{FENCE}yaml\na: [\n{FENCE}\n", "yaml"),
    (f"{FENCE}toml\n[grpc]\nlisten = \"127.0.0.1:1\"\n{FENCE}\n", ""),
    (f"{FENCE}toml\n[grpc]\nlitsen = 1\n{FENCE}\n", "unknown setting"),
    (f"{FENCE}proto\nservice S {{ rpc A(B) returns (C); }}\n{FENCE}\n", ""),
    (f"{FENCE}proto\nservice S {{ option (antiphon.v1.kafka_defaults) = {{ topic: \"t\" }}; rpc A(B) returns (C); }}\n{FENCE}\n", "topic"),
    (f"{FENCE}python\nprint()\n{FENCE}\n", "nothing says how it is run"),
    (f"{FENCE}python file: a.py\nprint(1)\n{FENCE}\n{FENCE}console\n$ python3 a.py\n2\n{FENCE}\n", "the page says"),
    (f"{FENCE}python\n{{{{#include ../README.md}}}}\n{FENCE}\n", "nothing runs README.md"),
    (f"{FENCE}python\n{{{{#include ../examples/workers/python/worker.py:nowhere}}}}\n{FENCE}\n", "ANCHOR: nowhere"),
    (f"{FENCE}sh\ntrue\n", "does not end"),
]
LINKS = [
    ("[a](../README.md)", ""),
    ("[a](../README.md#two-commands)", ""),
    ("[a](../README.md#three-commands)", "no such heading"),
    ("[a](nowhere.md)", "is not there"),
    ("[a](#here)\n\n# Here\n", ""),
    ("[a](#there)\n\n# Here\n", "no such heading"),
    ("[a](https:example)", "is no address"),
    ("[a](../../outside.md)", "leads out"),
    ("`[a](nowhere.md)`", ""),
]


def mistakes(antiphon, path, environment):
    """What is noticed and should not be, or the other way round."""
    wrong = []

    def judge(text, expected, found):
        if bool(found) != bool(expected) or expected and not re.search(re.escape(expected), "\n".join(found)):
            wrong.append(f"of {text!r} was said {found}, and not {expected!r}")

    with tempfile.NamedTemporaryFile("w", dir=stage.ROOT / "docs", prefix=".selftest-", suffix=".md") as file:
        page = f"docs/{Path(file.name).name}"

        def write(text):
            file.seek(0)
            file.truncate()
            file.write(text)
            file.flush()

        for text, expected in BLOCKS:
            write(text)
            try:
                _, found = blocks.check_page(page, antiphon, path, environment, gateway=False)
            except stage.Wrong as error:
                found = [str(error)]
            judge(text, expected, found)
        for text, expected in LINKS:
            write(text)
            judge(text, expected, links.check_sources([page])[1])
    return len(BLOCKS) + len(LINKS), wrong
