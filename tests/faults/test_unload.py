"""Models that an operator unloads and loads again, under running requests."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from tests.clients import DOORS, Seen, Tenant, chat, crowd, until
from tests.faults.conftest import BOOKS, REQUESTS_A_DAY, TOKENS_A_DAY
from tests.penstock_process import ADMIN_KEY, API_KEY, PenstockProcess
from tests.quota import redis_server
from tests.quota.redis_server import RedisServer

MODELS = """
[[models]]
name = "echo"
version = "1"
engine = "fake"
options = { delay_ms = 10 }
[[models]]
name = "echo"
version = "2"
engine = "fake"
[[models]]
name = "org/pair"
version = "1"
engine = "fake"
replicas = 2
options = { delay_ms = 10 }
"""
CONFIG = MODELS + '[routing]\ndefault_versions = { echo = "1" }\n' + BOOKS
MANY = [*DOORS] * 4
ENDLESS = 100_000


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[PenstockProcess]:
    with PenstockProcess(tmp_path_factory.mktemp("unload"), CONFIG) as running:
        yield running


def control(server: PenstockProcess, model: str, action: str, **body: object) -> httpx.Response:
    with server.http(ADMIN_KEY) as admin:
        return admin.post(f"/admin/v1/models/{model}/{action}", json=body)


async def done(server: PenstockProcess, model: str, action: str, **body: object) -> dict[str, Any]:
    """How the model stands when it has been carried out."""
    answer = await asyncio.to_thread(control, server, model, action, **body)
    assert answer.status_code == 200, answer.text
    view: dict[str, Any] = answer.json()
    return view


def standing(server: PenstockProcess, model: str) -> dict[str, Any]:
    with server.http(ADMIN_KEY) as admin:
        view: dict[str, Any] = admin.get(f"/admin/v1/models/{model}").raise_for_status().json()
    return view


def check_refused(server: PenstockProcess, model: str, deployment: str) -> None:
    with server.http() as client:
        answer = client.post("/v1/chat/completions", json=chat(model, "hello", 1))
        error = answer.json()["error"]
    assert (answer.status_code, error["code"]) == (503, "model_unloaded")
    assert deployment in error["message"]
    assert answer.headers["x-should-retry"] == "false"
    assert "retry-after" not in answer.headers


def readiness(server: PenstockProcess) -> int:
    with server.http(None) as client:
        return client.get("/readyz").status_code


async def have_started(everybody: list[Seen], server: PenstockProcess) -> None:
    """All of them run, or have ended. Who does not stream sees nothing before that: the worker knows."""

    def all_have() -> bool:
        num_ended = sum(seen.finish_reason is not None for seen in everybody)
        return int(standing(server, "echo@1")["running"]) + num_ended >= len(everybody)

    await until(all_have, "the answers")


async def test_what_runs_is_finished_and_what_comes_is_refused(server: PenstockProcess) -> None:
    tenant = Tenant.create(server)
    num_workers = len(server.worker_pids())
    async with crowd(tenant, "echo", MANY, 300) as everybody:
        await have_started(everybody, server)
        unloading = asyncio.create_task(done(server, "echo@1", "unload"))
        await until(lambda: standing(server, "echo@1")["state"] == "unloading", "the unload")
        assert standing(server, "echo@1")["running"] > 0
        for name in ("echo", "echo@1"):
            check_refused(server, name, "echo@1")
        assert tenant.status("echo@2") == 200
        assert not unloading.done()
    assert all(seen.is_right and seen.finish_reason == "length" for seen in everybody)
    view = await unloading
    assert view == {
        "object": "deployment",
        "id": "echo@1",
        "name": "echo",
        "version": "1",
        "engine": "fake",
        "state": "unloaded",
        "reason": "",
        "replicas": 1,
        "replicas_ready": 0,
        "running": 0,
        "waiting": 0,
    }
    assert len(server.worker_pids()) == num_workers - 1
    assert readiness(server) == 200, "it is not missed"
    check_refused(server, "echo", "echo@1")
    assert server.metric("penstock_model_state", model="echo", version="1", state="unloaded") == 1
    assert server.metric("penstock_model_state", model="echo", version="1") == 1, "in one state"
    assert server.metric("penstock_kv_blocks", model="echo", version="1") == 0
    view = await done(server, "echo@1", "load")
    assert (view["state"], view["replicas_ready"]) == ("ready", 1)
    async with crowd(tenant, "echo", DOORS, 5) as everybody:
        pass
    assert all(seen.is_right and seen.finish_reason == "length" for seen in everybody)
    assert len(server.worker_pids()) == num_workers
    await tenant.rows(len(MANY) + 1 + len(DOORS))  # of those that were refused there is none


async def test_what_is_left_after_the_drain_ends_in_an_error_and_is_charged(server: PenstockProcess) -> None:
    tenant = Tenant.create(server)
    async with crowd(tenant, "echo", MANY, ENDLESS) as everybody:
        await have_started(everybody, server)
        view = await done(server, "echo@1", "unload", drain_seconds=0.3)
        assert view["state"] == "unloaded"
    for seen in everybody:
        assert seen.error is not None
        assert seen.error["code"] == "model_unloaded"
        assert "echo@1" in seen.error["message"]
        assert seen.is_right
        assert not seen.done
    assert {seen.status for seen in everybody if seen.status} == {200, 503}, "streams, and whole answers"
    usage = await tenant.rows(len(MANY))
    assert usage["completion_tokens"] >= sum(len(seen.text) for seen in everybody) > 0
    await done(server, "echo@1", "load")
    _, tokens = await tenant.charged("echo", REQUESTS_A_DAY, TOKENS_A_DAY)
    assert tokens == usage["prompt_tokens"] + usage["completion_tokens"]


async def test_a_second_unload_shortens_the_first_and_a_load_waits_for_both(server: PenstockProcess) -> None:
    tenant = Tenant.create(server)
    async with crowd(tenant, "echo", DOORS, ENDLESS) as everybody:
        await have_started(everybody, server)
        first = asyncio.create_task(done(server, "echo@1", "unload", drain_seconds=3600))
        await until(lambda: standing(server, "echo@1")["state"] == "unloading", "the unload")
        later = [asyncio.create_task(done(server, "echo@1", action)) for action in ("unload", "load")]
        await asyncio.sleep(0.5)
        assert not any(task.done() for task in (first, *later))
        await done(server, "echo@1", "unload", drain_seconds=0)
    views = await asyncio.wait_for(asyncio.gather(first, *later, return_exceptions=True), 30)
    assert not [view for view in views[:2] if isinstance(view, BaseException)]
    assert all(seen.error and seen.error["code"] == "model_unloaded" for seen in everybody)
    await done(server, "echo@1", "load")
    assert tenant.status("echo") == 200


async def test_what_is_done_already_is_not_done_again(server: PenstockProcess) -> None:
    workers = server.worker_pids()
    assert (await done(server, "org/pair@1", "load"))["state"] == "ready"
    assert server.worker_pids() == workers
    assert (await done(server, "org/pair@1", "unload"))["replicas"] == 2
    assert (await done(server, "org/pair@1", "unload"))["state"] == "unloaded"
    assert len(server.worker_pids()) == len(workers) - 2
    assert (await done(server, "org/pair@1", "load"))["replicas_ready"] == 2
    assert len(server.worker_pids()) == len(workers)


async def test_a_worker_that_was_killed_is_not_started_again(server: PenstockProcess) -> None:
    workers = server.worker_pids()
    await done(server, "echo@2", "unload")
    await done(server, "echo@2", "load")
    (worker,) = set(server.worker_pids()) - set(workers)
    os.kill(worker, signal.SIGKILL)
    assert (await done(server, "echo@2", "unload"))["state"] == "unloaded"
    assert len(server.worker_pids()) == len(workers) - 1
    assert (await done(server, "echo@2", "load"))["state"] == "ready"


async def test_an_engine_that_dies_in_the_drain_leaves_its_answers_to_the_other(server: PenstockProcess) -> None:
    tenant = Tenant.create(server)
    await done(server, "org/pair@1", "unload")
    others = set(server.worker_pids())
    await done(server, "org/pair@1", "load")
    pair = set(server.worker_pids()) - others
    async with crowd(tenant, "org/pair", DOORS, 300, seed=1) as everybody:
        await until(lambda: standing(server, "org/pair@1")["running"] == len(DOORS), "the answers")
        unloading = asyncio.create_task(done(server, "org/pair@1", "unload"))
        await until(lambda: standing(server, "org/pair@1")["state"] == "unloading", "the unload")
        os.kill(min(pair), signal.SIGKILL)
        await until(lambda: min(pair) not in server.worker_pids(), "its death")
        await asyncio.sleep(0.5)  # in which it would be started again
        assert set(server.worker_pids()) == others | {max(pair)}
    assert all(seen.is_right and seen.finish_reason == "length" for seen in everybody)
    assert (await unloading)["state"] == "unloaded"
    assert set(server.worker_pids()) == others
    assert (await done(server, "org/pair@1", "load"))["replicas_ready"] == 2


@pytest.mark.parametrize(
    ("key", "path", "body", "status", "code"),
    [
        (ADMIN_KEY, "nobody@1/unload", b"", 404, "model_not_found"),
        (ADMIN_KEY, "echo/load", b"", 404, "model_not_found"),
        (ADMIN_KEY, "echo@1/unload", b'{"drain_seconds": -1}', 400, "invalid_value"),
        (ADMIN_KEY, "echo@1/unload", b'{"drain": 1}', 400, "unsupported_parameter"),
        (ADMIN_KEY, "echo@1/load", b'{"drain_seconds": 1}', 400, "unsupported_parameter"),
        (ADMIN_KEY, "echo@1/load", b"{", 400, "invalid_json"),
        (API_KEY, "echo@1/unload", b"", 403, "permission_denied"),
        (None, "echo@1/load", b"", 401, "invalid_api_key"),
    ],
)
def test_what_is_refused(
    server: PenstockProcess, key: str | None, path: str, body: bytes, status: int, code: str
) -> None:
    with server.http(key) as client:
        answer = client.post(f"/admin/v1/models/{path}", content=body)
    assert answer.status_code == status
    assert answer.json()["error"]["code"] == code
    assert standing(server, "echo@1")["state"] == "ready"


def test_an_admin_key_of_some_models_sees_and_controls_those(server: PenstockProcess) -> None:
    with server.http(ADMIN_KEY) as admin:
        body = {"kind": "admin", "models": ["echo@2"]}
        key = admin.post("/admin/v1/keys", json=body).raise_for_status().json()["key"]
        assert [m["id"] for m in admin.get("/admin/v1/models").json()["data"]] == ["echo@1", "echo@2", "org/pair@1"]
    with server.http(key) as limited:
        assert [m["id"] for m in limited.get("/admin/v1/models").json()["data"]] == ["echo@2"]
        assert limited.post("/admin/v1/models/echo@1/unload").status_code == 404
        assert limited.post("/admin/v1/models/echo@2/load").json()["state"] == "ready"


# --- several gateways


@pytest.fixture(scope="module")
def redis(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    if not redis_server.is_installed():
        pytest.skip(redis_server.WHY_NOT)
    running = RedisServer(tmp_path_factory.mktemp("redis"))
    running.start()
    yield running
    running.kill()


@pytest.fixture(scope="module")
def cluster(redis: RedisServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[PenstockProcess]:
    config = f'[server]\nredis_url = "{redis.url}"\n' + CONFIG
    with PenstockProcess(tmp_path_factory.mktemp("unload-cluster"), config, "--gateways", "2") as running:
        yield running


async def test_it_holds_on_every_gateway(cluster: PenstockProcess) -> None:
    tenant = Tenant.create(cluster)
    first, second = cluster.gateway_pids()
    async with crowd(tenant, "echo", MANY, 300) as everybody:
        await have_started(everybody, cluster)
        unloading = asyncio.create_task(done(cluster, "echo@1", "unload"))
        await until(lambda: standing(cluster, "echo@1")["state"] == "unloading", "the unload")
        for gateway in (first, second):
            with cluster.alone(gateway):
                await asyncio.to_thread(check_refused, cluster, "echo", "echo@1")
    assert all(seen.is_right and seen.finish_reason == "length" for seen in everybody)
    assert (await unloading)["state"] == "unloaded"
    assert len(cluster.worker_pids()) == 3
    os.kill(first, signal.SIGKILL)
    await until(lambda: len(set(cluster.gateway_pids()) - {first}) == 2, "the new gateway")
    for gateway in cluster.gateway_pids():  # the new one learns it at its start
        with cluster.alone(gateway):
            await asyncio.to_thread(check_refused, cluster, "echo", "echo@1")
            assert readiness(cluster) == 200
            assert cluster.metric("penstock_model_state", model="echo", version="1", state="unloaded") == 1
    with cluster.alone(second):
        assert control(cluster, "nobody@1", "load").status_code == 404
        assert (await done(cluster, "echo@1", "load"))["state"] == "ready"
    for gateway in cluster.gateway_pids():
        with cluster.alone(gateway):
            async with crowd(tenant, "echo", DOORS, 5) as everybody:
                pass
            assert all(seen.is_right and seen.finish_reason == "length" for seen in everybody)
