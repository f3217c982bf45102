"""Starts a worker, watches it, and starts it again when it dies."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import sys
import time
from collections.abc import Callable
from dataclasses import replace

import msgspec

from batching.client import WorkerClient
from batching.protocol import Started, WorkerConfig
from engines.base import EngineError
from engines.types import EngineInfo

MAX_BACKOFF = 30.0  # seconds
STABLE_AFTER = 60.0  # seconds of service after which a death counts as the first again
STOP_TIMEOUT = 5.0

log = logging.getLogger("penstock.supervisor")


class WorkerSupervisor:
    """One worker process: our child, in our process group, ended by the end of its standard input.

    `client` is the connection to it, None while it is not there.
    """

    def __init__(self, config: WorkerConfig, name: str, on_restart: Callable[[], None] | None = None) -> None:
        self.name = name
        self.config = config
        self.client: WorkerClient | None = None
        self.info: EngineInfo | None = None
        self._process: asyncio.subprocess.Process | None = None
        self._watching: asyncio.Task[None] | None = None
        self._on_restart = on_restart

    @property
    def pid(self) -> int | None:
        return self._process.pid if self._process else None

    async def start(self) -> None:
        """Returns when the worker serves. Raises EngineError with its reason when it can't."""
        await self._spawn()
        self._watching = asyncio.create_task(self._watch())

    async def stop(self) -> None:
        """End the worker; its open requests end in errors."""
        if self._watching is not None:
            self._watching.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._watching
        await self._end_process()

    async def _spawn(self) -> None:
        self._process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            "batching.worker",
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            env=worker_environment(),
        )
        try:
            started = await self._handshake(self._process)
            if started.info is None:
                raise EngineError(started.error)
            self.client = await self._connect()
        except BaseException:
            await self._end_process()
            raise
        self.info = started.info
        # What the gateway promises its clients from now on: a restart with less memory fails instead of holding less.
        engine = replace(self.config.engine, max_model_len=started.info.max_model_len)
        self.config = replace(self.config, engine=engine)

    async def _handshake(self, process: asyncio.subprocess.Process) -> Started:
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write(msgspec.json.encode(self.config) + b"\n")
        if not (line := await process.stdout.readline()):
            code = await process.wait()
            return Started(error=f"{self.name}: its worker died while starting (exit status {code}); see the log")
        return msgspec.json.decode(line, type=Started)

    async def _connect(self) -> WorkerClient:
        try:
            return await WorkerClient.connect(self.config.socket_path)
        except OSError as error:
            raise EngineError(f"{self.name}: its worker started but can't be reached: {error}") from error

    async def _watch(self) -> None:
        """Runs for the worker's whole life: every death is followed by a new start, later and later."""
        failures = 0
        while True:
            assert self.client is not None
            serving_since = time.monotonic()
            await self.client.closed.wait()
            self.client = None
            await self._end_process()
            if time.monotonic() - serving_since > STABLE_AFTER:
                failures = 0
            failures = await self._restart(failures)

    async def _restart(self, failures: int) -> int:
        """Start again until it works; the answer is the number of deaths and failed starts in a row."""
        while True:
            delay = 0.0 if not failures else min(0.5 * 2 ** (failures - 1), MAX_BACKOFF)
            log.error("%s: the worker is gone; starting it again in %.1f s", self.name, delay)
            await asyncio.sleep(delay)
            failures += 1
            if self._on_restart is not None:
                self._on_restart()
            try:
                await self._spawn()
            except EngineError as error:
                log.error("%s: the worker does not start: %s", self.name, error)
            except Exception:  # whatever it is: nobody else would try again
                log.exception("%s: the worker does not start", self.name)
            else:
                return failures

    async def _end_process(self) -> None:
        if self.client is not None:
            await self.client.close()
            self.client = None
        if (process := self._process) is None:
            return
        assert process.stdin is not None
        process.stdin.close()
        try:
            await asyncio.wait_for(process.wait(), STOP_TIMEOUT)
        except TimeoutError:
            process.kill()
            await process.wait()
        self._process = None  # not before: whoever cancels us here ends it in our place
        with contextlib.suppress(OSError):  # one that was killed leaves it behind
            os.unlink(self.config.socket_path)


def worker_environment() -> dict[str, str]:
    """Ours without what is for the gateway (keys, addresses with passwords), and with OpenMP threads that sleep
    instead of spinning while they wait.

    Spinning threads take the cores that the gateway and their own partners need: on two shared cores it was measured
    to make small layers seven times slower. It must be set before torch is imported.
    """
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PENSTOCK_")}
    return {"OMP_WAIT_POLICY": "passive", "TOKENIZERS_PARALLELISM": "false"} | environment
