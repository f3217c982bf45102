"""Every test that takes `ledger` or `make_ledger` runs over each ledger; its audit log is replayed after it."""

from collections.abc import AsyncIterator, Callable
from datetime import UTC, datetime

import pytest

from quota.ledger import AuditRecord, Event, Ledger
from quota.levels import Kind
from quota.memory import MemoryLedger
from quota.meters import MINUTE_MS


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


@pytest.fixture(params=[_memory], ids=["memory"])
def make_ledger(request: pytest.FixtureRequest) -> Callable[..., Ledger]:
    """(clock, audit) -> a new, empty ledger of the kind under test."""
    return request.param


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
