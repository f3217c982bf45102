"""A Redis that loses replies, is silent, dies, and comes back with or without its memory."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Collection
from datetime import UTC, date, datetime
from typing import Any

import pytest

from quota.breaker import FAILURES, Breaker
from quota.degraded import DegradedLedger, WhenAway
from quota.ledger import CostAboveLimit, LedgerUnavailable, PastUsage, QuotaUnavailable
from quota.levels import Dimension, Layer, Level, Limits
from quota.patience import patience
from quota.redis import MAX_CONNECTIONS, RedisLedger
from tests.quota.chaos_proxy import ChaosProxy, Fault
from tests.quota.redis_server import RedisServer

A = "acme"


def account(**limits: int) -> tuple[Layer, ...]:
    return (Layer(Level.ACCOUNT, "", Limits(**limits)),)


@pytest.fixture
async def proxy(redis_server: RedisServer) -> AsyncIterator[ChaosProxy]:
    proxy = ChaosProxy(redis_server.port)
    await proxy.start()
    yield proxy
    await proxy.close()


@pytest.fixture
async def ledger(proxy: ChaosProxy, prefix: str) -> AsyncIterator[RedisLedger]:
    ledger = RedisLedger(proxy.url, prefix=prefix)
    yield ledger
    await ledger.close()


async def used(ledger: RedisLedger) -> dict[Dimension, int]:
    return {c.dimension: c.used for c in (await ledger.usage(A)).counters}


async def until(condition: Callable[[], bool]) -> None:
    while not condition():
        await asyncio.sleep(0.05)


# -- replies that are lost, or late --------------------------------------------------------------------------


async def test_a_lost_reply_is_asked_for_again_and_charges_once(ledger: RedisLedger, proxy: ChaosProxy) -> None:
    layers = account(tokens_per_day=1000, concurrent=5)
    await ledger.reserve("first", A, layers, 100)
    proxy.fault = Fault.LOSE_REPLY
    decision = await ledger.reserve("r1", A, layers, 50)
    assert decision.admitted
    assert decision.repeated, "the first time took effect"
    assert (await used(ledger))[Dimension.TOKENS_PER_DAY] == 150
    proxy.fault = Fault.LOSE_REPLY
    await ledger.settle("r1", A, 20)
    assert (await used(ledger))[Dimension.TOKENS_PER_DAY] == 120
    assert ledger.is_up


async def test_silence_opens_the_breaker_and_an_answer_closes_it(ledger: RedisLedger, proxy: ChaosProxy) -> None:
    await ledger.reserve("first", A, account(rpm=100), 1)
    proxy.fault = Fault.BLACKHOLE
    for _ in range(FAILURES):
        assert ledger.is_up
        with pytest.raises(LedgerUnavailable):
            await ledger.reserve("r1", A, account(rpm=100), 1)
    assert not ledger.is_up
    before = proxy.num_replies
    with pytest.raises(LedgerUnavailable, match="does not answer"):
        await ledger.reserve("r2", A, account(rpm=100), 1)
    assert proxy.num_replies == before
    proxy.fault = Fault.NONE
    await until(lambda: ledger.is_up)
    assert (await ledger.reserve("r3", A, account(rpm=100), 1)).admitted


async def test_a_crowd_waits_for_one_timeout_only(ledger: RedisLedger, proxy: ChaosProxy) -> None:
    """Whoever waits for a connection is answered as soon as one who has it gave up."""
    await ledger.reserve("first", A, account(rpm=1000), 1)
    proxy.fault = Fault.BLACKHOLE
    asked = 0
    link: Any = ledger._link
    exchange = link._exchange

    async def counted(*command: str | bytes | int) -> object:
        nonlocal asked
        asked += command[0] == "FCALL"
        return await exchange(*command)

    link._exchange = counted
    calls = []
    for n in range(60):
        calls.append(asyncio.create_task(ledger.reserve(f"r{n}", A, account(rpm=1000), 1)))
        await asyncio.sleep(0.002)
    answers = await asyncio.gather(*calls, return_exceptions=True)
    assert all(isinstance(answer, LedgerUnavailable) for answer in answers)
    assert asked <= MAX_CONNECTIONS


async def test_a_busy_event_loop_trips_nothing(ledger: RedisLedger, redis_server: RedisServer, prefix: str) -> None:
    direct = RedisLedger(redis_server.url, prefix=prefix, timeout=0.1)
    await direct.reserve("first", A, account(rpm=1000), 1)

    async def block() -> None:
        for _ in range(4):
            time.sleep(0.2)  # noqa: ASYNC251  the very thing that is tested
            await asyncio.sleep(0)

    _, *answers = await asyncio.gather(block(), *(direct.reserve(f"r{n}", A, account(rpm=1000), 1) for n in range(8)))
    assert all(answer.admitted for answer in answers if answer is not None)
    await direct.close()


async def test_patience_ends() -> None:
    with pytest.raises(TimeoutError):
        async with patience(0.01):
            await asyncio.Event().wait()


def test_only_failures_in_a_row_open_the_breaker() -> None:
    breaker = Breaker()
    assert [breaker.failed() for _ in range(FAILURES - 1)] == [False] * (FAILURES - 1)
    breaker.succeeded()
    assert [breaker.failed() for _ in range(FAILURES)] == [False] * (FAILURES - 1) + [True]
    assert breaker.is_open
    assert not breaker.failed(), "it is open already"


# -- a memory that is lost -----------------------------------------------------------------------------------


class Store:
    """The durable side: usage rows, and the epoch."""

    def __init__(self) -> None:
        self.epoch: str | None = None
        self.rows: list[PastUsage] = []
        self.num_reads = 0

    async def history(self, account: str, without: Collection[str]) -> list[PastUsage]:
        self.num_reads += 1
        await asyncio.sleep(0.01)
        return self.rows if account == A else []

    async def remember(self, epoch: str) -> None:
        self.epoch = epoch

    def ledger(self, server: RedisServer, recovery_ms: int = 0) -> RedisLedger:
        return RedisLedger(
            server.url,
            history=self.history,
            epoch=self.epoch,
            remember=self.remember,
            audit=True,
            timeout=2,
            recovery_ms=recovery_ms,
        )


def today() -> date:
    return datetime.now(UTC).date()


async def test_a_first_start_has_empty_buckets(mortal: RedisServer) -> None:
    store = Store()
    ledger = store.ledger(mortal)
    assert await ledger.epoch() is None
    assert (await ledger.reserve("r1", A, account(rpm=2, tpm=100), 100)).admitted
    assert store.epoch is not None
    assert await ledger.epoch() == store.epoch
    again = store.ledger(mortal)
    assert (await again.reserve("r2", A, account(rpm=2), 1)).admitted
    assert await again.epoch() == store.epoch
    assert store.num_reads == 1, "an account is opened once"
    await ledger.close()
    await again.close()


async def test_lost_memory_is_restored_before_anything_is_admitted(mortal: RedisServer) -> None:
    store = Store()
    ledger = store.ledger(mortal)
    layers = account(tokens_per_day=1000, concurrent=50)
    await ledger.reserve("r1", A, layers, 900)
    await ledger.settle("r1", A, 900)
    store.rows = [PastUsage(Level.ACCOUNT, "", today(), 1, 900)]
    first_epoch = store.epoch
    mortal.kill()
    mortal.start()
    assert await ledger.epoch() is None
    answers = await asyncio.gather(*(ledger.reserve(f"s{n}", A, layers, 30) for n in range(40)))
    assert sum(answer.admitted for answer in answers) == 3
    assert store.num_reads == 2, "one read for the whole crowd"
    assert store.epoch not in (None, first_epoch)
    assert await ledger.epoch() == store.epoch
    await ledger.close()


async def test_lost_memory_leaves_buckets_full(mortal: RedisServer) -> None:
    store = Store()
    ledgers = [store.ledger(mortal) for _ in range(2)]
    await ledgers[0].reserve("r1", A, account(rpm=6), 1)
    mortal.kill()
    mortal.start()
    for n, ledger in enumerate((ledgers[0], store.ledger(mortal))):
        refusal = (await ledger.reserve(f"s{n}", A, account(rpm=6), 1)).refusal
        assert refusal is not None
        assert refusal.retry_after_ms is not None
        assert 0 < refusal.retry_after_ms <= 10_000
        refusal = (await ledger.reserve(f"t{n}", "an account of later", account(rpm=6), 1)).refusal
        assert refusal is not None
        await ledger.close()


async def test_memory_lost_between_the_look_and_the_opening_admits_nothing(mortal: RedisServer) -> None:
    """Redis dies while the account's history is being read: what it was opened for is not there any more."""
    store = Store()
    ledger = store.ledger(mortal)
    await ledger.reserve("r0", "other", account(rpm=1), 1)
    epoch = store.epoch
    reads = 0

    async def history_and_crash(account: str, without: Collection[str]) -> list[PastUsage]:
        nonlocal reads
        reads += 1
        if reads == 1:
            mortal.kill()
            mortal.start()
        return [PastUsage(Level.ACCOUNT, "", today(), 1, 1000)]

    ledger._history = history_and_crash
    decision = await ledger.reserve("r1", A, account(tokens_per_day=1000), 1)
    assert not decision.admitted
    assert reads == 2
    assert store.epoch != epoch
    (bucket,) = [r async for r in ledger.audit_log(A) if r.lease_id == "r1"]
    assert not (await ledger.reserve("r2", "third", account(rpm=1), 1)).admitted, "full buckets"
    assert bucket.counters
    await ledger.close()


