"""The embedded store: recordings in this process's memory, those used least recently dropped first."""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass

OVERHEAD = 200
"""Bytes that an entry takes besides its data, about: its key, its objects, its place in the table."""


@dataclass(slots=True, frozen=True)
class _Entry:
    data: bytes
    expires_at: float

    @property
    def size(self) -> int:
        return len(self.data) + OVERHEAD


class MemoryStore:
    """Holds at most `max_bytes`. Times are in seconds of `clock`. `changed` is told how many bytes there are now, and
    how many entries were just dropped for want of room."""

    def __init__(
        self,
        max_bytes: int,
        ttl: float,
        changed: Callable[[int, int], None] = lambda num_bytes, num_evicted: None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.num_bytes = 0
        self._changed = changed
        self._max_bytes = max_bytes
        self._ttl = ttl
        self._clock = clock
        self._entries: OrderedDict[bytes, _Entry] = OrderedDict()  # the one used least recently first

    async def get(self, key: bytes) -> bytes | None:
        if (entry := self._entries.get(key)) is None:
            return None
        if self._clock() >= entry.expires_at:
            self._drop(key)
            return None
        self._entries.move_to_end(key)
        return entry.data

    async def put(self, key: bytes, data: bytes) -> None:
        """What is larger than all that the store may hold is not taken, and what was there goes all the same."""
        self._drop(key)
        entry = _Entry(data, self._clock() + self._ttl)
        if entry.size <= self._max_bytes:
            self._entries[key] = entry
            self.num_bytes += entry.size
        num_evicted = self._make_room()
        self._changed(self.num_bytes, num_evicted)

    def _make_room(self) -> int:
        num_evicted = 0
        while self.num_bytes > self._max_bytes:
            self._drop(next(iter(self._entries)))
            num_evicted += 1
        return num_evicted

    def _drop(self, key: bytes) -> None:
        if (entry := self._entries.pop(key, None)) is not None:
            self.num_bytes -= entry.size

    async def close(self) -> None:
        self._entries.clear()
        self.num_bytes = 0

    def check_integrity(self) -> None:
        assert self.num_bytes == sum(entry.size for entry in self._entries.values())
        assert self.num_bytes <= self._max_bytes
