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
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import uvicorn

from quota.ledger import Ledger
from server.gateway import base_url, bind, uvicorn_config
from server.metrics import Metrics
from server.registry import Registry
from server.services import Services, first_keys, opened_store, running
from server.settings import load
from tests.clients import Door, Seen, Tenant, chat, expected_text
from tests.faults.forked_workers import ForkedWorker, Nursery
from tests.penstock_process import ADMIN_KEY, API_KEY, Address
from tests.scale import cut, publish

KILLS = cut(100, 1000)
NUM_READERS = 8
PATIENCE = 60.0  # seconds; a bound on waiting
CONFIG = """
[server]
port = 0
[[models]]
name = "echo"
engine = "fake"
replicas = {replicas}
options = {{ delay_ms = 2 }}
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
    def workers(self) -> list[ForkedWorker]:
        (deployment,) = self.services.registry.deployments.values()
        return [replica.link for replica in deployment.replicas]  # type: ignore[misc]

    def failovers(self) -> dict[str, int]:
        (family,) = self.services.metrics.failovers.collect()
        return {s.labels["outcome"]: int(s.value) for s in family.samples if s.name.endswith("_total")}

    async def tenant(self) -> Tenant:
        return await asyncio.to_thread(Tenant.create, self)

    async def check_books(self, tenant: Tenant, num_requests: int, num_tokens: int) -> None:
        """The rows and the ledger say the same, each request was settled once, and nothing is held."""
        await tenant.rows(num_requests)
        with sqlite3.connect(self.folder / "data" / "penstock.db") as database:
            columns = "request_id, prompt_tokens + completion_tokens FROM usage WHERE account_id = ?"
            rows = dict(database.execute(f"SELECT {columns}", (tenant.id,)).fetchall())  # noqa: S608
        assert sum(rows.values()) == num_tokens
        usage = await self.services.ledger.usage(tenant.id)
        assert not usage.leases
        assert {c.used for c in usage.counters if c.dimension == "tokens_per_day"} == {num_tokens}
        assert {c.used for c in usage.counters if c.dimension == "requests_per_day"} == {num_requests}
        assert {self.settlements[request_id] for request_id in rows} == {1}
        await check_integrity(self.services.ledger)
        assert all(r.num_open == 0 for d in self.services.registry.deployments.values() for r in d.replicas)


async def check_integrity(ledger: Ledger) -> None:
    await ledger.check_integrity()  # type: ignore[attr-defined]


@contextlib.asynccontextmanager
async def house(folder: Path, replicas: int) -> AsyncIterator[House]:
    (folder / "penstock.toml").write_text(CONFIG.format(replicas=replicas))
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
    """Clients that ask one thing after another. `before` is what each stream had at the last kill."""

    tenant: Tenant
    before: dict[int, int] = field(default_factory=dict)
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
        """Each has had text, and more of it since the last kill."""
        progress = [len(seen.text) > self.before.get(number, 0) for number, seen in self.open.items()]
        return len(progress) == NUM_READERS and all(progress)

    def note_kill(self) -> None:
        self.before = {number: len(seen.text) for number, seen in self.open.items()}


def question(tenant: Tenant, number: int) -> dict[str, Any]:
    """Greedy or seeded, some of them with a stop string."""
    rng = random.Random(number)
    prompt, max_tokens = f"{tenant.name} asks {number}", rng.randint(40, 200)
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
        readers = Readers(await server.tenant())
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
        assert moved.keys() == {"continued"}
        charged = sum(seen.usage["total_tokens"] if seen.usage else seen.num_tokens for seen in readers.ended)
        await server.check_books(readers.tenant, len(readers.ended), charged)
    figures = {"kills": KILLS, "answers": len(readers.ended), "times one went on elsewhere": moved["continued"]}
    publish(13, "engine kills in mid-stream, with a second replica", **figures, tokens_lost_or_doubled=0)
