"""`POST /v1/completions`: the legacy request, its answer and its chunks."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, ClassVar

import msgspec
from pydantic import AfterValidator, PlainValidator

from engines.types import FinishReason, Usage
from server.wire.common import (
    MAX_PROMPTS,
    Answer,
    ChunkEncoder,
    ResponseHead,
    at_least,
    whole,
)
from server.wire.prompts import Prompt, prompts
from server.wire.sampling import GenerationFields

KIND = "text_completion"


class CompletionRequest(GenerationFields):
    PROMPT_PARAM: ClassVar[str] = "prompt"
    PROMPT_NOUN: ClassVar[str] = "prompt"

    prompt: Annotated[list[Prompt], PlainValidator(prompts(MAX_PROMPTS))]
    best_of: Annotated[int, AfterValidator(at_least(1))] | None = None
    echo: bool | None = None
    logprobs: int | None = None
    suffix: str | None = None


class Choice(msgspec.Struct, frozen=True):
    text: str
    index: int
    logprobs: None = None
    finish_reason: str | None = None


def completion(head: ResponseHead, answers: Sequence[Answer], usage: Usage) -> bytes:
    """The whole answer's JSON; `usage` is of all choices together."""
    choices = [Choice(answer.text, i, finish_reason=answer.finish_reason) for i, answer in enumerate(answers)]
    return whole(KIND, head, choices, usage)


class CompletionChunkEncoder(ChunkEncoder):
    kind = KIND

    def _text_choice(self, index: int, text: str) -> Choice:
        return Choice(text, index)

    def _last_choice(self, index: int, reason: FinishReason) -> Choice:
        return Choice("", index, finish_reason=reason)
