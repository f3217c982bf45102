import asyncio
import logging
from collections.abc import Sequence
from datetime import UTC, datetime

import pytest
from sqlalchemy import text
from sqlalchemy.exc import OperationalError

from server.store import Store
from server.store.records import UsageRecord
from server.store.usage_writer import UsageWriter


def record(request_id: str, started_at: datetime = datetime(2025, 3, 10, tzinfo=UTC), prompt: int = 1) -> UsageRecord:
    return UsageRecord(
        request_id=request_id,
        account_id="acct_1",
        key_id="k1",
        model="big",
        version="1",
        endpoint="/v1/chat/completions",
        features=frozenset(),
        prompt_tokens=prompt,
        cached_tokens=0,
        completion_tokens=1,
        started_at=started_at,
        queue_ms=None,
        first_token_ms=None,
        total_ms=1,
        outcome="stop",
    )


class Sink:
    """Keeps what it is given; fails while it is told to, before or after the rows are stored."""

    def __init__(self) -> None:
        self.stored: dict[str, UsageRecord] = {}
        self.batches: list[int] = []
        self.failures = 0
        self.fail_after_storing = False
        self.refused: frozenset[str] = frozenset()
        self.gate = asyncio.Event()
        self.gate.set()

    async def add(self, records: Sequence[UsageRecord]) -> None:
        await self.gate.wait()
        self.batches.append(len(records))
        if any(r.request_id in self.refused for r in records):
            raise ValueError("a value that can't be stored")
        if self.failures and not self.fail_after_storing:
            self._fail()
        self.stored.update({r.request_id: r for r in records if r.request_id not in self.stored})
        if self.failures:
            self._fail()

    def _fail(self) -> None:
        self.failures -= 1
        raise OperationalError("INSERT", {}, OSError("away"))


async def _until_empty(writer: UsageWriter) -> None:
    while writer._pending:
        await asyncio.sleep(0.001)


async def test_the_task_writes_what_is_recorded() -> None:
    sink = Sink()
    writer = UsageWriter(sink, interval_s=0.001)
    writer.start()
    writer.record(record("r1"))
    await _until_empty(writer)
    writer.record(record("r2"))
    await _until_empty(writer)
    assert list(sink.stored) == ["r1", "r2"]
    await writer.close()


async def test_a_full_batch_does_not_wait_for_the_interval() -> None:
    sink = Sink()
    writer = UsageWriter(sink, interval_s=3600, batch_size=5)
    writer.start()
    await asyncio.sleep(0)
    for number in range(5):
        writer.record(record(f"r{number}"))
    await _until_empty(writer)
    assert sink.batches == [5]
    await writer.close()


async def test_batches_are_bounded() -> None:
    sink = Sink()
    writer = UsageWriter(sink, batch_size=4)
    for number in range(10):
        writer.record(record(f"r{number}"))
    assert await writer.flush()
    assert sink.batches == [4, 4, 2]
    assert writer.written == 10


async def test_a_failing_database_costs_no_record() -> None:
    sink = Sink()
    sink.failures = 3
    writer = UsageWriter(sink, interval_s=0.001, max_backoff_s=0.002)
    writer.start()
    for number in range(10):
        writer.record(record(f"r{number}"))
    await _until_empty(writer)
    assert len(sink.stored) == 10
    assert (writer.dropped, writer.written) == (0, 10)
    await writer.close()


async def test_an_uncertain_commit_counts_once(store: Store) -> None:
    class Uncertain:
        calls = 0

        async def add(self, records: Sequence[UsageRecord]) -> None:
            await store.usage.add(records)
            self.calls += 1
            if self.calls == 1:
                raise OperationalError("COMMIT", {}, OSError("the answer was lost"))

    writer = UsageWriter(Uncertain())
    writer.record(record("r1"))
    assert not await writer.flush()
    writer.record(record("r2"))
    assert await writer.flush()
    (total,) = await store.usage.sums([])
    assert (total.requests, total.prompt_tokens) == (2, 2)


async def test_a_full_buffer_drops_loudly_and_counts(caplog: pytest.LogCaptureFixture) -> None:
    sink, told = Sink(), []
    writer = UsageWriter(sink, capacity=3, on_drop=lambda: told.append("one"))
    for number in range(8):
        writer.record(record(f"r{number}"))
    assert (len(writer._pending), writer.dropped, len(told)) == (3, 5, 5)
    assert [r.levelno for r in caplog.records] == [logging.ERROR] * 3  # the 1st, the 2nd, the 4th
    assert await writer.flush()
    assert list(sink.stored) == ["r0", "r1", "r2"]


