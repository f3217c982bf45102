"""The events of a streamed response: OpenAI's, each with its place in the stream."""

from __future__ import annotations

import secrets
from typing import Any

import msgspec

from server.errors import APIError
from server.wire.common import encode
from server.wire.logprobs import DeltaLogprob
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
    logprobs: tuple[DeltaLogprob, ...]
    sequence_number: int


class OutputTextDone(msgspec.Struct, frozen=True, tag_field="type", tag="response.output_text.done"):
    item_id: str
    output_index: int
    content_index: int
    text: str
    logprobs: tuple[DeltaLogprob, ...]
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


class SteerFailed(msgspec.Struct, frozen=True, tag_field="type", tag="response.steer.failed"):
    """What is sent to steer a response comes back: it is not supported."""

    error: dict[str, str]
    steer: dict[str, Any]
    sequence_number: int = 0

    @classmethod
    def of(cls, previous_response_id: Any, given: Any) -> SteerFailed:
        message = "Responses can't be steered here: send another 'response.create' when this one has ended."
        error = {"code": "steering_not_supported", "message": message, "type": "invalid_request_error"}
        return cls(error, {"previous_response_id": previous_response_id, "input": given})


class WebSocketError(msgspec.Struct, frozen=True, tag_field="type", tag="error", omit_defaults=True):
    """How a WebSocket says what an HTTP status would."""

    status: int
    error: dict[str, Any]
    stream_id: str | None = None


def error_frame(error: APIError, stream_id: str | None = None) -> bytes:
    body: dict[str, Any] = dict(error.details())
    if error.headers:
        body["headers"] = error.headers
    return encode(WebSocketError(error.status, body, stream_id))


def on_lane(event: bytes, stream_id: str | None) -> bytes:
    """With the client's own name of its request, where it has one."""
    return event if stream_id is None else b'%s,"stream_id":%s}' % (event[:-1], encode(stream_id))


def frame(event: bytes, *, obfuscate: bool = False) -> bytes:
    """One server-sent event: its name is its type."""
    head = event_head(event)
    body = obfuscated(event, head) if obfuscate else event
    return b"event: %s\ndata: %s\n\n" % (head.type.encode(), body)
