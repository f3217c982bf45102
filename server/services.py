"""What a gateway is made of, started and stopped in order."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import hmac
from collections.abc import AsyncIterator, Coroutine
from dataclasses import dataclass
from datetime import timedelta
from functools import partial
from typing import TYPE_CHECKING, Any

from quota.ledger import Ledger
from server.auth import Authenticator
from server.batches.runner import BatchRunner
from server.cache.cache import ResponseCache
from server.cache.stores import open_store
from server.entitlement import Entitlement
from server.errors import Overloaded
from server.generation import Resources
from server.job import Caller
from server.leases import LeaseKeeper
from server.ledgers import able_to_go_on, open_embedded, open_shared
from server.metrics import Metrics
from server.model_control import LocalControl, ModelControl
from server.pipeline import Pipeline, report
from server.plans import PlanBook
from server.registry import Deployment, Registry
from server.replica_health import Ejection
from server.responses.background import Background
from server.responses.seal import seal_key
from server.responses.service import ResponsesService
from server.routing import Router
from server.settings import Settings
from server.store import Store
from server.store.credentials import GeneratedKeys, ensure_presets, load_pepper
from server.store.records import UsageRecord
from server.store.usage_writer import UsageWriter
from server.text.content_filter import ContentFilter
from server.uploads import sweep_for_ever
from server.vectors import VectorPipeline

if TYPE_CHECKING:  # of an optional dependency
    from server.tracing.tracer import Tracer

LAST_WORDS = 3.0  # seconds, after the drain time, in which cut answers can still send their error


@dataclass(slots=True)
class Services:
    """One gateway's parts, as its routes see them."""

    settings: Settings
    store: Store
    pepper: bytes
    authenticator: Authenticator
    ledger: Ledger
    entitlement: Entitlement
    plans: PlanBook
    registry: Registry
    router: Router
    pipeline: Pipeline
    vectors: VectorPipeline
    responses: ResponsesService
    background: Background
    content_filter: ContentFilter
    leases: LeaseKeeper
    metrics: Metrics
    control: ModelControl
    batches: BatchRunner
    tracer: Tracer | None = None  # None: nothing is traced
    draining: bool = False

    @property
    def status(self) -> str:
        """A word for /readyz: "ready", "degraded" while a replica is missed, or why not. What is unloaded on purpose is
        not missed."""
        if self.draining:
            return "draining"
        served = [d for d in self.registry.deployments.values() if d.state.is_served]
        if not all(d.is_ready for d in served):
            return "starting"
        return "ready" if all(replica.is_well for d in served for replica in d.replicas) else "degraded"

    def observe(self, num_connections: int) -> None:
        """What is of the moment, for the metrics."""
        self.metrics.health.observe(num_connections, self.registry.set_aside())

    async def drain(self) -> None:
        """Refuse new work, wait for what runs, end what takes too long in an error."""
        self.draining = True
        await self.batches.stop()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(self.settings.timeouts.drain):
                await self.leases.wait_until_idle()
        with contextlib.suppress(TimeoutError):  # who does not even read the error is cut off, and settled too
            async with asyncio.timeout(LAST_WORDS):
                while self.leases.num_held:  # each has its error to send, and then to settle
                    self.leases.fail_all(Overloaded("The server is shutting down.", code="shutting_down"))
                    await asyncio.sleep(0.05)


@contextlib.asynccontextmanager
async def opened_store(settings: Settings) -> AsyncIterator[Store]:
    """Raises StoreError."""
    store = await Store.open(settings.server.database_url, settings.server.data_dir)
    try:
        yield store
    finally:
        await store.close()


async def first_keys(store: Store, settings: Settings) -> GeneratedKeys:
    """Made or checked once at the start of a server, however many gateways it has. Raises StoreError."""
    secrets = settings.secrets
    pepper = await load_pepper(store, secrets.key_pepper or "")
    return await ensure_presets(store, pepper, secrets.api_key, secrets.admin_key)


@contextlib.asynccontextmanager
async def running(
    settings: Settings, store: Store, registry: Registry, metrics: Metrics, control: ModelControl | None = None
) -> AsyncIterator[Services]:
    """Everything started, in an order in which each part finds what it needs; stopped in the opposite one.

    Without a `control` the registry's workers are ours.

    Raises SettingsError, StoreError, EngineError, ModelFilesError or TokenizerError: one line for the operator.
    """
    async with contextlib.AsyncExitStack() as stack:
        records = await _open_records(stack, settings, store, metrics)
        _background(stack, sweep_for_ever(store.files))
        ledger = await _open_ledger(stack, settings, records, metrics)
        leases = LeaseKeeper(ledger)
        _background(stack, leases.run())
        await registry.start()
        stack.push_async_callback(registry.stop)
        control = control or LocalControl(registry, settings.timeouts.drain)
        await control.start()
        stack.push_async_callback(control.stop)
        cache = _open_cache(stack, settings, records.pepper, metrics)
        tracer = _open_tracer(stack, settings)
        for deployment in registry.deployments.values():
            deployment.balancer.on_ejection = partial(_ejected, metrics, deployment)
        metrics.watch_workers(registry.replica_stats)
        metrics.watch_models(registry.standings)
        services = _assemble(settings, records, ledger, leases, metrics, registry, control, cache, tracer)
        stack.push_async_callback(services.background.close)
        _background(stack, services.background.watch())
        _background(stack, services.background.clean())
        yield services


