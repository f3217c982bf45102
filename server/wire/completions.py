"""`POST /v1/completions`: the legacy request, its answer and its chunks."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, ClassVar

import msgspec
from pydantic import AfterValidator, PlainValidator
from pydantic_core import PydanticCustomError

from engines.types import FinishReason, Usage
from server.errors import InvalidRequest
from server.wire.common import (
    MAX_INT,
    MAX_PROMPTS,
    Answer,
    ChunkEncoder,
    ResponseHead,
    at_least,
    whole,
)
from server.wire.sampling import GenerationFields

KIND = "text_completion"

Prompt = str | list[int]


def _prompts(value: Any) -> list[Prompt]:
    """All four forms of `prompt` as a list of prompts, each a string or a list of token ids."""
    if isinstance(value, str):
        return [value]
    if not isinstance(value, list):
        raise _bad_prompt()
    if not value:
        raise PydanticCustomError("empty_prompt", "Expected at least one prompt")
    prompts = [value] if _is_tokens(value) else value
    if len(prompts) > MAX_PROMPTS:
        raise PydanticCustomError("too_many_prompts", "Expected at most {most} prompts", {"most": MAX_PROMPTS})
    if all(isinstance(prompt, str) for prompt in prompts) or all(map(_is_tokens, prompts)):
        return prompts
    raise _bad_prompt()


def _is_tokens(value: Any) -> bool:
    """Whether `value` is a list of token ids. True and false are no integers here."""
    return isinstance(value, list) and set(map(type, value)) == {int} and 0 <= min(value) <= max(value) <= MAX_INT


def _bad_prompt() -> PydanticCustomError:
    forms = "a string, a list of strings, a list of token ids or a list of lists of token ids, none of them empty"
    return PydanticCustomError("prompt_type", "Expected {forms}", {"forms": forms})


class CompletionRequest(GenerationFields):
    PROMPT_PARAM: ClassVar[str] = "prompt"
    PROMPT_NOUN: ClassVar[str] = "prompt"

    prompt: Annotated[list[Prompt], PlainValidator(_prompts)]
    best_of: Annotated[int, AfterValidator(at_least(1))] | None = None
    echo: bool | None = None
    logprobs: int | None = None
    suffix: str | None = None


def check_token_prompt(tokens: Sequence[int], vocab_size: int) -> None:
    """Raise InvalidRequest for a token id that the model does not have."""
    if max(tokens) >= vocab_size:
        message = f"Token id {max(tokens)} is outside this model's vocabulary of {vocab_size} tokens."
        raise InvalidRequest(message, param="prompt")


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
