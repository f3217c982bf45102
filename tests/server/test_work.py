"""Answers that go on at another replica, token by token, and what is left behind: nothing."""

from __future__ import annotations

import pytest

from engines.fake_tokens import fake_answer
from engines.types import Continuation, ErrorCode, RequestError
from server.errors import APIError, Overloaded, RateLimited
from server.failover import MAX_MOVES, RETRY_FLOOR, RETRY_PERCENT
from tests.server.house import ANSWER, LOST, NUM_TOKENS, PROMPT, House, PaperWorker, cancel_after, read, read_whole

SEEDED = {"seed": 5}
LONG = 40  # tokens


def two_replicas(dies_at: int) -> House:
    """The first one dies with this token of an answer."""
    return House(PaperWorker(dies_with=[dies_at]), others=(PaperWorker(),))


async def check_charged_once(house: House, num_output: int = NUM_TOKENS) -> None:
    (record,) = house.records
    assert (record.prompt_tokens, record.completion_tokens) == (len(PROMPT), num_output)
    await house.check_nothing_left()


@pytest.mark.parametrize("dies_at", range(NUM_TOKENS - 1))
async def test_an_answer_without_a_seam(dies_at: int) -> None:
    house = two_replicas(dies_at)
    assert await read(house.generation(sampling=SEEDED)) == ANSWER
    (begun,), (continued,) = house.worker.requests, house.others[0].requests
    assert continued.output_token_ids == fake_answer(PROMPT, dies_at + 1)
    assert (begun.is_moved, continued.is_moved) == (False, True)
    assert (continued.sampling, continued.deadline) == (begun.sampling, begun.deadline)
    assert continued.request_id != begun.request_id
    assert continued.priority < begun.priority
    assert house.records[0].outcome == "length"
    assert house.failovers == {"continued": 1}
    await check_charged_once(house)


async def test_nothing_is_missing_but_the_engines_word_for_it() -> None:
    """It gave its last token and died."""
    house = two_replicas(NUM_TOKENS - 1)
    assert await read(house.generation()) == ANSWER
    assert not house.others[0].requests
    await check_charged_once(house)


@pytest.mark.parametrize("dies_at", range(5))
async def test_a_stop_string_over_the_seam(dies_at: int) -> None:
    """It is tokens 2 to 4."""
    house = two_replicas(dies_at)
    assert await read(house.generation(stop=ANSWER[2:5], sampling=SEEDED)) == ANSWER[:2]
    assert house.records[0].outcome == "stop"
    assert bool(house.others[0].requests) == (dies_at < 4)  # with its last token, the answer was complete
    await check_charged_once(house, num_output=5)


@pytest.mark.parametrize("dies_at", range(1, 10))
async def test_characters_over_the_seam(dies_at: int) -> None:
    answer = list("水门é𝒳".encode())
    house = House(PaperWorker(dies_with=[dies_at], answer=answer), others=(PaperWorker(answer=answer),))
    text = await read(house.generation(sampling=SEEDED | {"max_tokens": len(answer)}))
    assert text == "水门é𝒳"
    await check_charged_once(house, len(answer))


@pytest.mark.parametrize("dies_at", range(4))
async def test_a_stop_string_does_not_count_before_min_tokens(dies_at: int) -> None:
    house = two_replicas(dies_at)
    sampling = SEEDED | {"min_tokens": 4}
    assert await read(house.generation(stop=ANSWER[1], sampling=sampling)) == ANSWER
    await check_charged_once(house)


async def test_every_choice_goes_on_by_itself() -> None:
    house = two_replicas(3)
    assert await read_whole(house.generation(5, sampling={"temperature": 0})) == ANSWER * 5
    assert house.failovers == {"continued": 5}
    assert house.records[0].completion_tokens == 5 * NUM_TOKENS
    assert house.records[0].prompt_tokens == 5 * len(PROMPT)
    await house.check_nothing_left()


async def test_several_deaths_in_a_row() -> None:
    """Back and forth."""
    house = House(PaperWorker(dies_with=[2, 10, 18]), others=(PaperWorker(dies_with=[6, 14, 22]),))
    whole = bytes(fake_answer(PROMPT, LONG)).decode()
    assert await read(house.generation(sampling=SEEDED | {"max_tokens": LONG})) == whole
    assert house.failovers == {"continued": 6}
    await check_charged_once(house, LONG)


async def test_so_many_deaths_are_no_accident() -> None:
    house = House(PaperWorker(dies_with=range(LONG)), others=(PaperWorker(dies_with=range(LONG)),))
    with pytest.raises(Overloaded):
        await read(house.generation(sampling=SEEDED | {"max_tokens": LONG}))
    assert house.failovers == {"continued": MAX_MOVES, "gave_up": 1}
    await check_charged_once(house, MAX_MOVES + 1)


async def test_sampled_without_a_seed() -> None:
    house = two_replicas(3)
    with pytest.raises(Overloaded) as caught:
        await read(house.generation())
    assert caught.value.code == house.records[0].outcome == "engine_failed"
    assert house.failovers == {"cannot_continue": 1}
    await check_charged_once(house, num_output=4)


