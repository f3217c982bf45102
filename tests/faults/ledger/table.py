"""What a soak measured, as a Markdown table: python -m tests.faults.ledger.table FILE."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any


def table(rows: Iterable[Mapping[str, Any]]) -> str:
    head = ["| # | check | measured |", "|---|---|---|"]
    lines = [
        f"| {row['check']} | {row['what']} | {', '.join(f'{number(v)} {name}' for name, v in row['figures'].items())} |"
        for row in sorted(rows, key=lambda row: int(row["check"]))
    ]
    return "\n".join(head + lines)


def number(value: float) -> str:
    return f"{value:,.1f}" if isinstance(value, float) and value < 100 else f"{value:,.0f}"


if __name__ == "__main__":
    print(table(map(json.loads, Path(sys.argv[1]).read_text().splitlines())))
