"""Several answers to a prompt, the best of them, the prompt before them, and how likely their tokens were."""

from __future__ import annotations

import threading
from collections.abc import Sequence

import pytest

from engines.fake import fake_prompt_logprobs
from engines.fake_tokens import digest_prompt, fake_answer
from engines.types import FinishReason, OutputDelta, Usage
from server.choice import Piece, likeliest, seed_of_sample
from server.generation import Generation
from server.off_loop import LONG_TOLD
from server.streaming import WholeAnswer
from server.text.logprobs import LikelyToken, ToldToken
from server.wire.common import Answer, ResponseHead
from tests.server.house import ANSWER, NUM_TOKENS, PROMPT, House, PaperWorker, cancel_after, read

WORDS = bytes(PROMPT).decode()
TOLD = {"logprobs": 2}


async def pieces_of(generation: Generation) -> list[Piece]:
    pieces: list[Piece] = []
    async with generation:
        while not generation.is_done:
            pieces += await generation.next()
    return pieces


# --- several


async def test_the_prompt_is_charged_once() -> None:
    house = House()
    generation = house.generation(2, samples=(3, 3))
    assert generation.job.cost == 2 * (len(PROMPT) + 3 * NUM_TOKENS)
    pieces = await pieces_of(generation)
    assert {piece.index for piece in pieces} == set(range(6))
    assert (generation.usage.prompt_tokens, generation.usage.completion_tokens) == (2 * len(PROMPT), 6 * NUM_TOKENS)
    (record,) = house.records
    assert (record.prompt_tokens, record.completion_tokens) == (2 * len(PROMPT), 6 * NUM_TOKENS)
    await house.check_nothing_left()


async def test_those_of_one_prompt_are_one_group() -> None:
    house = House()
    await pieces_of(house.generation(2, samples=(2, 2)))
    groups = [request.group for request in house.worker.requests]
    assert groups[0] == groups[1] != groups[2] == groups[3]
    await pieces_of(house.generation())
    assert house.worker.requests[-1].group == ""


async def test_cached_tokens_are_those_that_were_there_before_the_request() -> None:
    house = House()
    async with house.generation(samples=(3, 3)) as generation:
        for choice, cached in zip(generation._work.choices, [4, 16, 16], strict=True):  # type: ignore[attr-defined]
            choice.num_cached, choice.num_prompt = cached, len(PROMPT)
        assert generation.usage.cached_tokens == 4


async def test_every_sample_has_a_seed_of_its_own_and_the_first_the_client_s() -> None:
    house = House()
    await pieces_of(house.generation(samples=(3, 3), sampling={"seed": 7}))
    seeds = [request.sampling.seed for request in house.worker.requests]
    assert seeds == [7, seed_of_sample(7, 1), seed_of_sample(7, 2)]
    assert len(set(seeds)) == 3
    assert all(seed is not None and 0 <= seed < 2**63 for seed in seeds)
    await pieces_of(house.generation(samples=(2, 2)))
    assert [request.sampling.seed for request in house.worker.requests[3:]] == [None, None]


@pytest.mark.parametrize("turns", range(0, 24, 3))
async def test_several_cancelled(turns: int) -> None:
    house = House()
    await cancel_after(turns, read(house.generation(samples=(3, 3))))
    await house.check_nothing_left()


# --- the best


def test_the_likeliest_on_average() -> None:
    answers = [Answer(str(i), FinishReason.LENGTH, mean_logprob=m) for i, m in enumerate([-3, -1, -2, -1, None, -9])]
    assert [answer.text for answer in likeliest(answers, 3, 2)] == ["1", "2", "3", "5"]
    assert likeliest(answers, 3, 3) == answers


async def test_the_best_of_several_is_told_and_all_are_charged() -> None:
    house = House()
    generation = house.generation(samples=(3, 1), streamed=False, sampling={"logprobs": 0})
    async with generation:
        (answer,) = await generation.collect()
    assert answer.text == ANSWER
    assert answer.mean_logprob is not None
    assert generation.usage.completion_tokens == 3 * NUM_TOKENS
    await house.check_nothing_left()


# --- what stands before the answer


@pytest.mark.parametrize("streamed", [False, True])
async def test_the_prompt_comes_before_its_answer(streamed: bool) -> None:
    """A stop string in it counts for nothing."""
    generation = House().generation(echo=WORDS, streamed=streamed, stop=WORDS[3:6])
    assert await read(generation) == WORDS + ANSWER


async def test_the_prompt_s_tokens_are_told_with_it() -> None:
    pieces = await pieces_of(House().generation(echo=WORDS, sampling=TOLD | {"prompt_logprobs": 2}))
    told = [token for piece in pieces for token in piece.tokens or ()]
    expected = [fake_prompt_logprobs(digest_prompt(PROMPT), i, token, 2) for i, token in enumerate(PROMPT)]
    assert "".join(token.token.text or "" for token in told) == WORDS + ANSWER
    assert [token.offset for token in told] == list(range(len(told)))
    assert told[0].token.logprob is None
    assert [token.token.logprob for token in told[1 : len(PROMPT)]] == [each.logprob for each in expected[1:]]


