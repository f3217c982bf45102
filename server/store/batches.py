"""Batches: exactly one gateway runs one at a time, and what a line gave is written once.

Whoever runs a batch holds its lease and renews it. Every write of its runner is fenced by the lease: one that was
stopped for too long and comes back can't write a thing. Gateways' clocks should agree within a second or two: one that
is ahead takes a batch over too early, which costs work and nothing else.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import fields
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import and_, delete, func, or_, select, update
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import aliased

from server.store.database import Database
from server.store.errors import StoreError
from server.store.files import FileWriter, timed_id
from server.store.records import BatchStatus, LineResult, StoredBatch, utc_now
from server.store.tables import BatchResultRow, BatchRow

LEASE = timedelta(seconds=10)
WINDOW = timedelta(hours=24)
_PAGE = 200  # results read at once
_OVER = [status.value for status in BatchStatus if status.is_over]


class LeaseLost(StoreError):
    """Another gateway runs the batch by now, or nobody may."""


class Batches:
    def __init__(self, database: Database) -> None:
        self._database = database

    # --- as its account sees them

    async def create(
        self,
        account_id: str,
        key_id: str,
        endpoint: str,
        input_file_id: str,
        labels: Mapping[str, str] | None = None,
        output_seconds: int | None = None,
    ) -> StoredBatch:
        now = utc_now()
        counts = ("total", "completed", "failed", "input_tokens", "cached_tokens", "output_tokens", "reasoning_tokens")
        row = BatchRow(
            id=timed_id("batch_"),
            account_id=account_id,
            key_id=key_id,
            endpoint=endpoint,
            input_file_id=input_file_id,
            status=BatchStatus.VALIDATING.value,
            labels=None if labels is None else dict(labels),
            output_seconds=output_seconds,
            created_at=now,
            expires_at=now + WINDOW,
            **dict.fromkeys(counts, 0),
        )
        async with self._database.write() as session:
            session.add(row)
        return _batch_of(row)

    async def get(self, account_id: str, batch_id: str) -> StoredBatch | None:
        query = select(BatchRow).where(BatchRow.account_id == account_id, BatchRow.id == batch_id)
        async with self._database.read() as session:
            row = await session.scalar(query)
        return None if row is None else _batch_of(row)

    async def list(self, account_id: str, *, limit: int, after: str | None = None) -> list[StoredBatch]:
        """The newest first."""
        query = select(BatchRow).where(BatchRow.account_id == account_id).order_by(BatchRow.id.desc()).limit(limit)
        if after is not None:
            query = query.where(BatchRow.id < after)
        async with self._database.read() as session:
            return [_batch_of(row) for row in await session.scalars(query)]

    async def cancel(self, account_id: str, batch_id: str) -> StoredBatch | None:
        """Begin to cancel it, if it can still be cancelled: the answer's status says. None: there is no such batch."""
        may_be = [BatchStatus.VALIDATING.value, BatchStatus.IN_PROGRESS.value]
        query = update(BatchRow).where(
            BatchRow.account_id == account_id, BatchRow.id == batch_id, BatchRow.status.in_(may_be)
        )
        async with self._database.write() as session:
            await session.execute(query.values(status=BatchStatus.CANCELLING.value, cancelling_at=utc_now()))
        return await self.get(account_id, batch_id)

    # --- as their runners see them

    async def claim(self, owner: str, most_of_account: int) -> StoredBatch | None:
        """One that nobody runs: of the account with the fewest that run, the oldest. From now on it is ours."""
        now = utc_now()
        async with self._database.write() as session:
            await self._database.exclusive(session, _CLAIM_LOCK)
            row = await session.scalar(_claimable(now, most_of_account))
            if row is None:
                return None
            row.owner, row.lease_until = owner, now + LEASE
            return _batch_of(row)

    async def renew(self, batch_id: str, owner: str) -> StoredBatch:
        """How it stands now. Raises LeaseLost."""
        async with self._database.write() as session:
            return _batch_of(await _owned(session, batch_id, owner))

    async def release(self, batch_id: str, owner: str) -> None:
        """Another gateway may go on at once."""
        query = update(BatchRow).where(BatchRow.id == batch_id, BatchRow.owner == owner)
        async with self._database.write() as session:
            await session.execute(query.values(owner=None, lease_until=None))

    async def change(self, batch_id: str, owner: str, **values: Any) -> StoredBatch:
        """Set columns; a cancellation that came meanwhile stands. Raises LeaseLost."""
        async with self._database.write() as session:
            row = await _owned(session, batch_id, owner)
            if row.cancelling_at is not None and "status" in values:
                values = values | {"status": BatchStatus.CANCELLING.value}
            for name, value in values.items():
                setattr(row, name, value)
            return _batch_of(row)

    async def record(self, batch_id: str, owner: str, results: Sequence[LineResult]) -> None:
        """Results and counts in one transaction. Raises LeaseLost, and then nothing was written."""
        async with self._database.write() as session:
            row = await _owned(session, batch_id, owner)
            for result in results:
                session.add(
                    BatchResultRow(batch_id=batch_id, line=result.line, is_error=result.is_error, output=result.output)
                )
                row.failed += result.is_error
                row.completed += not result.is_error
                row.input_tokens += result.input_tokens
                row.cached_tokens += result.cached_tokens
                row.output_tokens += result.output_tokens
                row.reasoning_tokens += result.reasoning_tokens

    async def done(self, batch_id: str) -> set[int]:
        """The lines that have run."""
        query = select(BatchResultRow.line).where(BatchResultRow.batch_id == batch_id)
        async with self._database.read() as session:
            return set(await session.scalars(query))

    async def outputs(self, batch_id: str, *, is_error: bool) -> AsyncIterator[bytes]:
        """In the order of the lines."""
        last = -1
        while True:
            query = select(BatchResultRow.line, BatchResultRow.output).where(
                BatchResultRow.batch_id == batch_id, BatchResultRow.is_error == is_error, BatchResultRow.line > last
            )
            async with self._database.read() as session:
                rows = (await session.execute(query.order_by(BatchResultRow.line).limit(_PAGE))).all()
            for row in rows:
                yield row.output
            if len(rows) < _PAGE:
                return
            last = rows[-1].line

    async def finish(
        self,
        batch_id: str,
        owner: str,
        status: BatchStatus,
        *,
        output: FileWriter | None = None,
        errors: FileWriter | None = None,
        num_not_run: int = 0,
    ) -> None:
        """The end, and the files, in one transaction. Raises LeaseLost."""
        now = utc_now()
        async with self._database.write() as session:
            row = await _owned(session, batch_id, owner)
            kept_until = now + timedelta(seconds=row.output_seconds or _DEFAULT_OUTPUT_SECONDS)
            if output is not None:
                file = await output.finish_in(session, f"{batch_id}_output.jsonl", "batch_output", kept_until)
                row.output_file_id = file.id
            if errors is not None:
                file = await errors.finish_in(session, f"{batch_id}_error.jsonl", "batch_output", kept_until)
                row.error_file_id = file.id
            row.failed += num_not_run
            row.status, row.owner, row.lease_until = status.value, None, None
            setattr(row, f"{status.value}_at", now)
            await session.execute(delete(BatchResultRow).where(BatchResultRow.batch_id == batch_id))


