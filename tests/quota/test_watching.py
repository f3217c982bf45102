"""Whether the shared ledger is there is known also while nobody asks for anything."""

from __future__ import annotations

import asyncio

import pytest

from quota import degraded
from quota.degraded import DegradedLedger, WhenAway
from quota.ledger import QuotaUnavailable
from quota.levels import Dimension, Layer, Level, Limits
from quota.redis import RedisLedger
from tests.quota.chaos_proxy import ChaosProxy, Fault
from tests.quota.redis_server import RedisServer


async def test_every_change_is_told_once(
    redis_server: RedisServer, prefix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(degraded, "WATCH_EVERY", 0.01)
    proxy = ChaosProxy(redis_server.port)
    await proxy.start()
    changes, changed = list[bool](), asyncio.Event()

    def on_change(is_away: bool) -> None:
        changes.append(is_away)
        changed.set()

    ledger = DegradedLedger(RedisLedger(proxy.url, prefix=prefix), on_change=on_change)
    watching = asyncio.create_task(ledger.watch())
    for fault in (Fault.REFUSE, Fault.NONE, Fault.BLACKHOLE):
        proxy.fault = fault
        await asyncio.wait_for(changed.wait(), 30)
        changed.clear()
        await asyncio.sleep(0.2)  # it looks many times
    watching.cancel()
    assert changes == [True, False, True]
    assert ledger.is_away
    await ledger.close()
    await proxy.close()


@pytest.mark.parametrize(
    ("limits", "is_admitted"),
    [(Limits(), True), (Limits(rpm=100, shadow=frozenset({Dimension.RPM})), True), (Limits(rpm=100), False)],
)
async def test_closed_is_for_what_has_a_limit(limits: Limits, is_admitted: bool) -> None:
    ledger = DegradedLedger(RedisLedger("redis://127.0.0.1:1"), WhenAway.CLOSED)
    layers = (Layer(Level.ACCOUNT, "", limits),)
    if is_admitted:
        assert (await ledger.reserve("r1", "acme", layers, 1)).admitted
    else:
        with pytest.raises(QuotaUnavailable):
            await ledger.reserve("r1", "acme", layers, 1)
    await ledger.close()
