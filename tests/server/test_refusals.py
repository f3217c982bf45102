"""What is left of a refusal: a line and a count."""

from __future__ import annotations

import logging
from types import SimpleNamespace

import pytest
from starlette.requests import Request

from server.errors import NotFound
from server.metrics import Metrics
from server.refusals import log_refusal


def request(metrics: Metrics | None = None, **state: object) -> Request:
    services = SimpleNamespace(metrics=metrics or Metrics())
    app = SimpleNamespace(state=SimpleNamespace(penstock=services))
    scope = {"type": "http", "method": "GET", "path": "/v1/secret", "headers": [], "app": app}
    return Request({**scope, "state": {"penstock_request_id": "req-1", **state}})


def test_a_refusal_is_logged_and_counted_once(caplog: pytest.LogCaptureFixture) -> None:
    error, metrics = NotFound("There is no such thing.", param="model"), Metrics()
    with caplog.at_level(logging.INFO):
        log_refusal(request(metrics), error)
        log_refusal(request(metrics), error)
    assert metrics.refused.labels("404", "not_found")._value.get() == 1
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
