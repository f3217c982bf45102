"""Phone numbers: with a country's code (E.164), in common national forms, or behind a word that says so.

A run of digits alone is no phone number, however long: it may as well be an order, a sum or a time.
"""

from __future__ import annotations

import re

_SEPARATORS = b" ./()-+"
_DATE = re.compile(rb"\(?[0-9]{2}[./-][0-9]{2}[./-](?:19|20)[0-9]{2}(?![0-9])")
_GLUE = (b".", b",", b"-", b"+", b"/")  # before the middle of a longer number
_FIRST_DIGIT = re.compile(rb"[0-9]")
_NORTH_AMERICAN = re.compile(rb"\+ ?1(?:[^0-9]{0,2}[0-9]){10}")
_WORDS = (
    "phone|telephone|tel|mobile|cell|cellphone|call|call me|fax|whatsapp|sms|text me|telefon|telefonnummer|handy|"
    "handynummer|mobil|rufnummer|contact number|t.l.phone|t.l|tel.fono|m.vil"
)
_BETWEEN = r"(?: ?(?:no|nr|number|nummer|is|ist|at|me at|us at|on|est|es)\b){0,2}[ .:#=\"'-]{0,4}"


def _is_cut_off(shape: bytes, start: int) -> bool:
    before = shape[max(0, start - 2) : start]
    return before[-1:].isalnum() or before[-1:] in _GLUE or (before[:1].isdigit() and before[-1:] == b" ")


def _num_digits(shape: bytes, start: int, end: int) -> int:
    return len(shape[start:end].translate(None, _SEPARATORS))


def international(shape: bytes, start: int, end: int) -> tuple[int, int] | None:
    """+49 30 1234567. North America's have ten digits behind the code; of others the length is not known."""
    if shape[max(0, start - 1) : start].isalnum():
        return None
    if match := _NORTH_AMERICAN.match(shape, start, end):
        end = match.end()
    is_cut = shape[end : end + 1].isdigit()
    return (start, end) if not is_cut and 8 <= _num_digits(shape, start, end) <= 15 else None


def double_zero(shape: bytes, start: int, end: int) -> tuple[int, int] | None:
    """0049 30 1234567: with a separator, or so long that it is no order's number."""
    count = _num_digits(shape, start, end)
    is_one = 11 <= count <= 17 and (count < end - start or count >= 13)
    return (start, end) if is_one and not _is_cut_off(shape, start) else None


def north_american(shape: bytes, start: int, end: int) -> tuple[int, int] | None:
    """(212) 555-0143"""
    return None if _is_cut_off(shape, start) else (start, end)


def trunk_zero(shape: bytes, start: int, end: int) -> tuple[int, int] | None:
    """030 1234567, 0151/2345678, 06 12 34 56 78: at least one separator, and no date."""
    count = _num_digits(shape, start, end)
    if count == end - start or _is_cut_off(shape, start) or not 9 <= count <= 12 or _DATE.match(shape, start):
        return None
    start += shape[start:end].startswith(b"(") and b")" not in shape[start:end]
    return None if shape[end : end + 1] == b":" else (start, end)


def named(shape: bytes, start: int, end: int) -> tuple[int, int] | None:
    """Tel. 2345678: the digits alone are masked."""
    first = _FIRST_DIGIT.search(shape, start, end)
    assert first is not None
    start = first.start()
    return (start, end) if 7 <= _num_digits(shape, start, end) <= 15 and not _DATE.match(shape, start) else None


# Behind a digit and one of these, every further group is cut off.
_GROUPS = rb"\(?[0-9]+(?:[ ./-][0-9]+)*"
_WORD = rb"\w*"

FORMS = (
    (r"\+ ?[1-9](?:[ ./()-]{0,2}[0-9]){7,14}", international, _WORD),
    (r"\b00[1-9](?:[ ./()-]{0,2}[0-9]){8,14}\b", double_zero, _GROUPS),
    (r"(?:\b1[ .-])?(?:\([2-9][0-9]{2}\) ?|\b[2-9][0-9]{2}[ .-])[2-9][0-9]{2}[ .-][0-9]{4}\b", north_american, _GROUPS),
    (r"\(?\b0[1-9](?:[ ./()-]{0,3}[0-9]){6,9}[0-9]\b", trunk_zero, _GROUPS),
    (rf"(?i)\b(?:{_WORDS})\b{_BETWEEN}[0-9](?:[ ./()-]{{0,2}}[0-9]){{6,14}}\b", named, _WORD),
)
