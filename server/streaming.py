"""Answers over HTTP: whole, or as server-sent events.

A response of ours runs its generation itself, inside its `__call__`: when a client leaves during a send, Starlette
ends a streaming response without its generator's `finally` ever running, and it never cancels a handler that is
still working on a whole answer. Errors before the first byte are ordinary HTTP errors; after it they are events.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable, Sequence
from types import TracebackType
from typing import Generic, Self, TypeVar

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from engines.types import Usage
from server import logs
from server.choice import Piece
from server.errors import APIError, ServerError, SlowReader
from server.generation import Generation
from server.off_loop import off_loop_if, tells_much
from server.outbox import WriteChunk, chunk_writer
from server.time_limit import TimeLimit
from server.wire.common import Answer, ChunkEncoder, ResponseHead, encode

PING = b": ping\n\n"
DONE = b"data: [DONE]\n\n"
EVENT_STREAM_HEADERS = {
    "content-type": "text/event-stream; charset=utf-8",
    "cache-control": "no-cache",
    "x-accel-buffering": "no",
}

T = TypeVar("T")
Render = Callable[[ResponseHead, Sequence[Answer], Usage], bytes]


class ClientWatch:
    """Cancels the body of its `async with` when the client leaves, and swallows that cancellation."""

    def __init__(self, receive: Receive) -> None:
        self._receive = receive
        self._left = False
        self._watching: asyncio.Task[None] | None = None

    async def __aenter__(self) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._task = task
        self._watching = asyncio.create_task(self._watch())

    async def _watch(self) -> None:
        while (await self._receive())["type"] != "http.disconnect":
            pass
        self._left = True
        self._task.cancel()

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> bool:
        assert self._watching is not None
        self._watching.cancel()
        return self._left and isinstance(error, asyncio.CancelledError) and self._task.uncancel() == 0


class JSONAnswer(Response, ABC, Generic[T]):
    """One JSON object, when everything is known."""

    def __init__(self, generation: Generation) -> None:
        super().__init__()
        self._generation = generation

    @abstractmethod
    async def gather(self, generation: Generation) -> T:
        """All of what the engine gives. Raises APIError when the request failed."""

    @abstractmethod
    async def body_of(self, generation: Generation, gathered: T) -> bytes: ...

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async with ClientWatch(receive):
            async with self._generation as generation:
                gathered = await with_headers(generation, self.gather(generation))
            body = await self.body_of(generation, gathered)
            headers = {"content-type": "application/json"} | generation.headers
            await Response(body, headers=headers)(scope, receive, send)


class WholeAnswer(JSONAnswer[list[Answer]]):
    """The texts of all choices."""

    def __init__(self, generation: Generation, render: Render) -> None:
        super().__init__(generation)
        self._render = render

    async def gather(self, generation: Generation) -> list[Answer]:
        return await generation.collect()

    async def body_of(self, generation: Generation, gathered: list[Answer]) -> bytes:
        return await off_loop_if(
            tells_much(gathered), lambda: self._render(generation.job.head, gathered, generation.usage)
        )


class Events(ABC):
    """One streamed answer as an endpoint family writes it, framed as server-sent events."""

    ping = PING  # keeps a connection alive and says nothing

    async def __aenter__(self) -> Self:
        """With the generation; left before it, whatever became of the stream."""
        return self

    async def __aexit__(self, *error: object) -> None:
        return

    async def begin(self) -> None:  # noqa: B027 - most have nothing to do here
        """The generation was not refused: a stream will be opened."""

    async def kept(self) -> None:  # noqa: B027
        """Between the making of the last event and its sending. Raises APIError when that is void: the stream fails."""

    @abstractmethod
    def opening(self) -> bytes:
        """What stands before anything that the engine gives."""

    @abstractmethod
    def of(self, pieces: list[Piece]) -> bytes:
        """b"" while there is nothing to tell."""

    @abstractmethod
    def closing(self) -> bytes:
        """The end of an answer that is complete."""

    @abstractmethod
    def failure(self, error: APIError) -> bytes:
        """The end of one that is not: the last event of its stream."""


class ChunkEvents(Events):
    """Chat's and completions' own: chunks, then [DONE]; or an error and no [DONE]."""

    def __init__(self, generation: Generation, encoder: ChunkEncoder) -> None:
        self._frames = FrameSource(generation, encoder)

    def opening(self) -> bytes:
        return sse(self._frames.opening())

    def of(self, pieces: list[Piece]) -> bytes:
        return sse(self._frames.of(pieces))

    def closing(self) -> bytes:
        return sse(self._frames.closing()) + DONE

    def failure(self, error: APIError) -> bytes:
        return sse([encode(error.envelope())])


class EventStream(Response):
    """Server-sent events. The status waits for the first token, so that a refusal still is an HTTP error."""

    def __init__(self, generation: Generation, events: Events, *, keep_alive: float, write_timeout: float) -> None:
        super().__init__()
        self._generation = generation
        self._events = events
        self._keep_alive = keep_alive
        self._write_timeout = write_timeout
        self._limit = TimeLimit()
        self._last_sent = 0.0
        self._write_chunk: WriteChunk | None = None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self._write_chunk = chunk_writer(scope)
        # The server closes the connection of an answer that does not end.
        with contextlib.suppress(SlowReader), contextlib.closing(self._limit):
            async with ClientWatch(receive):
                await self._answer(send)
                await in_time(self._limit(self._write_timeout), send({"type": "http.response.body", "body": b""}))

    async def _answer(self, send: Send) -> None:
        async with self._generation as generation, self._events as events:
            first = await with_headers(generation, generation.next(self._keep_alive))
            await events.begin()
            await self._start(send)
            await self._stream(send, first)

    async def _start(self, send: Send) -> None:
        headers = EVENT_STREAM_HEADERS | self._generation.headers
        raw = [(name.encode(), value.encode()) for name, value in headers.items()]
        await send({"type": "http.response.start", "status": 200, "headers": raw})

    async def _stream(self, send: Send, pieces: list[Piece]) -> None:
        """Ends in the family's closing or in its failure, never in silence."""
        events = self._events
        unsent = events.opening()
        try:
            while not self._generation.is_done:
                await self._send(send, unsent + await self._events_of(pieces) or self._ping(pieces))
                unsent = b""
                pieces = await self._generation.next(self._keep_alive)
            unsent += await self._events_of(pieces)
            closing = events.closing()
            await events.kept()
            await self._send(send, unsent + closing)
        except SlowReader:
            raise
        except APIError as error:
            await self._fail(send, unsent, error)
        except Exception:
            logs.unexpected("a stream failed")
            await self._fail(send, unsent, ServerError("The server failed."))
            raise

    async def _fail(self, send: Send, unsent: bytes, error: APIError) -> None:
        failure = self._events.failure(error)
        with contextlib.suppress(APIError):  # it fails all the same
            await self._events.kept()
        await self._send(send, unsent + failure)

    async def _events_of(self, pieces: list[Piece]) -> bytes:
        return await asyncio.to_thread(self._events.of, pieces) if tells_much(pieces) else self._events.of(pieces)

    def _ping(self, pieces: list[Piece]) -> bytes:
        """For a stream that has nothing to say: no token came, or their text has been held back for long."""
        is_quiet = not pieces or time.monotonic() - self._last_sent >= self._keep_alive
        return self._events.ping if is_quiet else b""

    async def _send(self, send: Send, data: bytes) -> None:
        if not data:
            return
        self._last_sent = time.monotonic()
        if self._write_chunk is None or not self._write_chunk(data):
            sending = send({"type": "http.response.body", "body": data, "more_body": True})
            await in_time(self._limit(self._write_timeout), sending)


