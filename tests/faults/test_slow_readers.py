"""Readers that take nothing of their answers: each loses its connection, and whoever reads notices nothing."""

from __future__ import annotations

import asyncio
import os
import socket
import time
from collections.abc import Iterator

import httpx
import pytest

from tests.clients import chat, until
from tests.faults.loads import all_of, leave, open_readers, percentile, post, rss_kib
from tests.penstock_process import UNLIMITED, PenstockProcess
from tests.scale import IS_SOAK, cut, publish

NUM_SLOW = cut(60, 1000)
NUM_GOOD = cut(4, 20)
WRITE = cut(1, 30)  # seconds
CUT_WITHIN = 35.0
MAX_MB_MORE = 64
MAX_TIMES_ITL = 2.0
CONFIG = f"""
[[models]]
name = "good"
engine = "fake"
options = {{ delay_ms = 20 }}
[[models]]
name = "flood"
engine = "fake"
max_num_seqs = {NUM_SLOW}
max_queue = {NUM_SLOW}
options = {{ delay_ms = {cut(20, 500)}, token_budget = 1000000 }}
[timeouts]
write = {WRITE}
{UNLIMITED}
"""
ENDLESS = 900_000


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[PenstockProcess]:
    with PenstockProcess(tmp_path_factory.mktemp("slow"), CONFIG) as running:
        yield running


def deaf(server: PenstockProcess, request: bytes) -> socket.socket:
    """A connection that has asked and will not read: the window that it opens is the smallest."""
    url = httpx.URL(server.root_url)
    connection = socket.socket()
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    connection.connect((url.host, url.port))
    connection.sendall(request)
    return connection


def num_open(server: PenstockProcess) -> int:
    """Files of the gateway: a client that does not read need not notice that its connection is gone."""
    return len(os.listdir(f"/proc/{server.pid}/fd"))


async def gaps(server: PenstockProcess, seconds: float) -> list[float]:
    """Between the tokens of those who read."""
    request = post(chat("good", "hello", ENDLESS, stream=True))
    readers = await open_readers(server, [request] * NUM_GOOD)
    await all_of(readers, "has_begun", 60)
    for reader in readers:
        reader.keeps_times = True
    await asyncio.sleep(seconds)
    assert not any(reader.is_closed for reader in readers)
    await leave(readers)
    return [gap for reader in readers for gap in reader.gaps]


@pytest.mark.timeout(300)
async def test_all_are_cut_and_others_go_on(server: PenstockProcess) -> None:
    # logprobs make tokens long, so that their buffers are full at once
    request = post(chat("flood", "hello", ENDLESS, stream=True, logprobs=True, top_logprobs=20))
    reading = await open_readers(server, [request] * NUM_SLOW)
    await all_of(reading, "has_begun", 120)
    alike = await gaps(server, cut(1, 20))  # the same load, all of it read
    await leave(reading)
    await until(lambda: server.metric("penstock_requests_running") == 0, "the end")
    before, files_before = rss_kib(server.pid), num_open(server)
    connections = [deaf(server, request) for _ in range(NUM_SLOW)]
    await until(lambda: server.metric("penstock_requests_running", model="flood") == NUM_SLOW, "the start", 120)
    started, most = time.monotonic(), before
    beside = asyncio.create_task(gaps(server, cut(1, 30)))
    while num_open(server) > files_before + NUM_GOOD:
        assert time.monotonic() - started < 3 * CUT_WITHIN
        most = max(most, rss_kib(server.pid))
        await asyncio.sleep(0.2)
    seconds, grown = time.monotonic() - started, (most - before) / 1024
    others = await beside
    await until(lambda: server.metric("penstock_requests_running") == 0, "the end of their work")
    for connection in connections:
        connection.close()
    itl = {
        "ms_ITL_p99_beside_as_many_that_read": 1000 * percentile(alike, 0.99),
        "ms_ITL_p99_beside_them": 1000 * percentile(others, 0.99),
    }
    publish(10, "slow readers", readers=NUM_SLOW, MB_more=grown, s_until_cut=seconds, **itl)
    assert grown <= MAX_MB_MORE
    if IS_SOAK:
        assert seconds <= CUT_WITHIN
        assert percentile(others, 0.99) <= MAX_TIMES_ITL * percentile(alike, 0.99)
