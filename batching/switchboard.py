"""Whose request is whose: between the gateways of one worker and its batcher."""

from __future__ import annotations

import asyncio
import math
from collections import defaultdict
from collections.abc import Callable
from typing import Protocol

import msgspec

from batching.batcher import Deliver
from batching.protocol import Control, Deltas, FromWorker, ProtocolError, Stats, Submit, ToWorker
from batching.stats import WorkerStats
from engines.types import GenerationRequest, OutputDelta

STATS_INTERVAL = 0.1  # seconds between looks at whether there is something to report
HEARTBEAT = 10  # looks after which the same is reported again: the worker's sign of life


class AnyBatcher(Protocol):
    """What drives an engine. Every request that is added is answered, to its last delta, by way of `Deliver`."""

    def add(self, request: GenerationRequest) -> None: ...

    def abort(self, request_id: str) -> None: ...

    def snapshot(self) -> WorkerStats: ...

    async def run(self) -> None: ...


class Gateway(Protocol):
    """The worker's end of a connection to a gateway."""

    def send(self, message: FromWorker) -> None:
        """Never waits."""

    def close(self) -> None: ...


class Switchboard:
    """A request's deltas go to the gateway that it came from; a gateway that leaves takes its requests along."""

    def __init__(self, make_batcher: Callable[[Deliver], AnyBatcher], step_timeout: float = math.inf) -> None:
        """`step_timeout`: seconds for a step, of an engine that we step."""
        self._batcher = make_batcher(self._deliver)
        self._progress = Progress(step_timeout)
        self._owners: dict[str, Gateway] = {}
        self._gateways: set[Gateway] = set()

    async def run(self) -> None:
        """Until the engine or the batcher fails, or a step takes too long; raises what they raised, or TimeoutError."""
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._batcher.run())
            tasks.create_task(self._report())

    def join(self, gateway: Gateway) -> None:
        """It is greeted with a report."""
        self._gateways.add(gateway)
        gateway.send(Stats(self._batcher.snapshot()))

    def handle(self, message: ToWorker, gateway: Gateway) -> None:
        """Raises ProtocolError."""
        if isinstance(message, Submit):
            request_id = message.request.request_id
            if request_id in self._owners:
                raise ProtocolError(f"request {request_id} is under way already")
            self._submit(message.request, gateway)
        elif isinstance(message, Control):
            raise ProtocolError(f"{message.action}: nobody can be told that here")
        elif self._owners.get(message.request_id) is gateway:
            self._batcher.abort(message.request_id)

    def _submit(self, request: GenerationRequest, gateway: Gateway) -> None:
        if (refused := self.refused(request)) is not None:
            gateway.send(Deltas([refused]))
            return
        self._owners[request.request_id] = gateway
        self._batcher.add(request)

    def refused(self, request: GenerationRequest) -> OutputDelta | None:
        """Why it is not taken now, as its only delta."""
        return None

    def as_told(self, delta: OutputDelta) -> OutputDelta:
        """As its gateway gets it."""
        return delta

    def leave(self, gateway: Gateway) -> None:
        self._gateways.discard(gateway)
        gateway.close()
        for request_id in [r for r, owner in self._owners.items() if owner is gateway]:
            self._batcher.abort(request_id)

    def _deliver(self, deltas: list[OutputDelta]) -> None:
        """One message a gateway, with everything that this step has for it."""
        by_owner: defaultdict[Gateway, list[OutputDelta]] = defaultdict(list)
        for delta in deltas:
            owner = self._owners[delta.request_id]
            by_owner[owner].append(self.as_told(delta))
            if delta.finish_reason is not None:
                del self._owners[delta.request_id]
        for owner, its_deltas in by_owner.items():
            owner.send(Deltas(its_deltas))

    async def _report(self) -> None:
        last, num_same = b"", 0
        while True:
            stats = Stats(self._batcher.snapshot())
            self._progress.look(stats.stats)
            data = msgspec.msgpack.encode(stats)
            num_same = num_same + 1 if data == last else 0
            if num_same % HEARTBEAT == 0:
                for gateway in self._gateways:
                    gateway.send(stats)
            last = data
            await asyncio.sleep(STATS_INTERVAL)


class Progress:
    """Whether an engine that has work does it. It counts looks, not time, so that a process that was stopped as a whole
    has as long as any other when it goes on."""

    def __init__(self, step_timeout: float) -> None:
        self._patience = step_timeout / STATS_INTERVAL
        self._num_steps = -1
        self._num_looks = 0  # since the last step

    def look(self, stats: WorkerStats) -> None:
        """Raises TimeoutError."""
        stands = stats.running > 0 and stats.steps == self._num_steps
        self._num_looks = self._num_looks + 1 if stands else 0
        self._num_steps = stats.steps
        if self._num_looks > self._patience:
            raise TimeoutError("a step takes too long: the engine hangs")
