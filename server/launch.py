"""From settings to the end of a server: what is prepared once, then one gateway here, or several of their own."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path

from batching.supervisor import WorkerSupervisor
from engines.base import EngineError
from engines.types import Task
from server import gateways
from server.gateway import AddressError, answer, base_url, bind, check_certificate, signals_give_up_the_start
from server.ledgers import check_shared
from server.metrics import Metrics
from server.model_files import ModelFilesError
from server.registry import Registry
from server.services import first_keys, opened_store, running
from server.settings import Settings
from server.settings_layers import SettingsError
from server.store import StoreError
from server.store.credentials import GeneratedKeys
from server.text.tokenizer import TokenizerError

OnReady = Callable[[GeneratedKeys, str, Task], None]
"""Is handed the keys that were generated, the base URL, and what the first model is for."""

OPERATOR_ERRORS = (
    SettingsError,
    StoreError,
    EngineError,
    ModelFilesError,
    TokenizerError,
    AddressError,
    gateways.GatewayError,
)


async def serve(settings: Settings, on_ready: OnReady) -> None:
    """Until a signal ends it. Raises OPERATOR_ERRORS, each with one line."""
    check_certificate(settings.server)
    listener = bind(settings.server, settings.timeouts.write)
    url = base_url(settings.server, listener)
    with listener, signals_give_up_the_start(), tempfile.TemporaryDirectory(prefix="penstock-") as folder:
        registry = Registry(settings, Path(folder), WorkerSupervisor)

        def ready() -> None:
            on_ready(keys, url, next(iter(registry.deployments.values())).task)

        async with opened_store(settings) as store:
            keys = await first_keys(store, settings)
            if settings.server.redis_url:
                await check_shared(settings, store)
            if settings.server.gateways > 1:
                await gateways.serve(settings, listener, registry, Path(folder), ready)
            else:
                async with running(settings, store, registry, Metrics()) as services:
                    await answer(services, listener, ready)
