"""One connection without a network: what it sends when we, or what is around us, fail."""

from __future__ import annotations

import asyncio
import json
import logging
from types import SimpleNamespace
from typing import Any, cast

import pytest
from starlette.websockets import WebSocket, WebSocketDisconnect

from server.chat_socket import ChatSocket
from server.errors import AuthenticationFailed, NotFound
from server.metrics import Metrics
from server.services import Services
from server.settings_sections import CacheSettings
from server.websocket import accepted_subprotocol, check_origin, refuse

REQUEST = '{"model":"m","messages":[{"role":"user","content":"x"}],"request_id":"a"}'


class Wire:
    """An ASGI connection. `frames` are what the client sends; an exception is raised in its place."""

    def __init__(self, *frames: str | Exception, headers: dict[str, str] | None = None) -> None:
        self.sent: list[dict[str, Any]] = []
        self.fails: BaseException | None = None  # of every send after the handshake
        self.stalls = False
        self._frames = list(frames)
        raw = [(name.encode(), value.encode()) for name, value in ({"host": "h"} | (headers or {})).items()]
        state = {"penstock_request_id": "req-test"}
        path = "/v1/chat/completions"
        app = SimpleNamespace(state=SimpleNamespace(penstock=SimpleNamespace(metrics=Metrics())))
        scope = {"type": "websocket", "headers": raw, "path": path, "subprotocols": [], "state": state, "app": app}
        self.websocket = WebSocket(scope, self._receive, self._send)
        self._connected = False
        self.leaves = asyncio.Event()
        self.news = asyncio.Event()

    async def _receive(self) -> Any:
        if not self._connected:
            self._connected = True
            return {"type": "websocket.connect"}
        if not self._frames:
            await self.leaves.wait()
            return {"type": "websocket.disconnect", "code": 1001}
        frame = self._frames.pop(0)
        if isinstance(frame, Exception):
            raise frame
        return {"type": "websocket.receive", "text": frame}

    async def _send(self, message: Any) -> None:
        if message["type"] == "websocket.send":
            if self.stalls:
                await asyncio.Event().wait()
            if self.fails is not None:
                raise self.fails
        self.sent.append(message)
        self.news.set()

    @property
    def frames(self) -> list[Any]:
        return [json.loads(message["text"]) for message in self.sent if message["type"] == "websocket.send"]

    @property
    def codes(self) -> list[int]:
        return [message["code"] for message in self.sent if message["type"] == "websocket.close"]


def services(chat: Exception | None = None, write: float = 60) -> Services:
    async def authenticate(key: object) -> Any:
        return SimpleNamespace()

    async def run(caller: object, frame: object) -> Any:
        if chat is not None:
            raise chat
        await asyncio.Event().wait()

    settings = SimpleNamespace(
        server=SimpleNamespace(cors_origins=()), timeouts=SimpleNamespace(write=write), cache=CacheSettings()
    )
    authenticator, pipeline = SimpleNamespace(authenticate=authenticate), SimpleNamespace(chat=run)
    return cast(Services, SimpleNamespace(settings=settings, authenticator=authenticator, pipeline=pipeline))


async def serve(wire: Wire, using: Services) -> None:
    await asyncio.wait_for(ChatSocket(wire.websocket, using).serve(), 30)


async def _until(wire: Wire, frames: int) -> None:
    while len(wire.frames) < frames:
        wire.news.clear()
        await wire.news.wait()


async def test_a_fault_of_ours_is_an_error_of_its_request(caplog: pytest.LogCaptureFixture) -> None:
    wire = Wire(REQUEST, "{")
    serving = asyncio.create_task(serve(wire, services(KeyError("secret"))))
    await _until(wire, 2)
    wire.leaves.set()
    await serving
    failed = next(frame for frame in wire.frames if "request_id" in frame)
    assert (failed["request_id"], failed["error"]["type"]) == ("a", "server_error")
    assert "secret" not in str(wire.sent)
    assert [record.message for record in caplog.records if record.exc_info] == ["a WebSocket request failed"]
    assert wire.codes == []


async def test_a_fault_of_the_connection_closes_it_with_1011(caplog: pytest.LogCaptureFixture) -> None:
    wire = Wire(REQUEST, KeyError("secret"))
    await serve(wire, services())
    assert wire.codes == [1011]
    assert "secret" not in str(wire.sent)
    assert "a WebSocket failed" in caplog.text


