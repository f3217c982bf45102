"""Files over both databases: whole again, seen when finished, bounded, and gone when deleted."""

from __future__ import annotations

import asyncio
from datetime import timedelta

import pytest
from sqlalchemy import func, select, update

from server.store import Store
from server.store.errors import StoreError
from server.store.files import ABANDONED, CHUNK_BYTES, AccountFull
from server.store.records import StoredFile, utc_now
from server.store.tables import FileChunkRow, FileRow


async def put(
    store: Store, content: bytes, account: str = "acct", most: int | None = None, **fields: str
) -> StoredFile:
    writer = await store.files.begin(account, most)
    await writer.write(content)
    return await writer.finish(fields.get("filename", "a.jsonl"), fields.get("purpose", "batch"), None)


async def content(store: Store, file_id: str) -> bytes:
    return b"".join([chunk async for chunk in store.files.chunks(file_id)])


async def num_chunks(store: Store) -> int:
    async with store.database.read() as session:
        return await session.scalar(select(func.count()).select_from(FileChunkRow)) or 0


@pytest.mark.parametrize("size", [0, 1, CHUNK_BYTES, 2 * CHUNK_BYTES + 7])
async def test_what_is_written_is_read(store: Store, size: int) -> None:
    data = bytes(range(256)) * (size // 256 + 1)
    file = await put(store, data[:size])
    assert file.num_bytes == size
    assert await store.files.get("acct", file.id) == file
    assert await content(store, file.id) == data[:size]


async def test_nobody_sees_a_file_before_it_is_finished(store: Store) -> None:
    writer = await store.files.begin("acct", None)
    await writer.write(b"x" * (CHUNK_BYTES + 1))
    assert await store.files.get("acct", writer.file_id) is None
    assert await store.files.list("acct", limit=10, oldest_first=True) == []
    await writer.discard()
    assert await num_chunks(store) == 0


async def test_another_account_sees_nothing(store: Store) -> None:
    file = await put(store, b"secret")
    assert await store.files.get("other", file.id) is None
    assert await store.files.list("other", limit=10, oldest_first=True) == []
    assert not await store.files.delete("other", file.id)
    assert await content(store, file.id) == b"secret"


async def test_a_list_goes_on_behind_a_file_that_is_gone(store: Store) -> None:
    files = [await put(store, b"", purpose=purpose) for purpose in ("batch", "user_data", "batch")]
    ids = [file.id for file in files]
    listed = await store.files.list("acct", limit=2, oldest_first=True)
    assert [file.id for file in listed] == ids[:2]
    await store.files.delete("acct", ids[1])
    rest = await store.files.list("acct", limit=2, after=ids[1], oldest_first=True)
    assert [file.id for file in rest] == ids[2:]
    newest = await store.files.list("acct", limit=9, oldest_first=False, purpose="batch")
    assert [file.id for file in newest] == [ids[2], ids[0]]


async def test_a_deleted_file_leaves_nothing(store: Store) -> None:
    file = await put(store, b"x" * (33 * CHUNK_BYTES + 1))
    assert await num_chunks(store) == 34
    assert await store.files.delete("acct", file.id)
    assert await num_chunks(store) == 0
    assert not await store.files.delete("acct", file.id)


async def test_a_reader_is_told_that_its_file_was_deleted(store: Store) -> None:
    file = await put(store, b"y" * (2 * CHUNK_BYTES))
    reading = store.files.chunks(file.id)
    assert await anext(reading) == b"y" * CHUNK_BYTES
    await store.files.delete("acct", file.id)
    with pytest.raises(StoreError):
        await anext(reading)


async def test_an_account_keeps_no_more_than_it_may(store: Store) -> None:
    await put(store, b"x" * 60, most=100)
    await put(store, b"x" * 60, account="other", most=100)
    with pytest.raises(AccountFull):
        await put(store, b"x" * 41, most=100)
    await put(store, b"x" * 40, most=100)


async def test_uploads_at_once_keep_to_the_bound_together(store: Store) -> None:
    """As gateways send them: each with a connection of its own."""
    results = await asyncio.gather(
        *(put(store, b"x" * CHUNK_BYTES, most=3 * CHUNK_BYTES) for _ in range(6)), return_exceptions=True
    )
    assert sum(isinstance(result, StoredFile) for result in results) == 3
    assert sum(isinstance(result, AccountFull) for result in results) == 3


async def test_what_a_deleted_file_took_can_be_used_again(store: Store) -> None:
    file = await put(store, b"x" * 100, most=100)
    await store.files.delete("acct", file.id)
    await put(store, b"x" * 100, most=100)


async def test_the_sweep_takes_what_expired_and_what_was_abandoned(store: Store) -> None:
    kept, expired = await put(store, b"kept"), await put(store, b"expired")
    abandoned = await store.files.begin("acct", None)
    await abandoned.write(b"x" * CHUNK_BYTES)
    under_way = await store.files.begin("acct", None)
    await under_way.write(b"x" * CHUNK_BYTES)
    long_ago = utc_now() - ABANDONED - timedelta(seconds=1)
    async with store.database.write() as session:
        await session.execute(update(FileRow).where(FileRow.id == expired.id).values(expires_at=utc_now()))
        await session.execute(update(FileRow).where(FileRow.id == abandoned.file_id).values(touched_at=long_ago))
    assert await store.files.get("acct", expired.id) is None
    await store.files.sweep()
    assert await num_chunks(store) == 2
    assert await content(store, kept.id) == b"kept"
    assert (await under_way.finish("b", "batch", None)).num_bytes == CHUNK_BYTES
    with pytest.raises(StoreError):
        await abandoned.finish("a", "batch", None)
