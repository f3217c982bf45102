"""The embedded ledger keeps what is active, and nothing for each request that has been."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from quota.ledger import BUDGET_GRACE_MS, LEASE_MS
from quota.levels import Layer, Level, Limits
from quota.memory import MemoryLedger, wall_clock_ms
from quota.meters import DAY_MS

if TYPE_CHECKING:
    from tests.quota.conftest import Clock

LIMITS = Limits(rpm=600, tpm=60_000, concurrent=8)


def sizes(ledger: MemoryLedger) -> tuple[int, int, int]:
    """How many accounts, counters and leases are kept."""
    books = ledger._books.values()
    leases: Iterable[int] = (len(b._open) + len(b._expired) + len(b._finished) for b in books)
    return len(books), sum(len(b._counters) for b in books), sum(leases)


async def test_100k_requests_of_many_accounts_leave_only_what_is_active(clock: Clock) -> None:
    ledger = MemoryLedger(clock)
    layers = (Layer(Level.ACCOUNT, "", LIMITS),)
    largest = 0
    for n in range(100_000):
        account = f"a{n // 20}"
        await ledger.reserve(f"r{n}", account, layers, 10)
        if n % 10:
            await ledger.settle(f"r{n}", account, 5)
        clock.advance(50)
        if n % 1000 == 0:
            largest = max(largest, sizes(ledger)[2])
    assert largest < 2 * 11 * LEASE_MS // 50, "leases of the last eleven lease periods, at most"
    clock.advance(31 * DAY_MS + BUDGET_GRACE_MS)
    for n in range(10_000):
        await ledger.reserve(f"s{n}", "last", layers, 1)
        await ledger.settle(f"s{n}", "last", 1)
        clock.advance(1000)
    accounts, counters, leases = sizes(ledger)
    assert accounts == 1
    assert counters <= 8
    assert leases <= LEASE_MS // 1000 + 1
    await ledger.check_integrity()


async def test_one_account_with_a_new_key_for_each_request(clock: Clock) -> None:
    ledger = MemoryLedger(clock)
    for n in range(5000):
        await ledger.reserve(f"r{n}", "acme", [Layer(Level.KEY, f"k{n}", Limits(rpm=60))], 10)
        await ledger.settle(f"r{n}", "acme", 5)
        clock.advance(DAY_MS // 100)
    _, counters, _ = sizes(ledger)
    assert counters < 3 * 100 * (31 + 2), "what the keys of one month have spent"


async def test_calls_that_charge_nothing_keep_nothing(clock: Clock) -> None:
    ledger = MemoryLedger(clock)
    layers = (Layer(Level.ACCOUNT, "", LIMITS),)
    for n in range(100):
        await ledger.peek(f"a{n}", layers)
        await ledger.usage(f"a{n}")
        await ledger.settle("r", f"a{n}", 1)
        await ledger.release("r", f"a{n}")
        await ledger.renew(f"a{n}", {"r": 1})
    assert sizes(ledger) == (0, 0, 0)


async def test_released_requests_leave_no_counter(clock: Clock) -> None:
    ledger = MemoryLedger(clock)
    layers = (Layer(Level.ACCOUNT, "", LIMITS),)
    await ledger.reserve("r1", "a", layers, 10)
    await ledger.release("r1", "a")
    clock.advance(LEASE_MS)
    await ledger.reserve("r2", "b", layers, 10)
    await ledger.release("r2", "b")
    clock.advance(LEASE_MS)
    await ledger.reserve("r3", "c", layers, 10)
    await ledger.close()
    assert sizes(ledger) == (0, 0, 0)


def test_the_default_clock_is_in_milliseconds() -> None:
    assert 10**12 < wall_clock_ms() < 10**13
