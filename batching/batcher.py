"""The loop that drives an engine with its scheduler's decisions: schedule, run, update."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from typing import Generic, Protocol, TypeVar

from batching.stats import WorkerStats
from engines.base import OutOfMemory
from engines.types import EngineInfo, GenerationRequest, OutputDelta

Deliver = Callable[[list[OutputDelta]], None]
Plan = TypeVar("Plan")
Result = TypeVar("Result")
PlanIn = TypeVar("PlanIn", contravariant=True)
ResultIn = TypeVar("ResultIn", contravariant=True)


log = logging.getLogger("penstock.batcher")


class Engine(Protocol[PlanIn, Result]):
    """A StepEngine, or a VectorEngine."""

    @property
    def info(self) -> EngineInfo: ...

    def submit(self, plan: PlanIn) -> Future[Result]: ...

    def resume(self) -> None: ...


class Decides(Protocol[Plan, ResultIn]):
    """`scheduler.Scheduler`, or `text_scheduler.TextScheduler`."""

    def add(self, request: GenerationRequest, now: float) -> OutputDelta | None: ...

    def abort(self, request_id: str) -> OutputDelta | None: ...

    def expire(self, now: float) -> list[OutputDelta]: ...

    def schedule(self, now: float) -> Plan | None: ...

    def observe(self, plan: Plan, seconds: float) -> None: ...

    def update(self, plan: Plan, result: ResultIn) -> list[OutputDelta]: ...

    def undo(self, plan: Plan, *, was_too_large: bool) -> list[OutputDelta]: ...

    def pause(self, now: float) -> float | None: ...

    def snapshot(self) -> WorkerStats: ...


class _Step(Generic[Plan, Result]):
    """One that is under way."""

    def __init__(self, plan: Plan, future: Future[Result]) -> None:
        self.plan = plan
        self.future = future
        self.submitted = time.monotonic()
        self.ended = self.submitted
        future.add_done_callback(self._end)

    def _end(self, _: Future[Result]) -> None:
        """In the engine's thread: the event loop may hear of it later."""
        self.ended = time.monotonic()


class Batcher(Generic[Plan, Result]):
    """Runs until its engine fails or it is cancelled. All methods belong to the worker's event loop.

    `deliver` gets every delta of a step in one call. Up to `info.steps_in_flight` steps are submitted ahead, so
    that the engine finds the next one planned when it has done with one.
    """

    def __init__(self, engine: Engine[Plan, Result], scheduler: Decides[Plan, Result], deliver: Deliver) -> None:
        self._engine = engine
        self._scheduler = scheduler
        self._deliver = deliver
        self._in_flight: deque[_Step[Plan, Result]] = deque()
        self._idle_since = 0.0  # the end of the last step: the next one, submitted before, began then
        self._wake = asyncio.Event()

    def add(self, request: GenerationRequest) -> None:
        if (refusal := self._scheduler.add(request, time.monotonic())) is not None:
            self._deliver([refusal])
        self._wake.set()

    def abort(self, request_id: str) -> None:
        if (delta := self._scheduler.abort(request_id)) is not None:
            self._deliver([delta])
        self._wake.set()

    def snapshot(self) -> WorkerStats:
        return self._scheduler.snapshot()

    async def run(self) -> None:
        """Raises what a failed step raised, unless it was out of memory."""
        while True:
            self._submit_steps()
            if not self._in_flight:
                await self._rest()
                continue
            step = self._in_flight.popleft()
            try:
                result = await asyncio.wrap_future(step.future)
            except OutOfMemory as error:
                log.warning("a step found too little memory, and is done in smaller ones: %s", error)
                await self._retreat(step.plan)
                continue
            self._scheduler.observe(step.plan, step.ended - max(step.submitted, self._idle_since))
            self._idle_since = step.ended
            if deltas := self._scheduler.update(step.plan, result):
                self._deliver(deltas)

    async def _retreat(self, failed: Plan) -> None:
        """What was planned behind a step that found too little memory was not run."""
        plans = [failed]
        while self._in_flight:
            step = self._in_flight.popleft()
            plans.append(step.plan)
            with contextlib.suppress(OutOfMemory):
                await asyncio.wrap_future(step.future)
        self._engine.resume()
        ended = [delta for plan in plans for delta in self._scheduler.undo(plan, was_too_large=plan is failed)]
        if ended:
            self._deliver(ended)

    async def _rest(self) -> None:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(self._scheduler.pause(time.monotonic())):
                await self._wake.wait()
        self._wake.clear()

    def _submit_steps(self) -> None:
        now = time.monotonic()
        if expired := self._scheduler.expire(now):
            self._deliver(expired)
        while len(self._in_flight) < self._engine.info.steps_in_flight:
            if (plan := self._scheduler.schedule(now)) is None:
                break
            self._in_flight.append(_Step(plan, self._engine.submit(plan)))
