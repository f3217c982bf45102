"""`/tokenize` and `/detokenize`, in vLLM's shapes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Self

import msgspec
from pydantic import PlainValidator, model_validator
from pydantic_core import PydanticCustomError

from server.errors import InvalidRequest, UnsupportedParameter
from server.wire.chat import Messages
from server.wire.common import RequestModel, encode, refuse_unsupported
from server.wire.prompts import is_tokens
from server.wire.sampling import ModelName


class TokenizeRequest(RequestModel):
    """A text, or messages as a chat completion has them."""

    NEUTRAL: ClassVar[Mapping[str, tuple[object, ...]]] = {
        "continue_final_message": (False,),
        "chat_template": (),
        "chat_template_kwargs": ({},),
        "tools": ([],),
    }
    WHERE: ClassVar[Mapping[str, str]] = {
        "add_special_tokens": "`prompt` is given",
        "add_generation_prompt": "`messages` are given",
    }

    model: ModelName
    prompt: str | None = None
    messages: Messages | None = None
    add_special_tokens: bool | None = None  # of a text; default true
    add_generation_prompt: bool | None = None  # of messages; default true
    return_token_strs: bool | None = None
    continue_final_message: Any = None
    chat_template: Any = None
    chat_template_kwargs: Any = None
    tools: Any = None

    @model_validator(mode="after")
    def _check_together(self) -> Self:
        if (self.prompt is None) == (self.messages is None):
            raise InvalidRequest("Expected either 'prompt' or 'messages'.", param="prompt")
        refuse_unsupported(self)
        if self.messages is not None and self.add_special_tokens:
            message = "Unsupported parameter: 'add_special_tokens'. The chat template adds those of 'messages'."
            raise UnsupportedParameter("add_special_tokens", message)
        if self.messages is None and self.add_generation_prompt is not None:
            message = "Unsupported parameter: 'add_generation_prompt'. It is for 'messages' alone."
            raise UnsupportedParameter("add_generation_prompt", message)
        return self


def _tokens(value: Any) -> list[int]:
    if value == [] or is_tokens(value):
        return list(value)
    raise PydanticCustomError("tokens", "Expected a list of token ids")


class DetokenizeRequest(RequestModel):
    model: ModelName
    tokens: Annotated[list[int], PlainValidator(_tokens, json_schema_input_type=list[int])]


class TokenizeAnswer(msgspec.Struct, frozen=True):
    count: int
    max_model_len: int
    tokens: list[int]
    token_strs: list[str] | None = None


class DetokenizeAnswer(msgspec.Struct, frozen=True):
    prompt: str


def tokenize_answer(tokens: list[int], max_model_len: int, strings: list[str] | None) -> bytes:
    return encode(TokenizeAnswer(len(tokens), max_model_len, tokens, strings))


def detokenize_answer(text: str) -> bytes:
    return encode(DetokenizeAnswer(text))
