"""What a gateway has of a worker, whoever started it."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
from typing import Protocol

from batching.client import WorkerClient
from engines.types import EngineInfo

FIRST_DELAY, MAX_DELAY = 0.05, 1.0  # seconds between attempts to connect again
CONNECT_TIMEOUT = 2.0  # seconds

log = logging.getLogger("penstock.link")


class WorkerLink(Protocol):
    """`client` is the connection to the worker, None while it is not there; `info` is known from the start on."""

    name: str
    client: WorkerClient | None
    info: EngineInfo | None

    async def start(self) -> None: ...

    async def stop(self) -> None: ...

    def let_restart(self, allowed: bool) -> None:
        """Whether it is started again when it dies; it is from every `start` on."""

    async def refresh(self) -> None:
        """It has been started by whoever starts it: returns when that is seen here, or not to be seen."""


class WorkerConnection:
    """A worker that another process supervises: connected to, and again whenever the connection breaks."""

    def __init__(self, socket_path: str, name: str, info: EngineInfo, silence: float = math.inf) -> None:
        """`silence`: as of a WorkerClient."""
        self.name = name
        self._silence = silence
        self.client: WorkerClient | None = None
        self.info: EngineInfo | None = info
        self._socket_path = socket_path
        self._keeping: asyncio.Task[None] | None = None
        self._hurry, self._tried = asyncio.Event(), asyncio.Event()

    async def start(self) -> None:
        """The worker may be away: it is waited for later."""
        await self._connect()
        self._keeping = asyncio.create_task(self._keep())

    async def stop(self) -> None:
        """The worker aborts the requests that are open here; they end in errors."""
        if self._keeping is not None:
            self._keeping.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._keeping
        if self.client is not None:
            await self.client.close()
            self.client = None

    def let_restart(self, allowed: bool) -> None:
        """Nothing to do: that is up to who supervises it."""

    async def refresh(self) -> None:
        """Connect now, not at the next attempt."""
        if self.client is not None and not self.client.closed.is_set():
            return
        self._tried.clear()
        self._hurry.set()
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._tried.wait(), CONNECT_TIMEOUT)

    async def _keep(self) -> None:
        while True:
            if self.client is not None:
                await self.client.closed.wait()
                self.client = None
                log.warning("%s: the connection to its worker has ended", self.name)
            delay = FIRST_DELAY
            while self.client is None:
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(self._hurry.wait(), delay)
                self._hurry.clear()
                delay = min(2 * delay, MAX_DELAY)
                await self._connect()
                self._tried.set()

    async def _connect(self) -> None:
        """Not for long: the kernel takes a connection for a worker that is stopped."""
        with contextlib.suppress(OSError):  # a TimeoutError is one
            async with asyncio.timeout(CONNECT_TIMEOUT):
                self.client = await WorkerClient.connect(self._socket_path, self._silence)
