"""A network between client and server that delays, trickles, is cut or goes silent: every request ends, once, and is
settled; what comes through is right."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator

import httpx
import pytest
import websockets

from tests.clients import DOORS, Door, Seen, Tenant, chat, until
from tests.faults.conftest import BOOKS, REQUESTS_A_DAY, TOKENS_A_DAY
from tests.faults.loads import post
from tests.penstock_process import Address, PenstockProcess
from tests.quota.chaos_proxy import ChaosProxy, Fault

CONFIG = f"""
[[models]]
name = "echo"
engine = "fake"
options = {{ delay_ms = 5 }}
{BOOKS}
[timeouts]
body = 1
write = 1
"""
ENDLESS = 900_000


class Behind(Address):
    def __init__(self, proxy: ChaosProxy) -> None:
        self.base_url = f"http://127.0.0.1:{proxy.port}/v1"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[PenstockProcess]:
    with PenstockProcess(tmp_path_factory.mktemp("networks"), CONFIG) as running:
        yield running


@pytest.fixture
async def proxy(server: PenstockProcess) -> AsyncIterator[ChaosProxy]:
    proxy = ChaosProxy(server.port)
    await proxy.start()
    yield proxy
    await proxy.close()


@pytest.fixture
def tenant(server: PenstockProcess, proxy: ChaosProxy) -> Tenant:
    return Tenant.create(server).at(Behind(proxy))


async def check_settled(server: PenstockProcess, tenant: Tenant, count: int) -> int:
    """Rows and charges agree, nothing runs any more; the answer's tokens."""
    await until(lambda: server.metric("penstock_requests_running") == 0, "the end")
    here = tenant.at(server)
    usage = await here.rows(count)
    used = usage["prompt_tokens"] + usage["completion_tokens"]
    assert await here.charged("echo", REQUESTS_A_DAY, TOKENS_A_DAY) == (count, used)
    return int(usage["completion_tokens"])


@pytest.mark.parametrize("door", DOORS)
async def test_delays_and_trickles_change_nothing(
    server: PenstockProcess, proxy: ChaosProxy, tenant: Tenant, door: Door
) -> None:
    proxy.delay, proxy.bytes_a_second = 0.02, 20_000
    async with tenant.client() as client:
        seen = await tenant.ask(door, client, Seen(chat("echo", "hello", 20)))
    assert seen.is_right
    assert seen.finish_reason == "length"
    await check_settled(server, tenant, 1)


@pytest.mark.parametrize("door", DOORS)
async def test_a_cut_ends_the_work(server: PenstockProcess, proxy: ChaosProxy, tenant: Tenant, door: Door) -> None:
    async with tenant.client() as client:
        asking = asyncio.create_task(tenant.ask(door, client, Seen(chat("echo", "hello", ENDLESS))))
        await until(lambda: server.metric("penstock_requests_running") == 1, "the start")
        await proxy.cut()
        with pytest.raises((httpx.TransportError, websockets.ConnectionClosed)):
            await asking
    assert await check_settled(server, tenant, 1) < 5000


@pytest.mark.parametrize("fault", [Fault.BLACKHOLE, Fault.NONE])
async def test_a_stream_that_is_not_taken_ends(
    server: PenstockProcess, proxy: ChaosProxy, tenant: Tenant, fault: Fault
) -> None:
    """Nothing passes, or a trickle that is far less than what there is to read."""
    body = chat("echo", "hello", ENDLESS, stream=True, logprobs=True, top_logprobs=20)
    if fault is Fault.NONE:
        proxy.bytes_a_second = 5000
    _, writer = await asyncio.open_connection("127.0.0.1", proxy.port)
    writer.write(post(body, tenant.key))
    await until(lambda: server.metric("penstock_requests_running") == 1, "the start")
    proxy.fault = fault
    await check_settled(server, tenant, 1)
    writer.close()


async def test_a_body_that_trickles_in_is_a_timeout(server: PenstockProcess, proxy: ChaosProxy, tenant: Tenant) -> None:
    proxy.bytes_a_second = 1000
    async with tenant.client() as client:
        seen = await tenant.ask("json", client, Seen(chat("echo", "x" * 5000, 1)))
    assert (seen.status, seen.error and seen.error["code"]) == (408, "request_timeout")
