"""What a gateway is made of, started and stopped in order."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import hmac
import tempfile
from collections.abc import AsyncIterator, Coroutine, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from quota.ledger import Ledger, Refusal
from quota.levels import Plan
from quota.memory import MemoryLedger
from server.auth import Authenticator
from server.entitlement import Entitlement
from server.errors import Overloaded
from server.generation import Resources
from server.job import Caller
from server.leases import LeaseKeeper
from server.metrics import Metrics
from server.pipeline import Pipeline, report
from server.registry import Registry
from server.routing import Router
from server.settings import Settings
from server.settings_layers import SettingsError
from server.store import Store
from server.store.credentials import GeneratedKeys, ensure_presets, load_pepper
from server.store.records import UsageRecord
from server.store.usage_writer import UsageWriter
from server.text.content_filter import ContentFilter

LAST_WORDS = 3.0  # seconds, after the drain time, in which cut answers can still send their error


@dataclass(slots=True)
class Services:
    """One gateway's parts, as its routes see them."""

    settings: Settings
    store: Store
    pepper: bytes
    generated_keys: GeneratedKeys
    authenticator: Authenticator
    ledger: Ledger
    entitlement: Entitlement
    plans: Mapping[str, Plan]
    registry: Registry
    router: Router
    pipeline: Pipeline
    leases: LeaseKeeper
    metrics: Metrics
    draining: bool = False

    @property
    def status(self) -> str:
        """A word for /readyz: "ready", or why not."""
        if self.draining:
            return "draining"
        return "ready" if all(d.is_ready for d in self.registry.deployments.values()) else "starting"

    async def drain(self) -> None:
        """Refuse new work, wait for what runs, end what takes too long in an error."""
        self.draining = True
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(self.settings.timeouts.drain):
                await self.leases.wait_until_idle()
        with contextlib.suppress(TimeoutError):  # who does not even read the error is cut off, and settled too
            async with asyncio.timeout(LAST_WORDS):
                while self.leases.num_held:  # each has its error to send, and then to settle
                    self.leases.fail_all(Overloaded("The server is shutting down.", code="shutting_down"))
                    await asyncio.sleep(0.05)


@contextlib.asynccontextmanager
async def running(settings: Settings) -> AsyncIterator[Services]:
    """Everything started, in an order in which each part finds what it needs; stopped in the opposite one.

    Raises SettingsError, StoreError, EngineError, ModelFilesError or TokenizerError: one line for the operator.
    """
    if settings.server.redis_url:
        raise SettingsError("server.redis_url: there is no shared ledger yet: leave it empty, with one gateway")
    async with contextlib.AsyncExitStack() as stack:
        records = await _open_records(stack, settings)
        ledger = MemoryLedger()
        stack.push_async_callback(ledger.close)
        await _restore(ledger, records.store)
        leases = LeaseKeeper(ledger)
        _background(stack, leases.run())
        metrics = Metrics()
        metrics.count_lost_usage(lambda: records.writer.dropped)
        registry = await _start_models(stack, settings, metrics)
        yield _assemble(settings, records, ledger, leases, metrics, registry)


@dataclass(slots=True, frozen=True)
class _Records:
    """The durable side: who may ask, and what was used."""

    store: Store
    pepper: bytes
    generated_keys: GeneratedKeys
    authenticator: Authenticator
    writer: UsageWriter


async def _open_records(stack: contextlib.AsyncExitStack, settings: Settings) -> _Records:
    store = await Store.open(settings.server.database_url, settings.server.data_dir)
    stack.push_async_callback(store.close)
    secrets = settings.secrets
    pepper = await load_pepper(store, secrets.key_pepper or "")
    generated = await ensure_presets(store, pepper, secrets.api_key, secrets.admin_key)
    authenticator = Authenticator(store.keys, pepper)
    authenticator.start()
    stack.push_async_callback(authenticator.close)
    writer = UsageWriter(store.usage)
    writer.start()
    stack.push_async_callback(writer.close)
    return _Records(store, pepper, generated, authenticator, writer)


def _assemble(
    settings: Settings, records: _Records, ledger: Ledger, leases: LeaseKeeper, metrics: Metrics, registry: Registry
) -> Services:
    def finished(record: UsageRecord, caller: Caller) -> None:
        records.writer.record(record)
        report(record, caller, metrics)

    def count_refusal(refusal: Refusal) -> None:
        metrics.refusals.labels(refusal.level, refusal.dimension).inc()

    entitlement = Entitlement(ledger, settings.quota.plans, count_refusal)
    router = Router(registry, settings.routing)
    services: Services
    resources = Resources(
        entitlement=entitlement,
        leases=leases,
        metrics=metrics,
        timeouts=settings.timeouts,
        finished=finished,
        salt_key=hmac.digest(records.pepper, b"prefix cache", hashlib.sha256),
        is_draining=lambda: services.draining,
    )
    content_filter = ContentFilter(settings.filter.block_input, settings.filter.mask_output)
    services = Services(
        settings=settings,
        store=records.store,
        pepper=records.pepper,
        generated_keys=records.generated_keys,
        authenticator=records.authenticator,
        ledger=ledger,
        entitlement=entitlement,
        plans=settings.quota.plans,
        registry=registry,
        router=router,
        pipeline=Pipeline(router, content_filter, resources),
        leases=leases,
        metrics=metrics,
    )
    return services


async def _restore(ledger: Ledger, store: Store) -> None:
    """A restart forgets no budget: this month's durable usage is where the counters begin."""
    first_of_month = datetime.now(UTC).date().replace(day=1)
    for total in await store.usage.totals_since(first_of_month):
        await ledger.restore(total.account_id, total.level, total.name, total.day, total.requests, total.tokens)


async def _start_models(stack: contextlib.AsyncExitStack, settings: Settings, metrics: Metrics) -> Registry:
    socket_dir = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="penstock-")))

    def count_restart(model: str, version: str) -> None:
        metrics.restarts.labels(model, version).inc()

    registry = Registry(settings, socket_dir, count_restart)
    await registry.start()
    stack.push_async_callback(registry.stop)
    metrics.watch_workers(registry.replica_stats)
    return registry


def _background(stack: contextlib.AsyncExitStack, work: Coroutine[Any, Any, None]) -> None:
    task = asyncio.create_task(work)

    async def stop() -> None:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)

    stack.push_async_callback(stop)
