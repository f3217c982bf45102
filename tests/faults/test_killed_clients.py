"""Clients that vanish while their request waits, while its prompt is computed, while its answer is."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import pytest
import websockets

from tests.clients import DOORS, Door, RawClient, Seen, Tenant, chat, crowd, steady, until
from tests.faults.conftest import REQUESTS_A_DAY, TOKENS_A_DAY
from tests.penstock_process import ROOT, PenstockProcess
from tests.scale import IS_SOAK, cut, publish

CLIENTS = cut(4, 32)  # at a time; half of them reset their connection
ROUNDS = cut(1, 4)
ABORTED_WITHIN = 1.0  # seconds
SEEN_WITHIN = 0.25  # seconds in which a worker's count is told, and asked for
ENDLESS = 100_000  # tokens


@dataclass
class Engine:
    """What one model's engine has been doing, by its own account."""

    server: PenstockProcess
    model: str

    def metric(self, name: str) -> float:
        return self.server.metric(name, model=self.model)

    @property
    def running(self) -> float:
        return self.metric("penstock_requests_running")

    @property
    def waiting(self) -> float:
        return self.metric("penstock_requests_waiting")

    @property
    def computed(self) -> float:
        names = ("engine_prefill_tokens_total", "engine_cached_tokens_total", "engine_generated_tokens_total")
        return sum(self.metric(f"penstock_{name}") for name in names)


@contextmanager
def vanishing(tenant: Tenant, door: Door, model: str, prompt: str) -> Iterator[list[RawClient]]:
    """Clients that are gone when the body is left."""
    bodies = [chat(model, f"{tenant.name} {index} {prompt}", ENDLESS) for index in range(CLIENTS)]
    clients = [RawClient(tenant, door, body) for body in bodies]
    try:
        yield clients
    finally:
        for index, client in enumerate(clients):
            client.vanish(reset=index % 2 == 0)


async def check_charged(tenant: Tenant, model: str, count: int, computed: float) -> None:
    """Rows, headers and the engine agree."""
    usage = await tenant.rows(count)
    assert usage["prompt_tokens"] + usage["completion_tokens"] == computed
    requests, tokens = await tenant.charged(model, REQUESTS_A_DAY, TOKENS_A_DAY)
    assert (requests, tokens) == (count if computed else 0, computed)


aborted_after: list[float] = []  # seconds, of each crowd of clients


async def until_aborted(is_over: Callable[[], bool]) -> None:
    started = time.monotonic()
    await until(is_over, "the end")
    aborted_after.append(time.monotonic() - started)


@pytest.fixture(params=range(ROUNDS))
def each_round(request: pytest.FixtureRequest) -> int:
    number: int = request.param
    return number


@pytest.mark.parametrize("door", DOORS)
async def test_in_decode(tenant: Tenant, door: Door, each_round: int) -> None:
    engine = Engine(tenant.server, "echo")
    before = await steady(lambda: engine.computed)
    with vanishing(tenant, door, "echo", "decode") as clients:
        await until(lambda: engine.running == CLIENTS, "the start")
        for client in clients:
            if door != "json":
                client.read_until(b'"content":"')
    await until_aborted(lambda: engine.running == 0)
    usage = await tenant.rows(CLIENTS)
    assert usage["completion_tokens"] > 0
    await check_charged(tenant, "echo", CLIENTS, await steady(lambda: engine.computed) - before)


@pytest.mark.parametrize("door", DOORS)
async def test_in_prefill(tenant: Tenant, door: Door, each_round: int) -> None:
    """16 tokens a step: these prompts take more steps than the test has time for."""
    engine = Engine(tenant.server, "chunked")
    before, prompt = await steady(lambda: engine.computed), "a long prompt " * 1000
    with vanishing(tenant, door, "chunked", prompt):
        await until(lambda: engine.running > 0 and engine.computed > before, "the start")
    await until_aborted(lambda: engine.running == engine.waiting == 0)
    usage = await tenant.rows(CLIENTS)
    assert usage["completion_tokens"] == 0
    assert 0 < usage["prompt_tokens"] < len(prompt) * CLIENTS
    requests, tokens = await tenant.charged("chunked", REQUESTS_A_DAY, TOKENS_A_DAY)
    assert tokens == usage["prompt_tokens"]
    assert 1 <= requests <= CLIENTS  # those whose prompt was not begun are no requests


