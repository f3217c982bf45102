"""uvicorn's WebSocket protocol with the bounds that it lacks: on messages in many parts, and on who does not read."""

from __future__ import annotations

import asyncio
from typing import ClassVar

from uvicorn.protocols.websockets.websockets_sansio_impl import WebSocketsSansIOProtocol
from websockets.frames import CloseCode, Frame

from server.http_protocol import LINGER, WRITE_GRACE, Bounds

MAX_FRAGMENTS = 16_384  # of one message: they may be empty, and then no bound on its bytes is ever reached


class BoundedWebSocketProtocol(WebSocketsSansIOProtocol):
    """Nothing is read from a client that does not read: it could make us answer its pings into memory. A client that
    takes nothing for too long loses its connection, as does one that does not come to the end of a message."""

    bounds: ClassVar[Bounds] = Bounds()

    _has_failed = False
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

    def data_received(self, data: bytes) -> None:
        """A socket closed over unread bytes is reset, and the peer never reads why: they are read and dropped."""
        if not self._has_failed:
            super().data_received(data)

    def handle_parser_exception(self) -> None:
        assert self.conn.close_sent is not None
        self._end(self.conn.close_sent.code, self.conn.close_sent.reason)

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

    def handle_ping(self) -> None:
        if not self._has_failed:  # by a frame before it, of the same segment
            super().handle_ping()

    def send_receive_event_to_app(self) -> None:
        """uvicorn logs a traceback of text that is none, and fails itself where the client has closed behind it."""
        if self.curr_msg_data_type == "text" and not self.close_sent and not _is_text(b"".join(self.frames)):
            self._fail(CloseCode.INVALID_DATA, "text that is not UTF-8")
        else:
            super().send_receive_event_to_app()

    def _expect_more(self, first: Frame) -> None:
        if not first.fin:
            self._message = self.loop.call_later(self.bounds.body, self._is_late)

    def _is_late(self) -> None:
        if self.read_paused or not self.writable.is_set():  # it may have come, and we do not read
            self._message = self.loop.call_later(self.bounds.body, self._is_late)
        else:
            self._fail(CloseCode.POLICY_VIOLATION, "a message did not arrive in time")

    def _fail(self, code: CloseCode, reason: str) -> None:
        if not (self.close_sent or self.transport.is_closing()):
            self.conn.fail(code, reason)
            self._end(code, reason)

    def _end(self, code: int, reason: str) -> None:
        """The client is told, and has a moment to read it."""
        self._has_failed = self.close_sent = True
        self._message = _cancelled(self._message)
        self.frames = []
        self.queue.put_nowait({"type": "websocket.disconnect", "code": code, "reason": reason})
        self.transport.write(b"".join(self.conn.data_to_send()))
        if self.transport.can_write_eof():
            self.transport.write_eof()
        if self.read_paused:
            self.read_paused = False
            self.transport.resume_reading()
        self.close_timer = self.loop.call_later(LINGER, self.transport.close)

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


def _is_text(data: bytes) -> bool:
    try:
        data.decode()
    except UnicodeDecodeError:
        return False
    return True


def _cancelled(timer: asyncio.TimerHandle | None) -> asyncio.TimerHandle | None:
    if timer is not None:
        timer.cancel()
    return None
