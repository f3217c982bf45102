"""Five hundred SDK clients at once on four gateways and one account: every counter stays within its limit, at every
step, and what clients were served is what is charged and written."""

from __future__ import annotations

import asyncio
import re
import ssl
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path

import httpx
import openai
import pytest

from quota.ledger import Event
from quota.levels import Dimension, Level
from quota.redis import RedisLedger
from tests.clients import Tenant
from tests.faults.ledger.replay import over
from tests.penstock_process import PenstockProcess
from tests.quota.redis_server import RedisServer

NUM_CLIENTS, NUM_GATEWAYS = 500, 4
CONCURRENT = 20
CONFIG = f"""
[server]
redis_url = "REDIS"
[quota]
audit = true
[[models]]
name = "echo"
engine = "fake"
options = {{ delay_ms = 20 }}
[[models]]
name = "scarce"
engine = "fake"
[quota.plans.tier]
account = {{ rpm = 100, tpm = 20_000, concurrent = {CONCURRENT} }}
models = {{ scarce = {{ rpm = 4 }} }}
features = {{ chat = {{ rpm = 12 }}, stream = {{ rpm = 4 }} }}
"""
REFUSALS = {
    "account: 100 requests per minute (rpm)",
    "account: 20000 tokens per minute (tpm)",
    f"account: {CONCURRENT} concurrent requests",
    "model 'scarce': 4 requests per minute (rpm)",
    "feature 'chat': 12 requests per minute (rpm)",
    "feature 'stream': 4 requests per minute (rpm)",
}
MAX_WAVES = 12


@dataclass(frozen=True, slots=True)
class Served:
    prompt_tokens: int
    completion_tokens: int


@dataclass(frozen=True, slots=True)
class Refused:
    why: str


Answer = Served | Refused
Ask = Callable[[openai.AsyncOpenAI], Awaitable[Served]]


def served(usage: openai.types.CompletionUsage | None) -> Served:
    assert usage is not None
    return Served(usage.prompt_tokens, usage.completion_tokens)


def json_chat(model: str, prompt: str, max_tokens: int) -> Ask:
    async def ask(sdk: openai.AsyncOpenAI) -> Served:
        messages = [{"role": "user", "content": prompt}]
        answer = await sdk.chat.completions.create(model=model, messages=messages, max_tokens=max_tokens)  # type: ignore[arg-type]
        return served(answer.usage)

    return ask


def streamed_chat(model: str, prompt: str, max_tokens: int) -> Ask:
    async def ask(sdk: openai.AsyncOpenAI) -> Served:
        stream = await sdk.chat.completions.create(
            model=model,
            messages=[{"role": "user", "content": prompt}],
            max_tokens=max_tokens,
            stream=True,
            stream_options={"include_usage": True},
        )
        chunks = [chunk async for chunk in stream]
        assert chunks[-2].choices[0].finish_reason == "length"
        return served(chunks[-1].usage)

    return ask


def completion(model: str, prompt: str, max_tokens: int) -> Ask:
    async def ask(sdk: openai.AsyncOpenAI) -> Served:
        answer = await sdk.completions.create(model=model, prompt=prompt, max_tokens=max_tokens)
        return served(answer.usage)

    return ask


LONG = [completion("echo", "hello", 60)]  # more than a second: concurrency is spent first
SHORT = [
    json_chat("echo", "hello", 2),
    streamed_chat("echo", "hello", 2),
    completion("echo", "hello", 2),
    completion("scarce", "hello", 2),
]
BIG = [completion("echo", "a" * 3000, 2), json_chat("echo", "a" * 3000, 2), streamed_chat("echo", "a" * 3000, 2)]


