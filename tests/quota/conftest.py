"""Every test that takes `ledger` or `make_ledger` runs over each ledger; its audit log is replayed after it."""

import asyncio
import itertools
from collections.abc import AsyncIterator, Callable
from datetime import UTC, datetime
from typing import Any

import pytest

from quota.encoding import audit_record
from quota.ledger import AuditRecord, Event, Ledger
from quota.levels import Kind
from quota.memory import MemoryLedger
from quota.meters import MINUTE_MS
from quota.redis import RedisLedger
from tests.quota.redis_server import WHY_NOT, is_installed


class Clock:
    """Milliseconds since the epoch that only tests move."""

    def __init__(self) -> None:
        self.now = 0
        self.set(2025, 3, 15, 12)

    def __call__(self) -> int:
        return self.now

    def set(self, *when: int) -> None:
        self.now = int(datetime(*when, tzinfo=UTC).timestamp()) * 1000  # type: ignore[misc,arg-type]

    def advance(self, ms: int) -> None:
        self.now += ms


def _memory(clock: Callable[[], int], audit: Callable[[AuditRecord], None]) -> Ledger:
    return MemoryLedger(clock, audit=audit)


@pytest.fixture
def clock() -> Clock:
    return Clock()


PATIENCE = 5.0  # seconds: what a step means is tested here, not how long it may take on a busy machine


class AuditedRedisLedger(RedisLedger):
    """Reads its own audit log after each step, and leaves no key behind."""

    def __init__(self, url: str, on_record: Callable[[AuditRecord], None], **options: Any) -> None:
        super().__init__(url, audit=True, timeout=PATIENCE, **options)
        self._on_record = on_record
        self._read_up_to: dict[str, str] = {}
        self._reading = asyncio.Lock()

    async def _run(self, step: str, account: str, *arguments: str | bytes | int, nonce: str = "") -> Any:
        try:
            return await super()._run(step, account, *arguments, nonce=nonce)
        finally:
            await self._pass_on(account)

    async def _pass_on(self, account: str) -> None:
        key = f"{self._prefix}:{{{account}}}:a"
        async with self._reading:
            for entry_id, entry in await self._link.ask("XRANGE", key, self._read_up_to.get(account, "-"), "+"):
                self._read_up_to[account] = "(" + entry_id.decode()
                self._on_record(audit_record(account, entry))

    async def close(self) -> None:
        _, keys = await self._link.ask("SCAN", "0", "MATCH", f"{self._prefix}:*", "COUNT", 1_000_000)
        if keys:
            await self._link.ask("DEL", *keys)
        await super().close()


@pytest.fixture(params=["memory", "redis"])
def make_ledger(request: pytest.FixtureRequest) -> Callable[..., Ledger]:
    """(clock, audit) -> a new, empty ledger of the kind under test."""
    if request.param == "memory":
        return _memory
    url, numbers = request.getfixturevalue("redis_url"), itertools.count()
    prefix = request.getfixturevalue("prefix")
    return lambda clock, audit: AuditedRedisLedger(url, audit, clock=clock, prefix=f"{prefix}.{next(numbers)}")


def pytest_terminal_summary(terminalreporter: Any) -> None:
    """A skipped half is said, not only counted."""
    if not is_installed():
        terminalreporter.write_line(f"quota: {WHY_NOT}", yellow=True)


@pytest.fixture
def audit_log() -> list[AuditRecord]:
    return []


@pytest.fixture
async def ledger(
    make_ledger: Callable[..., Ledger], clock: Clock, audit_log: list[AuditRecord]
) -> AsyncIterator[Ledger]:
    ledger = make_ledger(clock, audit_log.append)
    yield ledger
    await ledger.check_integrity()
    _replay(audit_log)
    await ledger.close()


def _replay(log: list[AuditRecord]) -> None:
    """The published invariant: no admission leaves a counter above its limit, no bucket is ever overfull."""
    for record in log:
        for counter in record.counters:
            is_bucket = counter.dimension.kind is Kind.BUCKET
            assert counter.used >= 0
            if counter.limit is not None and (is_bucket or record.event is Event.RESERVED):
                assert counter.used <= counter.limit * (MINUTE_MS if is_bucket else 1), record
