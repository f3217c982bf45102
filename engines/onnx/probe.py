"""Run a decoder on a few tokens to learn what its graph can do, and refuse one that we would get wrong.

The names of its inputs do not tell: a graph may have been traced for one new token at a time, take positions from the
length of its cache, or not look at its mask. What fails here in batches is run without padding, and what fails in
chunks token by token; what fails token by token is refused.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from engines.base import EngineError
from engines.onnx.decoder import Decoder, DecoderBatch
from engines.onnx.session import Array, one_line
from engines.records import IntArray

_PROMPT_LEN, _SPLIT = 8, 5  # tokens
# Of the logits' own spread. Rounding is far below the first; int8's is not, since it scales a whole batch together.
_EXACT, _ROUGH = 0.01, 0.5


@dataclass(slots=True, frozen=True)
class Abilities:
    """`pads`: rows of several lengths in one run. `continues_in_chunks`: several tokens behind a cache in one run."""

    pads: bool
    continues_in_chunks: bool


def probe(decoder: Decoder, *, is_int8: bool) -> Abilities:
    """Raises EngineError for a graph that does not continue its own cache."""
    try:
        known = _Known(decoder)
        continued = known.continued(1)
    except EngineError:
        raise
    except Exception as error:  # ONNX Runtime's own classes have no common base
        raise EngineError(f"the model fails on {_PROMPT_LEN} tokens: {one_line(error)}") from error
    if not known.agrees(continued, _SPLIT, _ROUGH):
        raise EngineError("the model's answers change when it continues from its own cache: its export is broken")
    tolerance = _ROUGH if is_int8 else _EXACT
    return Abilities(
        pads=decoder.has_mask and known.agrees_padded(tolerance),
        continues_in_chunks=known.agrees_in_chunks(tolerance),
    )


class _Known:
    """A prompt's logits [tokens, vocabulary], computed at once and alone, and what else is compared with them."""

    def __init__(self, decoder: Decoder) -> None:
        self._decoder = decoder
        self._tokens: IntArray = (np.arange(1, _PROMPT_LEN + 1) * 7919) % decoder.vocab_size
        whole = decoder.run(self._fresh([_PROMPT_LEN]))
        if whole.logits.shape != (1, _PROMPT_LEN, decoder.vocab_size):
            raise EngineError(f"logits have the shape {whole.logits.shape}, expected one row a token")
        self._logits = whole.logits[0]
        self._present = whole.present

    def _fresh(self, lengths: list[int]) -> DecoderBatch:
        rows = np.zeros((len(lengths), max(lengths)), dtype=np.int64)
        for row, length in zip(rows, lengths, strict=True):
            row[:length] = self._tokens[:length]
        zeros = np.zeros(len(lengths), dtype=np.int64)
        return DecoderBatch(rows, zeros, np.array(lengths), self._decoder.empty_past(len(lengths)))

    def continued(self, count: int) -> Array:
        """Logits of `count` tokens behind the first `_SPLIT`."""
        batch = DecoderBatch(
            token_ids=self._tokens[None, _SPLIT : _SPLIT + count],
            starts=np.array([_SPLIT]),
            lengths=np.array([count]),
            past=[np.ascontiguousarray(present[:, :, :_SPLIT]) for present in self._present],
        )
        logits: Array = self._decoder.run(batch).logits[0]
        return logits

    def agrees(self, logits: Array, start: int, tolerance: float) -> bool:
        """Whether these are the logits of the tokens from `start` on."""
        expected = self._logits[start : start + len(logits)].astype(np.float32)
        difference = np.abs(logits.astype(np.float32) - expected).max()
        return logits.shape == expected.shape and bool(difference <= tolerance * max(float(expected.std()), 1e-6))

    def agrees_in_chunks(self, tolerance: float) -> bool:
        try:
            return self.agrees(self.continued(_PROMPT_LEN - _SPLIT), _SPLIT, tolerance)
        except Exception:  # it was traced for one token: that is an answer too
            return False

    def agrees_padded(self, tolerance: float) -> bool:
        """Right of the tokens, and left of the cache."""
        try:
            fresh = self._decoder.run(self._fresh([_PROMPT_LEN, _SPLIT])).logits[1, :_SPLIT]
            rows = self._decoder.run(self._next_tokens([_PROMPT_LEN - 1, 2])).logits
        except Exception:
            return False
        return (
            self.agrees(fresh, 0, tolerance)
            and self.agrees(rows[0], _PROMPT_LEN - 1, tolerance)
            and self.agrees(rows[1], 2, tolerance)
        )

    def _next_tokens(self, starts: list[int]) -> DecoderBatch:
        """One token a row, each behind its own part of the prompt; the padding holds what is not the row's to see."""
        width = max(starts)
        columns = [np.arange(start - width, start) % width for start in starts]
        past = [np.concatenate([present[:, :, c] for c in columns]) for present in self._present]
        ones = np.ones(len(starts), dtype=np.int64)
        return DecoderBatch(self._tokens[starts][:, None], np.array(starts), ones, past)
