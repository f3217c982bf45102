"""Every answer carries an id that is ours."""

from __future__ import annotations

from typing import Any

import pytest
from starlette.requests import HTTPConnection

from server.request_id import RequestIdMiddleware, request_id_of


async def _call(kind: str, *messages: dict[str, Any]) -> tuple[str | None, list[dict[str, Any]]]:
    """The id that the application sees, and the messages that are sent."""
    seen: list[str] = []
    sent: list[dict[str, Any]] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        if kind != "lifespan":
            seen.append(request_id_of(HTTPConnection(scope)))
        for message in messages:
            await send(message)

    async def send(message: Any) -> None:
        sent.append(message)

    scope = {"type": kind, "headers": [(b"x-request-id", b"theirs")]}
    await RequestIdMiddleware(app)(scope, None, send)  # type: ignore[arg-type]
    return (seen or [None])[0], sent


@pytest.mark.parametrize(
    ("kind", "opening"),
    [
        ("http", "http.response.start"),
        ("websocket", "websocket.accept"),
        ("websocket", "websocket.http.response.start"),
    ],
)
async def test_the_opening_message_carries_it(kind: str, opening: str) -> None:
    headers = [(b"a", b"b"), (b"x-request-id", b"of a route")]
    request_id, sent = await _call(kind, {"type": opening, "headers": headers}, {"type": "other"})
    assert request_id is not None
    assert request_id.startswith("req-")
    assert [value for name, value in sent[0]["headers"] if name == b"x-request-id"] == [request_id.encode()]
    assert sent[1] == {"type": "other"}


async def test_each_request_has_its_own() -> None:
    assert len({(await _call("http"))[0] for _ in range(100)}) == 100


async def test_what_is_no_request_passes() -> None:
    assert await _call("lifespan", {"type": "lifespan.startup.complete"}) == (
        None,
        [{"type": "lifespan.startup.complete"}],
    )
