"""Starts a worker, watches it, and starts it again when it dies."""

from __future__ import annotations

import contextlib
import os
from dataclasses import replace

from batching.child import Supervisor
from batching.client import WorkerClient
from batching.protocol import Started, WorkerConfig
from engines.base import EngineError
from engines.types import EngineInfo

STOP_TIMEOUT = 5.0  # seconds


class WorkerSupervisor(Supervisor):
    """One worker process: our child, in our process group. A `WorkerLink`."""

    module = "batching.worker"
    what = "worker"
    failure = EngineError

    def __init__(self, config: WorkerConfig, name: str) -> None:
        super().__init__(name, STOP_TIMEOUT)
        self.config = config
        self.client: WorkerClient | None = None
        self.info: EngineInfo | None = None

    def _configuration(self) -> WorkerConfig:
        """Who starts it wants the model loaded; after a death, what others have unloaded meanwhile stays so."""
        engine = replace(self.config.engine, load=not self.is_watched)
        return replace(self.config, engine=engine, restarts=self.restarts)

    def _environment(self) -> dict[str, str]:
        """With OpenMP threads that sleep instead of spinning while they wait.

        Spinning threads take the cores that the gateway and their own partners need: on two shared cores it was
        measured to make small layers seven times slower. It must be set before torch is imported.
        """
        return {"OMP_WAIT_POLICY": "passive", "TOKENIZERS_PARALLELISM": "false"} | super()._environment()

    async def _serves(self, started: Started) -> None:
        assert started.info is not None
        try:
            self.client = await WorkerClient.connect(self.config.socket_path, self.config.silence)
        except OSError as error:
            raise EngineError(f"{self.name}: its worker started but can't be reached: {error}") from error
        self.info = started.info
        # What the gateway promises its clients from now on: a restart with less memory fails instead of holding less.
        engine = replace(self.config.engine, max_model_len=started.info.max_model_len)
        self.config = replace(self.config, engine=engine)

    async def refresh(self) -> None:
        """Nothing to do: when `start` has returned, it is connected."""

    async def _gone(self) -> None:
        assert self.client is not None
        await self.client.closed.wait()
        if self.client.hangs and self._process is not None:
            self._process.kill()
        self.client = None

    async def _end_process(self) -> None:
        """Its open requests end in errors."""
        if self.client is not None:
            await self.client.close()
            self.client = None
        if self._process is None:
            return
        await super()._end_process()
        with contextlib.suppress(OSError):  # one that was killed leaves it behind
            os.unlink(self.config.socket_path)
