"""What clients keep for us."""

from __future__ import annotations

import base64

import pytest

from server.errors import InvalidRequest
from server.responses.seal import Seal, seal_key

KEY = seal_key(b"pepper")
MINE = Seal(KEY, "acct")


@pytest.mark.parametrize("text", ["", "a summary", "漢字" * 1000])
def test_what_is_sealed_is_opened(text: str) -> None:
    assert MINE.open(MINE.close(text), "input") == text


@pytest.mark.parametrize("other", [Seal(KEY, "other"), Seal(seal_key(b"another"), "acct")])
def test_only_its_account_s_and_this_server_s_is(other: Seal) -> None:
    with pytest.raises(InvalidRequest) as caught:
        other.open(MINE.close("mine"), "input")
    assert (caught.value.param, caught.value.code) == ("input", "invalid_encrypted_content")


def test_what_was_changed_is_refused() -> None:
    sealed = bytearray(base64.urlsafe_b64decode(MINE.close("mine")))
    for index in range(len(sealed)):
        changed = sealed.copy()
        changed[index] ^= 1
        with pytest.raises(InvalidRequest):
            MINE.open(base64.urlsafe_b64encode(changed).decode(), "input")


@pytest.mark.parametrize("text", ["", "x", "é", "not ours at all", "A" * 100])
def test_what_nobody_sealed_is_refused(text: str) -> None:
    with pytest.raises(InvalidRequest):
        MINE.open(text, "input")
