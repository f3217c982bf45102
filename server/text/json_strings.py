"""JSON that arrives in pieces, with the texts of its strings rewritten: what was valid stays valid."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from typing import Protocol

_PLAIN = re.compile(r'[^"\\]*')
_ESCAPE = re.compile(r"\\u[dD][89abAB][0-9a-fA-F]{2}\\u[dD][c-fC-F][0-9a-fA-F]{2}|\\u[0-9a-fA-F]{4}|\\[^u]", re.DOTALL)
_PARTIAL = re.compile(
    r"\\(?:u[0-9a-fA-F]{0,3})?|\\u[dD][89abAB][0-9a-fA-F]{2}(?:\\(?:u(?:[dD](?:[c-fC-F][0-9a-fA-F]?)?)?)?)?"
)
_SURROGATE = re.compile("[\ud800-\udfff]")


class Channel(Protocol):
    """One text on its way to a client, in pieces."""

    def feed(self, text: str) -> str: ...

    def flush(self) -> str:
        """What was held back: something else comes next, perhaps the end."""


class JsonStrings:
    """Every string, keys included, goes decoded through a channel of its own; what lies between them through another.

    A string that is rewritten is escaped anew, so that another spelling of the same string may come of it. What is no
    JSON is read as if it were; it does not become worse.
    """

    def __init__(self, new_channel: Callable[[], Channel], between: Channel | None = None) -> None:
        self._new_channel = new_channel
        self._between = between
        self._string: Channel | None = None
        self._rest = ""  # of an escape that is not complete

    def feed(self, text: str) -> str:
        text, self._rest = self._rest + text, ""
        out: list[str] = []
        position = 0
        while position < len(text):
            step = self._outside if self._string is None else self._inside
            position = step(text, position, out)
        return "".join(out)

    def flush(self) -> str:
        rest, self._rest = self._rest, ""
        if self._string is not None:
            return _escaped(self._string.flush()) + rest
        return self._between.flush() if self._between is not None else ""

    def _outside(self, text: str, position: int, out: list[str]) -> int:
        quote = text.find('"', position)
        part = text[position:] if quote < 0 else text[position:quote]
        out.append(part if self._between is None else self._between.feed(part))
        if quote < 0:
            return len(text)
        out.append(self.flush() + '"')
        self._string = self._new_channel()
        return quote + 1

    def _inside(self, text: str, position: int, out: list[str]) -> int:
        assert self._string is not None
        plain = _PLAIN.match(text, position)
        assert plain is not None
        out.append(_escaped(self._string.feed(plain[0])) if plain[0] else "")
        end = plain.end()
        if end == len(text):
            return end
        if text[end] == '"':
            out.append(self.flush() + '"')
            self._string = None
            return end + 1
        return self._escape(text, end, self._string, out)

    def _escape(self, text: str, position: int, string: Channel, out: list[str]) -> int:
        if _PARTIAL.fullmatch(text, position):
            self._rest = text[position:]
            return len(text)
        match = _ESCAPE.match(text, position)
        end = match.end() if match else position + 1
        out.append(_escaped(string.feed(_decoded(text[position:end]))))
        return end


def _decoded(escape: str) -> str:
    try:
        return str(json.loads(f'"{escape}"'))
    except ValueError:  # no escape of JSON's: the backslash was meant
        return escape


def _escaped(text: str) -> str:
    return _SURROGATE.sub(lambda half: f"\\u{ord(half[0]):04x}", json.dumps(text, ensure_ascii=False)[1:-1])
