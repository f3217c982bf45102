"""Quotas as clients meet them: exact under bursts, at every level, and nothing is charged for a refusal."""

from __future__ import annotations

import asyncio
import math
import time
from collections import Counter
from collections.abc import Iterator

import httpx
import openai
import pytest

from tests.clients import DOORS, RawClient, Seen, Tenant, chat, steady, until
from tests.penstock_process import ADMIN_KEY, PenstockProcess

PROMPT, MAX_TOKENS = "p" * 20, 10
COST = len(PROMPT) + MAX_TOKENS
BURST, FILL = 200, 50
RPM = 50
PER_SECOND = RPM / 60
CONCURRENT = 8

CONFIG = f"""
[[models]]
name = "echo"
engine = "fake"

[[models]]
name = "echo"
version = "2"
engine = "fake"

[[models]]
name = "held"
engine = "fake"
options = {{ delay_ms = 10 }}

[quota.plans.default]
account = {{ }}
[quota.plans.day-tokens]
account = {{ tokens_per_day = {FILL * COST} }}
[quota.plans.month-tokens]
account = {{ tokens_per_month = {FILL * COST} }}
[quota.plans.day-requests]
account = {{ requests_per_day = {FILL} }}
[quota.plans.rpm]
account = {{ rpm = {RPM} }}
[quota.plans.tpm]
account = {{ tpm = {FILL * COST} }}
[quota.plans.concurrent]
account = {{ concurrent = {CONCURRENT}, requests_per_day = 100000 }}
[quota.plans.levels]
account = {{ requests_per_day = 100000, tokens_per_day = 1000000 }}
models = {{ "echo" = {{ requests_per_day = 5 }}, "echo@2" = {{ requests_per_day = 3 }} }}
features = {{ websocket = {{ requests_per_day = 2 }}, completions = {{ rpm = 1 }} }}
"""


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[PenstockProcess]:
    with PenstockProcess(tmp_path_factory.mktemp("quota"), CONFIG) as running:
        yield running


async def burst(tenant: Tenant, count: int = BURST, model: str = "echo") -> list[Seen]:
    """So many requests at once, through both doors of HTTP."""
    async with tenant.client() as client:
        asked = (tenant.ask(DOORS[i % 2], client, Seen(chat(model, PROMPT, MAX_TOKENS))) for i in range(count))
        return list(await asyncio.gather(*asked))


def count_admitted(everybody: list[Seen]) -> int:
    statuses = Counter(seen.status for seen in everybody)
    assert set(statuses) <= {200, 429}
    assert all(seen.is_right and seen.finish_reason == "length" for seen in everybody if seen.status == 200)
    return statuses[200]


@pytest.mark.parametrize("plan", ["day-tokens", "month-tokens", "day-requests"])
async def test_a_budget_admits_exactly_what_fills_it(server: PenstockProcess, plan: str) -> None:
    tenant = Tenant.create(server, plan)
    everybody = await burst(tenant)
    assert count_admitted(everybody) == FILL
    for seen in everybody:
        if seen.status == 429:
            assert seen.error is not None
            assert seen.error["type"] == seen.error["code"] == "insufficient_quota"
            assert seen.headers["x-should-retry"] == "false"
            unit = "requests" if plan == "day-requests" else "tokens"
            assert 0 <= int(seen.headers[f"x-ratelimit-remaining-{unit}"]) <= FILL * COST
    assert count_admitted(await burst(tenant, 3)) == 0
    usage = await tenant.rows(FILL)
    assert usage["prompt_tokens"] + usage["completion_tokens"] == FILL * COST


async def test_rpm_admits_the_limit_and_what_time_refilled(server: PenstockProcess) -> None:
    tenant = Tenant.create(server, "rpm")
    start = time.monotonic()
    admitted = count_admitted(await burst(tenant))
    assert RPM <= admitted <= RPM + math.floor((time.monotonic() - start) * PER_SECOND)
    quiet = time.monotonic()
    await asyncio.sleep(2.5)
    least = math.floor((time.monotonic() - quiet) * PER_SECOND)
    again = count_admitted(await burst(tenant, 20))
    most = math.floor((time.monotonic() - start) * PER_SECOND)
    assert least <= again
    assert admitted + again <= RPM + most


