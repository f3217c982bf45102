"""Runs the steps of a plan on a device, one ahead of what is known: a step is launched before the tokens of the one
before it have been read, and takes them from where they were sampled."""

from __future__ import annotations

import logging
import threading
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from engines.constraint import MatcherSource
from engines.records import AskedPrompt, SequenceRecord, SequenceRecords
from engines.steps import ScheduledSequence, StepPlan, StepResult
from engines.torch.gpu.buckets import GraphBuckets
from engines.torch.gpu.decodes import DecodeBatches
from engines.torch.gpu.kv_cache import PagedMemory, StepRows
from engines.torch.gpu.layout import StepLayout, in_order, lay_out, table_changes
from engines.torch.gpu.sampler import DeviceSampler, PendingTokens, SampledRow
from engines.torch.gpu.slots import SlotTable
from engines.torch.gpu.step import Attention, DeviceStep
from engines.torch.gpu.transfers import send
from engines.torch.logprobs import logprobs_of
from engines.types import TokenLogprobs

log = logging.getLogger("penstock.engine")


@dataclass(slots=True, eq=False)
class LaunchedStep:
    """A step on its way through the device. `result` is there once it has been read."""

    sampled: dict[int, SequenceRecord] = field(default_factory=dict)
    pending: PendingTokens | None = None
    prompt_logprobs: dict[int, list[TokenLogprobs]] = field(default_factory=dict)
    is_done: torch.cuda.Event | None = None  # None: as soon as it is launched
    result: StepResult | None = None
    lock: threading.Lock = field(default_factory=threading.Lock)


