"""uvicorn's HTTP protocol with the bounds that it lacks: on the time and the size of a request's headers."""

from __future__ import annotations

import asyncio
from typing import ClassVar

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from server.errors import InvalidRequest
from server.wire.common import encode

MAX_HEADER_BYTES = 64 * 1024  # of all of them together, the URL included


class BoundedHTTPProtocol(HttpToolsProtocol):
    """A connection whose headers do not arrive in time is closed, whether it sent nothing or trickles them.

    Between requests uvicorn's own keep-alive timeout rules; it ends with the first byte of the next one.
    """

    header_timeout: ClassVar[float] = 10.0  # seconds

    _timer: asyncio.TimerHandle | None = None
    _header_bytes = 0

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
        """What is no HTTP is told so in the same envelope as everything else."""
        body = encode(InvalidRequest(msg, code="invalid_http").envelope())
        head = f"HTTP/1.1 400 Bad Request\r\ncontent-type: application/json\r\ncontent-length: {len(body)}\r\n"
        self.transport.write(head.encode() + b"connection: close\r\n\r\n" + body)
        self.transport.close()

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
            self.transport.abort()
