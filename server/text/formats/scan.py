"""Markers and JSON values, found in text that arrives in pieces."""

from __future__ import annotations

from collections.abc import Sequence

_BLANK = " \t\r\n"


def find_first(text: str, markers: Sequence[str]) -> tuple[int, str] | None:
    """Where the marker that begins first begins, and which it is."""
    found = [(start, marker) for marker in markers if (start := text.find(marker)) >= 0]
    return min(found) if found else None


def safe_end(text: str, markers: Sequence[str]) -> int:
    """How much of a text that holds no marker can't be the beginning of one."""
    longest = max(map(len, markers), default=0)
    for start in range(max(0, len(text) - longest + 1), len(text)):
        if any(marker.startswith(text[start:]) for marker in markers):
            return start
    return len(text)


class ValueScanner:
    """Finds the end of one JSON value. It looks at brackets and strings alone: what is no JSON is not its matter."""

    def __init__(self) -> None:
        self._depth = 0
        self._in_string = False
        self._escaped = False
        self._first = ""

    @property
    def first(self) -> str:
        """The value's first character; "" before it."""
        return self._first

    def feed(self, text: str) -> int | None:
        """How much of `text` belongs to the value, once its end is seen; None while it goes on."""
        for index, character in enumerate(text):
            if not self._first:
                self._first = character
            elif self._first not in '{["' and character in _BLANK + ",}]":
                return index  # the end of a number or a word is what comes after it
            if self._closes(character):
                return index + 1
        return None

    def _closes(self, character: str) -> bool:
        if self._in_string:
            self._in_string = self._escaped or character != '"'
            self._escaped = character == "\\" and not self._escaped
            return not self._in_string and self._depth == 0
        if character == '"':
            self._in_string = True
        elif character in "{[":
            self._depth += 1
        elif character in "}]":
            self._depth -= 1
            return self._depth <= 0
        return False
