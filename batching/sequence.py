"""One sequence's state, as the scheduler sees it."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum, auto

from batching.blocks import hash_block
from engines.steps import NewSequence
from engines.types import FinishReason, GenerationRequest, TokenLogprobs


class SequenceStatus(Enum):
    WAITING = auto()
    RUNNING = auto()
    PREEMPTED = auto()  # lost its KV space; computes all its known tokens again
    FINISHED = auto()


@dataclass(slots=True, eq=False)
class Sequence:
    """A prompt and what has been generated from it.

    Steps can be in flight, so two counts run ahead of `token_ids`: `num_computed_tokens` includes positions that
    a submitted step will compute, and `num_pending_tokens` counts tokens that submitted steps will sample.
    """

    sequence_id: int
    request: GenerationRequest
    max_tokens: int
    token_ids: list[int]
    num_prompt_tokens: int = field(init=False)
    status: SequenceStatus = SequenceStatus.WAITING
    num_computed_tokens: int = 0
    num_pending_tokens: int = 0
    num_cached_tokens: int = 0
    block_table: list[int] = field(default_factory=list)
    block_hashes: list[bytes] = field(default_factory=list)
    first_scheduled: float | None = None
    num_preemptions: int = 0
    num_prompt_logprobs: int = 0  # of its tokens, from the second on, so many have been told

    def __post_init__(self) -> None:
        self.num_prompt_tokens = len(self.request.prompt_token_ids)

    @property
    def queue_seconds(self) -> float:
        """From its arrival to its first step; 0 before that."""
        arrival = self.request.arrival
        return (self.first_scheduled or arrival) - arrival

    @property
    def num_output_tokens(self) -> int:
        return len(self.token_ids) - self.num_prompt_tokens

    @property
    def num_uncomputed_tokens(self) -> int:
        """What the next step can compute; 0 when every token that may still be sampled is on its way."""
        num_known = len(self.token_ids) + self.num_pending_tokens
        if num_known - self.num_prompt_tokens >= self.max_tokens:
            return 0
        return num_known - self.num_computed_tokens

    @property
    def num_computed_prompt_tokens(self) -> int:
        """Prompt tokens that were worked on, cached ones included, even if a preemption took them again."""
        has_answer = len(self.token_ids) + self.num_pending_tokens > self.num_prompt_tokens
        return self.num_prompt_tokens if has_answer else self.num_computed_tokens

    @property
    def asks_of_prompt(self) -> bool:
        return self.request.sampling.prompt_logprobs is not None

    def max_cached_tokens(self) -> int:
        """How many need not be computed. The last one must be: its logits choose the next. What they say of the prompt
        must be told before they can be left out."""
        return self.num_prompt_logprobs if self.asks_of_prompt else len(self.token_ids) - 1

    def new_prompt_logprobs(self, start: int, told: list[TokenLogprobs]) -> list[TokenLogprobs]:
        """Of the tokens behind position `start`. What a preemption has computed twice is told once."""
        new = told[self.num_prompt_logprobs - start :]
        self.num_prompt_logprobs += len(new)
        return new

    def introduction(self) -> NewSequence:
        """What the engine is told of it."""
        request = self.request
        output = self.token_ids[self.num_prompt_tokens :]
        return NewSequence(self.sequence_id, request.prompt_token_ids, request.sampling, output)

    def hashes(self, block_size: int, num_tokens: int) -> list[bytes]:
        """Hashes of the full blocks among the first `num_tokens` known tokens."""
        count = min(num_tokens, len(self.token_ids)) // block_size
        while len(self.block_hashes) < count:
            start = len(self.block_hashes) * block_size
            parent = self.block_hashes[-1] if self.block_hashes else self.request.cache_salt
            self.block_hashes.append(hash_block(parent, self.token_ids[start : start + block_size]))
        return self.block_hashes[:count]

    def append(self, token_id: int) -> FinishReason | None:
        """Take a sampled token; says whether it ends the sequence."""
        self.num_pending_tokens -= 1
        self.token_ids.append(token_id)
        sampling = self.request.sampling
        if token_id in sampling.stop_token_ids and self.num_output_tokens >= sampling.min_tokens:
            return FinishReason.STOP
        return FinishReason.LENGTH if self.num_output_tokens >= self.max_tokens else None
