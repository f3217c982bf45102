"""`engines.sampling` on the device, for a whole batch at once: the same adjustments in the same order, and the same
tokens of the same logits.

A sequence's random numbers come from its own generator on the CPU, so that a seeded answer is the same on either path.
What a token was is known here alone until the step has been read: the next step takes it from `last_tokens`.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

import numpy as np
import torch

from engines.drawing import FloatRow, IdRow
from engines.logprobs import or_impossible
from engines.sampling import SequenceSampler
from engines.torch.gpu import penalties
from engines.torch.gpu.drawing import Filters, invert, keep, weigh
from engines.torch.gpu.penalties import DeviceCounts
from engines.torch.gpu.transfers import Incoming, send
from engines.types import TokenLogprobs

_CHUNK_ELEMENTS = 1 << 24  # weights drawn from at a time, of which several copies in float64 have to find memory


@dataclass(slots=True, frozen=True)
class SampledRow:
    """Whose logits a row has. `num_generated`: tokens of its answer before this one."""

    sequence_id: int
    slot: int
    state: SequenceSampler
    num_generated: int


@dataclass(slots=True)
class PendingTokens:
    """What was sampled, on its way from the device. To be read when the step's work is done."""

    rows: list[SampledRow]
    tokens: Incoming  # [n]
    telling: list[int] = field(default_factory=list)  # rows that want logprobs
    own: Incoming | None = None  # [telling]
    best: Incoming | None = None  # [telling, count], the likeliest
    best_ids: Incoming | None = None

    def logprobs(self) -> dict[int, TokenLogprobs]:
        """By sequence."""
        if self.own is None or self.best is None or self.best_ids is None:
            return {}
        own, best, ids = self.own.tolist(), self.best.tolist(), self.best_ids.tolist()
        told = {}
        for row, logprob, values, tokens in zip(self.telling, own, best, ids, strict=True):
            count = self.rows[row].state.params.logprobs or 0
            pairs = sorted(zip(tokens, map(or_impossible, values), strict=True), key=lambda pair: (-pair[1], pair[0]))
            told[self.rows[row].sequence_id] = TokenLogprobs(or_impossible(logprob), pairs[:count])
        return told


