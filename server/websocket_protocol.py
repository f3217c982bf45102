"""uvicorn's WebSocket protocol with the bounds that it lacks: on messages in many parts, and on who does not read."""

from __future__ import annotations

import asyncio
from typing import ClassVar

from uvicorn.protocols.websockets.websockets_sansio_impl import WebSocketsSansIOProtocol
from websockets.frames import CloseCode, Frame

from server.http_protocol import WRITE_GRACE, Bounds

MAX_FRAGMENTS = 16_384  # of one message: they may be empty, and then no bound on its bytes is ever reached


class BoundedWebSocketProtocol(WebSocketsSansIOProtocol):
    """Nothing is read from a client that does not read: it could make us answer its pings into memory. A client that
    takes nothing for too long loses its connection, as does one that does not come to the end of a message."""

    bounds: ClassVar[Bounds] = Bounds()

    _message: asyncio.TimerHandle | None = None
    _writing: asyncio.TimerHandle | None = None

    @classmethod
    def within(cls, bounds: Bounds) -> type[BoundedWebSocketProtocol]:
        """One server's: uvicorn takes a class, not an object."""
        return type(cls.__name__, (cls,), {"bounds": bounds})

    def connection_lost(self, exc: Exception | None) -> None:
        self._message = _cancelled(self._message)
        self._writing = _cancelled(self._writing)
        super().connection_lost(exc)

    # --- what is read

    def handle_text(self, event: Frame) -> None:
        self._expect_more(event)
        super().handle_text(event)

    def handle_bytes(self, event: Frame) -> None:
        self._expect_more(event)
        super().handle_bytes(event)

    def handle_cont(self, event: Frame) -> None:
        if len(self.frames) >= MAX_FRAGMENTS:
            self._fail(CloseCode.MESSAGE_TOO_BIG, "too many fragments")
            return
        if event.fin:
            self._message = _cancelled(self._message)
        super().handle_cont(event)

    def _expect_more(self, first: Frame) -> None:
        if not first.fin:
            late = (CloseCode.POLICY_VIOLATION, "a message did not arrive in time")
            self._message = self.loop.call_later(self.bounds.body, self._fail, *late)

    def _fail(self, code: CloseCode, reason: str) -> None:
        if self.close_sent or self.transport.is_closing():
            return
        self.frames = []
        self.conn.fail(code, reason)
        self.queue.put_nowait({"type": "websocket.disconnect", "code": code, "reason": reason})
        self.transport.write(b"".join(self.conn.data_to_send()))
        self.close_sent = True
        self.transport.close()

    # --- what is written

    def pause_writing(self) -> None:
        super().pause_writing()
        self.transport.pause_reading()
        self._await_reader()

    def resume_writing(self) -> None:
        super().resume_writing()
        if self.transport.is_closing():
            return
        self._writing = _cancelled(self._writing)
        if not self.read_paused:  # by a message that has not been handled
            self.transport.resume_reading()

    def on_task_complete(self, task: asyncio.Task[None]) -> None:
        super().on_task_complete(task)
        self._await_reader()

    def _await_reader(self) -> None:
        if self._writing is None and not self.disconnected:
            self._writing = self.loop.call_later(self.bounds.write + WRITE_GRACE, self.transport.abort)


def _cancelled(timer: asyncio.TimerHandle | None) -> asyncio.TimerHandle | None:
    if timer is not None:
        timer.cancel()
    return None
