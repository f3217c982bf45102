"""Lines of an input file, in whatever chunks they come, and when one is tried again."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Mapping
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from server.batches.lines import MAX_ERRORS, MAX_LINES, Line, Validation, split
from server.batches.patience import LONGEST, MAX_FAULTS, SHORTEST, seconds_to_wait

ENDPOINT = "/v1/completions"


def text(custom_id: str) -> bytes:
    body = {"model": "m", "prompt": "x"}
    return json.dumps({"custom_id": custom_id, "method": "POST", "url": ENDPOINT, "body": body}).encode()


def validate(lines: list[bytes], longest: int = 1000) -> Validation:
    validation = Validation(ENDPOINT, longest, lambda model: None)
    validation.add_all(Line(number, line) for number, line in enumerate(lines, start=1))
    validation.finish()
    return validation


@given(st.lists(st.sampled_from([b"", b" ", b"a", b"bc" * 9, b"\r"]), max_size=20), st.lists(st.integers(0, 200)))
async def test_lines_do_not_depend_on_chunks(lines: list[bytes], cuts: list[int]) -> None:
    whole = b"\n".join(lines)
    places = sorted({min(cut, len(whole)) for cut in cuts} | {0, len(whole)})

    async def chunks() -> AsyncIterator[bytes]:
        for start, end in pairwise(places):
            yield whole[start:end]

    found = [line async for some in split(chunks(), 1000) for line in some]
    assert found == [Line(number, line) for number, line in enumerate(lines, start=1) if line.strip()]


async def test_a_line_without_end_is_not_kept() -> None:
    async def chunks() -> AsyncIterator[bytes]:
        for _ in range(100):
            yield b"x" * 100
        yield b"\n" + text("next")

    found = [line async for some in split(chunks(), 500) for line in some]
    assert [len(line.text) for line in found] == [501, len(text("next"))]
    assert [error.code for error in validate([line.text for line in found], 500).errors] == ["line_too_long"]


def test_a_batch_has_bounds() -> None:
    assert validate([text(str(number)) for number in range(MAX_LINES)]).errors == []
    too_many = validate([text(str(number)) for number in range(MAX_LINES + 1)])
    assert [error.code for error in too_many.errors] == ["too_many_requests"]
    assert too_many.is_hopeless
    broken = validate([b"{"] * (MAX_ERRORS + 50))
    assert len(broken.errors) == MAX_ERRORS
    assert broken.is_hopeless


@pytest.mark.parametrize("status", [408, 429, 503])
@pytest.mark.parametrize(
    ("headers", "wait"),
    [
        ({}, 1.0),
        ({"retry-after-ms": "1500"}, 1.5),
        ({"retry-after-ms": "0"}, SHORTEST),
        ({"retry-after-ms": "9" * 9}, LONGEST),
    ],
)
def test_who_is_told_to_come_later_does(status: int, headers: Mapping[str, str], wait: float) -> None:
    assert seconds_to_wait(status, headers, 0) == wait


def test_a_fault_is_tried_again_but_not_for_ever() -> None:
    waits = [seconds_to_wait(500, {}, count) for count in range(1, MAX_FAULTS + 1)]
    assert waits == [2.0, 4.0, None]
    assert all(seconds_to_wait(status, {}, 0) is None for status in (200, 400, 401, 403, 404, 413))
