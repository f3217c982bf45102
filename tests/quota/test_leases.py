"""settle, release, renew, expiry: each lease ends once, and what it holds is exact until then."""

from __future__ import annotations

import random
from typing import TYPE_CHECKING

import pytest

from quota.ledger import LEASE_MS, Ledger
from quota.levels import Dimension, Layer, Level, Limits

if TYPE_CHECKING:
    from tests.quota.conftest import Clock

A = "acme"
FULL = Limits(rpm=100, tpm=60_000, requests_per_day=100, tokens_per_day=1000, tokens_per_month=5000, concurrent=10)
LAYERS = (Layer(Level.ACCOUNT, "", FULL),)


async def used(ledger: Ledger) -> dict[Dimension, int]:
    """What the account's counters say, buckets in sixty-thousandths."""
    return {c.dimension: c.used for c in (await ledger.usage(A)).counters}


async def test_settle_refunds_the_difference(ledger: Ledger) -> None:
    await ledger.reserve("r1", A, LAYERS, 800)
    assert await used(ledger) == {
        Dimension.RPM: 60_000,
        Dimension.TPM: 800 * 60_000,
        Dimension.REQUESTS_PER_DAY: 1,
        Dimension.TOKENS_PER_DAY: 800,
        Dimension.TOKENS_PER_MONTH: 800,
        Dimension.CONCURRENT: 1,
    }
    assert await ledger.settle("r1", A, 300)
    assert await used(ledger) == {
        Dimension.RPM: 60_000,
        Dimension.TPM: 300 * 60_000,
        Dimension.REQUESTS_PER_DAY: 1,
        Dimension.TOKENS_PER_DAY: 300,
        Dimension.TOKENS_PER_MONTH: 300,
    }
    assert (await ledger.usage(A)).leases == ()


async def test_release_gives_everything_back(ledger: Ledger) -> None:
    await ledger.reserve("r1", A, LAYERS, 800)
    before = (await ledger.usage(A)).leases
    assert [lease.lease_id for lease in before] == ["r1"]
    assert await ledger.release("r1", A)
    assert not any((await used(ledger)).values())
    assert not await ledger.release("r1", A)
    assert not await ledger.settle("r1", A, 5)
    assert not any((await used(ledger)).values())


async def test_a_lease_ends_once(ledger: Ledger) -> None:
    await ledger.reserve("r1", A, LAYERS, 800)
    await ledger.reserve("r2", A, LAYERS, 100)
    assert await ledger.settle("r1", A, 300)
    after = await used(ledger)
    assert not await ledger.settle("r1", A, 300)
    assert not await ledger.settle("r1", A, 0)
    assert not await ledger.release("r1", A)
    assert await used(ledger) == after
    assert after[Dimension.CONCURRENT] == 1


async def test_an_unknown_lease_or_account_settles_nothing(ledger: Ledger) -> None:
    await ledger.reserve("r1", A, LAYERS, 800)
    before = await ledger.usage(A)
    assert not await ledger.settle("r9", A, 5)
    assert not await ledger.release("r9", A)
    assert not await ledger.settle("r1", "other", 5)
    assert await ledger.renew("other", {"r1": 5}) == {"r1"}
    assert await ledger.usage(A) == before


async def test_more_than_reserved_is_charged_even_past_a_budget(ledger: Ledger) -> None:
    await ledger.reserve("r1", A, LAYERS, 990)
    await ledger.settle("r1", A, 1005)
    after = await used(ledger)
    assert after[Dimension.TOKENS_PER_DAY] == 1005
    assert after[Dimension.TPM] == 1005 * 60_000
    assert (await ledger.peek(A, LAYERS)).remaining_tokens == 0
    assert not (await ledger.reserve("r2", A, LAYERS, 1)).admitted


async def test_an_overrun_fills_a_bucket_but_no_more(ledger: Ledger) -> None:
    layers = (Layer(Level.ACCOUNT, "", Limits(tpm=100)),)
    await ledger.reserve("r1", A, layers, 100)
    await ledger.settle("r1", A, 5000)
    assert (await used(ledger))[Dimension.TPM] == 100 * 60_000


async def test_a_refund_returns_only_what_time_has_not(ledger: Ledger, clock: Clock) -> None:
    """Reservations that have leaked away can't be saved up and spent again."""
    layers = (Layer(Level.ACCOUNT, "", Limits(tpm=60_000)),)
    await ledger.reserve("slow", A, layers, 60_000)
    for _ in range(3):
        clock.advance(20_000)
        await ledger.renew(A, {"slow": 1})
    assert (await ledger.reserve("big", A, layers, 60_000)).admitted
    await ledger.settle("slow", A, 1)
    assert (await ledger.peek(A, layers)).remaining_tokens == 0
    assert not (await ledger.reserve("more", A, layers, 59_999)).admitted