async def test_one_bad_record_does_not_hold_up_the_others(caplog: pytest.LogCaptureFixture) -> None:
    sink = Sink()
    sink.refused = frozenset({"r2"})
    writer = UsageWriter(sink)
    for number in range(5):
        writer.record(record(f"r{number}"))
    assert await writer.flush()
    assert sorted(sink.stored) == ["r0", "r1", "r3", "r4"]
    assert (writer.dropped, writer.written) == (1, 4)
    assert "dropped" in caplog.text


@pytest.mark.parametrize("bad", [{"prompt": 2**70}, {"started_at": datetime(2025, 3, 10)}])
async def test_what_a_database_refuses_does_not_hold_up_the_others(store: Store, bad: dict[str, object]) -> None:
    writer = UsageWriter(store.usage)
    for made in (record("r1"), record("r2", **bad), record("r3")):  # type: ignore[arg-type]
        writer.record(made)
    assert await writer.flush()
    assert writer.dropped == 1
    assert (await store.usage.sums([]))[0].requests == 2


async def test_a_missing_table_is_not_a_fault_of_the_rows(own_store: Store) -> None:
    writer = UsageWriter(own_store.usage)
    writer.record(record("r1"))
    async with own_store.database.write() as session:
        await session.execute(text("ALTER TABLE usage RENAME TO elsewhere"))
    assert not await writer.flush()
    async with own_store.database.write() as session:
        await session.execute(text("ALTER TABLE elsewhere RENAME TO usage"))
    assert await writer.flush()
    assert (writer.dropped, writer.written) == (0, 1)


async def test_what_is_recorded_during_a_write_is_kept() -> None:
    sink = Sink()
    sink.gate.clear()
    writer = UsageWriter(sink)
    writer.record(record("r1"))
    flushing = asyncio.create_task(writer.flush())
    await asyncio.sleep(0)
    writer.record(record("r2"))
    sink.gate.set()
    assert await flushing
    assert writer.written == 1
    assert await writer.flush()
    assert list(sink.stored) == ["r1", "r2"]


async def test_a_write_that_hangs_is_given_up_and_done_again() -> None:
    sink = Sink()
    sink.gate.clear()
    writer = UsageWriter(sink, write_timeout_s=0.01)
    writer.record(record("r1"))
    assert not await writer.flush()
    sink.gate.set()
    assert await writer.flush()
    assert list(sink.stored) == ["r1"]


async def test_a_cancelled_write_is_done_again() -> None:
    sink = Sink()
    sink.gate.clear()
    writer = UsageWriter(sink)
    writer.record(record("r1"))
    flushing = asyncio.create_task(writer.flush())
    await asyncio.sleep(0)
    flushing.cancel()
    await asyncio.gather(flushing, return_exceptions=True)
    sink.gate.set()
    await writer.close()
    assert list(sink.stored) == ["r1"]


async def test_flushes_at_once_write_each_record_once() -> None:
    sink = Sink()
    writer = UsageWriter(sink, batch_size=3)
    for number in range(10):
        writer.record(record(f"r{number}"))
    assert all(await asyncio.gather(*(writer.flush() for _ in range(4))))
    assert sum(sink.batches) == 10


async def test_close_writes_what_is_left() -> None:
    sink = Sink()
    sink.failures = 2
    writer = UsageWriter(sink, interval_s=0.001)
    writer.start()
    writer.record(record("r1"))
    await writer.close()
    assert list(sink.stored) == ["r1"]


async def test_close_gives_up_loudly(caplog: pytest.LogCaptureFixture) -> None:
    sink = Sink()
    sink.failures = 10**9
    writer = UsageWriter(sink, interval_s=0.001)
    writer.start()
    writer.record(record("r1"))
    await writer.close(timeout_s=0.05)
    assert "1 records could not be written" in caplog.text


async def test_recovery_is_told_once(caplog: pytest.LogCaptureFixture) -> None:
    sink = Sink()
    sink.failures = 4
    writer = UsageWriter(sink)
    writer.record(record("r1"))
    while not await writer.flush():
        pass
    assert [r.getMessage() for r in caplog.records] == [
        "usage can't be written (OperationalError): it waits in memory",
        "usage is written again after 4 failures",
    ]
