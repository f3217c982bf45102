"""Responses over a WebSocket, as OpenAI's `responses.connect()` speaks: `response.create` in, a stream's events out.

One response at a time, those that wait in the order in which they came. A connection remembers its last ones, so that
those that are not stored can be gone on with there, and forgets one with which a request has failed.
"""

from __future__ import annotations

import asyncio
import contextlib
from typing import Any

import msgspec
from starlette.websockets import WebSocket

from server.errors import APIError, InvalidRequest
from server.generation import Generation
from server.off_loop import off_loop_if
from server.responses.local import LocalConversations
from server.responses.service import Prepared
from server.responses.telling import Telling
from server.services import Services
from server.websocket import RESPONSES_PATH, Socket
from server.wire.body import LONG_BODY_BYTES, parse_json
from server.wire.common import encode
from server.wire.response_body import COMPLETED, INCOMPLETE
from server.wire.response_events import SteerFailed, error_frame, event_head, obfuscated, on_lane
from server.wire.responses import ResponseFrame

LIFETIME = 3600.0  # seconds, as OpenAI's
NORMAL_CLOSURE = 1000


class _Head(msgspec.Struct, frozen=True):
    """What a frame is read for before it is validated."""

    type: Any = None
    stream_id: Any = None
    previous_response_id: Any = None
    input: Any = None


def _head_of(data: str | bytes) -> _Head:
    """Never raises."""
    try:
        return msgspec.json.decode(data, type=_Head)
    except (msgspec.DecodeError, UnicodeError, RecursionError):
        return _Head()


class ResponsesSocket(Socket):
    path = RESPONSES_PATH

    def __init__(self, websocket: WebSocket, services: Services) -> None:
        super().__init__(websocket, services)
        self._turn = asyncio.Lock()
        self._local = LocalConversations()

    async def _begin(self) -> None:
        self._limit = self._tasks.create_task(self._end_of_life())

    async def _end_of_life(self) -> None:
        await asyncio.sleep(LIFETIME)
        async with self._turn:
            message = "This connection is as old as one may be: open a new one."
            await self._send_error(InvalidRequest(message, code="websocket_connection_limit_reached"), None)
            await self._websocket.close(NORMAL_CLOSURE)

    def _name_of(self, data: str | bytes) -> str | None:
        name = _head_of(data).stream_id
        return name if isinstance(name, str) else None

    def _error_frame(self, error: APIError, name: str | None) -> bytes:
        return error_frame(error, name)

    async def _handle(self, data: str | bytes, name: str) -> None:
        self._open(lambda: self._in_turn(data), name or None)

    async def _in_turn(self, data: str | bytes) -> None:
        async with self._turn:
            head = _head_of(data)
            if head.type == "response.steer":
                await self._send([encode(SteerFailed.of(head.previous_response_id, head.input))])
                return
            try:
                await self._answer(data)
            except APIError:
                self._local.forget(head.previous_response_id)
                raise

    async def _answer(self, data: str | bytes) -> None:
        frame = await off_loop_if(len(data) > LONG_BODY_BYTES, lambda: _parsed(data))
        caller = await self._caller(frame.stream_id)
        prepared = await self._services.responses.prepare(caller, frame, self._local)
        if frame.generate is False:
            await self._warm_up(prepared, frame)
            return
        async with prepared.generation as generation, prepared.telling as telling:
            await self._tell(generation, telling, prepared, frame)

    async def _warm_up(self, prepared: Prepared, frame: ResponseFrame) -> None:
        """What follows may go on from it; nothing is generated, and nothing charged."""
        async with prepared.telling as telling:
            await telling.begin()
            events = telling.opening() + telling.nothing()
            await telling.kept()
            prepared.remember_in(self._local)
            await self._send_events(events, frame)

    async def _tell(self, generation: Generation, telling: Telling, prepared: Prepared, frame: ResponseFrame) -> None:
        pieces = await generation.next(self._services.settings.timeouts.keep_alive)
        await telling.begin()
        unsent = telling.opening()
        try:
            while not generation.is_done:
                await self._send_events(unsent + telling.of(pieces), frame)
                unsent = []
                pieces = await generation.next()
            unsent += telling.of(pieces)
            last = telling.closing()
            await telling.kept()
        except APIError as error:
            last = telling.failure(error)
            with contextlib.suppress(APIError):  # it fails all the same
                await telling.kept()
        self._remember(prepared)
        await self._send_events(unsent + last, frame)

    def _remember(self, prepared: Prepared) -> None:
        body = prepared.builder.body
        if body.status in (COMPLETED, INCOMPLETE):
            prepared.remember_in(self._local)
        else:
            self._local.forget(body.previous_response_id)

    async def _send_events(self, events: list[bytes], frame: ResponseFrame) -> None:
        if frame.obfuscates:
            events = [obfuscated(event, event_head(event)) for event in events]
        await self._send(on_lane(event, frame.stream_id) for event in events)


def _parsed(data: str | bytes) -> ResponseFrame:
    """Raises APIError, as the body of an HTTP request does."""
    return parse_json(data.encode(errors="surrogatepass") if isinstance(data, str) else data, ResponseFrame)