async def test_tpm_admits_the_limit_and_what_time_refilled(server: PenstockProcess) -> None:
    tenant = Tenant.create(server, "tpm")
    start = time.monotonic()
    everybody = await burst(tenant)
    refilled = math.floor((time.monotonic() - start) * FILL / 60)
    assert FILL <= count_admitted(everybody) <= FILL + refilled
    assert {seen.error["type"] for seen in everybody if seen.error} == {"tokens"}


async def test_the_wait_that_a_refusal_names_is_enough(server: PenstockProcess) -> None:
    tenant = Tenant.create(server, "rpm")
    await burst(tenant)
    (refused,) = await burst(tenant, 1)
    while refused.status == 200:
        (refused,) = await burst(tenant, 1)
    wait_ms = int(refused.headers["retry-after-ms"])
    assert 0 < wait_ms <= 60_000 / RPM
    assert int(refused.headers["retry-after"]) == math.ceil(wait_ms / 1000)
    await asyncio.sleep(wait_ms / 1000)
    (admitted,) = await burst(tenant, 1)
    assert admitted.status == 200


async def test_concurrency(server: PenstockProcess) -> None:
    """The engine's own count of sequences a step says how many ran at once."""
    tenant = Tenant.create(server, "concurrent")
    bodies = [chat("held", f"{tenant.name} {i}", 100_000) for i in range(CONCURRENT)]
    held = [RawClient(tenant, DOORS[1 + i % 2], body) for i, body in enumerate(bodies)]
    for client in held:
        client.read_until(b'"content":"')
    refused = await burst(tenant, 20, "held")
    assert count_admitted(refused) == 0
    assert {(seen.error["type"], seen.error["code"]) for seen in refused if seen.error} == {
        ("requests", "rate_limit_exceeded")
    }
    assert all(int(seen.headers["retry-after-ms"]) > 0 for seen in refused)
    held[0].vanish(reset=True)
    await until(lambda: server.metric("penstock_requests_running", model="held") == CONCURRENT - 1, "a free place")
    await until_admitted(tenant)
    for client in held[1:]:
        client.vanish(reset=False)
    await persistent_crowd(tenant, 40)
    steps = await steady(lambda: server.metric("penstock_batch_size_bucket", model="held", le="+Inf"))
    assert server.metric("penstock_batch_size_bucket", model="held", le=str(CONCURRENT)) == steps > 0


async def until_admitted(tenant: Tenant) -> None:
    async with asyncio.timeout(30), tenant.client() as client:
        while (await tenant.ask("json", client, Seen(chat("held", PROMPT, 1)))).status != 200:
            await asyncio.sleep(0.05)


async def persistent_crowd(tenant: Tenant, count: int) -> None:
    """All of them come back until they are admitted: together they find every gap."""

    async def one(client: httpx.AsyncClient) -> None:
        while (await tenant.ask("sse", client, Seen(chat("held", PROMPT, 10)))).status != 200:
            await asyncio.sleep(0.02)

    async with asyncio.timeout(60), tenant.client() as client, asyncio.TaskGroup() as tasks:
        for _ in range(count):
            tasks.create_task(one(client))


async def remaining(tenant: Tenant) -> tuple[int, int]:
    """Of the account's day, as a model without limits of its own tells it; asking costs a request and 2 tokens."""
    async with tenant.client() as client:
        seen = await tenant.ask("json", client, Seen(chat("held", "x", 1)))
    headers = seen.headers
    return int(headers["x-ratelimit-remaining-requests"]), int(headers["x-ratelimit-remaining-tokens"])


