"""What a message of `/v1/messages` holds: Anthropic's content blocks, of those kinds that a model of text can read."""

from __future__ import annotations

from collections.abc import Collection
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import BeforeValidator, Field, StringConstraints, model_validator
from pydantic_core import PydanticCustomError

from server.text.chat_template import MAX_MESSAGES
from server.wire.common import MAX_PARTS, RequestModel, at_most

Name = Annotated[str, StringConstraints(min_length=1, max_length=256)]


class CacheControl(RequestModel):
    """Asks for what is done anyway: every prefix is cached for as long as there is room."""

    type: Literal["ephemeral"]
    ttl: Literal["5m", "1h"] | None = None


class TextBlock(RequestModel):
    NO_EFFECT: ClassVar[frozenset[str]] = frozenset({"cache_control", "citations"})

    type: Literal["text"]
    text: str
    cache_control: CacheControl | None = None
    citations: list[Any] | None = None  # of an answer that is sent back as history


class DirectCaller(RequestModel):
    type: Literal["direct"]


class ToolUseBlock(RequestModel):
    NO_EFFECT: ClassVar[frozenset[str]] = frozenset({"cache_control", "caller"})

    type: Literal["tool_use"]
    id: Name
    name: Name
    input: dict[str, Any]
    cache_control: CacheControl | None = None
    caller: DirectCaller | None = None
    toolset_name: None = None


class ThinkingBlock(RequestModel):
    """`signature` is whatever the server that thought it gave; nothing here depends on it."""

    NO_EFFECT: ClassVar[frozenset[str]] = frozenset({"signature"})

    type: Literal["thinking"]
    thinking: str
    signature: str


class RedactedThinkingBlock(RequestModel):
    """Thoughts that only the server that had them can read."""

    NO_EFFECT: ClassVar[frozenset[str]] = frozenset({"data"})

    type: Literal["redacted_thinking"]
    data: str


def _known(*kinds: str) -> BeforeValidator:
    def check(value: Any) -> Any:
        kind = value.get("type") if isinstance(value, dict) else None
        if isinstance(kind, str) and kind not in kinds:
            message = "Blocks of type '{kind}' are not supported here; expected {kinds}"
            raise PydanticCustomError("unsupported_content", message, {"kind": kind[:64], "kinds": " or ".join(kinds)})
        return value

    return BeforeValidator(check)


def _as_blocks(value: Any) -> Any:
    """A string is short for one block of text."""
    if isinstance(value, str):
        return [{"type": "text", "text": value}]
    if value is None or isinstance(value, list):
        return value
    raise PydanticCustomError("content_type", "Expected a string or a list of content blocks")


Texts = Annotated[
    list[Annotated[TextBlock, _known("text")]],
    Field(fail_fast=True),
    at_most(MAX_PARTS),
    BeforeValidator(_as_blocks, json_schema_input_type=str | list[TextBlock] | None),
]
"""Blocks of text, or a string."""


class ToolResultBlock(RequestModel):
    NO_EFFECT: ClassVar[frozenset[str]] = frozenset({"cache_control"})

    type: Literal["tool_result"]
    tool_use_id: Name
    content: Texts | None = None
    is_error: bool | None = None
    cache_control: CacheControl | None = None
    toolset_name: None = None


Block = TextBlock | ToolUseBlock | ToolResultBlock | ThinkingBlock | RedactedThinkingBlock
_AnyBlock = Annotated[
    Annotated[Block, Field(discriminator="type")],
    _known("text", "tool_use", "tool_result", "thinking", "redacted_thinking"),
]
_OF_ROLES: dict[str, Collection[str]] = {
    "user": ("text", "tool_result"),
    "assistant": ("text", "tool_use", "thinking", "redacted_thinking"),
    "system": ("text",),
}


class InputMessage(RequestModel):
    role: Literal["user", "assistant", "system"]
    content: Annotated[
        list[_AnyBlock],
        Field(min_length=1, fail_fast=True),
        at_most(MAX_PARTS),
        BeforeValidator(_as_blocks, json_schema_input_type=str | list[_AnyBlock]),
    ]

    @model_validator(mode="after")
    def _check_role(self) -> Self:
        for block in self.content:
            if block.type not in _OF_ROLES[self.role]:
                message = "A message of role '{role}' can't have a block of type '{kind}'"
                raise PydanticCustomError("message", message, {"role": self.role, "kind": block.type})
        return self


def _bound_blocks(messages: Any) -> Any:
    """Counts the blocks of all messages, and those of results in them, before any of it is validated."""
    if isinstance(messages, list) and sum(map(_num_blocks, messages)) > MAX_PARTS:
        message = "Expected at most {most} content blocks in all messages together"
        raise PydanticCustomError("too_many", message, {"most": MAX_PARTS})
    return messages


def _num_blocks(holder: Any) -> int:
    content = holder.get("content") if isinstance(holder, dict) else None
    if not isinstance(content, list):
        return 0
    results = [block for block in content if isinstance(block, dict) and block.get("type") == "tool_result"]
    return len(content) + sum(len(r["content"]) for r in results if isinstance(r.get("content"), list))


InputMessages = Annotated[
    list[InputMessage], Field(min_length=1, fail_fast=True), BeforeValidator(_bound_blocks), at_most(MAX_MESSAGES)
]
