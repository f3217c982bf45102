"""What `/v1/responses` answers: the response, its output items, its usage, and lists of items. OpenAI's shapes."""

from __future__ import annotations

from typing import Any

import msgspec

from engines.types import Usage
from server.errors import APIError, InvalidRequest, RateLimited
from server.wire.logprobs import ResponseLogprob
from server.wire.response_items import Item

COMPLETED, INCOMPLETE, FAILED, CANCELLED = "completed", "incomplete", "failed", "cancelled"
QUEUED, IN_PROGRESS = "queued", "in_progress"
LIVE = (QUEUED, IN_PROGRESS)

_UNSET = msgspec.UNSET


class OutputText(msgspec.Struct, frozen=True, tag_field="type", tag="output_text"):
    text: str
    annotations: tuple[()] = ()
    logprobs: tuple[ResponseLogprob, ...] = ()


class ReasoningText(msgspec.Struct, frozen=True, tag_field="type", tag="reasoning_text"):
    text: str


class OutputMessage(msgspec.Struct, frozen=True, tag_field="type", tag="message"):
    id: str
    status: str
    content: tuple[OutputText, ...] = ()
    role: str = "assistant"


class FunctionCall(msgspec.Struct, frozen=True, tag_field="type", tag="function_call"):
    id: str
    status: str
    call_id: str
    name: str
    arguments: str = ""


class Reasoning(msgspec.Struct, frozen=True, tag_field="type", tag="reasoning", omit_defaults=True):
    """`summary` is always there, and always empty: what the model thought is told in full, as `content`."""

    id: str
    summary: list[Any]
    status: str
    content: tuple[ReasoningText, ...] | msgspec.UnsetType = _UNSET
    encrypted_content: str | msgspec.UnsetType = _UNSET


class Compaction(msgspec.Struct, frozen=True, tag_field="type", tag="compaction"):
    id: str
    encrypted_content: str


OutputItem = OutputMessage | FunctionCall | Reasoning


class InputDetails(msgspec.Struct, frozen=True):
    cached_tokens: int = 0
    cache_write_tokens: int = 0


class OutputDetails(msgspec.Struct, frozen=True):
    reasoning_tokens: int = 0


class ResponseUsage(msgspec.Struct, frozen=True):
    input_tokens: int
    input_tokens_details: InputDetails
    output_tokens: int
    output_tokens_details: OutputDetails
    total_tokens: int


def usage_body(usage: Usage) -> ResponseUsage:
    return ResponseUsage(
        usage.prompt_tokens,
        InputDetails(usage.cached_tokens),
        usage.completion_tokens,
        OutputDetails(usage.reasoning_tokens),
        usage.total_tokens,
    )


class ResponseError(msgspec.Struct, frozen=True):
    code: str
    message: str


def response_error(error: APIError) -> ResponseError:
    """The codes that a response's `error` may have are few: the SDK knows them by name."""
    if isinstance(error, RateLimited):
        return ResponseError("rate_limit_exceeded", error.message)
    return ResponseError("invalid_prompt" if isinstance(error, InvalidRequest) else "server_error", error.message)


class IncompleteDetails(msgspec.Struct, frozen=True):
    reason: str


class ReasoningConfig(msgspec.Struct, frozen=True):
    effort: str | None = None
    summary: str | None = None


class ResponseBody(msgspec.Struct, frozen=True, kw_only=True):
    """Keys that OpenAI requires, null or not, in its order; and those of the Open Responses specification."""

    id: str
    object: str = "response"
    created_at: int
    status: str
    background: bool
    completed_at: int | None = None
    error: ResponseError | None = None
    incomplete_details: IncompleteDetails | None = None
    instructions: str | None
    max_output_tokens: int | None
    max_tool_calls: int | None
    model: str
    output: list[Any] = msgspec.field(default_factory=list)
    parallel_tool_calls: bool
    previous_response_id: str | None
    prompt_cache_key: str | None
    reasoning: ReasoningConfig
    safety_identifier: str | None
    service_tier: str = "default"
    store: bool
    temperature: float
    text: dict[str, Any]
    tool_choice: Any
    tools: list[dict[str, Any]]
    top_logprobs: int
    top_p: float
    presence_penalty: float
    frequency_penalty: float
    truncation: str
    usage: ResponseUsage | None = None
    user: str | msgspec.UnsetType = _UNSET
    metadata: dict[str, str]


class ItemList(msgspec.Struct, frozen=True):
    data: list[Item]
    first_id: str
    last_id: str
    has_more: bool
    object: str = "list"


class InputTokens(msgspec.Struct, frozen=True):
    input_tokens: int
    object: str = "response.input_tokens"


class Deleted(msgspec.Struct, frozen=True):
    id: str
    object: str = "response"
    deleted: bool = True


class CompactedResponse(msgspec.Struct, frozen=True):
    id: str
    created_at: int
    output: list[Any]
    usage: ResponseUsage
    object: str = "response.compaction"