class GpuRunner:
    """`launch` belongs to the engine's thread; `finish` may be called from another."""

    def __init__(
        self,
        model: Any,
        memory: PagedMemory,
        attention: Attention,
        vocab_size: int,
        max_num_seqs: int,
        grammars: MatcherSource | None = None,
    ) -> None:
        self._model = model
        self._memory = memory
        self._attention = attention
        self._device: torch.device = model.device
        self._records = SequenceRecords(vocab_size, grammars)
        self._slots = SlotTable(memory.scratch_slot)
        self._sampler = DeviceSampler(vocab_size, memory.scratch_slot, self._device)
        self._decodes = DecodeBatches(self._decode, GraphBuckets.up_to(max_num_seqs), memory.scratch_slot, self._device)
        self._no_chunks = torch.zeros(1, dtype=torch.int64, device=self._device)
        self._last, self._before_last = LaunchedStep(result=StepResult()), LaunchedStep(result=StepResult())

    def capture_graphs(self) -> None:
        """For decodes. A model whose forward pass can't be captured runs without."""
        try:
            self._decodes.capture()
        except RuntimeError as error:
            log.warning("no CUDA graphs: %s", " ".join(str(error).split())[:200])
            self._decodes.forget()

    @property
    def num_graphs(self) -> int:
        return self._decodes.num_graphs

    # --- one step

    @torch.inference_mode()
    def launch(self, plan: StepPlan) -> LaunchedStep:
        self.finish(self._before_last)
        for sequence_id in plan.finished:
            self._slots.release(sequence_id)
        self._records.take_over(plan)
        if not plan.groups:
            return LaunchedStep(result=StepResult())
        step = self._launch(in_order(plan))
        self._before_last, self._last = self._last, step
        return step

    def _launch(self, scheduled: list[ScheduledSequence]) -> LaunchedStep:
        slots = self._take_slots(scheduled)
        layout = lay_out(scheduled, self._records, slots, self._is_on_its_way)
        self._update_tables(scheduled, slots)
        asked = self._records.asked(scheduled)
        logits = self._forward(layout, asked)
        rows = [self._sampled_row(layout.scheduled[i], slots[i]) for i in layout.sampled]
        step = LaunchedStep({row.sequence_id: self._records[row.sequence_id] for row in rows})
        if rows:
            if any(row.state.grammar is not None for row in rows):
                self.finish(self._last)  # what may come next depends on what came; the device computes meanwhile
            step.pending = self._sampler.sample(rows, logits[: len(rows)])
        step.prompt_logprobs = _told(asked, logits[len(rows) :])
        if self._device.type == "cuda":
            step.is_done = torch.cuda.Event()  # type: ignore[no-untyped-call]
            step.is_done.record()
        return step

    def finish(self, step: LaunchedStep) -> StepResult:
        """Wait for the step and read what it sampled. The same answer when it is asked again."""
        with step.lock:
            if step.result is None:
                if step.is_done is not None:
                    step.is_done.synchronize()
                step.result = self._read(step)
            return step.result

    def _read(self, step: LaunchedStep) -> StepResult:
        result = StepResult(prompt_logprobs=step.prompt_logprobs)
        if step.pending is None:
            return result
        for row, token in zip(step.pending.rows, step.pending.tokens.tolist(), strict=True):
            result.tokens[row.sequence_id] = token
            if row.state.grammar is not None and row.state.record(token):
                result.ended[row.sequence_id] = row.state.grammar.error
            step.sampled[row.sequence_id].token_ids.append(token)
        result.logprobs = step.pending.logprobs()
        return result

    def _is_on_its_way(self, sequence_id: int) -> bool:
        return self._last.result is None and sequence_id in self._last.sampled

    def _sampled_row(self, scheduled: ScheduledSequence, slot: int) -> SampledRow:
        num_prompt = self._records[scheduled.sequence_id].num_prompt
        state = self._records.sampling(scheduled.sequence_id)
        return SampledRow(scheduled.sequence_id, slot, state, scheduled.context_len - num_prompt)

    # --- where the sequences' state is

    def _take_slots(self, scheduled: list[ScheduledSequence]) -> list[int]:
        keep = {sequence.sequence_id for sequence in scheduled}
        return [self._slot(sequence.sequence_id, keep) for sequence in scheduled]

    def _slot(self, sequence_id: int, keep: set[int]) -> int:
        if (slot := self._slots.get(sequence_id)) is not None:
            self._slots.touch(sequence_id)
            return slot
        record = self._records[sequence_id]
        self.finish(self._last)  # one that has lost its slot may have a token on its way, and so may who loses one now
        slot = self._slots.acquire(sequence_id, keep)
        record.num_blocks = 0
        prompt, output = record.token_ids[: record.num_prompt], record.token_ids[record.num_prompt :]
        self._sampler.begin(slot, self._records.sampling(sequence_id), prompt, output)
        return slot

    def _update_tables(self, scheduled: list[ScheduledSequence], slots: list[int]) -> None:
        changes = table_changes(scheduled, self._records, slots, self._memory.tables.shape[1])
        if len(changes.places):
            places, blocks = send(np.stack([changes.places, changes.blocks]), self._device)
            self._memory.tables.view(-1).index_copy_(0, places, blocks.int())

    # --- the model

    def _forward(self, layout: StepLayout, asked: list[AskedPrompt]) -> torch.Tensor:
        """Logits of `layout.rows_to_keep(asked)`."""
        if layout.num_chunks or asked:
            return self._run(layout, asked)
        logits = self._decodes.run(layout)
        sampled = layout.sampled
        return logits if len(sampled) == len(logits) else logits[send(np.array(sampled, dtype=np.int64), self._device)]

    def _decode(self, tokens: torch.Tensor, slots: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
        return self._call_model(tokens, StepRows(slots, positions, len(tokens), self._no_chunks), 0)

    def _run(self, layout: StepLayout, asked: list[AskedPrompt]) -> torch.Tensor:
        tokens, slots, positions = send(np.stack([layout.tokens, layout.slots, layout.positions]), self._device)
        chunk_starts = send(layout.chunk_starts, self._device)
        rows = StepRows(slots, positions, layout.num_decodes, chunk_starts, layout.num_chunks)
        return self._call_model(tokens, rows, send(layout.rows_to_keep(asked), self._device))

    def _call_model(self, tokens: torch.Tensor, rows: StepRows, keep: torch.Tensor | int) -> torch.Tensor:
        """Logits of the rows to keep; 0 keeps all."""
        known = torch.where(tokens < 0, self._sampler.last_tokens[rows.slots], tokens)
        output = self._model(
            input_ids=known[None],
            position_ids=rows.positions[None],
            use_cache=False,
            logits_to_keep=keep,
            attention_step=DeviceStep(self._attention, self._memory, rows),
        )
        logits: torch.Tensor = output.logits[0]
        return logits

    def check_integrity(self) -> None:
        self._slots.check_integrity()
        self._decodes.check_integrity()
        self._memory.check_integrity()


def _told(asked: list[AskedPrompt], logits: torch.Tensor) -> dict[int, list[TokenLogprobs]]:
    """By sequence. It waits for the device, as a step does whose prompts' logprobs are wanted."""
    told, first = {}, 0
    for each in asked:
        end = first + len(each.tokens)
        told[each.sequence_id] = logprobs_of(logits[first:end], each.tokens, each.count)
        first = end
    return told
