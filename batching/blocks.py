"""KV space accounting. Integers and hashes only: the tensors that the blocks stand for belong to the engine."""

from __future__ import annotations

import hashlib
from array import array
from collections import OrderedDict
from collections.abc import Iterable, Sequence


def hash_block(parent: bytes, token_ids: Sequence[int]) -> bytes:
    """Chained hash of one full block: it names the block's tokens and everything before them.

    The first block's `parent` is the request's cache salt, so that tenants never share (CVE-2025-46570).
    """
    if len(parent) > hashlib.blake2b.MAX_KEY_SIZE:
        parent = hashlib.blake2b(parent, digest_size=16).digest()
    return hashlib.blake2b(array("q", token_ids).tobytes(), digest_size=16, key=parent).digest()


class BlockPool:
    """Which blocks are free, who shares which, and which hold a known prefix.

    A block with references is in use. One without is free; if it has a hash its content can still be found again
    until somebody needs the space (least recently used first).
    """

    def __init__(self, num_blocks: int, block_size: int) -> None:
        self.num_blocks = num_blocks
        self.block_size = block_size
        self._references = [0] * num_blocks
        self._hashes: list[bytes | None] = [None] * num_blocks
        self._by_hash: dict[bytes, int] = {}
        self._free: OrderedDict[int, None] = OrderedDict.fromkeys(range(num_blocks))

    @property
    def num_free(self) -> int:
        return len(self._free)

    @property
    def num_used(self) -> int:
        return self.num_blocks - len(self._free)

    def blocks_for(self, num_tokens: int) -> int:
        return -(-num_tokens // self.block_size)

    def find_cached(self, hashes: Iterable[bytes]) -> list[int]:
        """The blocks of the longest known prefix."""
        blocks = []
        for block_hash in hashes:
            if (block := self._by_hash.get(block_hash)) is None:
                break
            blocks.append(block)
        return blocks

    def can_allocate(self, count: int, shared: Sequence[int] = ()) -> bool:
        """Whether `count` fresh blocks remain once the `shared` ones are taken (some of those may be free now)."""
        return count + sum(1 for block in shared if not self._references[block]) <= len(self._free)

    def share(self, blocks: Iterable[int]) -> None:
        for block in blocks:
            if not self._references[block]:
                del self._free[block]
            self._references[block] += 1

    def allocate(self, count: int) -> list[int]:
        """Fresh blocks. The caller has asked `can_allocate`."""
        blocks = [self._free.popitem(last=False)[0] for _ in range(count)]
        for block in blocks:
            self._forget(block)
            self._references[block] = 1
        return blocks

    def publish(self, block: int, block_hash: bytes) -> None:
        """From now on the block's content can be found. Equal content that is known already keeps its block."""
        if self._hashes[block] is None and block_hash not in self._by_hash:
            self._hashes[block] = block_hash
            self._by_hash[block_hash] = block

    def release(self, blocks: Sequence[int]) -> None:
        """Give up one reference each. A prefix's tail is forgotten before its head."""
        for block in reversed(blocks):
            self._references[block] -= 1
            if not self._references[block]:
                self._free[block] = None
                if self._hashes[block] is None:
                    self._free.move_to_end(block, last=False)

    def _forget(self, block: int) -> None:
        if (old := self._hashes[block]) is not None:
            del self._by_hash[old]
            self._hashes[block] = None

    def check_integrity(self, tables: Iterable[Sequence[int]] = ()) -> None:
        """Free + used is everything, and the references are exactly those of `tables`."""
        counts = [0] * self.num_blocks
        for table in tables:
            for block in table:
                counts[block] += 1
        assert counts == self._references, "references differ from the block tables"
        assert {b for b, n in enumerate(counts) if not n} == set(self._free), "free list differs"
        assert all(self._hashes[b] == h for h, b in self._by_hash.items()), "hash index differs"
        assert sum(h is not None for h in self._hashes) == len(self._by_hash)
