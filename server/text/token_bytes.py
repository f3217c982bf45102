"""What bytes a token stands for, read from the decoder of a tokenizer.json."""

from __future__ import annotations

import re
from typing import Any

from tokenizers import Tokenizer

_PER_TOKEN = frozenset({"Metaspace", "Replace", "ByteFallback", "Fuse", "Strip", "WordPiece"})
_BYTE_TOKEN = re.compile(r"<0x([0-9A-Fa-f]{2})>")
_PROBES = "aeiotnsAEIOTNS01e"


class UnsupportedDecoderError(ValueError):
    """A token's text would depend on what follows it."""


class TokenBytesTable:
    """Bytes by token id, filled as tokens come up.

    Three kinds of tokens: byte-level pieces (GPT-2's letters for bytes), byte tokens ("<0x0A>") and plain pieces.
    A plain piece's text is asked of the library itself: decoded behind another piece, and alone for the text's
    start. So this holds for every decoder that treats tokens one by one; others are refused.
    """

    def __init__(self, tokenizer: Tokenizer, decoder: dict[str, Any] | None, special_ids: frozenset[int]) -> None:
        self._tokenizer = tokenizer
        self._special_ids = special_ids
        steps = decoder_steps(decoder)
        self._byte_level = "ByteLevel" in steps
        self._byte_fallback = "ByteFallback" in steps
        self._bytes: dict[int, bytes] = {}
        if not self._byte_level:
            self._probe, self._probe_text = _find_probe(tokenizer, special_ids)

    @property
    def position_matters(self) -> bool:
        """Whether the text's first token may read otherwise than the same token later."""
        return not self._byte_level

    def token(self, token_id: int) -> bytes:
        """The bytes of a token that has text before it. Empty for special tokens and unknown ids."""
        data = self._bytes.get(token_id)
        if data is None:
            data = self._bytes[token_id] = self._look_up(token_id)
        return data

    def first_token(self, token_id: int) -> bytes:
        """The bytes of a token that begins the text."""
        data = self.token(token_id)
        if data and (data.isascii() or self._byte_value(token_id) is None):
            return self._tokenizer.decode([token_id], skip_special_tokens=True).encode()
        return data

    def _look_up(self, token_id: int) -> bytes:
        piece = None if token_id in self._special_ids or token_id < 0 else self._tokenizer.id_to_token(token_id)
        if piece is None:
            return b""
        if self._byte_level:
            return byte_level_bytes(piece)
        if (value := self._byte_value(token_id)) is not None:
            return bytes([value])
        pair = self._tokenizer.decode([self._probe, token_id], skip_special_tokens=True)
        return pair[len(self._probe_text) :].encode()

    def _byte_value(self, token_id: int) -> int | None:
        if not self._byte_fallback:
            return None
        match = _BYTE_TOKEN.fullmatch(self._tokenizer.id_to_token(token_id) or "")
        return int(match[1], 16) if match else None


def decoder_steps(decoder: dict[str, Any] | None) -> frozenset[str]:
    """The decoder's step types, or UnsupportedDecoderError."""
    steps = decoder.get("decoders", [decoder]) if decoder else []
    kinds = frozenset(str(step.get("type")) for step in steps)
    if unknown := kinds - (frozenset({"ByteLevel", "Fuse"}) if "ByteLevel" in kinds else _PER_TOKEN):
        raise UnsupportedDecoderError(f"decoder {'/'.join(sorted(unknown))} is not supported")
    return kinds


def _find_probe(tokenizer: Tokenizer, special_ids: frozenset[int]) -> tuple[int, str]:
    """An ordinary token, and how it reads at the start of a text."""
    for letter in _PROBES:
        for token_id in reversed(tokenizer.encode(letter, add_special_tokens=False).ids):
            text = "" if token_id in special_ids else tokenizer.decode([token_id])
            if text.strip("\ufffd"):
                return token_id, text
    raise UnsupportedDecoderError("no letter has a token")


def _byte_of_letter() -> dict[str, int]:
    """GPT-2's table: printable Latin-1 stands for itself, the other bytes for U+0100 and up, in order."""
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    table = {chr(byte): byte for byte in printable}
    others = [byte for byte in range(256) if byte not in set(printable)]
    return table | {chr(0x100 + i): byte for i, byte in enumerate(others)}


_LETTERS = _byte_of_letter()


def byte_level_bytes(piece: str) -> bytes:
    """A piece with a letter outside the table is an added token: it stands for itself."""
    try:
        return bytes([_LETTERS[letter] for letter in piece])
    except KeyError:
        return piece.encode()
