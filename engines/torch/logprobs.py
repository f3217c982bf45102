"""`engines.logprobs` for many rows at once, where the logits are."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from engines.logprobs import or_impossible
from engines.types import TokenLogprobs

_ROWS = 32  # at a time, whose probabilities have to fit beside the logits: a row of a large vocabulary takes 0.6 MB


def logprobs_of(logits: torch.Tensor, tokens: Sequence[int], count: int) -> list[TokenLogprobs]:
    """Of `tokens[i]` in row i of `logits` [n, vocabulary], and of the `count` likeliest in its place."""
    wanted = torch.tensor(tokens, device=logits.device)
    told = []
    for first in range(0, len(tokens), _ROWS):
        rows = slice(first, first + _ROWS)
        told += _of_rows(logits[rows], wanted[rows], min(count, logits.shape[1]))
    return told


def _of_rows(logits: torch.Tensor, tokens: torch.Tensor, count: int) -> list[TokenLogprobs]:
    logprobs = logits.float().log_softmax(dim=-1)
    own = logprobs.gather(1, tokens[:, None])[:, 0].tolist()
    best = logprobs.topk(count, dim=-1)
    return [
        TokenLogprobs(or_impossible(logprob), list(zip(ids, map(or_impossible, values), strict=True)))
        for logprob, ids, values in zip(own, best.indices.tolist(), best.values.tolist(), strict=True)
    ]
