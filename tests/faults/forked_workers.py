"""Worker processes that are forked from one that has everything imported: one is there again within milliseconds of its
death, so that a test can kill hundreds.

python -m tests.faults.forked_workers: a line of JSON (WorkerConfig) in, the worker's process id out.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sys
import threading
import time
from asyncio.subprocess import PIPE, Process
from pathlib import Path

import msgspec

from batching.client import WorkerClient
from batching.protocol import WorkerConfig
from engines import registry
from engines.types import EngineInfo

ROOT = Path(__file__).resolve().parents[2]


class Nursery:
    """The process that forks them."""

    def __init__(self) -> None:
        self._process: Process | None = None
        self._asking = asyncio.Lock()

    async def __aenter__(self) -> Nursery:
        command = (sys.executable, "-m", "tests.faults.forked_workers")
        self._process = await asyncio.create_subprocess_exec(*command, stdin=PIPE, stdout=PIPE, cwd=ROOT)
        return self

    async def __aexit__(self, *_: object) -> None:
        assert self._process is not None
        assert self._process.stdin is not None
        self._process.stdin.close()
        await self._process.wait()

    async def fork(self, config: WorkerConfig) -> int:
        assert self._process is not None
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        async with self._asking:
            self._process.stdin.write(msgspec.json.encode(config) + b"\n")
            return int(await self._process.stdout.readline())

    def link(self, config: WorkerConfig, name: str) -> ForkedWorker:
        return ForkedWorker(self, config, name)


class ForkedWorker:
    """A `WorkerLink`. `kill` ends its process and returns when the next one serves."""

    def __init__(self, nursery: Nursery, config: WorkerConfig, name: str) -> None:
        self.name = name
        self.client: WorkerClient | None = None
        self.info: EngineInfo | None = None
        self._nursery = nursery
        self._config = config
        self.num_deaths = 0  # that `keep` has seen
        self._pid = 0

    async def start(self) -> None:
        self._pid = await self._nursery.fork(self._config)
        while self.client is None:
            try:
                self.client = await WorkerClient.connect(self._config.socket_path, self._config.silence)
            except OSError:
                await asyncio.sleep(0.002)
        if self.info is None:
            engine = registry.create(self._config.engine)
            self.info = engine.info
            engine.close()  # type: ignore[union-attr]

    async def kill(self) -> None:
        assert self.client is not None
        os.kill(self._pid, signal.SIGKILL)
        await self.client.closed.wait()
        self.client = None
        os.unlink(self._config.socket_path)
        await self.start()

    async def keep(self) -> None:
        """As a supervisor: it is started again whenever it dies or hangs. `kill` is for workers that nobody keeps."""
        while True:
            assert self.client is not None
            await self.client.closed.wait()
            with contextlib.suppress(ProcessLookupError):
                os.kill(self._pid, signal.SIGKILL)
            self.num_deaths += 1
            self.client = None
            with contextlib.suppress(FileNotFoundError):
                os.unlink(self._config.socket_path)
            await self.start()

    def hang(self) -> None:
        os.kill(self._pid, signal.SIGSTOP)

    async def stop(self) -> None:
        if self.client is not None:
            os.kill(self._pid, signal.SIGKILL)
            await self.client.close()
            self.client = None


def main() -> None:
    from batching import worker

    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for them
    for line in sys.stdin:
        if (pid := os.fork()) == 0:
            threading.Thread(target=outlive_nobody, args=(os.getppid(),), daemon=True).start()
            nowhere = os.open(os.devnull, os.O_WRONLY)
            worker.run(msgspec.json.decode(line, type=WorkerConfig), nowhere)
            os._exit(1)
        print(pid, flush=True)


def outlive_nobody(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(1)
    os._exit(0)


if __name__ == "__main__":
    main()
