"""Requests that share an answer: what each of them gets, what it is charged, and that nothing is left of any."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engines.types import ErrorCode, RequestError
from quota.levels import Dimension
from server.cache.answering import CachedGeneration
from server.cache.wish import HEADER, Result, Wish
from server.errors import APIError, DeadlineExceeded, Overloaded, RateLimited, ServerError
from server.generation import Generation
from server.settings_sections import TimeoutSettings
from tests.server.cache.conftest import house_with_cache
from tests.server.house import ANSWER, LOST, NUM_TOKENS, PLAN, PRINCIPAL, PROMPT, House, PaperWorker, read, read_whole

GREEDY = {"temperature": 0.0}
COST = len(PROMPT) + NUM_TOKENS


def asked(house: House, **options: Any) -> Generation:
    return house.generation(**{"sampling": GREEDY, **options})


async def told(generation: Generation) -> tuple[str, Any]:
    """The text, and what the header says."""
    text = await read(generation)
    return text, generation.headers.get(HEADER)


def results(house: House) -> list[Any]:
    return [record.cache for record in house.records]


# --- hits


@pytest.mark.parametrize("sampling", [GREEDY, {"seed": 7}])
@pytest.mark.parametrize("again", [read, read_whole])
async def test_what_was_computed_is_replayed(
    house: House, sampling: dict[str, Any], again: Callable[[Generation], Coroutine[Any, Any, str]]
) -> None:
    first, second = house.generation(sampling=sampling), house.generation(sampling=sampling, streamed=False)
    assert await told(first) == (ANSWER, Result.MISS)
    assert await again(second) == ANSWER
    assert second.headers[HEADER] == Result.HIT
    assert len(house.worker.requests) == 1
    assert (first.usage.cached_tokens, second.usage.cached_tokens) == (0, len(PROMPT))
    assert second.usage.completion_tokens == first.usage.completion_tokens == NUM_TOKENS
    assert results(house) == [Result.MISS, Result.HIT]
    assert [record.outcome for record in house.records] == ["length", "length"]
    assert await house.used(Dimension.TOKENS_PER_DAY) == COST
    assert await house.used(Dimension.REQUESTS_PER_DAY) == 2
    await house.check_nothing_left()


async def test_a_sampled_answer_is_computed_for_each(house: House) -> None:
    for _ in range(2):
        assert await told(house.generation()) == (ANSWER, Result.MISS)
    assert len(house.worker.requests) == 2
    await house.check_nothing_left()


async def test_who_asks_gets_a_sampled_one(house: House) -> None:
    for expected in (Result.MISS, Result.HIT):
        assert await told(house.generation(cache=Wish.USE)) == (ANSWER, expected)
    assert await told(house.generation()) == (ANSWER, Result.MISS), "who did not ask"
    await house.check_nothing_left()


async def test_who_wants_none_gets_none(house: House) -> None:
    wishes = [Wish.NO_STORE, None, Wish.NO_STORE, Wish.REFRESH, None]
    expected = [Result.MISS, Result.MISS, Result.MISS, Result.MISS, Result.HIT]
    assert [(await told(asked(house, cache=wish)))[1] for wish in wishes] == expected
    await house.check_nothing_left()


async def test_a_refreshed_answer_takes_the_place_of_the_old_one(house: House) -> None:
    await read(asked(house))
    house.worker.answer = list(b"anew!!")
    assert await told(asked(house)) == (ANSWER, Result.HIT)
    assert await told(asked(house, cache=Wish.REFRESH)) == ("anew!!", Result.MISS)
    assert await told(asked(house)) == ("anew!!", Result.HIT)


async def test_accounts_never_share(house: House) -> None:
    other = replace(PRINCIPAL, account_id="other")
    assert [(await told(asked(house, principal=who)))[1] for who in (PRINCIPAL, other)] == [Result.MISS] * 2
    both = await asyncio.gather(*(told(asked(house, stop="x", principal=who)) for who in (PRINCIPAL, other)))
    assert [result for _, result in both] == [Result.MISS] * 2


async def test_keys_of_an_account_share(house: House) -> None:
    await read(asked(house))
    assert (await told(asked(house, principal=replace(PRINCIPAL, key_id="other"))))[1] == Result.HIT


async def test_several_choices_are_replayed_in_their_places(house: House) -> None:
    for _ in range(2):
        async with asked(house, num_prompts=3) as generation:
            assert [answer.text for answer in await generation.collect()] == [ANSWER] * 3
    assert len(house.worker.requests) == 3
    await house.check_nothing_left()


@pytest.mark.parametrize("error", [LOST, RequestError(ErrorCode.OVERLOADED, "full")])
async def test_no_failure_is_recorded(house: House, error: RequestError) -> None:
    house.worker.refuses = error
    with pytest.raises(APIError):
        await read(asked(house))
    house.worker.refuses = None
    assert await told(asked(house)) == (ANSWER, Result.MISS)
    await house.check_nothing_left()


async def test_no_half_answer_is_recorded(house: House) -> None:
    async with asked(house) as generation:
        await generation.next()
    assert await told(asked(house)) == (ANSWER, Result.MISS)
    await house.check_nothing_left()


async def test_an_answer_that_is_too_long_is_not_recorded() -> None:
    house = house_with_cache(max_entry_bytes=64)
    for _ in range(2):
        assert await told(asked(house)) == (ANSWER, Result.MISS)
    await house.check_nothing_left()


async def test_a_hit_passes_the_limits_of_requests() -> None:
    house = house_with_cache(plan={"account": {"requests_per_day": 2, "tokens_per_day": COST}})
    assert [(await told(asked(house)))[1] for _ in range(2)] == [Result.MISS, Result.HIT], (
        "no token is left, none needed"
    )
    with pytest.raises(RateLimited):
        await read(asked(house))
    await house.check_nothing_left()


async def test_a_hit_counts_among_the_running() -> None:
    house = house_with_cache(plan={"account": {"concurrent": 1}})
    await read(asked(house))
    async with asked(house) as hit:
        with pytest.raises(RateLimited):
            await read(asked(house))
        await hit.next()  # all of it: it is settled with that
        assert (await told(asked(house)))[1] == Result.HIT
    await house.check_nothing_left()


async def test_a_hit_that_is_not_read_costs_nothing(house: House) -> None:
    await read(asked(house))
    async with asked(house):
        pass
    assert await house.used(Dimension.REQUESTS_PER_DAY) == 1
    assert house.records[-1].outcome == "abort"
    await house.check_nothing_left()


# --- shared ones


async def test_identical_requests_share_one_computation(house: House) -> None:
    seen = await asyncio.gather(*(told(asked(house)) for _ in range(5)))
    assert sorted(seen) == sorted([(ANSWER, Result.MISS), *[(ANSWER, Result.SHARED)] * 4])
    assert len(house.worker.requests) == 1
    assert await house.used(Dimension.TOKENS_PER_DAY) == COST
    assert await house.used(Dimension.REQUESTS_PER_DAY) == 5
    await house.check_nothing_left()


async def test_who_comes_late_gets_what_was_there_at_once(house: House) -> None:
    house.worker.hangs_at = 3
    async with asked(house) as first:
        begun = "".join([piece.text for _ in range(3) for piece in await first.next()])
        assert len(begun) == 3
        async with asked(house) as late:
            assert [piece.text for piece in await late.next()] == [begun]
            assert await late.next(patience=0.01) == []
            assert late.usage.completion_tokens == 3
    await house.check_nothing_left()


async def test_a_computation_outlives_its_client(house: House) -> None:
    async with asked(house) as first:
        await first.next()
        follower = asked(house)
        await follower.__aenter__()
    assert isinstance(follower, CachedGeneration)
    answers = await follower.collect()
    await follower.__aexit__(None, None, None)
    assert [answer.text for answer in answers] == [ANSWER]
    assert not house.worker.aborted
    assert [(record.cache, record.outcome) for record in house.records] == [("miss", "length"), ("shared", "length")]
    await house.check_nothing_left()


async def test_the_last_one_to_leave_ends_it(house: House) -> None:
    house.worker.hangs_at = 3
    first, second = asked(house), asked(house)
    await first.__aenter__()
    await first.next()
    await second.__aenter__()
    await first.__aexit__(None, None, None)
    assert not house.worker.aborted
    house.worker.hangs_at = None
    await second.__aexit__(None, None, None)
    assert house.worker.aborted
    assert (await told(asked(house)))[1] == Result.MISS
    await house.check_nothing_left()


async def test_a_failure_is_everybodys(house: House) -> None:
    house.worker.dies_with = {2}
    house.continuation = None  # type: ignore[assignment]
    errors = await asyncio.gather(*(read(asked(house)) for _ in range(3)), return_exceptions=True)
    assert [type(error) for error in errors] == [type(errors[0])] * 3
    assert all(isinstance(error, APIError) for error in errors)
    assert len({id(error) for error in errors}) == 3, "each has headers of its own"
    await house.check_nothing_left()


async def test_nobody_waits_for_what_was_cancelled_from_elsewhere() -> None:
    house = house_with_cache(worker=PaperWorker(hangs_at=2))
    before = asyncio.all_tasks()
    async with asked(house) as generation:
        for task in asyncio.all_tasks() - before:
            task.cancel()
        with pytest.raises(ServerError):
            async with asyncio.timeout(5):
                await generation.collect()
    await house.check_nothing_left()


async def test_who_waits_for_one_that_is_refused_is_asked_itself() -> None:
    """The first one's key has no more room; that of the others has."""
    house = house_with_cache(plan={"account": {"concurrent": 8}, "key": {"concurrent": 1}})
    busy = house.generation(sampling={"temperature": 0.0, "max_tokens": 3})
    other = replace(PRINCIPAL, key_id="other")
    async with busy:
        refused, answered = await asyncio.gather(
            read(asked(house)), told(asked(house, principal=other)), return_exceptions=True
        )
    assert isinstance(refused, RateLimited)
    assert answered == (ANSWER, Result.MISS)
    await house.check_nothing_left()