async def test_an_engine_that_can_not_continue() -> None:
    house = House(PaperWorker(dies_with=[1]), others=(PaperWorker(),), continuation=Continuation.NONE)
    with pytest.raises(Overloaded):
        await read(house.generation(sampling={"temperature": 0}))
    await check_charged_once(house, num_output=2)


# --- before the first token


async def test_it_is_begun_again_elsewhere() -> None:
    house = House(PaperWorker(refuses=LOST), others=(PaperWorker(),))
    assert await read(house.generation()) == ANSWER
    assert house.failovers == {"retried": 1}
    assert house.others[0].requests[0].output_token_ids == []
    await check_charged_once(house)


@pytest.mark.parametrize("num_prompts", [1, 3])
async def test_a_whole_answer_is_begun_again_even_after_tokens(num_prompts: int) -> None:
    """Nobody has seen them, and nobody pays for them."""
    house = two_replicas(3)
    assert await read_whole(house.generation(num_prompts, streamed=False)) == ANSWER * num_prompts
    assert house.failovers == {"retried": num_prompts}
    assert all(request.output_token_ids == [] for request in house.others[0].requests)
    (record,) = house.records
    assert record.prompt_tokens == num_prompts * len(PROMPT)
    assert record.completion_tokens == num_prompts * NUM_TOKENS
    await house.check_nothing_left()


async def test_a_whole_answer_that_is_lost_twice() -> None:
    house = House(PaperWorker(dies_with=[3]), others=(PaperWorker(dies_with=[4]),))
    with pytest.raises(Overloaded):
        await read_whole(house.generation(streamed=False))
    assert house.failovers == {"retried": 1, "gave_up": 1}
    await check_charged_once(house, num_output=5)


async def test_what_was_given_and_dropped_is_charged_to_nobody() -> None:
    """The engine that it begins again at refuses it."""
    full = RequestError(ErrorCode.OVERLOADED, "no")
    house = House(PaperWorker(dies_with=[3]), others=(PaperWorker(refuses=full),))
    with pytest.raises(RateLimited):
        await read_whole(house.generation(streamed=False))
    assert house.failovers == {"retried": 1}
    assert house.num_charged == 0
    await house.check_nothing_left()


async def test_a_stream_has_not_begun_while_it_is_begun_again() -> None:
    """Its status still waits for the first token."""
    house = House(PaperWorker(refuses=LOST), others=(PaperWorker(),))
    async with house.generation() as generation:
        (piece,) = await generation.next()
        assert piece.text == ANSWER[0]


async def test_once_only() -> None:
    house = House(PaperWorker(refuses=LOST), others=tuple(PaperWorker(refuses=LOST) for _ in range(3)))
    with pytest.raises(Overloaded):
        await read(house.generation())
    assert house.failovers == {"retried": 1, "gave_up": 1}
    assert sum(len(worker.requests) for worker in (house.worker, *house.others)) == 2
    assert house.num_charged == 0
    await house.check_nothing_left()


@pytest.mark.parametrize(
    ("code", "kind"),
    [
        (ErrorCode.OVERLOADED, RateLimited),
        (ErrorCode.QUEUE_TIMEOUT, Overloaded),
        (ErrorCode.DEADLINE, APIError),
        (ErrorCode.INVALID, APIError),
    ],
)
async def test_a_refusal_is_no_failure(code: ErrorCode, kind: type[APIError]) -> None:
    house = House(PaperWorker(refuses=RequestError(code, "no")), others=(PaperWorker(),))
    with pytest.raises(kind):
        await read(house.generation())
    assert (house.failovers, house.others[0].requests) == ({}, [])
    await house.check_nothing_left()


async def test_what_is_begun_again_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """All of a hundred requests find a failing engine first."""
    monkeypatch.setattr("server.replica_health.MAX_FAILURES", 1000)
    house = House(PaperWorker(refuses=LOST), others=(PaperWorker(),))
    failed = 0
    for _ in range(100):
        try:
            await read(house.generation())
        except Overloaded:
            failed += 1
    allowed = RETRY_FLOOR + 100 * RETRY_PERCENT // 100
    assert 0 < house.failovers["retried"] <= allowed
    assert house.failovers["no_budget"] == failed == 100 - house.failovers["retried"]
    await house.check_nothing_left()


async def test_a_failed_answer_moves_nothing_more() -> None:
    house = two_replicas(3)
    async with house.generation(2, sampling=SEEDED) as generation:
        generation.fail(Overloaded("The server is shutting down.", code="shutting_down"))
        with pytest.raises(Overloaded):
            await generation.next()
    assert not house.others[0].requests
    await house.check_nothing_left()


async def test_cancelled_at_every_step() -> None:
    """What two engines computed for one answer is charged once, whenever its client leaves."""
    turns, running = 0, True
    while running:
        house = two_replicas(2)
        running = await cancel_after(turns, read(house.generation(sampling=SEEDED)))
        await house.check_nothing_left()
        (record,) = house.records or (None,)
        if record is not None:
            assert record.prompt_tokens <= len(PROMPT)
            assert record.completion_tokens <= NUM_TOKENS
        turns += 1
    assert turns > 25
    assert house.records[0].outcome == "length"
