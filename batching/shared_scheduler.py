"""Whose turn it is at an engine that generates: sequences', or, where it embeds as well, texts'. Pure, as the two
schedulers behind it.

A step of sequences and a batch of texts take turns (`batching.turns`), so a text never joins a step, and a running
answer's step computes what it would compute alone.
"""

from __future__ import annotations

from concurrent.futures import Future
from typing import Any

from batching.scheduler import Scheduler, SchedulerConfig
from batching.stats import WorkerStats
from batching.text_scheduler import TextScheduler
from batching.turns import TurnTaking
from engines.base import StepEngine
from engines.steps import StepPlan, TextBatch
from engines.types import EngineInfo, GenerationRequest, OutputDelta

AnyPlan = StepPlan | TextBatch


class SharedScheduler:
    """Owns every request from `add` to its last delta. Each kind has a queue of its own, of the configured size."""

    def __init__(self, info: EngineInfo, config: SchedulerConfig) -> None:
        self._embeds = info.vectors is not None
        self._sequences = Scheduler(info, config)
        self._texts = TextScheduler(info, config)
        self.max_model_len = self._sequences.max_model_len
        self.stats = self._texts.stats = self._sequences.stats
        self._turns: TurnTaking[AnyPlan] = TurnTaking([self._sequences, self._texts])

    def add(self, request: GenerationRequest, now: float) -> OutputDelta | None:
        """Queue a request; the delta, if any, refuses it."""
        scheduler = self._texts if request.texts and self._embeds else self._sequences  # which refuses texts
        return scheduler.add(request, now)

    def abort(self, request_id: str) -> OutputDelta | None:
        """End a request, wherever it is; None when it has ended already."""
        return self._sequences.abort(request_id) or self._texts.abort(request_id)

    def expire(self, now: float) -> list[OutputDelta]:
        """End the requests that waited in vain."""
        return self._sequences.expire(now) + self._texts.expire(now)

    def schedule(self, now: float) -> AnyPlan | None:
        """The next step, or None when there is nothing to do, or nothing yet: see `pause`."""
        return self._turns.next_plan(now) or self._sequences.farewell()

    def pause(self, now: float) -> float | None:
        """When nothing can be scheduled: in how many seconds that may change by itself. None: it does not."""
        return self._turns.pause(now)

    def observe(self, plan: AnyPlan, seconds: float) -> None:
        """How long the engine took for it, from when it could begin with it."""
        if isinstance(plan, TextBatch):
            self._texts.observe(plan, seconds)
        else:
            self._sequences.observe(plan, seconds)

    def update(self, plan: AnyPlan, result: Any) -> list[OutputDelta]:
        """Take what the engine made of a plan: a StepResult, or a TextBatch's vectors."""
        if isinstance(plan, TextBatch):
            return self._texts.update(plan, result)
        return self._sequences.update(plan, result)

    def undo(self, plan: AnyPlan, *, was_too_large: bool) -> list[OutputDelta]:
        """A plan that was not carried out for want of memory: its own, or that of the one before it."""
        if isinstance(plan, TextBatch):
            return self._texts.undo(plan, was_too_large=was_too_large)
        return self._sequences.undo(plan, was_too_large=was_too_large)

    def snapshot(self) -> WorkerStats:
        """The live statistics object, its gauges brought up to date."""
        texts = self._texts.snapshot()
        running, waiting = texts.running, texts.waiting
        stats = self._sequences.snapshot()
        stats.running += running
        stats.waiting += waiting
        return stats

    def check_integrity(self) -> None:
        self._sequences.check_integrity()
        self._texts.check_integrity()


class SharedEngine:
    """The engine of a SharedScheduler, as a Batcher drives it."""

    def __init__(self, engine: StepEngine) -> None:
        self._engine = engine
        self.info = engine.info

    def submit(self, plan: AnyPlan) -> Future[Any]:
        return self._engine.embed(plan) if isinstance(plan, TextBatch) else self._engine.submit(plan)

    def resume(self) -> None:
        self._engine.resume()
