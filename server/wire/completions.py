"""`POST /v1/completions`: the legacy request, its answer and its chunks."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, ClassVar, Self

import msgspec
from pydantic import AfterValidator, PlainValidator, model_validator

from engines.types import FinishReason, Usage
from server.errors import InvalidRequest
from server.text.logprobs import ToldToken
from server.wire.common import (
    MAX_BEST_OF,
    MAX_COMPLETION_LOGPROBS,
    MAX_PROMPTS,
    Answer,
    ChunkEncoder,
    ResponseHead,
    answer_type,
    at_least,
    whole,
    within,
)
from server.wire.logprobs import LegacyLogprobs, legacy_logprobs
from server.wire.prompts import AnyForm, Prompt, prompts
from server.wire.sampling import GenerationFields

KIND = "text_completion"


class CompletionRequest(GenerationFields):
    PROMPT_PARAM: ClassVar[str] = "prompt"
    PROMPT_NOUN: ClassVar[str] = "prompt"

    prompt: Annotated[list[Prompt], PlainValidator(prompts(MAX_PROMPTS), json_schema_input_type=AnyForm)]
    max_tokens: Annotated[int, AfterValidator(at_least(0))] | None = None
    best_of: Annotated[int, AfterValidator(within(1, MAX_BEST_OF))] | None = None
    echo: bool | None = None
    logprobs: Annotated[int, AfterValidator(within(0, MAX_COMPLETION_LOGPROBS))] | None = None
    suffix: str | None = None

    @property
    def num_samples(self) -> int:
        return self.best_of or self.num_choices

    @property
    def echoes(self) -> bool:
        return bool(self.echo)

    @property
    def only_prompt(self) -> bool:
        return self.max_tokens == 0

    @property
    def token_logprobs(self) -> int | None:
        return self.logprobs

    @property
    def prompt_token_logprobs(self) -> int | None:
        return self.logprobs if self.echo else None

    @model_validator(mode="after")
    def _check_samples(self) -> Self:
        if self.best_of is not None and self.best_of < self.num_choices:
            message = f"'best_of' ({self.best_of}) is less than 'n' ({self.num_choices})."
            raise InvalidRequest(message, param="best_of")
        if self.best_of is not None and self.best_of > 1 and self.stream:
            message = "'best_of' can't be streamed: which answers are the best is known when all have ended."
            raise InvalidRequest(message, param="best_of")
        if self.only_prompt and not self.echo:
            raise InvalidRequest("'max_tokens': 0 leaves nothing to answer without 'echo'.", param="max_tokens")
        return self


class Choice(msgspec.Struct, frozen=True):
    text: str
    index: int
    logprobs: LegacyLogprobs | None = None
    finish_reason: str | None = None


def completion(head: ResponseHead, answers: Sequence[Answer], usage: Usage) -> bytes:
    """The whole answer's JSON; `usage` is of all choices together."""
    choices = [Choice(a.text, i, legacy_logprobs(a.tokens), a.finish_reason) for i, a in enumerate(answers)]
    return whole(KIND, head, choices, usage)


CompletionBody = answer_type("Completion", Choice)


class CompletionChunkEncoder(ChunkEncoder):
    kind = KIND

    def told_chunk(self, text: str, tokens: Sequence[ToldToken], index: int = 0) -> bytes:
        return self._chunk(Choice(text, index, legacy_logprobs(tokens)))

    def _text_choice(self, index: int, text: str) -> Choice:
        return Choice(text, index)

    def _last_choice(self, index: int, reason: FinishReason) -> Choice:
        return Choice("", index, finish_reason=reason)
