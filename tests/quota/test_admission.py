"""reserve: all layers or none, what refuses, how long to wait, what remains."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime
from typing import TYPE_CHECKING

import pytest

from quota.ledger import AuditRecord, CostAboveLimit, Event, Ledger, Refusal, Remaining
from quota.levels import Dimension, Layer, Level, Limits

if TYPE_CHECKING:
    from tests.quota.conftest import Clock

A = "acme"


def account(**limits: int) -> tuple[Layer, ...]:
    return (Layer(Level.ACCOUNT, "", Limits(**limits)),)


def key(name: str = "k1", **limits: int) -> tuple[Layer, ...]:
    return (Layer(Level.KEY, name, Limits(**limits)),)


async def test_admitted(ledger: Ledger, clock: Clock) -> None:
    layers = account(rpm=10, tpm=1000)
    decision = await ledger.reserve("r1", A, layers, 100)
    assert decision.admitted
    assert not decision.repeated
    assert decision.refusal is None
    assert decision.reservation is not None
    assert decision.reservation.lease_id == decision.lease_id == "r1"
    assert decision.reservation.account == A
    assert decision.reservation.layers == layers
    assert decision.reservation.tokens == 100
    assert decision.reservation.expires_at == clock.now + 30_000


async def test_a_request_without_limits_is_admitted_and_counted_nowhere(ledger: Ledger) -> None:
    decision = await ledger.reserve("r1", A, (), 10**9)
    assert decision.admitted
    assert decision.remaining == Remaining()
    assert (await ledger.usage(A)).counters == ()


async def test_a_refusal_in_the_last_layer_charges_no_layer(ledger: Ledger) -> None:
    layers = (
        *account(rpm=10, tpm=1000, requests_per_day=10, tokens_per_month=1000, concurrent=10),
        *key(rpm=10),
        Layer(Level.MODEL, "m", Limits(tpm=1000)),
        Layer(Level.FEATURE, "tools", Limits(concurrent=1)),
    )
    assert (await ledger.reserve("r1", A, layers, 10)).admitted
    before = await ledger.usage(A)
    for n in range(50):
        refused = await ledger.reserve(f"x{n}", A, layers, 10)
        assert refused.refusal == Refusal(Level.FEATURE, "tools", Dimension.CONCURRENT, 1, None)
        assert refused.reservation is None
    assert await ledger.usage(A) == before


@pytest.mark.parametrize(
    ("limits", "dimension", "wait"),
    [
        ({"rpm": 2}, Dimension.RPM, 30_000),
        ({"tpm": 20}, Dimension.TPM, 30_000),
        ({"requests_per_day": 2}, Dimension.REQUESTS_PER_DAY, 12 * 3_600_000),
        ({"tokens_per_day": 20}, Dimension.TOKENS_PER_DAY, 12 * 3_600_000),
        ({"tokens_per_month": 20}, Dimension.TOKENS_PER_MONTH, (16 * 24 + 12) * 3_600_000),
        ({"concurrent": 2}, Dimension.CONCURRENT, None),
    ],
)
async def test_each_dimension_refuses_and_says_how_long(
    ledger: Ledger, clock: Clock, limits: dict[str, int], dimension: Dimension, wait: int | None
) -> None:
    layers = account(**limits)
    for n in range(2):
        assert (await ledger.reserve(f"r{n}", A, layers, 10)).admitted
    decision = await ledger.reserve("r2", A, layers, 10)
    assert not decision.admitted
    assert decision.refusal == Refusal(Level.ACCOUNT, "", dimension, limits[dimension], wait)
    if wait is not None:
        await ledger.settle("r0", A, 10)
        await ledger.settle("r1", A, 10)
        clock.advance(wait - 1)
        assert not (await ledger.reserve("r2", A, layers, 10)).admitted
        clock.advance(1)
        assert (await ledger.reserve("r2", A, layers, 10)).admitted


@pytest.mark.parametrize("limit", [1, 7, 59, 60, 61, 600, 59_999, 60_001, 10_000_000, 10**11])
async def test_the_wait_is_true_to_the_millisecond(ledger: Ledger, clock: Clock, limit: int) -> None:
    layers = account(tpm=limit)
    cost = limit // 3 + 1
    n = 0
    while (decision := await ledger.reserve(f"r{n}", A, layers, cost)).admitted:
        clock.advance(7)
        n += 1
    assert decision.refusal is not None
    assert decision.refusal.retry_after_ms is not None
    clock.advance(decision.refusal.retry_after_ms - 1)
    again = await ledger.reserve("last", A, layers, cost)
    assert again.refusal is not None
    assert again.refusal.retry_after_ms == 1
    clock.advance(1)
    assert (await ledger.reserve("last", A, layers, cost)).admitted


async def test_the_longest_wait_of_all_layers_is_told(ledger: Ledger, clock: Clock) -> None:
    layers = (*account(rpm=1, concurrent=1), *key(tpm=10, requests_per_day=1), *key("k2", rpm=2))
    await ledger.reserve("r1", A, layers, 10)
    refusal = (await ledger.reserve("r2", A, layers, 10)).refusal
    assert refusal == Refusal(Level.KEY, "k1", Dimension.REQUESTS_PER_DAY, 1, 12 * 3_600_000)


async def test_of_equal_waits_the_first_layer_is_named(ledger: Ledger) -> None:
    layers = (*account(requests_per_day=1, tokens_per_day=1), *key(requests_per_day=1))
    await ledger.reserve("r1", A, layers, 1)
    refusal = (await ledger.reserve("r2", A, layers, 1)).refusal
    assert refusal is not None
    assert (refusal.level, refusal.dimension) == (Level.ACCOUNT, Dimension.REQUESTS_PER_DAY)


async def test_concurrency_is_named_only_when_nothing_else_refuses(ledger: Ledger, clock: Clock) -> None:
    layers = account(rpm=1, concurrent=1)
    await ledger.reserve("r1", A, layers, 1)
    refusal = (await ledger.reserve("r2", A, layers, 1)).refusal
    assert refusal == Refusal(Level.ACCOUNT, "", Dimension.RPM, 1, 60_000)
    await ledger.renew(A, {"r1": 0})
    clock.advance(29_999)
    await ledger.renew(A, {"r1": 0})
    clock.advance(29_999)
    await ledger.renew(A, {"r1": 0})
    clock.advance(2)
    refusal = (await ledger.reserve("r2", A, layers, 1)).refusal
    assert refusal == Refusal(Level.ACCOUNT, "", Dimension.CONCURRENT, 1, None)


@pytest.mark.parametrize(
    "limits", [{"tpm": 99}, {"tokens_per_day": 99}, {"tokens_per_month": 99}, {"tpm": 0}, {"rpm": 0}]
)
async def test_a_cost_above_a_whole_limit_is_an_error_and_charges_nothing(
    ledger: Ledger, limits: dict[str, int]
) -> None:
    layers = (*account(rpm=10, tpm=1000, concurrent=1), *key(**limits))
    with pytest.raises(CostAboveLimit) as error:
        await ledger.reserve("r1", A, layers, 100)
    (dimension,) = limits
    assert (error.value.level, error.value.name, error.value.dimension) == (Level.KEY, "k1", dimension)
    assert error.value.limit == limits[dimension]
    assert error.value.cost == (1 if dimension == "rpm" else 100)
    assert "key k1" in str(error.value)
    usage = await ledger.usage(A)
    assert (usage.counters, usage.leases) == ((), ())


async def test_a_cost_of_the_whole_limit_fits(ledger: Ledger) -> None:
    layers = account(rpm=1, tpm=100, tokens_per_day=100, concurrent=1)
    assert (await ledger.reserve("r1", A, layers, 100)).admitted


async def test_zero_admits_nothing_not_even_a_request_without_tokens(ledger: Ledger) -> None:
    for dimension in Dimension:
        with pytest.raises(CostAboveLimit):
            await ledger.reserve("r1", A, account(**{dimension.value: 0}), 0)


async def test_bad_calls_are_errors(ledger: Ledger) -> None:
    with pytest.raises(ValueError, match="twice"):
        await ledger.reserve("r1", A, (*account(rpm=5), *account(rpm=6)), 1)
    with pytest.raises(ValueError, match="below 0"):
        await ledger.reserve("r1", A, account(rpm=5), -1)
    with pytest.raises(ValueError, match="below 0"):
        await ledger.settle("r1", A, -1)
    assert (await ledger.usage(A)).counters == ()


async def test_a_repeat_answers_admitted_and_charges_nothing(ledger: Ledger) -> None:
    layers = account(rpm=1, tpm=10, requests_per_day=1, tokens_per_day=10, concurrent=1)
    first = await ledger.reserve("r1", A, layers, 10)
    usage = await ledger.usage(A)
    for _ in range(3):
        again = await ledger.reserve("r1", A, layers, 10)
        assert again.admitted
        assert again.repeated
        assert again.reservation == first.reservation
    assert await ledger.usage(A) == usage
    await ledger.settle("r1", A, 4)
    usage = await ledger.usage(A)
    late = await ledger.reserve("r1", A, layers, 10)
    assert late.admitted, "a reply that was lost, asked for again after the end"
    assert late.repeated
    assert await ledger.usage(A) == usage
    assert usage.leases == ()


async def test_a_refused_id_can_be_tried_again(ledger: Ledger, clock: Clock) -> None:
    layers = account(rpm=1)
    await ledger.reserve("r1", A, layers, 1)
    assert not (await ledger.reserve("r2", A, layers, 1)).admitted
    clock.advance(60_000)
    second = await ledger.reserve("r2", A, layers, 1)
    assert second.admitted
    assert not second.repeated


async def test_accounts_layers_and_names_are_counted_apart(ledger: Ledger) -> None:
    limits = Limits(rpm=1, concurrent=1, tokens_per_day=1)
    layers = [Layer(level, name, limits) for level in Level for name in ("", "a", "b")]
    for n, layer in enumerate(layers):
        assert (await ledger.reserve(f"r{n}", A, [layer], 1)).admitted
        assert not (await ledger.reserve(f"s{n}", A, [layer], 1)).admitted
        assert (await ledger.reserve(f"r{n}", "other", [layer], 1)).admitted


async def test_refill_is_continuous(ledger: Ledger, clock: Clock) -> None:
    layers = account(rpm=6)
    for n in range(6):
        assert (await ledger.reserve(f"r{n}", A, layers, 1)).admitted
    for n in range(20):
        clock.advance(9_999)
        assert not (await ledger.reserve(f"s{n}", A, layers, 1)).admitted
        clock.advance(1)
        assert (await ledger.reserve(f"s{n}", A, layers, 1)).admitted


async def test_a_clock_set_back_gives_nothing_and_takes_nothing(ledger: Ledger, clock: Clock) -> None:
    layers = account(tpm=60)
    await ledger.reserve("r1", A, layers, 60)
    clock.advance(30_000)
    await ledger.reserve("r2", A, layers, 10)
    clock.advance(-3_600_000)
    assert (await ledger.peek(A, layers)).remaining_tokens == 20
    refusal = (await ledger.reserve("r3", A, layers, 21)).refusal
    assert refusal is not None
    assert refusal.retry_after_ms is not None
    assert (await ledger.reserve("r4", A, layers, 20)).admitted
    clock.advance(60_000)
    assert (await ledger.peek(A, layers)).remaining_tokens == 60


async def test_a_raised_limit_admits_at_once(ledger: Ledger) -> None:
    for n in range(2):
        assert (await ledger.reserve(f"r{n}", A, account(rpm=2, concurrent=2), 1)).admitted
    assert not (await ledger.reserve("r3", A, account(rpm=2, concurrent=2), 1)).admitted
    assert (await ledger.reserve("r3", A, account(rpm=3, concurrent=3), 1)).admitted


async def test_a_lowered_limit_holds_at_once_and_heals_within_a_minute(ledger: Ledger, clock: Clock) -> None:
    for n in range(100):
        await ledger.reserve(f"r{n}", A, account(rpm=100, tokens_per_day=100), 1)
    assert (await ledger.peek(A, account(tokens_per_day=50))).remaining_tokens == 0
    refusal = (await ledger.reserve("s", A, account(rpm=5), 1)).refusal
    assert refusal is not None
    assert refusal.retry_after_ms == 12_000
    clock.advance(60_000)
    assert (await ledger.peek(A, account(rpm=5))).remaining_requests == 5


async def test_remaining_is_of_the_tightest_layer(ledger: Ledger, clock: Clock) -> None:
    layers = (
        *account(rpm=100, tpm=10_000, tokens_per_month=5000),
        *key(rpm=60, tokens_per_day=9000),
        Layer(Level.MODEL, "m", Limits(concurrent=1)),
    )
    assert await ledger.peek(A, layers) == Remaining(60, 60, 0, 5000, 5000, (16 * 24 + 12) * 3_600_000)
    decision = await ledger.reserve("r1", A, layers, 4000)
    assert decision.remaining == Remaining(60, 59, 1000, 5000, 1000, (16 * 24 + 12) * 3_600_000)
    other = (*account(rpm=100, tpm=10_000), *key("k2", rpm=60))
    assert await ledger.peek(A, other) == Remaining(60, 60, 0, 10_000, 6000, 24_000)
    clock.advance(500)
    assert await ledger.peek(A, layers[1:]) == Remaining(60, 59, 500, 9000, 5000, 12 * 3_600_000 - 500)
    assert await ledger.peek(A, layers[2:]) == Remaining()


async def test_200_at_once_against_a_day_budget_of_50(ledger: Ledger) -> None:
    layers = account(tokens_per_day=500)
    answers = await asyncio.gather(*(ledger.reserve(f"r{n}", A, layers, 10) for n in range(200)))
    assert sum(a.admitted for a in answers) == 50


async def test_200_at_once_against_50_a_minute(ledger: Ledger, clock: Clock) -> None:
    layers = account(rpm=50)
    answers = await asyncio.gather(*(ledger.reserve(f"r{n}", A, layers, 10) for n in range(200)))
    assert sum(a.admitted for a in answers) == 50
    clock.advance(12_000)
    answers = await asyncio.gather(*(ledger.reserve(f"s{n}", A, layers, 10) for n in range(200)))
    assert sum(a.admitted for a in answers) == 10


async def test_the_audit_log_shows_counters_after_each_step(
    ledger: Ledger, clock: Clock, audit_log: list[AuditRecord]
) -> None:
    layers = account(rpm=2, tokens_per_day=100)
    await ledger.reserve("r1", A, layers, 60)
    await ledger.reserve("r2", A, layers, 60)
    await ledger.settle("r1", A, 25)
    assert [(r.event, r.lease_id, r.tokens) for r in audit_log] == [
        (Event.RESERVED, "r1", 60),
        (Event.REFUSED, "r2", 60),
        (Event.SETTLED, "r1", 25),
    ]
    used = [{c.dimension: (c.used, c.limit) for c in r.counters} for r in audit_log]
    assert used[0][Dimension.RPM] == (60_000, 2)
    assert [u[Dimension.TOKENS_PER_DAY] for u in used] == [(60, 100), (60, 100), (25, 100)]
    assert used[0][Dimension.REQUESTS_PER_DAY] == (1, None), "budgets are counted even when not limited"
    assert audit_log[0].now_ms == clock.now == int(datetime(2025, 3, 15, 12, tzinfo=UTC).timestamp() * 1000)
