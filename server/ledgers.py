"""Which ledger counts quotas: the embedded one, or the one that any number of gateways share in Redis."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Collection
from datetime import UTC, date, datetime, timedelta
from typing import TYPE_CHECKING

from quota.degraded import DegradedLedger, WhenAway
from quota.ledger import LedgerUnavailable, PastUsage
from quota.memory import MemoryLedger
from server.settings import Settings
from server.settings_layers import SettingsError
from server.store import Store

if TYPE_CHECKING:
    from quota.redis import RedisLedger

Flush = Callable[[], Awaitable[object]]
"""Writes the usage that still waits in memory; False if some of it could not be written."""

_EPOCH = "quota_epoch"

log = logging.getLogger("penstock.quota")


async def open_embedded(store: Store, account_id: str | None = None) -> MemoryLedger:
    """A restart forgets no budget: this month's durable usage (of one account, or all) is where the counters begin."""
    ledger = MemoryLedger()
    for total in await store.usage.totals_since(_first_of_month(), account_id):
        await ledger.restore(total.account_id, total.level, total.name, total.day, total.requests, total.tokens)
    return ledger


async def check_shared(settings: Settings, store: Store) -> None:
    """Once for a server, before its models are loaded. Raises SettingsError."""
    ledger = await open_shared(settings, store, flush=lambda: asyncio.sleep(0))
    await ledger.close()


async def open_shared(settings: Settings, store: Store, flush: Flush, *, must_answer: bool = True) -> RedisLedger:
    """Raises SettingsError, with one line for the operator, if this Redis can't be used.

    One that gives no answer can be, unless it `must_answer`: a gateway that starts again need not wait for it.
    """
    try:
        from quota.redis import RedisLedger  # an optional dependency
    except ModuleNotFoundError:
        raise SettingsError("server.redis_url: no Redis client is installed: pip install 'penstock[redis]'") from None

    async def remember(epoch: str) -> None:
        await store.settings.set(_EPOCH, epoch)

    async def history(account: str, without: Collection[str]) -> list[PastUsage]:
        if await flush() is False:
            raise OSError("some of this gateway's own usage waits to be written")
        totals = await store.usage.totals_since(_first_of_month(), account, without)
        return [PastUsage(t.level, t.name, t.day, t.requests, t.tokens) for t in totals]

    try:
        ledger = RedisLedger(
            settings.server.redis_url,
            history=history,
            epoch=await store.settings.get(_EPOCH),
            remember=remember,
            audit=settings.quota.audit,
        )
    except ValueError:  # its text may show a part of a password
        expected = "redis://USER:PASSWORD@HOST:PORT/NUMBER, with / @ : and % in a password written as %2F %40 %3A %25"
        raise SettingsError(f"server.redis_url: expected {expected}") from None
    try:
        await ledger.check_server()
    except (LedgerUnavailable, ValueError) as error:
        if must_answer or not isinstance(error, LedgerUnavailable):
            await ledger.close()
            raise SettingsError(f"server.redis_url: {error}") from None
        log.warning("started without the shared ledger: %s", error)
    return ledger


def able_to_go_on(
    shared: RedisLedger, settings: Settings, on_change: Callable[[bool], None] = lambda is_away: None
) -> DegradedLedger:
    """The shared ledger, with what this gateway does while it is away. `on_change` hears whether it is."""
    mode = WhenAway(settings.quota.when_redis_is_away)
    return DegradedLedger(shared, mode, settings.quota.max_gateways, on_change=on_change)


def _first_of_month() -> date:
    """By our clock, and a day of grace: a ledger passes over what is not of its own month."""
    return (datetime.now(UTC) - timedelta(days=1)).date().replace(day=1)
