"""Draining, and what a start remembers."""

from __future__ import annotations

import asyncio
from dataclasses import fields
from datetime import UTC, datetime
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from quota.ledger import Ledger
from quota.levels import Dimension, Level
from server.batches.runner import BatchRunner
from server.errors import APIError
from server.leases import LeaseKeeper
from server.ledgers import open_embedded
from server.services import Services
from server.settings_sections import TimeoutSettings
from server.store import Store
from server.store.records import UsageRecord, utc_now


class Holder:
    """A running request. Failed, it takes a moment to end."""

    lease_id, account, tokens_used = "1", "a", 0

    def __init__(self, keeper: LeaseKeeper) -> None:
        self.keeper = keeper
        self.error: APIError | None = None

    async def lease_expired(self) -> None:
        pass

    def fail(self, error: APIError) -> None:
        self.error = error
        asyncio.get_running_loop().call_soon(self.keeper.drop, self)


def services(leases: LeaseKeeper, drain: float = 30) -> Services:
    parts: dict[str, Any] = {field.name: None for field in fields(Services)}
    parts["registry"] = SimpleNamespace(deployments={})
    parts["batches"] = BatchRunner(*[cast(Any, None)] * 4)
    parts["settings"] = SimpleNamespace(timeouts=TimeoutSettings(drain=drain))
    return Services(**parts | {"leases": leases, "draining": False})


async def test_draining_waits_for_what_runs() -> None:
    leases = LeaseKeeper(cast(Ledger, None))
    holder = Holder(leases)
    leases.hold(holder)
    house = services(leases)
    draining = asyncio.create_task(house.drain())
    await asyncio.sleep(0.01)
    assert (house.status, draining.done()) == ("draining", False)
    leases.drop(holder)
    await asyncio.wait_for(draining, 10)
    assert holder.error is None


async def test_what_takes_too_long_is_failed_and_waited_for() -> None:
    leases = LeaseKeeper(cast(Ledger, None))
    first, late = Holder(leases), Holder(leases)
    late.lease_id = "2"
    leases.hold(first)
    first.fail = lambda error: (leases.hold(late), Holder.fail(first, error))  # type: ignore[method-assign]
    await asyncio.wait_for(services(leases, drain=0.01).drain(), 10)
    assert first.error is not None
    assert late.error is not None
    assert leases.num_held == 0


async def test_nothing_runs() -> None:
    await asyncio.wait_for(services(LeaseKeeper(cast(Ledger, None))).drain(), 10)


def usage(request_id: str, tokens: int, started_at: datetime, outcome: str = "stop") -> UsageRecord:
    return UsageRecord(
        request_id=request_id,
        account_id="acct",
        key_id="key",
        model="echo",
        version="1",
        endpoint="/v1/chat/completions",
        features=frozenset({"chat"}),
        prompt_tokens=tokens,
        cached_tokens=0,
        completion_tokens=0,
        started_at=started_at,
        queue_ms=None,
        first_token_ms=None,
        total_ms=1,
        outcome=outcome,
    )


@pytest.mark.parametrize("day", [1, 2])
async def test_a_restart_remembers_what_was_charged_and_nothing_else(tmp_path: Path, day: int) -> None:
    now = utc_now()
    store = await Store.open("", tmp_path)
    rows = [usage("1", 10, now), usage("2", 5, now), usage("3", 0, now, "overloaded")]
    rows.append(usage("4", 100, datetime(now.year - 1, 1, day, tzinfo=UTC)))
    await store.usage.add(rows)
    ledger = await open_embedded(store)
    await store.close()
    used = {
        (counter.level, counter.dimension): counter.used
        for counter in (await ledger.usage("acct")).counters
        if counter.name in ("", "echo@1")
    }
    for level in (Level.ACCOUNT, Level.MODEL):
        assert used[level, Dimension.REQUESTS_PER_DAY] == 2  # the refused one was given back whole
        assert used[level, Dimension.TOKENS_PER_DAY] == used[level, Dimension.TOKENS_PER_MONTH] == 15
