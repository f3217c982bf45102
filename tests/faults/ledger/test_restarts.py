"""Redis is killed and comes back with nothing in its memory, while gateways run on it."""

from __future__ import annotations

import asyncio
import random
import time
from collections import Counter as Tally
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path

from quota.levels import Dimension, Kind, Level
from quota.redis import RedisLedger
from server.ledgers import open_shared
from server.settings import load
from server.store import Store
from tests.faults.ledger.gateway import DURABLE
from tests.faults.ledger.holds import peak
from tests.faults.ledger.processes import GatewayProcess, all_holds, gateways
from tests.quota.redis_server import RedisServer
from tests.scale import IS_SOAK, cut, publish

RESTARTS = cut(2, 20)
GATEWAYS = 3
RECOVERY_S = 5.0
CONFIG = """
[[models]]
name = "m"
engine = "fake"
"""


async def restart(server: RedisServer, processes: list[GatewayProcess]) -> float:
    """Answers how long it took from when Redis answered again until every gateway had an answer of the ledger."""
    before = [len(process.returns) for process in processes]
    server.kill()
    await asyncio.sleep(random.uniform(0, 1.5))
    await asyncio.to_thread(server.start)
    start = time.monotonic()
    while any(len(process.returns) == n for process, n in zip(processes, before, strict=True)):
        await asyncio.sleep(0.05)
    return max(process.returns[-1] for process in processes) - start


async def restart_many_times(server: RedisServer, processes: list[GatewayProcess]) -> list[float]:
    while not all(process.holds for process in processes):
        await asyncio.sleep(0.05)
    recoveries = []
    for _ in range(RESTARTS):
        await asyncio.sleep(random.uniform(0.5, 4))
        recoveries.append(await restart(server, processes))
    await asyncio.sleep(1)  # endings that were kept are handed in
    return recoveries


async def stored_usage(folder: Path) -> Tally[str]:
    store = await Store.open(data_dir=folder)
    totals = await store.usage.totals_since((datetime.now(UTC) - timedelta(days=2)).date())
    await store.close()
    return Tally({t.account_id: t.tokens for t in totals if t.level is Level.ACCOUNT})


@asynccontextmanager
async def shared_ledger(url: str, folder: Path) -> AsyncIterator[RedisLedger]:
    settings = load(folder / "penstock.toml", {"redis_url": url, "data_dir": str(folder)}, {})
    store = await Store.open(data_dir=folder)
    ledger = await open_shared(settings, store, flush=lambda: asyncio.sleep(0))
    yield ledger
    await ledger.close()
    await store.close()


async def counted_usage(url: str, folder: Path, accounts: list[str]) -> Tally[str]:
    """What the ledger says of these accounts, once it has shown that none of them runs anything."""
    counted: Tally[str] = Tally()
    async with shared_ledger(url, folder) as ledger:
        for account in accounts:
            usage = await ledger.usage(account)
            assert usage.leases == ()
            assert all(counter.dimension.kind is not Kind.GAUGE for counter in usage.counters)
            counters = [c for c in usage.counters if c.dimension is Dimension.TOKENS_PER_DAY]
            counted[account] = sum(c.used for c in counters if c.level is Level.ACCOUNT)
        await ledger.check_integrity()
    return counted


async def test_lost_memories_overspend_nothing(mortal: RedisServer, tmp_path: Path) -> None:
    """Check 6: by what the gateways themselves tell, no account is ever past its day's budget or its concurrency.

    Accounts are spent one after the other, so that Redis dies at every stage of a budget, and in the end each is
    spent to the last request that fits.
    """
    (tmp_path / "penstock.toml").write_text(CONFIG)
    async with gateways(GATEWAYS, "durable", mortal.url, str(tmp_path)) as processes:
        recoveries = await restart_many_times(mortal, processes)
    holds, used = all_holds(processes), Tally[str]()
    for hold in holds:
        used[hold.account] += hold.used
    accounts = sorted(used)
    peaks = [peak(hold for hold in holds if hold.account == account) for account in accounts]
    budget, concurrent = DURABLE.limits.tokens_per_day, DURABLE.limits.concurrent
    assert budget is not None
    assert concurrent is not None
    publish(
        6,
        f"Redis killed and restarted under {GATEWAYS} gateways, its memory lost",
        restarts=len(recoveries),
        requests=len(holds),
        budgets=len(accounts),
        budgets_overspent=sum(peak.tokens > budget for peak in peaks),
        concurrency_overshot=sum(peak.leases > concurrent for peak in peaks),
        s_median_recovery=sorted(recoveries)[len(recoveries) // 2],
        s_longest_recovery=max(recoveries),
    )
    assert all(peak.tokens <= budget for peak in peaks), peaks
    assert max(peak.leases for peak in peaks) == concurrent
    assert sum(spent > 0.9 * budget for spent in used.values()) >= RESTARTS // 2, "budgets were tried to their end"
    assert await stored_usage(tmp_path) == used
    assert await counted_usage(mortal.url, tmp_path, accounts) == used
    if IS_SOAK:
        assert max(recoveries) <= RECOVERY_S
