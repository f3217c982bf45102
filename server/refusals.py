"""The log line of a request that was refused: who asked for what, and why not."""

from __future__ import annotations

from starlette.requests import HTTPConnection

from server import logs
from server.access import authenticated
from server.errors import APIError
from server.request_id import request_id_of


def log_refusal(connection: HTTPConnection, error: APIError) -> None:
    """Once: an admitted request's error is in that request's own line."""
    if error.is_logged:
        return
    error.is_logged = True
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
