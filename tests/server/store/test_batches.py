"""Batches over both databases: one owner at a time, results once, ends that stay ends."""

from __future__ import annotations

import asyncio
from collections import Counter
from datetime import timedelta

import pytest
from sqlalchemy import update

from server.store import Store
from server.store.batches import LeaseLost
from server.store.records import BatchStatus, LineResult, StoredBatch, utc_now
from server.store.tables import BatchRow


async def create(store: Store, account: str = "acct", file_id: str = "file-1") -> StoredBatch:
    return await store.batches.create(account, "key", "/v1/completions", file_id, {"a": "b"})


def result(line: int, *, is_error: bool = False) -> LineResult:
    return LineResult(line, is_error, f"{line}\n".encode(), input_tokens=2, output_tokens=1)


async def lapse(store: Store) -> None:
    """All leases end."""
    async with store.database.write() as session:
        await session.execute(update(BatchRow).values(lease_until=utc_now() - timedelta(seconds=1)))


async def test_one_owner_at_a_time(store: Store) -> None:
    batch = await create(store)
    claims = await asyncio.gather(*(store.batches.claim(f"gateway-{number}", 4) for number in range(6)))
    assert [claim.id for claim in claims if claim is not None] == [batch.id]
    await lapse(store)
    assert await store.batches.claim("heir", 4) is not None
    assert await store.batches.claim("late", 4) is None
    await store.batches.release(batch.id, "heir")
    assert await store.batches.claim("late", 4) is not None


async def test_who_lost_the_lease_can_write_nothing(store: Store) -> None:
    batch = await create(store)
    await store.batches.claim("old", 4)
    await store.batches.record(batch.id, "old", [result(1)])
    await lapse(store)
    await store.batches.claim("new", 4)
    for write in (
        store.batches.record(batch.id, "old", [result(2)]),
        store.batches.renew(batch.id, "old"),
        store.batches.change(batch.id, "old", total=9),
        store.batches.finish(batch.id, "old", BatchStatus.COMPLETED),
    ):
        with pytest.raises(LeaseLost):
            await write
    await store.batches.release(batch.id, "old")
    assert await store.batches.done(batch.id) == {1}
    assert (await store.batches.renew(batch.id, "new")).completed == 1


async def test_results_are_counted_and_read_in_order(store: Store) -> None:
    batch = await create(store)
    await store.batches.claim("me", 4)
    for number in range(450, 0, -50):
        await store.batches.record(
            batch.id, "me", [result(line, is_error=line % 10 == 0) for line in range(number - 49, number + 1)]
        )
    found = await store.batches.renew(batch.id, "me")
    assert (found.completed, found.failed, found.input_tokens, found.output_tokens) == (405, 45, 900, 450)
    outputs = [int(output) async for output in store.batches.outputs(batch.id, is_error=False)]
    assert outputs == [line for line in range(1, 451) if line % 10]
    assert await store.batches.done(batch.id) == set(range(1, 451))


async def test_the_end_comes_with_its_file_and_stays(store: Store) -> None:
    batch = await create(store)
    await store.batches.claim("me", 4)
    await store.batches.record(batch.id, "me", [result(1)])
    writer = await store.files.begin("acct", None)
    await writer.write(b"1\n")
    await store.batches.finish(batch.id, "me", BatchStatus.EXPIRED, output=writer, num_not_run=3)
    found = await store.batches.get("acct", batch.id)
    assert found is not None
    assert (found.status, found.failed, found.output_file_id) == (BatchStatus.EXPIRED, 3, writer.file_id)
    assert found.expired_at is not None
    assert await store.files.get("acct", writer.file_id) is not None
    assert await store.batches.done(batch.id) == set()
    assert await store.batches.claim("me", 4) is None
    with pytest.raises(LeaseLost):
        await store.batches.renew(batch.id, "me")
    cancelled = await store.batches.cancel("acct", batch.id)
    assert cancelled is not None
    assert cancelled.status is BatchStatus.EXPIRED


async def test_a_cancellation_stands_whatever_its_runner_says_next(store: Store) -> None:
    batch = await create(store)
    await store.batches.claim("me", 4)
    await store.batches.cancel("acct", batch.id)
    changed = await store.batches.change(batch.id, "me", status=BatchStatus.IN_PROGRESS.value, total=7)
    assert (changed.status, changed.total) == (BatchStatus.CANCELLING, 7)


async def test_accounts_take_turns(store: Store) -> None:
    for _ in range(5):
        await create(store, "big")
    for _ in range(2):
        await create(store, "small")
    claims = [await store.batches.claim("me", 3) for _ in range(7)]
    accounts = [claim.account_id for claim in claims if claim is not None]
    assert accounts[:4] == ["big", "small", "big", "small"]
    assert Counter(accounts) == {"big": 3, "small": 2}


async def test_another_accounts_batch_is_not_there(store: Store) -> None:
    batch = await create(store)
    assert await store.batches.get("other", batch.id) is None
    assert await store.batches.cancel("other", batch.id) is None
    assert await store.batches.list("other", limit=9) == []
    ids = [batch.id, (await create(store)).id]
    assert [found.id for found in await store.batches.list("acct", limit=9)] == ids[::-1]
    assert [found.id for found in await store.batches.list("acct", limit=9, after=ids[1])] == ids[:1]


async def test_a_file_is_kept_for_the_batch_that_reads_it(store: Store) -> None:
    writer = await store.files.begin("acct", None)
    await writer.write(b"{}")
    file = await writer.finish("a", "batch", utc_now())
    batch = await create(store, file_id=file.id)
    await store.files.sweep()
    assert await store.files.is_in_use(file.id)
    assert [chunk async for chunk in store.files.chunks(file.id)] == [b"{}"]
    await store.batches.claim("me", 4)
    await store.batches.finish(batch.id, "me", BatchStatus.FAILED)
    await store.files.sweep()
    assert [chunk async for chunk in store.files.chunks(file.id)] == []
