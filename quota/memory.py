"""The embedded ledger: the default, for one gateway process. Nothing else to install, nothing kept on disk."""

import time
from collections import OrderedDict
from collections.abc import Callable, Collection, Mapping
from datetime import date

from quota.book import Book
from quota.ledger import LEASE_MS, AccountUsage, AuditRecord, QuotaDecision, Remaining, require_count
from quota.levels import Layer, Level

_SWEEP_ACCOUNTS = 2
_SWEEP_COUNTERS = 16


def wall_clock_ms() -> int:
    return time.time_ns() // 1_000_000


class MemoryLedger:
    """A `Ledger` in this process's memory, to be used from one event loop.

    No method awaits anything, so no other task runs between a step's first read and its last write:
    that alone makes every step atomic. `audit` is called within the step and must not call back.

    Memory holds open leases, finished ones for a lease period, what has not leaked, and the budgets of
    the current day and month; each admission looks at a few accounts and drops what has become idle.
    """

    def __init__(
        self,
        clock: Callable[[], int] = wall_clock_ms,
        *,
        lease_ms: int = LEASE_MS,
        audit: Callable[[AuditRecord], None] | None = None,
    ) -> None:
        self._clock = clock
        self._lease_ms = lease_ms
        self._audit = audit
        self._full_ms = 0
        self._books: OrderedDict[str, Book] = OrderedDict()

    async def reserve(self, lease_id: str, account: str, layers: Collection[Layer], tokens: int) -> QuotaDecision:
        require_count(tokens)
        now = self._clock()
        self._sweep(now)
        return self._kept_book(account).reserve(lease_id, layers, tokens, now)

    async def settle(self, lease_id: str, account: str, tokens: int) -> bool:
        require_count(tokens)
        return self._book(account).settle(lease_id, tokens, self._clock())

    async def release(self, lease_id: str, account: str) -> bool:
        return self._book(account).release(lease_id, self._clock())

    async def renew(self, account: str, used_by_lease: Mapping[str, int]) -> frozenset[str]:
        return self._book(account).renew(used_by_lease, self._clock())

    async def peek(self, account: str, layers: Collection[Layer]) -> Remaining:
        return self._book(account).peek(layers, self._clock())

    async def restore(self, account: str, level: Level, name: str, day: date, requests: int, tokens: int) -> bool:
        require_count(requests)
        require_count(tokens)
        return self._kept_book(account).restore(level, name, day, requests, tokens, self._clock())

    async def usage(self, account: str) -> AccountUsage:
        return self._book(account).usage(self._clock())

    async def check_integrity(self) -> None:
        for book in self._books.values():
            book.check_integrity()

    async def close(self) -> None:
        self._books.clear()

    def occupy(self, lease_id: str, account: str, layers: Collection[Layer]) -> None:
        """Count the concurrency of a lease that another ledger admitted, whether it fits or not."""
        self._kept_book(account).occupy(lease_id, layers, self._clock())

    def fill(self) -> None:
        """Make every bucket a full one, those of accounts still to come included."""
        self._full_ms = self._clock()
        for book in self._books.values():
            book.fill(self._full_ms)

    def _book(self, account: str) -> Book:
        """The account's book, an empty one if it has none: only what charges keeps it."""
        return self._books.get(account) or Book(account, self._lease_ms, self._audit, self._full_ms)

    def _kept_book(self, account: str) -> Book:
        book = self._books[account] = self._book(account)
        return book

    def _sweep(self, now: int) -> None:
        for _ in range(min(_SWEEP_ACCOUNTS, len(self._books))):
            account, book = self._books.popitem(last=False)
            if not book.sweep(now, _SWEEP_COUNTERS):
                self._books[account] = book