class DeviceSampler:
    """Used from the engine's thread only. `last_tokens[slot]` is the token that was sampled last for it."""

    def __init__(self, vocab_size: int, num_slots: int, device: torch.device) -> None:
        self.last_tokens = torch.zeros(num_slots + 1, dtype=torch.int64, device=device)
        self._vocab_size = vocab_size
        self._device = device
        self._counts = DeviceCounts(num_slots + 1, vocab_size, device)
        self._batch: _Batch | None = None

    def begin(self, slot: int, state: SequenceSampler, prompt: list[int], output: list[int]) -> None:
        """This sequence's state is in this slot from now on."""
        if penalties.are_asked(state.params):
            self._counts.begin(slot, prompt if state.params.repetition_penalty != 1 else [], output)

    def sample(self, rows: list[SampledRow], logits: torch.Tensor) -> PendingTokens:
        """Choose the next token of each row of `logits` [n, vocabulary], which may be changed.

        Grammars must have taken all tokens before these.
        """
        batch = self._batch_of(rows)
        logits = logits.to(torch.float32)
        raw = logits[batch.telling_index] if batch.telling else None
        self._adjust(batch, rows, logits)
        finite = logits.masked_fill(~logits.isfinite(), float("-inf"))
        tokens = finite.argmax(dim=1)
        if batch.random:
            self._draw(batch, logits, tokens)
        self.last_tokens[batch.slots] = tokens
        if batch.penalized:
            self._counts.add(batch.slots[batch.penalized_index], tokens[batch.penalized_index])
        pending = PendingTokens(rows, Incoming(tokens))
        if raw is not None:
            _tell(pending, batch, raw, tokens)
        return pending

    def _batch_of(self, rows: list[SampledRow]) -> _Batch:
        key = [(row.slot, id(row.state)) for row in rows]
        if self._batch is None or self._batch.key != key:
            self._batch = _Batch(key, rows, self._vocab_size, self._device)
        return self._batch

    def _adjust(self, batch: _Batch, rows: list[SampledRow], logits: torch.Tensor) -> None:
        if batch.penalized:
            index = batch.penalized_index
            logits[index] = self._counts.penalize(logits[index], batch.slots[index], batch.penalties)
        if batch.biases is not None:
            places, values = batch.biases
            logits.view(-1).index_add_(0, places, values)
        bans = [_places(i, rows[i].state.banned, self._vocab_size) for i in batch.banning if _bans(rows[i])]
        if bans:
            logits.view(-1).index_fill_(0, self._ids(np.concatenate(bans)), float("-inf"))
        if batch.grammars:
            masks = np.zeros((len(batch.grammars), self._vocab_size), dtype=np.float32)
            for mask, i in zip(masks, batch.grammars, strict=True):
                _mask(rows[i].state, mask)
            banned = send(np.isneginf(masks), self._device)
            logits[batch.grammar_index] = logits[batch.grammar_index].masked_fill(banned, float("-inf"))

    def _ids(self, numbers: Iterable[int]) -> torch.Tensor:
        return send(np.asarray(numbers, dtype=np.int64), self._device)

    def _draw(self, batch: _Batch, logits: torch.Tensor, tokens: torch.Tensor) -> None:
        """Replace the best tokens of the random rows, as far as those are sound. A number is taken for every row."""
        uniforms = send(np.array([batch.states[row].uniform() for row in batch.random]), self._device)[:, None]
        size = max(1, _CHUNK_ELEMENTS // self._vocab_size)
        for part in batch.parts(size):
            rows = part.rows
            chosen = logits[rows]
            best = chosen.amax(dim=1, keepdim=True)
            weights = weigh(chosen, best, part.temperatures)
            if part.truncated is not None and part.filters is not None:
                weights[part.truncated] = keep(weights[part.truncated], part.filters)
            drawn = invert(weights, uniforms[part.span])
            tokens[rows] = torch.where(best[:, 0].isfinite(), drawn, tokens[rows])


def _tell(pending: PendingTokens, batch: _Batch, raw: torch.Tensor, tokens: torch.Tensor) -> None:
    total = raw.to(torch.float64).logsumexp(dim=1, keepdim=True)
    own = raw.gather(1, tokens[batch.telling_index][:, None]) - total
    best = raw.topk(min(batch.most_told, raw.shape[1]), dim=1)
    pending.telling = batch.telling
    pending.own, pending.best, pending.best_ids = (
        Incoming(own[:, 0]),
        Incoming(best.values - total),
        Incoming(best.indices),
    )


def _bans(row: SampledRow) -> bool:
    return row.num_generated < row.state.params.min_tokens


def _mask(state: SequenceSampler, mask: FloatRow) -> None:
    assert state.grammar is not None
    state.grammar.mask(mask)


def _places(row: int, ids: IdRow, vocab_size: int) -> IdRow:
    """Of these ids of a row, in the flattened logits."""
    return ids + row * vocab_size


@dataclass(slots=True, frozen=True)
class _Part:
    """Random rows that are drawn together: `span` of the random rows, `rows` of the batch."""

    span: slice
    rows: torch.Tensor
    temperatures: torch.Tensor
    truncated: torch.Tensor | None  # of the part's rows
    filters: Filters | None


class _Batch:
    """What a steady batch needs again at every step, on the device. Rows are indices into the batch."""

    def __init__(
        self, key: list[tuple[int, int]], rows: list[SampledRow], vocab_size: int, device: torch.device
    ) -> None:
        self.key = key
        self.states = states = [row.state for row in rows]
        self._device, self._vocab_size = device, vocab_size
        self.slots = self._index([row.slot for row in rows])
        self.random = [i for i, state in enumerate(states) if not state.greedy]
        self.telling = [i for i, state in enumerate(states) if state.params.logprobs is not None]
        self.telling_index = self._index(self.telling)
        self.most_told = max((states[i].params.logprobs or 0 for i in self.telling), default=0)
        self.penalized = [i for i, state in enumerate(states) if penalties.are_asked(state.params)]
        self.penalized_index = self._index(self.penalized)
        self.penalties = self._penalties()
        self.banning = [i for i, state in enumerate(states) if state.params.min_tokens and state.banned.size]
        self.grammars = [i for i, state in enumerate(states) if state.grammar is not None]
        self.grammar_index = self._index(self.grammars)
        self.biases = self._biases()
        self._parts: list[_Part] = []

    def _index(self, rows: list[int]) -> torch.Tensor:
        return send(np.array(rows, dtype=np.int64), self._device)

    def _penalties(self) -> torch.Tensor:
        params = [self.states[i].params for i in self.penalized]
        values = [
            [p.repetition_penalty for p in params],
            [p.frequency_penalty for p in params],
            [p.presence_penalty for p in params],
        ]
        return send(np.array(values, dtype=np.float32), self._device)[..., None]

    def _biases(self) -> tuple[torch.Tensor, torch.Tensor] | None:
        biased = [i for i, state in enumerate(self.states) if state.bias_ids.size]
        if not biased:
            return None
        places = [_places(i, self.states[i].bias_ids, self._vocab_size) for i in biased]
        values = [self.states[i].bias for i in biased]
        return send(np.concatenate(places), self._device), send(np.concatenate(values), self._device)

    def parts(self, size: int) -> list[_Part]:
        if not self._parts:
            spans = [slice(i, min(i + size, len(self.random))) for i in range(0, len(self.random), size)]
            self._parts = [self._part(span) for span in spans]
        return self._parts

    def _part(self, span: slice) -> _Part:
        rows = self.random[span]
        states = [self.states[i] for i in rows]
        temperatures = send(np.array([state.temperature for state in states], dtype=np.float32), self._device)[:, None]
        truncated = [i for i, state in enumerate(states) if state.truncates]
        filters = self._filters([states[i] for i in truncated]) if truncated else None
        index = self._index(truncated) if truncated else None
        return _Part(span, self._index(rows), temperatures, index, filters)

    def _filters(self, states: list[SequenceSampler]) -> Filters:
        counts = [state.params.top_k if 0 < state.params.top_k < self._vocab_size else 0 for state in states]
        return Filters(
            self._index([count or self._vocab_size for count in counts])[:, None],
            send(np.array([state.params.top_p for state in states]), self._device)[:, None],
            send(np.array([state.params.min_p for state in states], dtype=np.float32), self._device)[:, None],
            max(counts) if all(counts) else 0,
        )
