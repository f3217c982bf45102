"""What connections have to say, written in bursts."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any, Protocol

from starlette.types import Scope

MAX_UNSENT_BYTES = 64 * 1024  # of a connection, before its writes wait for no others
EXTENSION = "penstock.chunks"  # of ASGI's scope

WriteChunk = Callable[[bytes], bool]


class Flow(Protocol):
    """uvicorn's control of one connection's flow."""

    write_paused: bool


class Burst:
    """The writes of all connections in one turn of the event loop, made one behind another when it ends.

    A step brings tokens for many streams, often to clients of one machine or process. A write apart from the others
    finds its reader asleep, and waking it costs more than the write does.
    """

    def __init__(self) -> None:
        self._flushes: list[Callable[[], None]] = []

    def add(self, flush: Callable[[], None]) -> None:
        if not self._flushes:
            asyncio.get_running_loop().call_soon(self._write)
        self._flushes.append(flush)

    def _write(self) -> None:
        flushes, self._flushes = self._flushes, []
        for flush in flushes:
            flush()


class Outbox:
    """One connection's part of the bursts."""

    __slots__ = ("_burst", "_flow", "_transport", "_unsent")

    def __init__(self, transport: asyncio.Transport, flow: Flow, burst: Burst) -> None:
        self._transport = transport
        self._flow = flow
        self._burst = burst
        self._unsent = b""

    def write(self, data: bytes) -> None:
        if not self._unsent:
            self._burst.add(self.flush)
        self._unsent += data
        if len(self._unsent) > MAX_UNSENT_BYTES:
            self.flush()

    def flush(self) -> None:
        data, self._unsent = self._unsent, b""
        if data and not self._transport.is_closing():
            self._transport.write(data)

    def write_chunk(self, data: bytes) -> bool:
        """A part of a chunked body that has begun; False, and nothing is written, where that has to be waited for."""
        if self._flow.write_paused or self._transport.is_closing():
            return False
        self.write(b"%x\r\n%b\r\n" % (len(data), data))
        return True


def chunk_writer(scope: Scope) -> WriteChunk | None:
    """`Outbox.write_chunk` of a request's connection, to write parts of its answer's body without passing every `send`
    of the stack: what stands there looks at how an answer begins. None where another server runs the application."""
    extensions: dict[str, dict[str, Any]] = scope.get("extensions", {})
    return extensions.get(EXTENSION, {}).get("write")
