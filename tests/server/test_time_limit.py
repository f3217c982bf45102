from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest

from server.time_limit import TimeLimit


@pytest.fixture
async def limit() -> AsyncIterator[TimeLimit]:
    limit = TimeLimit()
    yield limit
    limit.close()


async def test_a_wait_that_takes_too_long_ends_in_a_timeout(limit: TimeLimit) -> None:
    with pytest.raises(TimeoutError), limit(0.01):
        await asyncio.Event().wait()
    assert asyncio.current_task().cancelling() == 0


async def test_one_that_ends_in_time_leaves_nothing_for_the_next(limit: TimeLimit) -> None:
    with limit(0.01):
        await asyncio.sleep(0)
    await asyncio.sleep(0.03)  # the timer of that wait has rung meanwhile
    with limit(10):
        await asyncio.sleep(0.03)


async def test_a_wait_has_all_its_time_under_the_timer_of_an_earlier_one(limit: TimeLimit) -> None:
    loop = asyncio.get_running_loop()
    with limit(0.02):
        await asyncio.sleep(0.01)
    began = loop.time()
    with pytest.raises(TimeoutError), limit(0.05):
        await asyncio.Event().wait()
    assert loop.time() - began >= 0.045


async def test_a_shorter_wait_does_not_have_the_time_of_a_longer_one(limit: TimeLimit) -> None:
    with limit(60):
        await asyncio.sleep(0)
    with pytest.raises(TimeoutError), limit(0.01):
        await asyncio.Event().wait()


async def test_many_waits_make_one_timer(limit: TimeLimit, monkeypatch: pytest.MonkeyPatch) -> None:
    loop, made = asyncio.get_running_loop(), []
    call_at = loop.call_at
    monkeypatch.setattr(loop, "call_at", lambda *args: made.append(args) or call_at(*args))
    for _ in range(1000):
        with limit(60):
            pass
    assert len(made) == 1


async def test_what_has_no_time_left_ends_at_its_first_wait(limit: TimeLimit) -> None:
    with pytest.raises(TimeoutError), limit(-1):
        await asyncio.Event().wait()


async def test_no_limit_at_all(limit: TimeLimit) -> None:
    with limit(float("inf")):
        await asyncio.sleep(0.01)


async def test_a_cancellation_from_elsewhere_is_none_of_its_own(limit: TimeLimit) -> None:
    async def wait() -> None:
        with limit(60):
            await asyncio.Event().wait()

    task = asyncio.create_task(wait())
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


async def test_a_cancellation_that_comes_with_its_end_wins(limit: TimeLimit) -> None:
    async def wait() -> None:
        with limit(0):
            await asyncio.Event().wait()

    task = asyncio.create_task(wait())
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


async def test_what_fails_inside_fails_outside(limit: TimeLimit) -> None:
    with pytest.raises(KeyError), limit(1):
        raise KeyError


async def test_closed_it_holds_nobody(limit: TimeLimit) -> None:
    with limit(60):
        await asyncio.sleep(0)
    limit.close()
    assert limit._timer is None
    assert limit._task is None
