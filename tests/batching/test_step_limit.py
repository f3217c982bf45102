"""How far steps shrink while memory is short, and how they grow again."""

from __future__ import annotations

from batching.step_limit import GROW_AFTER, StepLimit


def passed(limit: StepLimit, times: int) -> list[bool]:
    return [limit.passed() for _ in range(times)]


def test_it_is_halved_from_what_failed_and_grows_back() -> None:
    limit = StepLimit(64, 256)
    assert not any(passed(limit, 3 * GROW_AFTER))
    assert limit.shrink(40, 100)
    assert (limit.num_seqs, limit.num_tokens) == (20, 50)
    assert passed(limit, GROW_AFTER) == [False] * (GROW_AFTER - 1) + [True]
    assert (limit.num_seqs, limit.num_tokens) == (40, 100)
    passed(limit, 2 * GROW_AFTER)
    assert (limit.num_seqs, limit.num_tokens) == (64, 256)


def test_a_failure_begins_the_count_anew() -> None:
    limit = StepLimit(64, 256)
    limit.shrink(8, 8)
    passed(limit, GROW_AFTER - 1)
    limit.shrink(4, 4)
    assert not any(passed(limit, GROW_AFTER - 1))
    assert (limit.num_seqs, limit.num_tokens) == (2, 2)


def test_nothing_is_smaller_than_one_token_of_one_sequence() -> None:
    limit = StepLimit(64, 256)
    assert limit.shrink(1, 7)
    assert limit.shrink(1, 3)
    assert not limit.shrink(1, 1)
    assert (limit.num_seqs, limit.num_tokens) == (1, 1)
