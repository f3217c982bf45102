"""Paged KV memory in numpy: one pool of slots a cache tensor, token after token."""

from __future__ import annotations

import numpy as np

from engines.onnx.decoder import CacheTensor
from engines.onnx.session import Array
from engines.records import IntArray


class PagedKVCache:
    """The KV memory that block tables name: slot s of every pool belongs to the same token.

    Slot s is token `s % block_size` of block `s // block_size`.
    """

    def __init__(
        self, tensors: list[CacheTensor], num_blocks: int, block_size: int, dtype: np.dtype[np.generic]
    ) -> None:
        self.block_size = block_size
        # Zeros: masked positions of a gathered cache are multiplied by 0, which NaN would survive.
        slots = num_blocks * block_size
        self._pools: list[Array] = [np.zeros((slots, t.num_heads, t.dim), dtype=dtype) for t in tensors]

    @property
    def bytes(self) -> int:
        return sum(pool.nbytes for pool in self._pools)

    def gather(self, slots: IntArray) -> list[Array]:
        """The slots [n, tokens] as [n, heads, tokens, dim], one array a cache tensor."""
        return [np.ascontiguousarray(pool[slots].transpose(0, 2, 1, 3)) for pool in self._pools]

    def write(self, slots: IntArray, present: list[Array], valid: Array) -> None:
        """Keep the last tokens of `present` in `slots` [tokens]: those where `valid` [n, last tokens] holds, by row."""
        for pool, states in zip(self._pools, present, strict=True):
            pool[slots] = states[:, :, -valid.shape[1] :].transpose(0, 2, 1, 3)[valid]

    def scrub(self, blocks: IntArray) -> None:
        """Replace NaN and infinities by 0 in these blocks, so that their next owners never meet them."""
        slots = (blocks[:, None] * self.block_size + np.arange(self.block_size)).ravel()
        for pool in self._pools:
            pool[slots] = np.nan_to_num(pool[slots], nan=0.0, posinf=0.0, neginf=0.0)
