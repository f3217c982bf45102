"""A plan's tokens packed in one row, as arrays."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from engines.records import AskedPrompt, IntArray, SequenceRecords
from engines.steps import ScheduledSequence, StepPlan


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
