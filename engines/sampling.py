"""Per-request sampling for a batch of logits rows, shared by the step engines. numpy only.

Order of the adjustments, as in transformers: repetition penalty, presence and frequency penalties, logit bias, the
ban of stop tokens before `min_tokens`, the grammar's mask; then temperature, top-k, top-p (of what top-k left), min-p.
A token id outside the vocabulary in `logit_bias` or `stop_token_ids` has no effect here: refusing it is the gateway's
task.

Every random token takes exactly one uniform number from its sequence's own generator and is found by inverting the
distribution in float64, row by row: with equal logits a seeded answer is the same alone and in a crowd.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from engines.constraint import Constraint, MatcherSource
from engines.drawing import FloatRow, IdRow, invert, kept_tokens, weigh
from engines.logprobs import LikelyTokens
from engines.penalties import TokenCounts, penalize
from engines.types import RequestError, SamplingParams, TokenLogprobs

_CHUNK_ELEMENTS = 1 << 18  # rows are weighed in chunks that stay in the CPU's cache
_MIN_TEMPERATURE = 1e-30  # a float32 that can still be divided by


@dataclass(slots=True)
class SampledTokens:
    """`token_ids[i]` continues row i. `broken_rows` had NaN or infinite logits: the best finite token was taken.

    `ended` has the rows whose grammar ends with this token, as `StepResult.ended`; `logprobs` those that ask for them.
    """

    token_ids: list[int]
    broken_rows: list[int] = field(default_factory=list)
    ended: dict[int, RequestError | None] = field(default_factory=dict)
    logprobs: dict[int, TokenLogprobs] = field(default_factory=dict)


class SequenceSampler:
    """One sequence's sampling state. It goes on after a preemption, since sampled tokens are kept.

    Behind `output_token_ids` it stands where the engine stood that sampled them: as many random numbers are taken,
    the same tokens counted.
    """

    def __init__(
        self,
        prompt_token_ids: Sequence[int],
        params: SamplingParams,
        vocab_size: int,
        output_token_ids: Sequence[int] = (),
        grammar: Constraint | None = None,
    ) -> None:
        self.params = params
        self.grammar = grammar
        self.greedy = params.is_greedy
        self.truncates = params.top_k > 0 or params.top_p < 1 or params.min_p > 0
        self.temperature = max(params.temperature, _MIN_TEMPERATURE)
        self._random = None if self.greedy else _generator(params.seed, len(output_token_ids))
        self._num_generated = 0
        self.bias_ids, self.bias = _bias_arrays(params.logit_bias, vocab_size)
        self.banned = np.array([t for t in params.stop_token_ids if 0 <= t < vocab_size], dtype=np.int64)
        self._counts = self._initial_counts(prompt_token_ids)
        bans = params.min_tokens > 0 and self.banned.size > 0
        self.adjusts = self._counts is not None or self.bias_ids.size > 0 or bans or grammar is not None
        for token in output_token_ids:
            self._count(token)

    def _initial_counts(self, prompt_token_ids: Sequence[int]) -> TokenCounts | None:
        params = self.params
        if params.repetition_penalty != 1:
            return TokenCounts(prompt_token_ids)
        return TokenCounts([]) if params.presence_penalty or params.frequency_penalty else None

    def uniform(self) -> float:
        """The one random number of this sequence's next token, in [0, 1)."""
        assert self._random is not None
        return self._random.random()

    def likely_tokens(self, row: FloatRow) -> LikelyTokens:
        """Of a row that was not adjusted yet, for a sequence that asks for logprobs."""
        return LikelyTokens(row, self.params.logprobs or 0, may_change=self.adjusts)

    def adjust(self, row: FloatRow) -> None:
        """Apply penalties, bias, bans and the grammar's mask to one row of logits, in place."""
        if self._counts is not None:
            penalize(row, self._counts, self.params)
        row[self.bias_ids] += self.bias
        if self._num_generated < self.params.min_tokens:
            row[self.banned] = -np.inf
        if self.grammar is not None:
            self.grammar.mask(row)

    def record(self, token: int) -> bool:
        """Count a sampled token; whether its grammar ends with it. Needed only for a sequence that `adjusts`."""
        self._count(token)
        return self.grammar is not None and self.grammar.advance(token)

    def _count(self, token: int) -> None:
        self._num_generated += 1
        if self._counts is not None:
            self._counts.add(token)


def _generator(seed: int | None, num_taken: int) -> np.random.Generator:
    """One that has given `num_taken` numbers: each is one step of PCG64."""
    bits = np.random.PCG64(None if seed is None else seed % 2**64)
    return np.random.Generator(bits.advance(num_taken))


def _bias_arrays(logit_bias: dict[int, float], vocab_size: int) -> tuple[IdRow, FloatRow]:
    known = {token: bias for token, bias in logit_bias.items() if 0 <= token < vocab_size}
    return np.array(list(known), dtype=np.int64), np.array(list(known.values()), dtype=np.float32)


