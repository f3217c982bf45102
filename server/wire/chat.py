"""`/v1/chat/completions`: the request over HTTP and WebSocket, its answer and its chunks."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal, Self

import msgspec
from pydantic import AfterValidator, BeforeValidator, Field, StringConstraints, model_validator
from pydantic_core import PydanticCustomError

from server.errors import InvalidRequest
from server.off_loop import off_loop_if
from server.text.chat_template import MAX_MESSAGES
from server.wire.body import LONG_BODY_BYTES, parse_json
from server.wire.common import (
    MAX_PARTS,
    MAX_TOP_LOGPROBS,
    RequestModel,
    at_most,
    within,
)
from server.wire.sampling import GenerationFields, TokenCount
from server.wire.tools import FunctionChoice, Functions, ResponseFormat, ToolChoice, Tools

MAX_TEMPLATE_KWARGS = 32
KNOWS_TOOLS = "the model's template knows tools"
HOLDS_TO_GRAMMAR = "the model's engine can hold an answer to a grammar"

Name = Annotated[str, StringConstraints(min_length=1, max_length=256)]
Role = Literal["system", "developer", "user", "assistant", "tool", "function"]


class PromptCacheOptions(RequestModel):
    mode: Literal["implicit", "explicit"] | None = None
    ttl: Literal["30m", "12h"] | None = None


class ContentPart(RequestModel):
    """A part of a message that is text. `refusal` is an assistant's earlier words of refusal."""

    NO_EFFECT: ClassVar[frozenset[str]] = frozenset({"prompt_cache_breakpoint"})

    type: Literal["text", "refusal"]
    text: str | None = None
    refusal: str | None = None
    prompt_cache_breakpoint: PromptCacheOptions | None = None

    @property
    def words(self) -> str:
        return self.text or self.refusal or ""

    @model_validator(mode="before")
    @classmethod
    def _refuse_media(cls, value: Any) -> Any:
        kind = value.get("type") if isinstance(value, dict) else None
        if isinstance(kind, str) and kind not in ("text", "refusal"):
            message = "This model accepts text only; a part of type '{kind}' is not supported"
            raise PydanticCustomError("unsupported_content", message, {"kind": kind[:64]})
        return value

    @model_validator(mode="after")
    def _check_fields(self) -> Self:
        if (self.text is None) is (self.type == "text") or (self.refusal is None) is (self.type == "refusal"):
            message = "A part of type '{kind}' has its string in '{kind}', and no other"
            raise PydanticCustomError("content_part", message, {"kind": self.type})
        return self


class FunctionCall(RequestModel):
    name: Name
    arguments: str  # JSON, as the model wrote it: perhaps not valid

    def for_template(self) -> dict[str, Any]:
        return {"name": self.name, "arguments": self.arguments}


class ToolCall(RequestModel):
    id: Name
    type: Literal["function"]
    function: FunctionCall


def _as_parts(value: Any) -> Any:
    """`content` is a string or a list of parts; one form goes on."""
    if isinstance(value, str):
        return [{"type": "text", "text": value}]
    if value is None or isinstance(value, list):
        return value
    raise PydanticCustomError("content_type", "Expected a string or a list of content parts")


_AS_PARTS = BeforeValidator(_as_parts, json_schema_input_type=str | list[ContentPart] | None)


class Message(RequestModel):
    NO_EFFECT: ClassVar[frozenset[str]] = frozenset({"annotations"})

    role: Role
    content: Annotated[
        Annotated[list[ContentPart], Field(min_length=1, fail_fast=True)] | None,
        _AS_PARTS,
    ] = None
    name: Name | None = None
    tool_call_id: Name | None = None
    tool_calls: Annotated[list[ToolCall], Field(fail_fast=True)] | None = None
    function_call: FunctionCall | None = None
    # An answer's message, sent back as history, carries these.
    refusal: str | None = None
    annotations: list[Any] | None = None
    audio: None = None
    reasoning_content: str | None = None

    @property
    def text(self) -> str:
        """The message's words: its parts joined, or the refusal that stands in their place."""
        return "".join(part.words for part in self.content or ()) or self.refusal or ""

    def for_template(self) -> dict[str, Any]:
        """The message as open models' chat templates know it: text as one string, no empty keys.

        Arguments stay JSON text, and `developer` its name: what becomes of them depends on the template.
        """
        role = "tool" if self.role == "function" else self.role
        optional = {
            "name": self.name,
            "tool_call_id": self.tool_call_id,
            "reasoning_content": self.reasoning_content,
            "tool_calls": self._calls(),
        }
        return {"role": role, "content": self.text} | {key: value for key, value in optional.items() if value}

    def _calls(self) -> list[dict[str, Any]]:
        if self.function_call is not None:
            return [{"type": "function", "function": self.function_call.for_template()}]
        calls = self.tool_calls or ()
        return [{"id": c.id, "type": c.type, "function": c.function.for_template()} for c in calls]

    @model_validator(mode="after")
    def _check_role(self) -> Self:
        for problem, applies in self._problems().items():
            if applies:
                raise PydanticCustomError("message", "A message of role '{role}' " + problem, {"role": self.role})
        return self

    def _problems(self) -> dict[str, bool]:
        assistant, tool, function = (self.role == role for role in ("assistant", "tool", "function"))
        calls = bool(self.tool_calls) or self.function_call is not None
        parts = self.content or ()
        refused = any(part.type == "refusal" for part in parts)
        return {
            "can't have 'tool_calls' or 'function_call'": calls and not assistant,
            "can't have a refusal": (refused or self.refusal is not None) and not assistant,
            "can't have 'reasoning_content'": self.reasoning_content is not None and not assistant,
            "can't have 'tool_call_id'": self.tool_call_id is not None and not tool,
            "needs 'tool_call_id'": tool and self.tool_call_id is None,
            "needs 'name'": function and self.name is None,
            "needs 'content'": self.content is None and not (function or calls or self.refusal is not None),
            "has both 'content' and 'refusal'": bool(self.refusal) and any(p.words for p in parts),
            "has both 'tool_calls' and 'function_call'": bool(self.tool_calls) and self.function_call is not None,
        }


