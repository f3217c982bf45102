"""A worker that stops without dying, and clients that wait for it no longer than they said."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
from collections.abc import Iterator

import pytest

from tests.clients import DOORS, Seen, Tenant, chat, crowd, steady, until
from tests.faults.conftest import BOOKS, REQUESTS_A_DAY, TOKENS_A_DAY
from tests.penstock_process import PenstockProcess, is_alive

GENERATED = "penstock_engine_generated_tokens_total"
PLACES = 7  # with one more, an account that has all of them would give one up
CONFIG = f"""
[[models]]
name = "echo"
engine = "fake"
max_num_seqs = {PLACES}
options = {{ delay_ms = 10 }}
{BOOKS}
[timeouts]
first_token = 1
between_tokens = 1
"""


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[PenstockProcess]:
    with PenstockProcess(tmp_path_factory.mktemp("hangs"), CONFIG) as running:
        yield running


@contextlib.contextmanager
def stopped(server: PenstockProcess) -> Iterator[None]:
    (worker,) = server.worker_pids()
    os.kill(worker, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(worker, signal.SIGCONT)


async def check_recovered(tenant: Tenant, num_rows: int) -> None:
    """It serves again, and what it did in its sleep for nobody is over."""
    server = tenant.server
    async with crowd(tenant, "echo", DOORS, 4) as everybody:
        pass
    assert all(seen.is_right and seen.finish_reason for seen in everybody)
    await until(lambda: server.metric("penstock_requests_running") == 0, "the end of what nobody waits for")
    usage = await tenant.rows(num_rows + len(DOORS))
    _, tokens = await tenant.charged("echo", REQUESTS_A_DAY, TOKENS_A_DAY)
    assert tokens == usage["prompt_tokens"] + usage["completion_tokens"]
    await until(lambda: server.metric("penstock_kv_blocks_used") == 0, "the end of what they held")


async def test_between_tokens(server: PenstockProcess) -> None:
    tenant = Tenant.create(server)
    async with crowd(tenant, "echo", DOORS, 100_000) as everybody:
        await until(lambda: all(seen.started.is_set() for seen in everybody[1:]), "the answers")
        with stopped(server):
            await until(lambda: all(seen.error for seen in everybody), "the errors")
    for seen in everybody:
        assert seen.error is not None
        assert seen.error["code"] == "engine_timeout"
        assert not seen.done
        assert seen.is_right
    assert everybody[0].status == 503
    await check_recovered(tenant, len(DOORS))


async def test_first_token(server: PenstockProcess) -> None:
    tenant = Tenant.create(server)
    with stopped(server):
        async with crowd(tenant, "echo", DOORS, 10) as everybody:
            pass
    assert [seen.error["code"] for seen in everybody if seen.error] == ["engine_timeout"] * 3
    assert [seen.status for seen in everybody[:2]] == [503, 503]  # before the first byte
    assert all(int(seen.headers["retry-after-ms"]) > 0 for seen in everybody[:2])
    await check_recovered(tenant, len(DOORS))


async def test_a_client_that_gives_up_sooner(server: PenstockProcess) -> None:
    """Its read timeout is the deadline of a whole answer, whether it waits or runs."""
    tenant = Tenant.create(server)
    async with tenant.client() as client:
        client.headers["x-stainless-read-timeout"] = "0.3"
        before = await steady(lambda: server.metric(GENERATED))
        seen = await tenant.ask("json", client, Seen(chat("echo", "hello", 100_000)))
        assert (seen.status, seen.error and seen.error["code"]) == (504, "deadline_exceeded")
        usage = await tenant.rows(1)
        assert await steady(lambda: server.metric(GENERATED)) - before == usage["completion_tokens"]
        assert usage["completion_tokens"] <= 30  # what fits in its time, at 10 ms a token
    await check_recovered(tenant, 1)


async def test_what_a_client_no_longer_waits_for_is_not_computed(server: PenstockProcess) -> None:
    tenant, others = Tenant.create(server), Tenant.create(server)
    async with crowd(others, "echo", ["sse"] * PLACES, 400) as occupants:  # every place, for longer than its patience
        await until(lambda: all(seen.started.is_set() for seen in occupants), "the answers")
        async with tenant.client() as client:
            client.headers["x-stainless-read-timeout"] = "0.5"
            whole = [tenant.ask("json", client, Seen(chat("echo", f"{tenant.name} {i}", 50))) for i in range(3)]
            for seen in await asyncio.gather(*whole):
                assert (seen.status, seen.error and seen.error["code"]) == (504, "deadline_exceeded")
        await until(lambda: server.metric("penstock_requests_waiting") == 0, "the end of their wait")
        assert not any(seen.finish_reason for seen in occupants)
    assert all(seen.is_right and seen.finish_reason for seen in occupants)
    usage = await tenant.rows(3)
    assert usage["prompt_tokens"] == usage["completion_tokens"] == 0
    assert await tenant.charged("echo", REQUESTS_A_DAY, TOKENS_A_DAY) == (0, 0)


async def test_it_stops_in_order_while_its_worker_hangs(tmp_path_factory: pytest.TempPathFactory) -> None:
    with PenstockProcess(tmp_path_factory.mktemp("stuck"), CONFIG) as stuck:
        (worker,) = stuck.worker_pids()
        os.kill(worker, signal.SIGSTOP)
        assert await asyncio.to_thread(stuck.stop) == 0
        assert not is_alive(worker)
