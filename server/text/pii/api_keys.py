"""Keys of services: by how the well-known ones begin, or behind a word that says so. Either has to look like chance:
words repeat themselves more, and are of one kind of letter."""

from __future__ import annotations

import math
import re
from collections import Counter

RUN = rb"[A-Za-z0-9_./+=~-]*"
_RUN = re.compile(RUN)
_VALUE = re.compile(rb"[A-Za-z0-9_./+=~-]{20}\Z")
_AMAZON = (b"AKIA", b"ASIA")
_DIGITS, _CAPITALS, _SMALL = b"0123456789", b"ABCDEFGHIJKLMNOPQRSTUVWXYZ", b"abcdefghijklmnopqrstuvwxyz"
_JUDGED = 128  # characters of a key, however long it is
_MIN_ENTROPY = 3.0  # bits a character
_PREFIXES = (
    r"sk-|[srp]k_(?:live|test)_|gh[pousr]_|github_pat_|glpat-|xox[abeoprs]-|xapp-|hf_|gsk_|xai-|npm_|pypi-|dop_v1_|"
    r"shpat_|whsec_|ya29\.|AIza|r8_|SG\.|eyJ"
)
_NAMES = (
    "api[_ -]?key|access[_ -]?key|access[_ -]?token|auth[_ -]?token|secret[_ -]?key|client[_ -]?secret|secret|token|"
    "authorization|bearer"
)
PREFIXED = rf"\b(?:(?:{_PREFIXES})[A-Za-z0-9_-]{{16}}|(?:AKIA|ASIA)[0-9A-Z]{{16}}\b)"
NAMED = rf"(?i)\b(?:{_NAMES})\b[\"']{{0,2}}(?: is)?[ ]{{0,2}}[:=]?[ ]{{0,2}}[\"']?(?:bearer )?[A-Za-z0-9_./+=~-]{{20}}"


def prefixed(shape: bytes, start: int, end: int) -> tuple[int, int] | None:
    if shape[start : start + 4] in _AMAZON:
        return start, end
    return _judged(shape, start, least=0)


def named(shape: bytes, start: int, end: int) -> tuple[int, int] | None:
    value = _VALUE.search(shape, start, end)
    return None if value is None else _judged(shape, value.start(), least=2)


def _judged(shape: bytes, start: int, *, least: int) -> tuple[int, int] | None:
    """The key that begins there, to its end. `least`: so many digits are among its letters."""
    run = _RUN.match(shape, start)
    assert run is not None
    key = run[0].rstrip(b".")
    digits, capitals, small = (_num_of(key[:_JUDGED], kind) for kind in (_DIGITS, _CAPITALS, _SMALL))
    is_mixed = digits >= least and min(digits + capitals, digits + small, capitals + small) > 0
    return (start, start + len(key)) if is_mixed and _entropy(key[:_JUDGED]) >= _MIN_ENTROPY else None


def _num_of(key: bytes, letters: bytes) -> int:
    return len(key) - len(key.translate(None, letters))


def _entropy(key: bytes) -> float:
    return -sum(count / len(key) * math.log2(count / len(key)) for count in Counter(key).values())
