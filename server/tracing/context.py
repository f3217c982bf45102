"""Where a request's place in its trace is kept, for those who don't know the library."""

from __future__ import annotations

from typing import TYPE_CHECKING

from starlette.requests import HTTPConnection
from starlette.types import Scope

if TYPE_CHECKING:
    from server.tracing.tracer import Context

_STATE_KEY = "penstock_trace"


def set_trace(scope: Scope, context: Context) -> None:
    scope.setdefault("state", {})[_STATE_KEY] = context


def trace_of(connection: HTTPConnection) -> Context | None:
    """What the request's spans stand under; None where nothing is traced."""
    context: Context | None = connection.scope.get("state", {}).get(_STATE_KEY)
    return context
