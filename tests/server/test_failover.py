"""Which answers go on elsewhere when their engine fails."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from engines.types import Continuation, SamplingParams
from server.failover import MAX_MOVES, RETRY_FLOOR, RETRY_PERCENT, WINDOW, Loss, Outcome, RetryBudget, decide

GREEDY = SamplingParams(max_tokens=9, temperature=0)
SEEDED = SamplingParams(max_tokens=9, seed=0)
UNSEEDED = SamplingParams(max_tokens=9)
LOSS = Loss(
    has_output=True,
    is_streamed=True,
    was_retried=False,
    has_progressed=True,
    num_moves=0,
    sampling=GREEDY,
    continuation=Continuation.SEEDED,
    has_other=True,
)


def outcome(**changes: Any) -> Outcome:
    return decide(replace(LOSS, **changes), RetryBudget(), now=0.0)


@pytest.mark.parametrize(
    ("sampling", "continuation", "expected"),
    [
        (GREEDY, Continuation.SEEDED, Outcome.CONTINUED),
        (SEEDED, Continuation.SEEDED, Outcome.CONTINUED),
        (UNSEEDED, Continuation.SEEDED, Outcome.CANNOT_CONTINUE),
        (GREEDY, Continuation.GREEDY, Outcome.CONTINUED),
        (SEEDED, Continuation.GREEDY, Outcome.CANNOT_CONTINUE),
        (replace(GREEDY, frequency_penalty=1), Continuation.GREEDY, Outcome.CANNOT_CONTINUE),
        (replace(GREEDY, presence_penalty=1), Continuation.SEEDED, Outcome.CONTINUED),
        (replace(GREEDY, repetition_penalty=2, min_tokens=3), Continuation.GREEDY, Outcome.CONTINUED),
        (GREEDY, Continuation.NONE, Outcome.CANNOT_CONTINUE),
    ],
)
def test_after_the_first_token(sampling: SamplingParams, continuation: Continuation, expected: Outcome) -> None:
    assert outcome(sampling=sampling, continuation=continuation) is expected


@pytest.mark.parametrize("sampling", [GREEDY, SEEDED, UNSEEDED])
@pytest.mark.parametrize("continuation", list(Continuation))
def test_before_it_anything_is_begun_again(sampling: SamplingParams, continuation: Continuation) -> None:
    assert outcome(has_output=False, sampling=sampling, continuation=continuation) is Outcome.RETRIED


def test_a_whole_answer_that_can_not_go_on_is_begun_again_once() -> None:
    """Its client has seen nothing of it."""
    whole = {"is_streamed": False, "sampling": UNSEEDED}
    assert outcome(**whole) is Outcome.RETRIED
    assert outcome(**whole, was_retried=True, num_moves=1) is Outcome.GAVE_UP
    assert outcome(is_streamed=False) is Outcome.CONTINUED


def test_not_without_another_replica() -> None:
    assert outcome(has_other=False) is outcome(has_other=False, has_output=False) is Outcome.NO_REPLICA


def test_what_gets_nowhere_is_given_up() -> None:
    """It may be what kills the engines: it has had two."""
    assert outcome(has_output=False, has_progressed=False, num_moves=1) is Outcome.GAVE_UP
    assert outcome(has_progressed=False, num_moves=1) is Outcome.GAVE_UP
    assert outcome(num_moves=MAX_MOVES - 1) is Outcome.CONTINUED
    assert outcome(num_moves=MAX_MOVES) is Outcome.GAVE_UP


def take_all(budget: RetryBudget, now: float) -> int:
    taken = 0
    while budget.take(now):
        taken += 1
    return taken


def test_an_idle_gateway_has_the_floor() -> None:
    budget = RetryBudget()
    assert take_all(budget, 100.0) == RETRY_FLOOR
    assert take_all(budget, 100.0 + WINDOW - 1) == 0
    assert take_all(budget, 100.0 + WINDOW) == RETRY_FLOOR


@pytest.mark.parametrize("num_begun", [1, 7, 100, 5000])
def test_a_busy_one_a_share_of_what_it_began(num_begun: int) -> None:
    budget = RetryBudget()
    for index in range(num_begun):
        budget.note_begun(50 + 8 * index / num_begun)
    assert take_all(budget, 58.0) == RETRY_FLOOR + num_begun * RETRY_PERCENT // 100
    assert take_all(budget, 80.0) == RETRY_FLOOR  # all of that is long ago


def test_no_ten_seconds_have_more() -> None:
    """With 30 begun a second, and all of them failing."""
    budget, taken = RetryBudget(), []
    for tick in range(30 * 60):
        now = tick / 30
        budget.note_begun(now)
        if budget.take(now):
            taken.append(now)
    for start in range(51):
        within = sum(start <= now < start + WINDOW for now in taken)
        assert within <= RETRY_FLOOR + 300 * RETRY_PERCENT // 100
    assert len(taken) > 60 * 30 * RETRY_PERCENT // 100


def test_the_decision_takes_from_the_budget_only_what_it_spends() -> None:
    budget = RetryBudget()
    for _ in range(100):
        decide(LOSS, budget, 0.0)  # continued: nothing is begun a second time
    begun_again = replace(LOSS, has_output=False)
    outcomes = [decide(begun_again, budget, 0.0) for _ in range(RETRY_FLOOR + 1)]
    assert outcomes == [Outcome.RETRIED] * RETRY_FLOOR + [Outcome.NO_BUDGET]


def test_who_came_no_further_on_two_engines_that_died_runs_alone_and_then_is_refused() -> None:
    suspect = {"has_progressed": False, "has_died": True, "num_moves": 1}
    assert outcome(**suspect) is outcome(**suspect, has_output=False, was_retried=True) is Outcome.ISOLATED
    assert outcome(**suspect, was_alone=True) is Outcome.REFUSED
    assert outcome(**suspect, was_alone=True, has_other=False) is Outcome.REFUSED
    assert outcome(has_died=True, was_alone=True) is Outcome.CONTINUED, "it got on: that was by chance"
    assert outcome(**suspect, has_other=False) is Outcome.NO_REPLICA
    assert outcome(**suspect, sampling=UNSEEDED) is Outcome.CANNOT_CONTINUE