async def test_a_follower_that_is_refused_disturbs_nobody() -> None:
    house = house_with_cache(plan={"account": {"concurrent": 1}})
    first, second = await asyncio.gather(told(asked(house)), told(asked(house)), return_exceptions=True)
    assert first == (ANSWER, Result.MISS)
    assert isinstance(second, RateLimited)
    await house.check_nothing_left()


async def test_each_has_its_own_patience() -> None:
    house = house_with_cache(worker=PaperWorker(hangs_at=2), timeouts=TimeoutSettings(total=60))
    hasty = asked(house, streamed=False, read_timeout=0.05)
    async with asked(house) as patient:
        with pytest.raises(DeadlineExceeded):
            await read_whole(hasty)
        house.worker.hangs_at = None
        house.worker._soon(house.worker._turn, house.worker.requests[0])
        assert [answer.text for answer in await patient.collect()] == [ANSWER]
    await house.check_nothing_left()


async def test_the_one_that_computes_has_its_own_patience_too() -> None:
    house = house_with_cache(worker=PaperWorker(hangs_at=2))
    hasty = asyncio.ensure_future(read_whole(asked(house, streamed=False, read_timeout=0.05)))
    await asyncio.sleep(0)
    async with asked(house) as patient:
        with pytest.raises(DeadlineExceeded):
            await hasty
        house.worker.hangs_at = None
        house.worker._soon(house.worker._turn, house.worker.requests[0])
        assert [answer.text for answer in await patient.collect()] == [ANSWER]
    assert len(house.worker.requests) == 1
    await house.check_nothing_left()


