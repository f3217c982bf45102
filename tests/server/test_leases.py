"""The keeper of leases, with a ledger that says what the test wants."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import cast

import pytest

from quota.ledger import Ledger
from server.errors import APIError, Overloaded
from server.leases import LeaseKeeper


@dataclass
class Holder:
    lease_id: str
    account: str = "a"
    tokens_used: int = 1
    expired: int = 0
    error: APIError | None = None
    bug: Exception | None = None

    async def lease_expired(self) -> None:
        self.expired += 1
        if self.bug is not None:
            raise self.bug

    def fail(self, error: APIError) -> None:
        self.error = error


@dataclass
class PaperLedger:
    expired: set[str] = field(default_factory=set)
    away: set[str] = field(default_factory=set)  # accounts
    calls: list[tuple[str, dict[str, int]]] = field(default_factory=list)
    called: asyncio.Event = field(default_factory=asyncio.Event)

    async def renew(self, account: str, used_by_lease: Mapping[str, int]) -> frozenset[str]:
        self.calls.append((account, dict(used_by_lease)))
        self.called.set()
        if account in self.away:
            raise ConnectionError("away")
        return frozenset(self.expired & used_by_lease.keys())


def keeper_of(ledger: PaperLedger, *holders: Holder, interval: float = 10) -> LeaseKeeper:
    keeper = LeaseKeeper(cast(Ledger, ledger), interval)
    for holder in holders:
        keeper.hold(holder)
    return keeper


async def test_one_call_an_account_with_what_its_requests_used() -> None:
    ledger = PaperLedger()
    keeper = keeper_of(ledger, Holder("1"), Holder("2", tokens_used=7), Holder("3", "b"))
    await keeper.renew()
    assert ledger.calls == [("a", {"1": 1, "2": 7}), ("b", {"3": 1})]


async def test_only_the_expired_are_told() -> None:
    kept, lost = Holder("1"), Holder("2")
    await keeper_of(PaperLedger({"2"}), kept, lost).renew()
    assert (kept.expired, lost.expired) == (0, 1)


async def test_one_that_ended_meanwhile_is_not_told() -> None:
    ended = Holder("2")

    class Slow(PaperLedger):
        async def renew(self, account: str, used_by_lease: Mapping[str, int]) -> frozenset[str]:
            keeper.drop(ended)
            return frozenset({"2"})

    keeper = keeper_of(Slow(), ended)
    await keeper.renew()
    assert ended.expired == 0


async def test_a_ledger_that_is_away_aborts_nothing() -> None:
    holders = [Holder("1"), Holder("2", "b")]
    ledger = PaperLedger({"1", "2"}, away={"a"})
    await keeper_of(ledger, *holders).renew()
    assert [holder.expired for holder in holders] == [0, 1]
    assert holders[0].error is None


async def test_a_bug_in_one_does_not_let_the_others_run_out(caplog: pytest.LogCaptureFixture) -> None:
    broken, other = Holder("1", bug=RuntimeError("a bug")), Holder("2", "b")
    ledger = PaperLedger({"1", "2"})
    keeper = keeper_of(ledger, broken, other, interval=0.001)
    running = asyncio.create_task(keeper.run())
    while len(ledger.calls) < 6:
        await asyncio.wait_for(ledger.called.wait(), 10)
        ledger.called.clear()
    running.cancel()
    assert other.expired > 1
    assert broken.expired > 1
    assert "could not be renewed" in caplog.text


async def test_idle_when_the_last_is_dropped() -> None:
    one, two = Holder("1"), Holder("2")
    keeper = keeper_of(PaperLedger(), one, two)
    waiting = asyncio.create_task(keeper.wait_until_idle())
    keeper.drop(one)
    keeper.drop(one)
    await asyncio.sleep(0)
    assert (keeper.num_held, waiting.done()) == (1, False)
    keeper.drop(two)
    await asyncio.wait_for(waiting, 10)
    await asyncio.wait_for(keeper.wait_until_idle(), 10)


async def test_all_are_failed() -> None:
    holders = [Holder("1"), Holder("2")]
    keeper_of(PaperLedger(), *holders).fail_all(Overloaded("no"))
    assert all(isinstance(holder.error, Overloaded) for holder in holders)
