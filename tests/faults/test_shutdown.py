"""The end of a server: asked for, forced, and what a restart remembers."""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import signal
import sqlite3
from collections.abc import Callable
from pathlib import Path

import httpx
import pytest
import websockets

from tests.clients import DOORS, RawClient, Seen, Tenant, chat, crowd, until
from tests.faults.conftest import BOOKS, REQUESTS_A_DAY, TOKENS_A_DAY
from tests.penstock_process import Address, PenstockProcess, is_alive
from tests.quota.chaos_proxy import ChaosProxy
from tests.scale import cut, publish


class Elsewhere(Address):
    def __init__(self, port: int) -> None:
        self.base_url = f"http://127.0.0.1:{port}/v1"


MODEL = '[[models]]\nname = "echo"\nengine = "fake"\noptions = { delay_ms = 20 }\n'
CONFIG = MODEL + BOOKS


def to_the_server(server: PenstockProcess) -> None:
    os.kill(server.pid, signal.SIGTERM)


def to_its_group(server: PenstockProcess) -> None:
    os.killpg(server.pid, signal.SIGTERM)


def interrupt_its_group(server: PenstockProcess) -> None:
    """Ctrl-C in a terminal."""
    os.killpg(server.pid, signal.SIGINT)


def rows(server: PenstockProcess) -> list[tuple[str, int, int]]:
    with sqlite3.connect(server.folder / "data" / "penstock.db") as database:
        return database.execute("SELECT outcome, prompt_tokens, completion_tokens FROM usage").fetchall()


def readiness(server: PenstockProcess) -> tuple[int, str]:
    with server.http(None) as client:
        answer = client.get("/readyz")
    return answer.status_code, answer.json()["status"]


@pytest.mark.parametrize("end", [to_the_server, to_its_group, interrupt_its_group])
async def test_live_answers_are_finished(tmp_path: Path, end: Callable[[PenstockProcess], None]) -> None:
    server = PenstockProcess(tmp_path, CONFIG).start()
    (worker,) = server.worker_pids()
    tenant = Tenant.create(server)
    async with crowd(tenant, "echo", [*DOORS, *DOORS], 100) as everybody, tenant.client() as client:
        await until(lambda: all(seen.started.is_set() for seen in everybody[1:3]), "the answers")
        end(server)
        await until(lambda: readiness(server) == (503, "draining"), "the drain")
        refused = [await tenant.ask(door, client, Seen(chat("echo", "hello", 4))) for door in DOORS]
    for seen in refused:
        assert seen.error is not None
        assert seen.error["code"] == "shutting_down"
    assert [seen.status for seen in refused[:2]] == [503, 503]
    assert all(int(seen.headers["retry-after-ms"]) > 0 for seen in refused[:2])
    assert await asyncio.to_thread(server.stop) == 0
    assert all(seen.is_right and seen.finish_reason == "length" for seen in everybody)
    assert all(seen.done for seen in everybody[1::3])
    assert sorted(rows(server)) == sorted(("length", len(seen.prompt), 100) for seen in everybody)
    assert not is_alive(worker)


@pytest.mark.timeout(1800)
async def test_under_load_no_answer_is_cut(tmp_path: Path) -> None:
    """At any moment of a crowd's answers; one of its clients reads slowly, and has its last bytes after the others."""
    rng, num_answers, num_refused = random.Random(15), 0, 0
    for number in range(cut(2, 50)):
        folder = tmp_path / str(number)
        folder.mkdir()
        server = PenstockProcess(folder, CONFIG.replace("delay_ms = 20", "delay_ms = 5")).start()
        everybody, refused = await ended_under_load(server, rng.random())
        assert all(seen.is_right and seen.finish_reason == "length" for seen in everybody)
        assert sorted(rows(server)) == sorted(("length", len(seen.prompt), len(seen.text)) for seen in everybody)
        num_answers, num_refused = num_answers + len(everybody), num_refused + refused
    publish(15, "SIGTERM under load", times=cut(2, 50), answers=num_answers, cut=0, refused_meanwhile=num_refused)


async def ended_under_load(server: PenstockProcess, moment: float) -> tuple[list[Seen], int]:
    """What was admitted, and how many were told to come again; the server has ended with 0."""
    tenant, proxy = Tenant.create(server), ChaosProxy(server.port)
    await proxy.start()
    proxy.bytes_a_second = 300_000
    slow_tenant = tenant.at(Elsewhere(proxy.port))
    async with crowd(tenant, "echo", [*DOORS] * 6, 150) as everybody, slow_tenant.client() as slow_client:
        slow = Seen(chat("echo", "a slow one", 300, logprobs=True, top_logprobs=20))  # 2 KB a token
        reading = asyncio.create_task(slow_tenant.ask("sse", slow_client, slow))
        await until(lambda: all(seen.started.is_set() for seen in everybody[1:3]) and slow.status == 200, "the answers")
        await asyncio.sleep(moment / 2)
        to_the_server(server)
        late = await late_ones(tenant)
        await reading
    assert await asyncio.to_thread(server.stop) == 0
    await proxy.close()
    refused = [seen for seen in late if seen.error]
    assert all(seen.error and seen.error["code"] == "shutting_down" for seen in refused)
    return [*everybody, slow, *(seen for seen in late if not seen.error)], len(refused)