async def test_one_alone_that_takes_too_long_is_recorded_as_that() -> None:
    house = house_with_cache(worker=PaperWorker(hangs_at=2))
    with pytest.raises(DeadlineExceeded):
        await read_whole(asked(house, streamed=False, read_timeout=0.05))
    assert [record.outcome for record in house.records] == ["deadline_exceeded"]


async def test_a_long_answer_is_not_kept_for_those_who_may_come() -> None:
    """Nobody joins it any more, and what everybody has read is forgotten."""
    house = house_with_cache(max_entry_bytes=200)
    sampling = {"temperature": 0.0, "max_tokens": 100}
    async with house.generation(sampling=sampling) as first:
        text = ""
        while len(text) < 50:
            text += "".join(piece.text for piece in await first.next())
        async with house.generation(sampling=sampling) as second:
            assert second.headers[HEADER] == Result.MISS
        text += (await first.collect())[0].text
        assert len(text) == 100
    await house.check_nothing_left()


async def test_an_answer_that_begins_again_is_whole() -> None:
    """Its engine died, and its client had seen nothing: other readers may have."""
    dying = PaperWorker(dies_with={2}, answer=list(b"lost!!"))
    house = house_with_cache(worker=dying, others=(PaperWorker(answer=list(b"kept!!")),), continuation=None)
    whole, stream = asked(house, streamed=False), asked(house, streamed=True)
    texts = await asyncio.gather(read_whole(whole), read(stream), return_exceptions=True)
    assert texts[0] == "kept!!"
    assert isinstance(texts[1], Overloaded), "it had seen what is void now"
    assert (await told(asked(house)))[0] == "kept!!"
    await house.check_nothing_left()


# --- everything at any time


@settings(max_examples=60, deadline=None)
@given(
    clients=st.lists(
        st.tuples(st.integers(0, 12), st.one_of(st.none(), st.integers(0, 25)), st.booleans()), min_size=2, max_size=5
    ),
    dies=st.booleans(),
    limit=st.integers(1, 6),
)
async def test_whoever_comes_and_leaves_whenever(
    clients: list[tuple[int, int | None, bool]], dies: bool, limit: int
) -> None:
    """Each gets all of the answer, or one error; and the books are right."""
    worker = PaperWorker(dies_with={3} if dies else ())
    house = house_with_cache(worker=worker, plan=PLAN | {"account": {**PLAN["account"], "concurrent": limit}})

    async def client(begins: int, leaves: int | None, streamed: bool) -> str | type[BaseException]:
        for _ in range(begins):
            await asyncio.sleep(0)
        task = asyncio.ensure_future((read if streamed else read_whole)(asked(house, streamed=streamed)))
        if leaves is not None:
            for _ in range(leaves):
                await asyncio.sleep(0)
            task.cancel()
        await asyncio.wait([task])
        if task.cancelled():
            return asyncio.CancelledError
        return type(error) if (error := task.exception()) is not None else task.result()

    seen = await asyncio.gather(*(client(*one) for one in clients))
    for (_, leaves, _), outcome in zip(clients, seen, strict=True):
        fine = outcome == ANSWER or (isinstance(outcome, type) and issubclass(outcome, APIError))
        assert fine or (leaves is not None and outcome is asyncio.CancelledError)
    assert house.cache is not None
    await house.cache.settled()
    await house.check_nothing_left()
