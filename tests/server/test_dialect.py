"""Anthropic's envelope and headers, on its own paths and for its own clients."""

from __future__ import annotations

from typing import Any

import httpx
import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from server import errors
from server.dialect import reads_messages, seconds_of
from server.entitlement import duration
from server.wire.message_errors import envelope, status_of
from tests.server.test_app import app, client

VERSION = (b"anthropic-version", b"2023-06-01")


@pytest.mark.parametrize(
    ("path", "headers", "is_theirs"),
    [
        ("/v1/messages", (), True),
        ("/v1/messages/batches", (), True),
        ("/v1/messages_", (), False),
        ("/v1/models", (), False),
        ("/v1/models", (VERSION,), True),
        ("/v1/models/a/b", (VERSION,), True),
        ("/v1/chat/completions", (VERSION,), False),
    ],
)
def test_who_reads_messages(path: str, headers: Any, is_theirs: bool) -> None:
    assert reads_messages({"type": "http", "path": path, "headers": headers}) is is_theirs
    assert not reads_messages({"type": "websocket", "path": path, "headers": headers})


@pytest.mark.parametrize(
    ("error", "status", "kind"),
    [
        (errors.InvalidRequest("x"), 400, "invalid_request_error"),
        (errors.AuthenticationFailed("x"), 401, "authentication_error"),
        (errors.PermissionDenied("x"), 403, "permission_error"),
        (errors.ModelNotFound("x"), 404, "not_found_error"),
        (errors.MethodNotAllowed("x"), 405, "invalid_request_error"),
        (errors.RequestTimeout("x"), 408, "invalid_request_error"),
        (errors.PayloadTooLarge("x"), 413, "request_too_large"),
        (errors.RateLimited("x"), 429, "rate_limit_error"),
        (errors.ServerError("x"), 500, "api_error"),
        (errors.Overloaded("x"), 529, "overloaded_error"),
        (errors.DeadlineExceeded("x"), 504, "timeout_error"),
    ],
)
def test_errors(error: errors.APIError, status: int, kind: str) -> None:
    assert status_of(error) == status
    assert msgspec.to_builtins(envelope(error, "req-1")) == {
        "type": "error", "error": {"type": kind, "message": "x"}, "request_id": "req-1",
    }  # fmt: skip


def test_a_parameter_has_the_name_that_its_client_gave_it() -> None:
    error = errors.UnsupportedParameter("response_format")
    assert "'output_config.format'" in envelope(error, "req-1").error.message


def test_an_sdk_is_told_that_there_are_no_threads() -> None:
    """In the words that it goes on without one at."""
    error = envelope(errors.UnsupportedParameter("thread"), "req-1").error
    assert error.details == {"error_code": "thread_unsupported_request"}


@pytest.mark.parametrize("path", ["/v1/messages", "/v1/messages/count_tokens"])
async def test_every_failure_leaves_in_its_envelope_with_its_id(path: str) -> None:
    limits = {"x-ratelimit-limit-requests": "5", "x-ratelimit-remaining-requests": "4"}
    limits |= {"x-ratelimit-reset-requests": "1h0m0s"}
    async with client(app(errors.Overloaded("Later.", retry_after_ms=1500, headers=limits))) as http:
        answer = await http.post(path)
    assert answer.status_code == 529
    assert answer.headers["request-id"] == answer.headers["x-request-id"] == answer.json()["request_id"]
    assert answer.headers["retry-after-ms"] == "1500"
    assert answer.headers["anthropic-ratelimit-requests-limit"] == "5"
    assert answer.headers["anthropic-ratelimit-requests-remaining"] == "4"
    assert answer.headers["anthropic-ratelimit-requests-reset"].endswith("Z")


async def test_what_is_not_there_is_theirs_too() -> None:
    async with client(app(errors.AuthenticationFailed("No."))) as http:
        answers: list[httpx.Response] = [await http.get("/v1/messages/nothing"), await http.get("/v1/messages")]
        others = await http.get("/v1/models")
    assert [answer.json()["error"]["type"] for answer in answers] == ["not_found_error", "invalid_request_error"]
    assert "request-id" not in others.headers
    assert "type" not in others.json()


async def test_a_fault_of_ours_tells_nothing_of_itself() -> None:
    async with client(app(KeyError("secret"))) as http:
        answer = await http.post("/v1/messages")
    assert (answer.status_code, answer.json()["error"]["type"]) == (500, "api_error")
    assert "secret" not in answer.text


@given(st.integers(0, 10**9))
def test_a_duration_is_read_as_it_was_written(milliseconds: int) -> None:
    written = duration(milliseconds)
    assert duration(round(seconds_of(written) * 1000)) == written
