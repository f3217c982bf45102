"""Attention over paged KV memory by torch alone, on any device: gathers the blocks of a length bucket, then runs SDPA.

Everything that depends on the plan alone (indices, block tables, masks) is built once a step and shared by the layers.
One path serves decodes and prefill chunks; a fresh prefill needs neither gather nor mask.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from engines.records import IntArray
from engines.torch.attention import LayerCall, causal, is_plainly_causal, masked
from engines.torch.backend import AttentionBackend, KVSize, LayerShape
from engines.torch.kv_cache import PagedKVCache
from engines.torch.packing import PackedStep


@dataclass(slots=True, frozen=True)
class KeyView:
    """The gathered keys of a batch and what each query may see of them."""

    block_ids: torch.Tensor  # [n * blocks]
    mask: torch.Tensor  # additive, [n, 1, G * Tmax or 1, blocks * block_size]


class AttentionBatch:
    """Sequences that attend in one call, padded to the most queries and the longest context among them.

    `first_row` is where they start in the packed row; `starts` and `lengths` [n] are the positions they compute;
    `tables` [n, blocks] their block tables, padded with any valid block.
    """

    def __init__(
        self,
        first_row: int,
        starts: torch.Tensor,
        lengths: torch.Tensor,
        tables: torch.Tensor,
        block_size: int,
        dtype: torch.dtype,
    ) -> None:
        self.size = len(starts)
        self.max_queries = int(lengths.max())
        self.num_rows = int(lengths.sum())
        self.rows = slice(first_row, first_row + self.num_rows)
        self.is_fresh_prefill = self.max_queries > 1 and not bool(starts.any())
        self._starts, self._lengths, self._tables = starts, lengths, tables
        self._block_size, self._dtype = block_size, dtype
        self._views: dict[tuple[int | None, int], KeyView] = {}
        self._pad, self._unpad = self._padding()

    def _padding(self) -> tuple[torch.Tensor | None, torch.Tensor | None]:
        """Indices from rows to padded rows and back; None where all lengths are equal."""
        if self.num_rows == self.size * self.max_queries:
            return None, None
        queries = torch.arange(self.max_queries, device=self._starts.device)
        offsets = self._lengths.cumsum(0) - self._lengths
        padded = offsets[:, None] + torch.minimum(queries, self._lengths[:, None] - 1)
        real = (queries < self._lengths[:, None]).flatten().nonzero().flatten()
        return padded.flatten(), real

    def pad(self, states: torch.Tensor) -> torch.Tensor:
        """[1, H, T, D] of the whole step -> [n, H, Tmax, D] of this batch."""
        rows = states[0, :, self.rows]
        if self._pad is not None:
            rows = rows.index_select(1, self._pad)
        return rows.view(len(rows), self.size, self.max_queries, -1).transpose(0, 1)

    def unpad(self, output: torch.Tensor) -> torch.Tensor:
        """[n, H, Tmax, D] -> this batch's rows [rows, H, D]."""
        rows = output.transpose(1, 2).flatten(0, 1)
        return rows if self._unpad is None else rows.index_select(0, self._unpad)

    def view(self, window: int | None, group_size: int) -> KeyView:
        """Blocks and mask for layers of one sliding window (None: all keys), for queries folded by group."""
        key = (window, group_size if self.max_queries > 1 else 1)
        if key not in self._views:
            self._views[key] = self._build_view(window, key[1])
        return self._views[key]

    def _build_view(self, window: int | None, folds: int) -> KeyView:
        block_ids, first_positions = self._visible_blocks(window)
        tokens = torch.arange(block_ids.shape[1] * self._block_size, device=block_ids.device)
        keys = (first_positions[:, None] + tokens)[:, None, :]
        queries = torch.arange(self.max_queries, device=block_ids.device)
        positions = (self._starts[:, None] + torch.minimum(queries, self._lengths[:, None] - 1))[:, :, None]
        hidden = keys > positions
        if window is not None:
            hidden |= keys <= positions - window
        mask = torch.zeros(hidden.shape, dtype=self._dtype, device=hidden.device)
        mask.masked_fill_(hidden, float("-inf"))
        return KeyView(block_ids.flatten(), mask.repeat(1, folds, 1)[:, None])

    def _visible_blocks(self, window: int | None) -> tuple[torch.Tensor, torch.Tensor]:
        """The part of the block tables that a window reaches [n, blocks], and the position it begins at [n]."""
        if window is None or int(self._starts.max()) < window:
            return self._tables, torch.zeros_like(self._starts)
        first = ((self._starts - window + 1).clamp(min=0)) // self._block_size
        last = (self._starts + self._lengths - 1) // self._block_size
        columns = first[:, None] + torch.arange(int((last - first).max()) + 1, device=first.device)
        return self._tables.gather(1, columns.clamp(max=self._tables.shape[1] - 1)), first * self._block_size


