"""One account's book: its leases and counters, and the steps that change them.

Every method is one synchronous step of plain values with the time coming in as `now`: what a shared
ledger runs as one script. `quota.ledger` says what the steps mean. A step reads and decides first and
writes only then, so a refusal or an exception charges nothing.
"""

from collections import OrderedDict
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field, replace
from datetime import date

from quota.admission import Demand, Request, demands, refusal, remaining, reports
from quota.counters import Charge, CounterKey, Counters, require, rotate
from quota.ledger import (
    EXPIRED_LEASE_PERIODS,
    REAP_PER_CALL,
    AccountUsage,
    AuditRecord,
    Counter,
    Event,
    QuotaDecision,
    Remaining,
    Reservation,
)
from quota.levels import Dimension, Kind, Layer, Level, Period, Unit
from quota.meters import day_start, window

Limited = Mapping[CounterKey, int | None]
"""Counters with the limits that apply to them."""


@dataclass(slots=True)
class Lease:
    """A lease is open, expired or finished by the queue of its book that it stands in."""

    reservation: Reservation
    admitted_ms: int
    used: int = 0  # tokens, by the last report
    forget_at: int = 0  # once expired or finished
    charges: dict[CounterKey, Charge] = field(default_factory=dict)

    def limits(self) -> Limited:
        return {key: charge.limit for key, charge in self.charges.items()}


