"""Writes what is new of all of a gateway's responses: what comes while a transaction is under way shares the next."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Protocol

from server.store.responses import Progress, Standing

MAX_BATCH = 100
WRITE_TIMEOUT = 10.0  # seconds; a database that does not answer has not written


class ResponseStore(Protocol):
    """What is asked of `server.store.responses.Responses`."""

    async def write(self, news: Sequence[Progress]) -> list[Standing]: ...


class Scribe:
    """One a gateway. All methods belong to one event loop."""

    def __init__(self, store: ResponseStore) -> None:
        self._store = store
        self._waiting: list[tuple[Progress, asyncio.Future[Standing]]] = []
        self._is_writing = False
        self._task: asyncio.Task[None] | None = None
        self.at_work: set[str] = set()  # responses that this gateway still makes, however late their leases are renewed

    async def write(self, progress: Progress) -> Standing:
        """Returns when it is stored. Raises what the database does, one of DATABASE_FAULTS where it is away."""
        written: asyncio.Future[Standing] = asyncio.get_running_loop().create_future()
        self._waiting.append((progress, written))
        if not self._is_writing:
            self._is_writing = True
            self._task = asyncio.create_task(self._write_all())
        return await written

    async def _write_all(self) -> None:
        try:
            while self._waiting:
                batch, self._waiting = self._waiting[:MAX_BATCH], self._waiting[MAX_BATCH:]
                await self._write(batch)
        finally:
            self._is_writing = False

    async def _write(self, batch: Sequence[tuple[Progress, asyncio.Future[Standing]]]) -> None:
        """One that the database refuses does not take the others with it."""
        try:
            async with asyncio.timeout(WRITE_TIMEOUT):
                standings = await self._store.write([progress for progress, _ in batch])
        except Exception as error:
            if len(batch) > 1 and not isinstance(error, OSError):
                for one in batch:
                    await self._write([one])
                return
            for _, written in batch:
                if not written.done():
                    written.set_exception(error)
            return
        for (_, written), standing in zip(batch, standings, strict=True):
            if not written.done():
                written.set_result(standing)
