"""The contract of a ledger: reserve, renew, then settle or release.

One request is one **lease**, named by an id that is used for one request only. `reserve` charges all of
the request's layers in one atomic step, or none of them. The charge is what the request may cost;
`settle` corrects it to what it did cost, `release` gives everything back when nothing was used. A lease
that is neither renewed nor finished expires, so that a dead gateway holds nothing for ever.

All times are the ledger's own, in milliseconds since the epoch, UTC. Every counter belongs to one
account, so a ledger may place each account anywhere. All counting is in integers.

What is counted, for each layer of a request:
- buckets and gauges, where the layer limits them;
- every day and month budget, limited or not: a budget that is set at noon knows the morning. A layer
  without any limit is not handed to the ledger and is not counted (`restore` tells a ledger of its past).
A request belongs to the day and the month in which it was admitted, whenever it ends.

Limits come with each call and may change between calls; counters stay. A gauge or bucket that becomes
limited counts from then on.
"""

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from datetime import date
from enum import StrEnum
from typing import Protocol

from quota.levels import Dimension, Layer, Level

LEASE_MS = 30_000
"""How long a reservation holds without a renewal."""
EXPIRED_LEASE_PERIODS = 10
"""Lease periods for which an expired lease is remembered, so that a late settlement still corrects it."""
REAP_PER_CALL = 64
"""Overdue leases of the account that one call ends, oldest first, before it does its own work."""
BUDGET_GRACE_MS = 3_600_000
"""How long a day's or month's counter outlives its period, for the requests that it admitted."""
MAX_COUNT = 10**15
"""Most tokens that one call may speak of: what a shared ledger's script still counts exactly."""


def require_count(count: int) -> None:
    """Raises ValueError for tokens or requests that no ledger can count."""
    if count < 0:
        raise ValueError(f"a count can't be below 0: {count}")
    if count > MAX_COUNT:
        raise ValueError(f"a count can't be above {MAX_COUNT}: {count}")


class CostAboveLimit(ValueError):
    """The request costs more than the whole of a limit: no wait would ever admit it.

    A limit of 0 is below every cost. Nothing was charged.
    """

    def __init__(self, level: Level, name: str, dimension: Dimension, limit: int, cost: int) -> None:
        layer = f"{level} {name}" if name else str(level)
        super().__init__(f"the request costs {cost}, above the {dimension} limit of {limit} of its {layer}")
        self.level, self.name, self.dimension, self.limit, self.cost = level, name, dimension, limit, cost


class LedgerUnavailable(OSError):
    """A shared ledger gives no answer. Whether it took the step is not known: every step may be repeated."""


class NotAsked(LedgerUnavailable):
    """A shared ledger gives no answer, and was not asked: the step was not taken."""


class QuotaUnavailable(LedgerUnavailable):
    """A request that only the shared ledger could admit, while it gives no answer: a budget applies to it."""


class IntegrityError(AssertionError):
    """A ledger's own books contradict each other."""


@dataclass(frozen=True, slots=True)
class Reservation:
    """An admitted request's lease, open until `expires_at` (ms) unless renewed."""

    lease_id: str
    account: str
    layers: tuple[Layer, ...]
    tokens: int
    expires_at: int


@dataclass(frozen=True, slots=True)
class Refusal:
    """The limit that refused a request: of all that do, the one with the longest wait.

    `retry_after_ms` is exact: the same request fits this limit after that wait, if nothing else is
    charged, and not 1 ms earlier, if nothing is given back. For a budget it is the time to the end of its
    period. None where no time can be told: concurrency, which frees when some request ends. Concurrency
    is named only when no other limit refuses.
    """

    level: Level
    name: str
    dimension: Dimension
    limit: int
    retry_after_ms: int | None


@dataclass(frozen=True, slots=True)
class Remaining:
    """What the tightest layer has left (the smallest remaining), for requests and for tokens apart.

    `reset_*_ms` is the time until that limit is whole again, if nothing else comes. All three are None
    where no layer limits requests (per minute or day) or tokens (per minute, day or month).
    """

    limit_requests: int | None = None
    remaining_requests: int | None = None
    reset_requests_ms: int | None = None
    limit_tokens: int | None = None
    remaining_tokens: int | None = None
    reset_tokens_ms: int | None = None


