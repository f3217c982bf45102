"""The values that were taken out of one request, and what stands in their places."""

from __future__ import annotations

import hashlib
from bisect import bisect_left
from collections import Counter

OPEN, CLOSE = "<", ">"


class Placeholders:
    """`<EMAIL_1>` and so on: the same value has the same placeholder throughout a request.

    None holds OPEN or CLOSE within it, so that two of them never overlap. The values live here alone, as long as
    their request does, and are in no representation of it.
    """

    def __init__(self) -> None:
        self._by_value: dict[tuple[str, str], str] = {}
        self._values: dict[str, str] = {}
        self._sorted: list[str] = []
        self._numbers: Counter[str] = Counter()
        self.longest = 0

    def __len__(self) -> int:
        return len(self._values)

    def __repr__(self) -> str:
        return f"Placeholders({len(self)} values)"

    def of(self, value: str, kind: str) -> str:
        """What stands for a value. `kind` is in capitals."""
        placeholder = self._by_value.get((kind, value))
        if placeholder is None:
            self._numbers[kind] += 1
            placeholder = f"{OPEN}{kind}_{self._numbers[kind]}{CLOSE}"
            self._by_value[kind, value] = placeholder
            self._values[placeholder] = value
            self._sorted = []
            self.longest = max(self.longest, len(placeholder))
        return placeholder

    def value(self, placeholder: str) -> str | None:
        return self._values.get(placeholder)

    def has_beginning(self, text: str) -> bool:
        """Whether a placeholder begins so."""
        if not self._sorted:
            self._sorted = sorted(self._values)
        at = bisect_left(self._sorted, text)
        return at < len(self._sorted) and self._sorted[at].startswith(text)

    def digest(self) -> bytes:
        """The same for the same values in the same places. Short values can be guessed by it: it is as secret."""
        pairs = "\0".join(f"{placeholder}\0{len(value)}\0{value}" for placeholder, value in self._values.items())
        return hashlib.sha256(pairs.encode(errors="surrogatepass")).digest()