async def test_redis_killed_many_times_overspends_no_budget(mortal: RedisServer) -> None:
    store = Store()
    ledger = store.ledger(mortal)
    layers = account(tokens_per_day=500, concurrent=50)
    spent = 0
    for life in range(5):
        for n in range(8):
            lease_id = f"{life}.{n}"
            if (await ledger.reserve(lease_id, A, layers, 40)).admitted:
                await ledger.settle(lease_id, A, 20)
                spent += 20
                store.rows = [PastUsage(Level.ACCOUNT, "", today(), 1, spent)]
        mortal.kill()
        with pytest.raises(LedgerUnavailable):
            await ledger.reserve("x", A, layers, 1)
        mortal.start()
    assert 480 <= spent <= 500
    await ledger.close()


async def test_a_history_that_cannot_be_read_admits_nothing(redis_url: str, prefix: str) -> None:
    async def broken(account: str, without: Collection[str]) -> list[PastUsage]:
        raise RuntimeError("no database")

    ledger = RedisLedger(redis_url, prefix=prefix, history=broken)
    for n in range(2):
        with pytest.raises(LedgerUnavailable, match="usage"):
            await ledger.reserve(f"r{n}", A, account(rpm=10), 1)
    await ledger.close()


# -- going on without it -------------------------------------------------------------------------------------


