"""Files in chunks of rows: any gateway can read what another one has written, on SQLite and PostgreSQL alike."""

from __future__ import annotations

import hashlib
import secrets
import time
from collections.abc import AsyncIterator
from datetime import datetime, timedelta
from enum import StrEnum

from sqlalchemy import ColumnElement, Exists, and_, delete, exists, func, literal, or_, select, update
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import InstrumentedAttribute

from server.store.database import Database
from server.store.errors import StoreError
from server.store.records import BatchStatus, StoredFile, utc_now
from server.store.tables import BatchRow, FileChunkRow, FileRow

CHUNK_BYTES = 2**20
ABANDONED = timedelta(minutes=10)  # an upload that nothing was added to for so long has lost its gateway
_DELETED_AT_ONCE = 16  # chunks: a large file must not hold SQLite's one write lock for long


class AccountFull(StoreError):
    """The account's files would have more bytes than it may keep."""


class _State(StrEnum):
    UPLOADING = "uploading"  # nobody sees it yet
    PROCESSED = "processed"
    DELETED = "deleted"  # nobody sees it any more; its chunks are on their way out


class Files:
    def __init__(self, database: Database) -> None:
        self._database = database

    async def begin(self, account_id: str, most: int | None) -> FileWriter:
        """A new file that nobody sees before it is finished. `most` bytes may all files of the account have, None: any
        number."""
        now = utc_now()
        row = FileRow(
            id=timed_id("file-"),
            account_id=account_id,
            state=_State.UPLOADING.value,
            filename="",
            purpose="",
            num_bytes=0,
            num_chunks=0,
            created_at=now,
            touched_at=now,
            expires_at=None,
        )
        async with self._database.write() as session:
            session.add(row)
        return FileWriter(self._database, row.id, account_id, most)

    async def get(self, account_id: str, file_id: str) -> StoredFile | None:
        async with self._database.read() as session:
            row = await session.scalar(select(FileRow).where(*_visible(account_id), FileRow.id == file_id))
        return None if row is None else _file_of(row)

    async def list(
        self, account_id: str, *, limit: int, after: str | None = None, purpose: str | None = None, oldest_first: bool
    ) -> list[StoredFile]:
        """By time, which ids tell: so `after` may name a file that has been deleted since."""
        query = select(FileRow).where(*_visible(account_id)).limit(limit)
        if purpose is not None:
            query = query.where(FileRow.purpose == purpose)
        if after is not None:
            query = query.where(FileRow.id > after if oldest_first else FileRow.id < after)
        async with self._database.read() as session:
            rows = await session.scalars(query.order_by(FileRow.id if oldest_first else FileRow.id.desc()))
            return [_file_of(row) for row in rows]

    async def chunks(self, file_id: str) -> AsyncIterator[bytes]:
        """The content, a chunk a question: whoever reads slowly holds nothing. Raises StoreError when it is deleted
        meanwhile."""
        async with self._database.read() as session:
            count = await session.scalar(select(FileRow.num_chunks).where(FileRow.id == file_id))
        for number in range(count or 0):
            async with self._database.read() as session:
                chunk = await session.get(FileChunkRow, (file_id, number))
            if chunk is None:
                raise StoreError(f"{file_id} was deleted while it was read")
            yield chunk.data

    async def is_in_use(self, file_id: str) -> bool:
        """Whether a batch that is not over reads it."""
        async with self._database.read() as session:
            return bool(await session.scalar(select(_in_use(literal(file_id)))))

    async def delete(self, account_id: str, file_id: str) -> bool:
        """Whether there was such a file. Its space is free when this returns."""
        query = update(FileRow).where(*_visible(account_id), FileRow.id == file_id)
        async with self._database.write() as session:
            found = await session.execute(query.values(state=_State.DELETED.value).returning(FileRow.id))
            is_deleted = found.first() is not None
        if is_deleted:
            await self._purge(file_id)
        return is_deleted

    async def sweep(self) -> None:
        """Delete what has expired, what its gateway left unfinished, and what a deletion that was cut short left."""
        now = utc_now()
        expired = and_(FileRow.state == _State.PROCESSED.value, FileRow.expires_at <= now, ~_in_use(FileRow.id))
        abandoned = and_(FileRow.state == _State.UPLOADING.value, FileRow.touched_at < now - ABANDONED)
        async with self._database.write() as session:
            await session.execute(update(FileRow).where(or_(expired, abandoned)).values(state=_State.DELETED.value))
            gone = list(await session.scalars(select(FileRow.id).where(FileRow.state == _State.DELETED.value)))
        for file_id in gone:
            await self._purge(file_id)

    async def _purge(self, file_id: str) -> None:
        async with self._database.read() as session:
            last = await session.scalar(select(func.max(FileChunkRow.number)).where(FileChunkRow.file_id == file_id))
        for end in range(_DELETED_AT_ONCE, (-1 if last is None else last) + _DELETED_AT_ONCE + 1, _DELETED_AT_ONCE):
            async with self._database.write() as session:
                await session.execute(
                    delete(FileChunkRow).where(FileChunkRow.file_id == file_id, FileChunkRow.number < end)
                )
        async with self._database.write() as session:
            await session.execute(delete(FileRow).where(FileRow.id == file_id))


