"""A gateway on paper with a response cache."""

from __future__ import annotations

from typing import Any

import pytest

from server.cache.cache import ResponseCache
from server.cache.memory import MemoryStore
from server.cache.stores import Store
from tests.server.house import House

SECRET = b"secret"


def house_with_cache(store: Store | None = None, max_entry_bytes: int = 2**16, **options: Any) -> House:
    return House(cache=ResponseCache(store or MemoryStore(2**20, 60), max_entry_bytes, SECRET), **options)


@pytest.fixture
def house() -> House:
    return house_with_cache()
