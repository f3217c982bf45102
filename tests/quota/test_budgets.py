"""Day and month budgets: calendar periods in UTC, and what is restored at the start."""

from __future__ import annotations

from datetime import date
from typing import TYPE_CHECKING

from quota.ledger import Ledger
from quota.levels import Dimension, Layer, Level, Limits

if TYPE_CHECKING:
    from tests.quota.conftest import Clock

A = "acme"


def account(**limits: int) -> tuple[Layer, ...]:
    return (Layer(Level.ACCOUNT, "", Limits(**limits)),)


async def test_a_new_day_starts_at_midnight_utc(ledger: Ledger, clock: Clock) -> None:
    layers = account(tokens_per_day=100, requests_per_day=10)
    clock.set(2025, 3, 15, 23, 59, 59)
    clock.advance(999)
    await ledger.reserve("r1", A, layers, 100)
    await ledger.settle("r1", A, 100)
    assert not (await ledger.reserve("r2", A, layers, 1)).admitted
    clock.advance(1)
    assert (await ledger.reserve("r2", A, layers, 100)).admitted


async def test_a_new_month_starts_on_the_first(ledger: Ledger, clock: Clock) -> None:
    layers = account(tokens_per_month=100)
    clock.set(2024, 2, 29, 23, 59, 59)
    await ledger.reserve("r1", A, layers, 100)
    await ledger.settle("r1", A, 100)
    decision = await ledger.reserve("r2", A, layers, 1)
    assert decision.refusal is not None
    assert decision.refusal.retry_after_ms == 1000
    clock.advance(1000)
    assert (await ledger.reserve("r2", A, layers, 100)).admitted


async def test_the_month_outlives_the_day(ledger: Ledger, clock: Clock) -> None:
    layers = account(tokens_per_day=100, tokens_per_month=250)
    for day in (10, 11):
        clock.set(2025, 3, day)
        await ledger.reserve(f"r{day}", A, layers, 100)
        await ledger.settle(f"r{day}", A, 100)
    clock.set(2025, 3, 12)
    refusal = (await ledger.reserve("r12", A, layers, 51)).refusal
    assert refusal is not None
    assert refusal.dimension is Dimension.TOKENS_PER_MONTH
    assert (await ledger.reserve("r12", A, layers, 50)).admitted


async def test_a_request_belongs_to_the_day_it_came_in(ledger: Ledger, clock: Clock) -> None:
    layers = account(tokens_per_day=100)
    clock.set(2025, 3, 15, 23, 59, 50)
    await ledger.reserve("night", A, layers, 80)
    clock.advance(20_000)
    assert (await ledger.reserve("morning", A, layers, 100)).admitted
    await ledger.settle("night", A, 30)
    assert (await ledger.peek(A, layers)).remaining_tokens == 0, "yesterday's refund is not today's"
    used = {(c.dimension, c.period): c.used for c in (await ledger.usage(A)).counters}
    today = clock.now // 86_400_000
    assert used[Dimension.TOKENS_PER_DAY, today - 1] == 30
    assert used[Dimension.TOKENS_PER_DAY, today] == 100


async def test_a_clock_set_back_over_midnight_forgets_no_budget(ledger: Ledger, clock: Clock) -> None:
    layers = account(tokens_per_day=100)
    clock.set(2025, 3, 16)
    await ledger.reserve("r1", A, layers, 100)
    await ledger.settle("r1", A, 100)
    clock.advance(-1)
    assert (await ledger.reserve("r2", A, layers, 60)).admitted
    await ledger.settle("r2", A, 60)
    clock.advance(1)
    assert not (await ledger.reserve("r3", A, layers, 1)).admitted


async def test_a_budget_set_at_noon_knows_the_morning(ledger: Ledger, clock: Clock) -> None:
    await ledger.reserve("r1", A, account(rpm=100), 700)
    await ledger.settle("r1", A, 700)
    refusal = (await ledger.reserve("r2", A, account(rpm=100, tokens_per_day=1000), 301)).refusal
    assert refusal is not None
    assert (await ledger.reserve("r2", A, account(rpm=100, tokens_per_day=1000), 300)).admitted


async def test_restore_fills_today_and_this_month(ledger: Ledger, clock: Clock) -> None:
    layers = account(tokens_per_day=100, requests_per_day=10, tokens_per_month=1000)
    assert await ledger.restore(A, Level.ACCOUNT, "", date(2025, 3, 15), 4, 70)
    assert await ledger.restore(A, Level.ACCOUNT, "", date(2025, 3, 1), 50, 600)
    assert not await ledger.restore(A, Level.ACCOUNT, "", date(2025, 2, 28), 50, 5000)
    assert not await ledger.restore(A, Level.ACCOUNT, "", date(2024, 3, 15), 50, 5000)
    used = {c.dimension: c.used for c in (await ledger.usage(A)).counters}
    assert used == {
        Dimension.REQUESTS_PER_DAY: 4,
        Dimension.TOKENS_PER_DAY: 70,
        Dimension.TOKENS_PER_MONTH: 670,
    }
    assert not (await ledger.reserve("r1", A, layers, 31)).admitted
    assert (await ledger.reserve("r1", A, layers, 30)).admitted


async def test_restore_is_for_one_layer(ledger: Ledger) -> None:
    await ledger.restore(A, Level.KEY, "k1", date(2025, 3, 15), 1, 100)
    limits = Limits(tokens_per_day=100)
    assert not (await ledger.reserve("r1", A, [Layer(Level.KEY, "k1", limits)], 1)).admitted
    assert (await ledger.reserve("r2", A, [Layer(Level.KEY, "k2", limits)], 1)).admitted
    assert (await ledger.reserve("r3", A, [Layer(Level.ACCOUNT, "", limits)], 1)).admitted