async def test_a_refusal_of_one_level_charges_no_other(server: PenstockProcess) -> None:
    tenant = Tenant.create(server, "levels")
    assert await remaining(tenant) == (100_000 - 1, 1_000_000 - 2)
    second = await burst(tenant, 20, "echo@2")
    assert count_admitted(second) == 3
    assert all("echo@2" in seen.error["message"] for seen in second if seen.error)
    both = await burst(tenant, 20, "echo@1")  # what version 2 took counts for the model, its refusals do not
    assert count_admitted(both) == 2
    async with tenant.client() as client:
        sockets = [await tenant.ask("ws", client, Seen(chat("held", PROMPT, MAX_TOKENS))) for _ in range(4)]
        legacy = [
            (await client.post("/v1/completions", json={"model": "held", "prompt": "x", "max_tokens": 1})).status_code
            for _ in range(3)
        ]
    assert [seen.error is None for seen in sockets] == [True, True, False, False]
    assert legacy == [200, 429, 429]
    charged = 1 + 3 + 2 + 2 + 1
    tokens = 2 + (3 + 2 + 2) * COST + 2
    assert await remaining(tenant) == (100_000 - charged - 1, 1_000_000 - tokens - 2)


async def test_a_key_of_its_own(server: PenstockProcess) -> None:
    tenant = Tenant.create(server, "levels")
    body = {"account": tenant.name, "limits": {"requests_per_day": 2}}
    with server.http(ADMIN_KEY) as admin:
        key = admin.post("/admin/v1/keys", json=body).raise_for_status().json()["key"]
    limited = Tenant(server, tenant.name, tenant.id, key)
    assert count_admitted(await burst(limited, 10, "held")) == 2
    assert (await remaining(tenant))[0] == 100_000 - 3


async def test_a_request_above_a_limit_is_no_rate(server: PenstockProcess) -> None:
    tenant = Tenant.create(server, "day-tokens")
    async with tenant.client() as client:
        seen = await tenant.ask("json", client, Seen(chat("echo", PROMPT, FILL * COST)))
    assert (seen.status, seen.error and seen.error["code"]) == (400, "request_above_limit")
    assert count_admitted(await burst(tenant, FILL)) == FILL


async def test_requests_with_errors_charge_nothing(server: PenstockProcess) -> None:
    tenant = Tenant.create(server, "day-requests")
    wrong = [{"model": "nothing"}, {"temperature": 9}, {"messages": []}, {"n": 17}, {"max_tokens": 2_000_000}]
    async with tenant.client() as client:
        for fields in wrong * 20:
            answer = await client.post("/v1/chat/completions", json=chat("echo", PROMPT, 1) | fields)
            assert 400 <= answer.status_code < 500
    assert count_admitted(await burst(tenant, FILL)) == FILL


async def test_the_sdk_knows_both_kinds(server: PenstockProcess) -> None:
    rate, budget = Tenant.create(server, "rpm"), Tenant.create(server, "day-requests")
    for tenant, code in ((rate, "rate_limit_exceeded"), (budget, "insufficient_quota")):
        await burst(tenant)
        client = server.async_sdk(api_key=tenant.key, max_retries=0 if tenant is rate else 2)
        with pytest.raises(openai.RateLimitError) as caught:  # noqa: PT012
            for _ in range(5):
                body = [{"role": "user", "content": PROMPT}]
                await client.chat.completions.create(model="echo", messages=body, max_tokens=1)  # type: ignore[arg-type]
        assert caught.value.code == code
        await client.close()


async def test_everything_is_settled_after_a_burst(server: PenstockProcess) -> None:
    """The answers end in a stop string, so that all were reserved more than they used."""
    tenant = Tenant.create(server, "levels")
    async with tenant.client() as client:
        seen = await tenant.ask("json", client, Seen(chat("held", PROMPT, MAX_TOKENS)))
        stop = seen.text[4]
        bodies = [chat("held", PROMPT, 1000, stop=stop) for _ in range(40)]
        answers = await asyncio.gather(*(tenant.ask("json", client, Seen(body)) for body in bodies))
    assert {answer.finish_reason for answer in answers} == {"stop"}
    usage = await tenant.rows(41)
    used = usage["prompt_tokens"] + usage["completion_tokens"]
    assert 41 * len(PROMPT) < used < 41 * (len(PROMPT) + 1000)
    assert await remaining(tenant) == (100_000 - 41 - 1, 1_000_000 - used - 2)
