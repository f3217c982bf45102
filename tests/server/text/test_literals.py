import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from server.text.literals import trie_pattern


@given(st.lists(st.text("ab.[\n", min_size=1, max_size=4), min_size=1, max_size=6), st.text("ab.[\n", max_size=12))
def test_finds_the_longest_literal_at_each_place(literals: list[str], text: str) -> None:
    longest_first = "|".join(re.escape(literal) for literal in sorted(literals, key=len, reverse=True))

    found = re.compile(trie_pattern(literals)).sub("<>", text)

    assert found == re.sub(longest_first, "<>", text)


@pytest.mark.parametrize("length", [1, 256, 3000])
def test_long_literals(length: int) -> None:
    pattern = re.compile(trie_pattern(["a" * length, "b"]))

    assert pattern.fullmatch("a" * length)
    assert not pattern.fullmatch("a" * (length + 1))
