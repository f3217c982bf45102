"""Random histories, answered by a ledger and by a deliberately naive model: every answer must agree.

The model keeps the full history and fractions, forgets nothing, and computes every counter anew from what
all leases ever did.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, timedelta
from fractions import Fraction
from typing import Any

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule, run_state_machine_as_test

from quota.ledger import (
    EXPIRED_LEASE_PERIODS,
    LEASE_MS,
    AuditRecord,
    CostAboveLimit,
    Event,
    Ledger,
    QuotaDecision,
)
from quota.levels import Dimension, Kind, Layer, Level, Limits, Unit
from quota.meters import MINUTE_MS

START = int(datetime(2025, 2, 28, 23, 58, tzinfo=UTC).timestamp()) * 1000
ACCOUNTS = ("a", "b")
BUDGETS = tuple(d for d in Dimension if d.kind is Kind.BUDGET)

Slot = tuple[Level, str, Dimension]


def day_of(ms: int) -> date:
    return datetime.fromtimestamp(ms / 1000, UTC).date()


def period_end(dimension: Dimension, at: int) -> int:
    day = day_of(at)
    following = day + timedelta(1)
    while dimension is Dimension.TOKENS_PER_MONTH and following.month == day.month:
        following += timedelta(1)
    return int(datetime(following.year, following.month, following.day, tzinfo=UTC).timestamp()) * 1000


def same_period(dimension: Dimension, a: date, b: date) -> bool:
    if dimension is Dimension.TOKENS_PER_MONTH:
        return (a.year, a.month) == (b.year, b.month)
    return a == b


@dataclass
class NaiveBucket:
    """Every change that was ever made: (when, limit, amount)."""

    changes: list[tuple[int, int, Fraction]] = field(default_factory=list)

    def level(self, now: int, limit: int) -> Fraction:
        level, then, own = Fraction(0), 0, 0
        for when, at_limit, amount in self.changes:
            level = self._leaked(level, when - then, own, at_limit)
            level = max(Fraction(0), min(level + amount, Fraction(at_limit)))
            then, own = when, at_limit
        return self._leaked(level, now - then, own, limit)

    def own_limit(self, now: int, default: int) -> int:
        """The limit last charged under, or `default` once empty."""
        own = self.changes[-1][1] if self.changes else default
        return own if self.level(now, own) else default

    @staticmethod
    def _leaked(level: Fraction, elapsed: int, own: int, limit: int) -> Fraction:
        leaked = level - Fraction(elapsed * max(own, limit), MINUTE_MS)
        return max(Fraction(0), min(leaked, Fraction(limit)))


@dataclass
class NaiveLease:
    admitted: int
    expires: int
    state: str = "open"
    used: int = 0
    in_force: dict[Slot, int] = field(default_factory=dict)
    bucket_limits: dict[Slot, int] = field(default_factory=dict)
    bucket_levels: dict[Slot, tuple[int, Fraction]] = field(default_factory=dict)
    forget: int = 0


class NaiveAccount:
    def __init__(self) -> None:
        self.leases: dict[str, NaiveLease] = {}
        self.past: list[NaiveLease] = []  # forgotten ones: what they used still counts
        self.buckets: dict[Slot, NaiveBucket] = {}
        self.restored: dict[tuple[Level, str, date], tuple[int, int]] = {}

    # what stands in each counter, from everything that ever happened

    def used(self, slot: Slot, now: int, limit: int, at: int) -> Fraction:
        level, name, dimension = slot
        if dimension.kind is Kind.BUCKET:
            return self.buckets.get(slot, NaiveBucket()).level(now, limit)
        total = sum(
            lease.in_force.get(slot, 0)
            for lease in (*self.leases.values(), *self.past)
            if dimension.kind is Kind.GAUGE or same_period(dimension, day_of(lease.admitted), day_of(at))
        )
        if dimension.kind is Kind.BUDGET:
            total += sum(
                amounts[dimension.unit is Unit.TOKENS]
                for (its_level, its_name, day), amounts in self.restored.items()
                if (its_level, its_name) == (level, name) and same_period(dimension, day, day_of(at))
            )
        return Fraction(total)

    def reap(self, now: int) -> None:
        for lease in self.leases.values():
            if lease.state == "open" and lease.expires <= now:
                lease.state = "expired"
                lease.forget = lease.expires + EXPIRED_LEASE_PERIODS * LEASE_MS
                for slot in lease.in_force:
                    if slot[2] is Dimension.CONCURRENT:
                        lease.in_force[slot] = 0
                    elif slot[2] in (Dimension.TOKENS_PER_DAY, Dimension.TOKENS_PER_MONTH):
                        lease.in_force[slot] = lease.used
        for lease_id, lease in list(self.leases.items()):
            if lease.state != "open" and lease.forget <= now:
                self.past.append(self.leases.pop(lease_id))

    # the answers

    def reserve(self, lease_id: str, layers: list[Layer], tokens: int, now: int) -> Any:
        """ "repeated", "above", "admitted", or {(slot): wait} of the limits that refuse."""
        self.reap(now)
        old = self.leases.get(lease_id)
        if old is not None and old.state != "expired":
            return "repeated"
        at = old.admitted if old else now
        refusals: dict[Slot, int | None] = {}
        costs: dict[Slot, tuple[int, int | None]] = {}
        for layer in layers:
            for dimension in Dimension:
                limit = layer.limits.get(dimension)
                if limit is None and dimension not in BUDGETS:
                    continue
                slot = (layer.level, layer.name, dimension)
                target = tokens if dimension.unit is Unit.TOKENS else 1
                if limit is not None and max(target, 1) > limit:
                    return "above"
                cost = max(0, target - (old.in_force.get(slot, 0) if old else 0))
                costs[slot] = (cost, limit)
                if limit is None or not cost:
                    continue
                excess = self.used(slot, now, limit, at) + cost - limit
                if excess > 0:
                    refusals[slot] = self.wait(dimension, excess, limit, at, now)
        if refusals:
            return refusals
        lease = self.leases.setdefault(lease_id, NaiveLease(admitted=now, expires=0))
        lease.state, lease.expires = "open", now + LEASE_MS
        for slot, (cost, limit) in costs.items():
            self.charge(lease, slot, cost, limit, now)
        return "admitted"

    @staticmethod
    def wait(dimension: Dimension, excess: Fraction, limit: int, at: int, now: int) -> int | None:
        if dimension.kind is Kind.BUCKET:
            return math.ceil(excess * MINUTE_MS / limit)
        if dimension.kind is Kind.BUDGET:
            return max(0, period_end(dimension, at) - now) or None
        return None

    def charge(self, lease: NaiveLease, slot: Slot, cost: int, limit: int | None, now: int) -> None:
        if not cost and slot in lease.in_force:
            return
        lease.in_force[slot] = lease.in_force.get(slot, 0) + cost
        if slot[2].kind is Kind.BUCKET:
            assert limit is not None
            bucket = self.buckets.setdefault(slot, NaiveBucket())
            bucket.changes.append((now, limit, Fraction(cost)))
            lease.bucket_levels[slot] = (now, bucket.level(now, limit))
            lease.bucket_limits[slot] = limit

    def finish(self, lease_id: str, tokens: int | None, now: int) -> bool:
        """`tokens` None is a release."""
        self.reap(now)
        lease = self.leases.get(lease_id)
        if lease is None or lease.state == "finished":
            return False
        for slot, before in list(lease.in_force.items()):
            after = before
            if tokens is None or slot[2] is Dimension.CONCURRENT:
                after = 0
            elif slot[2].unit is Unit.TOKENS:
                after = tokens
            lease.in_force[slot] = after
            if slot[2].kind is Kind.BUCKET and after != before:
                self.correct_bucket(lease, slot, after - before, now)
        lease.state, lease.forget = "finished", now + LEASE_MS
        return True

    def correct_bucket(self, lease: NaiveLease, slot: Slot, change: int, now: int) -> None:
        bucket = self.buckets[slot]
        limit = bucket.own_limit(now, lease.bucket_limits[slot])
        charged, level = lease.bucket_levels[slot]
        left = max(Fraction(0), level - Fraction((now - charged) * limit, MINUTE_MS))
        if not bucket.level(now, limit):
            bucket.changes.clear()
        bucket.changes.append((now, limit, max(Fraction(change), -left)))

    def renew(self, reports: dict[str, int], now: int) -> set[str]:
        self.reap(now)
        expired = set()
        for lease_id, used in reports.items():
            lease = self.leases.get(lease_id)
            if lease is None or lease.state == "expired":
                expired.add(lease_id)
            elif lease.state == "open":
                lease.used, lease.expires = max(lease.used, used), now + LEASE_MS
        return expired

    def tightest(self, layers: list[Layer], unit: Unit, now: int) -> tuple[int | None, int | None, int | None]:
        rows = []
        for layer in layers:
            for dimension, limit in layer.limits.items():
                if dimension.unit is unit and dimension is not Dimension.CONCURRENT:
                    used = self.used((layer.level, layer.name, dimension), now, limit, now)
                    reset = period_end(dimension, now) - now
                    if dimension.kind is Kind.BUCKET:
                        reset = math.ceil(used * MINUTE_MS / limit) if limit else 0
                    rows.append((limit, max(0, math.floor(limit - used)), reset))
        return min(rows, key=lambda row: row[1], default=(None, None, None))


# Few names and close limits, so that leases meet each other, their own past and a changed limit often.
LIMITS = st.sampled_from(
    [
        Limits(rpm=2, tpm=60),
        Limits(rpm=7, tpm=200, concurrent=2),
        Limits(tpm=45, concurrent=4),
        Limits(requests_per_day=9, tokens_per_day=120, concurrent=3),
        Limits(tokens_per_month=300, tpm=60),
        Limits(tokens_per_day=60, tokens_per_month=60, requests_per_day=3),
        Limits(rpm=0),
    ]
)
LAYERS = st.one_of(
    st.builds(lambda limits: [Layer(Level.ACCOUNT, "", limits)], LIMITS),
    st.builds(
        lambda one, two: [Layer(Level.ACCOUNT, "", one), Layer(Level.KEY, "x", two)],
        LIMITS,
        LIMITS,
    ),
)
ACCOUNT = st.sampled_from(("a", "a", "a", "b"))
LEASE = st.sampled_from(["r0", "r1", "r2", "r3"])
TOKENS = st.integers(0, 40)
WAITS = st.sampled_from([1, 7, 499, 1000, 2500, 5000, 10_000, 20_000, LEASE_MS - 1, LEASE_MS, 61_000, 400_000])


class History(RuleBasedStateMachine):
    def __init__(self, make_ledger: Callable[..., Ledger]) -> None:
        super().__init__()
        self.now = START
        self.runner = asyncio.Runner()
        self.ledger = make_ledger(lambda: self.now, self.audited)
        self.naive = {account: NaiveAccount() for account in ACCOUNTS}
        self.leases: set[tuple[str, str]] = set()

    def teardown(self) -> None:
        """A lease period after the last step nothing is held any more."""
        self.now += LEASE_MS
        for account in ACCOUNTS:
            usage = self.runner.run(self.ledger.usage(account))
            assert usage.leases == ()
            assert all(counter.dimension is not Dimension.CONCURRENT for counter in usage.counters)
        self.runner.run(self.ledger.check_integrity())
        self.runner.run(self.ledger.close())
        self.runner.close()

    def audited(self, record: AuditRecord) -> None:
        for counter in record.counters:
            assert counter.used >= 0
            if counter.dimension.kind is Kind.BUCKET:
                assert counter.limit is not None
                assert counter.used <= counter.limit * MINUTE_MS
        assert record.event in Event

    def compare(self, account: str, layers: list[Layer], remaining: Any) -> None:
        for unit in Unit:
            got = tuple(
                getattr(remaining, name.format(unit.value)) for name in ("limit_{}", "remaining_{}", "reset_{}_ms")
            )
            assert got == self.naive[account].tightest(layers, unit, self.now)

    @rule(ms=WAITS)
    def wait(self, ms: int) -> None:
        self.now += ms

    @rule(rarely=st.integers(0, 9), days=st.sampled_from([1, 31]))
    def sleep(self, rarely: int, days: int) -> None:
        self.now += days * 86_400_000 if rarely == 9 else 1

    @rule(account=ACCOUNT, lease_id=LEASE, layers=LAYERS, tokens=TOKENS)
    def reserve(self, account: str, lease_id: str, layers: list[Layer], tokens: int) -> None:
        expected = self.naive[account].reserve(lease_id, layers, tokens, self.now)
        try:
            decision = self.runner.run(self.ledger.reserve(lease_id, account, layers, tokens))
        except CostAboveLimit:
            assert expected == "above"
            return
        self.check_decision(decision, expected)
        self.compare(account, layers, decision.remaining)

    def check_decision(self, decision: QuotaDecision, expected: Any) -> None:
        assert decision.admitted == (expected in ("repeated", "admitted"))
        assert decision.repeated == (expected == "repeated")
        assert (decision.reservation is not None) == decision.admitted
        if not decision.admitted:
            refusal = decision.refusal
            assert refusal is not None
            assert isinstance(expected, dict)
            slot = (refusal.level, refusal.name, refusal.dimension)
            assert refusal.retry_after_ms == expected[slot]
            assert (refusal.retry_after_ms or 0) == max(wait or 0 for wait in expected.values())

    @rule(account=ACCOUNT, lease_id=LEASE, tokens=TOKENS)
    def settle(self, account: str, lease_id: str, tokens: int) -> None:
        expected = self.naive[account].finish(lease_id, tokens, self.now)
        assert self.runner.run(self.ledger.settle(lease_id, account, tokens)) == expected

    @rule(account=ACCOUNT, lease_id=LEASE)
    def release(self, account: str, lease_id: str) -> None:
        expected = self.naive[account].finish(lease_id, None, self.now)
        assert self.runner.run(self.ledger.release(lease_id, account)) == expected

    @rule(account=ACCOUNT, reports=st.dictionaries(LEASE, TOKENS, max_size=4))
    def renew(self, account: str, reports: dict[str, int]) -> None:
        expected = self.naive[account].renew(reports, self.now)
        assert self.runner.run(self.ledger.renew(account, reports)) == expected

    @rule(account=ACCOUNT, layers=LAYERS)
    def peek(self, account: str, layers: list[Layer]) -> None:
        self.naive[account].reap(self.now)
        self.compare(account, layers, self.runner.run(self.ledger.peek(account, layers)))

    @rule(account=ACCOUNT, days_ago=st.sampled_from([0, 0, 1, 3, 40]), tokens=TOKENS)
    def restore(self, account: str, days_ago: int, tokens: int) -> None:
        day = day_of(self.now) - timedelta(days_ago)
        naive = self.naive[account]
        new = (Level.ACCOUNT, "", day) not in naive.restored
        expected = new and same_period(Dimension.TOKENS_PER_MONTH, day, day_of(self.now))
        if expected:
            naive.restored[Level.ACCOUNT, "", day] = (1, tokens)
        got = self.runner.run(self.ledger.restore(account, Level.ACCOUNT, "", day, 1, tokens))
        assert got == expected

    @invariant()
    def books_agree(self) -> None:
        self.runner.run(self.ledger.check_integrity())


def test_random_histories_agree_with_a_naive_model(make_ledger: Callable[..., Ledger]) -> None:
    run_state_machine_as_test(  # type: ignore[no-untyped-call]
        lambda: History(make_ledger),
        settings=settings(
            max_examples=300,
            stateful_step_count=40,
            deadline=None,
            database=None,
            report_multiple_bugs=False,
            suppress_health_check=list(HealthCheck),
        ),
    )
