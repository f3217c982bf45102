"""Who loads and unloads models: the process that owns the workers, for every gateway of its server."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any, Protocol

from server.lifecycle import Announce, Lifecycle
from server.registry import Registry


class ModelControl(Protocol):
    """Deployments go by `name@version`, which must be one of the registry's.

    Both return when it is done, and raise ModelControlError where it is not. Who gives up waiting stops nothing.
    """

    async def start(self) -> None:
        """Once the registry has started."""

    async def stop(self) -> None: ...

    async def load(self, deployment: str) -> None: ...

    async def unload(self, deployment: str, drain_seconds: float | None) -> None: ...


async def _nobody_else(until_known: bool) -> None:
    """Has to be told."""


class LocalControl:
    """Of workers that are ours."""

    def __init__(self, registry: Registry, drain: float, announce: Announce = _nobody_else) -> None:
        self._registry = registry
        self._drain = drain
        self._announce = announce
        self._lifecycles: dict[str, Lifecycle] = {}
        self._work: set[asyncio.Task[None]] = set()

    async def start(self) -> None:
        self._lifecycles = {
            name: Lifecycle(deployment, self._drain, self._announce)
            for name, deployment in self._registry.deployments.items()
        }

    async def stop(self) -> None:
        """Before the registry stops its workers."""
        for task in self._work:
            task.cancel()
        await asyncio.gather(*self._work, return_exceptions=True)

    async def load(self, deployment: str) -> None:
        await self._to_its_end(self._lifecycles[deployment].load())

    async def unload(self, deployment: str, drain_seconds: float | None) -> None:
        await self._to_its_end(self._lifecycles[deployment].unload(drain_seconds))

    async def _to_its_end(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work)
        self._work.add(task)
        task.add_done_callback(self._done)
        await asyncio.shield(task)

    def _done(self, task: asyncio.Task[None]) -> None:
        self._work.discard(task)
        if not task.cancelled():
            task.exception()  # whoever asked may have left: it is in the state, and in the log