_CLAIM_LOCK = 7_368_002  # an arbitrary number that only claims use
_DEFAULT_OUTPUT_SECONDS = 30 * 86_400


def _claimable(now: datetime, most_of_account: int) -> Any:
    other = aliased(BatchRow)
    running = (
        select(func.count())
        .where(other.account_id == BatchRow.account_id, other.lease_until > now, other.status.not_in(_OVER))
        .correlate(BatchRow)
        .scalar_subquery()
    )
    free = or_(BatchRow.lease_until.is_(None), BatchRow.lease_until <= now)
    query = select(BatchRow).where(and_(BatchRow.status.not_in(_OVER), free), running < most_of_account)
    return query.order_by(running, BatchRow.id).limit(1)


async def _owned(session: AsyncSession, batch_id: str, owner: str) -> BatchRow:
    row = await session.get(BatchRow, batch_id, with_for_update=True)
    if row is None or row.owner != owner or row.status in _OVER:
        raise LeaseLost(f"{batch_id} is not ours any more")
    row.lease_until = utc_now() + LEASE
    return row


_FIELDS = [f.name for f in fields(StoredBatch)]


def _batch_of(row: BatchRow) -> StoredBatch:
    values = {name: getattr(row, name) for name in _FIELDS}
    return StoredBatch(**values | {"status": BatchStatus(row.status)})
