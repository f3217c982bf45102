"""The arithmetic of counters: pure functions of integers, the time coming in as `now` (milliseconds, UTC).

A shared ledger's script does the same sums, so every value here stays an exact integer below 2**53.
"""

from dataclasses import dataclass
from datetime import UTC, date, datetime
from functools import lru_cache
from typing import Protocol

from quota.levels import Dimension, Kind, Period

MINUTE_MS = 60_000
DAY_MS = 86_400_000


@dataclass(frozen=True, slots=True)
class Window:
    """One calendar period: its index (days or months since 1970-01) and its end, exclusive."""

    index: int
    ends_ms: int


NO_WINDOW = Window(0, 0)


def window(period: Period, now: int) -> Window:
    """The period that `now` falls in."""
    day = now // DAY_MS
    if period is Period.DAY:
        return Window(day, (day + 1) * DAY_MS)
    return _month_of_day(day) if period is Period.MONTH else NO_WINDOW


def window_end(period: Period, index: int) -> int:
    """When the period of that index ends, in milliseconds."""
    return (index + 1) * DAY_MS if period is Period.DAY else _month_start(index + 1)


def day_start(day: date) -> int:
    return int(datetime(day.year, day.month, day.day, tzinfo=UTC).timestamp()) * 1000


@lru_cache(maxsize=64)
def _month_of_day(day: int) -> Window:
    at = datetime.fromtimestamp(day * (DAY_MS // 1000), UTC)
    index = (at.year - 1970) * 12 + at.month - 1
    return Window(index, _month_start(index + 1))


@lru_cache(maxsize=64)
def _month_start(index: int) -> int:
    return day_start(date(1970 + index // 12, index % 12 + 1, 1))


@dataclass(slots=True)
class Bucket:
    """A leaky bucket. `used` is in sixty-thousandths of a request or token, as of `updated_ms`.

    A unit charged is 60000; `limit` (a minute) leaks out each millisecond; a full bucket is limit * 60000.
    """

    used: int
    updated_ms: int
    limit: int

    def level(self, now: int, limit: int) -> int:
        """`used` at `now`, read under `limit`, which may differ from the bucket's own.

        It leaks at the faster of the two: the wait told under a raised limit is true, and a bucket that
        is empty by its own limit is empty under any. It holds no more than the capacity of `limit`, so
        that a lowered limit makes nobody wait for longer than a minute. A clock set back leaks nothing.
        """
        elapsed = max(0, now - self.updated_ms)
        return min(max(0, self.used - elapsed * max(limit, self.limit)), limit * MINUTE_MS)

    def set_level(self, used: int, now: int, limit: int) -> None:
        self.used = min(max(0, used), limit * MINUTE_MS)
        self.updated_ms, self.limit = now, limit


def undrained(level: int, charged_ms: int, now: int, limit: int) -> int:
    """How much of a charge can still be in a bucket that stood at `level` just after it.

    First in, first out: what stood before leaks first, so all is gone once `level` has leaked. A refund
    beyond this would erase what others have charged since. (Held long enough, cheap requests with large
    reservations would otherwise save up whole minutes of tokens and spend them at once.)
    """
    return max(0, level - max(0, now - charged_ms) * limit)


def scale(dimension: Dimension) -> int:
    """What a request or a token is in a counter of this dimension: a bucket counts in sixty-thousandths."""
    return MINUTE_MS if dimension.kind is Kind.BUCKET else 1


class Reading(Protocol):
    """One counter, as it stands now, against one limit."""

    @property
    def limit(self) -> int: ...
    @property
    def used(self) -> int:
        """In requests or tokens, times `scale`."""
        ...

    @property
    def remaining(self) -> int:
        """Whole requests or tokens that would still fit."""
        ...

    @property
    def reset_ms(self) -> int:
        """Time until the limit is whole again if nothing else is charged."""
        ...

    def fits(self, cost: int) -> bool: ...
    def wait_ms(self, cost: int) -> int | None:
        """Time until a cost that doesn't fit now would; None if that can't be told."""
        ...


@dataclass(frozen=True, slots=True)
class BucketReading:
    limit: int
    used: int

    @property
    def remaining(self) -> int:
        return (self.limit * MINUTE_MS - self.used) // MINUTE_MS

    @property
    def reset_ms(self) -> int:
        return _ceil_div(self.used, self.limit)

    def fits(self, cost: int) -> bool:
        return self.used + cost * MINUTE_MS <= self.limit * MINUTE_MS

    def wait_ms(self, cost: int) -> int:
        return _ceil_div(self.used + (cost - self.limit) * MINUTE_MS, self.limit)


@dataclass(frozen=True, slots=True)
class BudgetReading:
    limit: int
    used: int
    ends_in_ms: int

    @property
    def remaining(self) -> int:
        return max(0, self.limit - self.used)

    @property
    def reset_ms(self) -> int:
        return self.ends_in_ms

    def fits(self, cost: int) -> bool:
        return self.used + cost <= self.limit

    def wait_ms(self, cost: int) -> int | None:
        return self.ends_in_ms or None  # an ended period frees nothing any more


@dataclass(frozen=True, slots=True)
class GaugeReading:
    limit: int
    used: int

    @property
    def remaining(self) -> int:
        return max(0, self.limit - self.used)

    @property
    def reset_ms(self) -> int:
        return 0

    def fits(self, cost: int) -> bool:
        return self.used + cost <= self.limit

    def wait_ms(self, cost: int) -> None:
        return None


def read(dimension: Dimension, limit: int, used: int, ends_ms: int, now: int) -> Reading:
    """The reading of a counter; `ends_ms` is its period's end, for a budget."""
    match dimension.kind:
        case Kind.BUCKET:
            return BucketReading(limit, used)
        case Kind.BUDGET:
            return BudgetReading(limit, used, max(0, ends_ms - now))
        case Kind.GAUGE:
            return GaugeReading(limit, used)


def _ceil_div(amount: int, rate: int) -> int:
    """Milliseconds in which `amount` leaks at `rate` a millisecond, rounded up; 0 for a rate of 0."""
    return -(-amount // rate) if rate else 0
