"""Clients of every kind, that come at random."""

from __future__ import annotations

import asyncio
import contextlib
import json
import random
import socket
from collections import Counter
from typing import Any

import httpx
import numpy as np
import websockets

from engines.fake_vectors import fake_vector
from tests.clients import Tenant
from tests.faults.loads import post_head
from tests.faults.visits import End, Visit, random_visit

MODEL = "echo"
SLOW = 0.01  # seconds a line
SMALL_BUFFER = [(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)]
MALFORMED: list[tuple[str, bytes]] = [
    ("/v1/chat/completions", b""),
    ("/v1/chat/completions", b'{"model": "echo", "messages": ['),
    ("/v1/chat/completions", b'{"model": "echo", "messages": []}'),
    ("/v1/chat/completions", b'{"model": "echo", "messages": [{"role": "user", "content": "x"}], "n": 1000}'),
    ("/v1/chat/completions", b'{"model": "nobody", "messages": [{"role": "user", "content": "x"}]}'),
    ("/v1/chat/completions", b'{"model": "echo", "messages": [{"role": "user", "content": "\\ud800"}]}'),
    ("/v1/responses", b'{"model": "echo", "input": 5}'),
    ("/v1/responses", b'{"model": "echo", "input": "x", "previous_response_id": "resp_none"}'),
    ("/v1/embeddings", b'{"model": "echo", "input": [[-1]]}'),
    ("/v1/embeddings", b"[" * 10_000),
]


class Crowd:
    """Visits that run. `broken` are those whose connection failed, or whose answer is none."""

    def __init__(self, tenant: Tenant, rng: random.Random) -> None:
        self._tenant = tenant
        self._rng = rng
        self.visits: list[Visit] = []
        self.broken: list[str] = []
        self.refused: Counter[int] = Counter()  # what malformed requests were answered

    async def come(self, seconds: float, rate: float) -> None:
        """At random moments, `rate` a second, for so long; returns when all have left."""
        loop = asyncio.get_running_loop()
        ends = loop.time() + seconds
        limits, url = httpx.Limits(max_connections=None), self._tenant.server.root_url
        slow = httpx.AsyncHTTPTransport(limits=limits, socket_options=SMALL_BUFFER)
        async with (
            self._tenant.client() as client,
            httpx.AsyncClient(base_url=url, headers=self._tenant.headers, timeout=120, transport=slow) as slow_client,
            asyncio.TaskGroup() as tasks,
        ):
            while loop.time() < ends:
                visit = random_visit(self._rng, len(self.visits))
                self.visits.append(visit)
                tasks.create_task(self._one(slow_client if visit.is_slow else client, visit))
                await asyncio.sleep(self._rng.expovariate(rate))

    async def _one(self, client: httpx.AsyncClient, visit: Visit) -> None:
        try:
            async with asyncio.timeout(visit.leaves_after):
                await self._ask(client, visit)
        except Exception as error:  # whatever it is, the others go on
            if isinstance(error, TimeoutError) and visit.leaves_after is not None:
                visit.end = visit.end or End.LEFT
                return
            self.broken.append(f"{error!r} {visit}")

    async def _ask(self, client: httpx.AsyncClient, visit: Visit) -> None:
        match visit.kind:
            case "chat" | "chat stream":
                await _chat(client, visit)
            case "chat socket":
                await self._chat_socket(visit)
            case "response" | "response stream":
                await _response(client, visit)
            case "vectors":
                await _vectors(client, visit)
            case "malformed":
                path, body = MALFORMED[visit.max_tokens % len(MALFORMED)]
                answer = await client.post(path, content=body, headers={"Content-Type": "application/json"})
                self.refused[answer.status_code] += 1
                visit.close(End.FAILED)
            case "noise":
                await self._noise(visit)

    async def _chat_socket(self, visit: Visit) -> None:
        url = self._tenant.server.websocket_url
        async with websockets.connect(url, additional_headers=self._tenant.headers) as connection:
            await connection.send(json.dumps(_chat_body(visit)))
            while visit.end is None:
                visit.status = 200  # of this request; the connection is another matter
                visit.take_chat(json.loads(await connection.recv()))
                if visit.finish and visit.usage:
                    visit.close(End.WHOLE)

    async def _noise(self, visit: Visit) -> None:
        """Half a request, or none; the server closes, or the client does."""
        url = httpx.URL(self._tenant.server.root_url)
        _, writer = await asyncio.open_connection(url.host, url.port)
        noise = self._rng.randbytes(visit.max_tokens)
        with contextlib.suppress(OSError):
            writer.write(self._rng.choice([noise, post_head(500, self._tenant.key) + noise, post_head(5)[:40]]))
            await writer.drain()
            await asyncio.sleep(0.2)
        writer.close()
        visit.close(End.FAILED)


def _chat_body(visit: Visit) -> dict[str, Any]:
    body = {"model": MODEL, "messages": [{"role": "user", "content": visit.prompt}], "max_tokens": visit.max_tokens}
    if visit.kind != "chat":
        body |= {"stream": True, "stream_options": {"include_usage": True}}
    return body | visit.options


async def _chat(client: httpx.AsyncClient, visit: Visit) -> None:
    async with client.stream("POST", "/v1/chat/completions", json=_chat_body(visit)) as answer:
        is_streamed = visit.open(answer) and visit.kind == "chat stream"
        if not is_streamed:
            visit.take_chat(json.loads(await answer.aread()))
            if visit.end is None:
                visit.close(End.WHOLE)
            return
        async for line in answer.aiter_lines():
            if line == "data: [DONE]":
                visit.close(End.WHOLE)
            elif line.startswith("data: "):
                visit.take_chat(json.loads(line[6:]))
                if visit.is_slow:
                    await asyncio.sleep(SLOW)


async def _response(client: httpx.AsyncClient, visit: Visit) -> None:
    body = {"model": MODEL, "input": visit.prompt, "max_output_tokens": visit.max_tokens, **visit.options}
    body |= {"stream": visit.kind == "response stream", "store": visit.max_tokens % 2 == 0}
    async with client.stream("POST", "/v1/responses", json=body) as answer:
        if not visit.open(answer):
            visit.fail(json.loads(await answer.aread())["error"])
        elif visit.kind == "response":
            visit.take_response(json.loads(await answer.aread()))
        else:
            async for line in answer.aiter_lines():
                if line.startswith("data: {"):
                    visit.take_event(json.loads(line[6:]))


async def _vectors(client: httpx.AsyncClient, visit: Visit) -> None:
    texts = [f"{visit.prompt} {index}" for index in range(1 + visit.max_tokens % 4)]
    answer = await client.post("/v1/embeddings", json={"model": MODEL, "input": texts})
    if not visit.open(answer):
        visit.fail(answer.json()["error"])
        return
    vectors = [np.float32(item["embedding"]) for item in answer.json()["data"]]
    assert np.array_equal(vectors, [fake_vector(list(text.encode())) for text in texts])
    visit.take_usage(answer.json()["usage"], "prompt_tokens", "completion_tokens")
    assert visit.usage == (sum(map(len, texts)), 0)
    visit.close(End.WHOLE)
