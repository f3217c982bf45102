"""Penalties for tokens that were there before, as arrays. numpy only."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from engines.drawing import FloatRow, IdRow
from engines.types import SamplingParams


class TokenCounts:
    """The tokens that penalties apply to, as growing arrays: `ids` and how often each was generated."""

    def __init__(self, prompt_token_ids: Sequence[int]) -> None:
        unique = list(dict.fromkeys(prompt_token_ids))
        self._slots = {token: slot for slot, token in enumerate(unique)}
        self._ids = np.zeros(max(64, 2 * len(unique)), dtype=np.int64)
        self._counts = np.zeros(len(self._ids), dtype=np.float32)
        self._ids[: len(unique)] = unique

    @property
    def ids(self) -> IdRow:
        return self._ids[: len(self._slots)]

    @property
    def counts(self) -> FloatRow:
        return self._counts[: len(self._slots)]

    def add(self, token: int) -> None:
        slot = self._slots.setdefault(token, len(self._slots))
        if slot == len(self._ids):
            self._ids = np.concatenate([self._ids, np.zeros_like(self._ids)])
            self._counts = np.concatenate([self._counts, np.zeros_like(self._counts)])
        self._ids[slot] = token
        self._counts[slot] += 1


def penalize(row: FloatRow, counts: TokenCounts, params: SamplingParams) -> None:
    logits = row[counts.ids]
    if params.repetition_penalty != 1:
        penalty = np.float32(params.repetition_penalty)
        logits = np.where(logits > 0, logits / penalty, logits * penalty)
    logits -= np.float32(params.frequency_penalty) * counts.counts
    logits -= np.float32(params.presence_penalty) * (counts.counts > 0)
    row[counts.ids] = logits
