"""Whether an engine that has work does it, as its worker sees it."""

from __future__ import annotations

import pytest

from batching.stats import WorkerStats
from batching.switchboard import STATS_INTERVAL, Progress


def looks(progress: Progress, count: int, steps: int, running: int = 1) -> None:
    for _ in range(count):
        progress.look(WorkerStats(steps=steps, running=running))


def test_a_step_that_takes_too_long() -> None:
    progress = Progress(20 * STATS_INTERVAL)
    looks(progress, 21, steps=1)
    looks(progress, 21, steps=2)
    with pytest.raises(TimeoutError, match="hangs"):
        looks(progress, 1, steps=2)


def test_who_has_nothing_to_do_takes_no_step() -> None:
    progress = Progress(20 * STATS_INTERVAL)
    looks(progress, 1000, steps=1, running=0)
    looks(progress, 20, steps=1)
