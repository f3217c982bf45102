"""The phases of a request: they follow one another, whatever is known of it."""

from __future__ import annotations

import itertools

import pytest

from server.tracing.timeline import Timeline


def phases(**known: float | bool) -> list[tuple[str, float, float]]:
    timeline = Timeline(arrival=1, ended=9, **known)  # type: ignore[arg-type]
    return [(phase.name, phase.start, phase.end) for phase in timeline.phases()]


def test_a_whole_life() -> None:
    assert phases(submitted=2, first_step=4, first_token=5, last_token=8) == [
        ("prepare", 1, 2),
        ("queue", 2, 4),
        ("prefill", 4, 5),
        ("decode", 5, 8),
    ]


def test_one_that_was_cut_off_decoded_until_its_end() -> None:
    (*_, decode) = phases(submitted=2, first_step=4, first_token=5, last_token=7, is_complete=False)
    assert decode == ("decode", 5, 9)


def test_one_that_had_no_token() -> None:
    assert phases() == []
    assert phases(submitted=2) == [("prepare", 1, 2), ("queue", 2, 9)]
    assert phases(submitted=2, first_step=4) == [("prepare", 1, 2), ("queue", 2, 4), ("prefill", 4, 9)]


@pytest.mark.parametrize("first_step", [0, 7, 20])
def test_no_phase_ends_before_it_begins(first_step: float) -> None:
    """An answer that begins again elsewhere has its first step behind the first token of an engine that failed."""
    found = phases(submitted=2, first_step=first_step, first_token=5, last_token=8)
    assert [name for name, *_ in found] == ["prepare", "queue", "prefill", "decode"]
    assert all(start <= end for _, start, end in found)
    assert all(before[2] == after[1] for before, after in itertools.pairwise(found))
