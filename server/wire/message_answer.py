"""Anthropic's answers: a message, whole or as the events of its stream, and a count of tokens."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Sequence
from typing import Any, Self

import msgspec
from pydantic_core import from_json

from engines.types import FinishReason, Usage
from server.wire.common import Answer, ResponseHead, encode

_REASONS = {
    FinishReason.STOP: "end_turn",
    FinishReason.LENGTH: "max_tokens",
    FinishReason.TOOL_CALLS: "tool_use",
    FinishReason.CONTENT_FILTER: "refusal",
}


def stop_reason(reason: FinishReason, stop: str | None) -> str:
    """`stop`: the stop string that ended it, which may have cut a tool's input short."""
    return "stop_sequence" if stop is not None else _REASONS[reason]


class TextBody(msgspec.Struct, frozen=True, tag_field="type", tag="text"):
    text: str
    citations: None = None


class ThinkingBody(msgspec.Struct, frozen=True, tag_field="type", tag="thinking"):
    thinking: str
    signature: str


class ToolUseBody(msgspec.Struct, frozen=True, tag_field="type", tag="tool_use"):
    id: str
    name: str
    input: dict[str, Any]


BlockBody = TextBody | ThinkingBody | ToolUseBody


class OutputDetails(msgspec.Struct, frozen=True):
    thinking_tokens: int


class UsageDelta(msgspec.Struct, frozen=True, kw_only=True):
    """`input_tokens` are those that were not cached. Caching costs nothing extra here: none are counted as created."""

    input_tokens: int
    cache_creation_input_tokens: int = 0
    cache_read_input_tokens: int
    output_tokens: int
    output_tokens_details: OutputDetails

    @classmethod
    def of(cls, usage: Usage) -> Self:
        return cls(
            input_tokens=usage.prompt_tokens - usage.cached_tokens,
            cache_read_input_tokens=usage.cached_tokens,
            output_tokens=usage.completion_tokens,
            output_tokens_details=OutputDetails(usage.reasoning_tokens),
        )


class UsageBody(UsageDelta, frozen=True, kw_only=True):
    service_tier: str = "standard"


class MessageBody(msgspec.Struct, frozen=True, kw_only=True, tag_field="type", tag="message"):
    id: str
    role: str = "assistant"
    model: str
    content: Sequence[BlockBody]
    stop_reason: str | None
    stop_sequence: str | None
    usage: UsageBody


class TokenCountBody(msgspec.Struct, frozen=True):
    input_tokens: int


def message(head: ResponseHead, answers: Sequence[Answer], usage: Usage, *, hides_thinking: bool = False) -> bytes:
    """The whole answer's JSON. `hides_thinking`: of what was thought, the signature alone."""
    (answer,) = answers
    body = MessageBody(
        id=head.id,
        model=head.model,
        content=_blocks(answer, hides_thinking),
        stop_reason=stop_reason(answer.finish_reason, answer.stop),
        stop_sequence=answer.stop,
        usage=UsageBody.of(usage),
    )
    return encode(body)


def _blocks(answer: Answer, hides_thinking: bool) -> list[BlockBody]:
    blocks: list[BlockBody] = []
    if answer.reasoning:
        signed = signature(hashlib.sha256(answer.reasoning.encode()))
        blocks.append(ThinkingBody("" if hides_thinking else answer.reasoning, signed))
    if answer.text:
        blocks.append(TextBody(answer.text))
    return blocks + [ToolUseBody(call.id, call.name, tool_input(call.arguments)) for call in answer.calls]


def signature(digest: Any) -> str:
    """A checksum of the thoughts, since clients expect something here; it proves nothing and is never asked for."""
    return base64.b64encode(digest.digest()).decode()


def tool_input(arguments: str) -> dict[str, Any]:
    """As the SDK reads a stream: of arguments that were cut short, those that are whole; {} for what is no object."""
    try:
        value = from_json(arguments or "{}", allow_partial=True)
    except ValueError:
        return {}
    return value if isinstance(value, dict) else {}


def token_count(count: int) -> bytes:
    return encode(TokenCountBody(count))


# The stream.


class TextDelta(msgspec.Struct, frozen=True, tag_field="type", tag="text_delta"):
    text: str


class ThinkingDelta(msgspec.Struct, frozen=True, tag_field="type", tag="thinking_delta"):
    thinking: str


class SignatureDelta(msgspec.Struct, frozen=True, tag_field="type", tag="signature_delta"):
    signature: str


class InputDelta(msgspec.Struct, frozen=True, tag_field="type", tag="input_json_delta"):
    partial_json: str


class MessageEnd(msgspec.Struct, frozen=True):
    stop_reason: str
    stop_sequence: str | None


class MessageStart(msgspec.Struct, frozen=True, tag_field="type", tag="message_start"):
    message: MessageBody


class BlockStart(msgspec.Struct, frozen=True, tag_field="type", tag="content_block_start"):
    index: int
    content_block: BlockBody


class BlockDelta(msgspec.Struct, frozen=True, tag_field="type", tag="content_block_delta"):
    index: int
    delta: TextDelta | ThinkingDelta | SignatureDelta | InputDelta


class BlockStop(msgspec.Struct, frozen=True, tag_field="type", tag="content_block_stop"):
    index: int


class MessageDelta(msgspec.Struct, frozen=True, tag_field="type", tag="message_delta"):
    delta: MessageEnd
    usage: UsageDelta


class MessageStop(msgspec.Struct, frozen=True, tag_field="type", tag="message_stop"):
    pass


class Ping(msgspec.Struct, frozen=True, tag_field="type", tag="ping"):
    pass


def event(body: msgspec.Struct) -> bytes:
    """A server-sent event, named as its `type`."""
    return named_event(str(body.__struct_config__.tag), encode(body))


def named_event(name: str, data: bytes) -> bytes:
    return b"event: " + name.encode() + b"\ndata: " + data + b"\n\n"
