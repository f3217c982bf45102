"""A gateway process is stopped for longer than its leases last, and goes on."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import AsyncIterator

import pytest

from quota.redis import RedisLedger
from tests.faults.ledger.gateway import LEASED, SHORT_LEASE_MS, account_name
from tests.faults.ledger.holds import peak
from tests.faults.ledger.processes import GatewayProcess, all_holds, gateways
from tests.faults.ledger.replay import Replay
from tests.scale import cut, publish

ROUNDS = cut(3, 50)
ACCOUNT = account_name(0)
LIMIT = LEASED.limits.concurrent or 0


@pytest.fixture
async def ledger(redis_url: str, prefix: str) -> AsyncIterator[RedisLedger]:
    ledger = RedisLedger(redis_url, prefix=prefix, lease_ms=SHORT_LEASE_MS, audit=True, timeout=5)
    yield ledger
    await ledger.close()


async def until_it_holds(process: GatewayProcess, at_least: int, ledger: RedisLedger) -> None:
    while sum(process.owns(lease.lease_id) for lease in (await ledger.usage(ACCOUNT)).leases) < at_least:
        await asyncio.sleep(0.02)


async def stop_past_its_leases(victim: GatewayProcess, other: GatewayProcess, ledger: RedisLedger) -> None:
    """Until the other holds all that there is: what the victim held when it was stopped has expired."""
    await until_it_holds(victim, 2, ledger)
    victim.signal(signal.SIGSTOP)
    try:
        await until_it_holds(other, LIMIT, ledger)
    finally:
        victim.signal(signal.SIGCONT)


async def test_a_gateway_stopped_past_its_lease_breaks_no_limit(
    ledger: RedisLedger, redis_url: str, prefix: str
) -> None:
    """Check 8: neither by the ledger's log, nor by what the gateways believe between a renewal and the next."""
    async with gateways(2, "leased", redis_url, prefix) as processes:
        for n in range(ROUNDS):
            await stop_past_its_leases(processes[n % 2], processes[1 - n % 2], ledger)
    holds, replay = all_holds(processes), Replay()
    async for record in ledger.audit_log(ACCOUNT):
        replay.add(record)
    most, num_lost = peak(holds).leases, sum(hold.was_lost for hold in holds)
    publish(
        8,
        "a gateway stopped (SIGSTOP) past its leases, and continued",
        rounds=ROUNDS,
        admissions=replay.num_admitted,
        leases_lost=num_lost,
        over_admissions=replay.num_over,
        held_at_once=most,
        allowed=LIMIT,
    )
    assert (replay.num_over, replay.num_wrong) == (0, 0)
    assert most == LIMIT
    assert num_lost > 0
    await ledger.check_integrity()
