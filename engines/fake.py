"""The deterministic engine: token i of an answer is a fixed function of the prompt and i.

It computes nothing, so it measures what is around it, and every byte that reaches a client can be checked.
"""

from __future__ import annotations

import math
import os
import sys
import time
from dataclasses import dataclass
from typing import Any

from engines.base import EngineError, ThreadedStepEngine
from engines.fake_tokens import FIRST_PRINTABLE, NUM_PRINTABLE, digest_prompt, fake_token
from engines.steps import NewSequence, ScheduledSequence, StepPlan, StepResult, TextBatch
from engines.types import Continuation, EngineConfig, EngineInfo, SamplingParams, TokenLogprobs, VectorInfo

CONTEXT = 1_000_000
BLOCK_SIZE = 32
MAX_NUM_SEQS = 64
TOKEN_BUDGET = 8192
VOCABULARY = 256
DIM = 8  # of a vector
PROMPT_OFFSET = 2**62  # of the indices of what is expected in a prompt


def fake_logprobs(likeliest: int, token: int, count: int) -> TokenLogprobs:
    """How likely `token` was where `likeliest` is: that one has half of the probability, the next printable byte half
    of the rest, and so on around; no other token has any."""
    top = [((likeliest - FIRST_PRINTABLE + i) % NUM_PRINTABLE + FIRST_PRINTABLE) for i in range(count)]
    return TokenLogprobs(_logprob(likeliest, token), [(each, _logprob(likeliest, each)) for each in top])


def _logprob(likeliest: int, token: int) -> float:
    if not 0 <= token - FIRST_PRINTABLE < NUM_PRINTABLE:
        return -math.inf
    rank = (token - likeliest) % NUM_PRINTABLE
    return -math.log(2) * min(rank + 1, NUM_PRINTABLE - 1)


def fake_prompt_logprobs(prompt_digest: bytes, position: int, token: int, count: int) -> TokenLogprobs:
    """Of the token at a position of the prompt."""
    return fake_logprobs(fake_token(prompt_digest, PROMPT_OFFSET + position), token, count)


@dataclass(slots=True, frozen=True)
class _Known:
    """A sequence."""

    digest: bytes
    prompt: list[int]
    sampling: SamplingParams

    @classmethod
    def of(cls, new: NewSequence) -> _Known:
        return cls(digest_prompt(new.prompt_token_ids), new.prompt_token_ids, new.sampling)

    def answer(self, index: int, *, repeats: bool) -> int:
        return self.prompt[index % len(self.prompt)] if repeats else fake_token(self.digest, index)

    def prompt_logprobs(self, item: ScheduledSequence, count: int) -> list[TokenLogprobs]:
        """Of the prompt's tokens behind the positions that are computed."""
        return [
            fake_prompt_logprobs(self.digest, position, self.prompt[position], count)
            for position in range(item.start + 1, min(item.context_len + 1, len(self.prompt)))
        ]


@dataclass(slots=True, frozen=True)
class FakeOptions:
    """`options` of a model with engine = "fake". All but the first two are for tests; 0 is the default."""

    delay_ms: float = 0  # the time that a step takes
    vocab: int = 0  # token ids that it accepts; default 256
    num_blocks: int = 0  # few make KV space scarce; default: four sequences of full length
    token_budget: int = 0  # few make chunks of prompts; default 8192
    steps_in_flight: int = 0  # default 1
    fail_at_step: int = 0  # this step raises; default: none
    max_rows: int = 0  # for more sequences in a step, or texts in a batch, there is no memory; default: for any number
    fatal_token: int = 0  # the process ends in a step with a prompt that has it; default: none does
    repeat_prompt: int = 0  # 1: the answer is the prompt, over and over


def read_options(options: dict[str, Any]) -> FakeOptions:
    """Raises EngineError for an unknown name or a value that is not a number >= 0."""
    names = list(FakeOptions.__dataclass_fields__)
    for name, value in options.items():
        if name not in names:
            raise EngineError(f"options.{name}: unknown; the fake engine knows {', '.join(names)}")
        allowed = (int, float) if name == "delay_ms" else (int,)
        if isinstance(value, bool) or not isinstance(value, allowed) or not 0 <= value < math.inf:
            kind = "a number" if name == "delay_ms" else "an integer"
            raise EngineError(f"options.{name}: expected {kind} >= 0, got {value!r}")
    return FakeOptions(**options)


class FakeEngine(ThreadedStepEngine):
    def __init__(self, config: EngineConfig) -> None:
        options = read_options(config.options)
        max_len = config.max_model_len or CONTEXT
        blocks_each = -(-max_len // BLOCK_SIZE)
        self._delay = options.delay_ms / 1000
        self._steps_to_failure = options.fail_at_step
        self._max_rows = options.max_rows or sys.maxsize
        self._repeats = bool(options.repeat_prompt)
        self._fatal_token = options.fatal_token
        self._known: dict[int, _Known] = {}  # by sequence id
        super().__init__(
            EngineInfo(
                max_model_len=max_len,
                max_num_seqs=config.max_num_seqs or MAX_NUM_SEQS,
                vocab_size=options.vocab or VOCABULARY,
                block_size=BLOCK_SIZE,
                num_blocks=options.num_blocks or 4 * blocks_each,
                token_budget=options.token_budget or TOKEN_BUDGET,
                steps_in_flight=options.steps_in_flight or 1,
                description=f"fake, {options.delay_ms:g} ms a step",
                continuation=Continuation.SEEDED,
                tells_logprobs=True,
                vectors=VectorInfo(DIM, truncates=config.matryoshka),
            )
        )

    def execute(self, plan: StepPlan) -> StepResult:
        for sequence_id in plan.finished:
            self._known.pop(sequence_id, None)
        for new in plan.new:
            self._known[new.sequence_id] = _Known.of(new)
        self._pass_time(len(plan.rows))
        result = StepResult()
        if self._fatal_token and any(self._fatal_token in self._known[row.sequence_id].prompt for row in plan.rows):
            os._exit(1)
        for item in plan.rows:
            self._compute(item, self._known[item.sequence_id], result)
        return result

    def _compute(self, item: ScheduledSequence, known: _Known, result: StepResult) -> None:
        sampling = known.sampling
        if sampling.prompt_logprobs is not None and item.start + 1 < len(known.prompt):
            result.prompt_logprobs[item.sequence_id] = known.prompt_logprobs(item, sampling.prompt_logprobs)
        if not item.samples:
            return
        token = known.answer(item.context_len - len(known.prompt), repeats=self._repeats)
        result.tokens[item.sequence_id] = token
        if sampling.logprobs is not None:
            result.logprobs[item.sequence_id] = fake_logprobs(token, token, sampling.logprobs)

    def execute_texts(self, batch: TextBatch) -> list[bytes]:
        from engines.fake_vectors import fake_vectors  # with packages that a Python inside Triton lacks

        self._pass_time(len(batch.rows))
        return fake_vectors(batch)

    def _pass_time(self, num_rows: int) -> None:
        if num_rows > self._max_rows:
            raise MemoryError(f"options.max_rows: {num_rows}")
        if self._delay and num_rows:
            time.sleep(self._delay)
        self._steps_to_failure -= 1
        if self._steps_to_failure == 0:
            raise RuntimeError("options.fail_at_step")
