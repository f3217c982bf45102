"""Replicas that hang, fall behind, or are killed by what they are asked.

As in `test_failover`, but the workers are kept: one that dies or hangs is started again.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

from tests.clients import DOORS, Seen, expected_text
from tests.faults.test_failover import PATIENCE, House, asking, busy, greedy, house

POISON = chr(1)


@contextlib.asynccontextmanager
async def kept(folder: Path, replicas: int, **options: Any) -> AsyncIterator[House]:
    async with house(folder, replicas, **options) as server:
        keeping = [asyncio.create_task(worker.keep()) for worker in server.workers]
        try:
            yield server
        finally:
            for task in keeping:
                task.cancel()
            await asyncio.gather(*keeping, return_exceptions=True)


async def served(server: House) -> None:
    async with asyncio.timeout(PATIENCE):
        while not all(replica.is_ready for replica in server.replicas):
            await asyncio.sleep(0.01)


def check_whole(seen: Seen) -> None:
    assert (seen.text, seen.error) == (expected_text(seen.prompt, seen.body["max_tokens"]), None)


def check_refused(seen: Seen) -> None:
    assert seen.error is not None
    assert seen.error["code"] == "request_stops_engine"
    assert (seen.done, seen.text) == (False, "")


async def test_a_worker_that_stands_still_is_given_up_and_started_again(tmp_path: Path) -> None:
    """Its socket lives; nothing comes from it. Its clients wait, and see no seam."""
    async with kept(tmp_path, 2, delay_ms=5, silence=3) as server:
        tenant = await server.tenant()
        streams = [greedy(f"hang {index}", 300) for index in range(6)]
        async with asking(tenant, streams, "sse"):
            assert server.services.status == "ready"
            busy_workers = [replica.link for replica in server.replicas if replica.num_open]
            busy_workers[0].hang()  # type: ignore[attr-defined]
        for seen in streams:
            check_whole(seen)
        moved = server.failovers()
        assert moved["continued"] >= 1
        assert moved.keys() == {"continued"}
        await served(server)
        assert sum(worker.num_deaths for worker in server.workers) == 1
        await server.check_books(tenant, len(streams), sum(seen.num_tokens for seen in streams))


async def test_an_engine_that_stands_still_is_given_up(tmp_path: Path) -> None:
    """Its worker lives and says so every second: what counts is that no token comes."""
    async with house(tmp_path, 2, delay_ms=5, silence=60, between_tokens=0.5) as server:
        tenant, seen = await server.tenant(), greedy("still", 200)
        async with asking(tenant, [seen], "sse"):
            busy(server).hang()
        check_whole(seen)
        assert server.failovers() == {"continued": 1}


async def test_status_tells_of_a_replica_that_is_missed(tmp_path: Path) -> None:
    async with house(tmp_path, 2) as server:
        first, second = server.workers
        assert server.services.status == "ready"
        client, first.client = first.client, None
        assert server.services.status == "degraded"
        other, second.client = second.client, None
        assert server.services.status == "starting"
        first.client, second.client = client, other


async def test_what_kills_engines_is_refused_and_nobody_else(tmp_path: Path) -> None:
    """Everybody is beside it when it kills for the first time, and again when it kills for the second."""
    async with kept(tmp_path, 3, delay_ms=5, options=", fatal_token = 1") as server:
        tenant = await server.tenant()
        streams = [greedy(f"innocent {index}", 400) for index in range(8)]
        poison = greedy(f"kill{POISON}", 5)
        async with asking(tenant, streams, "sse"), tenant.client() as client:
            await tenant.ask("sse", client, poison)
        check_refused(poison)
        for seen in streams:
            check_whole(seen)
        num_deaths = sum(worker.num_deaths for worker in server.workers)
        assert 2 <= num_deaths <= 3
        assert server.failovers()["refused"] == 1
        async with tenant.client() as client:
            for door in DOORS:  # it is known now
                check_refused(await tenant.ask(door, client, greedy(f"kill{POISON}", 5)))
        await served(server)
        assert sum(worker.num_deaths for worker in server.workers) == num_deaths


async def test_those_that_have_no_token_yet_are_told_apart_too(tmp_path: Path) -> None:
    """They can't be told from it by what they have done: one after another is run alone."""
    async with kept(tmp_path, 2, delay_ms=100, options=", fatal_token = 1, token_budget = 64") as server:
        tenant = await server.tenant()
        everybody = [greedy(f"new {index}" * 20, 3) for index in range(5)]
        poison = greedy(f"kill{POISON}", 3)
        async with asking(tenant, [*everybody, poison], "sse", have_begun=False):
            pass
        check_refused(poison)
        for seen in everybody:
            check_whole(seen)
        assert sum(worker.num_deaths for worker in server.workers) <= 3


async def test_sent_again_by_its_client_it_runs_alone(tmp_path: Path) -> None:
    """With one replica nothing goes on elsewhere: it fails, and those beside it. Sent again, it kills once more."""
    async with kept(tmp_path, 1, delay_ms=5, options=", fatal_token = 1") as server:
        tenant = await server.tenant()
        everybody = [greedy(f"beside {index}", 100_000) for index in range(3)]
        poison = greedy(f"kill{POISON}", 3)
        async with asking(tenant, everybody, "sse"), tenant.client() as client:
            await tenant.ask("json", client, poison)
        assert {seen.error["code"] for seen in (*everybody, poison) if seen.error} == {"engine_failed"}
        await served(server)
        async with tenant.client() as client:
            again = await tenant.ask("json", client, greedy(f"kill{POISON}", 3))
            check_refused(again)
            assert (again.status, again.headers["x-should-retry"]) == (500, "false")
            await served(server)
            check_refused(await tenant.ask("json", client, greedy(f"kill{POISON}", 3)))
            whole = [greedy(f"beside {index}", 50) for index in range(3)]
            await asyncio.gather(*(tenant.ask("sse", client, seen) for seen in whole))
        for seen in whole:
            check_whole(seen)
        assert server.workers[0].num_deaths == 2
