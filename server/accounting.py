"""What is written down of a request when it has ended."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from datetime import datetime

from starlette.websockets import WebSocketDisconnect

from engines.types import FinishReason, Usage
from server.choice import Choice
from server.errors import APIError
from server.job import Job
from server.store.records import UsageRecord


def usage_of(choices: Sequence[Choice]) -> Usage:
    """Of all of them so far."""
    return Usage(
        prompt_tokens=sum(choice.num_prompt for choice in choices),
        cached_tokens=sum(choice.num_cached for choice in choices),
        completion_tokens=sum(choice.num_output for choice in choices),
        reasoning_tokens=sum(choice.stream.num_reasoning_tokens for choice in choices),
    )


def outcome_of(choices: Sequence[Choice], error: BaseException | None) -> str:
    """A word of a bounded set: a finish reason or an error's code."""
    if isinstance(error, APIError):
        return error.code or error.type
    if error is not None:
        client_left = isinstance(error, (asyncio.CancelledError, WebSocketDisconnect))
        return FinishReason.ABORT if client_left else "server_error"
    reasons = [choice.finish_reason for choice in choices if choice.finish_reason is not None]
    return reasons[0] if reasons else FinishReason.ABORT


def usage_record(
    job: Job, choices: Sequence[Choice], outcome: str, admitted_at: datetime, first_token_at: float | None
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
        prompt_tokens=sum(choice.num_computed for choice in choices),
        cached_tokens=sum(choice.num_cached for choice in choices),
        completion_tokens=sum(choice.num_output for choice in choices),
        started_at=admitted_at,
        queue_ms=_milliseconds(choices[0].queue_seconds if choices else None),
        first_token_ms=_milliseconds(first_token),
        total_ms=round(1000 * (time.monotonic() - caller.arrival)),
        outcome=outcome,
    )


def _milliseconds(seconds: float | None) -> int | None:
    return None if seconds is None else round(1000 * seconds)
