"""One random history, one clock, both ledgers: every answer and every audit record must be equal."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from datetime import UTC, date, datetime, timedelta
from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule, run_state_machine_as_test

from quota.counters import CounterKey
from quota.ledger import LEASE_MS, AccountUsage, AuditRecord, CostAboveLimit, Counter
from quota.levels import Dimension, Layer, Level, Limits
from quota.memory import MemoryLedger
from tests.quota.conftest import AuditedRedisLedger
from tests.scale import cut

EXAMPLES = cut(60, 2000)
START = int(datetime(2025, 2, 28, 23, 55, tzinfo=UTC).timestamp()) * 1000
HUGE = Dimension.TPM.max_limit

# Mostly few names and close limits, so that leases meet each other, their own past and a changed limit often.
CLOSE = st.sampled_from(
    [
        Limits(rpm=4, tpm=70, concurrent=3),
        Limits(tpm=45, rpm=2, concurrent=4),
        Limits(tpm=200, tokens_per_day=150, requests_per_day=9),
        Limits(tpm=60, tokens_per_month=300, tokens_per_day=100),
        Limits(tpm=HUGE, rpm=HUGE, tokens_per_day=10**15, tokens_per_month=10**15),
        Limits(tpm=HUGE - 7, tokens_per_month=HUGE + 13),
    ]
)
ANY = st.builds(
    Limits,
    rpm=st.none() | st.integers(0, 9),
    tpm=st.none() | st.integers(1, 200) | st.integers(HUGE - 999, HUGE),
    requests_per_day=st.none() | st.integers(1, 9),
    tokens_per_day=st.none() | st.integers(1, 300),
    tokens_per_month=st.none() | st.integers(1, 600),
    concurrent=st.none() | st.integers(1, 3),
)
SHADOWS = st.just(frozenset[Dimension]()) | st.frozensets(st.sampled_from(Dimension))


def with_shadow(limits: Limits, shadow: frozenset[Dimension]) -> Limits:
    return replace(limits, shadow=shadow & {dimension for dimension, _ in limits.items()})


SOME = st.builds(with_shadow, CLOSE, SHADOWS)
LAYER = st.builds(
    Layer, st.sampled_from(Level), st.sampled_from(["", "x", "ü:{}%|\0"]), st.builds(with_shadow, ANY, SHADOWS)
)
ONE = st.builds(lambda limits: [Layer(Level.ACCOUNT, "", limits)], SOME)
TWO = st.builds(lambda a, b: [Layer(Level.ACCOUNT, "", a), Layer(Level.KEY, "x", b)], SOME, SOME)
LAYERS = ONE | TWO | st.lists(LAYER, max_size=5)
LEASE = st.sampled_from(["r0", "r1", "r2", "r3", "r4"])
TOKENS = st.integers(0, 60) | st.integers(HUGE - 100, HUGE + 100)
ACCOUNT = st.sampled_from(["a", "a", "a", "b"])
WAITS = st.sampled_from([1, 7, 499, 1000, 5000, 20_000, LEASE_MS - 1, LEASE_MS, 61_000, 310_000])


def counter_key(counter: Counter) -> CounterKey:
    return CounterKey(counter.level, counter.name, counter.dimension, counter.period)


class Twins(RuleBasedStateMachine):
    def __init__(self, url: str, prefix: str, lost: bool) -> None:
        super().__init__()
        self.now = START
        self.runner = asyncio.Runner()
        self.records: tuple[list[AuditRecord], list[AuditRecord]] = ([], [])
        self.memory = MemoryLedger(lambda: self.now, audit=self.records[0].append)
        self.redis = AuditedRedisLedger(
            url, self.records[1].append, clock=lambda: self.now, prefix=prefix, recovery_ms=0
        )
        if lost:
            self.memory.fill()
            self.redis._epochs.known = "of a memory that is lost"
            self.runner.run(self.redis.peek("a", ()))

    def teardown(self) -> None:
        self.runner.run(self.redis.close())
        self.runner.close()

    def both(self, method: str, *arguments: Any) -> None:
        answers = [self.answer(ledger, method, arguments) for ledger in (self.memory, self.redis)]
        assert answers[1] == answers[0]
        assert self.comparable(self.records[1]) == self.comparable(self.records[0])
        for records in self.records:
            records.clear()

    def answer(self, ledger: Any, method: str, arguments: Any) -> Any:
        try:
            return self.runner.run(getattr(ledger, method)(*arguments))
        except CostAboveLimit as error:
            return (error.level, error.name, error.dimension, error.limit, error.cost)
        except ValueError as error:
            return str(error)

    @staticmethod
    def comparable(records: list[AuditRecord]) -> list[Any]:
        """Leases that expire in the same millisecond do so in any order; so then do the counters between them."""
        if len(records) <= 1:
            return [replace(record, counters=tuple(sorted(record.counters, key=counter_key))) for record in records]
        return sorted((r.event, r.lease_id, r.tokens, r.now_ms) for r in records)

    @rule(ms=WAITS)
    def wait(self, ms: int) -> None:
        self.now += ms

    @rule(rarely=st.integers(0, 9), days=st.sampled_from([1, 31]))
    def sleep(self, rarely: int, days: int) -> None:
        self.now += days * 86_400_000 if rarely == 9 else 1

    @rule(account=ACCOUNT, lease_id=LEASE, layers=LAYERS, tokens=TOKENS)
    def reserve(self, account: str, lease_id: str, layers: list[Layer], tokens: int) -> None:
        self.both("reserve", lease_id, account, layers, tokens)

    @rule(account=ACCOUNT, lease_id=LEASE, layers=ONE, tokens=st.integers(1, 60))
    def reserve_in_one_layer(self, account: str, lease_id: str, layers: list[Layer], tokens: int) -> None:
        self.both("reserve", lease_id, account, layers, tokens)

    @rule(account=ACCOUNT, lease_id=LEASE, tokens=TOKENS)
    def settle(self, account: str, lease_id: str, tokens: int) -> None:
        self.both("settle", lease_id, account, tokens)

    @rule(account=ACCOUNT, lease_id=LEASE)
    def release(self, account: str, lease_id: str) -> None:
        self.both("release", lease_id, account)

    @rule(account=ACCOUNT, reports=st.dictionaries(LEASE, TOKENS, max_size=5))
    def renew(self, account: str, reports: dict[str, int]) -> None:
        self.both("renew", account, reports)

    @rule(account=ACCOUNT, layers=LAYERS)
    def peek(self, account: str, layers: list[Layer]) -> None:
        self.both("peek", account, layers)

    @rule(account=ACCOUNT, level=st.sampled_from(Level), days=st.sampled_from([0, 1, 3, 40]), tokens=TOKENS)
    def restore(self, account: str, level: Level, days: int, tokens: int) -> None:
        day = date(1970, 1, 1) + timedelta(self.now // 86_400_000 - days)
        self.both("restore", account, level, "" if level is Level.ACCOUNT else "x", day, 2, tokens)

    @invariant()
    def books_agree(self) -> None:
        self.runner.run(self.redis.check_integrity())
        for account in ("a", "b"):
            memory, redis = (self.runner.run(ledger.usage(account)) for ledger in (self.memory, self.redis))
            assert self.living(redis) == self.living(memory)
            assert {lease.lease_id: lease for lease in redis.leases} == {
                lease.lease_id: lease for lease in memory.leases
            }
        for records in self.records:
            records.clear()

    def living(self, usage: AccountUsage) -> dict[CounterKey, Counter]:
        """The counters that still say something: each ledger sweeps the others when it likes."""
        keyed = {counter_key(c): c for c in usage.counters if c.used}
        return {key: counter for key, counter in keyed.items() if not key.is_over(self.now)}


@pytest.mark.parametrize("lost", [False, True], ids=["from the start", "after a loss"])
def test_both_ledgers_give_the_same_answers(redis_url: str, prefix: str, lost: bool) -> None:
    run_state_machine_as_test(  # type: ignore[no-untyped-call]
        lambda: Twins(redis_url, prefix, lost),
        settings=settings(
            max_examples=EXAMPLES // 3 if lost else EXAMPLES,
            stateful_step_count=40,
            deadline=None,
            database=None,
            report_multiple_bugs=False,
            suppress_health_check=list(HealthCheck),
        ),
    )
