"""The one way in which patterns are searched here: by RE2, and without any loop.

RE2 looks at a text's characters one after another and never goes back, so no text is dear. Without loops a pattern
matches at most as many bytes as its program has instructions, so that searching on behind each match is linear too:
at most MAX_PROGRAM steps a byte, whatever the text.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Protocol, TypeVar

try:
    import re2
except ImportError as error:  # the optional dependency
    raise ImportError('it needs the package google-re2: install "penstock[pii]"') from error

MAX_PROGRAM = 1000
_LITERAL = re.compile(
    r"\\.|\[\^?\]?(?:\[:\^?[a-z]+:\]|\\.|[^\]\\])*\]", re.DOTALL
)  # where "*" and such mean themselves
_LOOP = re.compile(r"[*+]|\{[0-9]+,\}")

Text = TypeVar("Text", str, bytes)


class Match(Protocol):
    def span(self) -> tuple[int, int]: ...


class Pattern(Protocol):
    """What is used of RE2's. Of bytes, `position` and spans count bytes; `\\b` looks before `position` too."""

    def search(self, text: Text, position: int = 0) -> Match | None: ...

    def finditer(self, text: Text) -> Iterator[Match]: ...

    @property
    def programsize(self) -> int: ...


class PatternError(ValueError):
    """One line: what is wrong with a pattern."""


def bounded(pattern: str) -> Pattern:
    """Raises PatternError for one that is no pattern, may match without end, or could take too long."""
    options = re2.Options()
    options.never_capture = True
    options.log_errors = False
    try:
        compiled: Pattern = re2.compile(pattern, options)
    except re2.error as error:
        raise PatternError(f"not a pattern of RE2: {_words(error)}") from None
    if "\\Q" in pattern or "\\C" in pattern or _LOOP.search(_LITERAL.sub("", pattern)):
        raise PatternError("expected bounded repetition: {0,64} in the place of * and {1,64} in that of +")
    if compiled.programsize > MAX_PROGRAM:
        raise PatternError(f"too large: {compiled.programsize} instructions of RE2, of at most {MAX_PROGRAM}")
    if compiled.search("") is not None:
        raise PatternError("it matches the empty text")
    return compiled


def _words(error: Exception) -> str:
    reason = error.args[0] if error.args else error
    return reason.decode(errors="replace") if isinstance(reason, bytes) else str(reason)
