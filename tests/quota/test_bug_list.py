"""Bugs that other systems had with quotas; each test says which, and shows that it is not here."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from datetime import date
from typing import TYPE_CHECKING

from quota.ledger import LEASE_MS, Ledger
from quota.levels import Dimension, Layer, Level, Limits

if TYPE_CHECKING:
    from tests.quota.conftest import Clock

A = "acme"


def account(**limits: int) -> tuple[Layer, ...]:
    return (Layer(Level.ACCOUNT, "", Limits(**limits)),)


async def admitted(ledger: Ledger, layers: tuple[Layer, ...], tokens: int, count: int) -> int:
    answers = await asyncio.gather(*(ledger.reserve(f"r{n}", A, layers, tokens) for n in range(count)))
    return sum(answer.admitted for answer in answers)


async def test_tpm_is_not_bypassed_under_concurrency(ledger: Ledger) -> None:
    """litellm #18730: tokens were counted at the end, so any number of parallel requests came in."""
    assert await admitted(ledger, account(tpm=1000), 100, 200) == 10


async def test_parallel_requests_do_not_overshoot(ledger: Ledger) -> None:
    """litellm #16011: every parallel request read the counter before any of them wrote it."""
    assert await admitted(ledger, account(rpm=7, concurrent=5), 1, 100) == 5


async def test_slots_are_never_stuck(ledger: Ledger, clock: Clock) -> None:
    """litellm #17323: concurrency slots of requests that failed stayed taken for ever."""
    layers = account(concurrent=2)
    assert await admitted(ledger, layers, 1, 3) == 2
    clock.advance(LEASE_MS)
    assert (await ledger.reserve("s0", A, layers, 1)).admitted
    assert (await ledger.reserve("s1", A, layers, 1)).admitted


async def test_a_crash_leaks_no_reservation(ledger: Ledger, clock: Clock) -> None:
    """litellm #27639: a crash or timeout left its reserved budget taken."""
    layers = account(tokens_per_day=1000)
    await ledger.reserve("crashed", A, layers, 1000)
    await ledger.renew(A, {"crashed": 40})
    clock.advance(LEASE_MS)
    assert (await ledger.reserve("next", A, layers, 960)).admitted
    await ledger.settle("next", A, 960)
    assert not (await ledger.reserve("more", A, layers, 1)).admitted


async def test_many_gateways_restore_the_spend_once(ledger: Ledger) -> None:
    """litellm #28247: each of N pods seeded the counter by an increment: N times the spend."""
    answers = [await ledger.restore(A, Level.ACCOUNT, "", date(2025, 3, 15), 10, 100) for _ in range(4)]
    assert answers == [True, False, False, False]
    assert (await ledger.peek(A, account(tokens_per_day=1000))).remaining_tokens == 900


async def test_counters_do_not_drift_upward(ledger: Ledger, clock: Clock) -> None:
    """litellm #30460: each request left a little behind, until nothing was admitted."""
    layers = account(rpm=100, tpm=10_000, tokens_per_day=10**9, concurrent=3)
    for n in range(2000):
        assert (await ledger.reserve(f"r{n}", A, layers, 97)).admitted
        if n % 3 == 0:
            await ledger.release(f"r{n}", A)
        else:
            await ledger.settle(f"r{n}", A, 31)
        clock.advance(600)
    clock.advance(60_000)
    used = {c.dimension: c.used for c in (await ledger.usage(A)).counters if c.used}
    settled = sum(1 for n in range(2000) if n % 3)
    assert used == {
        Dimension.REQUESTS_PER_DAY: settled,
        Dimension.TOKENS_PER_DAY: settled * 31,
        Dimension.TOKENS_PER_MONTH: settled * 31,
    }


async def test_a_budget_race_is_lost_by_someone(ledger: Ledger) -> None:
    """litellm #34732: two requests that fit one by one both took the last of a budget."""
    layers = account(tokens_per_month=100)
    assert await admitted(ledger, layers, 60, 2) == 1


async def test_small_limits_are_usable(ledger: Ledger) -> None:
    """litellm #29193: a fixed floor of tokens was reserved, so a limit below it admitted nothing."""
    assert await admitted(ledger, account(tpm=3, tokens_per_day=3), 1, 5) == 3


async def test_a_stream_holds_its_reservation_until_it_ends(ledger: Ledger, clock: Clock) -> None:
    """api7/aisix #124: a stream's reservation was released when its handler returned, before its end."""
    layers = account(concurrent=1)
    await ledger.reserve("stream", A, layers, 100)
    for tokens in range(0, 100, 10):
        clock.advance(10_000)
        await ledger.renew(A, {"stream": tokens})
        assert not (await ledger.reserve(f"x{tokens}", A, layers, 1)).admitted
    await ledger.settle("stream", A, 100)
    assert (await ledger.reserve("next", A, layers, 1)).admitted


async def test_a_restart_forgets_no_budget(make_ledger: Callable[..., Ledger], ledger: Ledger, clock: Clock) -> None:
    """The counters of a restarted embedded ledger come from the usage rows that its requests wrote."""
    layers = account(tokens_per_day=1000)
    rows = []
    for n in range(5):
        await ledger.reserve(f"r{n}", A, layers, 150)
        await ledger.settle(f"r{n}", A, 120)
        rows.append(120)
    restarted = make_ledger(clock, lambda record: None)
    await restarted.restore(A, Level.ACCOUNT, "", date(2025, 3, 15), len(rows), sum(rows))
    assert await restarted.peek(A, layers) == await ledger.peek(A, layers)
