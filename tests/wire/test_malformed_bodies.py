"""Malformed requests to every route, by schema and by mutation: none is answered with a status of 500 or more."""

from __future__ import annotations

import asyncio
import json
import time
from collections import Counter
from pathlib import Path

import pytest

from engines.fake_tokens import fake_answer
from tests.penstock_process import API_KEY
from tests.scale import cut, publish
from tests.wire.inside import MODELS, PATIENCE, Answer, Inside, bearer, inside
from tests.wire.mutations import OPERATIONS, Mutator, Request
from tests.wire.requests import GOOD

BODIES = cut(2000, 100_000)
AT_ONCE = 8
SPARE = '\n[[models]]\nname = "spare"\nengine = "fake"\n'


def complaint(answer: Answer) -> str | None:
    if answer.error is not None:
        return f"raised {answer.error!r}"
    if not 200 <= answer.status < 500:
        return f"answered {answer.status}: {answer.body[:300]!r}"
    if answer.status < 400 or not answer.body:
        return None
    error = json.loads(answer.body).get("error")
    return None if isinstance(error, dict) and error.get("message") else f"no envelope: {answer.body[:300]!r}"


async def still_serves(house: Inside) -> None:
    body = json.dumps(GOOD["POST /v1/chat/completions"]).encode()
    answer = await house.call("POST", "/v1/chat/completions", headers=bearer(API_KEY), body=body)
    assert answer.status == 200, answer.body
    assert answer.json()["choices"][0]["message"]["content"] == bytes(fake_answer(list(b"hello"), 4)).decode()


@pytest.mark.timeout(7200)
async def test_no_body_is_a_fault_of_the_server(tmp_path: Path) -> None:
    seeds, statuses, wrong = iter(range(BODIES)), Counter[int](), list[str]()
    slowest = 0.0

    async def some(house: Inside) -> None:
        nonlocal slowest
        for seed in seeds:
            request: Request = Mutator(seed).request()
            started = time.monotonic()
            answer = await house.call(request.method, request.target, headers=request.headers, body=request.body)
            slowest = max(slowest, time.monotonic() - started)
            statuses[answer.status] += 1
            if (what := complaint(answer)) is not None:
                wrong.append(f"seed {seed}: {request.method} {request.target[:80]} {request.body[:200]!r} {what}")
            if seed % 1000 == 0:
                await still_serves(house)

    async with inside(tmp_path, MODELS + SPARE) as house:
        await house.services.store.accounts.ensure("victim")
        await asyncio.gather(*[some(house) for _ in range(AT_ONCE)])
        await still_serves(house)
        async with asyncio.timeout(PATIENCE):
            await house.services.leases.wait_until_idle()
        assert house.services.leases.num_held == 0
    assert not wrong, "\n".join(wrong[:20])
    accepted = sum(count for status, count in statuses.items() if status < 300)
    assert accepted > BODIES / 50, "they get further than to the parser"
    figures = {"bodies": BODIES, "accepted": accepted, "answers_of_500_or_more": len(wrong)}
    publish(16, "malformed bodies", routes=len(OPERATIONS), ms_slowest=1000 * slowest, **figures)
