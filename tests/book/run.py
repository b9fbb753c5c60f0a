#!/usr/bin/env python3
"""The book: builds it, follows its links, and runs the code on its pages.

    tests/book/run.py --antiphon target/release/antiphon
    tests/book/run.py --antiphon ... --page docs/quickstart.md
    tests/book/run.py --build

builds the book into target/book with mdBook, where a warning is a mistake;
checks each link and anchor, in the sources and in what was built; and runs,
compiles or parses each code block (blocks.py says how). It ends with
"N passed, N failed". `--build` only builds.

Needs Python 3.11, Go, Node 20 with npm, Java 17, Maven and cargo, since the
quick start has a client in each language; the rest goes into .cache.
"""

import argparse
import hashlib
import os
import runpy
import subprocess
import sys
import time
import venv
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
VENV = ROOT / ".cache" / "book-venv"
TOOLS = ROOT / ".cache" / "book"
# Beside docs/*.md.
TOP = ["README.md", "ARCHITECTURE.md", "CONTRIBUTING.md", "SECURITY.md", "CHANGELOG.md"]
# Pages whose commands speak to a gateway that is there already.
WITH_A_GATEWAY = {"README.md", "docs/observability.md"}
# How many blocks of a page are not run, each with its reason in its first line.
NOT_RUN = {
    "README.md": 3,
    "CONTRIBUTING.md": 5,
    "docs/failures.md": 2,
    "docs/observability.md": 1,
    "docs/frameworks.md": 1,
    "docs/migrating.md": 1,
    "docs/performance.md": 1,
    "docs/quickstart.md": 2,
    "docs/kubernetes.md": 1,
    "docs/shipping.md": 2,
    "docs/why.md": 2,
    "docs/workers.md": 2,
}
# Pages whose commands another suite runs, which has to name the page.
RUN_ELSEWHERE = {"docs/runbook.md": "tests/incidents"}
# Pages that came without words for their blocks: their commands are not run, and what is
# wrong with their other blocks is printed and does not count. To be emptied.
NOT_MARKED_YET = set()


def prepare_venv():
    files = [HERE / "requirements.txt", *([] if "MDBOOK" in os.environ else [HERE / "mdbook.txt"])]
    pins = b"".join(file.read_bytes() for file in files)
    stamp, wanted = VENV / "pins", hashlib.sha256(pins).hexdigest()
    python = VENV / "bin" / "python"
    if not (stamp.is_file() and stamp.read_text() == wanted):
        print(f"preparing {VENV.relative_to(ROOT)}", flush=True)
        venv.create(VENV, with_pip=True, clear=True)
        pip = [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
        for file in files:
            subprocess.run([*pip, "-r", str(file)], check=True)
        stamp.write_text(wanted)
    return python


def named_in(folder, page):
    name = Path(page).name
    return any(name in file.read_text(errors="replace") for file in folder.rglob("*") if file.suffix in (".py", ".sh", "") and file.is_file())


def main():
    arguments = argparse.ArgumentParser(description="Builds and tests the book.")
    arguments.add_argument("--antiphon", type=Path, default=ROOT / "target" / "release" / "antiphon")
    arguments.add_argument("--page", action="append", help="only the blocks of this page; may be given again")
    arguments.add_argument("--build", action="store_true", help="only build")
    options = arguments.parse_args()
    python = prepare_venv()
    if Path(sys.prefix).resolve() != VENV.resolve():
        os.execve(python, [str(python), *sys.argv], {**os.environ, "PYTHONDONTWRITEBYTECODE": "1"})

    sys.path.insert(0, str(HERE))
    import blocks
    import links
    import selftest
    import stage

    started, passed, failed = time.monotonic(), 0, 0

    def judge(what, wrong):
        nonlocal passed, failed
        print(f"{'ok  ' if not wrong else 'FAIL'} {what} [{time.monotonic() - started:.0f} s]", flush=True)
        for words in wrong:
            print(f"  {words}", flush=True)
        passed, failed = passed + (not wrong), failed + bool(wrong)

    try:
        listed, missing = stage.build(os.environ.get("MDBOOK", VENV / "bin" / "mdbook"))
        words = f"; not there yet: {', '.join(missing)}" if missing else ""
        judge(f"mdBook builds {len(listed)} pages without a warning, into {stage.BUILT.relative_to(ROOT)}{words}", [])
        files, count, wrong = links.check_built()
        judge(f"{count} links in {files} built pages", wrong)
    except stage.Wrong as error:
        judge("mdBook builds the book", [str(error)])
    if options.build:
        sys.exit(1 if failed else 0)

    pages = [*TOP, *sorted(f"docs/{file.name}" for file in (ROOT / "docs").glob("*.md"))]
    others = sorted(str(file.relative_to(ROOT)) for folder in ("bench", "examples") for file in (ROOT / folder).rglob("*.md") if "node_modules" not in file.parts)
    count, wrong = links.check_sources([*pages, *others])
    judge(f"{count} links in {len(pages) + len(others)} sources", wrong)

    e2e = runpy.run_path(str(ROOT / "tests" / "e2e" / "run.py"))
    e2e["prepare_grpcurl"]()
    TOOLS.mkdir(parents=True, exist_ok=True)
    (TOOLS / "bin").mkdir(exist_ok=True)
    grpcurl = TOOLS / "bin" / "grpcurl"
    grpcurl.unlink(missing_ok=True)
    grpcurl.symlink_to(e2e["GRPCURL"])
    path = f"{TOOLS / 'bin'}:{os.environ['PATH'].removeprefix(f'{VENV}/bin:')}"
    # What was compiled for tests/clients is not compiled again.
    environment = {"CARGO_TARGET_DIR": str(ROOT / ".cache" / "clients" / "rust"), "PYTHONDONTWRITEBYTECODE": "1"}

    count, wrong = selftest.mistakes(options.antiphon.resolve(), path, environment)
    judge(f"what these tests are there for is noticed, {count} cases", wrong)

    not_run = {}
    for page in options.page or pages:
        if not blocks.blocks_of(page):
            continue
        elsewhere = "not marked yet" if page in NOT_MARKED_YET else f"run by {RUN_ELSEWHERE[page]}" if page in RUN_ELSEWHERE else None
        counts, wrong = blocks.check_page(page, options.antiphon.resolve(), path, environment, page in WITH_A_GATEWAY, elsewhere)
        not_run[page] = counts.get("not run", 0) + counts.get("not marked yet", 0)
        if page in RUN_ELSEWHERE and not named_in(ROOT / RUN_ELSEWHERE[page], page):
            wrong.append(f"{page}: no file of {RUN_ELSEWHERE[page]} names it, so nothing runs its commands")
        if page in NOT_MARKED_YET:
            for words in wrong:
                print(f"     not counted: {words}")
            wrong = []
        elif not_run[page] != NOT_RUN.get(page, 0):
            wrong.append(f"{page}: {not_run[page]} blocks are not run, and NOT_RUN in tests/book/run.py says {NOT_RUN.get(page, 0)}")
        judge(f"blocks of {page}: {', '.join(f'{number} {done}' for done, number in counts.items())}", wrong)

    print(f"{sum(not_run.values())} blocks are not run")
    print(f"{passed} passed, {failed} failed")
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