async def test_a_refund_is_whole_while_all_of_the_charge_still_stands(ledger: Ledger, clock: Clock) -> None:
    layers = (Layer(Level.ACCOUNT, "", Limits(tpm=60_000)),)
    await ledger.reserve("first", A, layers, 50_000)
    await ledger.reserve("second", A, layers, 10_000)
    clock.advance(20_000)
    await ledger.settle("second", A, 100)
    assert (await ledger.peek(A, layers)).remaining_tokens == 60_000 - (30_000 + 100)


async def test_expiry_frees_concurrency_and_charges_budgets_the_last_report(ledger: Ledger, clock: Clock) -> None:
    await ledger.reserve("r1", A, LAYERS, 900)
    clock.advance(10_000)
    assert await ledger.renew(A, {"r1": 120}) == frozenset()
    await ledger.renew(A, {"r1": 90})
    clock.advance(LEASE_MS - 1)
    assert (await used(ledger))[Dimension.CONCURRENT] == 1
    clock.advance(1)
    after = await used(ledger)
    assert Dimension.CONCURRENT not in after
    assert after[Dimension.TOKENS_PER_DAY] == after[Dimension.TOKENS_PER_MONTH] == 120
    assert after[Dimension.REQUESTS_PER_DAY] == 1


async def test_expiry_leaves_the_minute_charged(ledger: Ledger, clock: Clock) -> None:
    layers = (Layer(Level.ACCOUNT, "", Limits(tpm=1000, concurrent=1)),)
    await ledger.reserve("r1", A, layers, 1000)
    clock.advance(LEASE_MS)
    assert (await ledger.peek(A, layers)).remaining_tokens == 500
    assert (await ledger.reserve("r2", A, layers, 500)).admitted


async def test_renewals_hold_a_lease_for_ever(ledger: Ledger, clock: Clock) -> None:
    await ledger.reserve("r1", A, LAYERS, 900)
    for n in range(100):
        clock.advance(LEASE_MS - 1)
        assert await ledger.renew(A, {"r1": n}) == frozenset()
    (lease,) = (await ledger.usage(A)).leases
    assert lease.expires_at == clock.now + LEASE_MS
    assert (await used(ledger))[Dimension.CONCURRENT] == 1


async def test_renew_answers_the_expired_and_the_unknown(ledger: Ledger, clock: Clock) -> None:
    for lease_id in ("dead", "done", "late"):
        await ledger.reserve(lease_id, A, LAYERS, 10)
    await ledger.settle("done", A, 10)
    clock.advance(LEASE_MS)
    await ledger.reserve("alive", A, LAYERS, 10)
    answer = await ledger.renew(A, {"dead": 1, "alive": 2, "late": 1, "never": 0})
    assert answer == {"dead", "late", "never"}


async def test_a_finished_lease_is_not_reported_as_expired(ledger: Ledger) -> None:
    await ledger.reserve("r1", A, LAYERS, 10)
    await ledger.settle("r1", A, 10)
    assert await ledger.renew(A, {"r1": 10}) == frozenset()


async def test_settling_an_expired_lease_corrects_the_tokens_only(ledger: Ledger, clock: Clock) -> None:
    await ledger.reserve("r1", A, LAYERS, 900)
    await ledger.renew(A, {"r1": 100})
    clock.advance(LEASE_MS)
    await ledger.reserve("r2", A, LAYERS, 10)
    assert await ledger.settle("r1", A, 450)
    after = await used(ledger)
    assert after[Dimension.TOKENS_PER_DAY] == 460
    assert after[Dimension.CONCURRENT] == 1, "the other lease's, not freed twice"
    assert not await ledger.settle("r1", A, 450)
    assert await used(ledger) == after


async def test_an_expired_lease_is_forgotten_in_the_end(ledger: Ledger, clock: Clock) -> None:
    await ledger.reserve("r1", A, LAYERS, 900)
    clock.advance(11 * LEASE_MS - 1)
    await ledger.reserve("r2", A, LAYERS, 900)
    clock.advance(1)
    assert not await ledger.settle("r1", A, 450)
    await ledger.settle("r2", A, 30)
    assert (await used(ledger))[Dimension.TOKENS_PER_DAY] == 30


async def test_an_expired_lease_is_admitted_again_without_paying_twice(ledger: Ledger, clock: Clock) -> None:
    await ledger.reserve("r1", A, LAYERS, 600)
    await ledger.renew(A, {"r1": 200})
    clock.advance(LEASE_MS)
    assert await ledger.renew(A, {"r1": 250}) == {"r1"}
    again = await ledger.reserve("r1", A, LAYERS, 600)
    assert again.admitted
    assert not again.repeated
    after = await used(ledger)
    assert after[Dimension.TOKENS_PER_DAY] == 600
    assert after[Dimension.REQUESTS_PER_DAY] == 1
    assert after[Dimension.CONCURRENT] == 1
    await ledger.settle("r1", A, 580)
    assert (await used(ledger))[Dimension.TOKENS_PER_DAY] == 580


