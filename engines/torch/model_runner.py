"""Runs one step of a plan: pack the scheduled tokens in one row, run the model, sample, keep the tokens."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from engines.constraint import MatcherSource
from engines.records import AskedPrompt, IntArray, SequenceRecords
from engines.steps import StepPlan, StepResult
from engines.torch.backend import AttentionBackend
from engines.torch.logprobs import logprobs_of
from engines.torch.packing import PackedStep, pack
from engines.types import TokenLogprobs


class ModelRunner:
    """Owns the sequences' records and their sampling state. Used from the engine's thread only."""

    def __init__(
        self, model: Any, attention: AttentionBackend, vocab_size: int, grammars: MatcherSource | None = None
    ) -> None:
        self._model = model
        self._attention = attention
        self._device: torch.device = model.device
        self._records = SequenceRecords(vocab_size, grammars)

    @torch.inference_mode()
    def run(self, plan: StepPlan) -> StepResult:
        self._records.take_over(plan)
        if not plan.groups:
            return StepResult()
        step = pack(plan, self._records, self._attention.block_size)
        sequence_ids, rows = step.sampled()
        asked = self._records.asked(step.scheduled)
        logits = self._forward(step, np.concatenate([rows, *step.asked_rows(asked)]) if asked else rows)
        result = self._sample(sequence_ids, logits[: len(rows)])
        if asked:
            result.prompt_logprobs = _told(asked, logits[len(rows) :])
        return result

    def _forward(self, step: PackedStep, rows: IntArray) -> torch.Tensor:
        """Logits [len(rows), vocabulary] of these packed rows."""
        output = self._model(
            input_ids=torch.tensor([step.token_ids], device=self._device),
            position_ids=self._tensor(step.positions)[None],
            use_cache=False,
            logits_to_keep=self._tensor(rows),
            attention_step=self._attention.begin(step),
        )
        logits: torch.Tensor = output.logits[0]
        return logits

    def _tensor(self, array: IntArray) -> torch.Tensor:
        return torch.from_numpy(array).to(self._device)

    def _sample(self, sequence_ids: list[int], logits: torch.Tensor) -> StepResult:
        if not sequence_ids:
            return StepResult()
        result, broken = self._records.sample(sequence_ids, logits.float().cpu().numpy())
        for blocks in broken:
            self._attention.scrub(blocks)
        return result


def _told(asked: list[AskedPrompt], logits: torch.Tensor) -> dict[int, list[TokenLogprobs]]:
    """By sequence. `logits` [n, vocabulary] has the rows of all of them, one behind another."""
    told, first = {}, 0
    for each in asked:
        end = first + len(each.tokens)
        told[each.sequence_id] = logprobs_of(logits[first:end], each.tokens, each.count)
        first = end
    return told
