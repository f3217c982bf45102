"""Thousands of connections from one test, and what the server's process says of its memory."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import httpx

from tests.penstock_process import API_KEY, Address

WAVE = 250  # connections that are made at a time: the server's backlog is 2048


def rss_kib(pid: int) -> int:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmRSS"))


def post(body: dict[str, Any], key: str = API_KEY) -> bytes:
    """A whole request."""
    data = json.dumps(body).encode()
    return post_head(len(data), key) + data


def post_head(length: int, key: str = API_KEY) -> bytes:
    return (
        "POST /v1/chat/completions HTTP/1.1\r\nHost: test\r\nContent-Type: application/json\r\n"
        f"Authorization: Bearer {key}\r\nContent-Length: {length}\r\n\r\n"
    ).encode()


class Reader(asyncio.Protocol):
    """One request and its answer, which is not parsed: so cheap that a test can have ten thousand."""

    def __init__(self, request: bytes) -> None:
        self._request = request
        self.head = b""
        self.tail = b""
        self.arrivals: list[float] = []
        self.keeps_times = False
        self.is_closed = False

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        self.transport = transport
        transport.write(self._request)

    def data_received(self, data: bytes) -> None:
        self.head = self.head or data[:200]
        self.tail = (self.tail + data)[-200:]
        if self.keeps_times:
            self.arrivals.append(time.monotonic())

    def connection_lost(self, exc: Exception | None) -> None:
        self.is_closed = True

    @property
    def has_begun(self) -> bool:
        """Its answer is a stream, as it should be."""
        return self.head.startswith(b"HTTP/1.1 200 ")

    @property
    def is_done(self) -> bool:
        """Its stream has come to its end."""
        return b"data: [DONE]" in self.tail

    @property
    def gaps(self) -> list[float]:
        """Seconds between what arrived."""
        return [then - now for now, then in zip(self.arrivals, self.arrivals[1:], strict=False)]


async def open_readers(server: Address, requests: Sequence[bytes]) -> list[Reader]:
    """All of them connected; they have asked."""
    url, loop = httpx.URL(server.root_url), asyncio.get_running_loop()
    readers: list[Reader] = []
    for first in range(0, len(requests), WAVE):
        made = [
            loop.create_connection(lambda request=request: Reader(request), url.host, url.port)  # type: ignore[misc]
            for request in requests[first : first + WAVE]
        ]
        readers += [reader for _, reader in await asyncio.gather(*made)]
    return readers


async def all_of(readers: Sequence[Reader], condition: str, patience: float) -> float:
    """Seconds until the property `condition` holds for all of them; AssertionError when it does not in time."""
    started = time.monotonic()
    while not all(getattr(reader, condition) for reader in readers):
        missing = [reader for reader in readers if not getattr(reader, condition)]
        assert time.monotonic() - started < patience, f"{len(missing)} of {len(readers)}: {missing[0].head!r}"
        await asyncio.sleep(0.05)
    return time.monotonic() - started


async def leave(readers: Sequence[Reader]) -> None:
    """Without a word; their sockets are closed when this returns."""
    for reader in readers:
        reader.transport.abort()
    await all_of(readers, "is_closed", 60)


def percentile(values: Sequence[float], share: float) -> float:
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))]
