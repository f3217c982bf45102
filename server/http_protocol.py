"""uvicorn's HTTP protocol with the bounds that it lacks: on what a connection may take of time, headers and company."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar, cast

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from server.errors import APIError, InvalidRequest, Overloaded
from server.outbox import EXTENSION, Burst, Outbox
from server.wire.common import encode

MAX_HEADER_BYTES = 64 * 1024  # of all of them together, the URL included
LINGER = 1.0  # seconds in which a refused client can read its answer
SPARE_CONNECTIONS = 256  # above the bound, for those that are being told of it
RETRY_MS = 1000
WRITE_GRACE = 1.0  # seconds more than who writes an answer has, so that its books can say what became of it


@dataclass(slots=True, frozen=True)
class Bounds:
    """Seconds, and the connections of one gateway, those of WebSockets included."""

    header: float = 10.0
    body: float = 30.0
    write: float = 30.0
    connections: int = 16_384


class _PoliteTransport:
    """What uvicorn's cycle of request and response needs of a transport; closing it is for us to do."""

    __slots__ = ("close", "is_closing", "write")

    def __init__(self, transport: asyncio.Transport, outbox: Outbox, close: Callable[[], None]) -> None:
        self.write, self.is_closing, self.close = outbox.write, transport.is_closing, close


class BoundedHTTPProtocol(HttpToolsProtocol):
    """A connection whose headers do not arrive in time is closed, whether it sent nothing or trickles them; so is one
    that goes on with a body after its answer, or that takes too long to read what there is for it.

    Between requests uvicorn's own keep-alive timeout rules; it ends with the first byte of the next one.
    """

    bounds: ClassVar[Bounds] = Bounds()
    idle: ClassVar[dict[BoundedHTTPProtocol, None]] = {}  # no request of theirs is at work; the longest without first
    burst: ClassVar[Burst] = Burst()

    _awaiting: asyncio.TimerHandle | None = None  # headers, or the rest of a body that nobody wants
    _writing: asyncio.TimerHandle | None = None
    _header_bytes = 0
    _is_refused = False

    @classmethod
    def within(cls, bounds: Bounds) -> type[BoundedHTTPProtocol]:
        """One server's: uvicorn takes a class, not an object."""
        return type(cls.__name__, (cls,), {"bounds": bounds, "idle": {}, "burst": Burst()})

    # --- connections

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._outbox = Outbox(transport, self.flow, self.burst)
        self._await(self.bounds.header)
        excess = len(self.connections) - self.bounds.connections
        if excess > SPARE_CONNECTIONS:
            transport.abort()
        elif excess > 0 and not self._make_way():
            message = "The server holds as many connections as it can."
            error = Overloaded(message, code="too_many_connections", retry_after_ms=RETRY_MS)
            self._refuse(b"503 Service Unavailable", error)
        else:
            self.idle[self] = None

    def connection_lost(self, exc: Exception | None) -> None:
        self._has_come()
        self._has_taken()
        self.idle.pop(self, None)
        if self.cycle is not None:
            self.cycle.transport = self.transport  # it held us, and we hold it
        super().connection_lost(exc)

    def _make_way(self) -> bool:
        """Whether another connection, on which nothing is at work, could be closed for this one."""
        if (oldest := next(iter(self.idle), None)) is None:
            return False
        del self.idle[oldest]
        oldest.transport.abort()
        return True

    # --- what is read

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self._header_bytes = 0
        self._await(self.bounds.header)

    def on_url(self, url: bytes) -> None:
        super().on_url(url)
        self._count(len(url))

    def on_header(self, name: bytes, value: bytes) -> None:
        super().on_header(name, value)
        self._count(len(name) + len(value))

    def on_headers_complete(self) -> None:
        self._has_come()
        self.idle.pop(self, None)
        before = self.cycle
        super().on_headers_complete()
        if self.cycle is not before:
            polite = _PoliteTransport(self.transport, self._outbox, self._close)
            self.cycle.transport = cast(asyncio.Transport, polite)
            self.cycle.scope["extensions"] = {EXTENSION: {"write": self._outbox.write_chunk}}

    def on_message_complete(self) -> None:
        self._has_come()
        super().on_message_complete()

    def send_400_response(self, msg: str) -> None:
        """uvicorn's answer to what it can't parse, in the same envelope as everything else."""
        if self._header_bytes > MAX_HEADER_BYTES:
            msg = f"The request's headers are larger than {MAX_HEADER_BYTES} bytes."
            self._refuse(b"431 Request Header Fields Too Large", InvalidRequest(msg, code="headers_too_large"))
        else:
            self._refuse(b"400 Bad Request", InvalidRequest(msg, code="invalid_http"))

    def _refuse(self, status: bytes, error: APIError) -> None:
        body = encode(error.envelope())
        headers = {"content-type": "application/json", "content-length": str(len(body)), "connection": "close"}
        fields = "".join(f"{name}: {value}\r\n" for name, value in (headers | error.headers).items())
        self._outbox.flush()
        self.transport.write(b"HTTP/1.1 " + status + b"\r\n" + fields.encode() + b"\r\n" + body)
        self._linger()

    def _close(self) -> None:
        """After an answer that says so."""
        self._outbox.flush()
        if self.cycle.more_body:
            self._linger()
        else:
            self.transport.close()

    def _linger(self) -> None:
        """A socket closed over unread bytes is reset, and the peer never reads why: they are read and dropped."""
        if self.transport.is_closing():
            return
        if self.transport.can_write_eof():
            self.transport.write_eof()
        self._is_refused = True
        self.flow.resume_reading()
        self.loop.call_later(LINGER, self.transport.close)

    def data_received(self, data: bytes) -> None:
        if not self._is_refused:
            super().data_received(data)

    def _await(self, seconds: float) -> None:
        if self._awaiting is None:
            self._awaiting = self.loop.call_later(seconds, self.transport.close)

    def _has_come(self) -> None:
        if self._awaiting is not None:
            self._awaiting.cancel()
            self._awaiting = None

    def _count(self, size: int) -> None:
        self._header_bytes += size
        if self._header_bytes > MAX_HEADER_BYTES:
            raise OverflowError  # ends the parsing: `send_400_response` is called

    # --- what is written

    def on_response_complete(self) -> None:
        self._outbox.flush()  # who closes a connection between answers asks for nothing that is unsent
        super().on_response_complete()
        if self.transport.is_closing():
            self._await_reader()
        elif self.cycle.response_complete:  # and not another one in its turn
            self.idle[self] = None
            if self.cycle.more_body:  # every byte of it would put off the keep-alive timeout
                self._await(self.bounds.header)

    def timeout_keep_alive_handler(self) -> None:
        super().timeout_keep_alive_handler()
        self._await_reader()

    def pause_writing(self) -> None:
        super().pause_writing()
        self._await_reader()

    def resume_writing(self) -> None:
        super().resume_writing()
        if not self.transport.is_closing():  # one that is takes nothing more: all of it has to go in time
            self._has_taken()

    def _await_reader(self) -> None:
        """What fills a buffer, or is left in it at the end, is taken in time, or dropped."""
        if self._writing is None:
            self._writing = self.loop.call_later(self.bounds.write + WRITE_GRACE, self.transport.abort)

    def _has_taken(self) -> None:
        if self._writing is not None:
            self._writing.cancel()
            self._writing = None
