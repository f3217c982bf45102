"""Results on their way into the store: those that come while a transaction is under way share the next one."""

from __future__ import annotations

import asyncio

from server.store.batches import Batches
from server.store.records import LineResult


class Recorder:
    def __init__(self, batches: Batches, batch_id: str, owner: str) -> None:
        self._batches = batches
        self._batch_id = batch_id
        self._owner = owner
        self._waiting: list[LineResult] = []
        self._writing: asyncio.Task[None] | None = None

    async def add(self, result: LineResult) -> None:
        """Returns when it is written: from then on the line will never run again. Raises what the writing raised."""
        self._waiting.append(result)
        if self._writing is None or self._writing.done():
            self._writing = asyncio.create_task(self._write())
        await asyncio.shield(self._writing)

    async def settled(self) -> None:
        """Until nothing is being written. Raises what the last writing raised."""
        if self._writing is not None:
            await self._writing

    async def _write(self) -> None:
        while self._waiting:
            results, self._waiting = self._waiting, []
            await self._batches.record(self._batch_id, self._owner, results)
