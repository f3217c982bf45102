"""How much a test does: a cut in `make test`, all of it in `make soak`. What it measured goes to PENSTOCK_FIGURES."""

from __future__ import annotations

import json
import os
from pathlib import Path

IS_SOAK = os.environ.get("PENSTOCK_SOAK") == "1"


def cut(ci: int, full: int) -> int:
    return full if IS_SOAK else ci


def publish(check: int, what: str, **figures: float) -> None:
    """One row of the published table (`tests.faults.ledger.table`); underscores in a figure's name are spaces."""
    row = {"check": check, "what": what, "figures": {name.replace("_", " "): value for name, value in figures.items()}}
    print(row)
    if path := os.environ.get("PENSTOCK_FIGURES"):
        with Path(path).open("a") as file:
            file.write(json.dumps(row) + "\n")
