"""A plan as the arrays that a step uploads. numpy only."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from engines.records import AskedPrompt, IntArray, SequenceRecords
from engines.steps import ScheduledSequence, StepPlan

UNKNOWN = -1  # a token that the step before has sampled and that only the device knows


@dataclass(slots=True, frozen=True)
class StepLayout:
    """Row r computes token `tokens[r]` at `positions[r]` of the sequence in slot `slots[r]`: first the sequences of one
    token, then the chunks."""

    scheduled: list[ScheduledSequence]
    num_decodes: int
    tokens: IntArray
    slots: IntArray
    positions: IntArray
    starts: IntArray  # [sequences + 1], the first row of each

    @property
    def num_chunks(self) -> int:
        return len(self.scheduled) - self.num_decodes

    @property
    def chunk_starts(self) -> IntArray:
        return self.starts[self.num_decodes :]

    @property
    def sampled(self) -> list[int]:
        """Which of the sequences."""
        return [i for i, sequence in enumerate(self.scheduled) if sequence.samples]

    def rows_to_keep(self, asked: list[AskedPrompt]) -> IntArray:
        """Those whose logits are sampled from, and then those behind which asked tokens come."""
        last = self.starts[1:][self.sampled] - 1
        return np.concatenate([last, *(self.starts[each.index] + np.arange(len(each.tokens)) for each in asked)])


@dataclass(slots=True, frozen=True)
class TableChanges:
    """Entry `places[i]` of the flattened block tables becomes `blocks[i]`."""

    places: IntArray
    blocks: IntArray


def in_order(plan: StepPlan) -> list[ScheduledSequence]:
    """The groups don't matter here: no sequence is padded to another's length."""
    rows = [sequence for group in plan.groups for sequence in group]
    return [row for row in rows if row.num_tokens == 1] + [row for row in rows if row.num_tokens > 1]


def lay_out(
    scheduled: list[ScheduledSequence],
    records: SequenceRecords,
    slots: list[int],
    is_on_its_way: Callable[[int], bool],
) -> StepLayout:
    """`is_on_its_way`: whether a sequence's last token was sampled by a step that has not been read. Raises ValueError
    for a plan with other tokens that are not known."""
    tokens: list[int] = []
    for sequence in scheduled:
        is_sampled = is_on_its_way(sequence.sequence_id)  # asked first: it may arrive any moment
        known = records[sequence.sequence_id].token_ids[sequence.start : sequence.context_len]
        if len(known) == sequence.num_tokens - 1 and is_sampled:
            known.append(UNKNOWN)
        if len(known) != sequence.num_tokens:
            raise ValueError("the plan names a position whose token is not known")
        tokens += known
    first, lengths = _array([s.start for s in scheduled]), _array([s.num_tokens for s in scheduled])
    starts = np.concatenate([[0], lengths.cumsum()])
    positions = np.arange(len(tokens)) + np.repeat(first - starts[:-1], lengths)
    num_decodes = sum(s.num_tokens == 1 for s in scheduled)
    return StepLayout(scheduled, num_decodes, _array(tokens), np.repeat(_array(slots), lengths), positions, starts)


def table_changes(
    scheduled: list[ScheduledSequence], records: SequenceRecords, slots: list[int], table_len: int
) -> TableChanges:
    """What the device's tables do not have yet."""
    places: list[int] = []
    blocks: list[int] = []
    for sequence, slot in zip(scheduled, slots, strict=True):
        record = records[sequence.sequence_id]
        table = sequence.block_table
        if (known := record.num_blocks) == len(table):
            continue
        new = table[known:]  # once: others may append to it
        assert known + len(new) <= table_len, "a table longer than any context"
        places += range(slot * table_len + known, slot * table_len + known + len(new))
        blocks += new
        record.num_blocks = known + len(new)
    return TableChanges(_array(places), _array(blocks))


def _array(numbers: list[int]) -> IntArray:
    return np.array(numbers, dtype=np.int64)
