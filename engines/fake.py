"""The deterministic engine: token i of an answer is a fixed function of the prompt and i.

It computes nothing, so it measures what is around it, and every byte that reaches a client can be checked.
"""

from __future__ import annotations

import hashlib
import time
from array import array

from engines.base import EngineError, ThreadedStepEngine
from engines.types import EngineConfig, EngineInfo, ScheduledSequence, StepPlan, StepResult

CONTEXT = 1_000_000
BLOCK_SIZE = 32
FIRST_PRINTABLE, NUM_PRINTABLE = 32, 95


def fake_token(prompt_digest: bytes, index: int) -> int:
    """Token `index` of the answer to a prompt: a printable ASCII byte."""
    digest = hashlib.blake2b(index.to_bytes(8, "little"), digest_size=8, key=prompt_digest).digest()
    return FIRST_PRINTABLE + int.from_bytes(digest, "little") % NUM_PRINTABLE


def digest_prompt(token_ids: list[int]) -> bytes:
    return hashlib.blake2b(array("q", token_ids).tobytes(), digest_size=16).digest()


def fake_answer(token_ids: list[int], num_tokens: int) -> list[int]:
    """The whole answer that the engine gives: what tests compare with."""
    digest = digest_prompt(token_ids)
    return [fake_token(digest, index) for index in range(num_tokens)]


class FakeEngine(ThreadedStepEngine):
    """`options`: `delay_ms`, the time that a step takes (0); `vocab`, the number of token ids it accepts (256);
    `num_blocks` and `token_budget`, to make KV space and prefill scarce in tests."""

    def __init__(self, config: EngineConfig) -> None:
        options = {"delay_ms": 0, "vocab": 256, "num_blocks": 0, "token_budget": 8192} | config.options
        _check_options(options)
        max_len = config.max_model_len or CONTEXT
        blocks_each = -(-max_len // BLOCK_SIZE)
        self._delay = options["delay_ms"] / 1000
        self._prompts: dict[int, tuple[bytes, int]] = {}  # digest and length by sequence id
        super().__init__(
            EngineInfo(
                max_model_len=max_len,
                max_num_seqs=config.max_num_seqs,
                vocab_size=options["vocab"],
                block_size=BLOCK_SIZE,
                num_blocks=options["num_blocks"] or 4 * blocks_each,
                token_budget=options["token_budget"],
                description=f"fake, {options['delay_ms']} ms a step",
            )
        )

    def execute(self, plan: StepPlan) -> StepResult:
        for sequence_id in plan.finished:
            self._prompts.pop(sequence_id, None)
        for new in plan.new:
            self._prompts[new.sequence_id] = digest_prompt(new.prompt_token_ids), len(new.prompt_token_ids)
        if self._delay and plan.groups:
            time.sleep(self._delay)
        scheduled = (item for group in plan.groups for item in group if item.samples)
        return StepResult({item.sequence_id: self._token(item) for item in scheduled})

    def _token(self, item: ScheduledSequence) -> int:
        digest, prompt_len = self._prompts[item.sequence_id]
        return fake_token(digest, item.context_len - prompt_len)


def _check_options(options: dict[str, object]) -> None:
    for name, value in options.items():
        if name not in ("delay_ms", "vocab", "num_blocks", "token_budget"):
            raise EngineError(f"options.{name}: the fake engine has delay_ms, vocab, num_blocks and token_budget")
        if isinstance(value, bool) or not isinstance(value, int | float) or value < 0:
            raise EngineError(f"options.{name}: expected a number >= 0, got {value!r}")
