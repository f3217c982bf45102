"""Where recordings are kept."""

from __future__ import annotations

from typing import Protocol

from server.cache.memory import MemoryStore
from server.metrics import Metrics
from server.settings import Settings
from server.settings_layers import SettingsError


class Store(Protocol):
    """Where recordings are kept. Neither call fails: what is not there, or can't be reached, is None."""

    async def get(self, key: bytes) -> bytes | None: ...

    async def put(self, key: bytes, data: bytes) -> None: ...

    async def close(self) -> None: ...


def open_store(settings: Settings, metrics: Metrics) -> Store:
    """Raises SettingsError."""
    if settings.cache.store == "redis":
        return _open_redis(settings.cache.redis_url or settings.server.redis_url, settings.cache.ttl)

    def changed(num_bytes: int, num_evicted: int) -> None:
        metrics.cache.bytes.set(num_bytes)
        metrics.cache.evictions.inc(num_evicted)

    return MemoryStore(settings.cache.max_bytes, settings.cache.ttl, changed)


def _open_redis(url: str, ttl: float) -> Store:
    try:
        from server.cache.redis import RedisStore  # an optional dependency
    except ModuleNotFoundError:
        raise SettingsError("cache.store: no Redis client is installed: pip install 'penstock[redis]'") from None
    try:
        return RedisStore(url, ttl)
    except ValueError:  # its text may show a part of a password
        raise SettingsError("cache.redis_url: expected redis://USER:PASSWORD@HOST:PORT/NUMBER") from None