class Book:
    """An account's leases and counters. Not thread-safe.

    Each of the three queues gives all its leases the same time and takes new ones at its end, so the
    one that is due first stands at its head.
    """

    def __init__(
        self, account: str, lease_ms: int, audit: Callable[[AuditRecord], None] | None, full_ms: int = 0
    ) -> None:
        self.account = account
        self._lease_ms = lease_ms
        self._audit = audit
        self._counters = Counters(full_ms)
        self._open: OrderedDict[str, Lease] = OrderedDict()
        self._expired: OrderedDict[str, Lease] = OrderedDict()
        self._finished: OrderedDict[str, Lease] = OrderedDict()
        self._restored: OrderedDict[tuple[Level, str, date], int] = OrderedDict()  # to its month

    # -- the steps ---------------------------------------------------------------------------------

    def reserve(self, lease_id: str, layers: Collection[Layer], tokens: int, now: int) -> QuotaDecision:
        self.reap(now)
        known = self._open.get(lease_id) or self._finished.get(lease_id)
        if known is not None:
            left = remaining(self._counters, layers, now)
            return QuotaDecision(lease_id, True, left, known.reservation, repeated=True)
        old = self._expired.get(lease_id)
        request = Request(layers, tokens, old.admitted_ms if old else now, old.charges if old else {})
        asked = demands(self._counters, request, now)
        refused_by = refusal(asked)
        if refused_by is not None:
            self._record_demands(Event.REFUSED, now, lease_id, tokens, asked)
            return QuotaDecision(lease_id, False, remaining(self._counters, layers, now), refusal=refused_by)
        reservation = Reservation(lease_id, self.account, tuple(layers), tokens, now + self._lease_ms)
        nearly, shadowed = ((), ()) if old else reports(asked)
        self._admit(reservation, asked, now)
        left = remaining(self._counters, layers, now)
        return QuotaDecision(lease_id, True, left, reservation, near=nearly, shadowed=shadowed)

    def settle(self, lease_id: str, tokens: int, now: int) -> bool:
        return self._finish(Event.SETTLED, lease_id, tokens, now)

    def release(self, lease_id: str, now: int) -> bool:
        return self._finish(Event.RELEASED, lease_id, 0, now)

    def renew(self, used_by_lease: Mapping[str, int], now: int) -> frozenset[str]:
        self.reap(now)
        return frozenset(
            lease_id
            for lease_id, used in used_by_lease.items()
            if lease_id not in self._finished and not self._extend(lease_id, used, now)
        )

    def peek(self, layers: Collection[Layer], now: int) -> Remaining:
        self.reap(now)
        return remaining(self._counters, layers, now)

    def restore(self, level: Level, name: str, day: date, requests: int, tokens: int, now: int) -> bool:
        at, month = day_start(day), window(Period.MONTH, now).index
        if window(Period.MONTH, at).index != month or (level, name, day) in self._restored:
            return False
        self._restored[level, name, day] = month
        limits: dict[CounterKey, int | None] = {}
        for dimension in Dimension:
            period = window(dimension.period, at).index
            if dimension.kind is Kind.BUDGET and period == window(dimension.period, now).index:
                key = CounterKey(level, name, dimension, period)
                self._counters.add(key, tokens if dimension.unit is Unit.TOKENS else requests)
                limits[key] = None
        self._record(Event.RESTORED, now, "", tokens, limits)
        return True

    # -- leases ------------------------------------------------------------------------------------

    def reap(self, now: int, at_most: int = REAP_PER_CALL) -> None:
        """Expire overdue leases and forget old ones, a bounded number of each."""
        for lease in _due(self._open, at_most, lambda lease: lease.reservation.expires_at <= now):
            self._expire(lease, now)
        for queue in (self._expired, self._finished):
            for lease in _due(queue, at_most, lambda lease: lease.forget_at <= now):
                del queue[lease.reservation.lease_id]

    def _admit(self, reservation: Reservation, asked: list[Demand], now: int) -> None:
        lease_id = reservation.lease_id
        lease = self._expired.pop(lease_id, None) or Lease(reservation, admitted_ms=now)
        lease.reservation = reservation
        for demand in asked:
            if demand.cost or demand.key not in lease.charges:
                lease.charges[demand.key] = self._counters.charge(
                    demand.key, demand.limit, demand.cost, demand.held, now
                )
        self._open[lease_id] = lease
        self._record_demands(Event.RESERVED, now, lease_id, reservation.tokens, asked)

    def _extend(self, lease_id: str, used: int, now: int) -> bool:
        """Renew an open lease; False if there is none, or if it is overdue: then it expires now."""
        lease = self._open.get(lease_id)
        if lease is None:
            return False
        if lease.reservation.expires_at <= now:
            self._expire(lease, now)
            return False
        lease.used = max(lease.used, used)
        lease.reservation = replace(lease.reservation, expires_at=now + self._lease_ms)
        self._open.move_to_end(lease_id)
        return True

    def _expire(self, lease: Lease, now: int) -> None:
        """Free the gauges; budgets keep what was reported; buckets stay charged, for time heals them."""
        for key, charge in lease.charges.items():
            if key.dimension.kind is Kind.GAUGE:
                self._counters.correct(key, charge, 0, now)
            elif key.dimension.kind is Kind.BUDGET and key.dimension.unit is Unit.TOKENS:
                self._counters.correct(key, charge, lease.used, now)
        lease_id = lease.reservation.lease_id
        lease.forget_at = lease.reservation.expires_at + EXPIRED_LEASE_PERIODS * self._lease_ms
        self._expired[lease_id] = self._open.pop(lease_id)
        self._record(Event.EXPIRED, now, lease_id, lease.used, lease.limits())

    def _finish(self, event: Event, lease_id: str, tokens: int, now: int) -> bool:
        self.reap(now)
        lease = self._open.pop(lease_id, None) or self._expired.pop(lease_id, None)
        if lease is None:
            return False
        for key, charge in lease.charges.items():
            if key.dimension.kind is Kind.GAUGE or event is Event.RELEASED:
                self._counters.correct(key, charge, 0, now)
            elif key.dimension.unit is Unit.TOKENS:
                self._counters.correct(key, charge, tokens, now)
        self._record(event, now, lease_id, tokens, lease.limits())
        lease.charges = {}
        lease.forget_at = now + self._lease_ms
        self._finished[lease_id] = lease
        return True

    def occupy(self, lease_id: str, layers: Collection[Layer], now: int) -> None:
        """Open a lease that holds concurrency and nothing else, whether it fits or not: another ledger admitted it."""
        if lease_id in self._open or lease_id in self._finished:
            return
        lease = Lease(Reservation(lease_id, self.account, tuple(layers), 0, now + self._lease_ms), admitted_ms=now)
        for layer in layers:
            for dimension, limit in layer.limits.items():
                if dimension.kind is Kind.GAUGE:
                    key = CounterKey.of(layer, dimension, now)
                    lease.charges[key] = self._counters.charge(key, limit, 1, 0, now)
        self._open[lease_id] = lease

    def fill(self, now: int) -> None:
        """Make every bucket a full one: nobody knows what was charged meanwhile."""
        self._counters.fill(now)

    # -- housekeeping and introspection ------------------------------------------------------------

    def sweep(self, now: int, at_most: int) -> bool:
        """Drop some of what no longer says anything. Answers whether the whole book is empty."""
        self.reap(now)
        self._counters.sweep(now, at_most)
        this_month = window(Period.MONTH, now).index
        rotate(self._restored, at_most, lambda _, month: month < this_month)
        return not any((self._counters, self._open, self._expired, self._finished, self._restored))

    def usage(self, now: int) -> AccountUsage:
        self.reap(now)
        leases = tuple(lease.reservation for lease in self._open.values())
        return AccountUsage(self.account, now, tuple(self._counters.snapshot(now)), leases)

    def check_integrity(self) -> None:
        in_force: dict[CounterKey, int] = {}
        for lease in (*self._open.values(), *self._expired.values()):
            for key, charge in lease.charges.items():
                in_force[key] = in_force.get(key, 0) + charge.amount
        self._counters.check_integrity(in_force)
        ids = [*self._open, *self._expired, *self._finished]
        require(len(ids) == len(set(ids)), f"a lease of {self.account!r} is in two states")

    def _record_demands(self, event: Event, now: int, lease_id: str, tokens: int, asked: list[Demand]) -> None:
        shadow = frozenset(demand.key for demand in asked if demand.shadow)
        self._record(event, now, lease_id, tokens, {d.key: d.limit for d in asked}, shadow)

    def _record(
        self,
        event: Event,
        now: int,
        lease_id: str,
        tokens: int,
        limits: Limited,
        shadow: frozenset[CounterKey] = frozenset(),
    ) -> None:
        if self._audit is not None:
            counters = tuple(
                Counter(
                    *key,
                    used=self._counters.used(key, limit or 0, now),
                    limit=None if key in shadow else limit,
                )
                for key, limit in limits.items()
            )
            self._audit(AuditRecord(event, now, self.account, lease_id, tokens, counters))


def _due(queue: OrderedDict[str, Lease], at_most: int, is_due: Callable[[Lease], bool]) -> list[Lease]:
    """The leases at the head of a queue that are due."""
    due: list[Lease] = []
    for lease in queue.values():
        if len(due) == at_most or not is_due(lease):
            break
        due.append(lease)
    return due
