"""The plans in force: those of the configuration file, under those that the admin API set."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from functools import lru_cache
from typing import Any, Protocol

from sqlalchemy.exc import SQLAlchemyError

from quota.levels import LimitError, Limits, Plan
from server.store.accounts import DEFAULT_PLAN_NAME
from server.store.records import StoredPlan

log = logging.getLogger(__name__)

MAX_CACHED = 10_000  # agreements of accounts
_UNREADABLE = (SQLAlchemyError, OSError, TimeoutError, ValueError)  # the last: what is stored is no JSON


class Source(StrEnum):
    """Where a plan comes from."""

    FILE = "file"  # or built in, as the default one is
    DATABASE = "database"


@dataclass(frozen=True, slots=True)
class PlanEntry:
    plan: Plan
    source: Source
    updated_at: datetime | None = None  # None for the file's


class PlanStore(Protocol):
    """What the book asks of `server.store.plans.Plans`."""

    async def all(self) -> Sequence[StoredPlan]: ...


class PlanBook:
    """Reads the database every `interval_s` seconds, so that what was changed through one gateway holds on all.

    A database that is away leaves the plans as they are last known. One event loop.
    """

    def __init__(
        self, configured: Mapping[str, Plan], store: PlanStore, *, interval_s: float = 2.0, store_timeout: float = 2.0
    ) -> None:
        self._configured = {name: PlanEntry(plan, Source.FILE) for name, plan in configured.items()}
        self._store = store
        self._interval_s = interval_s
        self._store_timeout = store_timeout
        self._stored: Sequence[StoredPlan] = ()
        self._entries: Mapping[str, PlanEntry] = self._configured
        self._agreements: dict[tuple[str, str], Plan] = {}
        self._reading = asyncio.Lock()  # so that an older answer never takes the place of a newer one
        self._is_away = False
        self._task: asyncio.Task[None] | None = None

    @property
    def entries(self) -> Mapping[str, PlanEntry]:
        """Every plan in force, by name; "default" is always among them."""
        return self._entries

    def is_configured(self, name: str) -> bool:
        """Whether the file (or Penstock itself) has a plan of this name, in force or not."""
        return name in self._configured

    def get(self, name: str) -> Plan:
        """An account whose plan is gone keeps the default one: it is never unlimited by accident."""
        return (self._entries.get(name) or self._entries[DEFAULT_PLAN_NAME]).plan

    def effective(self, name: str, overrides: Mapping[str, Any]) -> Plan:
        """The plan, with an account's own agreements over it. Those that can't be read are logged and passed over."""
        if not overrides:
            return self.get(name)
        key = (name, json.dumps(overrides, sort_keys=True))
        if (plan := self._agreements.get(key)) is None:
            if len(self._agreements) >= MAX_CACHED:
                self._agreements.clear()
            plan = self._agreements[key] = _overridden(self.get(name), overrides)
        return plan

    async def read(self) -> None:
        """Take over what the database has now. Raises what the database raises, and TimeoutError."""
        async with self._reading, asyncio.timeout(self._store_timeout):
            stored = await self._store.all()
        if stored == self._stored:
            return
        self._stored = stored
        self._entries = self._configured | _parsed(stored)
        self._agreements.clear()

    async def refresh(self) -> None:
        """The same, but what is known stays if the database is away."""
        try:
            await self.read()
        except _UNREADABLE as error:
            if not self._is_away:
                log.warning("plans can't be read (%s): those last known stay in force", type(error).__name__)
            self._is_away = True
        else:
            self._is_away = False

    def start(self) -> None:
        self._task = asyncio.create_task(self._run(), name="plans")

    async def close(self) -> None:
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    async def _run(self) -> None:
        while True:
            await asyncio.sleep(self._interval_s)
            await self.refresh()


def key_limits(limits: Mapping[str, Any]) -> Limits:
    """A key's own limits; those that can't be read are logged and passed over, so that the plan's hold alone."""
    return _key_limits(json.dumps(limits, sort_keys=True)) if limits else _NONE


@lru_cache(maxsize=MAX_CACHED)
def _key_limits(text: str) -> Limits:
    try:
        return Limits.parse(json.loads(text), "key.limits")
    except LimitError as error:
        log.error("limits of a key can't be read: %s", error)
        return _NONE


def _overridden(plan: Plan, overrides: Mapping[str, Any]) -> Plan:
    try:
        return plan.overridden(Plan.parse(plan.name, overrides))
    except LimitError as error:
        log.error("overrides of an account can't be read: %s", error)
        return plan


def _parsed(stored: Sequence[StoredPlan]) -> dict[str, PlanEntry]:
    """One that can't be read is as if it were not there: the file's stands, or none."""
    entries = {}
    for row in stored:
        try:
            plan = Plan.parse(row.name, row.tables)
        except LimitError as error:
            log.error("a stored plan can't be read: %s", error)
        else:
            entries[row.name] = PlanEntry(plan, Source.DATABASE, row.updated_at)
    return entries


_NONE = Limits()
