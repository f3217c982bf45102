"""Prompts in OpenAI's four forms: a string, a list of strings, a list of token ids, a list of lists of token ids."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from pydantic_core import PydanticCustomError

from server.errors import InvalidRequest
from server.wire.common import MAX_INT

Prompt = str | list[int]
AnyForm = str | list[str] | list[int] | list[list[int]]
"""What a request may hold, for its schema."""


def prompts(most: int) -> Callable[[Any], list[Prompt]]:
    """A pydantic validator that makes one list of all four forms, of at most so many prompts."""

    def check(value: Any) -> list[Prompt]:
        if isinstance(value, str):
            return [value]
        if not isinstance(value, list):
            raise _bad_prompt()
        if not value:
            raise PydanticCustomError("empty_prompt", "Expected at least one prompt")
        found = [value] if is_tokens(value) else value
        if len(found) > most:
            raise PydanticCustomError("too_many_prompts", "Expected at most {most} prompts", {"most": most})
        if all(isinstance(prompt, str) for prompt in found) or all(map(is_tokens, found)):
            return found
        raise _bad_prompt()

    return check


def is_tokens(value: Any) -> bool:
    """Whether `value` is a list of token ids. True and false are no integers here."""
    return isinstance(value, list) and set(map(type, value)) == {int} and 0 <= min(value) <= max(value) <= MAX_INT


def _bad_prompt() -> PydanticCustomError:
    forms = "a string, a list of strings, a list of token ids or a list of lists of token ids, none of them empty"
    return PydanticCustomError("prompt_type", "Expected {forms}", {"forms": forms})


def check_token_prompt(tokens: Sequence[int], vocab_size: int, param: str = "prompt") -> None:
    """Raise InvalidRequest for a token id that the model does not have."""
    if max(tokens) >= vocab_size:
        message = f"Token id {max(tokens)} is outside this model's vocabulary of {vocab_size} tokens."
        raise InvalidRequest(message, param=param)
