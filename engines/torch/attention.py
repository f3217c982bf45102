"""Attention over paged KV memory, for transformers models whose sequences are packed in one row.

The function registered under `ATTENTION_NAME` finds what it needs in one keyword argument of the model's forward,
`attention_step`, which transformers models hand down to their attention layers. Everything that depends on the plan
alone (indices, block tables, masks) is built once a step and shared by the layers.

The heads of a GQA group are folded into the query length: on CPU, SDPA then runs several times faster than with
`enable_gqa`. One path serves decodes and prefill chunks; a fresh prefill needs neither gather nor mask.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch.nn import functional
from transformers import AttentionInterface

from engines.base import EngineError
from engines.torch.kv_cache import PagedKVCache

ATTENTION_NAME = "penstock_paged"


@dataclass(slots=True, frozen=True)
class LayerCall:
    """One layer's call: query [1, Hq, T, Dk], key [1, Hkv, T, Dk], value [1, Hkv, T, Dv], positions applied."""

    module: Any
    query: torch.Tensor
    key: torch.Tensor
    value: torch.Tensor
    scaling: float
    sliding_window: int | None = None  # a query sees this many keys, its own included
    softcap: float | None = None
    sinks: torch.Tensor | None = None  # [Hq], one more logit a head (gpt-oss)

    @property
    def group_size(self) -> int:
        return self.query.shape[1] // self.key.shape[1]


class AttentionStep(Protocol):
    """What a forward pass carries down to its attention layers."""

    def attend(self, call: LayerCall, extra: dict[str, Any]) -> torch.Tensor:
        """The attention output [1, T, Hq, Dv]. `extra` has the layer's other keyword arguments."""
        ...


def paged_attention(
    module: Any,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None = None,
    *,
    attention_step: AttentionStep | None = None,
    scaling: float | None = None,
    dropout: float = 0.0,
    sliding_window: int | None = None,
    softcap: float | None = None,
    s_aux: torch.Tensor | None = None,
    **extra: Any,
) -> tuple[torch.Tensor, None]:
    """The attention function that transformers calls.

    A mask can only be one that the model made itself, since none is registered for this name: `extra` shows it.
    Raises EngineError for a model that does not hand `attention_step` down.
    """
    if attention_step is None:
        raise EngineError("its attention layers are not given the keyword arguments of the model's call")
    scale = scaling if scaling is not None else float(query.shape[-1] ** -0.5)
    call = LayerCall(module, query, key, value, scale, sliding_window, softcap, s_aux)
    return attention_step.attend(call, extra | {"attention_mask": attention_mask}), None


def register() -> None:
    AttentionInterface.register(ATTENTION_NAME, paged_attention)


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


def is_plainly_causal(call: LayerCall, length: int) -> bool:
    within_window = call.sliding_window is None or length <= call.sliding_window
    return within_window and call.softcap is None and call.sinks is None


def causal(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, call: LayerCall) -> torch.Tensor:
    return functional.scaled_dot_product_attention(
        query, key, value, is_causal=True, scale=call.scaling, enable_gqa=call.group_size > 1
    )


def masked(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, mask: torch.Tensor, call: LayerCall
) -> torch.Tensor:
    """[n, Hq, T, Dv]. The mask [n or 1, 1, G * T or 1, keys] is for queries folded by group."""
    folded = query.reshape(len(query), key.shape[1], -1, query.shape[3])
    if call.softcap is None and call.sinks is None:
        output = functional.scaled_dot_product_attention(
            folded, key, value, attn_mask=_expanded(mask, folded), scale=call.scaling
        )
    else:
        output = _manual(folded, key, value, mask, call)
    return output.reshape(*query.shape[:3], -1)


def _expanded(mask: torch.Tensor, folded: torch.Tensor) -> torch.Tensor:
    """A decode's mask [n, 1, 1, L] serves every folded head; SDPA on CPU wants the query dimension spelled out."""
    return mask.expand(-1, -1, folded.shape[2], -1)


def _manual(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, mask: torch.Tensor, call: LayerCall
) -> torch.Tensor:
    """Attention with capped logits (Gemma 2) or sinks (gpt-oss), which SDPA does not know."""
    scores = torch.matmul(query, key.transpose(2, 3)) * call.scaling
    if call.softcap is not None:
        scores = torch.tanh(scores / call.softcap) * call.softcap
    scores = (scores + mask).float()
    if call.sinks is not None:
        per_head = call.sinks.float().view(1, key.shape[1], call.group_size, 1)
        repeats = query.shape[2] // call.group_size
        sinks = per_head.expand(len(query), -1, -1, repeats).flatten(2)[..., None]
        scores = torch.cat([scores, sinks], dim=-1)
    weights = scores.softmax(dim=-1)[..., : key.shape[2]]
    return torch.matmul(weights.to(query.dtype), value)
