"""A request of our own through the routes, as if its client had sent it: same checks, same quotas, same answer."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field

from starlette.requests import HTTPConnection
from starlette.types import ASGIApp, Message, Scope

from server import logs
from server.auth import Principal

_SCOPE_KEY = "penstock.inner"  # what HTTP brings can't set a key of the scope


@dataclass(slots=True, frozen=True)
class Inner:
    """For whom it is made, and under which terms."""

    principal: Principal
    features: frozenset[str]
    priority: int
    total_timeout: float


@dataclass(slots=True)
class InnerAnswer:
    status: int = 500
    headers: dict[str, str] = field(default_factory=dict)
    body: bytes = b""

    @property
    def is_error(self) -> bool:
        return self.status >= 400


def inner_of(connection: HTTPConnection) -> Inner | None:
    inner: Inner | None = connection.scope.get(_SCOPE_KEY)
    return inner


async def ask(app: ASGIApp, path: str, body: bytes, inner: Inner) -> InnerAnswer:
    """Cancelled, it ends as a request whose client left."""
    answer = InnerAnswer()
    sent = False

    async def receive() -> Message:
        nonlocal sent
        if sent:
            await asyncio.Event().wait()  # this client never leaves
        sent = True
        return {"type": "http.request", "body": body, "more_body": False}

    async def send(message: Message) -> None:
        if message["type"] == "http.response.start":
            answer.status = message["status"]
            answer.headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in message["headers"]}
        else:
            answer.body += message.get("body", b"")

    try:
        await app(_scope(path, inner), receive, send)
    except Exception:  # the routes have answered with a 500 before they raise it for the server's log
        logs.unexpected("a line of a batch failed")
    return answer


def _scope(path: str, inner: Inner) -> Scope:
    return {
        "type": "http",
        "asgi": {"version": "3.0"},
        "http_version": "1.1",
        "method": "POST",
        "scheme": "http",
        "path": path,
        "raw_path": path.encode(),
        "query_string": b"",
        "root_path": "",
        "headers": [(b"content-type", b"application/json")],
        "client": None,
        "server": None,
        "state": {},
        _SCOPE_KEY: inner,
    }
