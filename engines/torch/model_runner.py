"""Runs one step of a plan: pack the scheduled tokens in one row, run the model, sample, keep the tokens."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from engines.constraint import MatcherSource
from engines.records import AskedPrompt, IntArray, SequenceRecords
from engines.steps import ScheduledSequence, StepPlan, StepResult
from engines.torch.attention import AttentionBatch, PagedStep
from engines.torch.kv_cache import PagedKVCache
from engines.torch.logprobs import logprobs_of
from engines.types import TokenLogprobs


@dataclass(slots=True)
class PackedStep:
    """A plan as arrays. Row i of the packed row is token `token_ids[i]` at `positions[i]`, kept in `slots[i]`."""

    scheduled: list[ScheduledSequence]
    token_ids: list[int]
    positions: IntArray
    slots: IntArray
    starts: IntArray  # [sequences]
    lengths: IntArray  # [sequences]
    tables: IntArray  # [sequences, blocks]
    parts: list[slice]  # of the sequences: those that attend together

    def sampled(self) -> tuple[list[int], IntArray]:
        """The sequences to sample for, and the last row of each."""
        wanted = np.fromiter((s.samples for s in self.scheduled), dtype=bool, count=len(self.scheduled))
        return [s.sequence_id for s in self.scheduled if s.samples], (self.lengths.cumsum() - 1)[wanted]

    def asked_rows(self, asked: list[AskedPrompt]) -> list[IntArray]:
        """Of each, the rows behind which its tokens come."""
        first_rows = self.lengths.cumsum() - self.lengths
        return [first_rows[each.index] + np.arange(len(each.tokens)) for each in asked]


def split_groups(groups: list[list[ScheduledSequence]]) -> list[list[ScheduledSequence]]:
    """Each group's decodes and its prefill chunks: padded together, a decode would cost a chunk's queries."""
    parts = []
    for group in groups:
        parts.append([s for s in group if s.num_tokens == 1])
        parts.append([s for s in group if s.num_tokens > 1])
    return [part for part in parts if part]


def pack(plan: StepPlan, records: SequenceRecords, block_size: int) -> PackedStep:
    parts = split_groups(plan.groups)
    scheduled = [sequence for part in parts for sequence in part]
    token_ids: list[int] = []
    for sequence in scheduled:
        token_ids += records[sequence.sequence_id].token_ids[sequence.start : sequence.context_len]
    starts = _array(s.start for s in scheduled)
    lengths = _array(s.num_tokens for s in scheduled)
    if len(token_ids) != lengths.sum():
        raise ValueError("the plan names a position whose token is not known")
    tables = records.tables(scheduled)
    row_of = np.repeat(np.arange(len(scheduled)), lengths)
    positions: IntArray = np.arange(len(token_ids)) + (starts - lengths.cumsum() + lengths)[row_of]
    slots = tables[row_of, positions // block_size] * block_size + positions % block_size
    return PackedStep(scheduled, token_ids, positions, slots, starts, lengths, tables, _slices(parts))


def _array(values: Iterable[int]) -> IntArray:
    return np.fromiter(values, dtype=np.int64)


def _slices(parts: list[list[ScheduledSequence]]) -> list[slice]:
    ends = np.cumsum([len(part) for part in parts]).tolist()
    return [slice(end - len(part), end) for part, end in zip(parts, ends, strict=True)]


class ModelRunner:
    """Owns the sequences' records and their sampling state. Used from the engine's thread only."""

    def __init__(self, model: Any, cache: PagedKVCache, vocab_size: int, grammars: MatcherSource | None = None) -> None:
        self._model = model
        self._cache = cache
        self._dtype: torch.dtype = model.dtype
        self._device: torch.device = model.device
        self._records = SequenceRecords(vocab_size, grammars)

    @torch.inference_mode()
    def run(self, plan: StepPlan) -> StepResult:
        self._records.take_over(plan)
        if not plan.groups:
            return StepResult()
        step = pack(plan, self._records, self._cache.block_size)
        sequence_ids, rows = step.sampled()
        asked = self._records.asked(step.scheduled)
        logits = self._forward(step, np.concatenate([rows, *step.asked_rows(asked)]) if asked else rows)
        result = self._sample(sequence_ids, logits[: len(rows)])
        if asked:
            result.prompt_logprobs = _told(asked, logits[len(rows) :])
        return result

    def _forward(self, step: PackedStep, rows: IntArray) -> torch.Tensor:
        """Logits [len(rows), vocabulary] of these packed rows."""
        attention = PagedStep(self._cache, self._tensor(step.slots), self._batches(step))
        output = self._model(
            input_ids=torch.tensor([step.token_ids], device=self._device),
            position_ids=self._tensor(step.positions)[None],
            use_cache=False,
            logits_to_keep=self._tensor(rows),
            attention_step=attention,
        )
        logits: torch.Tensor = output.logits[0]
        return logits

    def _batches(self, step: PackedStep) -> list[AttentionBatch]:
        first_rows = step.lengths.cumsum() - step.lengths
        parts = [piece for part in step.parts for piece in self._pieces(step, part)]
        return [self._batch(step, part, int(first_rows[part.start])) for part in parts]

    def _pieces(self, step: PackedStep, part: slice) -> list[slice]:
        """A part cut so that the padded contexts of each piece fit the cache's scratch memory."""
        longest = int((step.starts[part] + step.lengths[part]).max())
        size = max(1, self._cache.gather_tokens // longest)
        return [slice(i, min(i + size, part.stop)) for i in range(part.start, part.stop, size)]

    def _batch(self, step: PackedStep, part: slice, first_row: int) -> AttentionBatch:
        starts, lengths = step.starts[part], step.lengths[part]
        blocks = -(-int((starts + lengths).max()) // self._cache.block_size)
        tables = self._tensor(step.tables[part, :blocks])
        return AttentionBatch(
            first_row, self._tensor(starts), self._tensor(lengths), tables, self._cache.block_size, self._dtype
        )

    def _tensor(self, array: IntArray) -> torch.Tensor:
        return torch.from_numpy(array).to(self._device)

    def _sample(self, sequence_ids: list[int], logits: torch.Tensor) -> StepResult:
        if not sequence_ids:
            return StepResult()
        result, broken = self._records.sample(sequence_ids, logits.float().cpu().numpy())
        for blocks in broken:
            self._cache.scrub(self._tensor(blocks))
        return result


def _told(asked: list[AskedPrompt], logits: torch.Tensor) -> dict[int, list[TokenLogprobs]]:
    """By sequence. `logits` [n, vocabulary] has the rows of all of them, one behind another."""
    told, first = {}, 0
    for each in asked:
        end = first + len(each.tokens)
        told[each.sequence_id] = logprobs_of(logits[first:end], each.tokens, each.count)
        first = end
    return told
