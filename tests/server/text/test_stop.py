import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from server.text.stop import StopMatcher

STOPS = st.lists(st.text("ab\n", min_size=1, max_size=4), max_size=4)


def cut(text: str, cuts: random.Random) -> list[str]:
    pieces = []
    while text:
        size = cuts.randrange(4)
        pieces.append(text[:size])
        text = text[size:]
    return pieces


def run(matcher: StopMatcher, pieces: list[str]) -> tuple[str, str | None]:
    """All that was let out, and what ended it."""
    out = ""
    for piece in pieces:
        step = matcher.feed(piece)
        out += step.text
        if step.matched is not None:
            assert (matcher.feed("more").text, matcher.flush()) == ("", "")
            return out, step.matched
    return out + matcher.flush(), None


def search(stops: list[str], text: str) -> tuple[str, str | None]:
    """The definition: complete first; of those, started first."""
    found = [(i + len(stop), i, stop) for stop in stops for i in range(len(text)) if text.startswith(stop, i)]
    return (text[: min(found)[1]], min(found)[2]) if found else (text, None)


@given(STOPS, st.text("ab\nc", max_size=14), st.randoms(use_true_random=False))
def test_any_split_is_as_searching_the_whole(stops: list[str], text: str, cuts: random.Random) -> None:
    assert run(StopMatcher(stops), cut(text, cuts)) == search(stops, text)


@given(STOPS, st.text("ab\nc", max_size=14))
def test_nothing_is_held_longer_than_needed(stops: list[str], text: str) -> None:
    matcher = StopMatcher(stops)
    fed = sent = ""
    for character in text:
        fed += character
        step = matcher.feed(character)
        sent += step.text
        if step.matched is not None:
            return
        held = fed[len(sent) :]
        assert not held or any(stop.startswith(held) for stop in stops)


@pytest.mark.parametrize(
    ("stops", "text", "expected"),
    [
        (["\n\nUser:"], "Hello\n\nUser: x", ("Hello", "\n\nUser:")),
        (["b", "ab"], "xab", ("x", "ab")),
        (["bc", "abcd"], "xabcd", ("xa", "bc")),
        (["a"], "", ("", None)),
        ([""], "abc", ("abc", None)),
        ([], "abc", ("abc", None)),
        (["aab"], "aaab", ("a", "aab")),
        (["🦙"], "a🦙b", ("a", "🦙")),
    ],
)
def test_examples(stops: list[str], text: str, expected: tuple[str, str | None]) -> None:
    assert run(StopMatcher(stops), [text]) == expected
    assert run(StopMatcher(stops), list(text)) == expected
