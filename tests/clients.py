"""Clients that keep what they saw, accounts with books of their own, and ways to leave without a word."""

from __future__ import annotations

import asyncio
import contextlib
import json
import secrets
import socket
import ssl
import struct
import time
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import httpx
import websockets

from engines.fake_tokens import fake_answer
from tests.penstock_process import ADMIN_KEY, Address

Door = Literal["json", "sse", "ws"]
DOORS: tuple[Door, ...] = ("json", "sse", "ws")
PATIENCE = 30.0  # seconds; a bound on waiting, never a measure of speed


def expected_text(prompt: str, max_tokens: int) -> str:
    return bytes(fake_answer(list(prompt.encode()), max_tokens)).decode()


def chat(model: str, prompt: str, max_tokens: int, **fields: object) -> dict[str, Any]:
    return {"model": model, "messages": [{"role": "user", "content": prompt}], "max_tokens": max_tokens, **fields}


async def until(condition: Callable[[], bool], what: str = "it", patience: float = PATIENCE) -> None:
    """Wait for a condition. It may ask the server: it is called in a thread."""
    deadline = time.monotonic() + patience
    while not await asyncio.to_thread(condition):
        assert time.monotonic() < deadline, f"{what} did not happen"
        await asyncio.sleep(0.05)


async def steady(value: Callable[[], float]) -> float:
    """A worker's count once it has stopped changing: workers report ten times a second."""
    last = await asyncio.to_thread(value)
    while True:
        await asyncio.sleep(0.3)
        if (now := await asyncio.to_thread(value)) == last:
            return now
        last = now


@dataclass
class Seen:
    """All that one client saw of its answer. `body` is what it had asked."""

    body: dict[str, Any]
    status: int = 0
    headers: httpx.Headers = field(default_factory=httpx.Headers)
    text: str = ""
    finish_reason: str | None = None
    error: dict[str, Any] | None = None
    usage: dict[str, Any] | None = None
    done: bool = False  # [DONE]
    started: asyncio.Event = field(default_factory=asyncio.Event)  # the first text is here

    @property
    def prompt(self) -> str:
        content: str = self.body["messages"][0]["content"]
        return content

    @property
    def num_tokens(self) -> int:
        """What it has to be charged, if all of it came from the fake engine: a token is a byte."""
        return len(self.prompt.encode()) + len(self.text) if self.text else 0

    @property
    def is_right(self) -> bool:
        """What came is the beginning of the one right answer, or all of it where it ended as it should."""
        whole = self.finish_reason is None or len(self.text) == self.body["max_tokens"]
        return whole and self.text == expected_text(self.prompt, len(self.text))

    def take(self, chunk: dict[str, Any]) -> None:
        if "error" in chunk:
            assert self.error is None, "two errors"
            self.error = chunk["error"]
            return
        assert self.error is None, "more after an error"
        self.usage = chunk.get("usage") or self.usage
        for choice in chunk["choices"]:
            part = choice.get("delta") or choice.get("message") or {}
            self.text += part.get("content") or ""
            self.finish_reason = choice["finish_reason"] or self.finish_reason
        if self.text:
            self.started.set()


