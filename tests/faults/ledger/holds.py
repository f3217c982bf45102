"""What gateways believe to hold, told by themselves, and how much that was at once."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from itertools import accumulate


@dataclass(frozen=True, slots=True)
class Hold:
    """A lease that a gateway held from `since` to `until` (the machine's monotonic clock, in seconds).

    It begins once the ledger has answered, and ends before the ledger is told, or when the lease may have expired:
    so the ledger holds it for all of that time. From then on it has used `used` tokens of the `tokens` promised.
    """

    account: str
    since: float
    until: float
    tokens: int
    used: int
    was_lost: bool  # it expired, as a renewal said


@dataclass(frozen=True, slots=True)
class Peak:
    """The most at once: leases held, and tokens used or promised."""

    leases: int
    tokens: int


def peak(holds: Iterable[Hold]) -> Peak:
    """Of one account."""
    changes = sorted(
        change for hold in holds for change in ((hold.since, 1, hold.tokens), (hold.until, -1, hold.used - hold.tokens))
    )
    return Peak(
        leases=max(accumulate((leases for _, leases, _ in changes), initial=0)),
        tokens=max(accumulate((tokens for _, _, tokens in changes), initial=0)),
    )
