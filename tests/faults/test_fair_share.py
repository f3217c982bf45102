"""One account with hundreds of requests in the queue, and another that asks now and then, through the whole house.

In steps, where no clock matters: `tests/batching/test_sharing.py`.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator

import pytest

from tests.clients import Tenant, chat, until
from tests.faults.loads import leave, open_readers, percentile, post
from tests.penstock_process import UNLIMITED, PenstockProcess
from tests.scale import IS_SOAK, cut, publish

QUEUED, ASKED = cut(60, 500), cut(5, 150)
PLACES = 16
MAX_TIMES = 2.0
CONFIG = f"""
[[models]]
name = "echo"
engine = "fake"
max_num_seqs = {PLACES}
options = {{ delay_ms = 20 }}
[timeouts]
queue = 600
first_token = 600
{UNLIMITED}
"""


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[PenstockProcess]:
    with PenstockProcess(tmp_path_factory.mktemp("fair"), CONFIG) as running:
        yield running


async def first_tokens(server: PenstockProcess, tenant: Tenant) -> list[float]:
    """Seconds of each of its requests, one after another."""
    request, seconds = post(chat("echo", "hello", 4, stream=True), tenant.key), []
    for _ in range(ASKED):
        started = time.monotonic()
        (reader,) = await open_readers(server, [request])
        while not reader.has_begun:
            assert not reader.is_closed, reader.head
            await asyncio.sleep(0.001)
        seconds.append(time.monotonic() - started)
        await leave([reader])
        await asyncio.sleep(0.1)
    return seconds


@pytest.mark.timeout(300)
async def test_another_account_hardly_notices(server: PenstockProcess) -> None:
    other, flood = Tenant.create(server), Tenant.create(server)
    alone = percentile(await first_tokens(server, other), 0.99)
    request = post(chat("echo", "hello", 2000, stream=True), flood.key)
    readers = await open_readers(server, [request] * (QUEUED + PLACES))
    await until(lambda: server.metric("penstock_requests_waiting") == QUEUED, "the queue")
    beside = percentile(await first_tokens(server, other), 0.99)
    assert server.metric("penstock_requests_waiting") + server.metric("penstock_requests_running") >= QUEUED
    assert not any(reader.is_closed for reader in readers if not reader.has_begun)
    await leave(readers)
    figures = {"ms_TTFT_p99_alone": 1000 * alone, "ms_TTFT_p99_beside": 1000 * beside}
    publish(21, "one account's queue, another one's first tokens", queued=QUEUED, requests=ASKED, **figures)
    if IS_SOAK:
        assert beside <= MAX_TIMES * alone
