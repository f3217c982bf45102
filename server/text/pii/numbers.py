"""Numbers that carry a check of their own: cards (Luhn, ISO/IEC 7812) and IBANs (ISO 13616, mod 97)."""

from __future__ import annotations

import re
from functools import cache

_DOUBLED = bytes.maketrans(b"0123456789", bytes([0, 2, 4, 6, 8, 1, 3, 5, 7, 9]))
_PLAIN = bytes.maketrans(b"0123456789", bytes(range(10)))
_CARD_LENGTHS = {b"34": (15,), b"37": (15,)} | {b"5%d" % digit: (16,) for digit in range(1, 6)}
_VISA_LENGTHS = (13, 16, 19)
_OTHER_NETWORKS = (b"30", b"35", b"36", b"38", b"39", b"6", b"81")
# Of a byte; those of digits and letters, by which an IBAN is a number.
_VALUES = [b"%d" % int(chr(code), 36) if chr(code).isalnum() and code < 128 else b"" for code in range(256)]
# By country; the registry of ISO 13616.
IBAN_LENGTHS = {
    country.encode(): length
    for length, countries in {
        15: "NO", 16: "BE", 18: "DK FI FK FO GL NL SD", 19: "MK SI", 20: "AT BA EE KZ LT LU XK", 21: "CH HR LI LV",
        22: "BG BH CR DE GB GE IE ME RS VA", 23: "AE GI IL IQ OM SO TL", 24: "AD CZ ES MD PK RO SA SE SK TN VG",
        25: "LY PT ST", 26: "IS TR", 27: "BI DJ FR GR IT MC MR SM", 28: "AL AZ BY CY DO GT HU LB NI PL SV",
        29: "BR EG PS QA UA", 30: "JO KW MU YE", 31: "MT SC", 32: "LC", 33: "RU",
    }.items()
    for country in countries.split()
}  # fmt: skip
_COUNTRIES = "|".join(sorted(country.decode() for country in IBAN_LENGTHS))
IBAN = rf"(?i)\b(?:{_COUNTRIES})[0-9]{{2}}(?:[ -]?[A-Z0-9]){{11}}"
_ISSUED = "(?:2[2-7]|3[0-9]|4[0-9]|5[1-5]|6[0-9]|81)"
CARD = rf"\b{_ISSUED}(?:[0-9]{{11,17}}|[0-9]{{2}}(?:[ -][0-9]{{3,6}}){{2,4}})\b"


def luhn(digits: bytes) -> bool:
    return (sum(digits[-1::-2].translate(_PLAIN)) + sum(digits[-2::-2].translate(_DOUBLED))) % 10 == 0


def card(shape: bytes, start: int, end: int) -> tuple[int, int] | None:
    """The longest card number that begins here and ends with a group of digits: a security code may follow one."""
    last = end
    while last > 0 and len(digits := shape[start:last].translate(None, b" -")) >= 13:
        if len(digits) <= 19 and _is_issued(digits) and luhn(digits):
            return start, last
        last = max(shape.rfind(b" ", start, last), shape.rfind(b"-", start, last))
    return None


def _is_issued(digits: bytes) -> bool:
    """By what the networks' numbers begin with: every tenth number passes Luhn's check by chance."""
    if digits.startswith(b"4"):
        return len(digits) in _VISA_LENGTHS
    if lengths := _CARD_LENGTHS.get(digits[:2]):
        return len(digits) in lengths
    return len(digits) >= 14 and (digits.startswith(_OTHER_NETWORKS) or b"2200" <= digits[:4] <= b"2720")


def iban(shape: bytes, start: int, end: int) -> tuple[int, int] | None:
    """As many letters and digits as its country's have, in any groups."""
    length = IBAN_LENGTHS.get(shape[start : start + 2].upper())
    match = _letters_and_digits(length).match(shape, start) if length else None
    if match is None:
        return None
    number = match[0].translate(None, b" -")
    value = int(b"".join(map(_VALUES.__getitem__, number[4:] + number[:4])))
    return match.span() if value % 97 == 1 else None


@cache
def _letters_and_digits(count: int) -> re.Pattern[bytes]:
    return re.compile(rb"(?:[A-Za-z0-9][ -]?){%d}[A-Za-z0-9]\b" % (count - 1))
