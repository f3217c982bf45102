"""The events of a streamed response: OpenAI's, each with its place in the stream."""

from __future__ import annotations

import secrets
from typing import Any

import msgspec

from server.wire.common import encode
from server.wire.response_body import (
    FunctionCall,
    OutputItem,
    OutputText,
    ReasoningText,
    ResponseBody,
)

DONE = b"data: [DONE]\n\n"
_OBFUSCATION = 16  # characters: deltas become multiples of so many


class ResponseCreated(msgspec.Struct, frozen=True, tag_field="type", tag="response.created"):
    response: ResponseBody
    sequence_number: int


class ResponseQueued(msgspec.Struct, frozen=True, tag_field="type", tag="response.queued"):
    response: ResponseBody
    sequence_number: int


class ResponseInProgress(msgspec.Struct, frozen=True, tag_field="type", tag="response.in_progress"):
    response: ResponseBody
    sequence_number: int


class ResponseCompleted(msgspec.Struct, frozen=True, tag_field="type", tag="response.completed"):
    response: ResponseBody
    sequence_number: int


class ResponseIncomplete(msgspec.Struct, frozen=True, tag_field="type", tag="response.incomplete"):
    response: ResponseBody
    sequence_number: int


class ResponseFailed(msgspec.Struct, frozen=True, tag_field="type", tag="response.failed"):
    response: ResponseBody
    sequence_number: int


class OutputItemAdded(msgspec.Struct, frozen=True, tag_field="type", tag="response.output_item.added"):
    output_index: int
    item: OutputItem
    sequence_number: int


class OutputItemDone(msgspec.Struct, frozen=True, tag_field="type", tag="response.output_item.done"):
    output_index: int
    item: OutputItem
    sequence_number: int


class ContentPartAdded(msgspec.Struct, frozen=True, tag_field="type", tag="response.content_part.added"):
    item_id: str
    output_index: int
    content_index: int
    part: OutputText | ReasoningText
    sequence_number: int


class ContentPartDone(msgspec.Struct, frozen=True, tag_field="type", tag="response.content_part.done"):
    item_id: str
    output_index: int
    content_index: int
    part: OutputText | ReasoningText
    sequence_number: int


class OutputTextDelta(msgspec.Struct, frozen=True, tag_field="type", tag="response.output_text.delta"):
    item_id: str
    output_index: int
    content_index: int
    delta: str
    logprobs: tuple[Any, ...]
    sequence_number: int


class OutputTextDone(msgspec.Struct, frozen=True, tag_field="type", tag="response.output_text.done"):
    item_id: str
    output_index: int
    content_index: int
    text: str
    logprobs: tuple[Any, ...]
    sequence_number: int


class ReasoningDelta(msgspec.Struct, frozen=True, tag_field="type", tag="response.reasoning_text.delta"):
    item_id: str
    output_index: int
    content_index: int
    delta: str
    sequence_number: int


class ReasoningDone(msgspec.Struct, frozen=True, tag_field="type", tag="response.reasoning_text.done"):
    item_id: str
    output_index: int
    content_index: int
    text: str
    sequence_number: int


class ArgumentsDelta(msgspec.Struct, frozen=True, tag_field="type", tag="response.function_call_arguments.delta"):
    item_id: str
    output_index: int
    delta: str
    sequence_number: int


class ArgumentsDone(msgspec.Struct, frozen=True, tag_field="type", tag="response.function_call_arguments.done"):
    item_id: str
    output_index: int
    name: str
    arguments: str
    sequence_number: int

    @classmethod
    def of(cls, call: FunctionCall, output_index: int, sequence_number: int) -> ArgumentsDone:
        return cls(call.id, output_index, call.name, call.arguments, sequence_number)


class ErrorEvent(msgspec.Struct, frozen=True, tag_field="type", tag="error"):
    code: str | None
    message: str
    param: str | None
    sequence_number: int


Terminal = ResponseCompleted | ResponseIncomplete | ResponseFailed | ErrorEvent
Event = (
    Terminal
    | ResponseCreated
    | ResponseQueued
    | ResponseInProgress
    | OutputItemAdded
    | OutputItemDone
    | ContentPartAdded
    | ContentPartDone
    | OutputTextDelta
    | OutputTextDone
    | ReasoningDelta
    | ReasoningDone
    | ArgumentsDelta
    | ArgumentsDone
)


class EventHead(msgspec.Struct, frozen=True):
    """What an encoded event is read for when it is handed on."""

    type: str
    sequence_number: int
    delta: str | None = None


_decode_head = msgspec.json.Decoder(EventHead).decode


def event_head(event: bytes) -> EventHead:
    return _decode_head(event)


def obfuscated(event: bytes, head: EventHead) -> bytes:
    """A delta with padding, so that its size on the wire does not tell how long its text is."""
    if head.delta is None:
        return event
    padding = secrets.token_urlsafe(_OBFUSCATION)[: _OBFUSCATION - len(head.delta.encode()) % _OBFUSCATION]
    return b'%s,"obfuscation":%s}' % (event[:-1], encode(padding))


def frame(event: bytes, *, obfuscate: bool = False) -> bytes:
    """One server-sent event: its name is its type."""
    head = event_head(event)
    body = obfuscated(event, head) if obfuscate else event
    return b"event: %s\ndata: %s\n\n" % (head.type.encode(), body)
