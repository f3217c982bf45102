"""Gateway processes of `tests.faults.ledger.gateway`, and what they tell."""

from __future__ import annotations

import asyncio
import json
import signal
import sys
from asyncio.subprocess import PIPE, Process
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from tests.faults.ledger.holds import Hold

ROOT = Path(__file__).parents[3]


class GatewayProcess:
    def __init__(self, process: Process) -> None:
        self._process = process
        self._reading = asyncio.create_task(self._read())
        self.holds: list[Hold] = []
        self.returns: list[float] = []  # when the ledger answered again

    def owns(self, lease_id: str) -> bool:
        return lease_id.startswith(f"{self._process.pid}-")

    async def _read(self) -> None:
        assert self._process.stdout is not None
        async for line in self._process.stdout:
            told = json.loads(line)
            if isinstance(told, float):
                self.returns.append(told)
            else:
                self.holds.append(Hold(**told))

    def signal(self, number: signal.Signals) -> None:
        self._process.send_signal(number)

    async def end(self) -> None:
        """Let it finish what runs."""
        self.signal(signal.SIGTERM)
        assert await self._process.wait() == 0
        await self._reading

    def kill(self) -> None:
        if self._process.returncode is None:
            self._process.kill()


@asynccontextmanager
async def gateways(number: int, *arguments: str) -> AsyncIterator[list[GatewayProcess]]:
    """They end in order when the block does."""
    command = (sys.executable, "-m", "tests.faults.ledger.gateway", *arguments)
    running = [
        GatewayProcess(await asyncio.create_subprocess_exec(*command, stdout=PIPE, cwd=ROOT)) for _ in range(number)
    ]
    try:
        yield running
        await asyncio.gather(*(process.end() for process in running))
    finally:
        for process in running:
            process.kill()


def all_holds(processes: list[GatewayProcess]) -> list[Hold]:
    return [hold for process in processes for hold in process.holds]
