"""Paged KV memory of the GPU path, and the block tables beside it."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from engines.torch.backend import LayerShape


@dataclass(slots=True, frozen=True)
class LayerMemory:
    """Of one layer: keys [blocks, block_size, kv_heads, key_dim], values [blocks, block_size, kv_heads, value_dim]."""

    keys: torch.Tensor
    values: torch.Tensor


@dataclass(slots=True, frozen=True)
class StepRows:
    """The rows of a step, as the device knows them. Row r belongs to the sequence in table `slots[r]` and has position
    `positions[r]`.

    The first `num_decodes` rows are a sequence each; the others are chunks, of which chunk i has the rows from
    `chunk_starts[i]` to `chunk_starts[i + 1]`. What an attention reads is in the tensors; the counts only say how much.
    """

    slots: torch.Tensor  # [rows], int64, as all of them
    positions: torch.Tensor
    num_decodes: int
    chunk_starts: torch.Tensor  # [num_chunks + 1]
    num_chunks: int = 0

    @property
    def num_rows(self) -> int:
        return len(self.positions)


class PagedMemory:
    """The memory that block tables name, one block longer: the last is a scratch block, which belongs to nobody.

    Rows that only pad a batch write there: their slot is the last one, whose table names that block alone.
    """

    def __init__(
        self,
        shapes: list[LayerShape],
        num_blocks: int,
        block_size: int,
        num_slots: int,
        max_model_len: int,
        dtype: torch.dtype,
        device: torch.device,
    ) -> None:
        self.num_blocks, self.block_size = num_blocks, block_size
        self.scratch_block, self.scratch_slot = num_blocks, num_slots
        self.layers = [_layer(shape, num_blocks + 1, block_size, dtype, device) for shape in shapes]
        table_len = -(-max_model_len // block_size)
        self.tables = torch.full((num_slots + 1, table_len), self.scratch_block, dtype=torch.int32, device=device)

    @property
    def bytes(self) -> int:
        return sum(layer.keys.nbytes + layer.values.nbytes for layer in self.layers)

    def check_integrity(self) -> None:
        """The scratch slot leads to the scratch block, and no table leaves the memory."""
        assert bool((self.tables[self.scratch_slot] == self.scratch_block).all())
        assert bool(((self.tables >= 0) & (self.tables <= self.scratch_block)).all())


def _layer(shape: LayerShape, blocks: int, block_size: int, dtype: torch.dtype, device: torch.device) -> LayerMemory:
    sizes = (blocks, block_size, shape.num_kv_heads)
    return LayerMemory(
        torch.zeros((*sizes, shape.key_dim), dtype=dtype, device=device),
        torch.zeros((*sizes, shape.value_dim), dtype=dtype, device=device),
    )