@pytest.fixture
async def away(ledger: RedisLedger, proxy: ChaosProxy, clock: Callable[[], int]) -> DegradedLedger:
    """A share of a quarter; the shared ledger's connections are cut."""
    degraded = DegradedLedger(ledger, WhenAway.SHARE, max_gateways=4, clock=clock)
    assert (await degraded.reserve("before", A, account(rpm=400, concurrent=8), 10)).admitted
    proxy.fault = Fault.REFUSE
    return degraded


async def come_back(degraded: DegradedLedger, ledger: RedisLedger, proxy: ChaosProxy) -> None:
    proxy.fault = Fault.NONE
    await until(lambda: ledger.is_up)
    await degraded.catch_up()


async def test_a_share_without_a_burst(away: DegradedLedger, clock: object) -> None:
    layers = account(rpm=400, concurrent=8)
    refused = await away.reserve("r0", A, layers, 1)
    assert refused.refusal is not None
    assert (refused.refusal.dimension, refused.refusal.limit) == (Dimension.RPM, 100)
    assert refused.refusal.retry_after_ms == 600
    clock.advance(1200)  # type: ignore[attr-defined]
    answers = [(await away.reserve(f"r{n}", A, layers, 1)).admitted for n in range(4)]
    assert answers == [True, False, False, False], "a share of two, and one runs from before"
    clock.advance(6000)  # type: ignore[attr-defined]
    refusal = (await away.reserve("r9", A, layers, 1)).refusal
    assert refusal is not None
    assert refusal.dimension is Dimension.CONCURRENT
    assert away.is_away


