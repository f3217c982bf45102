"""Chat completions over a WebSocket: one JSON text frame a request, one a chunk, exactly the chunks of SSE.

Several requests may share a connection. Those that carry a `request_id` run side by side and have it echoed on every
frame; those without one run one after another, so that their frames never mix.
"""

from __future__ import annotations

import asyncio
from urllib.parse import urlsplit

from pydantic import ValidationError
from starlette.types import Message
from starlette.websockets import WebSocket, WebSocketDisconnect

from server import logs
from server.auth import presented_key
from server.errors import APIError, AuthenticationFailed, InvalidRequest, RateLimited, ServerError
from server.generation import Caller, Generation
from server.services import Services
from server.streaming import FrameSource
from server.wire.body import from_validation
from server.wire.chat import CancelFrame, ChatChunkEncoder, ChatCompletionFrame, frame_head, parse_frame
from server.wire.common import encode, new_id

SUBPROTOCOL = "penstock"
MAX_OPEN_REQUESTS = 64
POLICY_VIOLATION, INTERNAL_ERROR = 1008, 1011


def accepted_subprotocol(websocket: WebSocket) -> str | None:
    """Ours, when the client offers it. The one that carries its key is never echoed."""
    return SUBPROTOCOL if SUBPROTOCOL in websocket.scope.get("subprotocols", ()) else None


async def refuse(websocket: WebSocket, error: APIError) -> None:
    """Browsers can't read a failed handshake: the reason is sent as a frame, then the connection is closed."""
    await websocket.accept(subprotocol=accepted_subprotocol(websocket))
    await websocket.send_text(encode(error.envelope()).decode())
    await websocket.close(POLICY_VIOLATION, error.code)


def check_origin(websocket: WebSocket, allowed: tuple[str, ...]) -> None:
    """Browsers send a page's origin but don't hold WebSockets to CORS: we do. Raises AuthenticationFailed."""
    origin = websocket.headers.get("origin")
    if origin is None or "*" in allowed or origin in allowed:
        return
    if urlsplit(origin).netloc != websocket.headers.get("host"):
        raise AuthenticationFailed("Pages of this origin may not connect.", code="origin_not_allowed")


class ChatSocket:
    """One connection. Its requests' tasks end before `serve` returns."""

    def __init__(self, websocket: WebSocket, services: Services) -> None:
        self._websocket = websocket
        self._services = services
        self._running: dict[str, asyncio.Task[None]] = {}  # by the client's request_id; "" is the request without
        self._anonymous = asyncio.Lock()
        self._tasks: set[asyncio.Task[None]] = set()

    async def serve(self) -> None:
        check_origin(self._websocket, self._services.settings.server.cors_origins)
        await self._websocket.accept(subprotocol=accepted_subprotocol(self._websocket))
        try:
            while True:
                await self._receive(await self._websocket.receive())
        except WebSocketDisconnect:
            pass  # the client's way to end it
        finally:
            for task in self._tasks:
                task.cancel()
            await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _receive(self, message: Message) -> None:
        if message["type"] == "websocket.disconnect":
            raise WebSocketDisconnect(message.get("code") or 1000)
        data = message.get("text") or message.get("bytes") or ""
        request_id = frame_head(data).request_id
        try:
            await self._handle(data, request_id or "")
        except APIError as error:
            await self._send_error(error, request_id)

    async def _handle(self, data: str | bytes, request_id: str) -> None:
        try:
            frame = parse_frame(data)
        except ValidationError as error:
            raise from_validation(error, frame_head(data)) from None
        if isinstance(frame, CancelFrame):
            if (task := self._running.get(request_id)) is not None:
                task.cancel()  # one that has just ended is not there any more: nothing is left to cancel
            return
        if request_id and request_id in self._running:
            raise InvalidRequest("A request with this request_id is still running.", param="request_id")
        if len(self._tasks) >= MAX_OPEN_REQUESTS:
            raise RateLimited(f"At most {MAX_OPEN_REQUESTS} requests may be open on one connection.")
        self._start(frame, request_id)

    def _start(self, frame: ChatCompletionFrame, request_id: str) -> None:
        task = asyncio.create_task(self._run(frame, request_id))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        if request_id:
            self._running[request_id] = task

    async def _run(self, frame: ChatCompletionFrame, request_id: str) -> None:
        try:
            if request_id:
                await self._answer(frame)
            else:
                async with self._anonymous:
                    task = asyncio.current_task()
                    assert task is not None
                    self._running[""] = task
                    await self._answer(frame)
        except asyncio.CancelledError:
            await self._send_error(InvalidRequest("The request was cancelled.", code="cancelled"), frame.request_id)
        except APIError as error:
            await self._send_error(error, frame.request_id)
        except Exception:
            logs.unexpected("a WebSocket request failed")
            await self._send_error(ServerError("The server failed."), frame.request_id)
        finally:
            self._running.pop(request_id, None)

    async def _answer(self, frame: ChatCompletionFrame) -> None:
        """A key that was revoked since the connection was made is refused here."""
        try:
            principal = await self._services.authenticator.authenticate(presented_key(self._websocket))
        except AuthenticationFailed as error:
            await self._send_error(error, frame.request_id)
            await self._websocket.close(POLICY_VIOLATION, error.code)
            return
        caller = Caller(principal, new_id("req"), "/v1/chat/completions", frozenset({"websocket"}))
        async with await self._services.pipeline.chat(caller, frame) as generation:
            await self._stream(generation, frame)

    async def _stream(self, generation: Generation, frame: ChatCompletionFrame) -> None:
        job = generation.job
        encoder = ChatChunkEncoder(job.head, include_usage=job.include_usage, request_id=frame.request_id)
        frames = FrameSource(generation, encoder)
        pieces = await generation.next()
        await self._send(frames.opening())
        while True:
            await self._send(frames.of(pieces))
            if generation.is_done:
                break
            pieces = await generation.next()
        await self._send(frames.closing())

    async def _send(self, chunks: list[bytes]) -> None:
        """A reader that takes nothing for too long loses its connection."""
        async with asyncio.timeout(self._services.settings.timeouts.write):
            for chunk in chunks:
                await self._websocket.send_text(chunk.decode())

    async def _send_error(self, error: APIError, request_id: str | None) -> None:
        envelope = error.envelope() | ({"request_id": request_id} if request_id else {})
        await self._send([encode(envelope)])
