"""Chat completions over a WebSocket: a JSON text frame a request, one a chunk, exactly the chunks of SSE.

Several requests may share a connection. Those that carry a `request_id` run side by side and have it echoed on every
frame; those without one run one after another, so that their frames never mix.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from starlette.websockets import WebSocket

from server.errors import APIError, InvalidRequest
from server.generation import Generation
from server.services import Services
from server.streaming import FrameSource
from server.websocket import Socket
from server.wire.chat import CancelFrame, ChatCompletionFrame, frame_head, read_frame
from server.wire.chat_answer import chunk_encoder
from server.wire.common import encode


class ChatSocket(Socket):
    """Chat completions."""

    path = "/v1/chat/completions"

    def __init__(self, websocket: WebSocket, services: Services) -> None:
        super().__init__(websocket, services)
        self._running: dict[str, asyncio.Task[None]] = {}  # by the client's request_id; "" is the request without
        self._cancelled: set[asyncio.Task[None]] = set()  # by the client
        self._anonymous = asyncio.Lock()

    def _name_of(self, data: str | bytes) -> str | None:
        name: str | None = frame_head(data).request_id
        return name

    def _error_frame(self, error: APIError, name: str | None) -> bytes:
        return encode(error.envelope() | ({"request_id": name} if name else {}))

    async def _handle(self, data: str | bytes, name: str) -> None:
        frame = await read_frame(data)
        if isinstance(frame, CancelFrame):
            self._cancel(name)
            return
        if name and name in self._running:
            raise InvalidRequest("A request with this request_id is still running.", param="request_id")
        self._open(lambda: self._in_turn(frame), frame.request_id)
        await asyncio.sleep(0)  # it has begun before the next frame is read: perhaps that cancels it

    def _cancel(self, request_id: str) -> None:
        """One that has just ended is not there any more: nothing is left to cancel."""
        if (task := self._running.pop(request_id, None)) is not None:
            self._cancelled.add(task)
            task.cancel()

    async def _in_turn(self, frame: ChatCompletionFrame) -> None:
        if frame.request_id:
            await self._answer(frame)
        else:
            async with self._anonymous:
                await self._answer(frame)

    async def _answer(self, frame: ChatCompletionFrame) -> None:
        """Raises CancelledError when the connection ends, not when the client cancels this request."""
        request_id, task = frame.request_id or "", asyncio.current_task()
        assert task is not None
        self._running[request_id] = task
        try:
            await self._generate(frame, lambda: self._ended(request_id, task))
        except asyncio.CancelledError:
            if task not in self._cancelled:
                raise
            await self._send_error(InvalidRequest("The request was cancelled.", code="cancelled"), frame.request_id)
        finally:
            self._cancelled.discard(task)
            self._ended(request_id, task)

    def _ended(self, request_id: str, task: asyncio.Task[None]) -> None:
        """Its id may be used again."""
        if self._running.get(request_id) is task:
            del self._running[request_id]

    async def _generate(self, frame: ChatCompletionFrame, ended: Callable[[], None]) -> None:
        caller = await self._caller(frame.request_id)
        async with await self._services.pipeline.chat(caller, frame) as generation:
            await self._stream(generation, frame, ended)

    async def _stream(self, generation: Generation, frame: ChatCompletionFrame, ended: Callable[[], None]) -> None:
        """`ended` is called before the last frames, so that a client that has read them meets nothing of them."""
        job = generation.job
        encoder = chunk_encoder(job.is_legacy)(
            job.head, include_usage=job.include_usage, choices=job.num_choices, request_id=frame.request_id
        )
        frames = FrameSource(generation, encoder)
        pieces = await generation.next()
        await self._send(frames.opening())
        while not generation.is_done:
            await self._send(await frames.written(pieces))
            pieces = await generation.next()
        ended()
        await self._send(await frames.written(pieces) + frames.closing())
