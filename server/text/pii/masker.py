"""One request's texts with placeholders in the place of personal data."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping
from typing import Any

from server.text.pii.detector import LOOKALIKE, Detector
from server.text.pii.placeholders import Placeholders


class Masker:
    """`counts`: how often each kind was masked."""

    def __init__(self, detector: Detector) -> None:
        self._detector = detector
        self.placeholders = Placeholders()
        self.counts: Counter[str] = Counter()

    def text(self, text: str) -> str:
        parts: list[str] = []
        position = 0
        for one in self._detector.find(text):
            if one.kind != LOOKALIKE:
                self.counts[one.kind] += 1
            parts += text[position : one.start], self.placeholders.of(text[one.start : one.end], one.kind.upper())
            position = one.end
        return "".join([*parts, text[position:]]) if parts else text

    def json(self, value: Any) -> Any:
        """JSON-like data: every string, keys included; and every whole number, which is a string where it is masked."""
        match value:
            case str():
                return self.text(value)
            case bool():
                return value
            case int():
                text = str(value) if abs(value) < 10**40 else ""
                masked = self.text(text)
                return value if masked == text else masked
            case Mapping():
                return {self.text(key): self.json(item) for key, item in value.items()}
            case list() | tuple():
                return [self.json(item) for item in value]
            case _:
                return value

    def json_text(self, text: str) -> str:
        """JSON as text, such as the arguments of a tool call. Left as it is written where nothing is masked."""
        try:
            value = json.loads(text)
        except (ValueError, RecursionError):
            return self.text(text)
        masked = self.json(value)
        return text if masked == value else json.dumps(masked, ensure_ascii=False)
