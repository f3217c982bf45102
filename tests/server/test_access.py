"""Which key a connection presents."""

from __future__ import annotations

import pytest
from starlette.requests import HTTPConnection

from server.access import presented_key


def presented(*headers: bytes) -> str | None:
    return presented_key(HTTPConnection({"type": "http", "headers": [(b"authorization", h) for h in headers]}))


@pytest.mark.parametrize(
    ("header", "key"),
    [
        (b"Bearer sk-pen-my-own-key-123456", "sk-pen-my-own-key-123456"),
        (b"bearer  \twords with spaces ", "words with spaces"),
        ("Bearer schlüssel-mit-umlaut-à".encode(), "schlüssel-mit-umlaut-à"),  # its last byte is Latin-1's space
        ("Bearer schlüssel-mit-umlaut".encode("latin-1"), "schlüssel-mit-umlaut"),
        (b"Bearer ", ""),
        (b"Basic abcdefgh", None),
        (b"", None),
    ],
)
def test_the_key_of_a_header(header: bytes, key: str | None) -> None:
    assert presented(header) == key


def test_no_key_and_several() -> None:
    assert presented() is None
    assert presented(b"Bearer a", b"Bearer a") is None
