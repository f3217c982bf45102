"""The stack around the routes: every failure leaves it in the envelope, with an id, readable by allowed pages."""

from __future__ import annotations

from collections.abc import AsyncIterator
from types import SimpleNamespace
from typing import Any, cast

import httpx
import pytest
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp

from server.app import EXPOSED_HEADERS, create_app
from server.cache.wish import Result, cache_header
from server.dialect import MESSAGE_HEADERS
from server.entitlement import limit_headers
from server.errors import APIError, Conflict, Overloaded, retry_headers
from server.metrics import Metrics
from server.services import Services

ORIGIN = "https://app.example"


def app(failure: BaseException | None = None, origins: tuple[str, ...] = ()) -> ASGIApp:
    """Its routes fail as told, where a key would be checked."""

    async def authenticate(key: object) -> Any:
        assert failure is not None
        raise failure

    return create_app(
        cast(
            Services,
            SimpleNamespace(
                settings=SimpleNamespace(server=SimpleNamespace(cors_origins=origins)),
                authenticator=SimpleNamespace(authenticate=authenticate),
                status="starting",
                metrics=Metrics(),
                tracer=None,
            ),
        )
    )


def client(stack: ASGIApp) -> httpx.AsyncClient:
    transport = httpx.ASGITransport(cast(Any, stack), raise_app_exceptions=False)
    return httpx.AsyncClient(transport=transport, base_url="http://test")


def check(answer: httpx.Response, status: int, kind: str, code: str) -> None:
    assert answer.status_code == status
    assert answer.headers["x-request-id"].startswith("req-")
    error = answer.json()["error"]
    assert (error["type"], error["code"], error["param"]) == (kind, code, None)


async def test_a_fault_of_ours_tells_nothing_of_itself() -> None:
    async with client(app(KeyError("secret"), (ORIGIN,))) as http:
        answer = await http.get("/v1/models", headers={"origin": ORIGIN})
    check(answer, 500, "server_error", "server_error")
    assert "secret" not in answer.text
    assert answer.headers["access-control-allow-origin"] == ORIGIN
    assert answer.headers["connection"] == "close"


@pytest.mark.parametrize("error", [Conflict("No."), Overloaded("Later.", retry_after_ms=1500)])
async def test_our_errors_keep_their_status_and_headers(error: APIError) -> None:
    async with client(app(error)) as http:
        answer = await http.get("/v1/models")
    check(answer, error.status, error.type, str(error.code))
    assert dict(answer.headers).items() >= error.headers.items()


async def test_a_client_that_leaves_is_no_fault(caplog: pytest.LogCaptureFixture) -> None:
    async with client(app(ClientDisconnect())) as http:
        assert (await http.post("/v1/completions")).status_code == 499
    assert caplog.records == []


async def test_starlettes_own_errors_are_in_the_envelope() -> None:
    async with client(app()) as http:
        check(await http.get("/nowhere"), 404, "invalid_request_error", "unknown_url")
        answer = await http.patch("/v1/models")
        check(answer, 405, "invalid_request_error", "method_not_allowed")
        assert answer.headers.get_list("allow") == ["GET"]


async def test_nothing_is_documented_to_strangers() -> None:
    async with client(app()) as http:
        for path in ("/docs", "/redoc"):
            assert (await http.get(path)).status_code == 404


async def test_health_asks_nobody() -> None:
    async with client(app()) as http:
        assert (await http.get("/healthz")).json() == {"status": "ok"}
        answer = await http.get("/readyz")
    assert (answer.status_code, answer.json()) == (503, {"status": "starting"})


async def test_without_origins_there_is_no_cors() -> None:
    async with client(app()) as http:
        answer = await http.get("/healthz", headers={"origin": ORIGIN})
    assert not [name for name in answer.headers if name.startswith("access-control")]


def test_pages_may_read_every_header_of_ours() -> None:
    remaining: Any = SimpleNamespace(
        **{f"{kind}_{unit}": 1 for kind in ("limit", "remaining") for unit in ("requests", "tokens")},
        reset_requests_ms=1,
        reset_tokens_ms=1,
    )
    ours = limit_headers(remaining) | retry_headers(1) | cache_header(Result.MISS)
    assert set(EXPOSED_HEADERS) == ours.keys() | {"x-request-id", "x-should-retry"} | set(MESSAGE_HEADERS)


async def _websocket(stack: ASGIApp, path: str) -> AsyncIterator[dict[str, Any]]:
    sent: list[Any] = []

    async def receive() -> Any:
        return {"type": "websocket.connect"}

    async def send(message: Any) -> None:
        sent.append(message)

    scope = {"type": "websocket", "path": path, "headers": [], "query_string": b"", "subprotocols": []}
    await stack(cast(Any, scope), receive, send)
    for message in sent:
        yield message


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/nowhere", "/healthz"])
async def test_a_websockets_error_is_a_frame(path: str) -> None:
    """/healthz is open, but there is no WebSocket behind it."""
    messages = [message async for message in _websocket(app(Conflict("No.")), path)]
    assert [message["type"] for message in messages] == ["websocket.accept", "websocket.send", "websocket.close"]
    code = "unknown_url" if path == "/healthz" else "conflict"
    assert f'"code":"{code}"' in messages[1]["text"]
    assert messages[2]["code"] == 1008
