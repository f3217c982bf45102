"""What an engine that we step is told and what it answers, a step at a time."""

from __future__ import annotations

from dataclasses import dataclass, field

from engines.types import RequestError, SamplingParams, TokenLogprobs


@dataclass(slots=True, frozen=True)
class NewSequence:
    """A sequence that the engine has not seen: it keeps these tokens and appends those it samples.

    `output_token_ids` were sampled elsewhere: see GenerationRequest.
    """

    sequence_id: int
    prompt_token_ids: list[int]
    sampling: SamplingParams
    output_token_ids: list[int] = field(default_factory=list)


@dataclass(slots=True, frozen=True)
class ScheduledSequence:
    """One sequence's part of a step: compute the tokens at positions [start, start + num_tokens).

    Their ids are the engine's own record of the sequence; the last of them may be a token that the step before
    sampled and that the scheduler has not seen yet. With `samples`, the token after the last one is sampled.
    `block_table[i]` holds positions [i * block_size, (i + 1) * block_size); the list is only ever appended to.
    """

    sequence_id: int
    start: int
    num_tokens: int
    samples: bool
    block_table: list[int]

    @property
    def context_len(self) -> int:
        """Tokens attended to by the last query of this step."""
        return self.start + self.num_tokens


@dataclass(slots=True)
class StepPlan:
    """One step. `groups` are the length buckets: sequences that attend together, padded to their longest."""

    groups: list[list[ScheduledSequence]] = field(default_factory=list)
    new: list[NewSequence] = field(default_factory=list)
    # Sequence ids whose state may be dropped, before those of `new` come. After a step that found too little memory an
    # id may be among both, or among the finished a second time.
    finished: list[int] = field(default_factory=list)
    preempted: list[int] = field(default_factory=list)  # lost their blocks: they start again at position 0

    @property
    def rows(self) -> list[ScheduledSequence]:
        """Those of all groups."""
        return [row for group in self.groups for row in group]


@dataclass(slots=True)
class StepResult:
    """`tokens` has the sampled token of every scheduled sequence with `samples`.

    `ended` has those whose grammar ends with that token: None, it is complete and nothing can follow; or what is wrong.
    `logprobs` has those tokens' where the sequence asks for them. `prompt_logprobs` has, of a sequence that asks for
    them, those of the prompt's tokens that come after the positions that this step computed.
    """

    tokens: dict[int, int] = field(default_factory=dict)
    ended: dict[int, RequestError | None] = field(default_factory=dict)
    logprobs: dict[int, TokenLogprobs] = field(default_factory=dict)
    prompt_logprobs: dict[int, list[TokenLogprobs]] = field(default_factory=dict)


@dataclass(slots=True, frozen=True)
class TextRow:
    """A text as its model reads it. `num_first`: as in TextSpan."""

    token_ids: list[int]
    num_first: int


@dataclass(slots=True, frozen=True)
class TextBatch:
    """Texts of about one length that an engine computes together, padded to the longest."""

    rows: list[TextRow]
