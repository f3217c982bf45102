"""What an admission reports beside its answer: limits that are nearly reached, and shadow limits that are passed."""

from __future__ import annotations

from dataclasses import replace

import pytest

from quota.ledger import Ledger
from quota.levels import Dimension, Kind, Layer, Level, Limits
from tests.quota.conftest import Clock

A = "acme"
IDS = [dimension.value for dimension in Dimension]


def layers(dimension: Dimension, limit: int, *, shadow: bool = False) -> tuple[Layer, ...]:
    shadows = frozenset({dimension} if shadow else ())
    return (Layer(Level.ACCOUNT, "", Limits(**{dimension.value: limit}, shadow=shadows)),)


async def near(ledger: Ledger, lease_id: str, asked: tuple[Layer, ...], tokens: int = 1) -> bool:
    decision = await ledger.reserve(lease_id, A, asked, tokens)
    assert decision.admitted
    assert decision.near in ((), ((Level.ACCOUNT, asked[0].limits.items()[0][0]),))
    return bool(decision.near)


@pytest.mark.parametrize("dimension", Dimension, ids=IDS)
async def test_eighty_percent_of_a_limit_is_reported(ledger: Ledger, dimension: Dimension) -> None:
    asked = layers(dimension, 10)
    assert [await near(ledger, f"r{n}", asked) for n in range(10)] == [False] * 7 + [True] * 3
    assert (await ledger.reserve("r10", A, asked, 1)).near == (), "a refusal is another report"
    assert (await ledger.reserve("r9", A, asked, 1)).near == (), "a repeat says nothing new"


@pytest.mark.parametrize("dimension", Dimension, ids=IDS)
async def test_a_shadow_limit_counts_and_refuses_nothing(ledger: Ledger, dimension: Dimension) -> None:
    asked = layers(dimension, 3, shadow=True)
    reports = []
    for n in range(6):
        decision = await ledger.reserve(f"r{n}", A, asked, 1)
        assert decision.admitted
        assert decision.near == ()
        assert (decision.remaining.limit_requests, decision.remaining.limit_tokens) == (None, None)
        reports += [(refusal.dimension, refusal.limit, refusal.retry_after_ms) for refusal in decision.shadowed]
    assert reports == [(dimension, 3, None)] * 3
    (counter,) = [c for c in (await ledger.usage(A)).counters if c.dimension is dimension]
    assert counter.used == (3 * 60_000 if dimension.kind is Kind.BUCKET else 6), "a bucket is full at most"


async def test_a_request_above_a_whole_shadow_limit_is_admitted(ledger: Ledger) -> None:
    decision = await ledger.reserve("r1", A, layers(Dimension.TPM, 3, shadow=True), 100)
    assert decision.admitted
    assert [refusal.dimension for refusal in decision.shadowed] == [Dimension.TPM]


async def test_a_limit_that_is_no_shadow_any_more_knows_what_was_counted(ledger: Ledger) -> None:
    asked = layers(Dimension.REQUESTS_PER_DAY, 2, shadow=True)
    for n in range(4):
        await ledger.reserve(f"r{n}", A, asked, 1)
    (layer,) = asked
    enforced = (replace(layer, limits=replace(layer.limits, shadow=frozenset())),)
    refusal = (await ledger.reserve("r4", A, enforced, 1)).refusal
    assert refusal is not None
    assert refusal.dimension is Dimension.REQUESTS_PER_DAY


async def test_real_limits_beside_shadows_refuse_alone(ledger: Ledger, clock: Clock) -> None:
    limits = Limits(rpm=2, tpm=10, concurrent=1, shadow=frozenset({Dimension.TPM, Dimension.CONCURRENT}))
    asked = (Layer(Level.ACCOUNT, "", limits),)
    assert (await ledger.reserve("r1", A, asked, 8)).shadowed == ()
    assert {r.dimension for r in (await ledger.reserve("r2", A, asked, 8)).shadowed} == limits.shadow
    decision = await ledger.reserve("r3", A, asked, 8)
    assert decision.refusal is not None
    assert (decision.refusal.dimension, decision.shadowed) == (Dimension.RPM, ())
    clock.advance(30_000)
    assert (await ledger.reserve("r3", A, asked, 8)).admitted
