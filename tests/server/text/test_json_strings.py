import json
import random
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from server.text.content_filter import ContentFilter, OutputMask
from server.text.json_strings import Channel, JsonStrings

LETTERS = 'ab\\"\n/é😀\ud83d'
STRINGS = st.text(LETTERS, max_size=6)
JSON = st.dictionaries(STRINGS, STRINGS | st.integers() | st.lists(STRINGS | st.none(), max_size=3), max_size=3)


class Same:
    def feed(self, text: str) -> str:
        return text

    def flush(self) -> str:
        return ""


def mask(*terms: str) -> Callable[[], OutputMask]:
    def new() -> OutputMask:
        made = ContentFilter([], terms).output_mask()
        assert made is not None
        return made

    return new


def rewritten(text: str, channel: Callable[[], Channel], cuts: random.Random | None = None) -> str:
    strings, out, position = JsonStrings(channel), "", 0
    while position < len(text):
        size = cuts.randrange(1, 5) if cuts else 1
        out += strings.feed(text[position : position + size])
        position += size
    return out + strings.flush()


def masked(value: Any, change: Callable[[str], str]) -> Any:
    match value:
        case str():
            return change(value)
        case dict():
            return {change(key): masked(item, change) for key, item in value.items()}
        case list():
            return [masked(item, change) for item in value]
        case _:
            return value


@given(JSON, st.booleans(), st.integers(0, 1), st.randoms(use_true_random=False))
def test_json_stays_what_it_says(value: Any, is_ascii: bool, indent: int, cuts: random.Random) -> None:
    text = json.dumps(value, ensure_ascii=is_ascii, indent=indent or None)
    assert json.loads(rewritten(text, Same, cuts)) == json.loads(text)


@given(JSON, st.booleans(), st.randoms(use_true_random=False))
def test_strings_are_masked_as_they_are_read(value: Any, is_ascii: bool, cuts: random.Random) -> None:
    """Terms of quotes, escapes and characters that JSON may write in two ways."""
    terms = ('a"', "\n", "é", "b\\", "nab", "u00e9")

    def whole(text: str) -> str:
        made = mask(*terms)()
        return made.feed(text) + made.flush()

    text = json.dumps(value, ensure_ascii=is_ascii)
    assert json.loads(rewritten(text, mask(*terms), cuts)) == masked(json.loads(text), whole)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ('{"a": "secret", "n": [1, true]}', '{"a": "***", "n": [1, true]}'),
        ('{"a": "\\u0073ecret\\n"}', '{"a": "***\\n"}'),
        ('{"a": "sec", "b": "ret"}', '{"a": "sec", "b": "ret"}'),
        ('"\\nsecret \\"secret\\""', '"\\n*** \\"***\\""'),
        ('{"a": "secre', '{"a": "secre'),
        ('"a\\', '"a\\'),
        ('"\\d secret', '"\\\\d ***'),
        ('"\\ud83d\\ude00 \\ud83d x"', '"😀 \\ud83d x"'),
        ("secret", "secret"),
    ],
)
def test_examples(text: str, expected: str) -> None:
    assert rewritten(text, mask("secret")) == expected
    assert rewritten(text, mask("secret"), random.Random(1)) == expected


def test_what_is_no_json_is_masked_but_for_what_json_could_be() -> None:
    terms = ["secret", "7", "rue", "user", "e5", "ü", "}"]
    between = ContentFilter([], terms).bare_mask()
    text = '{secret: 7, "k": true, user, 1e5, ü}'
    strings = JsonStrings(mask(*terms), between)
    assert "".join(map(strings.feed, text)) + strings.flush() == '{***: 7, "k": true, ***, 1e5, ***}'
    assert ContentFilter([], ["7", "true"]).bare_mask() is None
