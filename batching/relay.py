"""Carries requests to a worker of ours inside another server, and its deltas back, a step's in one message.

The queue and the scheduler are over there: a request that is added is on its way at once.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Callable
from dataclasses import dataclass, replace

from batching.batcher import Deliver
from batching.protocol import PROTOCOL, Abort, Deltas, ProtocolError, Stats, Submit, frame, from_worker, messages_in
from batching.refusals import away, check_request, overloaded, waited_in_vain
from batching.scheduler import SchedulerConfig
from batching.stats import WorkerStats
from engines.base import EngineError, RemoteEngine
from engines.types import ErrorCode, GenerationRequest, OutputDelta, RequestError

PAUSE = 0.1  # seconds between a session and the next one
RETRY_MS = 2000

log = logging.getLogger("penstock.relay")


@dataclass(slots=True, frozen=True)
class RelayConfig:
    """Of `scheduler` what bounds a wait. `started` is called once, with the first session: then requests can come."""

    scheduler: SchedulerConfig
    restarts: int
    started: Callable[[], None]


class Relay:
    """Runs until it is cancelled. All methods belong to the worker's event loop."""

    def __init__(self, engine: RemoteEngine, config: RelayConfig, deliver: Deliver) -> None:
        """Raises EngineError: the other side speaks another version of the protocol."""
        if engine.protocol != PROTOCOL:
            raise EngineError(
                f"{engine.info.description}: it runs another version of Penstock (its protocol is {engine.protocol}, "
                f"ours {PROTOCOL}): install the same one there and here"
            )
        self._engine = engine
        self._config = config
        self._scheduler = config.scheduler
        self._deliver = deliver
        self._has_started = False
        self._stats = WorkerStats(ready=False)
        self._is_connected = False
        self._open: dict[str, GenerationRequest] = {}

    def add(self, request: GenerationRequest) -> None:
        if (error := self._refusal(request)) is not None:
            self._deliver([OutputDelta.failed(request.request_id, error)])
            return
        room = self._engine.info.max_model_len - len(request.prompt_token_ids)
        if request.sampling.max_tokens > room:
            request = replace(request, sampling=replace(request.sampling, max_tokens=room))
        self._open[request.request_id] = request
        self._engine.send(frame(Submit(self._as_sent(request))))

    def _refusal(self, request: GenerationRequest) -> RequestError | None:
        """Our context may be shorter than theirs, and our queue too."""
        if (error := check_request(request, self._engine.info, self._engine.info.max_model_len)) is not None:
            return error
        if not (self._is_connected and self._engine.is_ready):
            return away()
        num_waiting = len(self._open) - self._engine.info.max_num_seqs  # of ours, at the least
        if num_waiting >= self._scheduler.max_queue and not request.output_token_ids:  # as for the queue over there
            return overloaded(num_waiting, RETRY_MS)
        return None

    def _as_sent(self, request: GenerationRequest) -> GenerationRequest:
        """In seconds from now, since the other side may have another clock. Only its queue looks at the deadline."""
        now = time.monotonic()
        deadline = min(request.deadline, request.arrival + self._scheduler.queue_timeout)
        return replace(request, arrival=request.arrival - now, deadline=deadline - now)

    def abort(self, request_id: str) -> None:
        if request_id in self._open:
            self._engine.send(frame(Abort(request_id)))

    def snapshot(self) -> WorkerStats:
        """The other worker's own, of all its gateways."""
        is_ready = self._is_connected and self._engine.is_ready
        return replace(self._stats, ready=is_ready, restarts=self._config.restarts)

    async def run(self) -> None:
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._engine.watch())
            tasks.create_task(self._leave_when_idle())
            while True:
                await self._follow()
                await asyncio.sleep(PAUSE)

    async def _follow(self) -> None:
        """One session, to its end, which ends its requests."""
        try:
            async with contextlib.aclosing(self._engine.session()) as session:
                async for frames in session:
                    self._receive(frames)
                    self._has_session()
        except ProtocolError as error:
            log.error("what came is no message, the session is ended: %s", error)
        finally:
            self._is_connected = False
            self._stats.running = self._stats.waiting = self._stats.kv_blocks_used = 0
            lost, self._open = self._open, {}
            if lost:
                self._deliver([OutputDelta.failed(request_id, _LOST) for request_id in lost])

    def _has_session(self) -> None:
        self._is_connected = True
        if not self._has_started:
            self._has_started = True
            self._config.started()

    async def _leave_when_idle(self) -> None:
        """A model that is to be unloaded waits for the end of its sessions."""
        while True:
            await asyncio.sleep(PAUSE)
            if self._is_connected and not self._engine.is_ready and not self._open:
                self._engine.hang_up()

    def _receive(self, frames: bytes) -> None:
        deltas: list[OutputDelta] = []
        for message in messages_in(frames, from_worker):
            if isinstance(message, Deltas):
                deltas += [self._taken(delta) for delta in message.deltas if delta.request_id in self._open]
            elif isinstance(message, Stats):
                self._stats = message.stats
        if deltas:
            self._deliver(deltas)

    def _taken(self, delta: OutputDelta) -> OutputDelta:
        """As it is told here. After its last delta a request is a stranger."""
        told = self._as_told(delta)
        if delta.finish_reason is not None:
            del self._open[delta.request_id]
        return told

    def _as_told(self, delta: OutputDelta) -> OutputDelta:
        """A wait that was too long for our queue's timeout was a deadline over there."""
        if delta.error is not None and delta.error.code is ErrorCode.DEADLINE:
            retry_ms = delta.error.retry_after_ms or RETRY_MS
            delta.error = waited_in_vain(self._open[delta.request_id], time.monotonic(), retry_ms)
        return delta


_LOST = RequestError(ErrorCode.ENGINE_FAILED, "The model's server stopped while it worked on this request.", RETRY_MS)
