"""The whole application in this process, in front of a worker of its own: what a socket would only slow down."""

from __future__ import annotations

import asyncio
import contextlib
import json
import tempfile
from collections.abc import AsyncIterator, Iterable, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any, cast
from urllib.parse import unquote

from starlette.types import ASGIApp, Message, Scope

from batching.supervisor import WorkerSupervisor
from server.app import create_app
from server.metrics import Metrics
from server.registry import Registry
from server.services import Services, first_keys, opened_store, running
from server.settings import load
from server.store.credentials import issue_key
from server.store.keys import KeySpec
from server.store.records import KeyKind
from tests.penstock_process import ADMIN_KEY, API_KEY

PATIENCE = 60.0  # seconds for one answer, on a machine that others use too
MODELS = """
[[models]]
name = "echo"
engine = "fake"
max_model_len = 4096

[[models]]
name = "vectors"
engine = "fake"
task = "embed"
max_model_len = 2048

[[models]]
name = "pairs"
engine = "fake"
task = "score"

[quota.plans.default]
account = {}
"""


@dataclass(slots=True)
class Answer:
    """`error`: what the application raised behind its answer, which a server would log with its traceback."""

    status: int = 0
    headers: dict[str, str] = field(default_factory=dict)
    body: bytes = b""
    error: Exception | None = None

    def json(self) -> Any:
        return json.loads(self.body)


@dataclass(slots=True)
class Inside:
    app: ASGIApp
    services: Services

    async def call(
        self,
        method: str,
        target: str,
        *,
        headers: Iterable[tuple[bytes, bytes]] = (),
        body: bytes = b"",
    ) -> Answer:
        """`target` as a request line has it. This client never leaves."""
        answer, waiting = Answer(), [{"type": "http.request", "body": body, "more_body": False}]

        async def receive() -> Message:
            return waiting.pop() if waiting else await asyncio.Future()

        async def send(message: Message) -> None:
            if message["type"] == "http.response.start":
                answer.status = message["status"]
                answer.headers = {name.decode("latin-1"): text.decode("latin-1") for name, text in message["headers"]}
            else:
                answer.body += message.get("body", b"")

        try:
            async with asyncio.timeout(PATIENCE):
                await self.app(scope_of("http", target, headers) | {"method": method}, receive, send)
        except TimeoutError:
            raise
        except Exception as error:
            answer.error = error
        return answer

    async def converse(self, target: str, headers: Iterable[tuple[bytes, bytes]], frames: Sequence[str]) -> list[Any]:
        """What the server sends on a WebSocket before it closes. This client leaves when something has come."""
        received: list[Any] = []
        has_come = asyncio.Event()
        coming: list[Message] = [{"type": "websocket.connect"}]
        coming += [{"type": "websocket.receive", "text": frame} for frame in frames]
        coming.reverse()

        async def receive() -> Message:
            if coming:
                return coming.pop()
            await has_come.wait()
            return {"type": "websocket.disconnect", "code": 1000}

        async def send(message: Message) -> None:
            if message["type"] == "websocket.send":
                received.append(json.loads(message["text"]))
                has_come.set()

        async with asyncio.timeout(PATIENCE):
            await self.app(scope_of("websocket", target, headers) | {"subprotocols": []}, receive, send)
        return received

    async def key(
        self,
        account: str = "default",
        *,
        kind: KeyKind = KeyKind.API,
        models: frozenset[str] | None = None,
        features: frozenset[str] | None = None,
        expires_at: datetime | None = None,
    ) -> tuple[str, str]:
        """A new key's text and id."""
        owner = await self.services.store.accounts.ensure(account)
        spec = KeySpec(owner, kind, models=models, features=features, expires_at=expires_at)
        issued = await issue_key(self.services.store, self.services.pepper, spec)
        return issued.text, issued.key.id


def bearer(key: str) -> list[tuple[bytes, bytes]]:
    return [(b"authorization", b"Bearer " + key.encode())]


def scope_of(kind: str, target: str, headers: Iterable[tuple[bytes, bytes]]) -> Scope:
    """As uvicorn makes it of a request line."""
    raw_path, _, query = target.partition("?")
    given = list(headers)
    usual = [(b"host", b"test"), (b"content-type", b"application/json")]
    names = {name for name, _ in given}
    return {
        "type": kind,
        "asgi": {"version": "3.0"},
        "http_version": "1.1",
        "scheme": "http" if kind == "http" else "ws",
        "path": unquote(raw_path),
        "raw_path": raw_path.encode("latin-1"),
        "query_string": query.encode("latin-1"),
        "root_path": "",
        "headers": [header for header in usual if header[0] not in names] + given,
        "client": ("127.0.0.1", 1),
        "server": ("127.0.0.1", 80),
        "state": {},
    }


@contextlib.asynccontextmanager
async def inside(folder: Path, config: str = MODELS) -> AsyncIterator[Inside]:
    path = folder / "penstock.toml"
    path.write_text(config, encoding="utf-8")
    keys = {"PENSTOCK_API_KEY": API_KEY, "PENSTOCK_ADMIN_KEY": ADMIN_KEY}
    settings = load(path, {"data_dir": str(folder / "data")}, keys)
    with tempfile.TemporaryDirectory(prefix="penstock-") as sockets:
        registry = Registry(settings, Path(sockets), WorkerSupervisor)
        async with opened_store(settings) as store:
            await first_keys(store, settings)
            async with running(settings, store, registry, Metrics()) as services:
                app = create_app(services)
                async with services.batches.running(app):
                    yield Inside(app, cast(Services, services))
