"""IP addresses, as the system reads them. What is the same everywhere (loopback, masks) is nobody's."""

from __future__ import annotations

import re
import socket

_BYTE = "(?:25[0-5]|2[0-4][0-9]|1[0-9]{2}|[1-9]?[0-9])"
_HEX = "[0-9A-Fa-f]{1,4}"
IPV4 = rf"\b{_BYTE}\.{_BYTE}\.{_BYTE}\.{_BYTE}\b"
IPV6 = rf"[0-9A-Fa-f]{{3,4}}:(?:(?:{_HEX}:){{0,6}}:|(?:{_HEX}:){{5,6}}[0-9A-Fa-f])"
"""With "::" for what is left out, or with all of its groups."""
_IPV6_RUN = re.compile(rb"[0-9A-Fa-f:.]{2,51}")
RUN = rb"[0-9A-Za-z:.]*"
_VERSION = re.compile(rb"(?:version|ver|release|section|chapter|v)[ .:]{0,2}\Z", re.IGNORECASE)
_NOBODYS = (b"127.", b"255.")  # loopback, and what the masks of networks begin with


def ipv4(shape: bytes, start: int, end: int) -> tuple[int, int] | None:
    """Four numbers may be a version: they are where a word for versions stands before them, or a fifth number after."""
    before, after = shape[max(0, start - 10) : start], shape[end : end + 2]
    if before.endswith(b".") or (after[:1] == b"." and after[1:].isdigit()) or _VERSION.search(before):
        return None
    address = shape[start:end]
    return None if address.startswith(_NOBODYS) or address == b"0.0.0.0" else (start, end)


def ipv6(shape: bytes, start: int, end: int) -> tuple[int, int] | None:
    """Times, and names such as std::dec, are none: one has a digit, and three hexadecimal ones or four come first."""
    before = shape[max(0, start - 2) : start]
    run = _IPV6_RUN.match(shape, start)
    if before[-1:].isalnum() or before == b"::" or run is None:
        return None
    text = run[0].rstrip(b".")
    text = text if text.endswith(b"::") else text.rstrip(b":")
    end = start + len(text)
    has_digit = len(text) > len(text.translate(None, b"0123456789"))
    return (start, end) if has_digit and not shape[end : end + 1].isalnum() and _is_ipv6(text) else None


def _is_ipv6(text: bytes) -> bool:
    try:
        socket.inet_pton(socket.AF_INET6, text.decode())
    except OSError:
        return False
    return True
