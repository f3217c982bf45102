"""Whatever the text, a search takes a bounded number of steps a character: what that rests on."""

import pytest

from server.text.pii.kinds import LOOKS
from server.text.pii.patterns import MAX_PROGRAM, PatternError, bounded


@pytest.mark.parametrize("pattern", [look.pattern for looks in LOOKS.values() for look in looks])
def test_our_own_are_bounded(pattern: str) -> None:
    assert bounded(pattern).programsize <= MAX_PROGRAM


@pytest.mark.parametrize(
    "pattern",
    ["EMP-[0-9]{6}", r"a\*\+\{1,\}", "[*+]x", "[]*]", "[^]+*]x", "[[:alpha:]*+]{3}", "(?i)straße [0-9]{1,4}", r"\\x"],
)
def test_bounded(pattern: str) -> None:
    assert bounded(pattern).programsize <= MAX_PROGRAM


@pytest.mark.parametrize(
    "pattern", ["a*b", "(a+)+b", "a{2,}", "[a]+", r"\\*", "x[*]*", r"[\]]+", "(?:a|a)*c", r"\Qa\E"]
)
def test_loops_are_refused(pattern: str) -> None:
    with pytest.raises(PatternError, match="bounded repetition"):
        bounded(pattern)


@pytest.mark.parametrize(
    ("pattern", "words"),
    [
        ("(", "not a pattern of RE2: missing"),
        (r"(a)\1", "not a pattern of RE2: invalid escape"),
        ("(?=a)", "not a pattern of RE2"),
        ("a{1001}", "not a pattern of RE2: invalid repetition"),
        (r"\pL{9}", "too large"),
        ("[a-zé]{400}", "too large"),
        ("a?", "matches the empty text"),
        ("", "matches the empty text"),
    ],
)
def test_others_are_refused(pattern: str, words: str) -> None:
    with pytest.raises(PatternError, match=words):
        bounded(pattern)


def test_words_end_where_the_whole_text_has_it() -> None:
    """A search that goes on in the middle of a word does not take it for its beginning."""
    assert bounded(r"\b[0-9]{2}\b").search(b"x12 34", 1).span() == (4, 6)  # type: ignore[union-attr]
