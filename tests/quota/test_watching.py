"""Whether the shared ledger is there is known also while nobody asks for anything."""

from __future__ import annotations

import asyncio
from collections.abc import Collection

import pytest

from quota import degraded
from quota.degraded import DegradedLedger, WhenAway
from quota.ledger import LedgerUnavailable, Remaining
from quota.levels import Dimension, Layer, Level, Limits
from quota.memory import MemoryLedger


class Flaky(MemoryLedger):
    """A shared ledger that answers, does not answer, or fails, as it is told."""

    error: Exception | None = None

    async def peek(self, account: str, layers: Collection[Layer]) -> Remaining:
        if self.error is not None:
            raise self.error
        return await super().peek(account, layers)


async def test_every_change_is_told_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(degraded, "LOOK_EVERY", 0)
    shared, changes, changed = Flaky(), list[bool](), asyncio.Event()

    def on_change(is_away: bool) -> None:
        changes.append(is_away)
        changed.set()

    ledger = DegradedLedger(shared, on_change=on_change)
    watching = asyncio.create_task(ledger.watch())
    for error in (LedgerUnavailable("no answer"), None, ValueError("not an answer"), LedgerUnavailable("again")):
        shared.error = error
        if not isinstance(error, ValueError):
            await asyncio.wait_for(changed.wait(), 30)
            changed.clear()
        for _ in range(100):  # it looks many times
            await asyncio.sleep(0)
    watching.cancel()
    assert changes == [True, False, True]
    assert ledger.is_away
    await ledger.close()


@pytest.mark.parametrize(
    ("limits", "is_admitted"),
    [(Limits(), True), (Limits(rpm=100, shadow=frozenset({Dimension.RPM})), True), (Limits(rpm=100), False)],
)
async def test_closed_is_for_what_has_a_limit(limits: Limits, is_admitted: bool) -> None:
    class Away(MemoryLedger):
        async def reserve(self, *_: object) -> None:  # type: ignore[override]
            raise LedgerUnavailable("no answer")

    ledger = DegradedLedger(Away(), WhenAway.CLOSED)
    layers = (Layer(Level.ACCOUNT, "", limits),)
    if is_admitted:
        assert (await ledger.reserve("r1", "acme", layers, 1)).admitted
    else:
        with pytest.raises(LedgerUnavailable):
            await ledger.reserve("r1", "acme", layers, 1)
    await ledger.close()
