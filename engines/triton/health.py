"""Whether a model answers. Triton itself says that it does when the model's process is dead or stopped.

A stopped server is noticed by a question, a dead process by a canary: a request for one token, which is not sent while
answers come in. Whoever is found away takes no requests, and its streams, which would hang for ever, end in an error.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from enum import Enum, auto

from engines.triton.client import TritonClient
from engines.triton.errors import Fault, TritonError

INTERVAL = 1.0  # seconds
READY_TIMEOUT = 2.5

log = logging.getLogger("penstock.triton")


class Verdict(Enum):
    WELL = auto()
    UNLOADED = auto()  # it takes no requests; those that it has may still end well
    UNREACHABLE = auto()  # its server does not answer
    SILENT = auto()  # it does not, and may only be busy
    BROKEN = auto()  # it can't: its process is dead


@dataclass(slots=True, frozen=True)
class HealthOptions:
    """`canary_timeout`: how long (seconds) a model may take for one token while it gives no other sign of life."""

    canary_timeout: float
    reload: bool


class Health:
    def __init__(
        self, client: TritonClient, canary: Callable[[], Awaitable[None]], name: str, options: HealthOptions
    ) -> None:
        self.is_ready = True  # it has just described itself
        self._client = client
        self._canary = canary
        self._name = name
        self._options = options
        self._last_life = time.monotonic()
        self._suspected = asyncio.Event()
        self._verdict = Verdict.WELL
        self._is_retired = False  # unloaded on purpose: nobody looks at it, or loads it again
        self._control = asyncio.Lock()  # one load or unload at a time

    def saw_life(self) -> None:
        """A stream has brought something."""
        self._last_life = time.monotonic()

    def suspect(self, error: TritonError) -> None:
        """A request failed in a way that others may: look at once."""
        if error.fault in (Fault.DEAD, Fault.AWAY):
            self.is_ready = False
            self._suspected.set()

    async def watch(self) -> None:
        while True:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._suspected.wait(), INTERVAL)
            self._suspected.clear()
            if not self._is_retired:
                await self._conclude(await self._examine())

    @contextlib.asynccontextmanager
    async def retiring(self) -> AsyncIterator[None]:
        """It is unloaded in here, on purpose. Where that fails it is looked after again."""
        async with self._control:
            self._is_retired = True
            try:
                yield
            except BaseException:
                self._is_retired = False
                raise
            self.is_ready = False

    def resume(self) -> None:
        """It is to serve after all."""
        self._is_retired = False
        self._suspected.set()

    async def _examine(self) -> Verdict:
        started = time.monotonic()
        try:
            if not await self._client.is_ready(READY_TIMEOUT):
                return Verdict.UNLOADED
        except TritonError:
            return Verdict.WELL if self._last_life > started else Verdict.UNREACHABLE
        if self.is_ready and self._last_life > started - INTERVAL:
            return Verdict.WELL
        try:
            await asyncio.wait_for(self._canary(), self._options.canary_timeout)
        except TimeoutError:
            return Verdict.WELL if self._last_life > started else Verdict.SILENT
        except TritonError as error:
            log.debug("%s: the canary failed: %s", self._name, error)
            return {Fault.DEAD: Verdict.BROKEN, Fault.AWAY: Verdict.UNREACHABLE}.get(error.fault, Verdict.WELL)
        return Verdict.WELL

    async def _conclude(self, verdict: Verdict) -> None:
        if self._is_retired:  # meanwhile
            return
        before, self._verdict = self._verdict, verdict
        self.is_ready = verdict is Verdict.WELL
        if verdict is not before:
            log.log(
                logging.INFO if self.is_ready else logging.ERROR, "%s: on Triton it is %s", self._name, verdict.name
            )
        if verdict in (Verdict.UNREACHABLE, Verdict.SILENT, Verdict.BROKEN):
            self._client.end_streams(f"the model is {verdict.name.lower()}")
        # One that is silent once may be busy; a reload would take its work away.
        is_dead = verdict is Verdict.BROKEN or verdict is before is Verdict.SILENT
        if is_dead and self._options.reload:
            await self._reload()

    async def _reload(self) -> None:
        async with self._control:
            if self._is_retired:
                return
            log.error("%s: it is loaded anew", self._name)
            try:
                await self._client.repository.reload()
            except TritonError as error:
                log.error("%s: it can't be loaded anew: %s", self._name, error)
            else:
                self._suspected.set()  # look at once
