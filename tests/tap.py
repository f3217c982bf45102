"""`python -m tests.tap serve ...`: Penstock, with all that it answers written down for `tests.judge`, one line each.

Between the server and its network, so whoever asks, whatever client, is told what is written down here.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from server.outbox import EXTENSION, chunk_writer

VARIABLE = "TESTS_TAP"  # the file's path
MAX_BODY = 4 * 1024 * 1024  # bytes; a longer one is not judged


@dataclass(slots=True, frozen=True)
class Answered:
    """One HTTP answer, or one frame of a WebSocket (status 0)."""

    method: str
    path: str
    status: int
    content_type: str
    body: str
    is_whole: bool  # not cut short, by whomever
    is_to_anthropic: bool = False  # to a client of Anthropic's


class Tap:
    def __init__(self, app: ASGIApp, path: Path) -> None:
        self._app = app
        self._file = path.open("a", encoding="utf-8", buffering=1)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "websocket":
            await self._app(scope, receive, self._frames(scope, send))
        else:
            await self._http(scope, receive, send)

    def _frames(self, scope: Scope, send: Send) -> Send:
        async def tapped(message: Message) -> None:
            if message["type"] == "websocket.send":
                self._write(Answered("WS", scope["path"], 0, "", message.get("text") or "", True))
            await send(message)

        return tapped

    async def _http(self, scope: Scope, receive: Receive, send: Send) -> None:
        start: dict[str, Any] = {}
        body = bytearray()
        is_whole = False

        def keep(part: bytes) -> None:
            body.extend(part[: MAX_BODY - len(body)])

        async def tapped(message: Message) -> None:
            nonlocal is_whole
            if message["type"] == "http.response.start":
                start.update(message)
            else:
                keep(message.get("body", b""))
                is_whole = not message.get("more_body", False)
            await send(message)

        try:
            await self._app(_with_tap(scope, keep), receive, tapped)
        finally:
            if start and len(body) < MAX_BODY:
                headers = {name.decode().lower(): value.decode("latin-1") for name, value in start["headers"]}
                kind, text = headers.get("content-type", ""), body.decode("utf-8", "replace")
                is_to_anthropic = any(name == b"anthropic-version" for name, _ in scope["headers"])
                self._write(
                    Answered(scope["method"], scope["path"], start["status"], kind, text, is_whole, is_to_anthropic)
                )

    def _write(self, answered: Answered) -> None:
        self._file.write(json.dumps(asdict(answered)) + "\n")


def _with_tap(scope: Scope, keep: Callable[[bytes], None]) -> Scope:
    """What is written past every `send` is written down as well."""
    if (write := chunk_writer(scope)) is None:
        return scope

    def tapped(data: bytes) -> bool:
        if is_written := write(data):
            keep(data)
        return is_written

    return {**scope, "extensions": {EXTENSION: {"write": tapped}}}


def main() -> None:
    from server import cli, gateway

    create_app, path = gateway.create_app, Path(os.environ[VARIABLE])
    gateway.create_app = lambda services: Tap(create_app(services), path)
    sys.argv[0] = "penstock"
    cli.main()


if __name__ == "__main__":
    main()
