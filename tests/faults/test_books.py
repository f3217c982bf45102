"""After a mixed run: what clients saw, what is written, what is charged and what was computed are one number."""

from __future__ import annotations

import asyncio
import json
import random
import sqlite3
from collections import Counter

import httpx
import websockets

from tests.clients import DOORS, Door, Seen, Tenant, chat, until
from tests.faults.conftest import REQUESTS_A_DAY, TOKENS_A_DAY

NUM_REQUESTS = 200
MODEL = "echo"


async def leave_early(tenant: Tenant, client: httpx.AsyncClient, door: Door, seen: Seen, after: int) -> Seen:
    """Read so many tokens, and be gone."""
    if door == "ws":
        async with websockets.connect(tenant.server.websocket_url, additional_headers=tenant.headers) as connection:
            await connection.send(json.dumps(seen.body))
            while len(seen.text) < after:
                seen.take(json.loads(await connection.recv()))
        return seen
    async with client.stream("POST", "/v1/chat/completions", json=seen.body | {"stream": True}) as answer:
        async for line in answer.aiter_lines():
            if line.startswith("data: {"):
                seen.take(json.loads(line[6:]))
            if len(seen.text) >= after:
                break
    return seen


async def test_two_hundred_requests(tenant: Tenant) -> None:
    source = random.Random(5)
    stayed: list[Seen] = []
    left: list[Seen] = []
    places = asyncio.Semaphore(40)

    async def one(index: int, client: httpx.AsyncClient) -> None:
        prompt = f"{tenant.name} {index} " + "word " * source.randrange(40)
        async with places:
            if index % 4 == 3:
                seen = Seen(chat(MODEL, prompt, 100_000))
                left.append(await leave_early(tenant, client, DOORS[1 + index % 2], seen, source.randrange(1, 9)))
            else:
                seen = Seen(chat(MODEL, prompt, source.randrange(1, 30)))
                stayed.append(await tenant.ask(DOORS[index % 3], client, seen))

    async with tenant.client() as client, asyncio.TaskGroup() as tasks:
        for index in range(NUM_REQUESTS):
            tasks.create_task(one(index, client))
    assert all(seen.is_right and seen.finish_reason == "length" for seen in stayed)
    assert all(seen.is_right for seen in left)
    await check_books(tenant, stayed, left)


async def check_books(tenant: Tenant, stayed: list[Seen], left: list[Seen]) -> None:
    await until(lambda: tenant.server.metric("penstock_requests_running") == 0, "the end")
    usage = await tenant.rows(NUM_REQUESTS)
    whole, cut = totals(tenant, "length"), totals(tenant, "abort")
    assert (whole[0], cut[0]) == (len(stayed), len(left))
    assert whole[1:] == (sum(len(s.prompt) for s in stayed), sum(len(s.text) for s in stayed))
    assert cut[1] == sum(len(s.prompt) for s in left)
    assert cut[2] >= sum(len(s.text) for s in left)  # on their way when it left
    total = usage["prompt_tokens"] + usage["completion_tokens"]
    assert total == sum(whole[1:] + cut[1:])
    assert await tenant.charged(MODEL, REQUESTS_A_DAY, TOKENS_A_DAY) == (NUM_REQUESTS, total)
    reported = Counter(s.usage["total_tokens"] - s.num_tokens for s in stayed if s.usage)
    assert set(reported) == {0}


def totals(tenant: Tenant, outcome: str) -> tuple[int, int, int]:
    with sqlite3.connect(tenant.server.folder / "data" / "penstock.db") as database:
        row: tuple[int, int, int] = database.execute(
            "SELECT count(*), sum(prompt_tokens), sum(completion_tokens) FROM usage"
            " WHERE account_id = ? AND outcome = ?",
            (tenant.id, outcome),
        ).fetchone()
    return row
