"""How many connections fit, in a process of its own: what is raised can't be taken back."""

from __future__ import annotations

import subprocess
import sys

import pytest

PROGRAM = """
import logging, resource, sys
from server.open_files import room_for
logging.basicConfig(format="%(message)s", stream=sys.stdout)
soft, hard, wanted = map(int, sys.argv[1:])
resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
print(room_for(wanted), resource.getrlimit(resource.RLIMIT_NOFILE)[0])
"""


@pytest.mark.parametrize(
    ("soft", "hard", "wanted", "printed"),
    [
        (2048, 2048, 1000, ["1000 2048"]),
        (1024, 4096, 1000, ["1000 1512"]),
        (
            1024,
            2048,
            10_000,
            ["at most 1536 connections instead of 10000: this process may open 2048 files (ulimit -n)", "1536 2048"],
        ),
    ],
)
def test_as_many_as_wanted_or_as_allowed(soft: int, hard: int, wanted: int, printed: list[str]) -> None:
    command = [sys.executable, "-c", PROGRAM, *map(str, (soft, hard, wanted))]
    assert subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines() == printed
