"""One response told while it is made, whoever listens: its events as JSON, and written down where it is stored."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from typing import Self

from engines.types import Usage
from server.choice import Piece
from server.errors import APIError
from server.generation import Generation
from server.responses.answer import ResponseBuilder
from server.responses.recorder import Recorder
from server.shielded import to_the_end
from server.streaming import Events
from server.wire.common import encode
from server.wire.response_body import LIVE, ResponseBody
from server.wire.response_events import DONE, Event, frame


class Telling:
    """Entered with the generation, and left with it: a response that nobody waits for any more ends as cancelled.

    Its last events are made by `closing`, `nothing`, `failure` or `cancelled`. They are sent when `kept` has returned;
    where it raises, `failure` makes those that are sent instead.
    """

    def __init__(self, generation: Generation, builder: ResponseBuilder, recorder: Recorder | None) -> None:
        self._generation = generation
        self._builder = builder
        self._recorder = recorder
        self._is_begun = False
        self._is_kept = recorder is None
        self._last: list[bytes] = []  # events, not to be sent before they are kept

    @property
    def body(self) -> ResponseBody:
        return self._builder.body

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._is_begun and not self._is_kept:
            await to_the_end(self._abandon())

    async def _abandon(self) -> None:
        if self.body.status in LIVE:
            self.cancelled()
        with contextlib.suppress(APIError):  # nobody is left to be told
            await self.kept()

    async def begin(self) -> None:
        """It is known from here on. Raises Overloaded."""
        if self._recorder is not None:
            await self._recorder.begin()
        self._is_begun = True

    def opening(self) -> list[bytes]:
        return self._told(self._builder.create()) + ([] if self.body.background else self.started())

    def started(self) -> list[bytes]:
        return self._told(self._builder.start())

    def of(self, pieces: Sequence[Piece]) -> list[bytes]:
        return self._told(self._builder.add(pieces))

    def closing(self) -> list[bytes]:
        return self._ended(self._builder.finish(self._generation.usage))

    def nothing(self) -> list[bytes]:
        """The same of one that was to generate nothing."""
        return self._ended(self._builder.skip())

    def failure(self, error: APIError) -> list[bytes]:
        before = self._take_back()
        return before + self._ended(self._builder.fail(error, self._usage()))

    def cancelled(self) -> list[bytes]:
        return self._ended(self._builder.cancel(self._usage()))

    async def kept(self) -> None:
        """Raises Overloaded when it can't be stored."""
        if self._recorder is not None and self._is_begun and not self._is_kept:
            await self._recorder.end()
        self._is_kept, self._last = True, []

    def _usage(self) -> Usage | None:
        """None before the engine began."""
        usage = self._generation.usage
        return usage if usage.prompt_tokens else None

    def _take_back(self) -> list[bytes]:
        """The terminal event that was not kept; what stands before it is true all the same."""
        if not self._last:
            return []
        before, self._last = self._last[:-1], []
        self._builder.take_back()
        if self._recorder is not None:
            self._recorder.take_back()
        return before

    def _ended(self, events: Sequence[Event]) -> list[bytes]:
        self._last = self._told(events)
        return self._last

    def _told(self, events: Sequence[Event]) -> list[bytes]:
        told = [encode(event) for event in events]
        if self._recorder is not None and not self._is_kept:
            self._recorder.add(told, self.body)
        return told


class ResponseEvents(Events):
    """The same as server-sent events, then [DONE] as the Open Responses specification has it."""

    def __init__(self, telling: Telling, *, obfuscate: bool) -> None:
        self._telling = telling
        self._frame: Callable[[bytes], bytes] = lambda event: frame(event, obfuscate=obfuscate)

    async def __aenter__(self) -> Self:
        await self._telling.__aenter__()
        return self

    async def __aexit__(self, *error: object) -> None:
        await self._telling.__aexit__(*error)

    async def begin(self) -> None:
        await self._telling.begin()

    def opening(self) -> bytes:
        return self._framed(self._telling.opening())

    def of(self, pieces: list[Piece]) -> bytes:
        return self._framed(self._telling.of(pieces))

    def closing(self) -> bytes:
        return self._framed(self._telling.closing()) + DONE

    def failure(self, error: APIError) -> bytes:
        return self._framed(self._telling.failure(error)) + DONE

    async def kept(self) -> None:
        await self._telling.kept()

    def _framed(self, events: Sequence[bytes]) -> bytes:
        return b"".join(map(self._frame, events))