@dataclass
class Tenant:
    """An account of its own, its key, and where it asks."""

    server: Address
    name: str
    id: str
    key: str

    @classmethod
    def create(cls, server: Address, plan: str = "default") -> Tenant:
        name = f"tenant-{secrets.token_hex(4)}"
        with server.http(ADMIN_KEY) as admin:
            account = admin.post("/admin/v1/accounts", json={"name": name, "plan": plan}).raise_for_status().json()
            key = admin.post("/admin/v1/keys", json={"account": name}).raise_for_status().json()
        return cls(server, name, account["id"], key["key"])

    @property
    def headers(self) -> dict[str, str]:
        return {"Authorization": f"Bearer {self.key}"}

    def at(self, server: Address) -> Tenant:
        """The same account, asking elsewhere."""
        return replace(self, server=server)

    def client(self) -> httpx.AsyncClient:
        limits, url, trust = httpx.Limits(max_connections=None), self.server.root_url, self.server.trust
        return httpx.AsyncClient(base_url=url, headers=self.headers, timeout=60, limits=limits, verify=trust)

    def status(self, model: str = "echo") -> int:
        """Of one short request, now."""
        with self.server.http(self.key) as client:
            return client.post("/v1/chat/completions", json=chat(model, "hello", 1)).status_code

    async def ask(self, door: Door, client: httpx.AsyncClient, seen: Seen) -> Seen:
        """One request to its end."""
        if door == "ws":
            await self._ask_websocket(seen)
        elif door == "sse":
            await self._ask_stream(client, seen)
        else:
            answer = await client.post("/v1/chat/completions", json=seen.body)
            seen.status, seen.headers = answer.status_code, answer.headers
            seen.take(answer.json())
        return seen

    async def _ask_stream(self, client: httpx.AsyncClient, seen: Seen) -> None:
        async with client.stream("POST", "/v1/chat/completions", json=seen.body | {"stream": True}) as answer:
            seen.status, seen.headers = answer.status_code, answer.headers
            if seen.status != 200:
                seen.take(json.loads(await answer.aread()))
                return
            async for line in answer.aiter_lines():
                assert not (line and seen.done), "more after [DONE]"
                if line == "data: [DONE]":
                    seen.done = True
                elif line.startswith("data: "):
                    seen.take(json.loads(line[6:]))

    async def _ask_websocket(self, seen: Seen) -> None:
        url, trust = self.server.websocket_url, self.server.trust
        context = trust if isinstance(trust, ssl.SSLContext) else None
        async with websockets.connect(url, ssl=context, additional_headers=self.headers) as connection:
            await connection.send(json.dumps(seen.body))
            while seen.finish_reason is None and seen.error is None:
                seen.take(json.loads(await connection.recv()))

    async def usage(self) -> dict[str, Any]:
        """What its rows add up to, by the admin API; zeros where there is none."""
        async with self.client() as client:
            answer = await client.get(
                "/admin/v1/usage",
                params={"account": self.name},
                headers={"Authorization": f"Bearer {ADMIN_KEY}"},
            )
        rows = answer.raise_for_status().json()["data"]
        return rows[0] if rows else {"requests": 0, "prompt_tokens": 0, "completion_tokens": 0}

    async def rows(self, count: int) -> dict[str, Any]:
        """Its usage once so many rows are written: they come in batches."""
        deadline = time.monotonic() + PATIENCE
        while (usage := await self.usage())["requests"] < count:
            assert time.monotonic() < deadline, f"{usage} instead of {count} rows"
            await asyncio.sleep(0.1)
        assert usage["requests"] == count
        return usage

    async def charged(self, model: str, requests_limit: int, tokens_limit: int) -> tuple[int, int]:
        """Requests and tokens charged so far to an account with day limits alone, read from a request's headers.

        That request costs one of the one and two of the other, which are not counted here, but the next time.
        """
        async with self.client() as client:
            answer = await client.post("/v1/chat/completions", json=chat(model, "x", 1))
        assert answer.status_code == 200, answer.text
        remaining_requests = int(answer.headers["x-ratelimit-remaining-requests"])
        remaining_tokens = int(answer.headers["x-ratelimit-remaining-tokens"])
        return requests_limit - remaining_requests - 1, tokens_limit - remaining_tokens - 2


class RawClient:
    """A connection whose client can vanish: it reads only as much as it is told to."""

    def __init__(self, tenant: Tenant, door: Door, body: dict[str, Any]) -> None:
        url = httpx.URL(tenant.server.root_url)
        self._socket = socket.create_connection((url.host, url.port or 80), timeout=PATIENCE)
        if isinstance(tenant.server.trust, ssl.SSLContext):
            self._socket = tenant.server.trust.wrap_socket(self._socket, server_hostname=url.host)
        request = _upgrade(tenant) if door == "ws" else _post(tenant, body | {"stream": door == "sse"})
        self._socket.sendall(request)
        if door == "ws":
            self.read_until(b"\r\n\r\n")
            self._socket.sendall(_text_frame(json.dumps(body).encode()))

    def read_until(self, mark: bytes) -> None:
        seen = b""
        while mark not in seen:
            data = self._socket.recv(65536)
            assert data, f"the connection ended: {seen!r}"
            seen = (seen + data)[-65536:]

    def vanish(self, *, reset: bool) -> None:
        """Close without a goodbye; with a reset even what was sent is forgotten."""
        if reset:
            self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self._socket.close()


def _post(tenant: Tenant, body: dict[str, Any]) -> bytes:
    data = json.dumps(body).encode()
    head = (
        "POST /v1/chat/completions HTTP/1.1\r\nHost: test\r\n"
        f"Authorization: Bearer {tenant.key}\r\nContent-Type: application/json\r\nContent-Length: {len(data)}\r\n\r\n"
    )
    return head.encode() + data


def _upgrade(tenant: Tenant) -> bytes:
    head = (
        "GET /v1/chat/completions HTTP/1.1\r\nHost: test\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
        f"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n"
        f"Authorization: Bearer {tenant.key}\r\n\r\n"
    )
    return head.encode()


def _text_frame(payload: bytes) -> bytes:
    """RFC 6455, section 5.2; masked with zeros."""
    size = len(payload)
    length = bytes([0x80 | size]) if size < 126 else bytes([0x80 | 126]) + struct.pack(">H", size)
    return b"\x81" + length + bytes(4) + payload


@contextlib.asynccontextmanager
async def crowd(
    tenant: Tenant, model: str, doors: Sequence[Door], max_tokens: int, **fields: object
) -> AsyncIterator[list[Seen]]:
    """One request a door, all at once, each with a prompt of its own. All have ended when the body is left."""
    async with tenant.client() as client, asyncio.TaskGroup() as tasks:
        everybody = [
            Seen(chat(model, f"{tenant.name} asks {index}", max_tokens, **fields)) for index in range(len(doors))
        ]
        for door, seen in zip(doors, everybody, strict=True):
            tasks.create_task(tenant.ask(door, client, seen))
        yield everybody
