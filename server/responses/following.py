"""A response's events for who comes later: from the gateway that runs it, or as they are written down."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Protocol

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from server.errors import APIError, Overloaded, SlowReader
from server.reachable import database_reached
from server.responses.background import Run
from server.store.responses import StoredResponse
from server.streaming import EVENT_STREAM_HEADERS, PING, ClientWatch, in_time
from server.time_limit import TimeLimit
from server.wire.common import encode
from server.wire.response_body import LIVE
from server.wire.response_events import DONE, ErrorEvent, event_head, frame

POLL_EVERY = 0.25  # seconds
MAX_EVENTS = 1000  # that one who follows is given at once
MAX_ROWS = 50  # of events


class Source(Protocol):
    @property
    def has_ended(self) -> bool:
        """Nothing more comes after what was given."""

    async def next(self, patience: float) -> list[bytes]:
        """Events that were not given yet, in order; none when none came in time. Raises APIError."""


class RunSource:
    """Of one that runs here."""

    def __init__(self, run: Run, after: int) -> None:
        self._run = run
        self._num_known = after + 1

    @property
    def has_ended(self) -> bool:
        return self._run.has_ended and self._num_known >= len(self._run.events)

    async def next(self, patience: float) -> list[bytes]:
        events = (await self._run.news(self._num_known, patience))[:MAX_EVENTS]
        self._num_known += len(events)
        return events


class EventStore(Protocol):
    """What is asked of `server.store.responses.Responses`."""

    async def events_after(self, response_id: str, sequence_number: int, num_rows: int) -> list[bytes]: ...

    async def get(self, account_id: str, response_id: str) -> StoredResponse | None: ...


class StoredSource:
    """Of one that runs elsewhere, or has ended. `is_draining`: this gateway will not see its end."""

    def __init__(
        self, store: EventStore, response: StoredResponse, after: int, is_draining: Callable[[], bool]
    ) -> None:
        self.has_ended = False
        self._store = store
        self._response = response
        self._after = after
        self._is_draining = is_draining

    async def next(self, patience: float) -> list[bytes]:
        deadline = time.monotonic() + patience
        while True:
            if events := await self._look():
                self._after = event_head(events[-1]).sequence_number
            if events or self.has_ended or time.monotonic() >= deadline:
                return events
            if self._is_draining():
                raise Overloaded("The server is shutting down.", code="shutting_down")
            await asyncio.sleep(min(POLL_EVERY, patience))

    async def _look(self) -> list[bytes]:
        """It is asked first whether it has ended: its last events are written no later."""
        response = self._response
        with database_reached():
            stored = await self._store.get(response.account_id, response.id)
            events = await self._store.events_after(response.id, self._after, MAX_ROWS)
        self.has_ended = not events and (stored is None or stored.status not in LIVE)
        if stored is None and not events:
            raise Overloaded("The response was deleted.", code="response_deleted")
        return events


class FollowedResponse(Response):
    """Server-sent events of a source, to their end."""

    def __init__(
        self,
        source: Source,
        after: int,
        headers: Mapping[str, str],
        *,
        obfuscate: bool,
        keep_alive: float,
        write_timeout: float,
    ) -> None:
        super().__init__()
        self._raw = EVENT_STREAM_HEADERS | dict(headers)
        self._source = source
        self._after = after
        self._obfuscate = obfuscate
        self._keep_alive = keep_alive
        self._write_timeout = write_timeout
        self._limit = TimeLimit()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        with contextlib.suppress(SlowReader), contextlib.closing(self._limit):
            async with ClientWatch(receive):
                raw = [(name.encode(), value.encode()) for name, value in self._raw.items()]
                await send({"type": "http.response.start", "status": 200, "headers": raw})
                await self._follow(send)
                await in_time(self._limit(self._write_timeout), send({"type": "http.response.body", "body": b""}))

    async def _follow(self, send: Send) -> None:
        try:
            while not self._source.has_ended:
                events = await self._source.next(self._keep_alive)
                if events or not self._source.has_ended:
                    await self._send(send, self._frames(events) or PING)
        except APIError as error:
            told = ErrorEvent(error.code, error.message, error.param, max(self._after, 0))
            await self._send(send, frame(encode(told)))
        await self._send(send, DONE)

    def _frames(self, events: Sequence[bytes]) -> bytes:
        if events:
            self._after = event_head(events[-1]).sequence_number
        return b"".join(frame(event, obfuscate=self._obfuscate) for event in events)

    async def _send(self, send: Send, data: bytes) -> None:
        sending = send({"type": "http.response.body", "body": data, "more_body": True})
        await in_time(self._limit(self._write_timeout), sending)
