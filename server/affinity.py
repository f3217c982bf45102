"""Where a prompt's beginning was computed last, so that a conversation's next turn finds its prefix there."""

from __future__ import annotations

import hashlib
from array import array
from collections import OrderedDict
from collections.abc import Sequence

BLOCK = 64  # tokens
MAX_BLOCKS = 64  # of a prompt's beginning; two that share so much share enough
MAX_KEYS = 20_000  # of a deployment


def prefix_keys(token_ids: Sequence[int], salt: bytes) -> list[bytes]:
    """Of its first blocks, each with everything before it: the longest last. As workers do, by tenant."""
    digest = hashlib.blake2b(salt, digest_size=8)
    keys = []
    for end in range(BLOCK, min(len(token_ids), BLOCK * MAX_BLOCKS) + 1, BLOCK):
        digest.update(array("q", token_ids[end - BLOCK : end]).tobytes())
        keys.append(digest.digest())
    return keys


class Affinity:
    """Who has had which beginnings, by index of the replica; the least recently used are forgotten."""

    def __init__(self) -> None:
        self._owners: OrderedDict[bytes, int] = OrderedDict()

    def find(self, keys: Sequence[bytes]) -> tuple[int | None, int]:
        """Who had the longest of them, and how many tokens that is."""
        for index in range(len(keys) - 1, -1, -1):
            if (owner := self._owners.get(keys[index])) is not None:
                return owner, (index + 1) * BLOCK
        return None, 0

    def note(self, keys: Sequence[bytes], owner: int) -> None:
        for key in keys:
            self._owners[key] = owner
            self._owners.move_to_end(key)
        while len(self._owners) > MAX_KEYS:
            self._owners.popitem(last=False)
