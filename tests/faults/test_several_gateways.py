"""Separate servers beside each other: they share a Redis and a database, and serve as one."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import pytest

from tests.clients import Door, Seen, Tenant, chat, crowd, until
from tests.penstock_process import ADMIN_KEY, Address, PenstockProcess, started_together
from tests.postgres_server import PostgresServer
from tests.quota.redis_server import RedisServer

PROMISE = 5.0  # seconds until a change holds everywhere
RPM, CONCURRENT = 10, 4
CONFIG = f"""
[server]
redis_url = "REDIS"
database_url = "DATABASE"
[[models]]
name = "echo"
engine = "fake"
options = {{ delay_ms = 20 }}
[quota.plans.default]
account = {{ concurrent = 64 }}
[quota.plans.rpm]
account = {{ rpm = {RPM} }}
[quota.plans.concurrent]
account = {{ concurrent = {CONCURRENT} }}
"""


@dataclass(frozen=True, slots=True)
class Pair:
    a: PenstockProcess
    b: PenstockProcess

    def __iter__(self) -> Iterator[PenstockProcess]:
        yield from (self.a, self.b)


@pytest.fixture(scope="module", params=["sqlite", "postgresql"])
def database(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> str:
    """An empty one."""
    if request.param == "sqlite":
        return f"sqlite+aiosqlite:///{tmp_path_factory.mktemp('shared') / 'penstock.db'}"
    postgres: PostgresServer = request.getfixturevalue("postgres")
    return postgres.new_database()


@pytest.fixture(scope="module")
def pair(database: str, redis_server: RedisServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pair]:
    config = CONFIG.replace("REDIS", redis_server.url).replace("DATABASE", database)
    pair = Pair(*(PenstockProcess(tmp_path_factory.mktemp(name), config) for name in ("a", "b")))
    with started_together(*pair):
        yield pair


def admin(server: Address, method: str, path: str, **body: object) -> Any:
    with server.http(ADMIN_KEY) as client:
        return client.request(method, f"/admin/v1/{path}", json=body or None).raise_for_status().json()


# -- the start -----------------------------------------------------------------------------------------------


def test_both_came_up_on_one_empty_database(pair: Pair) -> None:
    """One of them migrated it, and made the first account and the preset keys."""
    accounts, keys = ([admin(server, "GET", path)["data"] for server in pair] for path in ("accounts", "keys"))
    assert accounts[0] == accounts[1]
    assert len({account["name"] for account in accounts[0]}) == len(accounts[0])
    assert [key["id"] for key in keys[0]] == [key["id"] for key in keys[1]]
    for server in pair:
        with server.http() as client:
            assert client.get("/v1/models").status_code == 200, "the preset key"


# -- quotas --------------------------------------------------------------------------------------------------


async def test_one_rate_over_both(pair: Pair) -> None:
    tenant = Tenant.create(pair.a, "rpm")
    began = time.monotonic()
    many: list[Door] = ["json"] * 20
    async with crowd(tenant, "echo", many, 1) as here, crowd(tenant.at(pair.b), "echo", many, 1) as there:
        pass
    given_back = (time.monotonic() - began) * RPM / 60
    statuses = [seen.status for seen in (*here, *there)]
    assert RPM <= statuses.count(200) <= RPM + given_back
    assert statuses.count(200) + statuses.count(429) == len(statuses)


async def test_one_concurrency_over_both(pair: Pair) -> None:
    tenants = [Tenant.create(pair.a, "concurrent")]
    tenants.append(tenants[0].at(pair.b))
    async with contextlib.AsyncExitStack() as stack:
        running = [
            seen
            for tenant in tenants
            for seen in await stack.enter_async_context(crowd(tenant, "echo", ["sse"] * (CONCURRENT // 2), 100))
        ]
        await until(lambda: all(seen.started.is_set() for seen in running), "the answers")
        assert [await asyncio.to_thread(tenant.status) for tenant in tenants] == [429, 429]
    assert all(seen.is_right and seen.done for seen in running)
    assert [await asyncio.to_thread(tenant.status) for tenant in tenants] == [200, 200]


# -- what is changed on one holds on the other ---------------------------------------------------------------


def test_a_key_is_known_at_once(pair: Pair) -> None:
    for here, there in ((pair.a, pair.b), (pair.b, pair.a)):
        assert Tenant.create(here).at(there).status() == 200


def limit(tenant: Tenant) -> str | None:
    """Requests a minute, as the headers of an answer say."""
    with tenant.server.http(tenant.key) as client:
        answer = client.post("/v1/chat/completions", json=chat("echo", "x", 1)).raise_for_status()
    return answer.headers.get("x-ratelimit-limit-requests")


async def all_hold_soon(*conditions: Callable[[], bool]) -> None:
    async with asyncio.TaskGroup() as tasks:
        for number, condition in enumerate(conditions):
            tasks.create_task(until(condition, f"condition {number}", PROMISE))


async def test_changes_hold_soon(pair: Pair) -> None:
    """All are made on one server. The other one has known what was before."""
    plan = f"plan-{time.monotonic_ns()}"
    admin(pair.a, "PUT", f"plans/{plan}", account={"rpm": 1000})
    revoked, disabled, limited = (Tenant.create(pair.a).at(pair.b) for _ in range(3))
    planned = Tenant.create(pair.b, plan).at(pair.b)  # which has not read the plan yet, perhaps
    assert [tenant.status() for tenant in (revoked, disabled)] == [200, 200]
    assert [limit(tenant) for tenant in (planned, limited)] == ["1000", None]

    admin(pair.a, "DELETE", f"keys/{revoked.key.removeprefix('sk-pen-')[:8]}")
    admin(pair.a, "PATCH", f"accounts/{disabled.name}", disabled=True)
    admin(pair.a, "PUT", f"plans/{plan}", account={"rpm": 2000})
    admin(pair.a, "PUT", f"accounts/{limited.name}/limits", account={"rpm": 3000})
    await all_hold_soon(
        lambda: revoked.status() == 401,
        lambda: disabled.status() == 401,
        lambda: limit(planned) == "2000",
        lambda: limit(limited) == "3000",
    )

    admin(pair.a, "PATCH", f"accounts/{disabled.name}", disabled=False)
    admin(pair.a, "DELETE", f"accounts/{limited.name}/limits")
    await all_hold_soon(lambda: disabled.status() == 200, lambda: limit(limited) is None)
    assert revoked.status() == 401


# -- usage ---------------------------------------------------------------------------------------------------


def own_usage(tenant: Tenant) -> dict[str, Any]:
    with tenant.server.http(tenant.key) as client:
        (usage,) = client.get("/v1/usage").raise_for_status().json()["data"]
    return {name: usage[name] for name in ("requests", "prompt_tokens", "completion_tokens")}


async def test_usage_is_of_both(pair: Pair) -> None:
    here = Tenant.create(pair.a)
    there = here.at(pair.b)
    everybody: list[Seen] = []
    for tenant, count in ((here, 3), (there, 2)):
        async with crowd(tenant, "echo", ["json"] * count, 4) as some:
            everybody += some
    expected = {
        "requests": 5,
        "prompt_tokens": sum(len(seen.prompt) for seen in everybody),
        "completion_tokens": 5 * 4,
    }
    for tenant in (here, there):
        rows = await tenant.rows(5)
        assert {name: rows[name] for name in expected} == expected
        assert own_usage(tenant) == expected
