"""How likely a model holds tokens, from its logits. numpy only, row by row: for the sequences that ask for it.

Of the logits as the model gives them, before anything that sampling does to them. The sum over the vocabulary is
taken in float64, so that it does not depend on the order of the tokens.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from engines.drawing import FloatRow, IdRow
from engines.types import TokenLogprobs


class LikelyTokens:
    """A row of logits, read before it is changed, of which a token is told when it has been chosen.

    `count`: how many of the likeliest are told beside it. `may_change`: the row will be written to until then.
    """

    __slots__ = ("_log_total", "_row", "_top")

    def __init__(self, row: FloatRow, count: int, *, may_change: bool = False) -> None:
        self._row = row.copy() if may_change else row
        self._log_total = _log_sum_exp(row)
        self._top = [(int(token), self._logprob(int(token))) for token in _likeliest(row, count)]

    def of(self, token: int) -> TokenLogprobs:
        return TokenLogprobs(self._logprob(token), self._top)

    def _logprob(self, token: int) -> float:
        return or_impossible(float(self._row[token]) - self._log_total)


def or_impossible(logprob: float) -> float:
    """What logits that are no numbers say nothing about counts as impossible."""
    return -math.inf if math.isnan(logprob) else logprob


def logprobs_of(logits: FloatRow, tokens: Sequence[int], count: int) -> list[TokenLogprobs]:
    """Of `tokens[i]` in row i of `logits` [n, vocabulary]."""
    return [LikelyTokens(row, count).of(token) for row, token in zip(logits, tokens, strict=True)]


def _log_sum_exp(row: FloatRow) -> float:
    best = row.max()
    with np.errstate(over="ignore", under="ignore", invalid="ignore", divide="ignore"):
        return float(best + np.log(np.exp(row - best).sum(dtype=np.float64)))


def _likeliest(row: FloatRow, count: int) -> IdRow:
    """The likeliest first; of equals that are told the lower id."""
    count = min(count, len(row))
    if count <= 1:
        return np.array([row.argmax()] if count else [], dtype=np.int64)
    found = np.argpartition(row, len(row) - count)[len(row) - count :]
    ordered: IdRow = found[np.lexsort((found, -row[found]))]
    return ordered
