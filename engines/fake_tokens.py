"""The deterministic engine's answers, with the standard library alone: a model inside a Triton gives them too."""

from __future__ import annotations

import hashlib
from array import array

FIRST_PRINTABLE, NUM_PRINTABLE = 32, 95


def fake_token(prompt_digest: bytes, index: int) -> int:
    """Token `index` of the answer to a prompt: a printable ASCII byte."""
    digest = hashlib.blake2b(index.to_bytes(8, "little"), digest_size=8, key=prompt_digest).digest()
    return FIRST_PRINTABLE + int.from_bytes(digest, "little") % NUM_PRINTABLE


def digest_prompt(token_ids: list[int]) -> bytes:
    return hashlib.blake2b(array("q", token_ids).tobytes(), digest_size=16).digest()


def fake_answer(token_ids: list[int], num_tokens: int) -> list[int]:
    """The whole answer that the engine gives: what tests compare with."""
    digest = digest_prompt(token_ids)
    return [fake_token(digest, index) for index in range(num_tokens)]
