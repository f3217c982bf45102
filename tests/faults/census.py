"""`python -m tests.faults.census serve ...`: Penstock, which tells on SIGUSR2 how much it keeps.

A line of its standard error: "census: TASKS OBJECTS", its asyncio tasks and what its collector knows of.
"""

from __future__ import annotations

import asyncio
import gc
import os
import re
import signal
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from tests.faults.loads import rss_kib
from tests.penstock_process import PenstockProcess

PATIENCE = 30.0  # seconds
LINE = re.compile(r"^census: (\d+) (\d+)$", re.MULTILINE)


@dataclass(slots=True, frozen=True)
class Sample:
    """What the process takes of the system. `at` is of the monotonic clock."""

    at: float
    rss_kib: int
    num_files: int
    num_threads: int

    @classmethod
    def of(cls, pid: int) -> Sample:
        process = Path(f"/proc/{pid}")
        num_files, num_threads = (len(list((process / name).iterdir())) for name in ("fd", "task"))
        return cls(time.monotonic(), rss_kib(pid), num_files, num_threads)


@dataclass(slots=True, frozen=True)
class Census:
    num_tasks: int
    num_objects: int

    @classmethod
    def of(cls, server: PenstockProcess) -> Census:
        """Of its only gateway."""
        num_before = len(LINE.findall(server.log.read_text()))
        os.kill(server.pid, signal.SIGUSR2)
        deadline = time.monotonic() + PATIENCE
        while len(found := LINE.findall(server.log.read_text())) == num_before:
            assert time.monotonic() < deadline, "no census"
            time.sleep(0.05)
        return cls(*map(int, found[-1]))


def slope_kib_per_hour(samples: list[Sample]) -> float:
    """Least squares."""
    mean_at = sum(sample.at for sample in samples) / len(samples)
    mean_rss = sum(sample.rss_kib for sample in samples) / len(samples)
    covariance = sum((sample.at - mean_at) * (sample.rss_kib - mean_rss) for sample in samples)
    return 3600 * covariance / sum((sample.at - mean_at) ** 2 for sample in samples)


def _tell(*_: object) -> None:
    gc.collect()
    os.write(2, f"census: {len(asyncio.all_tasks())} {len(gc.get_objects())}\n".encode())


def main() -> None:
    from server import cli

    signal.signal(signal.SIGUSR2, _tell)
    sys.argv[0] = "penstock"
    cli.main()


if __name__ == "__main__":
    main()
