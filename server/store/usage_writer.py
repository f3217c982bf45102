"""Takes usage off the hot path: `record` puts it in memory, a task writes it in batches."""

import asyncio
import logging
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from itertools import islice
from typing import Protocol

from sqlalchemy.exc import DataError, IntegrityError, StatementError

from server.store.records import UsageRecord

log = logging.getLogger(__name__)


class UsageSink(Protocol):
    async def add(self, records: Sequence[UsageRecord]) -> None:
        """Write all or none; request ids that are stored already are left alone."""
        ...


class UsageWriter:
    """Every record is written once, unless the process is killed (up to `interval_s` seconds are lost) or the
    database is away for so long that `capacity` records wait: then new ones are dropped, counted and logged.

    All methods belong to one event loop.
    """

    def __init__(
        self,
        sink: UsageSink,
        *,
        interval_s: float = 0.5,
        batch_size: int = 500,
        capacity: int = 50_000,
        max_backoff_s: float = 10.0,
        write_timeout_s: float = 30.0,
        on_drop: Callable[[], None] = lambda: None,
    ) -> None:
        self.dropped = 0  # records lost so far: no room, or refused by the database for what they hold
        self.written = 0
        self._sink = sink
        self._on_drop = on_drop
        self._interval_s = interval_s
        self._batch_size = batch_size
        self._capacity = capacity
        self._max_backoff_s = max_backoff_s
        self._write_timeout_s = write_timeout_s
        self._failures = 0  # in a row
        self._pending: deque[UsageRecord] = deque()
        self._full_batch = asyncio.Event()
        self._writing = asyncio.Lock()
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        self._task = asyncio.create_task(self._run(), name="usage-writer")

    def record(self, record: UsageRecord) -> None:
        """Never waits, never raises."""
        if len(self._pending) >= self._capacity:
            self._drop("no room: the database has been away for too long")
            return
        self._pending.append(record)
        if len(self._pending) >= self._batch_size:
            self._full_batch.set()

    async def flush(self) -> bool:
        """Try once to write all that was recorded before the call. False if some of it still waits."""
        async with self._writing:
            remaining = len(self._pending)
            while remaining > 0:
                size = min(self._batch_size, remaining)
                if not await self._write(list(islice(self._pending, size))):
                    return False
                remaining -= size
        return True

    async def close(self, timeout_s: float = 10.0) -> None:
        """Stop the task and write what is left, for at most `timeout_s`; what can't be written is logged."""
        if self._task is not None:
            self._task.cancel()
            with suppress(asyncio.CancelledError):
                await self._task
        with suppress(TimeoutError):
            async with asyncio.timeout(timeout_s):
                while not await self.flush():  # noqa: ASYNC110 (no event tells that a database is back)
                    await asyncio.sleep(self._pause_s())
        if self._pending:
            log.error("usage lost at the end: %d records could not be written", len(self._pending))

    async def _run(self) -> None:
        while True:
            await self._wait()
            await self.flush()

    async def _wait(self) -> None:
        """Until a batch is full or the interval is over; after a failure, for the whole pause."""
        self._full_batch.clear()
        if len(self._pending) >= self._batch_size and not self._failures:
            return
        if self._failures:
            await asyncio.sleep(self._pause_s())
            return
        with suppress(TimeoutError):
            await asyncio.wait_for(self._full_batch.wait(), self._interval_s)

    def _pause_s(self) -> float:
        return min(self._max_backoff_s, self._interval_s * float(2 ** min(self._failures, 16)))

    async def _write(self, batch: list[UsageRecord]) -> bool:
        """Write the head of the queue. It leaves the queue only once it is stored or known to be unstorable."""
        try:
            async with asyncio.timeout(self._write_timeout_s):
                await self._sink.add(batch)
        except Exception as error:
            if not _is_fault_of_a_row(error):
                self._note_failure(error)
                return False
            if len(batch) > 1:
                return await self._write_one_by_one(batch)
            self._drop(f"refused by the database: {type(error).__name__}")
        else:
            self.written += len(batch)
        for _ in batch:
            self._pending.popleft()
        self._note_success()
        return True

    async def _write_one_by_one(self, batch: list[UsageRecord]) -> bool:
        """One bad record must not hold up the others."""
        for record in batch:
            if not await self._write([record]):
                return False
        return True

    def _note_failure(self, error: BaseException) -> None:
        self._failures += 1
        if self._failures == 1:
            log.warning("usage can't be written (%s): it waits in memory", type(error).__name__)

    def _note_success(self) -> None:
        if self._failures:
            log.warning("usage is written again after %d failures", self._failures)
        self._failures = 0

    def _drop(self, reason: str) -> None:
        self.dropped += 1
        self._on_drop()
        if self.dropped & (self.dropped - 1) == 0:  # the 1st, 2nd, 4th, 8th...: loud, but never a flood
            log.error("usage record dropped, %s (%d so far)", reason, self.dropped)


def _is_fault_of_a_row(error: Exception) -> bool:
    """Whether the same rows will be refused again. Else the database's state is at fault, which passes."""
    faults = (DataError, IntegrityError, ValueError, TypeError, OverflowError)
    return isinstance(error, faults) or type(error) is StatementError
