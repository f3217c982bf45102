"""Several processes on one Redis, killed without warning: nothing is admitted past a limit, no lease is left behind."""

from __future__ import annotations

import asyncio
import os
import random
import subprocess
import sys
import time
from pathlib import Path

import pytest

from quota.levels import Kind
from quota.redis import RedisLedger
from tests.quota.replay import Replay
from tests.quota.worker import ACCOUNT, LEASE_MS

SCALE = int(os.environ.get("PENSTOCK_TEST_SCALE", "1"))
SECONDS = 8 * SCALE
PROCESSES = 4
ROOT = Path(__file__).parents[2]


def start(url: str, prefix: str) -> subprocess.Popen[bytes]:
    return subprocess.Popen([sys.executable, "-m", "tests.quota.worker", url, prefix], cwd=ROOT)


def run_and_kill(url: str, prefix: str) -> int:
    """Kill a random process about every second and start another in its place. Answers how many were killed."""
    workers = [start(url, prefix) for _ in range(PROCESSES)]
    rng, end, kills = random.Random(), time.monotonic() + SECONDS, 0
    try:
        while time.monotonic() < end:
            time.sleep(rng.uniform(0.5, 1.5))
            victim = rng.randrange(PROCESSES)
            workers[victim].kill()
            workers[victim].wait()
            workers[victim] = start(url, prefix)
            kills += 1
    finally:
        for worker in workers:
            worker.kill()
            worker.wait()
    return kills


async def follow(ledger: RedisLedger, replay: Replay) -> None:
    """Replay what the log holds by now, and take it out: it keeps about a million steps only."""
    async for record in ledger.audit_log(ACCOUNT, drain=True):
        replay.add(record)


@pytest.mark.timeout(60 + 2 * SECONDS)
async def test_killed_processes_overshoot_nothing_and_leak_nothing(redis_url: str, prefix: str) -> None:
    ledger = RedisLedger(redis_url, prefix=prefix, lease_ms=LEASE_MS, audit=True, timeout=5)
    replay = Replay()
    running = asyncio.create_task(asyncio.to_thread(run_and_kill, redis_url, prefix))
    while not running.done():
        await follow(ledger, replay)
        await asyncio.sleep(0.5)
    kills = await running
    await asyncio.sleep(2 * LEASE_MS / 1000)
    usage = await ledger.usage(ACCOUNT)
    await follow(ledger, replay)
    print(f"{replay.num_admitted} admissions, {kills} kills, {replay.num_over} over, {len(usage.leases)} leaked")
    assert replay.num_over == 0
    assert replay.num_wrong == 0
    assert replay.num_admitted > 100
    assert usage.leases == ()
    assert all(counter.dimension.kind is not Kind.GAUGE for counter in usage.counters)
    await ledger.check_integrity()
    await ledger.close()
