"""Token ids to text, a few at a time, never half a character."""

from __future__ import annotations

from codecs import utf_8_decode
from collections.abc import Callable, Sequence

TokenBytes = Callable[[int], bytes]
"""A token's bytes of UTF-8; none for a special token or an unknown id."""


class IncrementalDetokenizer:
    """One answer's text. All pieces together are what the tokenizer's `decode` gives for all ids together.

    Every token is a fixed run of bytes (except an answer's first, see below), so text is bytes decoded as UTF-8
    and what is held back is a character's first bytes: three at most. Bytes that are no UTF-8 become U+FFFD as soon
    as that is certain, as many of them as `str.decode(errors="replace")` gives.

    `first_bytes` gives the bytes of a token that begins the text: decoders in SentencePiece's manner drop one
    leading space there. None where position doesn't matter.
    """

    __slots__ = ("_first_bytes", "_held", "_token_bytes")

    def __init__(self, token_bytes: TokenBytes, first_bytes: TokenBytes | None = None) -> None:
        self._token_bytes = token_bytes
        self._first_bytes = first_bytes
        self._held = b""

    def add(self, ids: Sequence[int]) -> str:
        """The text that these ids complete; may be empty."""
        if self._first_bytes is not None:
            data = b"".join([self._next_bytes(i) for i in ids])
        elif len(ids) == 1:
            data = self._held + self._token_bytes(ids[0])
        else:
            data = self._held + b"".join(map(self._token_bytes, ids))
        text, used = utf_8_decode(data, "replace", False)
        self._held = data[used:]
        return text

    def bytes_of(self, token_id: int) -> bytes:
        """What a token would add if it came next."""
        return self._token_bytes(token_id) if self._first_bytes is None else self._first_bytes(token_id)

    def finish(self) -> str:
        """What was held back: U+FFFD when the ids ended inside a character."""
        text, _ = utf_8_decode(self._held, "replace", True)
        self._held = b""
        return text

    def _next_bytes(self, token_id: int) -> bytes:
        """Only until a token with text has passed: it is the first one, the rest are ordinary."""
        data = self._token_bytes(token_id)
        if data and self._first_bytes is not None:
            data, self._first_bytes = self._first_bytes(token_id), None
        return data
