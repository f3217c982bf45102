"""Placeholders back to what they stand for, in a text that arrives in pieces."""

from __future__ import annotations

from server.text.pii.placeholders import CLOSE, OPEN, Placeholders


class Restorer:
    """What may be the beginning of a placeholder is held back: less than the longest one's length. A placeholder that
    stands for nothing, or that is not complete, stays as it is."""

    def __init__(self, placeholders: Placeholders) -> None:
        self._placeholders = placeholders
        self._held = ""

    @property
    def num_held(self) -> int:
        return len(self._held)

    def feed(self, text: str) -> str:
        if not self._held and OPEN not in text:
            return text
        text = self._held + text
        last = text.rfind(OPEN)
        is_open = CLOSE not in text[last:] and self._placeholders.has_beginning(text[last:])
        done, self._held = (text[:last], text[last:]) if is_open else (text, "")
        return self._restored(done)

    def flush(self) -> str:
        held, self._held = self._held, ""
        return held

    def _restored(self, text: str) -> str:
        before, *parts = text.split(OPEN)
        return before + "".join(map(self._part, parts))

    def _part(self, part: str) -> str:
        """Of a text, from behind an OPEN to the next."""
        end = part.find(CLOSE) + 1
        value = self._placeholders.value(OPEN + part[:end]) if end else None
        return OPEN + part if value is None else value + part[end:]