_LISTS = ("content", "tool_calls", "annotations")


def _bound_parts(messages: Any) -> Any:
    """Counts what all messages hold before any of it is validated; what is of another type is validated soon."""
    if isinstance(messages, list):
        values = [m.get(key) for m in messages if isinstance(m, dict) for key in _LISTS]
        if sum(len(value) for value in values if isinstance(value, list)) > MAX_PARTS:
            message = "Expected at most {most} content parts, tool calls and annotations in all messages together"
            raise PydanticCustomError("too_many", message, {"most": MAX_PARTS})
    return messages


Messages = Annotated[
    list[Message], Field(min_length=1, fail_fast=True), BeforeValidator(_bound_parts), at_most(MAX_MESSAGES)
]


class ChatCompletionRequest(GenerationFields):
    PROMPT_PARAM: ClassVar[str] = "messages"
    PROMPT_NOUN: ClassVar[str] = "messages"
    NO_EFFECT: ClassVar[frozenset[str]] = GenerationFields.NO_EFFECT | {
        "safety_identifier",
        "prompt_cache_key",
        "prompt_cache_retention",
        "prompt_cache_options",
        "service_tier",
    }
    WHERE: ClassVar[Mapping[str, str]] = {
        **GenerationFields.WHERE,
        "response_format": HOLDS_TO_GRAMMAR,
        "tools": KNOWS_TOOLS,
        "functions": KNOWS_TOOLS,
        "reasoning_effort": "the model's template has it",
        "chat_template_kwargs": "the model's template has such variables",
    }

    messages: Messages
    max_completion_tokens: TokenCount | None = None
    safety_identifier: Annotated[str, StringConstraints(max_length=128)] | None = None
    prompt_cache_key: str | None = None
    prompt_cache_retention: Literal["in_memory", "in-memory", "24h"] | None = None
    prompt_cache_options: PromptCacheOptions | None = None
    response_format: ResponseFormat | None = None
    tools: Tools | None = None
    tool_choice: ToolChoice | None = None
    parallel_tool_calls: bool | None = None
    functions: Functions | None = None
    function_call: FunctionChoice | None = None
    reasoning_effort: str | None = None
    chat_template_kwargs: Annotated[dict[str, Any], at_most(MAX_TEMPLATE_KWARGS)] | None = None
    service_tier: Annotated[str, StringConstraints(max_length=128)] | None = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int, AfterValidator(within(0, MAX_TOP_LOGPROBS))] | None = None
    # Refused unless neutral: see NEUTRAL.
    store: bool | None = None
    verbosity: str | None = None
    modalities: Any = None
    audio: Any = None
    prediction: Any = None
    web_search_options: Any = None
    moderation: Any = None

    @property
    def explicit_max_tokens(self) -> int | None:
        return self.max_completion_tokens or self.max_tokens

    @property
    def token_logprobs(self) -> int | None:
        return self.top_logprobs or 0 if self.logprobs else None

    @model_validator(mode="after")
    def _check_logprobs(self) -> Self:
        if self.top_logprobs and not self.logprobs:
            raise InvalidRequest("'top_logprobs' is only allowed with 'logprobs': true.", param="top_logprobs")
        return self

    @model_validator(mode="after")
    def _check_max_tokens(self) -> Self:
        given = {self.max_tokens, self.max_completion_tokens} - {None}
        if len(given) > 1:
            message = "'max_tokens' and 'max_completion_tokens' are both given and differ; send one of them."
            raise InvalidRequest(message, param="max_completion_tokens")
        return self


# WebSocket


class ChatCompletionFrame(ChatCompletionRequest):
    """A chat completion asked for over a WebSocket, where every answer is streamed."""

    type: Literal["chat.completion"] | None = None
    request_id: Annotated[str, StringConstraints(min_length=1, max_length=128)] | None = None
    stream: Annotated[Literal[True], BeforeValidator(lambda value: True if value is None else value)] = True


class CancelFrame(RequestModel):
    type: Literal["cancel"]
    request_id: Annotated[str, StringConstraints(min_length=1, max_length=128)] | None = None


class FrameHead(msgspec.Struct, frozen=True):
    """What a frame says it is, read before the frame is validated, so that its errors can echo its request_id."""

    type: Any = None
    request_id: Any = None


def frame_head(data: str | bytes) -> FrameHead:
    """Never raises: a frame that is no JSON object has an empty head, and so has a request_id that is no string."""
    try:
        head = msgspec.json.decode(data, type=FrameHead)
    except (msgspec.DecodeError, UnicodeError, RecursionError):
        return FrameHead()
    return head if isinstance(head.request_id, str | None) else FrameHead(head.type)


async def read_frame(data: str | bytes) -> ChatCompletionFrame | CancelFrame:
    """`parse_frame`, off the event loop for a long frame."""
    return await off_loop_if(len(data) > LONG_BODY_BYTES, lambda: parse_frame(data))


def parse_frame(data: str | bytes) -> ChatCompletionFrame | CancelFrame:
    """Raises APIError, as the body of an HTTP request does."""
    body = data.encode(errors="surrogatepass") if isinstance(data, str) else data
    if frame_head(body).type == "cancel":
        return parse_json(body, CancelFrame)
    return parse_json(body, ChatCompletionFrame)
