import random
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from server.text.content_filter import ContentFilter

LETTERS = "abßSsİi\u0307 \n"
TERMS = st.lists(st.text(LETTERS, min_size=1, max_size=4), min_size=1, max_size=4)


def mask_whole(content_filter: ContentFilter, text: str) -> str:
    mask = content_filter.output_mask()
    return text if mask is None else mask.feed(text) + mask.flush()


def masked(terms: list[str], text: str) -> str:
    """The definition, slowly: leftmost, then longest, over folded text; whole characters are masked."""
    folded = [(letter, i) for i, character in enumerate(text) for letter in character.casefold()]
    letters = "".join(letter for letter, _ in folded)
    out, position, done = "", 0, 0
    while position < len(letters):
        lengths = [len(t.casefold()) for t in terms if letters.startswith(t.casefold(), position)]
        if not lengths:
            position += 1
            continue
        end = position + max(lengths)
        out += text[done : folded[position][1]] + "***"
        done = folded[end - 1][1] + 1
        position = next((p for p in range(end, len(folded)) if folded[p][1] >= done), len(folded))
    return out + text[done:]


@given(TERMS, st.text(LETTERS, max_size=14), st.randoms(use_true_random=False))
def test_any_split_is_as_masking_the_whole(terms: list[str], text: str, cuts: random.Random) -> None:
    content_filter = ContentFilter([], terms)
    mask = content_filter.output_mask()
    assert mask is not None
    out, rest = "", text
    while rest:
        size = cuts.randrange(4)
        out += mask.feed(rest[:size])
        rest = rest[size:]
    assert out + mask.flush() == mask_whole(content_filter, text) == masked(terms, text)


@given(TERMS, st.lists(st.text(LETTERS, max_size=4), max_size=6))
def test_no_term_is_let_out_whatever_is_flushed(terms: list[str], parts: list[str]) -> None:
    """Between the parts something else was sent: what was held back went before it."""
    mask = ContentFilter([], terms).output_mask()
    assert mask is not None
    out = ""
    for part in parts:
        out += mask.feed(part) + mask.flush()
        assert mask.num_held == 0
    assert not any(term.casefold() in out.casefold() for term in terms)


@given(st.text(max_size=30))
def test_text_without_terms_stays_as_it_is(text: str) -> None:
    assert mask_whole(ContentFilter([], ["\ue000x", "y\ue000"]), text.replace("\ue000", "")) == text.replace(
        "\ue000", ""
    )


@given(TERMS, st.text(LETTERS, max_size=10))
def test_check_finds_what_mask_hides(terms: list[str], text: str) -> None:
    found = ContentFilter(terms).check(text)
    assert (found is not None) == ("***" in mask_whole(ContentFilter([], terms), text))
    assert found is None or found in terms
    assert found is None or found.casefold() in text.casefold()


@pytest.mark.parametrize(
    ("term", "text", "expected"),
    [
        ("secret", "My SECRETS are", "My ***S are"),
        ("straße", "STRASSE, Straße!", "***, ***!"),
        ("strasse", "eine straße.", "eine ***."),
        ("İzmir", "x İZMİR İzmir y", "x İZMİR *** y"),
        ("s", "a ß b", "a *** b"),
        ("a.b", "a.b axb", "*** axb"),
        ("ab", "abab ab", "****** ***"),
        ("ﬁx", "FIX ﬁx", "*** ***"),
    ],
)
def test_examples(term: str, text: str, expected: str) -> None:
    assert mask_whole(ContentFilter([], [term]), text) == expected
    assert ContentFilter([term]).check(text) == term


def test_nothing_configured() -> None:
    assert ContentFilter().check("anything") is None
    assert ContentFilter().output_mask() is None
    assert mask_whole(ContentFilter([""], [""]), "anything") == "anything"


def test_the_name_as_written_is_returned() -> None:
    assert ContentFilter(["Project X", "project xy"]).check("about PROJECT X, then") == "Project X"
    assert ContentFilter(["]-^", "a"]).check("b]-^") == "]-^"
    assert mask_whole(ContentFilter([], ["]-^", "\\d"]), "b]-^ 5 \\D") == "b*** 5 ***"


def test_many_terms_and_a_hostile_text_are_fast() -> None:
    content_filter = ContentFilter([f"{'a' * 20}{i}" for i in range(2000)], [f"{'a' * 20}{i}" for i in range(2000)])
    text = "a" * 100_000
    start = time.monotonic()
    assert content_filter.check(text) is None
    assert mask_whole(content_filter, text) == text
    assert time.monotonic() - start < 2


def test_moderation_names_categories() -> None:
    judge = ContentFilter(["Blocked"], ["masked"], {"hate": ["Straße", "x"], "violence": ["x"], "sexual": []})
    assert judge.can_moderate
    assert judge.moderate("fine, and masked") == frozenset()
    assert judge.moderate("STRASSE") == {"hate"}
    assert judge.moderate("an X, bLocked") == {"hate", "violence", "blocklist"}
    assert judge.check("STRASSE") is None, "a category refuses nothing"


@pytest.mark.parametrize(
    "nothing", [ContentFilter(), ContentFilter([], ["masked"]), ContentFilter([""], [], {"hate": []})]
)
def test_nothing_to_moderate_by(nothing: ContentFilter) -> None:
    assert not nothing.can_moderate
    assert nothing.moderate("anything") == frozenset()
