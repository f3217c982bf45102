"""Choosing one token of a row of weights: the arithmetic of `engines.sampling`. numpy only.

Running sums are taken in float64, block by block, and the distribution is inverted at one random number.
"""

from __future__ import annotations

from typing import Literal

import numpy as np
from numpy.typing import NDArray

from engines.types import SamplingParams

FloatRow = NDArray[np.float32]
IdRow = NDArray[np.int64]
_BLOCK = 512  # weights summed at a time where only one crossing is looked for


def weigh(logits: FloatRow, best: FloatRow, temperatures: FloatRow) -> None:
    """Turn rows of logits into unnormalized probabilities, in place; the best token of a sound row weighs 1."""
    with np.errstate(over="ignore", under="ignore", invalid="ignore"):
        logits -= best
        logits /= temperatures
        np.exp(logits, out=logits)


def invert(weights: FloatRow, uniform: float) -> int:
    """The first index whose running sum exceeds `uniform` of the total; never one of weight 0."""
    running = _running_blocks(weights)
    target = min(uniform * running[-1], np.nextafter(running[-1], 0))
    return _crossing(weights, running, target, "right")


def _running_blocks(weights: FloatRow) -> NDArray[np.float64]:
    """Running sums after each block of weights: a tenth of the time of running sums after each weight."""
    sums = np.add.reduceat(weights, np.arange(0, len(weights), _BLOCK), dtype=np.float64)
    return np.cumsum(sums)


def _crossing(weights: FloatRow, running: NDArray[np.float64], target: float, side: Literal["left", "right"]) -> int:
    """The first index whose running sum reaches ("left") or exceeds ("right") the target."""
    block = min(int(running.searchsorted(target, side=side)), len(running) - 1)
    before = running[block - 1] if block else 0.0
    inside = before + np.cumsum(weights[block * _BLOCK : (block + 1) * _BLOCK], dtype=np.float64)
    # Both ways of summing may differ in the last bit: stay on the block's last token with a weight.
    last = inside.searchsorted(inside[-1], side="left")
    return block * _BLOCK + int(min(inside.searchsorted(target, side=side), last))


def kept_tokens(weights: FloatRow, params: SamplingParams) -> IdRow:
    """The ids that top-k, top-p and min-p leave, ascending. Of equally likely tokens the lower ids stay.

    Each filter keeps the best tokens up to some point of the same order, so the shortest of the three wins.
    """
    top_k = params.top_k if 0 < params.top_k < len(weights) else len(weights)
    total = float(weights.sum(dtype=np.float64)) if params.top_p < 1 and top_k == len(weights) else 0.0
    candidates = np.flatnonzero(weights >= _threshold(weights, top_k, total, params))
    descending = np.sort(weights[candidates])[::-1][:top_k]
    size = _kept_size(descending, total, params)
    last = descending[size - 1]
    kept: IdRow = candidates[weights[candidates] >= last]
    if len(kept) > size:
        kept = np.delete(kept, np.flatnonzero(weights[kept] == last)[size - len(kept) :])
    return kept


def _kept_size(descending: FloatRow, total: float, params: SamplingParams) -> int:
    """How many of the sorted weights stay. `total` is that of the whole row, or 0 when top-k cut it."""
    size = len(descending)
    if params.top_p < 1:
        running = _running_blocks(descending)
        nucleus = params.top_p * (total or running[-1])
        size = _crossing(descending, running, nucleus, "left") + 1
    if params.min_p > 0:
        size = min(size, max(1, int((descending >= params.min_p).sum())))
    return size


def _threshold(weights: FloatRow, top_k: int, total: float, params: SamplingParams) -> float:
    """A weight below which no kept token lies, so that few tokens need sorting.

    All tokens lighter than (1 - top_p) * total / V weigh less than (1 - top_p) * total together, so the nucleus lies
    above that.
    """
    if top_k < len(weights):
        return float(np.partition(weights, len(weights) - top_k)[len(weights) - top_k])
    lightest = (1 - params.top_p) * total / len(weights)
    return min(1.0, max(lightest, params.min_p))
