"""Runs one step of a plan: batch by batch, gather the cache, run the graph, keep what is new; then sample."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from engines.constraint import MatcherSource
from engines.drawing import FloatRow
from engines.logprobs import logprobs_of
from engines.onnx.batches import BatchRules
from engines.onnx.decoder import Decoder, DecoderBatch
from engines.onnx.kv_cache import PagedKVCache
from engines.onnx.session import Array
from engines.records import IntArray, SequenceRecords
from engines.steps import ScheduledSequence, StepPlan, StepResult
from engines.types import TokenLogprobs

SequenceIds = tuple[int, ...]


@dataclass(slots=True, frozen=True)
class Held:
    """A batch's cache as its last run left it, each row's `contexts[i]` tokens at the right: the next run's input."""

    present: list[Array]
    contexts: IntArray  # [n]


class OnnxRunner:
    """Owns the sequences' records and their sampling state. Used from the engine's thread only."""

    def __init__(
        self, decoder: Decoder, cache: PagedKVCache, rules: BatchRules, grammars: MatcherSource | None = None
    ) -> None:
        self._decoder = decoder
        self._cache = cache
        self.rules = rules
        self._records = SequenceRecords(decoder.vocab_size, grammars)
        self._held: dict[SequenceIds, Held] = {}  # of the last step

    def run(self, plan: StepPlan) -> StepResult:
        self._records.take_over(plan)
        gone = set(plan.finished)
        self._held = {ids: held for ids, held in self._held.items() if gone.isdisjoint(ids)}
        held, self._held = self._held, {}
        sequence_ids: list[int] = []
        logits: list[FloatRow] = []
        told: dict[int, list[TokenLogprobs]] = {}
        for batch in self.rules.split(plan.groups):
            sequence_ids += [sequence.sequence_id for sequence in batch if sequence.samples]
            logits.append(self._run_batch(batch, held, told))
        result = self._sample(sequence_ids, np.concatenate(logits)) if sequence_ids else StepResult()
        result.prompt_logprobs = told
        return result

    def _run_batch(
        self,
        scheduled: list[ScheduledSequence],
        held: dict[SequenceIds, Held],
        told: dict[int, list[TokenLogprobs]],
    ) -> FloatRow:
        """Logits [n, vocabulary] of the rows that are sampled. The new tokens' cache is kept, and what is asked of the
        prompts is added to `told`: a prompt may be cut into several batches of one step."""
        tables = self._records.tables(scheduled)
        batch = self._prepare(scheduled, tables, held)
        output = self._decoder.run(batch)
        columns = np.arange(batch.token_ids.shape[1])
        valid = columns < batch.lengths[:, None]
        slots = self._slots(tables, batch.starts[:, None] + columns)[valid]
        self._cache.write(slots, output.present, valid)
        if valid.all():
            ids = tuple(sequence.sequence_id for sequence in scheduled)
            self._held[ids] = Held(output.present, batch.starts + batch.lengths)
        for asked in self._records.asked(scheduled):
            of_prompt = output.logits[asked.index, : len(asked.tokens)].astype(np.float32, copy=False)
            told.setdefault(asked.sequence_id, []).extend(logprobs_of(of_prompt, asked.tokens, asked.count))
        rows = np.flatnonzero([sequence.samples for sequence in scheduled])
        logits: FloatRow = output.logits[rows, batch.lengths[rows] - 1].astype(np.float32, copy=False)
        return logits

    def _prepare(
        self, scheduled: list[ScheduledSequence], tables: IntArray, held: dict[SequenceIds, Held]
    ) -> DecoderBatch:
        starts = np.array([sequence.start for sequence in scheduled])
        lengths = np.array([sequence.num_tokens for sequence in scheduled])
        token_ids = np.zeros((len(scheduled), lengths.max()), dtype=np.int64)
        for row, sequence in zip(token_ids, scheduled, strict=True):
            known = self._records[sequence.sequence_id].token_ids[sequence.start : sequence.context_len]
            if len(known) != sequence.num_tokens:
                raise ValueError("the plan names a position whose token is not known")
            row[: sequence.num_tokens] = known
        return DecoderBatch(token_ids, starts, lengths, self._past(scheduled, starts, tables, held))

    def _past(
        self, scheduled: list[ScheduledSequence], starts: IntArray, tables: IntArray, held: dict[SequenceIds, Held]
    ) -> list[Array]:
        """The cache of the tokens before `starts`, at the right: as the last run left it, or from the blocks."""
        last = held.get(tuple(sequence.sequence_id for sequence in scheduled))
        if last is not None and np.array_equal(last.contexts, starts):
            return last.present
        width = int(starts.max())
        if width == 0:
            return self._decoder.empty_past(len(scheduled))
        # Padding reads the row's own first slot: masked, but never another sequence's NaN.
        positions = np.maximum(np.arange(width) - (width - starts)[:, None], 0)
        return self._cache.gather(self._slots(tables, positions))

    def _slots(self, tables: IntArray, positions: IntArray) -> IntArray:
        """Where the tokens at `positions` [n, tokens] are; those beyond a table's end read its last entry."""
        size = self._cache.block_size
        blocks = np.take_along_axis(tables, np.minimum(positions // size, tables.shape[1] - 1), axis=1)
        slots: IntArray = blocks * size + positions % size
        return slots

    def _sample(self, sequence_ids: list[int], logits: FloatRow) -> StepResult:
        result, broken = self._records.sample(sequence_ids, logits)
        for blocks in broken:
            self._cache.scrub(blocks)
        return result
