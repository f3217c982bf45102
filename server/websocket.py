"""What WebSockets share: who may connect, several requests on one connection, and how it ends."""

from __future__ import annotations

import asyncio
import contextlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Coroutine, Iterable
from typing import Any, ClassVar
from urllib.parse import urlsplit

from starlette.types import Message
from starlette.websockets import WebSocket, WebSocketDisconnect

from server import logs
from server.access import presented_key
from server.cache.wish import HEADER, wish_of
from server.errors import APIError, AuthenticationFailed, RateLimited, ServerError, SlowReader
from server.job import Caller
from server.refusals import log_refusal
from server.services import Services
from server.streaming import in_time
from server.time_limit import TimeLimit
from server.tracing.context import trace_of
from server.wire.common import encode, new_id
from server.wire.response_events import error_frame

SUBPROTOCOL = "penstock"
RESPONSES_PATH = "/v1/responses"  # whose errors are events
MAX_OPEN_REQUESTS = 64
ABNORMAL_CLOSURE, POLICY_VIOLATION, INTERNAL_ERROR = 1006, 1008, 1011


def accepted_subprotocol(websocket: WebSocket) -> str | None:
    """Ours, when the client offers it. The one that carries its key is never echoed."""
    return SUBPROTOCOL if SUBPROTOCOL in websocket.scope.get("subprotocols", ()) else None


async def refuse(websocket: WebSocket, error: APIError) -> None:
    """Browsers can't read a failed handshake: the reason is sent as a frame, then the connection is closed."""
    log_refusal(websocket, error)
    with contextlib.suppress(WebSocketDisconnect, RuntimeError):  # it may have left meanwhile
        await websocket.accept(subprotocol=accepted_subprotocol(websocket))
        frame = error_frame(error) if websocket.scope["path"] == RESPONSES_PATH else encode(error.envelope())
        await websocket.send_text(frame.decode())
        await websocket.close(INTERNAL_ERROR if error.status >= 500 else POLICY_VIOLATION, error.code)


def check_origin(websocket: WebSocket, allowed: tuple[str, ...]) -> None:
    """Browsers send a page's origin but don't hold WebSockets to CORS: we do. Raises AuthenticationFailed."""
    origin = websocket.headers.get("origin")
    if origin is None or "*" in allowed or origin in allowed:
        return
    if _host(origin) != websocket.headers.get("host"):
        raise AuthenticationFailed("Pages of this origin may not connect.", code="origin_not_allowed")


def _host(origin: str) -> str | None:
    try:
        return urlsplit(origin).netloc
    except ValueError:
        return None


Work = Callable[[], Coroutine[Any, Any, None]]


class Socket(ABC):
    """One connection. Its requests' tasks end before `serve` returns."""

    path: ClassVar[str]
    _tasks: asyncio.TaskGroup

    def __init__(self, websocket: WebSocket, services: Services) -> None:
        self._websocket = websocket
        self._services = services
        self._write_timeout = services.settings.timeouts.write
        self._write_limit = TimeLimit()
        self._sending = asyncio.Lock()  # one frame at a time, so one limit is enough
        self._num_open = 0

    async def serve(self) -> None:
        settings = self._services.settings
        check_origin(self._websocket, settings.server.cors_origins)
        self._cache_wish = wish_of(self._websocket.headers.get(HEADER), settings.cache.is_on)
        await self._websocket.accept(subprotocol=accepted_subprotocol(self._websocket))
        try:
            async with asyncio.TaskGroup() as self._tasks:
                await self._begin()
                while True:
                    await self._receive(await self._websocket.receive())
        except* (WebSocketDisconnect, SlowReader):
            pass  # nobody reads any more
        except* Exception:
            logs.unexpected("a WebSocket failed")
            with contextlib.suppress(WebSocketDisconnect, RuntimeError):  # it may be closed
                await self._websocket.close(INTERNAL_ERROR)
        finally:
            self._write_limit.close()

    async def _receive(self, message: Message) -> None:
        if message["type"] == "websocket.disconnect":
            raise WebSocketDisconnect(message.get("code") or 1000)
        data = message.get("text") or message.get("bytes") or ""
        name = self._name_of(data)
        try:
            await self._handle(data, name or "")
        except APIError as error:
            await self._send_error(error, name)

    async def _begin(self) -> None:  # noqa: B027 - most have nothing to do here
        """The connection is there; tasks may be made."""

    @abstractmethod
    def _name_of(self, data: str | bytes) -> str | None:
        """What the client calls a request, echoed on all frames of it."""

    @abstractmethod
    async def _handle(self, data: str | bytes, name: str) -> None:
        """A frame. Raises APIError, which is sent."""

    @abstractmethod
    def _error_frame(self, error: APIError, name: str | None) -> bytes: ...

    def _open(self, work: Work, name: str | None) -> None:
        """A request's task; what it raises is sent. Raises RateLimited."""
        if self._num_open >= MAX_OPEN_REQUESTS:
            raise RateLimited(f"At most {MAX_OPEN_REQUESTS} requests may be open on one connection.")
        self._num_open += 1
        self._tasks.create_task(self._run(work, name))

    async def _run(self, work: Work, name: str | None) -> None:
        try:
            await work()
        except (WebSocketDisconnect, SlowReader):
            raise
        except APIError as error:
            await self._send_error(error, name)
        except Exception:
            logs.unexpected("a WebSocket request failed")
            await self._send_error(ServerError("The server failed."), name)
        finally:
            self._num_open -= 1

    async def _caller(self, name: str | None) -> Caller:
        """Who asks, for each request anew: a key that was revoked since the connection was made is refused here."""
        try:
            principal = await self._services.authenticator.authenticate(presented_key(self._websocket))
        except AuthenticationFailed as error:
            await self._send_error(error, name)
            await self._websocket.close(POLICY_VIOLATION, error.code)
            raise WebSocketDisconnect(POLICY_VIOLATION) from None
        return Caller(
            principal,
            new_id("req"),
            self.path,
            frozenset({"websocket"}),
            client_request_id=name or "",
            cache=self._cache_wish,
            trace=trace_of(self._websocket),
        )

    async def _send(self, frames: Iterable[bytes]) -> None:
        """Raises SlowReader, or WebSocketDisconnect when the connection is closed or closing."""
        for frame in frames:
            try:
                async with self._sending:
                    await in_time(self._write_limit(self._write_timeout), self._websocket.send_text(frame.decode()))
            except RuntimeError:  # how starlette and uvicorn say that it was closed from our side
                raise WebSocketDisconnect(ABNORMAL_CLOSURE) from None

    async def _send_error(self, error: APIError, name: str | None) -> None:
        log_refusal(self._websocket, error)
        await self._send([self._error_frame(error, name)])
