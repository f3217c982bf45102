"""Slow and oversized headers, against a real socket."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator

import pytest
import uvicorn
from starlette.types import Receive, Scope, Send

from server.http_protocol import MAX_HEADER_BYTES, BoundedHTTPProtocol, Bounds

TIMEOUT = 0.3


async def hello(scope: Scope, receive: Receive, send: Send) -> None:
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"5")]})
    await send({"type": "http.response.body", "body": b"hello"})


@pytest.fixture
async def port() -> AsyncIterator[int]:
    http = BoundedHTTPProtocol.within(Bounds(header=TIMEOUT))
    server = uvicorn.Server(uvicorn.Config(hello, port=0, http=http, lifespan="off", log_config=None))
    task = asyncio.create_task(server._serve())
    while not server.started:
        await asyncio.sleep(0.01)
    yield server.servers[0].sockets[0].getsockname()[1]
    server.should_exit = True
    await task


async def read_to_end(port: int, *pieces: bytes, pause: float = 0.0) -> bytes:
    """What the server answers before it closes the connection; TimeoutError if it never does."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        async with asyncio.timeout(20):
            for piece in pieces:
                writer.write(piece)
                await asyncio.sleep(pause)
            return await reader.read()
    except ConnectionError:
        return b""
    finally:
        writer.close()


async def test_a_whole_request_is_answered(port: int) -> None:
    answer = await read_to_end(port, b"GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
    assert answer.endswith(b"hello")


async def test_a_connection_that_sends_nothing_is_closed(port: int) -> None:
    assert await read_to_end(port) == b""


async def test_trickled_headers_are_closed(port: int) -> None:
    pieces = [b"GET / HTTP/1.1\r\n"] + [b"X-Header: 1\r\n"] * 50
    assert await read_to_end(port, *pieces, pause=TIMEOUT / 10) == b""


async def test_a_second_request_has_its_own_time(port: int) -> None:
    whole = b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"
    answer = await read_to_end(port, whole, b"GET / HTTP/1.1\r\nX: 1\r\n", pause=TIMEOUT / 5)
    assert answer.endswith(b"hello")
    assert answer.count(b"200 OK") == 1


async def test_a_body_that_goes_on_after_its_answer_is_closed(port: int) -> None:
    """Each byte would put off uvicorn's own timeout."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(b"POST / HTTP/1.1\r\nContent-Length: 1000000\r\n\r\n")
    await reader.readuntil(b"hello")
    async with asyncio.timeout(20):
        while not writer.is_closing():
            writer.write(b"x")
            await asyncio.sleep(TIMEOUT / 10)


async def test_an_answer_before_the_end_of_its_body_can_be_read(port: int) -> None:
    """Though the connection is closed, and much of the body has come by then: a reset would have lost the answer."""
    head = b"POST / HTTP/1.1\r\nConnection: close\r\nContent-Length: 10000000\r\n\r\n"
    answer = await read_to_end(port, head + b"x" * 1_000_000, b"x" * 1_000_000, pause=TIMEOUT / 3)
    assert answer.endswith(b"hello")


async def test_oversized_headers_are_refused(port: int) -> None:
    line = b"X-Header: " + b"a" * 1000 + b"\r\n"
    lines = line * (MAX_HEADER_BYTES // len(line) + 100)
    answer = await read_to_end(port, b"GET / HTTP/1.1\r\n" + lines)
    head, body = answer.split(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 431 ")
    assert json.loads(body)["error"]["code"] == "headers_too_large"


async def test_what_is_no_http_gets_the_envelope(port: int) -> None:
    answer = await read_to_end(port, b"\x16\x03\x01 not http\r\n\r\n")
    head, body = answer.split(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 400")
    assert json.loads(body)["error"]["code"] == "invalid_http"
