"""Engines are killed in mid-stream, with a second replica and without one: what clients see, and what they are charged.

The whole gateway runs in this process; its workers are forked, so that hundreds can be killed.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import random
import sqlite3
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import uvicorn

from quota.ledger import Ledger
from server.balancing import Replica
from server.failover import MAX_MOVES
from server.gateway import base_url, bind, uvicorn_config
from server.metrics import Metrics
from server.registry import Registry
from server.services import Services, first_keys, opened_store, running
from server.settings import load
from tests.clients import DOORS, Door, Seen, Tenant, chat, expected_text
from tests.faults.forked_workers import ForkedWorker, Nursery
from tests.penstock_process import ADMIN_KEY, API_KEY, Address
from tests.scale import cut, publish

KILLS = cut(60, 1000)
KILLS_ALONE = cut(30, 1000)
NUM_READERS = 6
PATIENCE = 60.0  # seconds; a bound on waiting
CONFIG = """
[server]
port = 0
[[models]]
name = "echo"
engine = "fake"
replicas = {replicas}
options = {{ delay_ms = {delay_ms}{options} }}
[timeouts]
worker_silence = {silence}
between_tokens = {between_tokens}
[quota.plans.default]
account = {{ requests_per_day = 1000000, tokens_per_day = 1000000000, concurrent = 64 }}
"""
KEYS = {"PENSTOCK_API_KEY": API_KEY, "PENSTOCK_ADMIN_KEY": ADMIN_KEY}
STREAM = {"stream_options": {"include_usage": True}, "stream": True}


class House(Address):
    """A gateway, its books, and the means to kill its workers."""

    def __init__(self, url: str, services: Services, folder: Path) -> None:
        self.base_url = url
        self.services = services
        self.folder = folder
        self.settlements: Counter[str] = Counter()  # by lease
        ledger: Any = services.ledger
        settle: Any = ledger.settle

        async def counted(lease_id: str, account: str, tokens: int) -> bool:
            self.settlements[lease_id] += 1
            done: bool = await settle(lease_id, account, tokens)
            return done

        ledger.settle = counted

    @property
    def replicas(self) -> Sequence[Replica]:
        (deployment,) = self.services.registry.deployments.values()
        return deployment.replicas

    @property
    def workers(self) -> list[ForkedWorker]:
        return [replica.link for replica in self.replicas]  # type: ignore[misc]

    def failovers(self) -> dict[str, int]:
        (family,) = self.services.metrics.health.failovers.collect()
        return {s.labels["outcome"]: int(s.value) for s in family.samples if s.name.endswith("_total")}

    async def tenant(self) -> Tenant:
        return await asyncio.to_thread(Tenant.create, self)

    async def check_books(self, tenant: Tenant, num_requests: int, num_tokens: int) -> None:
        """The rows and the ledger say the same, each request was settled once, and nothing is held."""
        await tenant.rows(num_requests)
        with sqlite3.connect(self.folder / "data" / "penstock.db") as database:
            columns = "request_id, prompt_tokens + completion_tokens FROM usage WHERE account_id = ?"
            rows = dict(database.execute(f"SELECT {columns}", (tenant.id,)).fetchall())
        assert sum(rows.values()) == num_tokens
        usage = await self.services.ledger.usage(tenant.id)
        assert not usage.leases
        assert {c.used for c in usage.counters if c.dimension == "tokens_per_day"} == {num_tokens}
        assert {c.used for c in usage.counters if c.dimension == "requests_per_day"} == {num_requests}
        assert {self.settlements[request_id] for request_id in rows} == {1}
        await check_integrity(self.services.ledger)
        assert not any(replica.num_open for replica in self.replicas)


async def check_integrity(ledger: Ledger) -> None:
    await ledger.check_integrity()  # type: ignore[attr-defined]


@contextlib.asynccontextmanager
async def house(
    folder: Path,
    replicas: int,
    delay_ms: int = 2,
    options: str = "",
    silence: float = 10,
    between_tokens: float = 30,
) -> AsyncIterator[House]:
    """`options`: more of them, each behind a comma."""
    text = CONFIG.format(
        replicas=replicas, delay_ms=delay_ms, options=options, silence=silence, between_tokens=between_tokens
    )
    (folder / "penstock.toml").write_text(text)
    settings = load(folder / "penstock.toml", {"data_dir": str(folder / "data")}, KEYS)
    async with contextlib.AsyncExitStack() as stack:
        listener = stack.enter_context(bind(settings.server, settings.timeouts.write))
        nursery = await stack.enter_async_context(Nursery())
        store = await stack.enter_async_context(opened_store(settings))
        await first_keys(store, settings)
        registry = Registry(settings, folder, nursery.link)
        services = await stack.enter_async_context(running(settings, store, registry, Metrics()))
        server = uvicorn.Server(uvicorn_config(settings, services))
        serving = asyncio.create_task(server.serve([listener]))
        yield House(base_url(settings.server, listener), services, folder)
        server.should_exit = True
        await serving


# --- kills without end


@dataclass
class Readers:
    """Clients that ask one thing after another. `kills` counts those that each stream has lived to see."""

    server: House
    tenant: Tenant
    kills: Counter[int] = field(default_factory=Counter)
    open: dict[int, Seen] = field(default_factory=dict)
    ended: list[Seen] = field(default_factory=list)
    enough: bool = False
    numbers: itertools.count[int] = field(default_factory=itertools.count)

    async def read(self) -> None:
        async with self.tenant.client() as client:
            while not self.enough:
                number = next(self.numbers)
                seen = self.open[number] = Seen(question(self.tenant, number))
                door: Door = "ws" if number % 4 == 3 else "sse"
                await self.tenant.ask(door, client, seen)
                self.ended.append(self.open.pop(number))

    @property
    def all_in_mid_stream(self) -> bool:
        """Each has had text, and more of it if it was moved. One that was moved as often as may be is left alone."""
        begun = [number for number, seen in self.open.items() if seen.text and self.kills[number] < MAX_MOVES]
        running: list[Any] = list(self.server.services.leases._held.values())
        return len(begun) == NUM_READERS and not any(one._work.is_under_way_again for one in running)

    def note_kill(self) -> None:
        self.kills.update(list(self.open))


def question(tenant: Tenant, number: int) -> dict[str, Any]:
    """Greedy or seeded, some of them with a stop string."""
    rng = random.Random(number)
    prompt, max_tokens = f"{tenant.name} asks {number}", rng.randint(40, 120)
    sampling: dict[str, Any] = {"temperature": 0} if number % 2 else {"temperature": 1, "seed": number}
    if number % 8 == 0:
        whole = expected_text(prompt, max_tokens)
        sampling |= {"stop": [whole[-5:]], "min_tokens": 8}
    return chat("echo", prompt, max_tokens, **sampling) | (STREAM if number % 4 != 3 else {})


def check_whole(seen: Seen) -> None:
    """Byte for byte what an undisturbed engine gives, and every token counted once."""
    whole = expected_text(seen.prompt, seen.body["max_tokens"])
    assert seen.error is None
    if stop := seen.body.get("stop"):
        end = whole.find(stop[0], seen.body["min_tokens"])
        assert (seen.text, seen.finish_reason) == (whole[:end], "stop")
    else:
        assert (seen.text, seen.finish_reason) == (whole, "length")
    if seen.usage:
        assert seen.done
        assert seen.usage["prompt_tokens"] == len(seen.prompt)


async def test_kills_with_a_second_replica(tmp_path: Path) -> None:
    async with house(tmp_path, replicas=2) as server:
        readers = Readers(server, await server.tenant())
        async with asyncio.timeout(PATIENCE + KILLS), asyncio.TaskGroup() as tasks:
            for _ in range(NUM_READERS):
                tasks.create_task(readers.read())
            for number in range(KILLS):
                while not readers.all_in_mid_stream:
                    await asyncio.sleep(0.001)
                readers.note_kill()
                await server.workers[number % 2].kill()
            readers.enough = True
        for seen in readers.ended:
            check_whole(seen)
        moved = server.failovers()
        assert moved["continued"] >= KILLS
        assert moved.keys() <= {"continued", "retried"}  # a stream may begin just when the kill is sent
        charged = sum(seen.usage["total_tokens"] if seen.usage else seen.num_tokens for seen in readers.ended)
        await server.check_books(readers.tenant, len(readers.ended), charged)
    figures = {"kills": KILLS, "answers": len(readers.ended), "times one went on elsewhere": moved["continued"]}
    publish(13, "engine kills in mid-stream, with a second replica", **figures, tokens_lost_or_doubled=0)


async def test_kills_without_a_second_replica(tmp_path: Path) -> None:
    async with house(tmp_path, replicas=1) as server:
        tenant = await server.tenant()
        cut_short: list[Seen] = []
        for number in range(KILLS_ALONE):
            streams = [greedy(f"{number} {i}", 100_000) for i in range(2)]
            async with asking(tenant, streams, "sse"):
                await server.workers[0].kill()
            cut_short += streams
        for seen in cut_short:
            check_cut_short(seen)
        assert server.failovers() == {"no_replica": len(cut_short)}
        await server.check_books(tenant, len(cut_short), sum(seen.num_tokens for seen in cut_short))
    figures = {"kills": KILLS_ALONE, "answers that ended in an error event and were settled": len(cut_short)}
    publish(14, "engine kills in mid-stream, without a second replica", **figures)


def check_cut_short(seen: Seen) -> None:
    """An error and no end, behind the beginning of the right answer."""
    assert seen.error is not None
    assert (seen.error["code"], seen.done, seen.finish_reason) == ("engine_failed", False, None)
    assert seen.is_right


# --- one kill


def greedy(prompt: str, max_tokens: int, **fields: object) -> Seen:
    return Seen(chat("echo", prompt, max_tokens, **({"temperature": 0} | fields)))


@contextlib.asynccontextmanager
async def asking(
    tenant: Tenant, streams: Sequence[Seen], door: Door, *, have_begun: bool = True
) -> AsyncIterator[None]:
    """In the body each has had text, or may not have. All have ended when it is left."""
    async with asyncio.timeout(PATIENCE), tenant.client() as client, asyncio.TaskGroup() as tasks:
        for seen in streams:
            tasks.create_task(tenant.ask(door, client, seen))
        if have_begun:
            for seen in streams:
                await seen.started.wait()
        yield


def busy(server: House) -> ForkedWorker:
    """The worker that has something to do."""
    (replica,) = (replica for replica in server.replicas if replica.num_open)
    return replica.link  # type: ignore[return-value]


async def test_sampled_without_a_seed_it_can_not_go_on(tmp_path: Path) -> None:
    """Nobody could say what the engine would have sampled next. A whole answer is begun again: nobody has seen it."""
    doors: tuple[Door, ...] = ("sse", "ws")
    async with house(tmp_path, replicas=2) as server:
        tenant, streams = await server.tenant(), [greedy(door, 100_000, temperature=1) for door in doors]
        for door, seen in zip(doors, streams, strict=True):
            async with asking(tenant, [seen], door):
                await busy(server).kill()
            check_cut_short(seen)
        whole = greedy("json", 400, temperature=1)
        async with asking(tenant, [whole], "json", have_begun=False):
            await begun_by_all(server, 1)
            await busy(server).kill()
        assert (whole.text, whole.error) == (expected_text("json", 400), None)
        assert server.failovers() == {"cannot_continue": 2, "retried": 1}
        await server.check_books(tenant, 3, sum(seen.num_tokens for seen in (*streams, whole)))


async def test_before_the_first_token_it_is_begun_again(tmp_path: Path) -> None:
    """Whether seeded or not."""
    async with house(tmp_path, replicas=2, delay_ms=200) as server:
        tenant = await server.tenant()
        for door in DOORS:
            seen = greedy(f"hello {door}", 3, temperature=1)
            async with asking(tenant, [seen], door, have_begun=False):
                while not any(replica.num_open and replica.stats.running for replica in server.replicas):
                    await asyncio.sleep(0.001)
                await busy(server).kill()
            assert (seen.text, seen.error) == (expected_text(seen.prompt, 3), None)
        assert server.failovers() == {"retried": len(DOORS)}
        await server.check_books(tenant, len(DOORS), sum(len("hello ") + len(door) + 3 for door in DOORS))


async def test_several_prompts_and_whole_answers(tmp_path: Path) -> None:
    """Each choice goes on by itself. What a whole answer's client never sees goes on all the same."""
    prompts = [f"prompt {index}" for index in range(5)]
    async with house(tmp_path, replicas=2, delay_ms=5) as server:
        tenant = await server.tenant()
        async with tenant.client() as client:
            body = {"model": "echo", "prompt": prompts, "max_tokens": 200, "seed": 11}
            asked = asyncio.create_task(client.post("/v1/completions", json=body))
            for _ in range(2):
                await begun_by_all(server, len(prompts))
                await busy(server).kill()
            answer = (await asyncio.wait_for(asked, PATIENCE)).json()
        assert [choice["text"] for choice in answer["choices"]] == [expected_text(p, 200) for p in prompts]
        num_prompt = sum(map(len, prompts))
        assert answer["usage"]["prompt_tokens"] == num_prompt
        assert answer["usage"]["completion_tokens"] == 200 * len(prompts)
        assert server.failovers() == {"continued": 2 * len(prompts)}
        await server.check_books(tenant, 1, num_prompt + 200 * len(prompts))


async def begun_by_all(server: House, num_choices: int) -> None:
    """The busy worker has given a token to each: they share its steps."""
    before = 0
    async with asyncio.timeout(PATIENCE):
        while True:
            await asyncio.sleep(0.005)
            stats = next((r.stats for r in server.replicas if r.stats.running == num_choices), None)
            if stats is None:
                continue
            if before and stats.generated_tokens > before:
                return
            before = stats.generated_tokens
