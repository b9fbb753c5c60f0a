"""docs/runbook.md as a program reads it: sections of alerts and their commands."""

import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PAGE, RULES = ROOT / "docs/runbook.md", ROOT / "deploy/prometheus/alerts.yml"
# What every section has, in this order.
PARTS = ["Means", "See", "Do", "Escalate", "Do not"]


def sections():
    """Alert to part to text."""
    found = {}
    for section in re.split(r"^## ", PAGE.read_text(), flags=re.MULTILINE)[1:]:
        name, _, body = section.partition("\n")
        if not name.startswith("Antiphon"):
            continue
        pieces = re.split(r"^\*\*([A-Z][A-Za-z ]+)\.\*\*", body, flags=re.MULTILINE)
        found[name.strip()] = dict(zip(pieces[1::2], pieces[2::2], strict=True))
    return found


def commands(alert, part):
    """The code blocks of a part, each a script for bash."""
    return re.findall(r"^```sh\n(.*?)^```", sections()[alert][part], re.MULTILINE | re.DOTALL)


def rules():
    """Alert to the anchor in its annotation."""
    found = {}
    for rule in RULES.read_text().split("- alert: ")[1:]:
        url = re.search(r'runbook_url: "?([^"\s]+)"?', rule)
        found[rule.split("\n", 1)[0].strip()] = url and url[1]
    return found


def check():
    """Says what it has found to be right, or ends the process."""
    wrong, alerts, found = [], rules(), sections()
    for alert, url in alerts.items():
        if url != f"docs/runbook.md#{alert.lower()}":
            wrong.append(f"{alert}: its runbook_url is {url}, not docs/runbook.md#{alert.lower()}")
        if alert not in found:
            wrong.append(f"{alert}: {PAGE.name} has no section of it")
    for alert, parts in found.items():
        if alert not in alerts:
            wrong.append(f"{PAGE.name} has a section of {alert}, which no rule is named")
        if list(parts) != PARTS:
            wrong.append(f"{alert}: its parts are {list(parts)}, not {PARTS}")
            continue
        if not commands(alert, "See"):
            wrong.append(f"{alert}: no command shows it")
        for script in [*commands(alert, "See"), *commands(alert, "Do")]:
            parsed = subprocess.run(["bash", "-n", "-c", script], capture_output=True, text=True, check=False)
            if parsed.returncode != 0:
                wrong.append(f"{alert}: {parsed.stderr}")
    if wrong:
        sys.exit("\n".join(["docs/runbook.md and deploy/prometheus/alerts.yml differ:", *wrong]))
    return f"{len(alerts)} alerts, each with its section in docs/runbook.md, whose commands parse"
