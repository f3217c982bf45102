"""nginx, configured as in `deploy/`, before three servers: one API over TLS, also while one of them ends."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from dataclasses import dataclass

import httpx
import pytest
import websockets

from tests import certificate
from tests.clients import DOORS, Door, RawClient, Seen, Tenant, chat, crowd, until
from tests.faults import nginx_server
from tests.faults.nginx_server import NginxServer
from tests.penstock_process import PenstockProcess, started_together
from tests.quota.redis_server import RedisServer

pytestmark = [
    pytest.mark.skipif(nginx_server.program() is None, reason=nginx_server.WHY_NOT),
    pytest.mark.skipif(not certificate.can_be_made(), reason=certificate.WHY_NOT),
]

NUM_SERVERS = 3
RPM = 12
CONFIG = f"""
[server]
redis_url = "REDIS"
database_url = "DATABASE"
[[models]]
name = "echo"
engine = "fake"
options = {{ delay_ms = 20 }}
[[models]]
name = "slow"
engine = "fake"
options = {{ delay_ms = 500 }}
[quota.plans.default]
account = {{ rpm = 60_000, tpm = 60_000_000, concurrent = 100 }}
[quota.plans.rpm]
account = {{ rpm = {RPM} }}
"""
STREAMS: list[Door] = ["sse", "ws"] * 15
LONG = 250  # tokens: five seconds


@dataclass(frozen=True, slots=True)
class Cluster:
    servers: tuple[PenstockProcess, ...]
    front: NginxServer

    def running(self) -> list[float]:
        """Requests that each server is working on."""
        return [server.metric("penstock_requests_running") for server in self.servers]

    def finished(self) -> list[float]:
        return [server.metric("penstock_requests_total") for server in self.servers]


@pytest.fixture(scope="module")
def cluster(redis_server: RedisServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    folder = tmp_path_factory.mktemp("cluster")
    database = f"sqlite+aiosqlite:///{folder / 'penstock.db'}"
    config = CONFIG.replace("REDIS", redis_server.url).replace("DATABASE", database)
    servers = tuple(PenstockProcess(tmp_path_factory.mktemp("server"), config) for _ in range(NUM_SERVERS))
    with started_together(*servers):
        front = NginxServer(folder, [server.port for server in servers])
        front.start()
        yield Cluster(servers, front)
        front.stop()


# -- one API -------------------------------------------------------------------------------------------------


async def test_every_door(cluster: Cluster) -> None:
    before = cluster.finished()
    tenant = Tenant.create(cluster.front)
    async with crowd(tenant, "echo", [*DOORS] * 6, 5) as everybody:
        pass
    assert all(seen.is_right and seen.finish_reason == "length" for seen in everybody)
    assert all(seen.done for seen in everybody[1::3])
    for seen in (*everybody[0::3], *everybody[1::3]):
        assert seen.headers["x-request-id"].startswith("req")
        assert seen.headers["x-ratelimit-limit-requests"] == "60000"
        assert int(seen.headers["x-ratelimit-remaining-tokens"]) < 60_000_000
    await until(lambda: sum(cluster.finished()) == sum(before) + len(everybody), "the count")
    assert all(now > then for now, then in zip(cluster.finished(), before, strict=True)), "each has served"


async def test_a_token_leaves_when_it_is_there(cluster: Cluster) -> None:
    """The first of eight, which fit into any buffer, is here while the others are still worked on."""
    tenant, body = Tenant.create(cluster.front), chat("slow", "hello", 8, stream=True)
    async with tenant.client() as client, client.stream("POST", "/v1/chat/completions", json=body) as answer:
        async for line in answer.aiter_lines():
            if '"content":"' in line:
                await until(lambda: sum(cluster.running()) == 1, "the request")
                break
    await until(lambda: sum(cluster.running()) == 0, "its end with its client's")


def test_the_sdk(cluster: Cluster) -> None:
    tenant = Tenant.create(cluster.front)
    with cluster.front.sdk(api_key=tenant.key, http_client=httpx.Client(verify=cluster.front.trust)) as sdk:
        answer = sdk.chat.completions.create(**chat("echo", "hello", 4))
        stream = sdk.chat.completions.create(**chat("echo", "hello", 4), stream=True)
        text = "".join(chunk.choices[0].delta.content or "" for chunk in stream)
    assert answer.choices[0].message.content == text
    assert len(text) == 4


def test_what_is_too_long_is_refused_in_the_apis_own_words(cluster: Cluster) -> None:
    tenant = Tenant.create(cluster.front)
    with cluster.front.http(tenant.key) as client:
        answer = client.post("/v1/chat/completions", json=chat("echo", "a" * (4 * 2**20), 1))
    assert (answer.status_code, answer.json()["error"]["code"]) == (413, "request_too_large")


async def test_one_limit_over_all(cluster: Cluster) -> None:
    tenant, many = Tenant.create(cluster.front, "rpm"), ["json"] * 45
    began = time.monotonic()
    async with crowd(tenant, "echo", many, 1) as everybody:  # type: ignore[arg-type]
        pass
    given_back = (time.monotonic() - began) * RPM / 60
    statuses = [seen.status for seen in everybody]
    assert RPM <= statuses.count(200) <= RPM + given_back
    assert statuses.count(200) + statuses.count(429) == len(statuses)


# -- one of them ends ----------------------------------------------------------------------------------------


async def all_served(tenant: Tenant) -> None:
    async with crowd(tenant, "echo", [*DOORS] * 6, 2) as everybody:
        pass
    assert all(seen.is_right and seen.finish_reason == "length" for seen in everybody)


async def serves_again(cluster: Cluster, server: PenstockProcess, tenant: Tenant) -> None:
    """nginx leaves out for a moment what it could not reach."""
    before = server.metric("penstock_requests_total")
    await until(lambda: tenant.status() == 200 and server.metric("penstock_requests_total") > before, "its share")


async def test_one_is_restarted_unnoticed(cluster: Cluster) -> None:
    tenant, ending = Tenant.create(cluster.front), cluster.servers[0]
    async with crowd(tenant, "echo", STREAMS, LONG) as everybody:
        await until(lambda: all(seen.started.is_set() for seen in everybody), "the answers")
        await until(lambda: sum(cluster.running()) == len(STREAMS), "the requests")
        assert cluster.running()[0] > 0
        await asyncio.to_thread(cluster.front.leave_out, [ending.port])
        stopping = asyncio.create_task(asyncio.to_thread(ending.stop))
        await until(lambda: is_draining(ending), "the drain")
        await all_served(tenant)
        assert not stopping.done(), "all of that while it drained"
    assert await stopping == 0
    assert all(seen.is_right and seen.finish_reason == "length" for seen in everybody)
    assert all(seen.done for seen in everybody[0::2])
    await all_served(tenant)
    await asyncio.to_thread(ending.start)
    await asyncio.to_thread(cluster.front.leave_out, [])
    await serves_again(cluster, ending, tenant)


def is_draining(server: PenstockProcess) -> bool:
    with server.http(None) as client:
        return client.get("/readyz").status_code == 503


async def test_one_is_killed(cluster: Cluster) -> None:
    """Its streams break, and say so; nobody else notices."""
    tenant, victim = Tenant.create(cluster.front), cluster.servers[1]
    everybody = [Seen(chat("echo", f"{tenant.name} asks {index}", LONG)) for index in range(len(STREAMS))]
    async with tenant.client() as client:
        asked = zip(STREAMS, everybody, strict=True)
        asking = asyncio.gather(*(tenant.ask(door, client, seen) for door, seen in asked), return_exceptions=True)
        await until(lambda: all(seen.started.is_set() for seen in everybody), "the answers")
        await until(lambda: sum(cluster.running()) == len(STREAMS), "the requests")
        num_doomed = cluster.running()[1]
        await asyncio.to_thread(victim.kill)
        await all_served(tenant)
        answers = await asking
    assert num_doomed > 0
    for door, seen, answer in zip(STREAMS, everybody, answers, strict=True):
        is_broken = isinstance(answer, httpx.RemoteProtocolError | websockets.ConnectionClosedError)
        assert is_broken or answer is seen
        assert seen.is_right
        assert (seen.finish_reason is None) == is_broken
        assert seen.done == (door == "sse" and not is_broken)
    assert sum(answer is not seen for seen, answer in zip(everybody, answers, strict=True)) == num_doomed
    await asyncio.to_thread(victim.start)
    await serves_again(cluster, victim, tenant)


async def test_what_a_killed_one_was_sent_is_not_sent_again(cluster: Cluster) -> None:
    """It may have been admitted and charged: whether to ask again is for the client to say."""
    tenant, before = Tenant.create(cluster.front), cluster.finished()
    client = RawClient(tenant, "json", chat("echo", "hello", LONG))  # in one piece, which nginx could send again
    await until(lambda: sum(cluster.running()) == 1, "the request")
    number = cluster.running().index(1)
    await asyncio.to_thread(cluster.servers[number].kill)
    client.read_until(b"HTTP/1.1 502")
    client.vanish(reset=False)
    others = [index for index in range(NUM_SERVERS) if index != number]
    await asyncio.to_thread(cluster.servers[number].start)
    assert [cluster.running()[index] for index in others] == [0, 0]
    assert [cluster.finished()[index] for index in others] == [before[index] for index in others]
    await serves_again(cluster, cluster.servers[number], tenant)
