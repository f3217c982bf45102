"""Prompts in OpenAI's four forms: a string, a list of strings, a list of token ids, a list of lists of token ids.

As llama.cpp's clients have them, one list may hold prompts of both kinds, and for embeddings one input may be token
ids and strings that follow each other.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from pydantic_core import PydanticCustomError

from server.errors import InvalidRequest
from server.wire.common import MAX_INT

Prompt = str | list[int]
Pieces = list[int | str]
AnyForm = str | list[int] | list[str | list[int]]
"""What a request may hold, for its schema."""
AnyMixedForm = AnyForm | list[int | str]


def prompts(most: int) -> Callable[[Any], list[Prompt]]:
    """A pydantic validator that makes one list of all forms, of at most so many prompts."""

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
        if all(isinstance(prompt, str) or is_tokens(prompt) for prompt in found):
            return found
        raise _bad_prompt()

    return check


def mixed_prompts(most: int) -> Callable[[Any], list[Prompt | Pieces]]:
    """The same, where one list of token ids and strings is one prompt too."""
    check_pure = prompts(most)

    def check(value: Any) -> list[Prompt | Pieces]:
        return [value] if _is_pieces(value) else [*check_pure(value)]

    return check


def _is_pieces(value: Any) -> bool:
    if not isinstance(value, list) or set(map(type, value)) != {int, str}:
        return False
    return is_tokens([piece for piece in value if isinstance(piece, int)])


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
