"""What a step engine keeps of a sequence between steps."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from engines.constraint import MatcherSource
from engines.sampling import Sampler, SequenceSampler
from engines.steps import ScheduledSequence, StepPlan, StepResult

IntArray = NDArray[np.int64]


@dataclass(slots=True)
class SequenceRecord:
    """The engine's own record of a sequence: every known token, and its block table as an array.

    `prompt_logprobs`: as in SamplingParams.
    """

    token_ids: list[int]
    num_prompt: int = 0
    prompt_logprobs: int | None = None
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


@dataclass(slots=True, frozen=True)
class AskedPrompt:
    """What a sequence wants to be told of the prompt's tokens behind the positions that a step computes: `tokens[i]`
    comes behind the i-th of them, and `count` likeliest ones are told beside it. `index`: its place in the step."""

    index: int
    sequence_id: int
    tokens: list[int]
    count: int


class SequenceRecords:
    """All of an engine's sequences, and how each is sampled. Used from the engine's thread only."""

    def __init__(self, vocab_size: int, grammars: MatcherSource | None = None) -> None:
        self._records: dict[int, SequenceRecord] = {}
        self._asking: set[int] = set()  # those that want logprobs of their prompts
        self._sampler = Sampler(vocab_size, grammars)

    def __getitem__(self, sequence_id: int) -> SequenceRecord:
        return self._records[sequence_id]

    def sampling(self, sequence_id: int) -> SequenceSampler:
        return self._sampler.state(sequence_id)

    def take_over(self, plan: StepPlan) -> None:
        """Sequences that come, go, or have lost their blocks before this step."""
        for sequence_id in plan.finished:
            self._records.pop(sequence_id, None)
            self._asking.discard(sequence_id)
            self._sampler.remove(sequence_id)
        for sequence in plan.new:
            prompt, output = sequence.prompt_token_ids, sequence.output_token_ids
            count = sequence.sampling.prompt_logprobs
            self._records[sequence.sequence_id] = SequenceRecord(prompt + output, len(prompt), count)
            if count is not None:
                self._asking.add(sequence.sequence_id)
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

    def asked(self, scheduled: list[ScheduledSequence]) -> list[AskedPrompt]:
        """Those of this step whose prompts' logprobs are wanted, and which."""
        if not self._asking:
            return []
        found = []
        for index, sequence in enumerate(scheduled):
            record = self._records[sequence.sequence_id]
            tokens = record.token_ids[sequence.start + 1 : min(sequence.context_len + 1, record.num_prompt)]
            if record.prompt_logprobs is not None and tokens:
                found.append(AskedPrompt(index, sequence.sequence_id, tokens, record.prompt_logprobs))
        return found

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
            {sequence_ids[row]: told for row, told in sampled.logprobs.items()},
        )
        return result, [record.blocks[: record.num_blocks] for record in broken]