class PagedStep:
    """One step's attention: writes the new keys and values, then attends batch by batch."""

    def __init__(self, cache: PagedKVCache, slot_mapping: torch.Tensor, batches: list[AttentionBatch]) -> None:
        self._cache, self._slot_mapping, self._batches = cache, slot_mapping, batches

    def attend(self, call: LayerCall, extra: dict[str, Any]) -> torch.Tensor:
        self._cache.write(call.module.layer_idx, self._slot_mapping, call.key, call.value)
        outputs = [batch.unpad(self._attend_batch(batch, call)) for batch in self._batches]
        return (outputs[0] if len(outputs) == 1 else torch.cat(outputs))[None]

    def _attend_batch(self, batch: AttentionBatch, call: LayerCall) -> torch.Tensor:
        """[n, Hq, Tmax, Dv] of one batch."""
        query = batch.pad(call.query)
        if batch.is_fresh_prefill and is_plainly_causal(call, batch.max_queries):
            return causal(query, batch.pad(call.key), batch.pad(call.value), call)
        view = batch.view(call.sliding_window, call.group_size)
        key, value = self._cache.gather(call.module.layer_idx, view.block_ids, batch.size)
        return masked(query, key, value, view.mask, call)


class PagedBackend(AttentionBackend):
    name = "SDPA"

    def __init__(self, shapes: list[LayerShape], size: KVSize) -> None:
        super().__init__(shapes, size)
        self.cache = PagedKVCache(shapes, size)
        self._dtype, self._device = size.dtype, size.device

    @classmethod
    def token_bytes(cls, shapes: list[LayerShape], dtype: torch.dtype) -> int:
        return sum(shape.elements for shape in shapes) * dtype.itemsize

    @property
    def num_bytes(self) -> int:
        return self.cache.bytes

    def begin(self, step: PackedStep) -> PagedStep:
        return PagedStep(self.cache, self._tensor(step.slots), self._batches(step))

    def scrub(self, blocks: IntArray) -> None:
        self.cache.scrub(self._tensor(blocks))

    def _batches(self, step: PackedStep) -> list[AttentionBatch]:
        first_rows = step.lengths.cumsum() - step.lengths
        parts = [piece for part in step.parts for piece in self._pieces(step, part)]
        return [self._batch(step, part, int(first_rows[part.start])) for part in parts]

    def _pieces(self, step: PackedStep, part: slice) -> list[slice]:
        """A part cut so that the padded contexts of each piece fit the cache's scratch memory."""
        longest = int((step.starts[part] + step.lengths[part]).max())
        size = max(1, self.cache.gather_tokens // longest)
        return [slice(i, min(i + size, part.stop)) for i in range(part.start, part.stop, size)]

    def _batch(self, step: PackedStep, part: slice, first_row: int) -> AttentionBatch:
        starts, lengths = step.starts[part], step.lengths[part]
        blocks = -(-int((starts + lengths).max()) // self.block_size)
        tables = self._tensor(step.tables[part, :blocks])
        return AttentionBatch(
            first_row, self._tensor(starts), self._tensor(lengths), tables, self.block_size, self._dtype
        )

    def _tensor(self, array: IntArray) -> torch.Tensor:
        return torch.from_numpy(array).to(self._device)