@dataclass(frozen=True, slots=True)
class QuotaDecision:
    """The answer to `reserve`. `repeated`: this lease had been admitted before; nothing was charged.

    `reservation` is set when `admitted`, `refusal` when not. `remaining` is after the charge. When a request is first
    admitted, `near` are the limits that it leaves at `admission.NEAR_PERCENT` or more, and `shadowed` the shadow limits
    that it goes past (without a wait); a shadow limit has no other effect, on `remaining` either.
    """

    lease_id: str
    admitted: bool
    remaining: Remaining
    reservation: Reservation | None = None
    refusal: Refusal | None = None
    repeated: bool = False
    near: tuple[tuple[Level, Dimension], ...] = ()
    shadowed: tuple[Refusal, ...] = ()


@dataclass(frozen=True, slots=True)
class Counter:
    """One counter as it stands. `period`: days or months since 1970-01, 0 for buckets and gauges.

    `used` is in requests or tokens, for buckets in sixty-thousandths of them and leaked up to now.
    `limit` is the one last applied, None when there is none or the ledger does not keep it.
    """

    level: Level
    name: str
    dimension: Dimension
    period: int
    used: int
    limit: int | None


@dataclass(frozen=True, slots=True)
class AccountUsage:
    """A snapshot of one account, taken at `now_ms`: every counter that is kept, and the leases that are open."""

    account: str
    now_ms: int
    counters: tuple[Counter, ...] = ()
    leases: tuple[Reservation, ...] = ()


@dataclass(frozen=True, slots=True)
class PastUsage:
    """One day's durable usage of one layer of an account: what budgets are restored from."""

    level: Level
    name: str
    day: date
    requests: int
    tokens: int


class Event(StrEnum):
    RESERVED = "reserved"
    REFUSED = "refused"
    SETTLED = "settled"
    RELEASED = "released"
    EXPIRED = "expired"
    RESTORED = "restored"
    ADOPTED = "adopted"  # told again after a shared ledger lost its memory


@dataclass(frozen=True, slots=True)
class AuditRecord:
    """One step, written inside it, with the counters it touched as they stand after it.

    `tokens`: what was asked for (reserved, refused), used (settled), last reported (expired), restored.
    """

    event: Event
    now_ms: int
    account: str
    lease_id: str
    tokens: int
    counters: tuple[Counter, ...]


class Ledger(Protocol):
    """Counts what accounts use. Call it from one event loop; every call is one atomic step."""

    async def reserve(self, lease_id: str, account: str, layers: Collection[Layer], tokens: int) -> QuotaDecision:
        """Admit one request of at most `tokens` in all layers, or charge none.

        Idempotent by lease id: a repeat while the lease is open, or remembered as finished (one lease
        period), answers admitted and charges nothing. The id of an expired lease is admitted again:
        what is still charged for it is not charged twice, and the day it first came in stays its day.

        Raises `CostAboveLimit` before any charge when no wait would help, and ValueError for tokens
        below 0 or above `MAX_COUNT`, or a layer given twice.
        """
        ...

    async def settle(self, lease_id: str, account: str, tokens: int) -> bool:
        """Finish a lease that used `tokens` in all: refund, or charge, the difference. Once.

        False, and nothing changes, if the lease was finished before or is not known. An expired lease
        has its tokens corrected while it is remembered. Tokens above the reservation are charged, even
        past a budget; a bucket is full at most. A refund returns to a bucket only as much of this
        lease's charge as has not leaked since: what time gave back is not given back twice.
        """
        ...

    async def release(self, lease_id: str, account: str) -> bool:
        """Finish a lease that used nothing: give everything back, the request's own count included."""
        ...

    async def renew(self, account: str, used_by_lease: Mapping[str, int]) -> frozenset[str]:
        """Hold these leases for one more lease period; the values are the tokens used so far.

        Answers those that have expired, or are not known: admit them again, or abort their work. Reports
        never go down; the last one is what budgets are charged if the lease expires.
        """
        ...

    async def peek(self, account: str, layers: Collection[Layer]) -> Remaining:
        """What remains in these layers now; charges nothing."""
        ...

    async def restore(self, account: str, level: Level, name: str, day: date, requests: int, tokens: int) -> bool:
        """Add one past day's durable usage of one layer to its day and month budgets, before serving.

        The day budgets count it if `day` is today, the month's if it is this month (UTC); older days
        change nothing. Once for each (account, level, name, day): a repeat answers False and adds nothing,
        so that several gateways that start together don't multiply the usage.
        """
        ...

    async def usage(self, account: str) -> AccountUsage:
        """A snapshot of the account, for admin pages and tests."""
        ...

    async def check_integrity(self) -> None:
        """Raise `IntegrityError` if the ledger's own books contradict each other. For tests: slow."""
        ...

    async def close(self) -> None:
        """Let go of connections. The ledger can't be used afterwards."""
        ...
