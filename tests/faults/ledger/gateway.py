"""A gateway process as far as its quotas go, until SIGTERM. It tells of itself on its standard output.

A line of JSON is a hold that has ended, or the time at which the ledger answered again when it had not before.

python -m tests.faults.ledger.gateway durable|leased URL FOLDER|PREFIX
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import random
import signal
import sys
import time
import uuid
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path

from quota.ledger import LEASE_MS, Ledger, LedgerUnavailable
from quota.levels import Dimension, Layer, Level, Limits
from quota.redis import RedisLedger
from server.ledgers import able_to_go_on, open_shared
from server.settings import load
from server.store import Store
from server.store.records import UsageRecord
from server.store.usage_writer import UsageWriter
from tests.faults.ledger.holds import Hold

MARGIN_S = 0.005  # the ledger counts in whole milliseconds
SHORT_LEASE_MS = 600


@dataclass(frozen=True, slots=True)
class Traffic:
    """What clients ask for. An account whose budget is spent is left for the next one."""

    limits: Limits
    lease_ms: int
    shortest: float  # seconds that a request runs
    longest: float

    def layers(self) -> tuple[Layer, ...]:
        return (Layer(Level.ACCOUNT, "", self.limits),)

    def duration(self) -> float:
        """Mostly short, as answers are."""
        return self.shortest * (self.longest / self.shortest) ** random.random()


DURABLE = Traffic(Limits(tokens_per_day=4_000, concurrent=24), LEASE_MS, shortest=0.03, longest=10.0)
LEASED = Traffic(Limits(concurrent=6), SHORT_LEASE_MS, shortest=0.2, longest=3.0)
NUM_CLIENTS = 16  # a gateway


def account_name(number: int) -> str:
    return f"account{number}"


@dataclass(slots=True)
class Running:
    """A request. It is held while `since` is set; `confirmed` is when the call began that last said so."""

    lease_id: str
    account: str
    tokens: int
    since: float | None = None
    confirmed: float = 0.0
    stopped: asyncio.Event = field(default_factory=asyncio.Event)


class Gateway:
    def __init__(self, ledger: Ledger, traffic: Traffic, record: Callable[[Running, int], None]) -> None:
        self._ledger = ledger
        self._traffic = traffic
        self._record = record
        self._running: dict[str, Running] = {}
        self._number = 0  # of the account that is not spent yet
        self._is_away = False
        self._is_ending = False

    async def serve(self) -> None:
        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, self._end)
        renewing = asyncio.create_task(self._renew_for_ever())
        await asyncio.gather(*(self._client() for _ in range(NUM_CLIENTS)))
        renewing.cancel()

    def _end(self) -> None:
        self._is_ending = True
        for request in self._running.values():
            request.stopped.set()

    async def _client(self) -> None:
        while not self._is_ending:
            request = Running(
                f"{os.getpid()}-{uuid.uuid4().hex}", account_name(self._number), random.randrange(50, 101)
            )
            if await self._admit(request):
                await self._run(request)

    async def _admit(self, request: Running) -> bool:
        called = time.monotonic()
        try:
            decision = await self._ledger.reserve(
                request.lease_id, request.account, self._traffic.layers(), request.tokens
            )
        except LedgerUnavailable:
            self._is_away = True
            await asyncio.sleep(0.05)
            return False
        if self._is_away:
            self._is_away = False
            print(time.monotonic(), flush=True)
        if decision.refusal is not None:
            if decision.refusal.dimension is Dimension.TOKENS_PER_DAY:
                self._number += request.account == account_name(self._number)
            await asyncio.sleep(0.05)
            return False
        request.since, request.confirmed = time.monotonic(), called
        return True

    async def _run(self, request: Running) -> None:
        self._running[request.lease_id] = request
        if self._is_ending:
            request.stopped.set()
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(request.stopped.wait(), self._traffic.duration())
        del self._running[request.lease_id]
        used = request.tokens - random.randrange(4)
        self._report(request, used, was_lost=False)
        with contextlib.suppress(LedgerUnavailable):
            await self._ledger.settle(request.lease_id, request.account, used)
        self._record(request, used)

    def _report(self, request: Running, used: int, *, was_lost: bool) -> None:
        since = time.monotonic() if request.since is None else request.since  # else it was lost, and told of before
        until = min(time.monotonic(), request.confirmed + self._traffic.lease_ms / 1000 - MARGIN_S)
        hold = Hold(request.account, since, max(since, until), request.tokens, used, was_lost)
        print(json.dumps(asdict(hold)), flush=True)
        request.since = None

    # -- renewals ----------------------------------------------------------------------------------------

    async def _renew_for_ever(self) -> None:
        while True:
            await asyncio.sleep(self._traffic.lease_ms / 3000)
            for account in {request.account for request in self._running.values()}:
                with contextlib.suppress(LedgerUnavailable):  # nobody else is admitted through it either
                    await self._renew(account)

    async def _renew(self, account: str) -> None:
        renewed, called = [r for r in self._running.values() if r.account == account], time.monotonic()
        gone = await self._ledger.renew(account, {request.lease_id: 1 for request in renewed})
        for request in renewed:
            if request.lease_id not in self._running:
                continue
            if request.lease_id not in gone:
                request.confirmed = called
            elif not await self._admit_again(request):
                request.stopped.set()

    async def _admit_again(self, request: Running) -> bool:
        self._report(request, 0, was_lost=True)
        is_admitted = await self._admit(request)
        if is_admitted and request.lease_id not in self._running:  # it ended meanwhile
            request.since = None
            await self._ledger.release(request.lease_id, request.account)
        return is_admitted


# -- the two kinds -------------------------------------------------------------------------------------------


@asynccontextmanager
async def durable(url: str, folder: str) -> AsyncIterator[Gateway]:
    """All that the server has: usage in a database, a memory of what runs, and a way to go on without Redis."""
    settings = load(Path(folder, "penstock.toml"), {"redis_url": url, "data_dir": folder}, {})
    store = await Store.open(data_dir=Path(folder))
    writer = UsageWriter(store.usage)
    writer.start()
    shared = await open_shared(settings, store, writer.flush)
    ledger = able_to_go_on(shared, settings)
    watching = asyncio.create_task(ledger.watch())
    yield Gateway(ledger, DURABLE, lambda request, used: writer.record(usage_record(request, used)))
    watching.cancel()
    await writer.close()
    await ledger.close()
    await store.close()


@asynccontextmanager
async def leased(url: str, prefix: str) -> AsyncIterator[Gateway]:
    """Short leases, every step in the log."""
    ledger = RedisLedger(url, prefix=prefix, lease_ms=SHORT_LEASE_MS, audit=True)
    yield Gateway(ledger, LEASED, lambda request, used: None)
    await ledger.close()


def usage_record(request: Running, used: int) -> UsageRecord:
    return UsageRecord(
        request_id=request.lease_id,
        account_id=request.account,
        key_id="k",
        model="m",
        version="1",
        endpoint="chat",
        features=frozenset(),
        prompt_tokens=1,
        cached_tokens=0,
        completion_tokens=used - 1,
        started_at=datetime.now(UTC),
        queue_ms=None,
        first_token_ms=None,
        total_ms=0,
        outcome="stop",
    )


async def main(opened: AbstractAsyncContextManager[Gateway]) -> None:
    async with opened as gateway:
        await gateway.serve()


if __name__ == "__main__":
    kind, *arguments = sys.argv[1:]
    asyncio.run(main({"durable": durable, "leased": leased}[kind](*arguments)))
