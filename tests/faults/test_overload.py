"""More than fits: refused before any byte, and truthfully."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator

import pytest

from tests.clients import DOORS, Door, RawClient, Seen, Tenant, chat, until
from tests.faults.conftest import BOOKS, REQUESTS_A_DAY, TOKENS_A_DAY
from tests.penstock_process import PenstockProcess

CONFIG = f"""
[[models]]
name = "full"
engine = "fake"
max_num_seqs = 1
max_queue = 2
options = {{ delay_ms = 20 }}

[[models]]
name = "slow"
engine = "fake"
max_num_seqs = 1
options = {{ delay_ms = 20 }}
{BOOKS}
[timeouts]
queue = 1
"""


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[PenstockProcess]:
    with PenstockProcess(tmp_path_factory.mktemp("overload"), CONFIG) as running:
        yield running


@pytest.fixture(params=["full", "slow"])
async def busy(server: PenstockProcess, request: pytest.FixtureRequest) -> AsyncIterator[str]:
    """A model whose only place is taken."""
    model: str = request.param
    others = Tenant.create(server)
    occupant = RawClient(others, "sse", chat(model, others.name, 100_000))
    occupant.read_until(b'"content":"')
    yield model
    occupant.vanish(reset=False)
    await until(lambda: server.metric("penstock_requests_running") == 0, "the end")


@pytest.mark.parametrize("busy", ["full"], indirect=True)
async def test_a_full_queue(server: PenstockProcess, busy: str) -> None:
    """Two wait; the third, whatever its door, is refused with a time to come again. Those two run out of time."""
    tenant = Tenant.create(server)
    async with tenant.client() as client:
        waiting = [
            asyncio.create_task(tenant.ask("sse", client, Seen(chat(busy, f"{tenant.name} {i}", 4)))) for i in range(2)
        ]
        await until(lambda: server.metric("penstock_requests_waiting", model=busy) == 2, "the queue")
        refused = [await tenant.ask(door, client, Seen(chat(busy, "hello", 4))) for door in DOORS]
        for seen in refused:
            assert seen.error is not None
            assert (seen.error["type"], seen.error["code"]) == ("requests", "overloaded")
            assert not seen.text
        assert [seen.status for seen in refused[:2]] == [429, 429]
        assert all(int(seen.headers["retry-after-ms"]) > 0 for seen in refused[:2])
        assert all("x-ratelimit-limit-requests" in seen.headers for seen in refused[:2])
        assert [(seen.status, seen.error and seen.error["code"]) for seen in await asyncio.gather(*waiting)] == [
            (503, "queue_timeout")
        ] * 2
    await check_costs_nothing(tenant, 5)


@pytest.mark.parametrize("busy", ["slow"], indirect=True)
@pytest.mark.parametrize("door", DOORS)
async def test_a_queue_timeout(server: PenstockProcess, busy: str, door: Door) -> None:
    tenant = Tenant.create(server)
    async with tenant.client() as client:
        seen = await tenant.ask(door, client, Seen(chat(busy, "hello", 4)))
    assert seen.error is not None
    assert (seen.error["type"], seen.error["code"]) == ("server_error", "queue_timeout")
    if door != "ws":
        assert seen.status == 503
        assert int(seen.headers["retry-after-ms"]) > 0
    await check_costs_nothing(tenant, 1)


async def check_costs_nothing(tenant: Tenant, num_rows: int) -> None:
    usage = await tenant.rows(num_rows)
    assert usage["prompt_tokens"] == usage["completion_tokens"] == 0
    async with tenant.client() as client:
        answer = await client.post("/v1/chat/completions", json=chat("full", "x", 1) | {"model": "nothing"})
        assert answer.status_code == 404
    other = "slow" if tenant.server.metric("penstock_requests_running", model="full") else "full"
    assert await tenant.charged(other, REQUESTS_A_DAY, TOKENS_A_DAY) == (0, 0)
