"""A request and its conversation -> what the chat pipeline is asked."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Coroutine, Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import Any, ClassVar, TypeVar

from pydantic import ValidationError

from server.errors import APIError, InvalidRequest
from server.responses.conversation import Message, without_oldest
from server.text.chat_template import MAX_MESSAGES
from server.wire.chat import ChatCompletionRequest
from server.wire.response_options import AllowedTools, FunctionReference, JsonSchemaFormat
from server.wire.responses import AnswerFields, ResponsesRequest

T = TypeVar("T")

TOO_LONG = "context_length_exceeded"
_SAME_NAME = (
    "temperature",
    "top_p",
    "top_k",
    "min_p",
    "presence_penalty",
    "frequency_penalty",
    "repetition_penalty",
    "logit_bias",
    "seed",
    "stop",
    "stop_token_ids",
    "min_tokens",
    "ignore_eos",
    "chat_template_kwargs",
    "stream",
    "user",
)


class ChatOfResponse(ChatCompletionRequest):
    """The chat that a response is made of. Its errors name the response's own parameters."""

    PROMPT_PARAM: ClassVar[str] = "input"
    PROMPT_NOUN: ClassVar[str] = "input"
    OTHER_NAMES: ClassVar[Mapping[str, str]] = MappingProxyType(
        {
            "messages": "input",
            "response_format": "text.format",
            "reasoning_effort": "reasoning.effort",
            "max_tokens": "max_output_tokens",
            "max_completion_tokens": "max_output_tokens",
            "logprobs": "include",
        }
    )

    is_background: bool = False

    @property
    def is_streamed(self) -> bool:
        """One in the background tells of itself to whoever follows it."""
        return bool(self.stream) or self.is_background


def chat_of(request: AnswerFields, messages: Sequence[Message]) -> ChatOfResponse:
    """Raises InvalidRequest."""
    if len(messages) > MAX_MESSAGES:
        raise InvalidRequest(f"At most {MAX_MESSAGES} messages are accepted.", param="input", code=TOO_LONG)
    with own_names():
        try:
            return ChatOfResponse(model=request.model, messages=messages, **_asked(request), **_sampled(request))  # type: ignore[arg-type]
        except ValidationError:
            raise InvalidRequest("The items of the input don't make up a conversation.", param="input") from None


def _asked(request: AnswerFields) -> dict[str, Any]:
    tools = [
        {
            "type": "function",
            "function": tool.model_dump(include={"name", "description", "parameters", "strict"}, exclude_none=True),
        }
        for tool in request.tools or ()
    ]
    return {
        "tools": tools or None,
        "tool_choice": _choice(request) if tools or request.tool_choice not in ("none", "auto") else None,
        "parallel_tool_calls": request.parallel_tool_calls,
        "response_format": _format(request),
        "reasoning_effort": request.reasoning.effort if request.reasoning else None,
    }


def _choice(request: AnswerFields) -> Any:
    match request.tool_choice:
        case FunctionReference(name=name):
            return _named(name)
        case AllowedTools(mode=mode, tools=tools):
            return {
                "type": "allowed_tools",
                "allowed_tools": {"mode": mode, "tools": [_named(tool.name) for tool in tools]},
            }
        case choice:
            return choice


def _named(name: str) -> dict[str, Any]:
    return {"type": "function", "function": {"name": name}}


def _format(request: AnswerFields) -> dict[str, Any] | None:
    chosen = request.text.format if request.text else None
    if isinstance(chosen, JsonSchemaFormat):
        schema = chosen.model_dump(exclude={"type"}, exclude_none=True, by_alias=True)
        return {"type": "json_schema", "json_schema": schema}
    return None if chosen is None else chosen.model_dump()


def _sampled(request: AnswerFields) -> dict[str, Any]:
    if not isinstance(request, ResponsesRequest):
        return {}
    return {
        **{name: getattr(request, name) for name in _SAME_NAME},
        "max_completion_tokens": request.max_output_tokens,
        "logprobs": True if request.tells_logprobs else None,
        "top_logprobs": request.top_logprobs,
        "is_background": bool(request.background),
    }


@contextlib.contextmanager
def own_names() -> Iterator[None]:
    """What the pipeline says of chat's parameters, said of the response's."""
    try:
        yield
    except APIError as error:
        name = error.param
        if name is not None and (own := ChatOfResponse.name_of(name)) != name:
            error.param, error.message = own, error.message.replace(f"'{name}'", f"'{own}'")
            error.args = (error.message,)
        raise


async def fitted(
    messages: Sequence[Message], attempt: Callable[[Sequence[Message]], Coroutine[Any, Any, T]], *, truncate: bool
) -> T:
    """What `attempt` makes of the messages: of all, or with `truncate` of as many of the latest as it takes."""
    try:
        return await attempt(messages)
    except InvalidRequest as error:
        if error.code != TOO_LONG or not truncate or len(messages) < 2:
            raise
    low, high = 1, len(messages) - 1
    while low < high:
        middle = (low + high) // 2
        try:
            await attempt(without_oldest(messages, middle))
            high = middle
        except InvalidRequest as error:
            if error.code != TOO_LONG:
                raise
            low = middle + 1
    return await attempt(without_oldest(messages, low))
