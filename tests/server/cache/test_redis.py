"""The shared store: what one gateway recorded another one replays, and a Redis that is away is a miss."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from quota.breaker import FAILURES
from server.cache.redis import PREFIX, RedisStore
from server.cache.wish import HEADER, Result
from tests.quota.redis_server import WHY_NOT, RedisServer, free_port, is_installed
from tests.server.cache.conftest import house_with_cache
from tests.server.house import ANSWER, House, read

pytestmark = pytest.mark.skipif(not is_installed(), reason=WHY_NOT)

GREEDY = {"temperature": 0.0}


@contextlib.asynccontextmanager
async def opened(url: str, ttl: float = 60) -> AsyncIterator[RedisStore]:
    store = RedisStore(url, ttl)
    try:
        yield store
    finally:
        await store.close()


async def ask(house: House) -> str:
    generation = house.generation(sampling=GREEDY)
    assert await read(generation) == ANSWER
    assert house.cache is not None
    await house.cache.settled()
    return generation.headers[HEADER]


async def test_gateways_share_what_is_recorded(redis_url: str) -> None:
    async with opened(redis_url) as one, opened(redis_url) as other:
        here, there = house_with_cache(one), house_with_cache(other)
        assert [await ask(here), await ask(there)] == [Result.MISS, Result.HIT]
        await here.check_nothing_left()
        await there.check_nothing_left()


async def test_redis_forgets_it_when_its_time_is_over(redis_url: str) -> None:
    async with opened(redis_url, ttl=0.05) as store:
        await store.put(b"key", b"data")
        assert await store.get(b"key") == b"data"
        async with asyncio.timeout(10):
            while await store.get(b"key") is not None:
                await asyncio.sleep(0.02)


async def test_what_somebody_else_wrote_there_is_a_miss(redis_url: str) -> None:
    async with opened(redis_url) as store:
        await store._ask("LPUSH", f"{PREFIX}{b'list'.hex()}", "x")
        assert await store.get(b"list") is None
        house = house_with_cache(store)
        assert house.cache is not None
        key = house.cache.key(house.generation(sampling={"temperature": 0.0, "max_tokens": 6}).job)
        await store.put(key, b"nonsense")
        assert await ask(house) == Result.MISS
        assert await ask(house) == Result.HIT


async def test_a_redis_that_dies_costs_no_answer(tmp_path: Path) -> None:
    server = RedisServer(tmp_path)
    server.start()
    try:
        async with opened(server.url) as store:
            house = house_with_cache(store)
            assert [await ask(house), await ask(house)] == [Result.MISS, Result.HIT]
            server.kill()
            for _ in range(FAILURES + 1):
                assert await ask(house) == Result.MISS
            assert not store._link.is_up, "it is not asked any more"
            server.start()
            async with asyncio.timeout(20):
                while not store._link.is_up:
                    await asyncio.sleep(0.05)
            assert [await ask(house), await ask(house)] == [Result.MISS, Result.HIT]
            await house.check_nothing_left()
    finally:
        server.kill()


async def test_a_redis_that_is_silent_is_not_waited_for() -> None:
    async def silent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read()
        writer.close()

    port = free_port()
    async with await asyncio.start_server(silent, "127.0.0.1", port), opened(f"redis://127.0.0.1:{port}") as store:
        for _ in range(FAILURES):
            assert await store.get(b"key") is None
        assert not store._link.is_up
        await store.put(b"key", b"data")


async def test_a_url_that_is_none_is_refused() -> None:
    with pytest.raises(ValueError, match="Redis URL"):
        RedisStore("http://nowhere", 1)
