"""The shared store: recordings in Redis, which forgets them when their time is over.

A Redis that does not answer costs a request at most `TIMEOUT`, the first few times; then nothing until it is back.
"""

from __future__ import annotations

import logging
from typing import Any

from quota.redis import Link

PREFIX = "penstock:cache:"
TIMEOUT = 0.05  # seconds
MAX_CONNECTIONS = 16

log = logging.getLogger("penstock.cache")


class RedisStore:
    """Recordings for `ttl` seconds. Raises ValueError for a URL that is none."""

    def __init__(self, url: str, ttl: float) -> None:
        self._ttl_ms = max(1, round(ttl * 1000))
        self._link = Link(url, f"{PREFIX}probe", MAX_CONNECTIONS, TIMEOUT, without="answers are computed")

    async def get(self, key: bytes) -> bytes | None:
        data: bytes | None = await self._ask("GET", _name(key))
        return data

    async def put(self, key: bytes, data: bytes) -> None:
        await self._ask("SET", _name(key), data, "PX", self._ttl_ms)

    async def _ask(self, *command: str | bytes | int) -> Any:
        """None where there is no answer: to a cache that is a miss."""
        try:
            return await self._link.ask(*command)
        except Exception as error:  # whatever it is: the engines can answer
            log.debug("the cache's Redis: %s", error)
            return None

    async def close(self) -> None:
        await self._link.close()


def _name(key: bytes) -> str:
    return PREFIX + key.hex()
