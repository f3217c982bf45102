"""`/v1/batches`: the request, OpenAI's shapes, and the lines of its files."""

from __future__ import annotations

import secrets
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Annotated, Any, Literal

import msgspec
from msgspec import UNSET, UnsetType
from pydantic import BaseModel, ConfigDict, Field, StringConstraints

from server.inner import InnerAnswer
from server.store.records import LineResult, StoredBatch
from server.wire.common import MAX_METADATA, RequestModel, at_most, encode
from server.wire.files import LIFE_SECONDS

MAX_LISTED = 100


class OutputExpiresAfter(RequestModel):
    anchor: Literal["created_at"]
    seconds: Annotated[int, LIFE_SECONDS]


class CreateBatch(RequestModel):
    input_file_id: Annotated[str, StringConstraints(min_length=1, max_length=64)]
    endpoint: Literal["/v1/chat/completions", "/v1/completions", "/v1/embeddings", "/v1/responses", "/v1/moderations"]
    completion_window: Literal["24h"]
    metadata: (
        Annotated[
            dict[
                Annotated[str, StringConstraints(max_length=64)],
                Annotated[str, StringConstraints(max_length=512)],
            ],
            at_most(MAX_METADATA),
        ]
        | None
    ) = None
    output_expires_after: OutputExpiresAfter | None = None


class BatchesQuery(BaseModel):
    """A query string's values are text: not strict."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    after: Annotated[str, StringConstraints(max_length=64)] | None = None
    limit: Annotated[int, Field(ge=1, le=MAX_LISTED)] = 20


class BatchError(msgspec.Struct, frozen=True):
    code: str
    message: str
    param: str | None = None
    line: int | None = None


class BatchErrors(msgspec.Struct, frozen=True, kw_only=True):
    object: Literal["list"] = "list"
    data: Sequence[Mapping[str, Any]]


class RequestCounts(msgspec.Struct, frozen=True):
    total: int
    completed: int
    failed: int


class InputDetails(msgspec.Struct, frozen=True):
    cached_tokens: int


class OutputDetails(msgspec.Struct, frozen=True):
    reasoning_tokens: int


class BatchUsage(msgspec.Struct, frozen=True):
    input_tokens: int
    input_tokens_details: InputDetails
    output_tokens: int
    output_tokens_details: OutputDetails
    total_tokens: int


class BatchObject(msgspec.Struct, frozen=True, kw_only=True):
    """What is not known yet is left out, as OpenAI's schema has it."""

    id: str
    object: Literal["batch"] = "batch"
    endpoint: str
    model: str | UnsetType
    errors: BatchErrors | UnsetType
    input_file_id: str
    completion_window: Literal["24h"] = "24h"
    status: str
    output_file_id: str | UnsetType
    error_file_id: str | UnsetType
    created_at: int
    in_progress_at: int | UnsetType
    expires_at: int
    finalizing_at: int | UnsetType
    completed_at: int | UnsetType
    failed_at: int | UnsetType
    expired_at: int | UnsetType
    cancelling_at: int | UnsetType
    cancelled_at: int | UnsetType
    request_counts: RequestCounts
    usage: BatchUsage
    metadata: Mapping[str, str] | None


def batch_object(batch: StoredBatch) -> BatchObject:
    return BatchObject(
        id=batch.id,
        endpoint=batch.endpoint,
        model=batch.model or UNSET,
        errors=UNSET if batch.errors is None else BatchErrors(data=batch.errors),
        input_file_id=batch.input_file_id,
        status=batch.status.value,
        output_file_id=batch.output_file_id or UNSET,
        error_file_id=batch.error_file_id or UNSET,
        created_at=int(batch.created_at.timestamp()),
        in_progress_at=_seconds(batch.in_progress_at),
        expires_at=int(batch.expires_at.timestamp()),
        finalizing_at=_seconds(batch.finalizing_at),
        completed_at=_seconds(batch.completed_at),
        failed_at=_seconds(batch.failed_at),
        expired_at=_seconds(batch.expired_at),
        cancelling_at=_seconds(batch.cancelling_at),
        cancelled_at=_seconds(batch.cancelled_at),
        request_counts=RequestCounts(batch.total, batch.completed, batch.failed),
        usage=_usage(batch),
        metadata=batch.labels,
    )


def _usage(batch: StoredBatch) -> BatchUsage:
    return BatchUsage(
        batch.input_tokens,
        InputDetails(batch.cached_tokens),
        batch.output_tokens,
        OutputDetails(batch.reasoning_tokens),
        batch.input_tokens + batch.output_tokens,
    )


def _seconds(moment: datetime | None) -> int | UnsetType:
    return UNSET if moment is None else int(moment.timestamp())


# The lines of its files


class LineResponse(msgspec.Struct, frozen=True):
    status_code: int
    request_id: str
    body: msgspec.Raw


class LineError(msgspec.Struct, frozen=True):
    code: str
    message: str


class OutputLine(msgspec.Struct, frozen=True):
    id: str
    custom_id: str
    response: LineResponse | None
    error: LineError | None


class _Details(msgspec.Struct, frozen=True):
    cached_tokens: int = 0
    reasoning_tokens: int = 0


class _Usage(msgspec.Struct, frozen=True):
    """Of chat, completions and embeddings, or of Responses."""

    prompt_tokens: int = 0
    completion_tokens: int = 0
    input_tokens: int = 0
    output_tokens: int = 0
    prompt_tokens_details: _Details | None = None
    completion_tokens_details: _Details | None = None
    input_tokens_details: _Details | None = None
    output_tokens_details: _Details | None = None


class _Answer(msgspec.Struct, frozen=True):
    usage: _Usage | None = None


def line_result(number: int, custom_id: str, answer: InnerAnswer) -> LineResult:
    """What a line's answer is to its batch. `number` is its line in the file."""
    request_id = answer.headers.get("x-request-id", "")
    response = LineResponse(answer.status, request_id, msgspec.Raw(answer.body))
    usage = _Usage() if answer.is_error else msgspec.json.decode(answer.body, type=_Answer).usage or _Usage()
    of_input = usage.prompt_tokens_details or usage.input_tokens_details or _Details()
    of_output = usage.completion_tokens_details or usage.output_tokens_details or _Details()
    return LineResult(
        line=number,
        is_error=answer.is_error,
        output=_output_line(custom_id, response, None),
        input_tokens=usage.prompt_tokens + usage.input_tokens,
        cached_tokens=of_input.cached_tokens,
        output_tokens=usage.completion_tokens + usage.output_tokens,
        reasoning_tokens=of_output.reasoning_tokens,
    )


def not_run(custom_id: str, code: str, message: str) -> bytes:
    """The line of one that never ran."""
    return _output_line(custom_id, None, LineError(code, message))


def _output_line(custom_id: str, response: LineResponse | None, error: LineError | None) -> bytes:
    return encode(OutputLine(f"batch_req_{secrets.token_hex(16)}", custom_id, response, error)) + b"\n"
