"""A text as what looks for personal data sees it: ASCII, one character for each, so that places stay."""

from __future__ import annotations

import re
import unicodedata

OTHER = "\0"  # no pattern has it
_CACHED = 4096


class _Shapes(dict[int, str]):
    def __missing__(self, code: int) -> str:
        shape = _shape(chr(code))
        if len(self) < _CACHED:
            self[code] = shape
        return shape


def _shape(character: str) -> str:
    """Digits of any script and wide forms are the ASCII that they stand for, letters are one letter. What is not seen
    (zero-width characters, soft hyphens) is a hyphen, which may stand within most things that are looked for."""
    plain = unicodedata.normalize("NFKC", character)
    if len(plain) == 1 and plain.isascii():
        return plain
    category = unicodedata.category(character)
    if category == "Nd":
        return str(unicodedata.decimal(character))
    if category[0] in "LM":
        return "z"
    if category in ("Pd", "Cf") or character == "\N{MINUS SIGN}":
        return "-"
    return " " if category == "Zs" else OTHER


_SHAPES = _Shapes()
_OTHERS = re.compile(r"[^\x00-\x7f]+")


def shape_of(text: str) -> bytes:
    ascii_text = text if text.isascii() else _OTHERS.sub(lambda run: run[0].translate(_SHAPES), text)
    return ascii_text.encode("ascii")