@dataclass(slots=True)
class _Batch:
    """What a steady batch needs again at every step. Rows are indices into the batch."""

    sequence_ids: list[int]
    states: list[SequenceSampler]
    adjusting: list[int]
    greedy: list[int]
    random: list[int]
    telling: list[int]  # logprobs


class Sampler:
    """The sampling states of all live sequences. Used from the engine's thread only."""

    def __init__(self, vocab_size: int, grammars: MatcherSource | None = None) -> None:
        self._vocab_size = vocab_size
        self._grammars = grammars
        self._states: dict[int, SequenceSampler] = {}
        self._batch = _Batch([], [], [], [], [], [])

    def add(
        self,
        sequence_id: int,
        prompt_token_ids: Sequence[int],
        params: SamplingParams,
        output_token_ids: Sequence[int] = (),
    ) -> None:
        """A sequence whose answer goes on behind `output_token_ids`."""
        grammar = None
        if params.grammar is not None:
            assert self._grammars is not None, "refused by batching.refusals"
            grammar = Constraint(self._grammars, params, self._vocab_size, output_token_ids)
        self._states[sequence_id] = SequenceSampler(
            prompt_token_ids, params, self._vocab_size, output_token_ids, grammar
        )

    def state(self, sequence_id: int) -> SequenceSampler:
        return self._states[sequence_id]

    def remove(self, sequence_id: int) -> None:
        self._states.pop(sequence_id, None)
        if sequence_id in self._batch.sequence_ids:
            self._batch = _Batch([], [], [], [], [], [])

    def sample(self, sequence_ids: list[int], logits: FloatRow) -> SampledTokens:
        """Choose the next token of each sequence from its row of `logits` [n, vocabulary], which may be changed."""
        batch = self._batch_of(sequence_ids)
        likely = {row: batch.states[row].likely_tokens(logits[row]) for row in batch.telling}
        for row in batch.adjusting:
            batch.states[row].adjust(logits[row])
        result = SampledTokens([0] * len(sequence_ids))
        _sample_greedy(batch, logits, result)
        _sample_random(batch, logits, result)
        for row in batch.adjusting:
            state = batch.states[row]
            if state.record(result.token_ids[row]):
                assert state.grammar is not None
                result.ended[row] = state.grammar.error
        for row, tokens in likely.items():
            result.logprobs[row] = tokens.of(result.token_ids[row])
        return result

    def _batch_of(self, sequence_ids: list[int]) -> _Batch:
        if sequence_ids != self._batch.sequence_ids:
            states = [self._states[sequence_id] for sequence_id in sequence_ids]
            rows = range(len(states))
            self._batch = _Batch(
                sequence_ids=list(sequence_ids),
                states=states,
                adjusting=[row for row in rows if states[row].adjusts],
                greedy=[row for row in rows if states[row].greedy],
                random=[row for row in rows if not states[row].greedy],
                telling=[row for row in rows if states[row].params.logprobs is not None],
            )
        return self._batch


def _sample_greedy(batch: _Batch, logits: FloatRow, result: SampledTokens) -> None:
    everything = not batch.random
    best = logits.argmax(axis=1) if everything else [logits[row].argmax() for row in batch.greedy]
    for row, token in zip(batch.greedy, map(int, best), strict=True):
        # argmax puts NaN and +inf first, so the winner alone tells whether the row is sound.
        result.token_ids[row] = token if np.isfinite(logits[row, token]) else _best_finite(row, logits, result)


def _best_finite(row: int, logits: FloatRow, result: SampledTokens) -> int:
    result.broken_rows.append(row)
    return int(np.where(np.isfinite(logits[row]), logits[row], -np.inf).argmax())


def _sample_random(batch: _Batch, logits: FloatRow, result: SampledTokens) -> None:
    chunk = max(1, _CHUNK_ELEMENTS // logits.shape[1])
    for first in range(0, len(batch.random), chunk):
        rows = batch.random[first : first + chunk]
        weights = logits[rows]
        best = weights.max(axis=1, keepdims=True)
        weigh(weights, best, np.array([[batch.states[row].temperature] for row in rows], dtype=np.float32))
        for row, row_weights, is_sound in zip(rows, weights, np.isfinite(best), strict=True):
            token = _draw(row_weights, batch.states[row], bool(is_sound))
            result.token_ids[row] = _best_finite(row, logits, result) if token is None else token


def _draw(weights: FloatRow, state: SequenceSampler, is_sound: bool) -> int | None:
    """A token, or None for a row that is not sound. The random number is taken either way."""
    uniform = state.uniform()
    if not is_sound:
        return None
    if not state.truncates:
        return invert(weights, uniform)
    kept = kept_tokens(weights, state.params)
    return int(kept[invert(weights[kept], uniform)])
