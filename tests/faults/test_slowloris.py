"""Connections that never come to the point: silent ones, headers and bodies that trickle. Others notice nothing."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator

import pytest

from tests.clients import Tenant, chat
from tests.faults.loads import Reader, all_of, leave, open_readers, post, post_head, rss_kib
from tests.penstock_process import API_KEY, UNLIMITED, PenstockProcess
from tests.scale import IS_SOAK, cut, publish

NUM_SLOW = cut(150, 2000)
HEADER = cut(1, 10)  # seconds
CLOSED_WITHIN = 15.0
CONFIG = f"""
[[models]]
name = "echo"
engine = "fake"
[timeouts]
header = {HEADER}
{UNLIMITED}
"""
SILENT, HEADERS, REST_OF_BODY = b"", b"GET /v1/models HTTP/1.1\r\n", post_head(1000, "nobody's")
TRICKLES = {SILENT: b"", HEADERS: b"X-Header: 1\r\n", REST_OF_BODY: b"x"}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[PenstockProcess]:
    with PenstockProcess(tmp_path_factory.mktemp("slowloris"), CONFIG) as running:
        yield running


async def trickle(slow: list[Reader], beginnings: list[bytes]) -> None:
    """A little of each from time to time, as long as any is open."""
    while not all(reader.is_closed for reader in slow):
        await asyncio.sleep(HEADER / 4)
        for reader, beginning in zip(slow, beginnings, strict=True):
            if not reader.is_closed:
                reader.transport.write(TRICKLES[beginning])


async def good_traffic(server: PenstockProcess, goes_on: Callable[[], bool]) -> list[int]:
    """Statuses of requests on connections of their own, for as long as the others are at it."""
    statuses = []
    while goes_on():
        statuses.append(await ask(server))
        await asyncio.sleep(0.1)
    return statuses


@pytest.mark.timeout(300)
async def test_all_are_closed_and_nobody_notices(server: PenstockProcess) -> None:
    before, started = rss_kib(server.pid), time.monotonic()
    beginnings = [list(TRICKLES)[i % len(TRICKLES)] for i in range(NUM_SLOW)]
    slow = await open_readers(server, beginnings)
    trickling = asyncio.create_task(trickle(slow, beginnings))
    statuses = await good_traffic(server, lambda: not trickling.done() and time.monotonic() - started < 60)
    assert trickling.done(), f"{sum(not reader.is_closed for reader in slow)} are open"
    await trickling
    seconds = time.monotonic() - started
    assert set(statuses) == {200}
    assert all(reader.head.startswith(b"HTTP/1.1 401") for reader in slow[2::3])
    grown = (rss_kib(server.pid) - before) / 1024
    publish(
        11, "slowloris connections", connections=NUM_SLOW, s_until_closed=seconds, good=len(statuses), MB_more=grown
    )
    if IS_SOAK:
        assert seconds <= CLOSED_WITHIN


async def test_those_without_a_request_make_way(tmp_path_factory: pytest.TempPathFactory) -> None:
    """More of them than the server holds connections: who has something to ask is let in, and served."""
    config = CONFIG.replace(f"header = {HEADER}", "header = 60") + "[limits]\nconnections = 50\n"
    with PenstockProcess(tmp_path_factory.mktemp("full"), config) as full:
        slow = await open_readers(full, [HEADERS] * 45)
        statuses = [await ask(full) for _ in range(10)]
        slow += await open_readers(full, [SILENT] * 100)
        statuses += [await ask(full) for _ in range(10)]
        assert statuses == [200] * 20
        assert sum(not reader.is_closed for reader in slow) <= 50
        await leave(slow)


async def ask(server: PenstockProcess) -> int:
    async with Tenant(server, "", "", API_KEY).client() as client:
        return (await client.post("/v1/chat/completions", json=chat("echo", "hello", 4))).status_code


async def test_where_all_have_requests_a_newcomer_is_told_to_come_again(
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    config = CONFIG.replace('engine = "fake"', 'engine = "fake"\noptions = { delay_ms = 20 }')
    with PenstockProcess(tmp_path_factory.mktemp("busy"), config + "[limits]\nconnections = 5\n") as busy:
        busy_ones = await open_readers(busy, [post(chat("echo", "hello", 100_000, stream=True))] * 5)
        await all_of(busy_ones, "has_begun", 30)
        (refused,) = await open_readers(busy, [post(chat("echo", "hello", 1))])
        await all_of([refused], "is_closed", 30)
        assert refused.head.startswith(b"HTTP/1.1 503 ")
        assert b"retry-after-ms: " in refused.head
        assert b'"code":"too_many_connections"' in refused.tail
        assert not any(reader.is_closed for reader in busy_ones)
        await leave(busy_ones)
