"""The book's folder: what docs/SUMMARY.md lists, in the places that it has in the repository.

mdBook takes pages of one folder only, and the book has pages from all over the
repository: README, results of benchmarks, examples. So they are copied to
target/book-source, where links between them are good as they stand, with each
file that they link to.
"""

import posixpath
import re
import shutil
import subprocess
import textwrap
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
STAGE = ROOT / "target" / "book-source"
BUILT = ROOT / "target" / "book"
# Pages that SUMMARY.md lists and that may be missing: they are written elsewhere.
# Take out each one that has come. A page that SUMMARY.md does not list stands at the end of the book.
MAY_BE_MISSING = set()

INDEX = '<!doctype html><meta charset="utf-8"><meta http-equiv="refresh" content="0; url=FIRST"><a href="FIRST">Antiphon</a>\n'

LINK = re.compile(r"(?<!\\)\]\(<?([^)\s>]+)>?(?:\s+\"[^\"]*\")?\)|(?:href|src)=\"([^\"]+)\"")
FENCE = re.compile(r"^(\s*)(`{3,})(.*)$")
INCLUDE = re.compile(r"\{\{#include ([^}\s]+)\}\}")


class Wrong(Exception):
    """Something that a reader of the book would stumble over."""


def links_of(text):
    """Targets of links and images outside of code, with their lines."""
    fence = None
    for number, line in enumerate(text.splitlines(), 1):
        mark = FENCE.match(line)
        if mark and (fence is None or (mark[2].startswith(fence) and not mark[3].strip())):
            fence = mark[2] if fence is None else None
        elif fence is None:
            for match in LINK.finditer(re.sub(r"(`+)[^`]*\1", "", line)):
                yield number, match[1] or match[2]


def is_external(target):
    return re.match(r"[a-z][a-z0-9+.-]*:", target) is not None


def resolved(page, target):
    """A link's file in the repository, and its anchor."""
    path, _, anchor = target.partition("#")
    return posixpath.normpath(posixpath.join(posixpath.dirname(page), path)) if path else page, anchor


def included(page, name):
    """What `{{#include name}}` on that page brings."""
    path, _, anchor = name.partition(":")
    file = ROOT / posixpath.normpath(posixpath.join(posixpath.dirname(page), path))
    if not file.is_file():
        raise Wrong(f"{page}: includes {name}, which is not there")
    lines = file.read_text().splitlines()
    if anchor:
        starts = [at for at, line in enumerate(lines) if re.search(rf"ANCHOR: {re.escape(anchor)}\b", line)]
        ends = [at for at, line in enumerate(lines) if re.search(rf"ANCHOR_END: {re.escape(anchor)}\b", line)]
        if len(starts) != 1 or len(ends) != 1 or ends[0] <= starts[0] + 1:
            raise Wrong(f"{page}: {path} has no lines between ANCHOR: {anchor} and ANCHOR_END: {anchor}")
        lines = lines[starts[0] + 1 : ends[0]]
    text = "\n".join(line for line in lines if not re.search(r"\bANCHOR(_END)?: [\w-]+", line))
    return textwrap.dedent(text) + "\n"


def pages():
    """The pages in the order of SUMMARY.md, and the lines of the staged one."""
    found, lines, missing = [], [], []
    for line in (ROOT / "docs" / "SUMMARY.md").read_text().splitlines():
        entry = re.match(r"^(\s*(?:- )?\[[^\]]+\])\(([^)]+)\)$", line)
        if not entry:
            lines.append(line)
            continue
        page, _ = resolved("docs/SUMMARY.md", entry[2])
        if not (ROOT / page).is_file():
            if page not in MAY_BE_MISSING:
                raise Wrong(f"docs/SUMMARY.md lists {page}, which is not there")
            missing.append(page)
            continue
        if page in found:
            raise Wrong(f"docs/SUMMARY.md lists {page} twice")
        found.append(page)
        lines.append(f"{entry[1]}({page})")
    unlisted = sorted({f"docs/{file.name}" for file in (ROOT / "docs").glob("*.md")} - {*found, "docs/SUMMARY.md"})
    if unlisted:
        print(f"docs/SUMMARY.md does not list {', '.join(unlisted)}: put to the end", flush=True)
        lines += ["", "# More", "", *(f"- [{title(page)}]({page})" for page in unlisted)]
    return [*found, *unlisted], lines, missing


def title(page):
    return re.search(r"^# (.+)$", (ROOT / page).read_text(), re.MULTILINE)[1]


def without_words(text):
    """Fences as mdBook takes them: only the language, not what the tests are told."""
    lines, fence = [], None
    for line in text.splitlines():
        mark = FENCE.match(line)
        if mark and fence is None:
            fence = mark[2]
            line = f"{mark[1]}{mark[2]}{mark[3].strip().split(' ')[0]}"
        elif mark and mark[2].startswith(fence) and not mark[3].strip():
            fence = None
        lines.append(line)
    return "\n".join(lines) + "\n"


def write():
    """Fills the folder."""
    listed, summary, missing = pages()
    shutil.rmtree(STAGE, ignore_errors=True)
    source = STAGE / "src"
    assets = set()
    for page in listed:
        text = (ROOT / page).read_text()
        for _, target in links_of(text):
            if not is_external(target):
                path, _ = resolved(page, target)
                if not path.endswith(".md") and (ROOT / path).is_file():
                    assets.add(path)
        # Resolved here, since what is included need not be in the book's folder.
        text = INCLUDE.sub(lambda match, page=page: included(page, match[1]).rstrip("\n"), text)
        (source / page).parent.mkdir(parents=True, exist_ok=True)
        (source / page).write_text(without_words(text))
    for asset in assets:
        (source / asset).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(ROOT / asset, source / asset)
    (source / "SUMMARY.md").write_text("\n".join(summary) + "\n")
    shutil.copyfile(ROOT / "docs" / "book.toml", STAGE / "book.toml")
    return listed, missing


def build(mdbook):
    """Builds the book; a warning is a mistake."""
    listed, missing = write()
    shutil.rmtree(BUILT, ignore_errors=True)
    command = [str(mdbook), "build", str(STAGE), "--dest-dir", str(BUILT)]
    ran = subprocess.run(command, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, check=False)
    if ran.returncode != 0 or re.search(r"\b(WARN|ERROR)\b", ran.stdout):
        raise Wrong(f"mdbook build ended with {ran.returncode}:\n{ran.stdout}")
    # mdBook makes it of the first page, whose links are those of its folder.
    (BUILT / "index.html").write_text(INDEX.replace("FIRST", listed[0].removesuffix(".md") + ".html"))
    return listed, missing