async def late_ones(tenant: Tenant) -> list[Seen]:
    """Until the server takes no more connections."""
    asked: list[Seen] = []
    async with tenant.client() as client:
        with contextlib.suppress(httpx.TransportError):
            for number in range(20):
                asked.append(await tenant.ask(DOORS[number % 2], client, Seen(chat("echo", f"late {number}", 2))))
                await asyncio.sleep(0.02)
    return asked


async def test_what_is_left_after_the_drain_time_ends_in_an_error(tmp_path: Path) -> None:
    server = PenstockProcess(tmp_path, CONFIG + "[timeouts]\ndrain = 0.5\n").start()
    tenant = Tenant.create(server)
    async with crowd(tenant, "echo", [*DOORS, *DOORS], 100_000) as everybody:
        await until(lambda: all(seen.started.is_set() for seen in everybody[1:3]), "the answers")
        to_the_server(server)
    assert await asyncio.to_thread(server.stop) == 0
    for seen in everybody:
        assert seen.error is not None
        assert seen.error["code"] == "shutting_down"
        assert seen.is_right
        assert not seen.done
    assert [seen.status for seen in everybody[::3]] == [503, 503]
    assert {row[0] for row in rows(server)} == {"shutting_down"}
    assert len(rows(server)) == len(everybody)


async def test_a_reader_that_takes_nothing_does_not_hold_it_up(tmp_path: Path) -> None:
    """Its write may take 60 seconds; the stop may not."""
    fast = CONFIG.replace("delay_ms = 20", "delay_ms = 0")
    server = PenstockProcess(tmp_path, fast + "[timeouts]\ndrain = 0.5\nwrite = 60\n").start()
    tenant = Tenant.create(server)
    client = RawClient(tenant, "sse", chat("echo", "sse hello", 900_000))
    await until(lambda: server.metric("penstock_engine_generated_tokens_total") > 100_000, "tokens nobody reads")
    to_the_server(server)
    assert await asyncio.to_thread(server.stop, 30) == 0
    assert [row[0] for row in rows(server)] == ["abort"]
    client.vanish(reset=False)


async def test_an_idle_websocket_does_not_hold_it_up(tmp_path: Path) -> None:
    server = PenstockProcess(tmp_path, CONFIG).start()
    tenant = Tenant.create(server)
    async with websockets.connect(server.websocket_url, additional_headers=tenant.headers) as connection:
        assert await asyncio.to_thread(server.stop) == 0
        with pytest.raises(websockets.ConnectionClosed) as closed:
            await connection.recv()
        assert closed.value.rcvd is not None
        assert closed.value.rcvd.code == 1012


async def test_a_second_signal_ends_it_at_once(tmp_path: Path) -> None:
    server = PenstockProcess(tmp_path, CONFIG).start()
    (worker,) = server.worker_pids()
    tenant = Tenant.create(server)
    clients = [RawClient(tenant, door, chat("echo", f"{door} hello", 100_000)) for door in DOORS]
    for client in clients[1:]:
        client.read_until(b'"content":"')
    to_the_server(server)
    await until(lambda: readiness(server) == (503, "draining"), "the drain")
    assert await asyncio.to_thread(server.stop) == 0  # it sends the second
    assert not is_alive(worker)
    assert len(rows(server)) == 3
    for client in clients:
        client.vanish(reset=False)


async def test_a_killed_gateway_leaves_no_worker_and_a_restart_remembers(tmp_path: Path) -> None:
    server = PenstockProcess(tmp_path, CONFIG).start()
    (worker,) = server.worker_pids()
    tenant = Tenant.create(server)
    async with crowd(tenant, "echo", DOORS, 10):
        pass
    usage = await tenant.rows(3)
    server.kill()
    await until(lambda: not is_alive(worker), "the worker's end")
    with PenstockProcess(tmp_path, CONFIG) as again:
        tenant.server = again
        tokens = usage["prompt_tokens"] + usage["completion_tokens"]
        assert await tenant.charged("echo", REQUESTS_A_DAY, TOKENS_A_DAY) == (3, tokens)


SPENT = """
[quota.plans.day]
account = { tokens_per_day = 100 }
[quota.plans.month]
models = { echo = { tokens_per_month = 100 } }
[quota.plans.requests]
features = { chat = { requests_per_day = 3 } }
"""


async def test_spent_budgets_stay_spent(tmp_path: Path) -> None:
    with PenstockProcess(tmp_path, CONFIG + SPENT) as server:
        tenants = [Tenant.create(server, plan) for plan in ("day", "month", "requests")]
        for tenant in tenants:
            assert await spend(tenant) == [200, 200, 200, 429]
    with PenstockProcess(tmp_path, CONFIG + SPENT) as again:
        for tenant in tenants:
            tenant.server = again
            assert await spend(tenant) == [429] * 4


async def spend(tenant: Tenant) -> list[int]:
    """33 tokens a time."""
    async with tenant.client() as client:
        asked = [await tenant.ask("json", client, Seen(chat("echo", "a" * 30, 3))) for _ in range(4)]
    return [seen.status for seen in asked]
