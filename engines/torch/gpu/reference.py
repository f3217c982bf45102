"""Paged attention in plain torch, sequence by sequence: what the kernels are compared with, and what runs the GPU path
on a CPU. In at least float32 whatever the dtype of the memory."""

from __future__ import annotations

from itertools import pairwise

import torch

from engines.torch.attention import LayerCall
from engines.torch.gpu.kv_cache import LayerMemory, PagedMemory, StepRows


class ReferenceAttention:
    def __init__(self, memory: PagedMemory) -> None:
        self._memory = memory

    def store(self, layer: LayerMemory, key: torch.Tensor, value: torch.Tensor, rows: StepRows) -> None:
        """Keep [1, kv_heads, rows, dim] of each."""
        blocks = self._memory.tables[rows.slots, rows.positions // self._memory.block_size].long()
        offsets = rows.positions % self._memory.block_size
        layer.keys[blocks, offsets] = key[0].transpose(0, 1)
        layer.values[blocks, offsets] = value[0].transpose(0, 1)

    def attend(self, layer: LayerMemory, call: LayerCall, rows: StepRows) -> torch.Tensor:
        """[rows, query_heads, value_dim]"""
        ends = rows.chunk_starts.tolist() if rows.num_chunks else [rows.num_decodes]
        starts = [*range(rows.num_decodes), *ends]
        parts = [self._attend_sequence(layer, call, rows, slice(first, end)) for first, end in pairwise(starts)]
        return torch.cat(parts).to(call.query.dtype)

    def _attend_sequence(self, layer: LayerMemory, call: LayerCall, rows: StepRows, part: slice) -> torch.Tensor:
        positions = rows.positions[part]
        count = int(positions[-1]) + 1
        size = self._memory.block_size
        table = self._memory.tables[rows.slots[part.start], : -(-count // size)].long()
        exact = torch.promote_types(call.query.dtype, torch.float32)
        keys, values = (pool[table].flatten(0, 1)[:count].to(exact) for pool in (layer.keys, layer.values))
        query = call.query[0, :, part].to(exact)
        query = query.reshape(keys.shape[1], -1, *query.shape[1:])  # [kv_heads, group, queries, dim]
        scores = torch.einsum("hgqd,khd->hgqk", query, keys) * call.scaling
        if call.softcap is not None:
            scores = torch.tanh(scores / call.softcap) * call.softcap
        tokens = torch.arange(count, device=scores.device)
        hidden = tokens[None, :] > positions[:, None]
        if call.sliding_window is not None:
            hidden |= tokens[None, :] <= positions[:, None] - call.sliding_window
        scores = scores.masked_fill(hidden, float("-inf"))
        if call.sinks is not None:
            sinks = call.sinks.to(exact).view(len(query), -1, 1, 1).expand(*scores.shape[:3], 1)
            scores = torch.cat([scores, sinks], dim=-1)
        weights = scores.softmax(dim=-1)[..., :count]
        return torch.einsum("hgqk,khd->qhgd", weights, values).flatten(1, 2)
