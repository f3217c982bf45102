"""Finds personal data in a text."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from server.text.pii.kinds import LOOKS, Check, Kind
from server.text.pii.patterns import Pattern, bounded
from server.text.pii.shape import OTHER, shape_of

LOOKALIKE = "text"  # what a client wrote in the form of a placeholder
_SURROGATE = re.compile("[\ud800-\udfff]")


@dataclass(slots=True, frozen=True)
class Found:
    start: int
    end: int
    kind: str


@dataclass(slots=True, frozen=True)
class _Look:
    kind: Kind
    pattern: Pattern
    check: Check
    run: re.Pattern[bytes]
    least: int
    needs: bytes

    def may_find(self, shape: bytes) -> bool:
        """Costs next to nothing, and most texts are short."""
        return len(shape) >= self.least and self.needs in shape


class Detector:
    """The `[pii]` part of a configuration. Immutable; serves all requests.

    What looks like one of our placeholders is found first: so every one in a masked text is ours.
    """

    def __init__(self, kinds: Iterable[str] = tuple(Kind), patterns: Mapping[str, str] | None = None) -> None:
        """`patterns` by their names. Raises PatternError."""
        own, wanted = patterns or {}, [kind for kind in Kind if kind in set(kinds)]
        self._own = [(name, bounded(pattern)) for name, pattern in own.items()]
        self._looks = [
            _Look(kind, bounded(look.pattern), look.check, re.compile(look.run), look.least, look.needs)
            for kind in wanted
            for look in LOOKS[kind]
        ]
        names = "|".join(name.upper() for name in (LOOKALIKE, *own, *wanted))
        # Of this form there is but one way to match, so that Python's own search has nothing to go back to.
        self._lookalike = re.compile(f"<(?:{names})_[0-9]{{1,9}}>")

    def find(self, text: str) -> list[Found]:
        """In the order of the text; none overlaps another."""
        found = [Found(*match.span(), LOOKALIKE) for match in self._lookalike.finditer(text)]
        for name, pattern in self._own:
            found += _matches(text, pattern, name, found)
        shape = _blanked(shape_of(text), found)
        for look in self._looks:
            if not look.may_find(shape):
                continue
            new = [Found(start, end, look.kind) for start, end in _places(shape, look)]
            shape = _blanked(shape, new)
            found += new
        return sorted(found, key=lambda one: one.start)


def _matches(text: str, pattern: Pattern, kind: str, found: Sequence[Found]) -> list[Found]:
    """What a pattern finds in the text itself, where nothing was found before."""
    text = _hidden(text if text.isascii() else _SURROGATE.sub("\ufffd", text), found)
    spans = [match.span() for match in pattern.finditer(text)]
    return [Found(start, end, kind) for start, end in spans if OTHER not in text[start:end]]


def _hidden(text: str, found: Sequence[Found]) -> str:
    parts: list[str] = []
    position = 0
    for one in sorted(found, key=lambda one: one.start):
        parts += text[position : one.start], OTHER * (one.end - one.start)
        position = one.end
    return "".join([*parts, text[position:]])


def _places(shape: bytes, look: _Look) -> Iterator[tuple[int, int]]:
    position = 0
    while match := look.pattern.search(shape, position):
        start, end = match.span()
        place = look.check(shape, start, end)
        if place is not None:
            yield place
            position = place[1]
        else:
            run = look.run.match(shape, start)
            position = max(start + 1, run.end() if run else 0)


def _blanked(shape: bytes, found: Sequence[Found]) -> bytes:
    if not found:
        return shape
    blanked = bytearray(shape)
    for one in found:
        blanked[one.start : one.end] = bytes(one.end - one.start)
    return bytes(blanked)