@pytest.mark.parametrize("streamed", [False, True])
async def test_the_prompt_alone(streamed: bool) -> None:
    house = House()
    sampling = {"max_tokens": 1, "prompt_logprobs": 1, **TOLD}
    generation = house.generation(echo=WORDS, only_prompt=True, streamed=streamed, sampling=sampling)
    pieces = await pieces_of(generation)
    assert "".join(piece.text for piece in pieces) == WORDS
    assert sum(len(piece.tokens or ()) for piece in pieces) == len(PROMPT)
    assert pieces[-1].finish_reason is FinishReason.LENGTH
    assert (generation.usage.prompt_tokens, generation.usage.completion_tokens) == (len(PROMPT), 0)
    assert house.num_charged == len(PROMPT)
    await house.check_nothing_left()


async def test_the_prompt_alone_from_an_engine_that_dies_with_it() -> None:
    house = House(PaperWorker(dies_with=[0]), others=(PaperWorker(),))
    sampling = {"max_tokens": 1, "prompt_logprobs": 1, **TOLD}
    assert await read(house.generation(echo=WORDS, only_prompt=True, sampling=sampling)) == WORDS
    assert not house.others[0].requests
    await house.check_nothing_left()


# --- an engine that dies


@pytest.mark.parametrize("dies_at", range(NUM_TOKENS))
@pytest.mark.parametrize("streamed", [False, True])
async def test_an_answer_that_moves_keeps_what_was_told(dies_at: int, streamed: bool) -> None:
    """And goes on: every token once, the prompt's too."""
    house = House(PaperWorker(dies_with=[dies_at]), others=(PaperWorker(),))
    sampling = {"seed": 5, "prompt_logprobs": 0, **TOLD}
    pieces = await pieces_of(house.generation(echo=WORDS, streamed=streamed, sampling=sampling))
    told = [token for piece in pieces for token in piece.tokens or ()]
    assert [token.token.data for token in told] == [bytes([i]) for i in PROMPT + fake_answer(PROMPT, NUM_TOKENS)]
    assert "".join(piece.text for piece in pieces) == WORDS + ANSWER
    for request in house.others[0].requests:
        assert (request.sampling.logprobs, request.sampling.prompt_logprobs) == (2, None)
    await house.check_nothing_left()


@pytest.mark.parametrize("streamed", [False, True])
async def test_a_prompt_that_was_told_in_part_is_told_anew(streamed: bool) -> None:
    """Its client saw none of it: streams begin again too, without a seed."""
    house = House(PaperWorker(dies_at_prompt=[8]), others=(PaperWorker(),))
    pieces = await pieces_of(house.generation(echo=WORDS, streamed=streamed, sampling=TOLD | {"prompt_logprobs": 0}))
    told = [token for piece in pieces for token in piece.tokens or ()]
    assert [token.token.data for token in told] == [bytes([i]) for i in PROMPT + fake_answer(PROMPT, NUM_TOKENS)]
    assert house.others[0].requests[0].sampling.prompt_logprobs == 0
    await house.check_nothing_left()


async def test_what_is_told_of_a_prompt_is_no_piece_before_its_answer() -> None:
    house = House(PaperWorker(hangs_at=0))
    async with house.generation(echo=WORDS, sampling=TOLD | {"prompt_logprobs": 0}) as generation:
        assert await generation.next(0.05) == []
        house.worker._put(OutputDelta("req-1-0", finish_reason=FinishReason.ABORT))


async def test_a_whole_answer_that_begins_again_is_told_anew() -> None:
    house = House(PaperWorker(dies_with=[2]), others=(PaperWorker(),))
    generation = house.generation(echo=WORDS, streamed=False, sampling={"prompt_logprobs": 0, **TOLD})
    async with generation:
        (answer,) = await generation.collect()
    assert answer.tokens is not None
    assert answer.text == WORDS + ANSWER
    assert len(answer.tokens) == len(PROMPT) + NUM_TOKENS
    assert house.others[0].requests[0].sampling.prompt_logprobs == 0
    await house.check_nothing_left()


async def test_several_of_which_one_engine_dies() -> None:
    house = House(PaperWorker(dies_with=[2]), others=(PaperWorker(),))
    generation = house.generation(samples=(3, 3), sampling={"seed": 1})
    pieces = await pieces_of(generation)
    for index in range(3):
        assert "".join(piece.text for piece in pieces if piece.index == index) == ANSWER
    moved = house.others[0].requests
    assert [request.sampling.seed for request in moved] == [1, seed_of_sample(1, 1), seed_of_sample(1, 2)]
    assert len({request.group for request in moved}) == 1
    assert house.num_charged == len(PROMPT) + 3 * NUM_TOKENS
    await house.check_nothing_left()


# --- much of it


@pytest.mark.parametrize("num_tokens", [LONG_TOLD, LONG_TOLD + 1])
async def test_what_is_long_is_written_away_from_the_event_loop(num_tokens: int) -> None:
    threads = []

    def render(head: ResponseHead, answers: Sequence[Answer], usage: Usage) -> bytes:
        threads.append(threading.get_ident())
        return b"{}"

    told = (ToldToken(LikelyToken(b"a", "", -1.0), (), 0),) * num_tokens
    generation = House().generation()
    answers = [Answer("a" * num_tokens, FinishReason.LENGTH, tokens=told)]
    assert await WholeAnswer(generation, render).body_of(generation, answers) == b"{}"
    assert (threads == [threading.get_ident()]) == (num_tokens <= LONG_TOLD)
