"""The published table, from the lines that the checks wrote."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.scale import publish


def test_figures_become_a_table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "figures"
    monkeypatch.setenv("PENSTOCK_FIGURES", str(file))
    publish(6, "restarts", s_longest_recovery=3.44)
    publish(1, "admissions", admissions=1_000_123, over_admissions=0)
    command = [sys.executable, "-m", "tests.faults.ledger.table", str(file)]
    printed = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert printed.splitlines()[2:] == [
        "| 1 | admissions | 1,000,123 admissions, 0 over admissions |",
        "| 6 | restarts | 3.4 s longest recovery |",
    ]
