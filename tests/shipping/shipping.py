"""Runs the parts that run.py names."""

import argparse
import shutil
import sys
import time

import balancer
import chart
import files
import image
import release
from parts import ROOT, Failure, go_tool

NEEDED = {
    "chart": ["go", "promtool", "openssl"],
    "compose": ["go", "haproxy", "promtool"],
    "balancer": ["haproxy"],
    "image": ["go", "buildah", "crun", "ip", "unshare", "readelf"],
    "release": ["go", "bash", "zsh", "fish", "mandoc"],
    "crate": ["cargo"],
}
USUAL = ["chart", "compose", "balancer", "release", "image"]


def main():
    parser = argparse.ArgumentParser(description="Tries what ships; run.py prepares.")
    parser.add_argument("--antiphon", default=str(ROOT / "target/release/antiphon"))
    parser.add_argument("--broker", default=str(ROOT / "target/release/examples/dev_broker"))
    parser.add_argument("--static", help="the binary for the image, linked whole; built when not given")
    parser.add_argument("parts", nargs="*", metavar="PART")
    options = parser.parse_args()
    parts = options.parts or USUAL
    if unknown := set(parts) - set(NEEDED):
        parser.error(f"no such part: {', '.join(sorted(unknown))}; there are {', '.join(NEEDED)}")
    missing = sorted({tool for part in parts for tool in NEEDED[part] if shutil.which(tool) is None})
    if missing:
        print(f"missing: {', '.join(missing)}", file=sys.stderr)
        return 69
    lint = go_tool(ROOT / "tests/shipping/lint", "shipping-lint") if {"chart", "compose"} & set(parts) else None
    try:
        for part in parts:
            began = time.monotonic()
            {
                "chart": lambda: chart.part(options, lint),
                "compose": lambda: files.part(options, lint),
                "balancer": lambda: balancer.part(options),
                "image": lambda: image.part(options),
                "release": lambda: release.part(options),
                "crate": lambda: release.crate(options),
            }[part]()
            print(f"    {part}: {time.monotonic() - began:.0f} s", flush=True)
    except Failure as failure:
        print(f"FAILED: {failure}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
