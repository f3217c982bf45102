"""The items of `/v1/responses`: what a request's `input` may hold, and what is kept of it."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Discriminator, Field, StringConstraints, Tag
from pydantic_core import PydanticCustomError

from server.text.chat_template import MAX_MESSAGES
from server.wire.common import MAX_PARTS, RequestModel, at_most, new_id
from server.wire.response_parts import Parts, kept_output, kept_part

Item = dict[str, Any]
"""An item as it is stored, listed and handed back: JSON."""

ItemId = Annotated[str, StringConstraints(min_length=1, max_length=256, pattern=r"^[^\x00]*$")]  # for PostgreSQL
Name = Annotated[str, StringConstraints(min_length=1, max_length=256)]
Status = Literal["in_progress", "completed", "incomplete"]

ID_PREFIXES = {
    "message": "msg_",
    "reasoning": "rs_",
    "function_call": "fc_",
    "function_call_output": "fco_",
    "compaction": "cmp_",
}


def new_item_id(kind: str) -> str:
    return new_id(ID_PREFIXES[kind])


class MessageItem(RequestModel):
    type: Literal["message"] = "message"
    role: Literal["user", "assistant", "system", "developer"]
    content: Parts
    id: ItemId | None = None
    status: Status | None = None
    phase: Literal["commentary", "final_answer"] | None = None


class FunctionCallItem(RequestModel):
    type: Literal["function_call"]
    call_id: Name
    name: Name
    arguments: str  # JSON, as the model wrote it: perhaps not valid
    id: ItemId | None = None
    status: Status | None = None
    caller: None = None
    namespace: None = None
    is_async: Annotated[Literal[False] | None, Field(alias="async")] = None
    created_by: str | None = None


class FunctionOutputItem(RequestModel):
    type: Literal["function_call_output"]
    call_id: Name
    output: Parts
    id: ItemId | None = None
    status: Status | None = None
    name: str | None = None
    caller: None = None
    namespace: None = None
    created_by: str | None = None


class SummaryText(RequestModel):
    type: Literal["summary_text"]
    text: str


class ReasoningText(RequestModel):
    type: Literal["reasoning_text"]
    text: str


class ReasoningItem(RequestModel):
    """`encrypted_content`, where there is one, is ours and counts; else the text of `content` does."""

    type: Literal["reasoning"]
    id: ItemId | None = None
    summary: Annotated[list[SummaryText], at_most(MAX_PARTS)] = Field(default_factory=list)
    content: Annotated[list[ReasoningText], at_most(MAX_PARTS)] | None = None
    encrypted_content: str | None = None
    status: Status | None = None


class CompactionItem(RequestModel):
    type: Literal["compaction", "compaction_summary"]
    encrypted_content: str
    id: ItemId | None = None
    created_by: str | None = None


class ItemReference(RequestModel):
    type: Literal["item_reference"] | None = None
    id: ItemId


_KINDS = {
    "message": "message",
    "function_call": "function_call",
    "function_call_output": "function_call_output",
    "reasoning": "reasoning",
    "compaction": "compaction",
    "compaction_summary": "compaction",
    "item_reference": "item_reference",
}


def _kind(value: Any) -> str:
    """Without a type it is a message, or a reference when all it has is an id."""
    if not isinstance(value, dict):
        return getattr(value, "type", None) or "item_reference"
    if (kind := value.get("type")) is None:
        return "item_reference" if value.keys() <= {"id", "type"} and value else "message"
    return _KINDS.get(kind, "") if isinstance(kind, str) else ""


def _known_item(value: Any) -> Any:
    kind = value.get("type") if isinstance(value, dict) else None
    if isinstance(kind, str) and kind not in _KINDS:
        message = "Items of type '{kind}' are not supported: they belong to tools that this server does not have"
        raise PydanticCustomError("unsupported_item", message, {"kind": kind[:64]})
    if not isinstance(value, dict):
        raise PydanticCustomError("item_type", "Expected an object")
    return value


InputItem = Annotated[
    Annotated[
        Annotated[MessageItem, Tag("message")]
        | Annotated[FunctionCallItem, Tag("function_call")]
        | Annotated[FunctionOutputItem, Tag("function_call_output")]
        | Annotated[ReasoningItem, Tag("reasoning")]
        | Annotated[CompactionItem, Tag("compaction")]
        | Annotated[ItemReference, Tag("item_reference")],
        Discriminator(_kind),
    ],
    BeforeValidator(_known_item),
]


def _as_items(value: Any) -> Any:
    if value is None:
        return []
    if isinstance(value, str):
        return [{"type": "message", "role": "user", "content": value}]
    if isinstance(value, list):
        _bound_parts(value)
        return value
    raise PydanticCustomError("input_type", "Expected a string or a list of items")


def _bound_parts(items: list[Any]) -> None:
    """Counts what all items hold before any of it is validated; what is of another type is validated soon."""
    values = [item.get(key) for item in items if isinstance(item, dict) for key in ("content", "output", "summary")]
    if sum(len(value) for value in values if isinstance(value, list)) > MAX_PARTS:
        message = "Expected at most {most} content parts in all items together"
        raise PydanticCustomError("too_many", message, {"most": MAX_PARTS})


Input = Annotated[
    list[InputItem],
    Field(fail_fast=True),
    BeforeValidator(_as_items, json_schema_input_type=str | list[InputItem]),
    at_most(MAX_MESSAGES),
]


def kept(item: InputItem) -> Item:
    """An input item as it is stored and listed: with an id, and without what says nothing."""
    raw = item.model_dump(exclude_none=True, by_alias=True)
    kind = raw["type"] = "compaction" if isinstance(item, CompactionItem) else item.type or "item_reference"
    raw["id"] = item.id or new_item_id(kind)
    match item:
        case MessageItem():
            raw["status"] = item.status or "completed"
            raw["content"] = [kept_part(part, item.role) for part in raw["content"]]
        case FunctionCallItem() | FunctionOutputItem():
            raw["status"] = item.status or "completed"
            if isinstance(item, FunctionOutputItem):
                raw["output"] = kept_output(raw["output"])
    return raw
