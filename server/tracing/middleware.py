"""The span around everything that one HTTP request does."""

from __future__ import annotations

from opentelemetry.trace import Span, StatusCode
from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from server.access import OPEN_PATHS
from server.refusals import refused_code
from server.tracing.context import set_trace
from server.tracing.tracer import Tracer

UNTRACED = OPEN_PATHS | {"/metrics"}  # asked all the time, by machines
METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})


class TraceMiddleware:
    """A WebSocket's requests have spans of their own, under what its handshake says of the client's trace."""

    def __init__(self, app: ASGIApp, tracer: Tracer) -> None:
        self.app = app
        self._tracer = tracer

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        is_traced = scope["type"] in ("http", "websocket") and scope["path"] not in UNTRACED
        if not is_traced:
            await self.app(scope, receive, send)
            return
        parent = self._tracer.context_of(Headers(scope=scope))
        if scope["type"] == "websocket":
            set_trace(scope, parent)
            await self.app(scope, receive, send)
            return
        span, context = self._tracer.begin_http(_method(scope), parent)
        set_trace(scope, context)
        await self._answer(scope, receive, send, span)

    async def _answer(self, scope: Scope, receive: Receive, send: Send, span: Span) -> None:
        status: int | None = None

        async def send_and_note(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            await self.app(scope, receive, send_and_note)
        finally:
            if span.is_recording():
                _describe(span, scope, status)
            span.end()


def _method(scope: Scope) -> str:
    """Clients may invent others."""
    return scope["method"] if scope["method"] in METHODS else "_OTHER"


def _describe(span: Span, scope: Scope, status: int | None) -> None:
    """Its route, not its path: clients write what they like there. `status`: None for a client that left before."""
    method = _method(scope)
    span.set_attribute("http.request.method", method)
    if (route := getattr(scope.get("route"), "path", None)) is not None:
        span.update_name(f"{method} {route}")
        span.set_attribute("http.route", route)
    if status is None:
        span.set_attribute("error.type", "client_left")
        return
    span.set_attribute("http.response.status_code", status)
    if (code := refused_code(scope)) is not None or status >= 500:
        span.set_attribute("error.type", code or str(status))
    if status >= 500:
        span.set_status(StatusCode.ERROR)
