"""The response cache as clients see it: every form of an answer replayed, on two gateways that share a Redis."""

from __future__ import annotations

import asyncio
import contextlib
import json
import secrets
from collections import Counter
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
import websockets

from quota.ledger import Event
from quota.levels import Dimension, Level
from quota.redis import RedisLedger
from tests.clients import DOORS, Door, Seen, Tenant, chat, expected_text, until
from tests.penstock_process import PenstockProcess, started_together
from tests.quota.redis_server import RedisServer

CHAT = "/v1/chat/completions"
HEADER = "x-penstock-cache"
REQUESTS, TOKENS = 1000, 100_000
CONFIG = f"""
[server]
redis_url = "LEDGER"
database_url = "DATABASE"
cors_origins = ["https://app.example"]
[[models]]
name = "echo"
engine = "fake"
options = {{ delay_ms = 2 }}
[[models]]
name = "slow"
engine = "fake"
options = {{ delay_ms = 50 }}
[[models]]
name = "vectors"
engine = "fake"
task = "embed"
[quota]
audit = true
[quota.plans.default]
account = {{ requests_per_day = {REQUESTS}, tokens_per_day = {TOKENS}, concurrent = 64 }}
[cache]
store = "redis"
redis_url = "CACHE"
"""


@pytest.fixture(scope="module")
def cache_redis(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    """Of the cache alone: it is killed in the middle."""
    server = RedisServer(tmp_path_factory.mktemp("cache"))
    server.start()
    yield server
    server.kill()


@pytest.fixture(scope="module")
def pair(
    redis_server: RedisServer, cache_redis: RedisServer, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[PenstockProcess, PenstockProcess]]:
    database = f"sqlite+aiosqlite:///{tmp_path_factory.mktemp('shared') / 'penstock.db'}"
    config = CONFIG.replace("LEDGER", redis_server.url).replace("CACHE", cache_redis.url)
    folders = [tmp_path_factory.mktemp(name) for name in ("a", "b")]
    a, b = (PenstockProcess(folder, config.replace("DATABASE", database)) for folder in folders)
    with started_together(a, b):
        yield a, b


@pytest.fixture(scope="module")
def one(pair: tuple[PenstockProcess, PenstockProcess]) -> PenstockProcess:
    return pair[0]


@pytest.fixture
def tenant(one: PenstockProcess) -> Tenant:
    return Tenant.create(one)


def greedy(prompt: str, max_tokens: int = 8, model: str = "echo", **fields: object) -> dict[str, Any]:
    return chat(model, prompt, max_tokens, temperature=0, **fields)


async def ask(tenant: Tenant, door: Door, body: dict[str, Any]) -> Seen:
    async with tenant.client() as client:
        return await tenant.ask(door, client, Seen(body))


# -- hits ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("first", DOORS)
async def test_one_recording_serves_every_form(
    tenant: Tenant, pair: tuple[PenstockProcess, PenstockProcess], first: Door
) -> None:
    """Whichever form was computed, and on whichever gateway it is asked for again."""
    body = greedy("one recording", 12, **({} if first == "json" else {"stream_options": {"include_usage": True}}))
    body = body if first != "ws" else body | {"stream": True}
    computed = await ask(tenant, first, body)
    assert computed.text == expected_text("one recording", 12)
    for server in pair:
        for door in DOORS:
            options = {} if door == "json" else {"stream": True, "stream_options": {"include_usage": True}}
            seen = await ask(tenant.at(server), door, greedy("one recording", 12, **options))
            assert (seen.text, seen.finish_reason, seen.error) == (computed.text, "length", None)
            if door != "ws":  # it has no headers for an answer
                assert seen.headers[HEADER] == "hit"
                assert seen.usage is not None
                assert (seen.usage["prompt_tokens"], seen.usage["completion_tokens"]) == (13, 12)
                assert seen.usage["prompt_tokens_details"]["cached_tokens"] == 13


def test_the_sdk_reads_a_hit_as_any_answer(tenant: Tenant) -> None:
    client = tenant.server.sdk(api_key=tenant.key)
    body: dict[str, Any] = greedy("through the SDK", 10)
    raw = [client.chat.completions.with_raw_response.create(**body) for _ in range(2)]
    assert [answer.headers[HEADER] for answer in raw] == ["miss", "hit"]
    miss, hit = (answer.parse() for answer in raw)
    assert miss.choices == hit.choices
    assert miss.system_fingerprint == hit.system_fingerprint
    assert miss.id != hit.id, "an answer of its own"
    chunks = list(client.chat.completions.create(**body, stream=True))
    assert "".join(c.choices[0].delta.content or "" for c in chunks) == miss.choices[0].message.content


def test_completions_and_embeddings_are_replayed_too(tenant: Tenant) -> None:
    completion = {"model": "echo", "prompt": ["a", "b"], "seed": 1, "max_tokens": 3}
    requests: list[tuple[str, dict[str, Any]]] = [
        ("/v1/completions", completion | {"logprobs": None}),
        ("/v1/embeddings", {"model": "vectors", "input": ["one", "two"]}),
        ("/v1/rerank", {"model": "vectors", "query": "q", "documents": ["a", "b"]}),
    ]
    with tenant.server.http(tenant.key) as client:
        for path, body in requests:
            miss, hit = (client.post(path, json=body) for _ in range(2))
            assert [miss.headers[HEADER], hit.headers[HEADER]] == ["miss", "hit"], path
            own = ("id", "created", "usage")
            assert {k: v for k, v in miss.json().items() if k not in own} == {
                k: v for k, v in hit.json().items() if k not in own
            }
        same = client.post("/v1/embeddings", json=requests[1][1] | {"encoding_format": "base64"})
        assert same.headers[HEADER] == "hit", "how vectors are written is no part of the recording"


@pytest.mark.parametrize(
    ("wish", "status"), [("use", 200), ("refresh", 200), ("no-store", 200), ("yes", 400), ("", 400)]
)
def test_what_a_client_may_ask_for(tenant: Tenant, wish: str, status: int) -> None:
    with tenant.server.http(tenant.key) as client:
        answer = client.post(CHAT, json=chat("echo", "x", 2), headers={HEADER: wish})
    assert answer.status_code == status, answer.text
    if status == 400:
        assert answer.json()["error"]["param"] == HEADER


def test_a_sampled_answer_is_replayed_to_who_asks(tenant: Tenant) -> None:
    body = chat("echo", "sampled", 4)
    with tenant.server.http(tenant.key) as client:
        wishes = ["use", "use", "refresh", "no-store"]
        seen = [client.post(CHAT, json=body, headers={HEADER: wish}).headers[HEADER] for wish in wishes]
        seen.append(client.post(CHAT, json=body).headers[HEADER])
    assert seen == ["miss", "hit", "miss", "miss", "miss"]


async def test_a_websockets_handshake_carries_the_wish(tenant: Tenant) -> None:
    computed = "penstock_cache_requests_total"
    before = tenant.server.metric(computed, model="echo", result="hit")
    headers = tenant.headers | {HEADER: "use"}
    async with websockets.connect(tenant.server.websocket_url, additional_headers=headers) as connection:
        for _ in range(2):
            await connection.send(json.dumps(chat("echo", "over a socket", 3)))
            while json.loads(await connection.recv())["choices"][0]["finish_reason"] is None:
                pass
    assert tenant.server.metric(computed, model="echo", result="hit") == before + 1


def test_accounts_never_share(one: PenstockProcess) -> None:
    tenants = [Tenant.create(one) for _ in range(2)]
    for tenant in tenants:
        with one.http(tenant.key) as client:
            assert client.post(CHAT, json=greedy("whose is it")).headers[HEADER] == "miss"


def test_pages_may_read_it(one: PenstockProcess) -> None:
    with one.http() as client:
        answer = client.post(CHAT, json=greedy("page"), headers={"origin": "https://app.example"})
    assert HEADER in answer.headers["access-control-expose-headers"].split(", ")


def test_no_error_is_replayed(tenant: Tenant) -> None:
    with tenant.server.http(tenant.key) as client:
        refused = [client.post(CHAT, json=greedy("x", 8, stop=5)) for _ in range(2)]
    assert [answer.status_code for answer in refused] == [400, 400]


# -- shared ones ---------------------------------------------------------------------------------------------


async def test_identical_requests_share_one_computation(tenant: Tenant) -> None:
    body = greedy(f"shared {secrets.token_hex(4)}", 20, "slow")
    before = tenant.server.metric("penstock_engine_generated_tokens_total", model="slow")
    doors: list[Door] = ["json", "sse", "ws", "json", "sse"]
    seen = await asyncio.gather(*(ask(tenant, door, body) for door in doors))
    assert {one.text for one in seen} == {expected_text(seen[0].prompt, 20)}
    told = sorted(one.headers[HEADER] for door, one in zip(doors, seen, strict=True) if door != "ws")
    assert told in (["shared"] * 4, ["miss", *["shared"] * 3])
    usage = await tenant.rows(5)
    assert (usage["prompt_tokens"], usage["completion_tokens"]) == (len(seen[0].prompt), 20)
    assert (usage["replayed_prompt_tokens"], usage["replayed_completion_tokens"]) == (4 * len(seen[0].prompt), 80)
    await until(
        lambda: tenant.server.metric("penstock_engine_generated_tokens_total", model="slow") >= before + 20,
        "its report",
    )
    assert tenant.server.metric("penstock_engine_generated_tokens_total", model="slow") == before + 20


async def test_who_computes_may_leave(tenant: Tenant) -> None:
    def num_shared() -> float:
        return tenant.server.metric("penstock_cache_requests_total", model="slow", result="shared")

    body, before = greedy(f"left alone {secrets.token_hex(4)}", 60, "slow", stream=True), num_shared()
    async with tenant.client() as client:
        async with client.stream("POST", CHAT, json=body) as first:
            assert first.headers[HEADER] == "miss"
            second = asyncio.create_task(ask(tenant, "sse", body))
            await until(lambda: num_shared() > before)
        seen = await second
    assert (seen.text, seen.done, seen.headers[HEADER]) == (expected_text(seen.prompt, 60), True, "shared")
    assert (await ask(tenant, "json", greedy(seen.prompt, 60, "slow"))).headers[HEADER] == "hit"


# -- the books -----------------------------------------------------------------------------------------------


async def test_what_is_charged_is_what_was_computed(
    tenant: Tenant, pair: tuple[PenstockProcess, PenstockProcess]
) -> None:
    """Six answers of one computation: six requests, and the tokens of one; the rows say the same."""
    for server in (pair[0], pair[1], pair[0]):
        for door in ("json", "sse"):
            assert (await ask(tenant.at(server), door, greedy("charged once", 10))).finish_reason == "length"
    assert await tenant.charged("echo", REQUESTS, TOKENS) == (6, len("charged once") + 10)
    usage = await tenant.rows(7)
    assert usage["prompt_tokens"] + usage["completion_tokens"] == len("charged once") + 10 + 2
    assert usage["replayed_prompt_tokens"] == 5 * len("charged once")


async def test_clients_that_come_and_go_leave_nothing(
    tenant: Tenant, one: PenstockProcess, redis_server: RedisServer
) -> None:
    body = greedy(f"come and go {secrets.token_hex(4)}", 12, "slow")

    async def hurried(patience: float) -> None:
        with contextlib.suppress(TimeoutError, httpx.HTTPError):
            async with asyncio.timeout(patience):
                await ask(tenant, "sse", body)

    await asyncio.gather(*(hurried(0.05 * number) for number in range(12)))
    ledger = RedisLedger(redis_server.url, audit=True)
    try:
        async with asyncio.timeout(20):
            while (await ledger.usage(tenant.id)).leases:
                await asyncio.sleep(0.05)
        await ledger.check_integrity()
        counters = (await ledger.usage(tenant.id)).counters
        events = Counter([record.event async for record in ledger.audit_log(tenant.id)])
    finally:
        await ledger.close()
    used = Counter({c.dimension: c.used for c in counters if c.level is Level.ACCOUNT})
    assert events[Event.RESERVED] == events[Event.SETTLED] + events[Event.RELEASED]
    assert set(events) <= {Event.RESERVED, Event.SETTLED, Event.RELEASED}
    assert (used[Dimension.CONCURRENT], used[Dimension.REQUESTS_PER_DAY]) == (0, events[Event.SETTLED])
    rows = await tenant.rows(events[Event.RESERVED])
    assert rows["prompt_tokens"] + rows["completion_tokens"] == used[Dimension.TOKENS_PER_DAY]


# -- Redis is away (last: the others need it) ----------------------------------------------------------------


async def test_a_cache_that_dies_costs_no_answer(tenant: Tenant, cache_redis: RedisServer) -> None:
    body = greedy("it may die", 6)
    assert [(await ask(tenant, "json", body)).headers[HEADER] for _ in range(2)] == ["miss", "hit"]
    cache_redis.kill()
    for _ in range(5):
        seen = await ask(tenant, "json", body)
        assert (seen.text, seen.headers[HEADER]) == (expected_text("it may die", 6), "miss")
    cache_redis.start()
    async with asyncio.timeout(30):
        while (await ask(tenant, "json", body)).headers[HEADER] != "hit":
            await asyncio.sleep(0.1)
