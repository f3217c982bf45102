"""Our errors in Anthropic's envelope: `{"type": "error", "error": {"type", "message"}, "request_id"}`."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Literal

import msgspec

from server.errors import APIError

OVERLOADED = 529
_STATUSES = {503: OVERLOADED}  # a status of Anthropic's own, for which its SDK has an exception
_TYPES = {
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    409: "conflict_error",
    413: "request_too_large",
    429: "rate_limit_error",
    503: "overloaded_error",
    504: "timeout_error",
}
# A chat completion's parameters, by what the client calls them who sent a message.
_NAMES = {
    "response_format": "output_config.format",
    "reasoning_effort": "output_config.effort",
    "chat_template_kwargs": "thinking",
    "stop": "stop_sequences",
}
# By parameter: with these words the SDK's tool runner goes on without what is refused.
_DETAILS: Mapping[str, Mapping[str, str]] = {"thread": {"error_code": "thread_unsupported_request"}}
_QUOTED = re.compile("'(" + "|".join(_NAMES) + ")'")


class MessageErrorBody(msgspec.Struct, frozen=True):
    type: str
    message: str
    details: Mapping[str, str] | msgspec.UnsetType = msgspec.UNSET


class MessageErrorEnvelope(msgspec.Struct, frozen=True, kw_only=True):
    type: Literal["error"] = "error"
    error: MessageErrorBody
    request_id: str


def status_of(error: APIError) -> int:
    return _STATUSES.get(error.status, error.status)


def envelope(error: APIError, request_id: str) -> MessageErrorEnvelope:
    """The body of an HTTP answer and the data of a stream's error event."""
    kind = _TYPES.get(error.status, "invalid_request_error" if error.status < 500 else "api_error")
    message = _QUOTED.sub(lambda match: f"'{_NAMES[match[1]]}'", error.message)
    details = _DETAILS.get(error.param or "", msgspec.UNSET)
    return MessageErrorEnvelope(error=MessageErrorBody(kind, message, details), request_id=request_id)
