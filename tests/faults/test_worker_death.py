"""A worker is killed while 64 answers are under way."""

from __future__ import annotations

import asyncio
import os
import signal
import sqlite3
from collections import Counter
from collections.abc import Iterator

import pytest

from tests.clients import DOORS, Door, Seen, Tenant, chat, crowd, until
from tests.faults.conftest import BOOKS, REQUESTS_A_DAY, TOKENS_A_DAY
from tests.penstock_process import PenstockProcess, is_alive

MODEL = '[[models]]\nname = "echo"\nengine = "fake"\nmax_num_seqs = 48\noptions = { delay_ms = 25 }\n'
STREAMS: list[Door] = [DOORS[index % 3] for index in range(64)]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[PenstockProcess]:
    with PenstockProcess(tmp_path_factory.mktemp("death"), MODEL + BOOKS) as running:
        yield running


def status(server: PenstockProcess) -> int:
    with server.http(None) as client:
        return client.get("/readyz").status_code


async def kill(server: PenstockProcess) -> None:
    (worker,) = server.worker_pids()
    os.kill(worker, signal.SIGKILL)
    await until(lambda: not is_alive(worker), "the worker's end")


def check_cut_short(door: Door, seen: Seen) -> None:
    """An error and no end: nobody may take this for a whole answer."""
    assert seen.error is not None
    assert (seen.error["type"], seen.error["code"]) == ("server_error", "engine_failed")
    assert not seen.done
    assert seen.finish_reason is None
    assert seen.is_right
    if door == "json" or (door == "sse" and not seen.text):
        assert seen.status == 503
        assert int(seen.headers["retry-after-ms"]) > 0


async def test_everybody_is_told_and_charged_exactly(server: PenstockProcess) -> None:
    tenant = Tenant.create(server)
    async with crowd(tenant, "echo", STREAMS, 100_000) as everybody:
        streams = [seen for door, seen in zip(STREAMS, everybody, strict=True) if door != "json"]
        await until(lambda: sum(seen.started.is_set() for seen in streams) > 25, "the first answers")
        await until(lambda: server.metric("penstock_requests_waiting") == 16, "the queue")
        await kill(server)
    for door, seen in zip(STREAMS, everybody, strict=True):
        check_cut_short(door, seen)
    await until(lambda: status(server) == 200, "the restart")
    assert len(server.worker_pids()) == 1
    async with crowd(tenant, "echo", STREAMS, 5) as again:  # all 64 places are free
        pass
    assert all(seen.error is None and seen.is_right for seen in again)
    await check_books(tenant, everybody, again)


async def check_books(tenant: Tenant, cut: list[Seen], whole: list[Seen]) -> None:
    """The readers of whole answers saw nothing of what they are charged; all others saw every token."""
    usage = await tenant.rows(len(cut) + len(whole))
    outcomes, unseen = read_rows(tenant)
    assert outcomes == {"engine_failed": len(cut), "length": len(whole)}
    assert usage["prompt_tokens"] + usage["completion_tokens"] == unseen + sum(seen.num_tokens for seen in cut + whole)
    requests, tokens = await tenant.charged("echo", REQUESTS_A_DAY, TOKENS_A_DAY)
    assert tokens == usage["prompt_tokens"] + usage["completion_tokens"]
    assert requests == count_charged(tenant)


def read_rows(tenant: Tenant) -> tuple[dict[str, int], int]:
    """Outcomes, and the tokens of whole answers that were cut: features tell which they are."""
    rows = query(tenant, "outcome, features, prompt_tokens + completion_tokens")
    unseen = sum(tokens for outcome, features, tokens in rows if outcome != "length" and features[-7:] == '"chat"]')
    return Counter(row[0] for row in rows), unseen


def count_charged(tenant: Tenant) -> int:
    return len([row for row in query(tenant, "prompt_tokens + completion_tokens") if row[0]])


def query(tenant: Tenant, columns: str) -> list[tuple]:  # type: ignore[type-arg]
    with sqlite3.connect(tenant.server.folder / "data" / "penstock.db") as database:
        return database.execute(f"SELECT {columns} FROM usage WHERE account_id = ?", (tenant.id,)).fetchall()  # noqa: S608


async def test_readiness_tells_and_the_next_request_is_served(server: PenstockProcess) -> None:
    """The restart is held up by stopping the new worker before it has loaded."""
    tenant = Tenant.create(server)
    await kill(server)
    await until(lambda: bool(server.worker_pids()), "the new worker")
    (worker,) = server.worker_pids()
    os.kill(worker, signal.SIGSTOP)
    async with tenant.client() as client:
        try:
            assert status(server) == 503
            refused = [await tenant.ask(door, client, Seen(chat("echo", "hello", 4))) for door in DOORS]
        finally:
            os.kill(worker, signal.SIGCONT)
        for seen in refused:
            assert seen.error is not None
            assert seen.error["code"] == "engine_starting"
        assert [seen.status for seen in refused[:2]] == [503, 503]
        assert all(int(seen.headers["retry-after-ms"]) > 0 for seen in refused[:2])
        await until(lambda: status(server) == 200, "the restart")
        served = await asyncio.gather(*(tenant.ask(d, client, Seen(chat("echo", "hello", 4))) for d in DOORS))
    assert all(seen.is_right and seen.finish_reason for seen in served)
    usage = await tenant.rows(6)
    assert await tenant.charged("echo", REQUESTS_A_DAY, TOKENS_A_DAY) == (3, 3 * 9)
    assert usage["prompt_tokens"] + usage["completion_tokens"] == 3 * 9


async def test_killed_again_and_again(server: PenstockProcess) -> None:
    tenant = Tenant.create(server)
    for _ in range(2):
        async with crowd(tenant, "echo", ["sse", "ws"], 100_000) as everybody:
            await until(lambda: all(seen.started.is_set() for seen in everybody), "the answers")
            await kill(server)
        assert all(seen.error for seen in everybody)
        await until(lambda: status(server) == 200, "the restart")
    assert server.metric("penstock_requests_running") == 0
