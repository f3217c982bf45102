"""The plans in force: which one wins, how a change comes in, and what can't be read."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from quota.levels import DEFAULT_PLAN, Limits, Plan
from server.plans import PlanBook, Source
from server.store import Store
from server.store.records import StoredPlan
from tests.fakes import eventually

CONFIGURED = {"default": DEFAULT_PLAN, "gold": Plan("gold", account=Limits(rpm=50))}
THEN = datetime(2025, 3, 10, tzinfo=UTC)


class PaperStore:
    """A database that may be away, or slow."""

    def __init__(self, **plans: dict[str, Any]) -> None:
        self.plans = plans
        self.error: Exception | None = None
        self.pause = 0.0

    async def all(self) -> list[StoredPlan]:
        answer = [StoredPlan(name, tables, THEN) for name, tables in self.plans.items()]
        await asyncio.sleep(self.pause)
        if self.error is not None:
            raise self.error
        return answer


def book(store: PaperStore, **options: float) -> PlanBook:
    return PlanBook(CONFIGURED, store, **options)


async def test_before_the_first_look_the_files_plans_hold() -> None:
    plans = book(PaperStore(gold={"account": {"rpm": 1}}))
    assert {name: entry.source for name, entry in plans.entries.items()} == dict.fromkeys(CONFIGURED, Source.FILE)


async def test_the_databases_plans_win_and_come_and_go() -> None:
    store = PaperStore(gold={"account": {"rpm": 1}}, free={"key": {"rpm": 2}})
    plans = book(store)
    await plans.refresh()
    assert plans.get("gold").account == Limits(rpm=1)
    assert plans.get("free").key == Limits(rpm=2)
    sources = {name: (entry.source, entry.updated_at) for name, entry in plans.entries.items()}
    stored = (Source.DATABASE, THEN)
    assert sources == {"default": (Source.FILE, None), "gold": stored, "free": stored}
    assert [plans.is_configured(name) for name in ("gold", "free")] == [True, False]
    store.plans = {}
    await plans.refresh()
    assert plans.get("gold") == CONFIGURED["gold"]
    assert "free" not in plans.entries


async def test_an_unknown_plan_is_the_default_one() -> None:
    plans = book(PaperStore(default={"account": {"rpm": 7}}))
    assert plans.get("gone") == DEFAULT_PLAN
    await plans.refresh()
    assert plans.get("gone").account == Limits(rpm=7)
    assert plans.effective("gone", {"account": {"tpm": 9}}).account == Limits(rpm=7, tpm=9)


async def test_agreements_follow_the_plan_under_them() -> None:
    store = PaperStore()
    plans = book(store)
    overrides = {"account": {"tpm": 9}}
    assert plans.effective("gold", overrides).account == Limits(rpm=50, tpm=9)
    assert plans.effective("default", overrides).account.tpm == 9
    store.plans = {"gold": {"account": {"rpm": 3}}}
    await plans.refresh()
    assert plans.effective("gold", overrides).account == Limits(rpm=3, tpm=9)
    assert plans.effective("gold", {"account": {"tpm": 8}}).account == Limits(rpm=3, tpm=8)
    assert plans.effective("gold", {}).account == Limits(rpm=3)


@pytest.mark.parametrize("bad", [{"account": {"rpm": -1}}, {"colour": {}}, {"features": {"juggling": {}}}, [], None])
async def test_a_plan_that_can_not_be_read_is_passed_over(bad: Any, caplog: pytest.LogCaptureFixture) -> None:
    plans = book(PaperStore(gold=bad, odd=bad, free={}))
    for _ in range(3):
        await plans.refresh()
    assert plans.get("gold") == CONFIGURED["gold"]
    assert plans.get("odd") == DEFAULT_PLAN
    assert plans.entries["free"].source is Source.DATABASE
    assert len(caplog.records) == 2  # once each, not at each look


async def test_while_the_database_is_away_the_last_known_plans_hold(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING)
    store = PaperStore(gold={"account": {"rpm": 1}})
    plans = book(store, store_timeout=0.01)
    await plans.refresh()
    for error, pause in ((OSError("away"), 0), (ValueError("no JSON"), 0), (None, 60)):
        store.error, store.pause = error, pause
        await plans.refresh()
        assert plans.get("gold").account == Limits(rpm=1)
    assert len(caplog.records) == 1
    store.error, store.pause, store.plans = None, 0, {}
    await plans.refresh()
    assert plans.get("gold") == CONFIGURED["gold"]
    store.error = OSError("away again")
    await plans.refresh()
    assert len(caplog.records) == 2


async def test_an_older_answer_never_takes_the_place_of_a_newer_one() -> None:
    store = PaperStore(gold={"account": {"rpm": 1}})
    store.pause = 0.02
    plans = book(store)
    slow = asyncio.create_task(plans.refresh())
    await asyncio.sleep(0)
    store.plans, store.pause = {"gold": {"account": {"rpm": 2}}}, 0
    await asyncio.gather(plans.refresh(), slow)
    assert plans.get("gold").account == Limits(rpm=2)


@pytest.fixture
async def store(tmp_path: Path) -> AsyncIterator[Store]:
    opened = await Store.open(data_dir=tmp_path)
    yield opened
    await opened.close()


async def test_what_another_gateway_sets_holds_here_soon(store: Store) -> None:
    plans = PlanBook(CONFIGURED, store.plans, interval_s=0.005)
    plans.start()
    await store.plans.put("gold", {"account": {"rpm": 1, "shadow": ["rpm"]}})
    await eventually(lambda: plans.get("gold").account.rpm == 1)
    await store.plans.delete("gold")
    await eventually(lambda: plans.get("gold") == CONFIGURED["gold"])
    await plans.close()
