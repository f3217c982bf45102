"""`engines.penalties` on the device: how often each slot's sequence has generated each token."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from engines.types import SamplingParams


class DeviceCounts:
    """Of the sequences that are penalized, by slot. The memory is taken when the first of them comes."""

    def __init__(self, num_slots: int, vocab_size: int, device: torch.device) -> None:
        self._shape = (num_slots, vocab_size)
        self._device = device
        self._counts: torch.Tensor | None = None
        self._in_prompt: torch.Tensor | None = None

    def begin(self, slot: int, prompt: Sequence[int], output: Sequence[int]) -> None:
        """A sequence that is penalized takes this slot. `prompt`: empty where the prompt's tokens don't matter."""
        if self._counts is None or self._in_prompt is None:
            self._counts = torch.zeros(self._shape, dtype=torch.int32, device=self._device)
            self._in_prompt = torch.zeros(self._shape, dtype=torch.bool, device=self._device)
        self._counts[slot] = 0
        self._in_prompt[slot] = False
        if prompt:
            self._in_prompt[slot, self._ids(prompt)] = True
        if output:
            ids = self._ids(output)
            ones = torch.ones(len(ids), dtype=torch.int32, device=self._device)
            self._counts[slot].index_put_((ids,), ones, accumulate=True)

    def _ids(self, tokens: Sequence[int]) -> torch.Tensor:
        return torch.tensor(tokens, device=self._device)

    def penalize(self, logits: torch.Tensor, slots: torch.Tensor, penalties: torch.Tensor) -> torch.Tensor:
        """Of the rows [n, vocabulary] of these slots [n]. `penalties` [3, n, 1]: repetition, frequency, presence."""
        assert self._counts is not None
        assert self._in_prompt is not None
        repetition, frequency, presence = penalties
        counts = self._counts[slots].to(torch.float32)
        is_seen = (self._in_prompt[slots] | (counts > 0)) & (repetition != 1)
        logits = torch.where(is_seen, torch.where(logits > 0, logits / repetition, logits * repetition), logits)
        penalized: torch.Tensor = logits - frequency * counts - presence * (counts > 0)
        return penalized

    def add(self, slots: torch.Tensor, tokens: torch.Tensor) -> None:
        assert self._counts is not None
        self._counts[slots, tokens] += 1


def are_asked(params: SamplingParams) -> bool:
    return bool(params.repetition_penalty != 1 or params.presence_penalty or params.frequency_penalty)