class FileWriter:
    """One file on its way in, from one task."""

    def __init__(self, database: Database, file_id: str, account_id: str, most: int | None) -> None:
        self.file_id = file_id
        self.num_bytes = 0
        self._database = database
        self._account_id = account_id
        self._most = most
        self._buffer = bytearray()
        self._num_chunks = 0

    async def write(self, data: bytes) -> None:
        """Raises AccountFull."""
        self.num_bytes += len(data)
        self._buffer += data
        while len(self._buffer) >= CHUNK_BYTES:
            chunk = bytes(self._buffer[:CHUNK_BYTES])
            del self._buffer[:CHUNK_BYTES]
            async with self._database.write() as session:
                await self._store(session, chunk)

    async def finish(self, filename: str, purpose: str, expires_at: datetime | None) -> StoredFile:
        """From now on the account sees it. Raises AccountFull."""
        async with self._database.write() as session:
            return await self.finish_in(session, filename, purpose, expires_at)

    async def finish_in(
        self, session: AsyncSession, filename: str, purpose: str, expires_at: datetime | None
    ) -> StoredFile:
        """The same as a part of the caller's transaction."""
        if self._buffer:
            await self._store(session, bytes(self._buffer))
        row = await self._row(session)
        row.state, row.filename, row.purpose = _State.PROCESSED.value, filename, purpose
        row.expires_at = expires_at
        await session.flush()
        return _file_of(row)

    async def discard(self) -> None:
        """Nothing of it is left, at the latest after the next sweep."""
        query = update(FileRow).where(FileRow.id == self.file_id, FileRow.state == _State.UPLOADING.value)
        async with self._database.write() as session:
            await session.execute(query.values(state=_State.DELETED.value))
        await Files(self._database)._purge(self.file_id)

    async def _store(self, session: AsyncSession, chunk: bytes) -> None:
        await self._check_room(session, len(chunk))
        row = await self._row(session)
        session.add(FileChunkRow(file_id=self.file_id, number=self._num_chunks, data=chunk))
        self._num_chunks += 1
        row.num_bytes += len(chunk)
        row.num_chunks, row.touched_at = self._num_chunks, utc_now()

    async def _row(self, session: AsyncSession) -> FileRow:
        row = await session.get(FileRow, self.file_id, with_for_update=True)
        if row is None or row.state != _State.UPLOADING:
            raise StoreError(f"{self.file_id} was given up: nothing was written to it for too long")
        return row

    async def _check_room(self, session: AsyncSession, size: int) -> None:
        """One upload of an account at a time gets here, over all gateways: the bound is exact."""
        if self._most is None:
            return
        await self._database.exclusive(session, _lock_of(self._account_id))
        kept = FileRow.account_id == self._account_id, FileRow.state != _State.DELETED.value
        used = await session.scalar(select(func.coalesce(func.sum(FileRow.num_bytes), 0)).where(*kept))
        if int(used or 0) + size > self._most:
            raise AccountFull(f"{self._account_id} may keep {self._most} bytes")


def timed_id(prefix: str) -> str:
    """Ids sort by time, to the microsecond, and can't be guessed."""
    return f"{prefix}{time.time_ns() // 1000:014x}{secrets.token_hex(12)}"


def _visible(account_id: str) -> tuple[ColumnElement[bool], ...]:
    unexpired = or_(FileRow.expires_at.is_(None), FileRow.expires_at > utc_now())
    return FileRow.account_id == account_id, FileRow.state == _State.PROCESSED.value, unexpired


def _in_use(file_id: ColumnElement[str] | InstrumentedAttribute[str]) -> Exists:
    over = [status.value for status in BatchStatus if status.is_over]
    return exists().where(BatchRow.input_file_id == file_id, BatchRow.status.not_in(over))


def _lock_of(account_id: str) -> int:
    return int.from_bytes(hashlib.blake2b(account_id.encode(), digest_size=8).digest(), signed=True)


def _file_of(row: FileRow) -> StoredFile:
    return StoredFile(
        id=row.id,
        account_id=row.account_id,
        filename=row.filename,
        purpose=row.purpose,
        num_bytes=row.num_bytes,
        created_at=row.created_at,
        expires_at=row.expires_at,
    )
