"""Several processes on one Redis, killed without warning: nothing is admitted past a limit, no lease is left behind."""

from __future__ import annotations

import asyncio
import contextlib
import random
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from quota.levels import Kind
from quota.redis import RedisLedger
from tests.faults.ledger.replay import Replay
from tests.faults.ledger.worker import ACCOUNT, LEASE_MS
from tests.scale import IS_SOAK, cut, publish

ADMISSIONS = cut(25_000, 1_000_000)
AT_MOST_S = cut(25, 3600)
PROCESSES = 4
ROOT = Path(__file__).parents[3]


class Workers:
    def __init__(self, *arguments: str) -> None:
        self._arguments = arguments
        self._running = [self._start() for _ in range(PROCESSES)]

    def _start(self) -> subprocess.Popen[bytes]:
        return subprocess.Popen([sys.executable, "-m", "tests.faults.ledger.worker", *self._arguments], cwd=ROOT)

    def kill(self, victim: int) -> None:
        self._running[victim].kill()
        self._running[victim].wait()

    def replace(self, victim: int) -> None:
        self.kill(victim)
        self._running[victim] = self._start()

    def kill_all(self) -> None:
        for victim in range(PROCESSES):
            self.kill(victim)


@contextlib.contextmanager
def workers(*arguments: str) -> Iterator[Workers]:
    started = Workers(*arguments)
    try:
        yield started
    finally:
        started.kill_all()


@pytest.fixture
async def ledger(redis_url: str, prefix: str) -> AsyncIterator[RedisLedger]:
    ledger = RedisLedger(redis_url, prefix=prefix, lease_ms=LEASE_MS, audit=True, timeout=5)
    yield ledger
    await ledger.close()


async def kill_until_enough(running: Workers, replay: Replay) -> int:
    """Answers how many were killed; none is left."""
    end, kills = time.monotonic() + AT_MOST_S, 0
    while replay.num_admitted < ADMISSIONS and time.monotonic() < end:
        await asyncio.sleep(random.uniform(0.5, 1.5))
        running.replace(random.randrange(PROCESSES))
        kills += 1
    running.kill_all()
    return kills


async def follow(ledger: RedisLedger, replay: Replay) -> None:
    """Replay what the log holds by now, and take it out: it keeps about a million steps only."""
    async for record in ledger.audit_log(ACCOUNT, drain=True):
        replay.add(record)


async def test_killed_processes_overshoot_nothing_and_leak_nothing(
    ledger: RedisLedger, redis_url: str, prefix: str
) -> None:
    """Checks 1 and 2: no step of the log leaves a counter above its limit; two lease periods later nothing is held."""
    replay, start = Replay(), time.monotonic()
    with workers(redis_url, prefix) as running:
        killing = asyncio.create_task(kill_until_enough(running, replay))
        while not killing.done():
            await follow(ledger, replay)
            await asyncio.sleep(0.2)
    kills, seconds = await killing, time.monotonic() - start
    await asyncio.sleep(2 * LEASE_MS / 1000)
    usage = await ledger.usage(ACCOUNT)
    await follow(ledger, replay)
    publish(
        1,
        f"admissions by {PROCESSES} processes, `kill -9` about every second",
        admissions=replay.num_admitted,
        kills=kills,
        over_admissions=replay.num_over,
        admissions_a_second=replay.num_admitted / seconds,
    )
    publish(
        2,
        "leases after those kills",
        expired=replay.num_expired,
        leaked_after_2_lease_periods=len(usage.leases),
    )
    assert replay.num_over == 0
    assert replay.num_wrong == 0
    assert replay.num_admitted >= (ADMISSIONS if IS_SOAK else 1000)
    assert replay.num_expired > 0, "some were left behind"
    assert usage.leases == ()
    assert all(counter.dimension.kind is not Kind.GAUGE for counter in usage.counters)
    await ledger.check_integrity()
