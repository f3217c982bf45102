"""Redis dies under load and comes back empty: what goes on, what is refused meanwhile, and what is known afterwards."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.clients import PATIENCE, Door, Seen, Tenant, chat, crowd, until
from tests.penstock_process import PenstockProcess
from tests.quota.redis_server import RedisServer

REQUESTS_A_DAY, TOKENS_A_DAY = 100_000, 100_000_000
CONCURRENT, MAX_GATEWAYS = 8, 4
RECOVERY = 10.0  # seconds; a bound on waiting
CONFIG = f"""
[server]
redis_url = "REDIS"
[quota]
max_gateways = {MAX_GATEWAYS}
when_redis_is_away = "MODE"
[[models]]
name = "echo"
engine = "fake"
options = {{ delay_ms = 20 }}
[quota.plans.default]
account = {{}}
[quota.plans.budget]
account = {{ requests_per_day = {REQUESTS_A_DAY}, tokens_per_day = {TOKENS_A_DAY}, concurrent = 64 }}
[quota.plans.concurrent]
account = {{ concurrent = {CONCURRENT} }}
[quota.plans.once]
account = {{ requests_per_day = 1 }}
"""
UP = "penstock_quota_ledger_up"
STREAMS: list[Door] = ["sse", "ws"] * 4
LONG = 400  # tokens: eight seconds


def make_server(folder: Path, redis: RedisServer, mode: str = "share", num_gateways: int = 1) -> PenstockProcess:
    config = CONFIG.replace("REDIS", redis.url).replace("MODE", mode)
    return PenstockProcess(folder, config, "--gateways", str(num_gateways))


@pytest.fixture
def server(tmp_path: Path, mortal: RedisServer) -> Iterator[PenstockProcess]:
    with make_server(tmp_path, mortal) as running:
        yield running


async def ask(tenant: Tenant, count: int, max_tokens: int = 2) -> list[Seen]:
    """At once; none of them hangs."""
    doors: list[Door] = ["json", "sse"] * (count // 2)
    async with asyncio.timeout(PATIENCE), crowd(tenant, "echo", doors, max_tokens) as everybody:
        pass
    return everybody


def is_unavailable(seen: Seen) -> bool:
    assert seen.error is not None
    is_right = (seen.status, seen.error["code"]) == (503, "quota_unavailable")
    return is_right and int(seen.headers["retry-after-ms"]) > 0


async def test_redis_dies_under_load(server: PenstockProcess, mortal: RedisServer) -> None:
    budget, local = Tenant.create(server, "budget"), Tenant.create(server, "concurrent")
    assert server.metric(UP) == 1
    served = await ask(budget, 10)
    async with crowd(budget, "echo", STREAMS, LONG) as across, crowd(budget, "echo", STREAMS, 50) as ended_meanwhile:
        streams = [*across, *ended_meanwhile]
        await until(lambda: all(seen.started.is_set() for seen in streams), "the answers")
        mortal.kill()
        assert all(map(is_unavailable, await ask(budget, 50)))
        assert await asyncio.to_thread(server.metric, UP) == 0
        await check_share(local)
        await until(lambda: all(seen.finish_reason for seen in ended_meanwhile), "their ends")
        mortal.start()
        served.append(await recovered(budget))
        assert not any(seen.finish_reason for seen in across), "they run on"
    served += [*streams, *await ask(budget, 10)]
    assert all(seen.is_right and seen.finish_reason == "length" for seen in served)
    await until(lambda: server.metric(UP) == 1, "the metric")
    tokens = sum(seen.num_tokens for seen in served)
    assert await budget.charged("echo", REQUESTS_A_DAY, TOKENS_A_DAY) == (len(served), tokens)
    usage = await budget.rows(len(served) + 1)  # the one that asked
    assert usage["prompt_tokens"] + usage["completion_tokens"] == tokens + 2
    assert {seen.status for seen in await ask(local, CONCURRENT)} == {200}, "whole limits again"


async def check_share(tenant: Tenant) -> None:
    statuses = [seen.status for seen in await ask(tenant, CONCURRENT, 20)]
    assert statuses.count(200) == CONCURRENT // MAX_GATEWAYS
    assert statuses.count(429) == len(statuses) - CONCURRENT // MAX_GATEWAYS


async def recovered(tenant: Tenant) -> Seen:
    """The first answer since Redis is back; nothing but refusals before it."""
    began = time.monotonic()
    async with tenant.client() as client:
        while (seen := await tenant.ask("json", client, Seen(chat("echo", "hello", 2)))).status != 200:
            assert is_unavailable(seen)
            assert time.monotonic() - began < RECOVERY
            await asyncio.sleep(0.05)
    print(f"budgets are open again {time.monotonic() - began:.1f} s after Redis is back")
    return seen


# -- the other modes -----------------------------------------------------------------------------------------


async def test_closed(tmp_path: Path, mortal: RedisServer) -> None:
    with make_server(tmp_path, mortal, "closed") as server:
        limited, unlimited = Tenant.create(server, "concurrent"), Tenant.create(server)
        assert {seen.status for seen in await ask(limited, 4)} == {200}
        mortal.kill()
        assert all(map(is_unavailable, await ask(limited, 20)))
        assert {seen.status for seen in await ask(unlimited, 20)} == {200}, "nothing is to be checked"


async def test_open(tmp_path: Path, mortal: RedisServer) -> None:
    with make_server(tmp_path, mortal, "open") as server:
        once = Tenant.create(server, "once")
        assert sorted(seen.status for seen in await ask(once, 2)) == [200, 429]
        mortal.kill()
        assert {seen.status for seen in await ask(once, 20)} == {200}
        assert await asyncio.to_thread(server.metric, UP) == 0


# -- gateways that start meanwhile ---------------------------------------------------------------------------


async def test_a_gateway_is_started_again_meanwhile(tmp_path: Path, mortal: RedisServer) -> None:
    """Their parent has checked Redis: one that starts again goes on without it, as the others do."""
    with make_server(tmp_path, mortal, num_gateways=2) as server:
        budget, local = Tenant.create(server, "budget"), Tenant.create(server, "concurrent")
        assert server.on_each(lambda: server.metric(UP)) == [1, 1]
        mortal.kill()
        victim, _ = server.gateway_pids()
        os.kill(victim, signal.SIGKILL)
        await until(lambda: len(set(server.gateway_pids()) - {victim}) == 2, "the new gateway")
        await everywhere(server, local.status, 200)
        assert server.on_each(budget.status) == [503, 503]
        assert server.on_each(lambda: server.metric(UP)) == [0, 0]
        mortal.start()
        await everywhere(server, budget.status, 200)
        await everywhere(server, lambda: server.metric(UP), 1)


async def everywhere(server: PenstockProcess, ask: Callable[[], float], expected: float) -> None:
    await until(lambda: server.on_each(ask) == [expected] * 2, f"{expected} on every gateway")