@pytest.mark.parametrize("door", DOORS)
async def test_in_the_queue(tenant: Tenant, door: Door, each_round: int) -> None:
    engine, others = Engine(tenant.server, "narrow"), Tenant.create(tenant.server)
    occupants = [RawClient(others, "sse", chat("narrow", f"{others.name} {i}", ENDLESS)) for i in range(2)]
    for occupant in occupants:
        occupant.read_until(b'"content":"')
    with vanishing(tenant, door, "narrow", "queue"):
        await until(lambda: engine.waiting == CLIENTS, "the queue")
    await until_aborted(lambda: engine.waiting == 0)
    assert engine.running == 2
    for occupant in occupants:
        occupant.vanish(reset=False)
    await until(lambda: engine.running == 0, "the end of the others")
    await check_charged(tenant, "narrow", CLIENTS, 0)


def test_what_they_took() -> None:
    """Behind the tests above: how soon all of a crowd's work had ended, and its places and memory were free."""
    num_clients = CLIENTS * len(aborted_after)
    publish(12, "disconnects", clients=num_clients, s_until_all_are_aborted=max(aborted_after), settled_wrongly=0)
    if IS_SOAK:
        assert num_clients >= 1000
        assert max(aborted_after) <= ABORTED_WITHIN + SEEN_WITHIN


VICTIM = """
import sys
from tests.clients import DOORS, RawClient, Tenant, chat
from tests.penstock_process import PenstockProcess
server = PenstockProcess.__new__(PenstockProcess)
server.base_url, key = sys.argv[1:]
tenant = Tenant(server, "victim", "", key)
clients = [RawClient(tenant, DOORS[i % 3], chat("echo", f"{key} {i}", 100_000)) for i in range(9)]
clients[1].read_until(b'"content":"')
print("started", flush=True)
sys.stdin.read()
"""


async def test_a_client_process_that_is_killed(tenant: Tenant) -> None:
    engine = Engine(tenant.server, "echo")
    before = await steady(lambda: engine.computed)
    command = [sys.executable, "-c", VICTIM, tenant.server.base_url, tenant.key]
    with subprocess.Popen(  # noqa: ASYNC220
        command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as victim:
        await until(lambda: engine.running == 9, "the start")
        victim.kill()
    await until(lambda: engine.running == 0, "the end")
    await tenant.rows(9)
    await check_charged(tenant, "echo", 9, await steady(lambda: engine.computed) - before)


async def test_a_neighbour_notices_nothing(tenant: Tenant) -> None:
    async with crowd(tenant, "echo", DOORS, 60) as neighbours:
        with vanishing(Tenant.create(tenant.server), "sse", "echo", "gone") as clients:
            for client in clients:
                client.read_until(b'"content":"')
    assert all(seen.is_right and seen.finish_reason == "length" for seen in neighbours)


async def test_a_cancelled_request_of_a_websocket_is_settled(tenant: Tenant) -> None:
    async with websockets.connect(tenant.server.websocket_url, additional_headers=tenant.headers) as connection:
        seen = Seen(chat("echo", tenant.name, ENDLESS))
        await connection.send(json.dumps(seen.body | {"request_id": "mine"}))
        while seen.error is None:
            seen.take(json.loads(await connection.recv()))
            if len(seen.text) == 1:
                await connection.send(json.dumps({"type": "cancel", "request_id": "mine"}))
        usage = await tenant.rows(1)
        assert usage["completion_tokens"] >= len(seen.text) > 0
        await check_charged(tenant, "echo", 1, usage["prompt_tokens"] + usage["completion_tokens"])
