"""What is written down of a request when it has ended."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from datetime import datetime
from itertools import groupby

from starlette.websockets import WebSocketDisconnect

from engines.types import FinishReason, Usage
from server.cache.wish import Result
from server.choice import Choice
from server.errors import APIError
from server.job import Job
from server.store.records import UsageRecord


def usage_of(choices: Sequence[Choice]) -> Usage:
    """Of all of them so far."""
    return Usage(
        prompt_tokens=sum(max(c.num_prompt for c in each) for each in by_prompt(choices)),
        cached_tokens=_num_cached(choices),
        completion_tokens=sum(choice.num_output for choice in choices),
        reasoning_tokens=sum(choice.stream.num_reasoning_tokens for choice in choices),
    )


def by_prompt(choices: Sequence[Choice]) -> list[list[Choice]]:
    """Several answers to one prompt share what it costs."""
    return [list(each) for _, each in groupby(choices, key=lambda choice: choice.prompt_number)]


def _num_cached(choices: Sequence[Choice]) -> int:
    """What the first of a prompt's answers found; that the others found what it had computed is our business."""
    return sum(min((c.num_cached for c in each if c.has_output), default=0) for each in by_prompt(choices))


def _num_computed(choices: Sequence[Choice]) -> int:
    """Of the prompts."""
    return sum(max(choice.num_computed for choice in each) for each in by_prompt(choices))


def computed_by(choices: Sequence[Choice]) -> Usage:
    """What engines did for them, which is what is charged: of a prompt that was aborted, the part that was reached."""
    return Usage(_num_computed(choices), _num_cached(choices), sum(choice.num_output for choice in choices))


def outcome_of(endings: Sequence[FinishReason | None], error: BaseException | None) -> str:
    """A word of a bounded set: a finish reason or an error's code."""
    if isinstance(error, APIError):
        return error.code or error.type
    if error is not None:
        client_left = isinstance(error, (asyncio.CancelledError, WebSocketDisconnect))
        return FinishReason.ABORT if client_left else "server_error"
    return next((reason for reason in endings if reason is not None), FinishReason.ABORT)


def usage_record(
    job: Job,
    usage: Usage,
    outcome: str,
    admitted_at: datetime,
    first_token_at: float | None,
    *,
    queue_seconds: float | None = None,
    cache: Result | None = None,
) -> UsageRecord:
    """`admitted_at` by the wall clock, `first_token_at` by the monotonic one."""
    caller = job.caller
    first_token = None if first_token_at is None else first_token_at - caller.arrival
    return UsageRecord(
        request_id=caller.request_id,
        account_id=caller.principal.account_id,
        key_id=caller.principal.key_id,
        model=job.deployment.model,
        version=job.deployment.version,
        endpoint=caller.endpoint,
        features=job.features,
        prompt_tokens=usage.prompt_tokens,
        cached_tokens=usage.cached_tokens,
        completion_tokens=usage.completion_tokens,
        started_at=admitted_at,
        queue_ms=_milliseconds(queue_seconds),
        first_token_ms=_milliseconds(first_token),
        total_ms=round(1000 * (time.monotonic() - caller.arrival)),
        outcome=outcome,
        cache=cache,
    )


def _milliseconds(seconds: float | None) -> int | None:
    return None if seconds is None else round(1000 * seconds)
