"""Stop strings, found in text that arrives in pieces."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(slots=True)
class StopStep:
    """`text` can be sent now. With `matched` it is the answer's last text."""

    text: str
    matched: str | None = None


class StopMatcher:
    """Ends a text before the stop string that is complete first.

    Of several that are complete at the same character, the one that starts earliest wins. So the outcome doesn't
    depend on how the text was cut into pieces, and no answer runs on behind a complete stop string to see whether
    a longer one follows. Text that may be the beginning of a stop string is held back.
    """

    def __init__(self, stops: Sequence[str]) -> None:
        self._stops = [stop for stop in dict.fromkeys(stops) if stop]
        self._longest = max(map(len, self._stops), default=0)
        self._first_characters = frozenset(stop[0] for stop in self._stops)
        self._held = ""
        self._done = False

    def feed(self, text: str) -> StopStep:
        """After a match all further text is dropped."""
        if not self._stops:
            return StopStep(text)
        if self._done:
            return StopStep("")
        text = self._held + text
        if match := self._first_match(text):
            start, stop = match
            self._held, self._done = "", True
            return StopStep(text[:start], stop)
        cut = self._first_possible_start(text)
        self._held = text[cut:]
        return StopStep(text[:cut])

    def flush(self) -> str:
        """At the end of the answer: what was held back, for no stop string came of it."""
        held, self._held = self._held, ""
        return held

    def _first_match(self, text: str) -> tuple[int, str] | None:
        found = [(start + len(stop), start, stop) for stop in self._stops if (start := text.find(stop)) >= 0]
        return min(found)[1:] if found else None

    def _first_possible_start(self, text: str) -> int:
        """Where the longest end of the text that begins a stop string starts; the text's length if none does."""
        for start in range(max(0, len(text) - self._longest + 1), len(text)):
            if text[start] in self._first_characters:
                tail = text[start:]
                if any(stop.startswith(tail) for stop in self._stops):
                    return start
        return len(text)