@pytest.mark.parametrize("failure", [OSError(), RuntimeError("Cannot call send"), WebSocketDisconnect(1006)])
async def test_a_client_that_is_gone_is_no_fault(failure: Exception, caplog: pytest.LogCaptureFixture) -> None:
    """However that is said: the other requests of the connection are ended too."""
    wire = Wire(REQUEST, "not JSON")
    wire.fails = failure
    await serve(wire, services())
    assert wire.codes == []
    assert [record for record in caplog.records if record.levelno >= logging.WARNING] == []


async def test_a_reader_that_takes_nothing_is_left_quietly(caplog: pytest.LogCaptureFixture) -> None:
    wire = Wire(REQUEST, "not JSON")
    wire.stalls = True
    await serve(wire, services(write=0.01))
    assert [record for record in caplog.records if record.levelno >= logging.WARNING] == []


async def test_the_connections_end_from_elsewhere_is_passed_on() -> None:
    wire = Wire(REQUEST)
    serving = asyncio.create_task(serve(wire, services()))
    await asyncio.sleep(0.01)
    serving.cancel()
    with pytest.raises(asyncio.CancelledError):
        await serving
    assert wire.frames == []


async def test_a_cancel_right_behind_its_request_is_not_lost() -> None:
    cancel = '{"type":"cancel","request_id":"a"}'
    wire = Wire(REQUEST, cancel, REQUEST, cancel)
    serving = asyncio.create_task(serve(wire, services()))
    await _until(wire, 2)
    wire.leaves.set()
    await serving
    assert [frame["error"]["code"] for frame in wire.frames] == ["cancelled", "cancelled"]


async def test_a_key_that_is_no_longer_good_closes_the_connection() -> None:
    async def refuse_all(key: object) -> Any:
        raise AuthenticationFailed("No.")

    using = services()
    using.authenticator.authenticate = refuse_all  # type: ignore[method-assign]
    wire = Wire(REQUEST, REQUEST.replace('"a"', '"b"'))
    await serve(wire, using)
    assert wire.frames[0]["error"]["code"] == "invalid_api_key"
    assert wire.codes == [1008]


async def test_a_refusal_is_a_frame_and_a_close() -> None:
    wire = Wire()
    await refuse(wire.websocket, NotFound("No.", code="unknown_url"))
    assert [message["type"] for message in wire.sent] == ["websocket.accept", "websocket.send", "websocket.close"]
    assert (wire.codes, wire.sent[-1]["reason"]) == ([1008], "unknown_url")


async def test_a_refusal_of_one_who_has_left_is_no_fault() -> None:
    for failure in (OSError(), RuntimeError()):
        wire = Wire()
        wire.fails = failure
        await refuse(wire.websocket, NotFound("No."))


@pytest.mark.parametrize(
    ("origin", "allowed", "passes"),
    [
        (None, (), True),
        ("http://h", (), True),
        ("https://h", (), True),
        ("http://h:81", (), False),
        ("https://app", ("https://app",), True),
        ("https://app", (), False),
        ("https://app.evil", ("https://app",), False),
        ("https://any", ("*",), True),
        ("null", ("https://app",), False),
        ("http://[", (), False),
        ("", (), False),
    ],
)
async def test_origins(origin: str | None, allowed: tuple[str, ...], passes: bool) -> None:
    websocket = Wire(headers={} if origin is None else {"origin": origin}).websocket
    if passes:
        check_origin(websocket, allowed)
    else:
        with pytest.raises(AuthenticationFailed) as caught:
            check_origin(websocket, allowed)
        assert caught.value.code == "origin_not_allowed"


@pytest.mark.parametrize(
    ("offered", "chosen"),
    [([], None), (["penstock"], "penstock"), (["openai-insecure-api-key.sk"], None), (["x", "penstock"], "penstock")],
)
async def test_only_our_subprotocol_is_ever_chosen(offered: list[str], chosen: str | None) -> None:
    websocket = Wire().websocket
    websocket.scope["subprotocols"] = offered
    assert accepted_subprotocol(websocket) == chosen
