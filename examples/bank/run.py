#!/usr/bin/env python3
"""Ten thousand calls that wait, and notifications that do not; README.md says
what is shown.

    examples/bank/run.py [--antiphon target/release/antiphon] [--quick]

This file only prepares; scenario.py is what is run.
"""

import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent / "stage"))
import prepare  # noqa: E402

if __name__ == "__main__":
    prepare.start(HERE)
