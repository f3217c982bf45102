"""An account's counters, and what one lease has in force on each of them."""

from collections import OrderedDict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import NamedTuple, TypeVar

from quota.ledger import BUDGET_GRACE_MS, Counter, IntegrityError
from quota.levels import Dimension, Kind, Layer, Level, Period
from quota.meters import MINUTE_MS, Bucket, Reading, read, undrained, window, window_end

_K = TypeVar("_K")
_V = TypeVar("_V")


class CounterKey(NamedTuple):
    """Which counter of an account; `period` is the index of a budget's day or month, else 0."""

    level: Level
    name: str
    dimension: Dimension
    period: int

    @classmethod
    def of(cls, layer: Layer, dimension: Dimension, now: int) -> "CounterKey":
        return cls(layer.level, layer.name, dimension, window(dimension.period, now).index)

    def is_over(self, now: int) -> bool:
        """Whether its period ended so long ago that nothing corrects it any more."""
        if self.dimension.period is Period.NONE:
            return False
        return window_end(self.dimension.period, self.period) + BUDGET_GRACE_MS <= now


@dataclass(slots=True)
class Charge:
    """What one lease has in force on one counter, in requests or tokens.

    For a bucket: its level just after the charge, and when that was.
    """

    amount: int
    limit: int | None
    level: int = 0
    charged_ms: int = 0


class Counters:
    """Buckets by key, and budgets and gauges by key. Counters that say nothing (empty, 0) may be absent.

    Buckets that were never charged were full at `full_ms` (0: they start empty).
    """

    def __init__(self, full_ms: int = 0) -> None:
        self._full_ms = full_ms
        self._buckets: OrderedDict[CounterKey, Bucket] = OrderedDict()
        self._counts: OrderedDict[CounterKey, int] = OrderedDict()

    def __len__(self) -> int:
        return len(self._buckets) + len(self._counts)

    def used(self, key: CounterKey, limit: int, now: int) -> int:
        """In requests or tokens; for a bucket in sixty-thousandths, leaked up to `now` under `limit`."""
        if key.dimension.kind is not Kind.BUCKET:
            return self._counts.get(key, 0)
        return self._bucket(key, limit).level(now, limit)

    def _bucket(self, key: CounterKey, limit: int) -> Bucket:
        """The bucket that is kept, or the one that is implied."""
        used = limit * MINUTE_MS if self._full_ms else 0
        return self._buckets.get(key) or Bucket(used, self._full_ms, limit)

    def fill(self, now: int) -> None:
        """Make every bucket a full one."""
        self._buckets.clear()
        self._full_ms = now

    def reading(self, key: CounterKey, limit: int, now: int) -> Reading:
        period = key.dimension.period
        ends_ms = now if period is Period.NONE else window_end(period, key.period)
        return read(key.dimension, limit, self.used(key, limit, now), ends_ms, now)

    def charge(self, key: CounterKey, limit: int | None, cost: int, held: int, now: int) -> Charge:
        """Charge `cost` more to a lease that already has `held` in force. Only a bucket needs a limit."""
        if key.dimension.kind is not Kind.BUCKET:
            self.add(key, cost)
            return Charge(held + cost, limit)
        assert limit is not None
        bucket = self._buckets[key] = self._bucket(key, limit)
        bucket.set_level(bucket.level(now, limit) + cost * MINUTE_MS, now, limit)
        return Charge(held + cost, limit, bucket.used, now)

    def correct(self, key: CounterKey, charge: Charge, amount: int, now: int) -> None:
        """Make `amount` what the lease has in force: give the difference back, or charge it.

        Without a difference the counter is not touched.
        """
        change, charge.amount = amount - charge.amount, amount
        if not change:
            return
        if key.dimension.kind is Kind.BUCKET:
            self._correct_bucket(key, charge, change, now)
        elif not key.is_over(now):
            self.add(key, change)

    def _correct_bucket(self, key: CounterKey, charge: Charge, change: int, now: int) -> None:
        bucket = self._buckets[key] = self._bucket(key, charge.limit or 0)
        if not bucket.level(now, bucket.limit):  # empty is the same as absent
            bucket.set_level(0, now, charge.limit or 0)
        left = undrained(charge.level, charge.charged_ms, now, bucket.limit)
        level = bucket.level(now, bucket.limit) + max(change * MINUTE_MS, -left)
        bucket.set_level(level, now, bucket.limit)

    def add(self, key: CounterKey, amount: int) -> None:
        """Add to a budget or gauge."""
        count = self._counts.get(key, 0) + amount
        if count:
            self._counts[key] = count
        else:
            self._counts.pop(key, None)

    def sweep(self, now: int, at_most: int) -> None:
        """Look at some counters of each sort, and drop those that no longer say anything."""
        if now - self._full_ms >= MINUTE_MS:  # until then an absent bucket is not an empty one
            rotate(self._buckets, at_most, lambda _, bucket: bucket.level(now, bucket.limit) == 0)
        rotate(self._counts, at_most, lambda key, _: key.is_over(now))

    def snapshot(self, now: int) -> Iterator[Counter]:
        for key, bucket in self._buckets.items():
            yield Counter(*key, used=bucket.level(now, bucket.limit), limit=bucket.limit)
        for key, count in self._counts.items():
            yield Counter(*key, used=count, limit=None)

    def check_integrity(self, in_force: dict[CounterKey, int]) -> None:
        """Gauges agree exactly with what leases have in force, budgets hold no less; buckets fit."""
        for key in self._counts.keys() | in_force.keys():
            count, held = self._counts.get(key, 0), in_force.get(key, 0)
            if key.dimension.kind is Kind.GAUGE:
                require(count == held, f"{key} counts {count}, its leases hold {held}")
            elif key in self._counts:
                require(count >= held and count > 0, f"{key} counts {count}, its leases hold {held}")
        for key, bucket in self._buckets.items():
            full = bucket.limit * MINUTE_MS
            require(0 <= bucket.used <= full, f"{key} holds {bucket.used}, not within 0..{full}")


def rotate(table: OrderedDict[_K, _V], at_most: int, is_dead: Callable[[_K, _V], bool]) -> None:
    """Look at the entries that were not looked at for longest; drop the dead ones."""
    for _ in range(min(at_most, len(table))):
        key, value = table.popitem(last=False)
        if not is_dead(key, value):
            table[key] = value


def require(holds: bool, what: str) -> None:
    if not holds:
        raise IntegrityError(what)