def _ejected(metrics: Metrics, deployment: Deployment, reason: Ejection) -> None:
    metrics.health.ejections.labels(deployment.model, deployment.version, reason).inc()


@dataclass(slots=True, frozen=True)
class _Records:
    """The durable side: who may ask, and what was used."""

    store: Store
    pepper: bytes
    authenticator: Authenticator
    plans: PlanBook
    writer: UsageWriter


async def _open_records(
    stack: contextlib.AsyncExitStack, settings: Settings, store: Store, metrics: Metrics
) -> _Records:
    pepper = await load_pepper(store, settings.secrets.key_pepper or "")
    authenticator = Authenticator(store.keys, pepper)
    authenticator.start()
    stack.push_async_callback(authenticator.close)
    plans = PlanBook(settings.quota.plans, store.plans)
    await plans.refresh()
    plans.start()
    stack.push_async_callback(plans.close)
    writer = UsageWriter(store.usage, on_drop=metrics.lost_usage.inc)
    writer.start()
    stack.push_async_callback(writer.close)
    return _Records(store, pepper, authenticator, plans, writer)


def _assemble(
    settings: Settings,
    records: _Records,
    ledger: Ledger,
    leases: LeaseKeeper,
    metrics: Metrics,
    registry: Registry,
    control: ModelControl,
    cache: ResponseCache | None,
    tracer: Tracer | None,
) -> Services:
    def finished(record: UsageRecord, caller: Caller) -> None:
        records.writer.record(record)
        report(record, caller, metrics)

    entitlement = Entitlement(ledger, records.plans, metrics.quota.observe)
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
        cache=cache,
        trace=None if tracer is None else tracer.request_ended,
    )
    content_filter = ContentFilter(settings.filter.block_input, settings.filter.mask_output, settings.filter.categories)
    pipeline = Pipeline(router, content_filter, resources)
    keep = timedelta(days=settings.responses.keep_days)
    responses = ResponsesService(pipeline, records.store.responses, seal_key(records.pepper), keep)
    services = Services(
        settings=settings,
        store=records.store,
        pepper=records.pepper,
        authenticator=records.authenticator,
        ledger=ledger,
        entitlement=entitlement,
        plans=records.plans,
        registry=registry,
        router=router,
        pipeline=pipeline,
        vectors=VectorPipeline(router, content_filter, resources),
        responses=responses,
        background=Background(responses),
        content_filter=content_filter,
        leases=leases,
        metrics=metrics,
        control=control,
        batches=BatchRunner(records.store, records.authenticator, router, settings),
        tracer=tracer,
    )
    return services


def _open_cache(
    stack: contextlib.AsyncExitStack, settings: Settings, pepper: bytes, metrics: Metrics
) -> ResponseCache | None:
    """Raises SettingsError."""
    if not settings.cache.is_on:
        return None
    secret = hmac.digest(pepper, b"response cache", hashlib.sha256)
    cache = ResponseCache(open_store(settings, metrics), settings.cache.max_entry_bytes, secret)
    stack.push_async_callback(cache.close)
    return cache


def _open_tracer(stack: contextlib.AsyncExitStack, settings: Settings) -> Tracer | None:
    if not settings.tracing.endpoint:
        return None
    from server.tracing.tracer import Tracer  # here, since nobody else needs its library

    tracer = Tracer(settings.tracing.endpoint)
    stack.push_async_callback(tracer.close)
    return tracer


async def _open_ledger(
    stack: contextlib.AsyncExitStack, settings: Settings, records: _Records, metrics: Metrics
) -> Ledger:
    metrics.health.ledger_up.set(1)
    if not settings.server.redis_url:
        embedded = await open_embedded(records.store)
        stack.push_async_callback(embedded.close)
        return embedded
    shared = await open_shared(settings, records.store, records.writer.flush, must_answer=False)
    ledger = able_to_go_on(shared, settings, lambda is_away: metrics.health.ledger_up.set(not is_away))
    stack.push_async_callback(ledger.close)
    _background(stack, ledger.watch())
    return ledger


def _background(stack: contextlib.AsyncExitStack, work: Coroutine[Any, Any, None]) -> None:
    task = asyncio.create_task(work)

    async def stop() -> None:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)

    stack.push_async_callback(stop)
