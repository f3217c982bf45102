"""`engines.drawing` for many rows at once, on the device: the same tokens of the same weights and random numbers.

Nothing here waits for the device.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

_MOST_TO_SELECT = 1024  # of a row's best tokens: with more, sorting the whole row takes no longer


@dataclass(slots=True, frozen=True)
class Filters:
    """What is kept of each row [n, 1]. `num_best`: the greatest top_k where every row has one, else 0."""

    top_k: torch.Tensor  # int64; the vocabulary's size where it is off
    top_p: torch.Tensor  # float64
    min_p: torch.Tensor  # float32
    num_best: int

    @property
    def num_sorted(self) -> int | None:
        return self.num_best if 0 < self.num_best <= _MOST_TO_SELECT else None


def weigh(logits: torch.Tensor, best: torch.Tensor, temperatures: torch.Tensor) -> torch.Tensor:
    """Unnormalized probabilities in float32; the best token of a sound row weighs 1."""
    return ((logits - best) / temperatures).exp()


def keep(weights: torch.Tensor, filters: Filters) -> torch.Tensor:
    """The weights that top-k, top-p and min-p leave, and 0 elsewhere. Of equally likely tokens the lower ids stay."""
    descending = _descending(weights, filters.num_sorted)
    sizes = _kept_sizes(descending, filters)
    last = descending.gather(1, sizes - 1)
    is_equal = weights == last
    num_equal = sizes - (weights > last).sum(dim=1, keepdim=True)
    is_kept = (weights > last) | (is_equal & (is_equal.cumsum(dim=1) <= num_equal))
    return weights.masked_fill(~is_kept, 0.0)


def _descending(weights: torch.Tensor, count: int | None) -> torch.Tensor:
    if count is None or count >= weights.shape[1]:
        return weights.sort(dim=1, descending=True).values
    return weights.topk(count, dim=1).values


def _kept_sizes(descending: torch.Tensor, filters: Filters) -> torch.Tensor:
    """How many of the sorted weights stay [n, 1]. Each filter keeps the best up to some point: the shortest wins."""
    columns = torch.arange(descending.shape[1], device=descending.device)
    is_best = columns < filters.top_k
    running = descending.masked_fill(~is_best, 0.0).cumsum(dim=1, dtype=torch.float64)
    total = running[:, -1:].contiguous()
    nucleus = torch.searchsorted(running, filters.top_p * total)
    whole = torch.searchsorted(running, total)  # both ways of adding up may differ in the last bit
    sizes = torch.where(filters.top_p < 1, torch.minimum(nucleus, whole) + 1, filters.top_k)
    likely = (is_best & (descending >= filters.min_p)).sum(dim=1, keepdim=True)
    sizes = torch.where(filters.min_p > 0, torch.minimum(sizes, likely), sizes)
    return sizes.clamp(1, descending.shape[1])


def invert(weights: torch.Tensor, uniforms: torch.Tensor) -> torch.Tensor:
    """Of each row the first index whose running sum, in float64, exceeds `uniforms` [n, 1] of the total [n]; never one
    of weight 0 where a row has another."""
    running = weights.cumsum(dim=1, dtype=torch.float64)
    total = running[:, -1:]
    target = torch.minimum(uniforms * total, torch.nextafter(total, torch.zeros_like(total)))
    index = torch.searchsorted(running, target, right=True).clamp(max=weights.shape[1] - 1)
    # Sums that are taken in parts may fall by a last bit from one index to the next.
    chosen = torch.where(weights.gather(1, index) > 0, index, weights.argmax(dim=1, keepdim=True))
    return chosen[:, 0]
