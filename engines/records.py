"""What a step engine keeps of a sequence between steps."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from engines.constraint import MatcherSource
from engines.sampling import Sampler
from engines.types import ScheduledSequence, StepPlan, StepResult

IntArray = NDArray[np.int64]


@dataclass(slots=True)
class SequenceRecord:
    """The engine's own record of a sequence: every known token, and its block table as an array."""

    token_ids: list[int]
    blocks: IntArray = field(default_factory=lambda: np.zeros(8, dtype=np.int64))
    num_blocks: int = 0

    def update_blocks(self, block_table: list[int]) -> None:
        """Take over what was appended to the plan's table since the last step."""
        added = len(block_table) - self.num_blocks
        if added <= 0:
            return
        if len(block_table) > len(self.blocks):
            self.blocks = np.resize(self.blocks, 2 * len(block_table))
        self.blocks[self.num_blocks : len(block_table)] = block_table[self.num_blocks :]
        self.num_blocks = len(block_table)


class SequenceRecords:
    """All of an engine's sequences, and how each is sampled. Used from the engine's thread only."""

    def __init__(self, vocab_size: int, grammars: MatcherSource | None = None) -> None:
        self._records: dict[int, SequenceRecord] = {}
        self._sampler = Sampler(vocab_size, grammars)

    def __getitem__(self, sequence_id: int) -> SequenceRecord:
        return self._records[sequence_id]

    def take_over(self, plan: StepPlan) -> None:
        """Sequences that come, go, or have lost their blocks before this step."""
        for sequence_id in plan.finished:
            self._records.pop(sequence_id, None)
            self._sampler.remove(sequence_id)
        for sequence in plan.new:
            prompt, output = sequence.prompt_token_ids, sequence.output_token_ids
            self._records[sequence.sequence_id] = SequenceRecord(prompt + output)
            self._sampler.add(sequence.sequence_id, prompt, sequence.sampling, output)
        for sequence_id in plan.preempted:
            if sequence_id in self._records:
                self._records[sequence_id].num_blocks = 0  # it comes back with another block table

    def tables(self, scheduled: list[ScheduledSequence]) -> IntArray:
        """Their block tables as of this step [n, blocks], padded with block 0."""
        records = [self._records[sequence.sequence_id] for sequence in scheduled]
        for record, sequence in zip(records, scheduled, strict=True):
            record.update_blocks(sequence.block_table)
        tables = np.zeros((len(records), max(record.num_blocks for record in records)), dtype=np.int64)
        for row, record in zip(tables, records, strict=True):
            row[: record.num_blocks] = record.blocks[: record.num_blocks]
        return tables

    def sample(self, sequence_ids: list[int], logits: NDArray[np.float32]) -> tuple[StepResult, list[IntArray]]:
        """A token for each row of `logits` [n, vocabulary], kept with its sequence.

        Also answers the blocks of each sequence whose logits are not finite: it may have left NaN in them, which
        others will own.
        """
        sampled = self._sampler.sample(sequence_ids, logits)
        for sequence_id, token in zip(sequence_ids, sampled.token_ids, strict=True):
            self._records[sequence_id].token_ids.append(token)
        broken = [self._records[sequence_ids[row]] for row in sampled.broken_rows]
        result = StepResult(
            dict(zip(sequence_ids, sampled.token_ids, strict=True)),
            {sequence_ids[row]: problem for row, problem in sampled.ended.items()},
        )
        return result, [record.blocks[: record.num_blocks] for record in broken]
