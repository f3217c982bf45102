"""IP addresses, as the standard library reads them. What is the same everywhere (loopback, masks) is nobody's."""

from __future__ import annotations

import ipaddress
import re

RUN = rb"[0-9A-Za-z:.]*"
_VERSION = re.compile(rb"(?:version|ver|release|section|chapter|v)[ .:]{0,2}\Z", re.IGNORECASE)
_FULL_BYTE = 255  # what the masks of networks begin with


def ipv4(shape: bytes, start: int, end: int) -> tuple[int, int] | None:
    """Four numbers may be a version: they are where a word for versions stands before them, or a fifth number after."""
    before, after = shape[max(0, start - 10) : start], shape[end : end + 2]
    if before.endswith(b".") or (after[:1] == b"." and after[1:].isdigit()) or _VERSION.search(before):
        return None
    address = _address(shape[start:end])
    if address is None or address.is_loopback or address.is_unspecified or address.packed[0] == _FULL_BYTE:
        return None
    return start, end


def ipv6(shape: bytes, start: int, end: int) -> tuple[int, int] | None:
    """Times, and names in code such as std::dec, are none: one has a digit, and three digits or four come first."""
    if start and shape[start - 1 : start].isalnum():
        return None
    text = shape[start:end].rstrip(b".")
    text = text if text.endswith(b"::") else text.rstrip(b":")
    end = start + len(text)
    first = text.partition(b":")[0]
    has_digit = len(text) > len(text.translate(None, b"0123456789"))
    if len(first) < 3 or not has_digit or shape[end : end + 1].isalnum() or _address(text) is None:
        return None
    return start, end


def _address(text: bytes) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    try:
        return ipaddress.ip_address(text.decode())
    except ValueError:
        return None
