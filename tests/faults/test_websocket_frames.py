"""Frames that are malformed below their messages, at random: each connection is answered or closed, and no more."""

from __future__ import annotations

import asyncio
import contextlib
import json
import random
import struct

import httpx

from tests.clients import chat
from tests.faults.loads import rss_kib
from tests.penstock_process import API_KEY, PenstockProcess
from tests.scale import cut, publish

SEQUENCES = cut(300, 10_000)
AT_ONCE = 16
PATIENCE = 60.0
TEXT, BINARY, CONTINUATION, CLOSE, PING, PONG = 1, 2, 0, 8, 9, 10
HANDSHAKE = (
    "GET /v1/chat/completions HTTP/1.1\r\nHost: test\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
    "Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n"
    f"Authorization: Bearer {API_KEY}\r\n\r\n"
).encode()
GOOD = json.dumps(chat("echo", "hello", 1)).encode()
PAYLOADS = [
    b"",
    b"{}",
    b"\xff\xfe",
    b"[" * 3000,
    GOOD,
    GOOD[:-3],
    GOOD.replace(b"echo", b"\xed\xa0\x80"),
    b"\x00" * 125,
]


def frame(
    opcode: int, payload: bytes, *, fin: bool = True, mask: bytes = b"\x01\x02\x03\x04", reserved: int = 0
) -> bytes:
    size = len(payload)
    if size < 126:
        length = bytes([size])
    else:
        length = b"\x7e" + struct.pack("!H", size) if size < 2**16 else b"\x7f" + struct.pack("!Q", size)
    masked = bytes(byte ^ mask[i % 4] for i, byte in enumerate(payload)) if mask else payload
    return bytes([fin << 7 | reserved << 4 | opcode, bool(mask) << 7 | length[0]]) + length[1:] + mask + masked


def malformed(rng: random.Random) -> bytes:
    """A few frames of any kind, and then some of their bytes changed, lost, doubled or cut off."""
    data = bytearray()
    for _ in range(rng.randint(1, 6)):
        opcode = rng.choice([TEXT, BINARY, CONTINUATION, CLOSE, PING, PONG, rng.randrange(16)])
        mask = b"" if rng.random() < 0.1 else rng.randbytes(4)
        reserved = rng.choice([0, 0, 0, 4, rng.randrange(8)])
        data += frame(opcode, rng.choice(PAYLOADS), fin=rng.random() < 0.7, mask=mask, reserved=reserved)
    for _ in range(rng.choice([0, 0, 1, 3])):
        at = rng.randrange(max(len(data), 1))
        match rng.randrange(4):
            case 0:
                data[at : at + 1] = rng.randbytes(1)
            case 1:
                del data[at : at + 1]
            case 2:
                data[at:at] = data[at : at + 8]
            case 3:
                del data[max(at, 1) :]
    return bytes(data)


async def converse(server: PenstockProcess, data: bytes) -> bytes:
    """What the server answers before it closes the connection: it is asked to by a last frame, if it still listens."""
    url = httpx.URL(server.root_url)
    reader, writer = await asyncio.open_connection(url.host, url.port)
    answer = bytearray()
    try:
        writer.write(HANDSHAKE)
        assert (await reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 101 ")
        writer.write(data + frame(CLOSE, b"\x03\xe8"))
        with contextlib.suppress(OSError):  # it is closed already
            writer.write_eof()  # where the last frame was taken for a part of another one
        async with asyncio.timeout(PATIENCE):
            while some := await reader.read(65536):
                answer += some
    except ConnectionError:  # it was closed before all of it was sent
        pass
    finally:
        writer.close()
    return bytes(answer)


async def test_any_frames_end_in_order(server: PenstockProcess) -> None:
    seeds, workers, before = iter(range(SEQUENCES)), server.worker_pids(), rss_kib(server.pid)

    async def some() -> int:
        num_closed = 0
        for seed in seeds:
            answer = await converse(server, malformed(random.Random(seed)))
            num_closed += b"\x88" in answer
        return num_closed

    num_closed = sum(await asyncio.gather(*[some() for _ in range(AT_ONCE)]))
    assert server.worker_pids() == workers
    with server.http() as client:
        assert client.post("/v1/chat/completions", json=chat("echo", "hello", 1)).status_code == 200
    assert "Traceback" not in server.log.read_text()
    grown = (rss_kib(server.pid) - before) / 1024
    publish(17, "malformed WebSocket sequences", sequences=SEQUENCES, closed_with_a_code=num_closed, MB_more=grown)


async def test_a_message_above_the_limit(server: PenstockProcess) -> None:
    """1 MiB, in one frame, by its length alone, or in parts."""
    part, size = 2**16, 2**20 + 1
    whole = frame(TEXT, b"x" * size)
    announced = bytes([0x81, 0xFF]) + struct.pack("!Q", size) + bytes(4)
    parts = b"".join(frame(CONTINUATION if i else TEXT, b"x" * part, fin=False) for i in range(17))
    for data in (whole, announced, parts):
        assert struct.pack("!H", 1009) in await converse(server, data)


async def test_parts_without_end(server: PenstockProcess) -> None:
    """Empty ones: their bytes alone would never be too many."""
    data = frame(TEXT, b"", fin=False) + frame(CONTINUATION, b"", fin=False) * 100_000
    assert struct.pack("!H", 1009) in await converse(server, data)
