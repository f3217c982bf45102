"""Requests for vectors when something goes wrong: what is computed is charged, and each ends exactly once."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import Any

import httpx
import numpy as np
import pytest

from engines.fake_vectors import fake_vector
from tests.clients import Tenant, until
from tests.penstock_process import UNLIMITED, PenstockProcess
from tests.wire.conftest import check_error

CONFIG = f"""
[[models]]
name = "slow"
engine = "fake"
task = "embed"
max_num_seqs = 1
max_queue = 1
options = {{ delay_ms = 100 }}

[[models]]
name = "fragile"
engine = "fake"
task = "embed"
max_num_seqs = 1
options = {{ delay_ms = 20, fail_at_step = 3 }}

[[models]]
name = "twins"
engine = "fake"
task = "embed"
replicas = 2
max_num_seqs = 1
options = {{ delay_ms = 20, fail_at_step = 5 }}

[[models]]
name = "chatting-twins"
engine = "fake"
replicas = 2
max_num_seqs = 1
options = {{ delay_ms = 20, fail_at_step = 5 }}

{UNLIMITED}
[timeouts]
queue = 1
"""


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[PenstockProcess]:
    with PenstockProcess(tmp_path_factory.mktemp("vectors"), CONFIG) as running:
        yield running


@pytest.fixture
def tenant(server: PenstockProcess) -> Tenant:
    return Tenant.create(server)


def body(model: str, count: int) -> dict[str, Any]:
    """Each text is a token, and a batch of its own."""
    return {"model": model, "input": ["x"] * count}


def running(server: PenstockProcess, model: str) -> float:
    names = ("penstock_requests_running", "penstock_requests_waiting")
    return sum(server.metric(name, model=model) for name in names)


async def until_idle(server: PenstockProcess, model: str = "slow") -> None:
    await until(lambda: running(server, model) == 0, "an idle worker")


async def test_a_client_that_leaves_pays_for_what_was_computed(server: PenstockProcess, tenant: Tenant) -> None:
    async with tenant.client() as client:
        with pytest.raises(httpx.ReadTimeout):
            await client.post("/v1/embeddings", json=body("slow", 200), timeout=1)
        await until_idle(server)
        usage = await tenant.rows(1)
    assert 0 < usage["prompt_tokens"] < 200
    assert server.metric("penstock_requests_total", model="slow", outcome="abort") == 1


async def test_a_client_s_own_deadline(server: PenstockProcess, tenant: Tenant) -> None:
    async with tenant.client() as client:
        headers = {"x-stainless-read-timeout": "0.5"}
        answer = await client.post("/v1/embeddings", json=body("slow", 200), headers=headers)
        check_error(answer, 504, "deadline_exceeded")
        await until_idle(server)
        usage = await tenant.rows(1)
    assert 0 < usage["prompt_tokens"] < 200


async def test_a_full_queue_and_a_wait_in_vain(server: PenstockProcess, tenant: Tenant) -> None:
    """One is worked on, one waits, and there is room for no other."""
    async with tenant.client() as client, asyncio.TaskGroup() as tasks:
        first = tasks.create_task(client.post("/v1/embeddings", json=body("slow", 25)))
        await until(lambda: server.metric("penstock_requests_running", model="slow") == 1, "the first")
        second = tasks.create_task(client.post("/v1/embeddings", json=body("slow", 1)))
        await until(lambda: server.metric("penstock_requests_waiting", model="slow") == 1, "the second")
        third = await client.post("/v1/embeddings", json=body("slow", 1))
        check_error(third, 429, "overloaded")
        assert int(third.headers["retry-after-ms"]) > 0
        check_error(await second, 503, "queue_timeout")
        assert len((await first).json()["data"]) == 25
    assert (await tenant.rows(3))["prompt_tokens"] == 25


async def test_a_worker_that_dies_ends_its_requests_in_an_error(server: PenstockProcess, tenant: Tenant) -> None:
    async with tenant.client() as client:
        check_error(await client.post("/v1/embeddings", json=body("fragile", 10)), 503, "engine_failed")
        await until(lambda: client_status(server) == 200, "its return")
    usage = await tenant.rows(1)
    assert usage["prompt_tokens"] <= 3


@pytest.mark.parametrize("model", ["twins", "chatting-twins"])
async def test_another_replica_begins_again(server: PenstockProcess, tenant: Tenant, model: str) -> None:
    """The first dies at its fifth text, the second of this request's; its client sees nothing of that. The second model
    is one that generates."""
    async with tenant.client() as client:
        assert (await client.post("/v1/embeddings", json=body(model, 3))).status_code == 200
        await until_idle(server, model)
        answer = await client.post("/v1/embeddings", json={"model": model, "input": ["a", "b", "c"]})
    assert answer.status_code == 200, answer.text
    vectors = [np.float32(item["embedding"]) for item in answer.json()["data"]]
    assert np.array_equal(vectors, [fake_vector([ord(letter)]) for letter in "abc"])
    assert answer.json()["usage"]["prompt_tokens"] == 3
    assert server.metric("penstock_failovers_total", model=model, outcome="retried") == 1
    assert (await tenant.rows(2))["prompt_tokens"] == 6


def client_status(server: PenstockProcess) -> int:
    with server.http() as client:
        return client.post("/v1/embeddings", json=body("fragile", 1)).status_code
