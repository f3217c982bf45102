"""HTTP/1.1 as bare as it can be: the generator's own time must not hide what is measured.

One request at a time on a kept-alive connection, of prepared bytes; the answer is read to its end and parsed by whoever
wants to, afterwards.
"""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Self, cast

from loadtest.records import BenchError

HEAD_END = b"\r\n\r\n"
CHUNKS_END = b"0\r\n\r\n"
_LENGTH = re.compile(rb"\r\ncontent-length: *(\d+)", re.IGNORECASE)


def post(path: str, host: str, key: str, body: object) -> bytes:
    """A whole request."""
    data = json.dumps(body).encode()
    head = (
        f"POST {path} HTTP/1.1\r\nhost: {host}\r\nauthorization: Bearer {key}\r\n"
        f"content-type: application/json\r\ncontent-length: {len(data)}\r\n\r\n"
    )
    return head.encode() + data


@dataclass(slots=True, frozen=True)
class RawAnswer:
    """As it came: `body` is still chunked where `is_chunked`. Times by the loop's clock."""

    status: int
    body: bytes
    is_chunked: bool

    @property
    def content(self) -> bytes:
        return b"".join(_chunks(self.body)) if self.is_chunked else self.body

    @property
    def json(self) -> Any:
        return json.loads(self.content)

    @property
    def events(self) -> list[Any]:
        """Of a stream: what its `data:` lines say, without [DONE]."""
        lines = self.content.split(b"\n")
        data = (line.removeprefix(b"data: ").strip() for line in lines if line.startswith(b"data: "))
        return [json.loads(each) for each in data if each != b"[DONE]"]


def _chunks(body: bytes) -> Iterator[bytes]:
    position = 0
    while position < len(body):
        line_end = body.index(b"\r\n", position)
        size = int(body[position:line_end].split(b";")[0], 16)
        yield body[line_end + 2 : line_end + 2 + size]
        position = line_end + 2 + size + 2


class RawConnection(asyncio.Protocol):
    def __init__(self) -> None:
        self._pieces: list[bytes] = []
        self._answer: asyncio.Future[RawAnswer] | None = None
        self._missing: int | None = None  # bytes of the body; None: until the last chunk, or no head yet
        self._status = 0

    @classmethod
    async def connect(cls, host: str, port: int) -> Self:
        _, protocol = await asyncio.get_running_loop().create_connection(cls, host, port)
        return protocol

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)

    async def ask(self, request: bytes) -> RawAnswer:
        """Raises BenchError when the connection ends first."""
        if self._transport.is_closing():
            raise BenchError("the server has closed a connection")
        self._pieces, self._status = [], 0
        self._answer = asyncio.get_running_loop().create_future()
        self._transport.write(request)
        return await self._answer

    def close(self) -> None:
        self._transport.close()

    def data_received(self, data: bytes) -> None:
        if not self._status:
            data = b"".join([*self._pieces, data])
            if HEAD_END not in data:
                self._pieces = [data]
                return
            head, data = data.split(HEAD_END, 1)
            self._pieces, self._status = [], int(head.split(b" ", 2)[1])
            length = _LENGTH.search(head)
            self._missing = int(length[1]) if length else None
        self._pieces.append(data)
        if self._missing is not None:
            self._missing -= len(data)
        if self._is_complete(data):
            self._finish()

    def _is_complete(self, data: bytes) -> bool:
        """JSON and event streams hold no CR: the last chunk's bytes stand nowhere else."""
        if self._missing is not None:
            return self._missing <= 0
        last = data if len(data) >= len(CHUNKS_END) else b"".join(self._pieces[-len(CHUNKS_END) :])
        return last.endswith(CHUNKS_END)

    def _finish(self) -> None:
        assert self._answer is not None
        self._answer.set_result(RawAnswer(self._status, b"".join(self._pieces), self._missing is None))
        self._answer = None

    def connection_lost(self, error: Exception | None) -> None:
        if self._answer is not None and not self._answer.done():
            self._answer.set_exception(BenchError(f"the server closed a connection in mid-answer: {error}"))