async def test_budgets_are_closed(away: DegradedLedger) -> None:
    for limits in ({"tokens_per_day": 100}, {"requests_per_day": 9}, {"tokens_per_month": 1000, "rpm": 60}):
        with pytest.raises(QuotaUnavailable):
            await away.reserve("r1", A, account(**limits), 1)


async def test_a_limit_below_one_a_gateway_is_closed_and_not_the_clients_fault(away: DegradedLedger) -> None:
    with pytest.raises(QuotaUnavailable):
        await away.reserve("r1", A, account(rpm=3), 1)
    with pytest.raises(CostAboveLimit):
        await away.reserve("r1", A, account(tpm=3), 4)


@pytest.mark.parametrize("mode", [WhenAway.CLOSED, WhenAway.OPEN])
async def test_the_other_modes(ledger: RedisLedger, proxy: ChaosProxy, mode: WhenAway) -> None:
    degraded = DegradedLedger(ledger, mode, max_gateways=4)
    proxy.fault = Fault.REFUSE
    layers = account(rpm=4, tokens_per_day=1000)
    if mode is WhenAway.CLOSED:
        with pytest.raises(QuotaUnavailable):
            await degraded.reserve("r1", A, layers, 1)
    else:
        for n in range(50):
            assert (await degraded.reserve(f"r{n}", A, layers, 1)).admitted
            assert await degraded.settle(f"r{n}", A, 1)


async def test_what_began_before_is_settled_afterwards(
    away: DegradedLedger, ledger: RedisLedger, proxy: ChaosProxy
) -> None:
    assert await away.renew(A, {"before": 5}) == frozenset(), "nobody knows: nothing is aborted"
    assert await away.settle("before", A, 7)
    await come_back(away, ledger, proxy)
    assert not away.is_away
    after = await used(ledger)
    assert Dimension.CONCURRENT not in after
    assert after[Dimension.TOKENS_PER_DAY] == 7


async def test_what_was_admitted_alone_is_told_afterwards(
    away: DegradedLedger, ledger: RedisLedger, proxy: ChaosProxy
) -> None:
    """What runs counts, here while Redis is away and there when it is back; so does what has ended meanwhile."""
    layers = account(concurrent=12)  # a share of three; "before" runs
    assert (await away.reserve("alone", A, layers, 10)).admitted
    assert (await away.reserve("ended", A, layers, 10)).admitted
    assert not (await away.reserve("fourth", A, layers, 10)).admitted
    assert await away.settle("ended", A, 5)
    assert not await away.settle("ended", A, 5)
    assert (await away.reserve("gone", A, layers, 10)).admitted
    assert await away.release("gone", A)
    assert await away.renew(A, {"alone": 3, "before": 3}) == frozenset()
    assert (await away.reserve("alone", A, layers, 10)).repeated
    await come_back(away, ledger, proxy)
    after = await used(ledger)
    assert (after[Dimension.CONCURRENT], after[Dimension.TOKENS_PER_DAY]) == (2, 10 + 10 + 5)
    assert (await away.reserve("alone", A, layers, 10)).repeated
    assert await away.renew(A, {"alone": 3, "before": 3}) == frozenset()
    assert await away.settle("alone", A, 4)
    assert not await away.settle("alone", A, 4)
    assert await away.settle("before", A, 1)
    after = await used(ledger)
    assert Dimension.CONCURRENT not in after
    assert (after[Dimension.TOKENS_PER_DAY], after[Dimension.REQUESTS_PER_DAY]) == (4 + 1 + 5, 3)
    await away.check_integrity()