@pytest.fixture(scope="module")
def server(redis_server: RedisServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[PenstockProcess]:
    folder, config = tmp_path_factory.mktemp("burst"), CONFIG.replace("REDIS", redis_server.url)
    with PenstockProcess(folder, config, "--gateways", str(NUM_GATEWAYS)) as running:
        yield running


async def answer_of(sdk: openai.AsyncOpenAI, ask: Ask) -> Answer:
    """Anything but a 200 and a 429 with the right envelope is an error of the test."""
    try:
        return await ask(sdk)
    except openai.RateLimitError as error:
        return refusal(error.response)


def refusal(response: httpx.Response) -> Refused:
    (name, error), *more = response.json().items()
    assert (name, more) == ("error", [])
    said = re.fullmatch(r"Rate limit of the (.+) reached: (.+)\. Try again in \w+\.?\w*\.", error["message"])
    assert said is not None, error
    assert error == {
        "message": error["message"],
        "type": "tokens" if "(tpm)" in said[2] else "requests",
        "param": None,
        "code": "rate_limit_exceeded",
    }
    assert int(response.headers["retry-after-ms"]) > 0
    assert int(response.headers["retry-after"]) > 0
    return Refused(f"{said[1]}: {said[2]}")


def num_connections(port: int) -> int:
    """Established ones to this port of this machine, as the clients' side counts them."""
    rows = [row.split() for row in Path("/proc/self/net/tcp").read_text().splitlines()[1:]]
    return sum(row[2].endswith(f":{port:04X}") and row[3] == "01" for row in rows)


async def test_five_hundred_clients(server: PenstockProcess, redis_server: RedisServer) -> None:
    tenant, answers = Tenant.create(server, "tier"), list[Answer]()
    async with AsyncExitStack() as stack:
        clients = [await stack.enter_async_context(sdk_of(tenant)) for _ in range(NUM_CLIENTS)]
        await asyncio.gather(*(client.models.list() for client in clients))
        assert num_connections(server.port) == NUM_CLIENTS
        waves = [LONG, SHORT, BIG]
        while missing := REFUSALS - {answer.why for answer in answers if isinstance(answer, Refused)}:
            assert len(answers) < MAX_WAVES * NUM_CLIENTS, f"never refused: {missing}"
            kinds = waves[len(answers) // NUM_CLIENTS % len(waves)]
            answers += await wave(clients, kinds)
    assert {answer.why for answer in answers if isinstance(answer, Refused)} == REFUSALS
    print(Counter(answer.why if isinstance(answer, Refused) else "served" for answer in answers))
    await check_books(tenant, redis_server, [answer for answer in answers if isinstance(answer, Served)])
    refusals = await asyncio.to_thread(server.metric, "penstock_quota_refusals_total")
    assert refusals == sum(isinstance(answer, Refused) for answer in answers)


def sdk_of(tenant: Tenant) -> openai.AsyncOpenAI:
    """With a connection of its own. Making it must be quick: there are many, and none speaks TLS."""
    no_tls = httpx.AsyncClient(verify=ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT), timeout=60)
    return tenant.server.async_sdk(api_key=tenant.key, http_client=no_tls)


async def wave(clients: Sequence[openai.AsyncOpenAI], kinds: Sequence[Ask]) -> list[Answer]:
    asked = [answer_of(client, kinds[index % len(kinds)]) for index, client in enumerate(clients)]
    return list(await asyncio.gather(*asked))


async def check_books(tenant: Tenant, redis_server: RedisServer, everybody: list[Served]) -> None:
    """The ledger's log, its counters and the usage rows: all of them know what the clients were served, no more."""
    prompt_tokens = sum(answer.prompt_tokens for answer in everybody)
    completion_tokens = sum(answer.completion_tokens for answer in everybody)
    rows = await tenant.rows(len(everybody))
    assert (rows["prompt_tokens"], rows["completion_tokens"]) == (prompt_tokens, completion_tokens)

    ledger = RedisLedger(redis_server.url, audit=True)
    log = [record async for record in ledger.audit_log(tenant.id)]
    assert [record for record in log if over(record)] == []
    counters = [counter for record in log for counter in record.counters]
    assert max(c.used for c in counters if c.dimension is Dimension.CONCURRENT) == CONCURRENT, "it was a burst"
    events = Counter(record.event for record in log)
    assert events[Event.RESERVED] == events[Event.SETTLED] == len(everybody)
    assert set(events) == {Event.RESERVED, Event.SETTLED, Event.REFUSED}
    settled = [record.tokens for record in log if record.event is Event.SETTLED]
    assert sorted(settled) == sorted(answer.prompt_tokens + answer.completion_tokens for answer in everybody)

    usage = await ledger.usage(tenant.id)
    await ledger.close()
    assert usage.leases == ()
    used = Counter[Dimension]()
    for counter in usage.counters:
        if counter.level is Level.ACCOUNT:
            used[counter.dimension] += counter.used
    assert used[Dimension.CONCURRENT] == 0
    assert used[Dimension.REQUESTS_PER_DAY] == len(everybody)
    assert used[Dimension.TOKENS_PER_DAY] == used[Dimension.TOKENS_PER_MONTH] == prompt_tokens + completion_tokens
