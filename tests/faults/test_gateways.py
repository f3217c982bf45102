"""Several gateway processes behind one address: they serve as one, and each may die."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import sqlite3
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from quota.ledger import LEASE_MS
from tests.clients import DOORS, PATIENCE, RawClient, Seen, Tenant, chat, crowd, until
from tests.penstock_process import ADMIN_KEY, PenstockProcess, is_alive
from tests.quota import redis_server
from tests.quota.redis_server import RedisServer

pytestmark = pytest.mark.skipif(not redis_server.is_installed(), reason=redis_server.WHY_NOT)

NUM_GATEWAYS = 3
CONFIG = """
[server]
redis_url = "REDIS"
[[models]]
name = "echo"
engine = "fake"
options = { delay_ms = 20 }
[quota.plans.default]
account = { concurrent = 64 }
[quota.plans.single]
account = { concurrent = 1 }
"""
MANY = [*DOORS] * 8
STREAMED = [*DOORS[1:]]


@pytest.fixture(scope="module")
def redis(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    running = RedisServer(tmp_path_factory.mktemp("redis"))
    running.start()
    yield running
    running.kill()


def make_server(folder: Path, redis: RedisServer) -> PenstockProcess:
    return PenstockProcess(folder, CONFIG.replace("REDIS", redis.url), "--gateways", str(NUM_GATEWAYS))


@pytest.fixture(scope="module")
def server(redis: RedisServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[PenstockProcess]:
    with make_server(tmp_path_factory.mktemp("gateways"), redis) as running:
        yield running


@pytest.fixture
def doomed(redis: RedisServer, tmp_path: Path) -> PenstockProcess:
    """A server that the test ends."""
    return make_server(tmp_path, redis).start()


def readiness(server: PenstockProcess) -> int:
    with server.http(None) as client:
        return client.get("/readyz").status_code


def served_by(server: PenstockProcess, offset: int = 0) -> set[int]:
    """The gateways that have logged an answer, after so many characters of the log."""
    lines = [json.loads(line) for line in server.log.read_text()[offset:].splitlines() if line.startswith("{")]
    return {line["gateway"] for line in lines if line["message"] == "request finished"}


def have_started(everybody: list[Seen]) -> bool:
    """One a door of MANY. Who does not stream sees nothing before the end."""
    return all(seen.started.is_set() for door, seen in zip(MANY, everybody, strict=True) if door != "json")


async def everywhere(server: PenstockProcess, ask: Callable[[], float], expected: float) -> None:
    await until(lambda: server.on_each(ask) == [expected] * NUM_GATEWAYS, f"{expected} on every gateway")


def processes(server: PenstockProcess) -> list[int]:
    return [server.pid, *server.worker_pids(), *server.gateway_pids()]


def rows(server: PenstockProcess) -> list[tuple[str, int]]:
    with sqlite3.connect(server.folder / "data" / "penstock.db") as database:
        return database.execute("SELECT outcome, completion_tokens FROM usage").fetchall()


async def test_every_gateway_serves_at_every_door(server: PenstockProcess) -> None:
    tenant = Tenant.create(server)
    gateways = server.gateway_pids()
    assert len(gateways) == NUM_GATEWAYS
    for gateway in gateways:
        with server.alone(gateway):
            async with crowd(tenant, "echo", DOORS, 5) as everybody:
                pass
        assert all(seen.is_right and seen.finish_reason == "length" for seen in everybody)
    assert served_by(server) == set(range(NUM_GATEWAYS))
    await tenant.rows(NUM_GATEWAYS * len(DOORS))


async def test_connections_are_spread(server: PenstockProcess) -> None:
    tenant, known = Tenant.create(server), len(server.log.read_text())

    async def ask_until_all_have_answered() -> None:
        while served_by(server, known) != set(range(NUM_GATEWAYS)):
            async with crowd(tenant, "echo", MANY, 5) as everybody:
                pass
            assert all(seen.is_right and seen.finish_reason == "length" for seen in everybody)

    await asyncio.wait_for(ask_until_all_have_answered(), PATIENCE)


async def test_a_key_is_known_and_revoked_everywhere(server: PenstockProcess) -> None:
    with server.alone(server.gateway_pids()[0]):
        tenant = await asyncio.to_thread(Tenant.create, server)
    await everywhere(server, lambda: tenant.status(), 200)
    with server.alone(server.gateway_pids()[-1]), server.http(ADMIN_KEY) as admin:
        key_id = tenant.key.removeprefix("sk-pen-")[:8]
        admin.delete(f"/admin/v1/keys/{key_id}").raise_for_status()
    await everywhere(server, lambda: tenant.status(), 401)


async def test_any_gateway_s_metrics_answer_for_all(server: PenstockProcess) -> None:
    tenant = Tenant.create(server)
    before = server.metric("penstock_requests_total"), server.metric("penstock_engine_generated_tokens_total")
    for gateway in server.gateway_pids():
        with server.alone(gateway):
            async with crowd(tenant, "echo", MANY, 5):
                pass
    num_sent = NUM_GATEWAYS * len(MANY)
    for name, value in (
        ("penstock_requests_total", before[0] + num_sent),
        ("penstock_request_seconds_count", before[0] + num_sent),
        ("penstock_engine_generated_tokens_total", before[1] + 5 * num_sent),
        ("penstock_requests_running", 0),
        ("penstock_replicas_ready", 1),
        ("penstock_usage_rows_lost", 0),
    ):
        await everywhere(server, lambda name=name: server.metric(name), value)  # type: ignore[misc]


async def test_a_killed_gateway_takes_only_its_own_answers_along(server: PenstockProcess) -> None:
    tenant = Tenant.create(server)
    victim, other, _ = server.gateway_pids()
    before = server.metric("penstock_requests_total")
    with server.alone(victim):
        doomed = [RawClient(tenant, door, chat("echo", f"{door} hello", 100_000)) for door in STREAMED]
        for client in doomed:
            client.read_until(b'"content":"')
    async with contextlib.AsyncExitStack() as stack:
        with server.alone(other):
            everybody = await stack.enter_async_context(crowd(tenant, "echo", STREAMED * 8, 100))
            await until(lambda: all(seen.started.is_set() for seen in everybody), "the answers")
        os.kill(victim, signal.SIGKILL)
        for client in doomed:
            with pytest.raises((AssertionError, ConnectionError)):
                client.read_until(b"[DONE]")
            client.vanish(reset=False)
    assert all(seen.is_right and seen.finish_reason == "length" for seen in everybody)
    await until(lambda: len(set(server.gateway_pids()) - {victim}) == NUM_GATEWAYS, "the new gateway")
    await everywhere(server, lambda: tenant.status(), 200)
    num_finished = len(everybody) + NUM_GATEWAYS
    await everywhere(server, lambda: server.metric("penstock_requests_total"), before + num_finished)
    await everywhere(server, lambda: server.metric("penstock_requests_running"), 0)


async def test_what_a_killed_gateway_held_expires(server: PenstockProcess) -> None:
    """The limit is one at a time, for all gateways together."""
    tenant = Tenant.create(server, "single")
    victim = server.gateway_pids()[0]
    with server.alone(victim):
        client = RawClient(tenant, "sse", chat("echo", "hello", 100_000))
        client.read_until(b'"content":"')
    await everywhere(server, lambda: tenant.status(), 429)
    os.kill(victim, signal.SIGKILL)
    assert tenant.status() == 429
    await until(lambda: tenant.status() == 200, "the lease's end", LEASE_MS / 1000 + PATIENCE)
    client.vanish(reset=False)


async def test_a_killed_worker_is_back_for_every_gateway(server: PenstockProcess) -> None:
    tenant = Tenant.create(server)
    await until(lambda: len(server.gateway_pids()) == NUM_GATEWAYS, "the gateways")
    async with crowd(tenant, "echo", MANY, 100_000) as everybody:
        await until(lambda: have_started(everybody), "the answers")
        (worker,) = server.worker_pids()
        os.kill(worker, signal.SIGKILL)
    for seen in everybody:
        assert seen.error is not None
        assert seen.error["code"] == "engine_failed"
        assert seen.is_right
        assert not seen.done
    await everywhere(server, lambda: readiness(server), 200)
    await everywhere(server, lambda: tenant.status(), 200)
    await everywhere(server, lambda: server.metric("penstock_worker_restarts_total"), 1)


def terminate(server: PenstockProcess) -> None:
    os.kill(server.pid, signal.SIGTERM)


def interrupt_its_group(server: PenstockProcess) -> None:
    """Ctrl-C in a terminal."""
    os.killpg(server.pid, signal.SIGINT)


@pytest.mark.parametrize("end", [terminate, interrupt_its_group])
async def test_live_answers_are_finished(doomed: PenstockProcess, end: Callable[[PenstockProcess], None]) -> None:
    tenant, started = Tenant.create(doomed), processes(doomed)
    async with crowd(tenant, "echo", MANY, 100) as everybody:
        await until(lambda: have_started(everybody), "the answers")
        end(doomed)
    assert await asyncio.to_thread(doomed.wait) == 0
    assert all(seen.is_right and seen.finish_reason == "length" for seen in everybody)
    assert all(seen.done for seen in everybody[1::3])
    assert rows(doomed) == [("length", 100)] * len(everybody)
    assert not any(map(is_alive, started))


async def test_a_second_signal_ends_it_at_once(doomed: PenstockProcess) -> None:
    tenant, started = Tenant.create(doomed), processes(doomed)
    clients = [RawClient(tenant, door, chat("echo", f"{door} hello", 100_000)) for door in DOORS]
    for client in clients[1:]:
        client.read_until(b'"content":"')
    terminate(doomed)
    await until(lambda: readiness(doomed) == 503, "the drain")
    assert await asyncio.to_thread(doomed.stop) == 0  # it sends the second
    assert not any(map(is_alive, started))
    assert len(rows(doomed)) == len(clients)
    for client in clients:
        client.vanish(reset=False)


async def test_nothing_outlives_the_parent(doomed: PenstockProcess) -> None:
    """Its answers end in errors, and are in the books."""
    tenant, started = Tenant.create(doomed), processes(doomed)
    async with crowd(tenant, "echo", MANY, 100_000) as everybody:
        await until(lambda: have_started(everybody), "the answers")
        doomed.kill()
    await until(lambda: not any(map(is_alive, started)), "the end of all processes")
    assert all(seen.error and seen.is_right and not seen.done for seen in everybody)
    assert len(rows(doomed)) == len(everybody)
