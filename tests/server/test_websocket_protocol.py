"""Frames against a real socket: what uvicorn alone would keep in memory, or wait for for ever."""

from __future__ import annotations

import asyncio
import contextlib
import struct
from collections.abc import AsyncIterator

import pytest
import uvicorn
from starlette.types import Receive, Scope, Send

from server.http_protocol import Bounds
from server.websocket_protocol import BoundedWebSocketProtocol

TIMEOUT = 0.3
HANDSHAKE = (
    b"GET / HTTP/1.1\r\nHost: test\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
    b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n\r\n"
)
OPEN_TEXT = b"\x01\x81" + bytes(4) + b"a"  # a first part, and more to come
PING = b"\x89\xfd" + bytes(4) + b"p" * 125
unsent: list[int] = []


class Watched(BoundedWebSocketProtocol):
    def handle_ping(self) -> None:
        super().handle_ping()
        unsent.append(self.transport.get_write_buffer_size())


async def echo(scope: Scope, receive: Receive, send: Send) -> None:
    await receive()
    await send({"type": "websocket.accept"})
    while (message := await receive())["type"] == "websocket.receive":
        await send({"type": "websocket.send", "text": message["text"]})


@pytest.fixture
async def streams() -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
    """A connection that has shaken hands."""
    ws = Watched.within(Bounds(body=TIMEOUT, write=TIMEOUT))
    server = uvicorn.Server(uvicorn.Config(echo, port=0, ws=ws, lifespan="off", log_config=None))
    task = asyncio.create_task(server._serve())
    while not server.started:
        await asyncio.sleep(0.01)
    reader, writer = await asyncio.open_connection(
        "127.0.0.1", server.servers[0].sockets[0].getsockname()[1], limit=4096
    )
    writer.write(HANDSHAKE)
    await reader.readuntil(b"\r\n\r\n")
    yield reader, writer
    writer.transport.abort()
    server.should_exit = True
    await task


async def test_a_message_without_end_is_closed(streams: tuple[asyncio.StreamReader, asyncio.StreamWriter]) -> None:
    reader, writer = streams
    writer.write(OPEN_TEXT)
    async with asyncio.timeout(20):
        assert struct.pack("!H", 1008) in await reader.read()


async def test_a_message_in_parts_arrives(streams: tuple[asyncio.StreamReader, asyncio.StreamWriter]) -> None:
    reader, writer = streams
    writer.write(OPEN_TEXT + b"\x80\x81" + bytes(4) + b"b")
    await asyncio.sleep(2 * TIMEOUT)
    assert await reader.readexactly(4) == b"\x81\x02ab"


async def test_pings_of_a_client_that_does_not_read(streams: tuple[asyncio.StreamReader, asyncio.StreamWriter]) -> None:
    """They are not answered into memory, and in the end the connection is."""
    reader, writer = streams
    unsent.clear()
    reader._transport.pause_reading()  # type: ignore[attr-defined]
    with contextlib.suppress(ConnectionError):
        async with asyncio.timeout(60):
            while not writer.is_closing():
                writer.write(PING * 1000)
                await writer.drain()
    assert max(unsent) < 2 * 2**20
