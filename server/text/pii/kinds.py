"""What each kind of personal data looks like. Patterns find candidates in a text's shape, checks decide."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum

from server.text.pii import api_keys, network, numbers, phones

Check = Callable[[bytes, int, int], tuple[int, int] | None]
"""Given a shape and a candidate's place in it: the place of what is masked there, if anything is."""


class Kind(StrEnum):
    """In the order in which they are looked for: what one has found is not looked at by the next."""

    API_KEY = "api_key"
    EMAIL = "email"
    IBAN = "iban"
    IP = "ip"
    CARD = "card"
    PHONE = "phone"


@dataclass(slots=True, frozen=True)
class Look:
    """`run`: the characters that are not looked at again when what begins with them was none. Checks are linear in a
    run, so that all of them together are linear in the text. Patterns are as narrow as may be, since RE2 dismisses a
    near miss a hundred times faster than a check.

    `least`: so many characters has what is found, `needs` among them."""

    pattern: str
    check: Check
    run: bytes = rb"\w*"
    least: int = 7
    needs: bytes = b""


EMAIL = r"[A-Za-z0-9_][A-Za-z0-9_.+%'-]{0,63}@[A-Za-z0-9][A-Za-z0-9.-]{0,64}?\.(?:xn--|[A-Za-z]{2})"
_DOMAIN = re.compile(rb"(?:[A-Za-z0-9-]{1,63}\.){1,8}(?:xn--[A-Za-z0-9-]{2,59}|[A-Za-z]{2,24})")


def _email(shape: bytes, start: int, end: int) -> tuple[int, int] | None:
    """In JSON inside of a text, the letter of an escape (a line's end, a tab) is no part of it."""
    domain = _DOMAIN.match(shape, shape.index(b"@", start) + 1)
    start += shape[max(0, start - 1) : start + 1] in (b"\\n", b"\\r", b"\\t")
    return (start, domain.end()) if domain and shape[start] != ord("@") else None


LOOKS: dict[Kind, tuple[Look, ...]] = {
    Kind.API_KEY: (
        Look(api_keys.PREFIXED, api_keys.prefixed, api_keys.RUN, least=19),
        Look(api_keys.NAMED, api_keys.named, api_keys.RUN, least=25),
    ),
    Kind.EMAIL: (Look(EMAIL, _email, rb"[A-Za-z0-9_.+%'-]*", least=6, needs=b"@"),),
    Kind.IBAN: (Look(numbers.IBAN, numbers.iban, least=15),),
    Kind.IP: (
        Look(network.IPV6, network.ipv6, network.RUN, least=5, needs=b":"),
        Look(network.IPV4, network.ipv4, network.RUN, needs=b"."),
    ),
    Kind.CARD: (Look(numbers.CARD, numbers.card, least=13),),
    Kind.PHONE: tuple(Look(*form) for form in phones.FORMS),
}