async def in_time(limit: TimeLimit, sending: Awaitable[None]) -> None:
    """A client that takes nothing for too long loses its connection: raises SlowReader."""
    try:
        with limit:
            await sending
    except TimeoutError:
        raise SlowReader("The client does not read its answer.") from None


async def with_headers(generation: Generation, answer: Awaitable[T]) -> T:
    """An error before the first byte carries the quota headers too."""
    try:
        return await answer
    except APIError as error:
        error.headers = generation.headers | error.headers
        raise


class FrameSource:
    """The chunks of one answer, for SSE and WebSocket alike."""

    def __init__(self, generation: Generation, encoder: ChunkEncoder) -> None:
        self._generation = generation
        self._encoder = encoder

    def opening(self) -> list[bytes]:
        chunks = (self._encoder.role_chunk(index) for index in range(self._generation.job.num_choices))
        return [chunk for chunk in chunks if chunk]

    async def written(self, pieces: list[Piece]) -> list[bytes]:
        """As `of`, and away from the event loop where that takes long."""
        return await off_loop_if(tells_much(pieces), lambda: self.of(pieces))

    def of(self, pieces: list[Piece]) -> list[bytes]:
        """Text and endings; nothing while a character or a possible stop string is held back."""
        chunks = []
        for piece in pieces:
            if piece.reasoning:
                chunks.append(self._encoder.reasoning_chunk(piece.reasoning, piece.index))
            if piece.tokens is not None and (piece.text or piece.tokens):
                chunks.append(self._encoder.told_chunk(piece.text, piece.tokens, piece.index))
            elif piece.text:
                chunks.append(self._encoder.text_chunk(piece.text, piece.index))
            chunks += [self._encoder.call_chunk(call, piece.index) for call in piece.calls]
            if piece.finish_reason is not None:
                chunks.append(self._encoder.finish_chunk(piece.finish_reason, piece.index))
        return chunks

    def closing(self) -> list[bytes]:
        if not self._generation.job.include_usage:
            return []
        return [self._encoder.usage_chunk(self._generation.usage)]


def sse(chunks: list[bytes]) -> bytes:
    return b"data: " + b"\n\ndata: ".join(chunks) + b"\n\n" if chunks else b""
