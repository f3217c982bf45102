"""Our id of every request: on its answer, in its log line, never the client's own."""

from __future__ import annotations

from starlette.datastructures import MutableHeaders
from starlette.requests import HTTPConnection
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from server.wire.common import new_id

_STATE_KEY = "penstock_request_id"
_OPENING = ("http.response.start", "websocket.accept", "websocket.http.response.start")


def request_id_of(connection: HTTPConnection) -> str:
    request_id: str = connection.scope["state"][_STATE_KEY]
    return request_id


class RequestIdMiddleware:
    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] not in ("http", "websocket"):
            await self.app(scope, receive, send)
            return
        request_id = new_id("req")
        scope.setdefault("state", {})[_STATE_KEY] = request_id

        async def send_with_id(message: Message) -> None:
            if message["type"] in _OPENING:
                MutableHeaders(scope=message)["x-request-id"] = request_id
            await send(message)

        await self.app(scope, receive, send_with_id)
