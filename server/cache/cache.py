"""One gateway's response cache: what was recorded, and what is under way."""

from __future__ import annotations

import asyncio

from server.cache.flight import Flight
from server.cache.key import key_of
from server.cache.recording import Recording, decode, encode
from server.cache.stores import Store
from server.computation import Computation
from server.job import Job


class ResponseCache:
    """`secret` makes the keys; gateways that share a store have the same."""

    def __init__(self, store: Store, max_entry_bytes: int, secret: bytes) -> None:
        self._store = store
        self._max_entry_bytes = max_entry_bytes
        self._secret = secret
        self._flights: dict[bytes, Flight] = {}
        self._fresh: dict[bytes, Recording] = {}  # being written
        self._writing: set[asyncio.Task[None]] = set()

    def key(self, job: Job) -> bytes:
        return key_of(job, self._secret)

    async def find(self, key: bytes) -> Recording | Flight | None:
        if (known := self._known(key)) is not None:
            return known
        data = await self._store.get(key)
        recording = decode(data) if data is not None else None
        return recording or self._known(key)  # somebody may have begun meanwhile

    def _known(self, key: bytes) -> Recording | Flight | None:
        return self._flights.get(key) or self._fresh.get(key)

    def begin(self, key: bytes, computation: Computation) -> Flight:
        """Others may join it from now on."""

        def ended(recording: Recording | None) -> None:
            if self._flights.get(key) is not flight:  # a later one has taken its place
                return
            del self._flights[key]
            if recording is not None:
                self._record(key, recording)

        flight = self._flights[key] = Flight(computation, self._max_entry_bytes, ended)
        return flight

    def _record(self, key: bytes, recording: Recording) -> None:
        data = encode(recording)
        if not recording.is_replayable or len(data) > self._max_entry_bytes:
            return
        self._fresh[key] = recording
        writing = asyncio.create_task(self._write(key, data, recording))
        self._writing.add(writing)
        writing.add_done_callback(self._writing.discard)

    async def _write(self, key: bytes, data: bytes, recording: Recording) -> None:
        await self._store.put(key, data)
        if self._fresh.get(key) is recording:
            del self._fresh[key]

    async def settled(self) -> None:
        """Until all that has ended is recorded."""
        await asyncio.gather(*self._writing)

    async def close(self) -> None:
        await self.settled()
        await self._store.close()
