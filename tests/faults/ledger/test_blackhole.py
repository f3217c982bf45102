"""Redis takes bytes and answers nothing: calls still end, and soon."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field

import pytest

from quota.degraded import DegradedLedger
from quota.ledger import QuotaUnavailable
from quota.levels import Layer, Level, Limits
from quota.redis import RedisLedger
from tests.quota.chaos_proxy import ChaosProxy, Fault
from tests.quota.redis_server import RedisServer
from tests.scale import IS_SOAK, cut, publish

ROUNDS, CALLS, CROWD = cut(2, 20), 40, 64
LEASE_MS = 1000
ARRIVE_EVERY_S = 0.002
HANG_S = 5.0
UNTIL_OPEN_S, ONCE_OPEN_S = 0.3, 0.01
RATES = (Layer(Level.ACCOUNT, "", Limits(rpm=10**9, tpm=10**9, concurrent=10**6)),)
BUDGETS = (Layer(Level.ACCOUNT, "", Limits(tokens_per_day=10**12, concurrent=10**6)),)


@dataclass
class Times:
    """Seconds that calls took: while Redis answers, while the breaker is closed still, and once it is open."""

    answered: list[float] = field(default_factory=list)
    until_open: list[float] = field(default_factory=list)
    once_open: list[float] = field(default_factory=list)

    def added(self, times: list[float], percent: int) -> float:
        return max(0.0, percentile(times, percent) - percentile(self.answered, 50))


def percentile(times: list[float], percent: int) -> float:
    return sorted(times)[(len(times) - 1) * percent // 100]


@pytest.fixture
async def proxy(redis_server: RedisServer) -> AsyncIterator[ChaosProxy]:
    proxy = ChaosProxy(redis_server.port)
    await proxy.start()
    yield proxy
    await proxy.close()


class Caller:
    """Makes all the calls of the contract's hot path in turn, some for an account with a budget, and times each."""

    def __init__(self, ledger: DegradedLedger) -> None:
        self._ledger = ledger
        self._numbers = itertools.count()

    def _call(self) -> Awaitable[object]:
        turn, kind = divmod(next(self._numbers), 6)
        lease_id = f"r{turn}"
        calls: tuple[Callable[[], Awaitable[object]], ...] = (
            lambda: self._ledger.reserve(lease_id, "rates", RATES, 10),
            lambda: self._ledger.reserve(lease_id, "budgets", BUDGETS, 10),
            lambda: self._ledger.renew("rates", {lease_id: 5}),
            lambda: self._ledger.peek("rates", RATES),
            lambda: self._ledger.settle(lease_id, "rates", 7),
            lambda: self._ledger.settle(lease_id, "budgets", 7),
        )
        return calls[kind]()

    async def once(self, times: list[float], after: float = 0.0) -> None:
        await asyncio.sleep(after)
        start = time.perf_counter()
        with contextlib.suppress(QuotaUnavailable):  # an answer too, for what only Redis could admit
            await asyncio.wait_for(self._call(), HANG_S)
        times.append(time.perf_counter() - start)

    async def many(self, number: int, times: list[float]) -> None:
        for _ in range(number):
            await self.once(times)


async def vanish(shared: RedisLedger, proxy: ChaosProxy, caller: Caller, times: Times, crowd: int) -> None:
    """Redis goes silent, `crowd` calls at a time meet it, and it comes back."""
    await caller.many(CALLS, times.answered)
    proxy.fault = Fault.BLACKHOLE
    while shared.is_up:
        await asyncio.gather(*(caller.once(times.until_open, after=n * ARRIVE_EVERY_S) for n in range(crowd)))
    num_replies = proxy.num_replies
    await caller.many(10 * CALLS, times.once_open)
    assert proxy.num_replies == num_replies
    proxy.fault = Fault.NONE
    while not shared.is_up:
        await asyncio.sleep(0.05)


async def test_silence_holds_nobody_up(redis_url: str, proxy: ChaosProxy, prefix: str) -> None:
    """Check 7: every call is answered; two lease periods after the last silence nothing is held."""
    shared, times = RedisLedger(proxy.url, prefix=prefix, lease_ms=LEASE_MS), Times()
    ledger = DegradedLedger(shared)
    caller = Caller(ledger)
    for n in range(ROUNDS):
        await vanish(shared, proxy, caller, times, crowd=CROWD if n % 2 else 1)
    await asyncio.sleep(2 * LEASE_MS / 1000)
    held = [lease for account in ("rates", "budgets") for lease in (await ledger.usage(account)).leases]
    until_open, once_open = times.added(times.until_open, 99), times.added(times.once_open, 99)
    publish(
        7,
        "Redis blackholed",
        times=ROUNDS,
        calls=len(times.until_open) + len(times.once_open),
        ms_added_at_p99_until_the_breaker_opens=1000 * until_open,
        ms_added_at_p99_once_it_is_open=1000 * once_open,
        leases_leaked=len(held),
    )
    assert held == []
    await ledger.check_integrity()
    await ledger.close()
    if IS_SOAK:
        assert until_open <= UNTIL_OPEN_S
        assert once_open <= ONCE_OPEN_S