async def test_what_runs_counts_toward_the_share(away: DegradedLedger) -> None:
    """Of a limit of four a gateway alone has one place, and the lease from before holds it."""
    refusal = (await away.reserve("r1", A, account(concurrent=4), 1)).refusal
    assert refusal is not None
    assert refusal.dimension is Dimension.CONCURRENT
    assert await away.settle("before", A, 1)
    assert (await away.reserve("r1", A, account(concurrent=4), 1)).admitted


async def test_refusals_push_out_no_real_ending(
    away: DegradedLedger, ledger: RedisLedger, proxy: ChaosProxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("quota.degraded.MAX_DOUBTS", 10)
    assert await away.settle("before", A, 7)
    for n in range(25):
        with pytest.raises(QuotaUnavailable):
            await away.reserve(f"r{n}", A, account(tokens_per_day=1000), 1)
    await come_back(away, ledger, proxy)
    after = await used(ledger)
    assert after[Dimension.TOKENS_PER_DAY] == 7
    assert Dimension.CONCURRENT not in after


async def test_a_readmission_without_an_answer_releases_nothing(
    away: DegradedLedger, ledger: RedisLedger, proxy: ChaosProxy
) -> None:
    """Its request runs on for a moment, and settles what it used."""
    with pytest.raises(QuotaUnavailable):
        await away.reserve("before", A, account(rpm=400, tokens_per_day=1000), 10)
    await come_back(away, ledger, proxy)
    assert await away.settle("before", A, 8)
    assert (await used(ledger))[Dimension.TOKENS_PER_DAY] == 8


async def test_one_broken_account_holds_up_no_other(
    away: DegradedLedger, ledger: RedisLedger, proxy: ChaosProxy, redis_server: RedisServer, prefix: str
) -> None:
    assert await away.settle("lost", "broken", 1)
    assert await away.settle("before", A, 7)
    direct = RedisLedger(redis_server.url, prefix=prefix)
    await direct._link.ask("SET", f"{direct._prefix}:{{broken}}:o", "not a sorted set")
    await direct._link.ask("SET", f"{direct._prefix}:{{broken}}:e", "open 0 x 0 0")
    await come_back(away, ledger, proxy)
    assert (await used(ledger))[Dimension.TOKENS_PER_DAY] == 7
    assert not away._endings
    await direct.close()


async def test_an_admission_of_unknown_outcome_is_given_back(redis_server: RedisServer, prefix: str) -> None:
    """The reply was lost for good: it may hold a place in Redis, until the gateway says that it is not needed."""
    proxy = ChaosProxy(redis_server.port)
    await proxy.start()
    shared = RedisLedger(proxy.url, prefix=prefix)
    degraded = DegradedLedger(shared, WhenAway.CLOSED)
    await degraded.reserve("first", A, account(concurrent=2), 1)
    proxy.delay = 0.6
    with pytest.raises(QuotaUnavailable):
        await degraded.reserve("lost", A, account(concurrent=2), 1)
    proxy.delay = 0
    await degraded.catch_up()
    assert [lease.lease_id for lease in (await degraded.usage(A)).leases] == ["first"]
    await degraded.close()
    await proxy.close()


async def test_the_list_of_endings_is_bounded(away: DegradedLedger, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("quota.degraded.MAX_ENDINGS", 10)
    for n in range(25):
        await away.settle(f"r{n}", A, 1)
    assert list(away._endings) == [f"r{n}" for n in range(15, 25)]
