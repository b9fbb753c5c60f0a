"""Links and anchors: in the sources by GitHub's rules, in the built pages by mdBook's."""

import posixpath
import re
import urllib.parse
from html.parser import HTMLParser

from stage import BUILT, FENCE, MAY_BE_MISSING, ROOT, is_external, links_of, resolved


def anchors_of(text):
    """The anchors that GitHub gives to headings."""
    fence, seen, found = None, {}, set()
    for line in text.splitlines():
        mark = FENCE.match(line)
        if mark and (fence is None or (mark[2].startswith(fence) and not mark[3].strip())):
            fence = mark[2] if fence is None else None
            continue
        heading = re.match(r"^#{1,6}\s+(.*?)\s*#*$", line) if fence is None else None
        if not heading:
            continue
        words = re.sub(r"!?\[([^\]]*)\]\([^)]*\)", r"\1", heading[1])
        slug = re.sub(r"[^\w\- ]", "", words.lower()).replace(" ", "-")
        times = seen[slug] = seen.get(slug, -1) + 1
        found.add(f"{slug}-{times}" if times else slug)
    return found


def check_sources(names):
    """Every link in these files; returns how many, and what is wrong."""
    count, wrong = 0, []
    for name in names:
        for line, target in links_of((ROOT / name).read_text()):
            count += 1
            where = f"{name}:{line}: {target}"
            if is_external(target):
                parts = urllib.parse.urlsplit(target)
                if parts.scheme not in ("http", "https") or "." not in parts.netloc and not parts.netloc.startswith("127."):
                    wrong.append(f"{where} is no address")
                continue
            path, anchor = resolved(name, urllib.parse.unquote(target))
            if path.startswith(".."):
                wrong.append(f"{where} leads out of the repository")
            elif not (ROOT / path).exists():
                if path not in MAY_BE_MISSING:
                    wrong.append(f"{where} is not there")
            elif anchor and (ROOT / path).suffix == ".md" and anchor not in anchors_of((ROOT / path).read_text()):
                wrong.append(f"{where}: {path} has no such heading")
    return count, wrong


class Page(HTMLParser):
    """Ids and links of a built page."""

    def __init__(self, text):
        super().__init__()
        self.ids, self.targets = set(), []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        values = dict(attributes)
        if values.get("id"):
            self.ids.add(values["id"])
        for name in ("href", "src"):
            if values.get(name):
                self.targets.append(values[name])


def check_built():
    """Every link of every built page, by what mdBook made of it."""
    built = {str(file.relative_to(BUILT)): Page(file.read_text()) for file in BUILT.rglob("*.html")}
    count, wrong = 0, set()
    for name, page in built.items():
        # print.html is all pages in one; 404.html is served from anywhere.
        if name in ("print.html", "404.html", "toc.html"):
            continue
        for target in page.targets:
            if is_external(target) or target.startswith("//"):
                continue
            count += 1
            path, _, anchor = urllib.parse.unquote(target).partition("#")
            other = posixpath.normpath(posixpath.join(posixpath.dirname(name), path)) if path else name
            if other.removesuffix(".html") + ".md" in MAY_BE_MISSING:
                continue
            if not (BUILT / other).is_file():
                wrong.add(f"the built {name} links to {target}, which is not there")
            elif anchor and other in built and anchor not in built[other].ids:
                wrong.add(f"the built {name} links to {target}: no such anchor")
    return len(built), count, sorted(wrong)
