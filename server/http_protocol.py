"""uvicorn's HTTP protocol with the bounds that it lacks: on the time and the size of a request's headers."""

from __future__ import annotations

import asyncio
from typing import ClassVar

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from server.errors import InvalidRequest
from server.wire.common import encode

MAX_HEADER_BYTES = 64 * 1024  # of all of them together, the URL included
LINGER = 1.0  # seconds in which a refused client can read its answer


class BoundedHTTPProtocol(HttpToolsProtocol):
    """A connection whose headers do not arrive in time is closed, whether it sent nothing or trickles them.

    Between requests uvicorn's own keep-alive timeout rules; it ends with the first byte of the next one.
    """

    header_timeout: ClassVar[float] = 10.0  # seconds

    _timer: asyncio.TimerHandle | None = None
    _header_bytes = 0
    _is_refused = False

    @classmethod
    def with_timeout(cls, seconds: float) -> type[BoundedHTTPProtocol]:
        """uvicorn takes a class, not an object."""
        return type(cls.__name__, (cls,), {"header_timeout": seconds})

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._await_headers()

    def connection_lost(self, exc: Exception | None) -> None:
        self._headers_came()
        super().connection_lost(exc)

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self._header_bytes = 0
        self._await_headers()

    def on_url(self, url: bytes) -> None:
        super().on_url(url)
        self._count(len(url))

    def on_header(self, name: bytes, value: bytes) -> None:
        super().on_header(name, value)
        self._count(len(name) + len(value))

    def on_headers_complete(self) -> None:
        self._headers_came()
        super().on_headers_complete()

    def send_400_response(self, msg: str) -> None:
        """uvicorn's answer to what it can't parse, in the same envelope as everything else."""
        if self._header_bytes > MAX_HEADER_BYTES:
            msg = f"The request's headers are larger than {MAX_HEADER_BYTES} bytes."
            self._refuse(b"431 Request Header Fields Too Large", InvalidRequest(msg, code="headers_too_large"))
        else:
            self._refuse(b"400 Bad Request", InvalidRequest(msg, code="invalid_http"))

    def _refuse(self, status: bytes, error: InvalidRequest) -> None:
        body = encode(error.envelope())
        fields = b"content-type: application/json\r\ncontent-length: %d\r\nconnection: close\r\n" % len(body)
        self.transport.write(b"HTTP/1.1 " + status + b"\r\n" + fields + b"\r\n" + body)
        if self.transport.can_write_eof():
            self.transport.write_eof()
        self._is_refused = True
        self.loop.call_later(LINGER, self.transport.close)

    def data_received(self, data: bytes) -> None:
        """A socket closed over unread bytes is reset, and the peer never reads why: they are read and dropped."""
        if not self._is_refused:
            super().data_received(data)

    def _await_headers(self) -> None:
        if self._timer is None:
            self._timer = self.loop.call_later(self.header_timeout, self.transport.close)

    def _headers_came(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _count(self, size: int) -> None:
        self._header_bytes += size
        if self._header_bytes > MAX_HEADER_BYTES:
            raise OverflowError  # ends the parsing: `send_400_response` is called
