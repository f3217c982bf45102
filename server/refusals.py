"""What is written down of a request that was refused: who asked for what, and why not."""

from __future__ import annotations

from typing import Protocol, cast

from starlette.requests import HTTPConnection
from starlette.types import Scope

from server import logs
from server.access import authenticated
from server.errors import APIError
from server.metrics import Metrics
from server.request_id import request_id_of

_STATE_KEY = "penstock_refused"


class HasMetrics(Protocol):
    @property
    def metrics(self) -> Metrics: ...


def metrics_of(connection: HTTPConnection) -> Metrics:
    return cast(HasMetrics, connection.app.state.penstock).metrics


def refused_code(scope: Scope) -> str | None:
    """Of the error that it was refused with, if it was."""
    code: str | None = scope.get("state", {}).get(_STATE_KEY)
    return code


def log_refusal(connection: HTTPConnection, error: APIError) -> None:
    """Once: an admitted request's error is in that request's own line."""
    if error.is_logged:
        return
    error.is_logged = True
    code = error.code or error.type
    metrics_of(connection).observe_refused(error.status, code)
    connection.scope["state"][_STATE_KEY] = code
    principal = authenticated(connection)
    logs.request_refused(
        {
            "request_id": request_id_of(connection),
            "account": principal.account_name if principal else None,
            "key": principal.key_id if principal else None,
            "method": connection.scope.get("method", "WEBSOCKET"),
            # Its route, not what the client wrote: neither paths nor names of parameters are free of secrets.
            "route": getattr(connection.scope.get("route"), "path", None),
            "status": error.status,
            "code": error.code,
        }
    )
