"""Which clients read Anthropic's answers, and the headers that they look for."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from datetime import datetime, timedelta

from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import HTTPConnection
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from server.errors import UnsupportedParameter
from server.request_id import request_id_of
from server.store.records import utc_now

# The SDK's parameters that travel as headers. There are neither workspaces nor profiles here.
UNSUPPORTED_HEADERS = ("anthropic-workspace-id", "anthropic-user-profile-id")
_UNITS = ("requests", "tokens")
_SECONDS = {"ms": 0.001, "s": 1, "m": 60, "h": 3600}
REQUEST_ID = "request-id"
MESSAGE_HEADERS = [REQUEST_ID] + [
    f"anthropic-ratelimit-{unit}-{kind}" for unit in _UNITS for kind in ("limit", "remaining", "reset")
]


def reads_messages(scope: Scope) -> bool:
    """By the path; by the header that every client of Anthropic's sends, where both families have the path."""
    if scope["type"] != "http":
        return False
    path: str = scope["path"]
    if _is_in(path, "/v1/messages"):
        return True
    return _is_in(path, "/v1/models") and "anthropic-version" in Headers(scope=scope)


def refuse_headers(connection: HTTPConnection) -> None:
    """Raises UnsupportedParameter."""
    for name in UNSUPPORTED_HEADERS:
        if name in connection.headers:
            raise UnsupportedParameter(name, f"Unsupported header: '{name}'.")


def _is_in(path: str, folder: str) -> bool:
    return path == folder or path.startswith(folder + "/")


class MessageHeaders:
    """Beside our own: the request's id and the limits by Anthropic's names, on every answer to its clients."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if not reads_messages(scope):
            await self.app(scope, receive, send)
            return

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                headers[REQUEST_ID] = request_id_of(HTTPConnection(scope))
                headers.update(dict(_limits(headers, utc_now())))
            await send(message)

        await self.app(scope, receive, send_with_headers)


def _limits(headers: Mapping[str, str], now: datetime) -> Iterator[tuple[str, str]]:
    for unit in _UNITS:
        for kind in ("limit", "remaining"):
            if (value := headers.get(f"x-ratelimit-{kind}-{unit}")) is not None:
                yield f"anthropic-ratelimit-{unit}-{kind}", value
        if (wait := headers.get(f"x-ratelimit-reset-{unit}")) is not None:
            reset = now + timedelta(seconds=seconds_of(wait))
            yield f"anthropic-ratelimit-{unit}-reset", reset.isoformat(timespec="milliseconds").replace("+00:00", "Z")


def seconds_of(duration: str) -> float:
    """What `entitlement.duration` writes."""
    return sum(float(number) * _SECONDS[unit] for number, unit in re.findall(r"([\d.]+)(ms|[smh])", duration))
