"""The log line of a refusal."""

from __future__ import annotations

import logging

import pytest
from starlette.requests import Request

from server.errors import NotFound
from server.refusals import log_refusal


def request(**state: object) -> Request:
    scope = {"type": "http", "method": "GET", "path": "/v1/secret", "headers": []}
    return Request({**scope, "state": {"penstock_request_id": "req-1", **state}})


def test_a_refusal_is_logged_once(caplog: pytest.LogCaptureFixture) -> None:
    error = NotFound("There is no such thing.", param="model")
    with caplog.at_level(logging.INFO):
        log_refusal(request(), error)
        log_refusal(request(), error)
    (record,) = caplog.records
    fields = record.__dict__["fields"]
    assert (fields["request_id"], fields["status"], fields["code"]) == ("req-1", 404, "not_found")
    assert (fields["key"], fields["account"]) == (None, None)
    assert "secret" not in str(fields)


def test_an_admitted_requests_error_is_not_a_refusal(caplog: pytest.LogCaptureFixture) -> None:
    error = NotFound("There is no such thing.")
    error.is_logged = True
    with caplog.at_level(logging.INFO):
        log_refusal(request(), error)
    assert not caplog.records