async def test_an_expired_lease_is_refused_when_its_place_is_taken(ledger: Ledger, clock: Clock) -> None:
    layers = (Layer(Level.ACCOUNT, "", Limits(concurrent=1, tokens_per_day=1000)),)
    await ledger.reserve("r1", A, layers, 600)
    clock.advance(LEASE_MS)
    assert (await ledger.reserve("r2", A, layers, 600)).admitted
    again = await ledger.reserve("r1", A, layers, 600)
    assert again.refusal is not None
    assert await ledger.settle("r1", A, 50), "it can still be settled for what it used"
    assert (await used(ledger))[Dimension.TOKENS_PER_DAY] == 650


async def test_release_of_an_expired_lease_gives_the_rest_back(ledger: Ledger, clock: Clock) -> None:
    await ledger.reserve("r1", A, LAYERS, 600)
    await ledger.renew(A, {"r1": 200})
    clock.advance(LEASE_MS)
    assert await ledger.release("r1", A)
    assert not any((await used(ledger)).values())


async def test_overdue_leases_are_ended_oldest_first_a_bounded_number_a_call(ledger: Ledger, clock: Clock) -> None:
    layers = (Layer(Level.ACCOUNT, "", Limits(concurrent=200)),)
    for n in range(200):
        await ledger.reserve(f"r{n}", A, layers, 1)
    clock.advance(LEASE_MS)
    assert (await ledger.reserve("next", A, layers, 1)).admitted
    for _ in range(3):
        await ledger.peek(A, layers)
    assert [lease.lease_id for lease in (await ledger.usage(A)).leases] == ["next"]


@pytest.mark.parametrize("seed", range(5))
async def test_late_duplicate_and_out_of_order_endings_sum_up(ledger: Ledger, clock: Clock, seed: int) -> None:
    rng = random.Random(seed)
    limits = Limits(tokens_per_day=10**9, requests_per_day=10**9, concurrent=10**6)
    layers = (Layer(Level.ACCOUNT, "", limits),)
    calls, total, requests = [], 0, 0
    for n in range(300):
        await ledger.reserve(f"r{n}", A, layers, rng.randrange(1, 100))
        kind, actual = rng.choice(("settle", "settle", "release")), rng.randrange(100)
        calls += [(f"r{n}", kind, actual)] * rng.randrange(1, 4)
        total += actual if kind == "settle" else 0
        requests += kind == "settle"
    rng.shuffle(calls)
    for lease_id, kind, actual in calls:
        clock.advance(rng.randrange(150))
        if kind == "settle":
            await ledger.settle(lease_id, A, actual)
        else:
            await ledger.release(lease_id, A)
    after = await used(ledger)
    assert after[Dimension.TOKENS_PER_DAY] == total
    assert after[Dimension.REQUESTS_PER_DAY] == requests
    assert Dimension.CONCURRENT not in after
    assert (await ledger.usage(A)).leases == ()


async def test_a_renewed_lease_does_not_shield_a_dead_one(ledger: Ledger, clock: Clock) -> None:
    layers = (Layer(Level.ACCOUNT, "", Limits(concurrent=2)),)
    await ledger.reserve("alive", A, layers, 1)
    clock.advance(1000)
    await ledger.reserve("dead", A, layers, 1)
    clock.advance(20_000)
    await ledger.renew(A, {"alive": 1})
    clock.advance(10_000)
    assert (await ledger.reserve("next", A, layers, 1)).admitted
    assert {lease.lease_id for lease in (await ledger.usage(A)).leases} == {"alive", "next"}


async def test_a_lease_admitted_again_keeps_its_day(ledger: Ledger, clock: Clock) -> None:
    layers = (Layer(Level.ACCOUNT, "", Limits(tokens_per_day=100)),)
    clock.set(2025, 3, 15, 23, 59, 59)
    await ledger.reserve("r1", A, layers, 80)
    await ledger.renew(A, {"r1": 30})
    clock.advance(LEASE_MS)
    assert (await ledger.reserve("r1", A, layers, 80)).admitted
    assert (await ledger.peek(A, layers)).remaining_tokens == 100
    await ledger.settle("r1", A, 70)
    (day,) = [c for c in (await ledger.usage(A)).counters if c.dimension is Dimension.TOKENS_PER_DAY]
    assert (day.period, day.used) == (clock.now // 86_400_000 - 1, 70)


async def test_an_emptied_bucket_is_as_good_as_a_new_one(ledger: Ledger, clock: Clock) -> None:
    """A settlement meets the same bucket whether or not the empty one has been dropped meanwhile."""
    wide, narrow = ((Layer(Level.ACCOUNT, "", Limits(tpm=tpm)),) for tpm in (1000, 10))
    await ledger.reserve("r1", A, wide, 1000)
    clock.advance(20_000)
    await ledger.reserve("r2", A, narrow, 0)
    clock.advance(9_000)
    await ledger.renew(A, {"r1": 1000})
    clock.advance(29_000)
    await ledger.renew(A, {"r1": 1000})
    clock.advance(29_000)
    await ledger.settle("r1", A, 1500)
    assert (await used(ledger))[Dimension.TPM] == 500 * 60_000
