"""Drives an engine that batches inside: our queue decides who is sent, when, and in whose company."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from dataclasses import dataclass, replace
from itertools import count

from batching.batcher import Deliver
from batching.buckets import count_cells, fill_batch
from batching.queue import AdmissionQueue
from batching.refusals import away, check_request, overloaded, waited_in_vain
from batching.scheduler import SchedulerConfig
from batching.sequence import Sequence
from batching.stats import WorkerStats
from engines.base import StreamEngine
from engines.steps import ScheduledSequence
from engines.types import ErrorCode, FinishReason, GenerationRequest, OutputDelta, RequestError

BACKGROUND_SHARE = 4  # the background has so small a part of what the engine takes at once
LOOK_INTERVAL = 0.1  # seconds between looks at who has waited too long, and whether the engine is there

log = logging.getLogger("penstock.stream_batcher")


@dataclass(slots=True, frozen=True)
class _Running:
    task: asyncio.Task[None]
    num_prompt_tokens: int
    is_background: bool


class StreamBatcher:
    """Runs until it is cancelled. All methods belong to the worker's event loop.

    Everybody who waits is sent as soon as there is room, the fairest first. An engine without in-flight batching gets
    whole batches of prompts of about one length: what it pads, or can't run together, would be wasted.
    """

    def __init__(self, engine: StreamEngine, config: SchedulerConfig, restarts: int, deliver: Deliver) -> None:
        self.queue: AdmissionQueue[Sequence] = AdmissionQueue(config.max_queue, config.queue_timeout)
        self._engine = engine
        of_engine = engine.info.max_padding_waste
        self._max_padding_waste = config.max_padding_waste if of_engine is None else of_engine
        self._deliver = deliver
        self._stats = WorkerStats(restarts=restarts)
        self._running: dict[str, _Running] = {}
        self._outbox: list[OutputDelta] = []
        self._ids = count()
        self._wake = asyncio.Event()

    def add(self, request: GenerationRequest) -> None:
        now = time.monotonic()
        if (error := self._refusal(request, now)) is not None:
            self._deliver([OutputDelta.failed(request.request_id, error)])
            return
        request = _with_output_as_prompt(request)
        room = self._engine.info.max_model_len - len(request.prompt_token_ids)
        if request.sampling.max_tokens > room:
            request = replace(request, sampling=replace(request.sampling, max_tokens=room))
        self.queue.put(Sequence(next(self._ids), request, request.sampling.max_tokens, request.prompt_token_ids))
        self._wake.set()

    def _refusal(self, request: GenerationRequest, now: float) -> RequestError | None:
        if (error := check_request(request, self._engine.info, self._engine.info.max_model_len)) is not None:
            return error
        if not self._engine.capacity():
            return away()
        if (
            self.queue.is_full(request) and not request.output_token_ids
        ):  # a place was found for what was begun elsewhere
            return overloaded(len(self.queue), self.queue.retry_after_ms(now))
        return None

    def abort(self, request_id: str) -> None:
        """End a request, wherever it is; harmless when it has ended already."""
        if self.queue.remove(request_id) is not None:
            self._put(OutputDelta(request_id, finish_reason=FinishReason.ABORT))
        elif (running := self._running.pop(request_id, None)) is not None:
            running.task.cancel()
            # How far it had come is the engine's secret: it had the whole prompt.
            computed = running.num_prompt_tokens
            self._put(OutputDelta(request_id, finish_reason=FinishReason.ABORT, computed_tokens=computed))
            self._wake.set()

    def snapshot(self) -> WorkerStats:
        """The live statistics object, its gauges brought up to date."""
        self._stats.ready = self._engine.capacity() > 0
        self._stats.running = len(self._running)
        self._stats.waiting = len(self.queue)
        return self._stats

    async def run(self) -> None:
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._engine.watch())
            while True:
                self._end_hopeless()
                self._start_waiting(tasks)
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(self._wake.wait(), LOOK_INTERVAL if len(self.queue) else None)
                self._wake.clear()

    # --- who starts

    def _end_hopeless(self) -> None:
        now = time.monotonic()
        for sequence in self.queue.pop_expired(now):
            error = waited_in_vain(sequence.request, now, self.queue.retry_after_ms(now))
            self._put(OutputDelta.failed(sequence.request.request_id, error))
        if not self._engine.capacity():
            for sequence in list(self.queue):
                self.queue.remove(sequence.request.request_id)
                self._put(OutputDelta.failed(sequence.request.request_id, away()))

    def _start_waiting(self, tasks: asyncio.TaskGroup) -> None:
        size = self._engine.info.max_batch_size
        while len(self._running) <= self._engine.capacity() - max(size, 1):
            if (first := self.queue.peek()) is None or not self._may_start(first.request):
                return
            batch = self._batch_around(first, size) if size else [first]
            padded_len = max(sequence.num_prompt_tokens for sequence in batch)
            for sequence in batch:
                self._start(sequence, padded_len, tasks)

    def _may_start(self, request: GenerationRequest) -> bool:
        """Nobody can tell such an engine what to do first, so it gets little of what is in no hurry: whoever comes
        finds room in it."""
        in_background = sum(running.is_background for running in self._running.values())
        return not request.is_background or in_background < max(1, self._engine.capacity() // BACKGROUND_SHARE)

    def _batch_around(self, first: Sequence, size: int) -> list[Sequence]:
        """Whose turn it is, and others that are as urgent and about as long."""
        candidates = [s for s in self.queue if s.request.priority == first.request.priority]
        lengths = [sequence.num_prompt_tokens for sequence in candidates]
        chosen = fill_batch(candidates.index(first), lengths, size, self._max_padding_waste)
        rows = [ScheduledSequence(i, 0, lengths[i], True, []) for i in chosen]
        self._stats.observe_step(len(rows), count_cells(rows))
        return [candidates[i] for i in chosen]

    def _start(self, sequence: Sequence, padded_len: int, tasks: asyncio.TaskGroup) -> None:
        now, request = time.monotonic(), sequence.request
        self.queue.pop(sequence, now)
        self.queue.charge(request, input_tokens=sequence.num_prompt_tokens)
        self._stats.prefill_tokens += sequence.num_prompt_tokens
        sequence.first_scheduled = now
        task = tasks.create_task(self._run(sequence, padded_len))
        self._running[request.request_id] = _Running(task, sequence.num_prompt_tokens, request.is_background)

    # --- one request that was sent

    async def _run(self, sequence: Sequence, padded_len: int) -> None:
        """To its one last delta, whatever happens; an abort gives that delta itself."""
        request_id = sequence.request.request_id
        try:
            last = await self._stream(sequence, padded_len)
        except Exception:
            log.exception("a request failed")
            last = None
        if self._running.pop(request_id, None) is not None:
            self._put(
                last or OutputDelta.failed(request_id, RequestError(ErrorCode.ENGINE_FAILED, "The engine failed."))
            )
            self._wake.set()

    async def _stream(self, sequence: Sequence, padded_len: int) -> OutputDelta | None:
        """Returns the last delta, and delivers those before it."""
        request, is_first = sequence.request, True
        async with contextlib.aclosing(self._engine.generate(request, padded_len)) as deltas:
            async for delta in deltas:
                num_tokens = len(delta.token_ids) or delta.num_text_tokens
                self._stats.generated_tokens += num_tokens
                self.queue.charge(request, output_tokens=num_tokens)
                if is_first:
                    delta.queue_seconds = sequence.queue_seconds
                    is_first = False
                if delta.finish_reason is not None:
                    return delta
                self._put(delta)
        return None

    def _put(self, delta: OutputDelta) -> None:
        """What one turn of the event loop brings goes out in one delivery."""
        if not self._outbox:
            asyncio.get_running_loop().call_soon(self._flush)
        self._outbox.append(delta)

    def _flush(self) -> None:
        deltas, self._outbox = self._outbox, []
        self._deliver(deltas)


def _with_output_as_prompt(request: GenerationRequest) -> GenerationRequest:
    """To an engine that knows only prompts, what another one began is a part of it."""
    if not (num_output := len(request.output_token_ids)):
        return request
    sampling = replace(
        request.sampling,
        max_tokens=request.sampling.max_tokens - num_output,
        min_tokens=max(0, request.sampling.min_tokens - num_output),
    )
    return replace(request, prompt_token_ids=request.known_token_ids, output_token_ids=[], sampling=sampling)
