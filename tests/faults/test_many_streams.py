"""Thousands of streams that are open on one gateway: what each takes of its memory, and what is left afterwards."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

import httpx
import pytest

from tests.clients import chat, until
from tests.faults.loads import all_of, leave, open_readers, post, rss_kib
from tests.penstock_process import UNLIMITED, PenstockProcess
from tests.scale import cut, publish

STREAMS = cut(250, 10_000)
HELD, HELD_AGAIN = cut(2, 120), cut(2, 10)  # seconds
LEASES_KEPT = cut(0, 35)  # seconds: finished ones for 30, so that a settlement that is repeated is known
MAX_KIB_EACH = 64
MAX_KEPT = 0.05
PATIENCE = 240.0
CONFIG = f"""
[[models]]
name = "echo"
engine = "fake"
max_num_seqs = {STREAMS}
max_queue = {STREAMS}
options = {{ delay_ms = {cut(500, 3000)}, token_budget = 1000000 }}
[timeouts]
queue = {PATIENCE}
first_token = {PATIENCE}
between_tokens = {PATIENCE}
{UNLIMITED}
"""
REQUEST = post(chat("echo", "hello there", 100_000, stream=True))


@pytest.fixture
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[PenstockProcess]:
    with PenstockProcess(tmp_path_factory.mktemp("streams"), CONFIG) as running:
        with running.http() as client:  # what the first request loads is no stream's
            for _ in range(3):
                client.post("/v1/chat/completions", json=chat("echo", "x", 1)).raise_for_status()
        yield running


def nothing_runs(server: PenstockProcess) -> bool:
    """Asked of a gateway that has just lost thousands of clients in one moment: it may be too busy to look up a key."""
    try:
        return server.metric("penstock_requests_running") == 0
    except httpx.HTTPStatusError:
        return False


async def wave(server: PenstockProcess, seconds: int) -> tuple[int, int]:
    """KiB of the gateway when all streams run, and so much later; they all end."""
    readers = await open_readers(server, [REQUEST] * STREAMS)
    await all_of(readers, "has_begun", PATIENCE)
    begun = rss_kib(server.pid)
    await asyncio.sleep(seconds)
    held = rss_kib(server.pid)
    assert not any(reader.is_closed for reader in readers)
    await leave(readers)
    await until(lambda: nothing_runs(server), "the end", PATIENCE)
    return begun, held


@pytest.mark.timeout(3600)
async def test_what_a_stream_takes(server: PenstockProcess) -> None:
    """The memory of the first streams is what the next ones are given: a gateway does not grow with those it had."""
    before = rss_kib(server.pid)
    begun, held = await wave(server, HELD)
    await asyncio.sleep(LEASES_KEPT)
    again, held_again = await wave(server, HELD_AGAIN)
    taken = held - before
    publish(
        9,
        "streams on one gateway",
        streams=STREAMS,
        KiB_each=taken / STREAMS,
        KiB_more_each_after_minutes=(held - begun) / STREAMS,
        KiB_each_by_the_next_as_many=(held_again - held) / STREAMS,
    )
    assert taken <= MAX_KIB_EACH * STREAMS
    assert max(held - begun, held_again - again) <= MAX_KEPT * taken + 2048
    assert held_again - held <= MAX_KEPT * taken + 2048
